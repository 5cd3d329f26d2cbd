//! Causal attention over packed sequences, with a backward that computes the probabilities again: no
//! `[heads, tokens, tokens]` is kept, only a number per query and head (Dao et al. 2022).

mod token;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::elements::{elements, with_elements};
use super::kernels::gemm::{View, ViewMut, product};
use super::kernels::math::{self, vectorised};
use super::ops;
use super::packing::{Packing, Span};

pub(super) use token::token;

/// Queries whose scores are held at a time.
const BLOCK: usize = 64;

/// How the heads lie in a row of queries, keys or values, and what a query sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Heads of the queries.
    pub queries: usize,
    /// Heads of keys and values; divides that of the queries.
    pub keys: usize,
    /// Width of a head.
    pub dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// The most keys that a query sees, its own included; `None` is all before it.
    pub window: Option<usize>,
}

impl Heads {
    /// Heads that see all keys before them, with the scale 1 / √dim.
    pub fn full(queries: usize, keys: usize, dim: usize) -> Self {
        Self { queries, keys, dim, scale: 1.0 / (dim as f32).sqrt(), window: None }
    }

    fn groups(&self) -> usize {
        self.queries / self.keys
    }

    /// Returns the first position that the query at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Causal attention of packed sequences.
///
/// `q` is `[tokens, queries · dim]`, `k` and `v` are `[tokens, keys · dim]`, rotated already; returns what `q` is.
///
/// # Errors
/// Shapes that do not fit.
pub fn packed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    packing: &Arc<Packing>,
) -> Result<Tensor> {
    let tokens = packing.len();
    let (wide, narrow) = ([tokens, heads.queries * heads.dim], [tokens, heads.keys * heads.dim]);
    let divides = heads.keys > 0
        && heads.queries.is_multiple_of(heads.keys)
        && heads.window.is_none_or(|window| window > 0);
    if !divides || q.dims() != wide || k.dims() != narrow || v.dims() != narrow {
        bail!(
            "attention: {:?}, {:?}, {:?} are not {tokens} rows of {heads:?}",
            q.shape(),
            k.shape(),
            v.shape()
        );
    }
    if ops::fused(q.device()) {
        let op = Attention { heads, packing: Arc::clone(packing), log_sums: OnceLock::new() };
        return q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op);
    }
    let parts = packing.spans().iter().map(|span| composed(q, k, v, heads, span));
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

/// The same of plain tensor operations, for one span.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, span: &Span) -> Result<Tensor> {
    let rows = span.rows.len();
    let seen = |t: &Tensor| -> Result<Tensor> {
        let own = t.narrow(0, span.rows.start, rows)?;
        let all = if span.prefix == 0 {
            own
        } else {
            Tensor::cat(&[&t.narrow(0, 0, span.prefix)?, &own], 0)?
        };
        all.reshape((1, span.prefix + rows, heads.keys, heads.dim))?.transpose(1, 2)?.contiguous()
    };
    let (k, v) = (seen(k)?, seen(v)?);
    let q = q.narrow(0, span.rows.start, rows)?;
    cached(&q, &k, &v, heads)?.to_dtype(DType::F32)
}

/// Attention of the last `q` rows over keys and values that lie as a cache holds them.
///
/// `q` is `[tokens, queries · dim]`, `k` and `v` are `[1, keys, seen, dim]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn cached(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads) -> Result<Tensor> {
    let (seq, width) = q.dims2()?;
    // Keys that no query sees any more.
    let past = heads.first_seen(k.dim(2)?.saturating_sub(seq));
    let seen = |t: &Tensor| t.narrow(2, past, t.dim(2)? - past);
    let (k, v) = (seen(k)?, seen(v)?);
    let q = q.reshape((1, seq, heads.queries, heads.dim))?.transpose(1, 2)?.contiguous()?;
    // The query heads of a group lie behind each other as rows, so no key is repeated.
    let q = q.reshape((1, heads.keys, heads.groups() * seq, heads.dim))?;
    let scores = q.matmul(&k.transpose(2, 3)?)?;
    let probs = ops::causal_softmax(&scores, f64::from(heads.scale), seq, heads.window)?;
    probs
        .matmul(&v)?
        .reshape((1, heads.queries, seq, heads.dim))?
        .transpose(1, 2)?
        .reshape((seq, width))
}

struct Attention {
    heads: Heads,
    packing: Arc<Packing>,
    /// log Σ exp of each query's scores, `[tokens, queries]`.
    log_sums: OnceLock<Vec<f32>>,
}

/// One head of one span, with the operands it reads.
struct Part<'a> {
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    k_prefix: View<'a>,
    v_prefix: View<'a>,
    prefix: usize,
    heads: Heads,
}

/// What a block of queries sees: some rows of the prefix, then some of the sequence's own.
struct Seen {
    prefix: Range<usize>,
    own: Range<usize>,
}

impl Seen {
    /// Returns how many keys that are.
    fn width(&self) -> usize {
        self.prefix.len() + self.own.len()
    }
}

/// The operands as they lie in memory.
#[derive(Clone, Copy)]
struct Operands<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    heads: Heads,
}

impl<'a> Operands<'a> {
    fn queries(&self, data: &'a [f32], span: &Span, head: usize) -> View<'a> {
        let dim = self.heads.dim;
        View::whole(data, self.heads.queries * dim)
            .rows(span.rows.clone())
            .cols(head * dim..(head + 1) * dim)
    }

    fn keys(&self, data: &'a [f32], rows: Range<usize>, head: usize) -> View<'a> {
        let dim = self.heads.dim;
        View::whole(data, self.heads.keys * dim).rows(rows).cols(head * dim..(head + 1) * dim)
    }

    fn part(&self, span: &Span, head: usize) -> Part<'a> {
        let kv = head / self.heads.groups();
        Part {
            q: self.queries(self.q, span, head),
            k: self.keys(self.k, span.rows.clone(), kv),
            v: self.keys(self.v, span.rows.clone(), kv),
            k_prefix: self.keys(self.k, 0..span.prefix, kv),
            v_prefix: self.keys(self.v, 0..span.prefix, kv),
            prefix: span.prefix,
            heads: self.heads,
        }
    }
}

impl Part<'_> {
    /// Returns what a block of queries sees: prefix and the sequence's tokens up to the block's last, from the first
    /// that is within the window of any.
    fn seen(&self, block: &Range<usize>) -> Seen {
        let first = self.heads.first_seen(self.prefix + block.start);
        Seen {
            prefix: first.min(self.prefix)..self.prefix,
            own: first.saturating_sub(self.prefix)..block.end,
        }
    }

    /// Returns which of the block's keys the query in a row sees.
    fn visible(&self, row: usize, seen: &Seen) -> Range<usize> {
        let position = self.prefix + row;
        let first = seen.prefix.start + seen.own.start;
        self.heads.first_seen(position) - first..position + 1 - first
    }

    /// Writes the scores of a block of queries against the keys that it sees, `[block, seen]`.
    fn scores(&self, block: &Range<usize>, seen: &Seen, out: &mut [f32]) {
        let (q, scale) = (self.q.rows(block.clone()), self.heads.scale);
        let mut parts = ViewMut::whole(out, seen.width()).split_cols(seen.prefix.len());
        product(&mut parts.0, q, self.k_prefix.rows(seen.prefix.clone()).t(), scale, false);
        product(&mut parts.1, q, self.k.rows(seen.own.clone()).t(), scale, false);
    }
}

fn blocks(rows: usize) -> impl DoubleEndedIterator<Item = Range<usize>> {
    (0..rows).step_by(BLOCK).map(move |from| from..(from + BLOCK).min(rows))
}

/// Turns the scores of a query that sees the `visible` keys into probabilities; returns log Σ exp.
#[inline(always)]
fn softmax(row: &mut [f32], visible: Range<usize>) -> f32 {
    hide(row, &visible);
    let seen = &mut row[visible];
    let most = math::max(seen);
    for s in seen.iter_mut() {
        *s = math::exp(*s - most);
    }
    let sum = math::sum_map(seen.len(), |i| seen[i]);
    let inverse = 1.0 / sum;
    seen.iter_mut().for_each(|s| *s *= inverse);
    most + sum.ln()
}

/// Zeroes what is not visible.
#[inline(always)]
fn hide(row: &mut [f32], visible: &Range<usize>) {
    row[..visible.start].fill(0.0);
    row[visible.end..].fill(0.0);
}

impl Attention {
    /// Splits a matrix `[tokens, heads · width]` into the part of each span and group of heads.
    fn grid<'a>(&self, data: &'a mut [f32], heads: usize, width: usize) -> Vec<ViewMut<'a>> {
        let rows: Vec<usize> = self.packing.spans().iter().map(|s| s.rows.start).collect();
        let parts = ViewMut::whole(data, heads * width).split_rows(&rows);
        let cols = heads / self.heads.keys * width;
        parts
            .into_iter()
            .flat_map(|p| p.col_blocks(cols).into_iter().map(|(_, block)| block))
            .collect()
    }

    /// Every span with every head of the keys, in the order of [`Self::grid`].
    fn tasks(&self) -> impl Iterator<Item = (&Span, usize)> {
        let heads = self.heads.keys;
        self.packing.spans().iter().flat_map(move |span| (0..heads).map(move |head| (span, head)))
    }

    fn forward(&self, operands: Operands<'_>) -> (Vec<f32>, Vec<f32>) {
        let Heads { queries, dim, .. } = self.heads;
        let mut out = vec![0f32; operands.q.len()];
        let mut log_sums = vec![0f32; self.packing.len() * queries];
        let outs = self.grid(&mut out, queries, dim);
        let sums = self.grid(&mut log_sums, queries, 1);
        let tasks: Vec<_> = self.tasks().zip(outs.into_iter().zip(sums)).collect();
        tasks.into_par_iter().for_each(|((span, kv), (out, mut sums))| {
            let mut scores = Vec::new();
            for (group, (_, mut out)) in out.col_blocks(dim).into_iter().enumerate() {
                let part = operands.part(span, kv * self.heads.groups() + group);
                for block in blocks(span.rows.len()) {
                    let seen = part.seen(&block);
                    let width = seen.width();
                    scores.resize(block.len() * width, 0.0);
                    part.scores(&block, &seen, &mut scores);
                    vectorised!({
                        for (row, scores) in block.clone().zip(scores.chunks_mut(width)) {
                            sums.row(row)[group] = softmax(scores, part.visible(row, &seen));
                        }
                    });
                    let probs = View::whole(&scores, width);
                    let mut out = out.rows(block.clone());
                    let before = seen.prefix.len();
                    product(&mut out, probs.cols(before..width), part.v.rows(seen.own), 1.0, false);
                    if before > 0 {
                        let v = part.v_prefix.rows(seen.prefix);
                        product(&mut out, probs.cols(0..before), v, 1.0, true);
                    }
                }
            }
        });
        (out, log_sums)
    }

    /// The gradients of q, k and v.
    fn backward(&self, operands: Operands<'_>, grad: &[f32]) -> Result<[Vec<f32>; 3]> {
        let Some(log_sums) = self.log_sums.get() else {
            bail!("attention: backward before forward");
        };
        let Heads { queries, keys, dim, .. } = self.heads;
        let mut dq = vec![0f32; operands.q.len()];
        let (mut dk, mut dv) = (vec![0f32; operands.k.len()], vec![0f32; operands.v.len()]);
        let grids = self.grid(&mut dq, queries, dim).into_iter().zip(self.grid(&mut dk, keys, dim));
        let grids = grids.zip(self.grid(&mut dv, keys, dim));
        let tasks: Vec<_> = self.tasks().zip(grids).collect();
        let shared: Vec<PrefixGrad> = tasks
            .into_par_iter()
            .map(|((span, kv), ((dq, mut dk), mut dv))| {
                let mut prefix = PrefixGrad::new(span.prefix, dim, kv);
                for (group, (_, mut dq)) in dq.col_blocks(dim).into_iter().enumerate() {
                    let head = kv * self.heads.groups() + group;
                    let head = HeadGrad {
                        part: operands.part(span, head),
                        grad: operands.queries(grad, span, head),
                        log_sums: View::whole(log_sums, queries)
                            .rows(span.rows.clone())
                            .cols(head..head + 1),
                    };
                    head.add(&mut dq, &mut dk, &mut dv, &mut prefix);
                }
                prefix
            })
            .collect();
        // In the order of the spans, so that sums are the same on every pool.
        for part in shared {
            part.add_to(&mut dk, &mut dv, keys * dim);
        }
        Ok([dq, dk, dv])
    }
}

/// What one span adds to the gradients of the shared prefix' keys and values; `[prefix, dim]` each.
struct PrefixGrad {
    k: Vec<f32>,
    v: Vec<f32>,
    dim: usize,
    head: usize,
}

impl PrefixGrad {
    fn new(prefix: usize, dim: usize, head: usize) -> Self {
        Self { k: vec![0.0; prefix * dim], v: vec![0.0; prefix * dim], dim, head }
    }

    fn add_to(&self, dk: &mut [f32], dv: &mut [f32], width: usize) {
        for (to, from) in [(dk, &self.k), (dv, &self.v)] {
            for (row, from) in from.chunks(self.dim).enumerate() {
                let at = row * width + self.head * self.dim;
                to[at..at + self.dim].iter_mut().zip(from).for_each(|(t, f)| *t += f);
            }
        }
    }
}

/// One head of one span on the way back.
struct HeadGrad<'a> {
    part: Part<'a>,
    grad: View<'a>,
    log_sums: View<'a>,
}

impl HeadGrad<'_> {
    /// With P the probabilities and G = grad Vᵀ: dV = Pᵀ grad; dS = scale · P∘(G − Σ P∘G); dQ = dS K; dK = dSᵀ Q.
    fn add(
        &self,
        dq: &mut ViewMut<'_>,
        dk: &mut ViewMut<'_>,
        dv: &mut ViewMut<'_>,
        shared: &mut PrefixGrad,
    ) {
        let Part { q, k, v, k_prefix, v_prefix, heads: Heads { scale, .. }, .. } = self.part;
        let dim = shared.dim;
        let (mut probs, mut grads) = (Vec::new(), Vec::new());
        for block in blocks(self.grad.height()) {
            let seen = self.part.seen(&block);
            let width = seen.width();
            let (before, own) = (seen.prefix.clone(), seen.own.clone());
            probs.resize(block.len() * width, 0.0);
            grads.resize(block.len() * width, 0.0);
            self.part.scores(&block, &seen, &mut probs);
            let grad = self.grad.rows(block.clone());
            let mut parts = ViewMut::whole(&mut grads, width).split_cols(before.len());
            product(&mut parts.0, grad, v_prefix.rows(before.clone()).t(), 1.0, false);
            product(&mut parts.1, grad, v.rows(own.clone()).t(), 1.0, false);
            vectorised!({
                let rows = block.clone().zip(probs.chunks_mut(width).zip(grads.chunks_mut(width)));
                for (row, (probs, grads)) in rows {
                    let visible = self.part.visible(row, &seen);
                    hide(probs, &visible);
                    hide(grads, &visible);
                    let (probs, grads) = (&mut probs[visible.clone()], &mut grads[visible]);
                    let log_sum = self.log_sums.at(row, 0);
                    probs.iter_mut().for_each(|p| *p = math::exp(*p - log_sum));
                    let d = math::sum_map(probs.len(), |j| probs[j] * grads[j]);
                    for (p, g) in probs.iter().zip(grads) {
                        *g = scale * *p * (*g - d);
                    }
                }
            });
            let (p, ds) = (View::whole(&probs, width), View::whole(&grads, width));
            let (p_own, ds_own) = (p.cols(before.len()..width), ds.cols(before.len()..width));
            let q = q.rows(block.clone());
            product(&mut dv.rows(own.clone()), p_own.t(), grad, 1.0, true);
            product(&mut dk.rows(own.clone()), ds_own.t(), q, 1.0, true);
            let mut dq = dq.rows(block);
            product(&mut dq, ds_own, k.rows(own), 1.0, false);
            if !before.is_empty() {
                let (p, ds) = (p.cols(0..before.len()), ds.cols(0..before.len()));
                product(&mut dq, ds, k_prefix.rows(before.clone()), 1.0, true);
                let dv = &mut ViewMut::whole(&mut shared.v, dim);
                product(&mut dv.rows(before.clone()), p.t(), grad, 1.0, true);
                let dk = &mut ViewMut::whole(&mut shared.k, dim);
                product(&mut dk.rows(before), ds.t(), q, 1.0, true);
            }
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (elements(q, q_layout)?, elements(k, k_layout)?, elements(v, v_layout)?);
        let (out, log_sums) = self.forward(Operands { q, k, v, heads: self.heads });
        // A second forward of the same operation computes the same numbers.
        let _ = self.log_sums.set(log_sums);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [dq, dk, dv] = with_elements([q, k, v, &grad], |[q, k, v, grad]| {
            self.backward(Operands { q, k, v, heads: self.heads }, grad)
        })??;
        let tensor =
            |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}
