//! Differentiable operations, fused for the CPU.
//!
//! candle's own fused forms (`rms_norm`, `softmax_last_dim`, `rope`) have no backward: gradients stop
//! there without an error. These have one. On other devices the same value is composed of plain
//! tensor operations, which candle differentiates by itself.

use std::ops::Range;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Device, InplaceOp1, Layout, Result, Shape,
    Tensor, bail,
};
use rayon::prelude::*;

use super::elements::elements;
use super::kernels::math::{self, vectorised};

/// Below this many elements threads cost more than they bring.
pub(super) const PARALLEL_ELEMENTS: usize = 1 << 15;

/// Tells whether a device has the fused operations; elsewhere they are composed of plain tensor operations.
pub(crate) fn fused(device: &Device) -> bool {
    #[cfg(test)]
    if super::test_kit::asked() {
        return false;
    }
    device.is_cpu()
}

/// Frees the values of a tensor of a graph that no backward reads; its place in the graph stays.
///
/// candle keeps every operand of every operation until the graph goes. Whoever calls this knows that the operations
/// around the tensor compute their gradients without it.
///
/// # Errors
/// A tensor whose storage is in use.
pub(crate) fn forget(tensor: &Tensor) -> Result<()> {
    if tensor.track_op() && fused(tensor.device()) && !tensor.is_variable() {
        tensor.inplace_op1(&Forget)?;
    }
    Ok(())
}

struct Forget;

impl InplaceOp1 for Forget {
    fn name(&self) -> &'static str {
        "forget"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        *storage = CpuStorage::F32(Vec::new());
        Ok(())
    }
}

/// Runs `f(row index, output row)` over the rows of `out`, in parallel where that pays. `f` must be inlined to profit from
/// vector instructions.
pub(super) fn for_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if out.len() < PARALLEL_ELEMENTS {
        vectorised!(out.chunks_mut(width).enumerate().for_each(|(i, row)| f(i, row)));
    } else {
        let rows_per_task = (PARALLEL_ELEMENTS / 4 / width).max(1);
        out.par_chunks_mut(width * rows_per_task).enumerate().for_each(|(task, chunk)| {
            vectorised!({
                for (i, row) in chunk.chunks_mut(width).enumerate() {
                    f(task * rows_per_task + i, row);
                }
            });
        });
    }
}

fn last_dim(layout: &Layout) -> Result<usize> {
    layout.shape().dim(D::Minus1)
}

// ---------------------------------------------------------------- RMS norm

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = last_dim(x_layout)?;
        let (x, weight) = (elements(x, x_layout)?, elements(weight, weight_layout)?);
        if weight.len() != width {
            bail!("rms_norm: {} weights do not fit rows of {width}", weight.len());
        }
        Ok((CpuStorage::F32(rms_norm_of(x, weight, self.eps)), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        // Frozen norms need no gradient; computing it would cost as much as that of x.
        let (wanted, trained) = (x.track_op(), weight.track_op());
        let (x, weight, grad) = (x.detach(), weight.detach(), grad.contiguous()?.detach());
        let grad_x = if wanted {
            Some(x.apply_op3_no_bwd(&weight, &grad, &RmsNormGradX { eps: self.eps })?)
        } else {
            None
        };
        let grad_weight = if trained {
            Some(x.apply_op2_no_bwd(&grad, &RmsNormGradWeight { eps: self.eps })?)
        } else {
            None
        };
        Ok((grad_x, grad_weight))
    }
}

/// [`rms_norm`] of rows as long as the weights.
pub(super) fn rms_norm_of(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let mut out = vec![0f32; x.len()];
    for_rows(
        &mut out,
        width,
        #[inline(always)]
        |i, row| {
            let x = &x[i * width..][..width];
            let scale = inverse_rms(x, eps);
            for ((o, &x), &w) in row.iter_mut().zip(x).zip(weight) {
                *o = x * scale * w;
            }
        },
    );
    out
}

fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (math::sum_map(x.len(), |i| x[i] * x[i]) / x.len() as f32 + eps).sqrt()
}

struct RmsNormGradX {
    eps: f32,
}

impl CustomOp3 for RmsNormGradX {
    fn name(&self) -> &'static str {
        "rms-norm-grad-x"
    }

    /// With s = 1/rms(x): dx = s·(w∘g) − x·s³·mean(x∘w∘g).
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = last_dim(x_layout)?;
        let (x, weight) = (elements(x, x_layout)?, elements(weight, weight_layout)?);
        let grad = elements(grad, grad_layout)?;
        let mut out = vec![0f32; x.len()];
        for_rows(
            &mut out,
            width,
            #[inline(always)]
            |i, row| {
                let (x, g) = (&x[i * width..][..width], &grad[i * width..][..width]);
                let s = inverse_rms(x, self.eps);
                let dot = math::sum_map(width, |j| x[j] * weight[j] * g[j]) / width as f32;
                for (j, o) in row.iter_mut().enumerate() {
                    *o = s * weight[j] * g[j] - x[j] * s * s * s * dot;
                }
            },
        );
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

struct RmsNormGradWeight {
    eps: f32,
}

impl CustomOp2 for RmsNormGradWeight {
    fn name(&self) -> &'static str {
        "rms-norm-grad-weight"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = last_dim(x_layout)?;
        let (x, grad) = (elements(x, x_layout)?, elements(grad, grad_layout)?);
        let mut out = vec![0f32; width];
        for (x, g) in x.chunks(width).zip(grad.chunks(width)) {
            let s = inverse_rms(x, self.eps);
            for (j, o) in out.iter_mut().enumerate() {
                *o += x[j] * s * g[j];
            }
        }
        Ok((CpuStorage::F32(out), Shape::from(width)))
    }
}

/// Root-mean-square norm over the last dimension (Zhang and Sennrich 2019): `x / rms(x) · weight`.
///
/// `x` is `[.., width]`, `weight` `[width]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if weight.dims() != [width] || width == 0 {
        bail!("rms_norm: weight {:?} does not fit {:?}", weight.shape(), x.shape());
    }
    if fused(x.device()) {
        return x.contiguous()?.apply_op2(weight, RmsNorm { eps: eps as f32 });
    }
    let mean = (x.sqr()?.sum_keepdim(D::Minus1)? / x.dim(D::Minus1)? as f64)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(weight)
}

// ---------------------------------------------------------------- rotary embedding

struct Rope {
    /// −1 rotates back, which is the gradient.
    direction: f32,
}

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, heads, head_dim) = x_layout.shape().dims3()?;
        let half = last_dim(cos_layout)?;
        let x = elements(x, x_layout)?;
        let (cos, sin) = (elements(cos, cos_layout)?, elements(sin, sin_layout)?);
        let mut out = vec![0f32; x.len()];
        for_rows(
            &mut out,
            head_dim,
            #[inline(always)]
            |i, row| {
                let x = &x[i * head_dim..][..head_dim];
                let at = i / heads * half;
                row[2 * half..].copy_from_slice(&x[2 * half..]);
                let (low, high) = row[..2 * half].split_at_mut(half);
                for j in 0..half {
                    let (c, s) = (cos[at + j], sin[at + j] * self.direction);
                    low[j] = x[j] * c - x[j + half] * s;
                    high[j] = x[j + half] * c + x[j] * s;
                }
            },
        );
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = Rope { direction: -self.direction };
        let grad = grad.contiguous()?.detach().apply_op3_no_bwd(cos, sin, &back)?;
        Ok((Some(grad), None, None))
    }
}

/// Rotary position embedding (Su et al. 2021) in the half-split form of Hugging Face.
///
/// `x` is `[tokens, heads, head_dim]`, `cos` and `sin` are `[tokens, rotated / 2]`: the first `rotated` numbers of each
/// head are turned, the others pass.
///
/// # Errors
/// Shapes that do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (tokens, _, head_dim) = x.dims3()?;
    let (rows, half) = cos.dims2()?;
    if half == 0 || 2 * half > head_dim || rows != tokens || sin.dims() != cos.dims() {
        bail!("rope: angles {:?}, {:?} do not fit {:?}", cos.shape(), sin.shape(), x.shape());
    }
    if fused(x.device()) {
        return x.contiguous()?.apply_op3(cos, sin, Rope { direction: 1.0 });
    }
    let rotated = x.narrow(2, 0, 2 * half)?.transpose(0, 1)?.unsqueeze(0)?.contiguous()?;
    let rotated = candle_nn::rotary_emb::rope_slow(&rotated, cos, sin)?;
    let rotated = rotated.squeeze(0)?.transpose(0, 1)?;
    if 2 * half == head_dim {
        return rotated.contiguous();
    }
    Tensor::cat(&[rotated, x.narrow(2, 2 * half, head_dim - 2 * half)?], 2)
}

// ---------------------------------------------------------------- causal softmax

/// Softmax of attention scores `[.., rows, keys]`, whose rows are `groups` times `seq` queries.
struct CausalSoftmax {
    scale: f32,
    seq: usize,
    window: Option<usize>,
}

/// The keys that the query of a row sees: itself and those before it, or as many of them as the window holds.
fn visible(row: usize, keys: usize, seq: usize, window: Option<usize>) -> Range<usize> {
    let end = keys - seq + row % seq + 1;
    window.map_or(0, |window| end.saturating_sub(window))..end
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let keys = last_dim(layout)?;
        let scores = elements(scores, layout)?;
        let mut out = vec![0f32; scores.len()];
        for_rows(
            &mut out,
            keys,
            #[inline(always)]
            |i, row| {
                let visible = visible(i, keys, self.seq, self.window);
                let scores = &scores[i * keys..][visible.clone()];
                let row = &mut row[visible];
                let most = math::max(scores);
                for (o, &s) in row.iter_mut().zip(scores) {
                    *o = math::exp((s - most) * self.scale);
                }
                let inverse = 1.0 / math::sum_map(row.len(), |j| row[j]);
                row.iter_mut().for_each(|o| *o *= inverse);
            },
        );
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// Causal softmax of `scale · scores`.
///
/// `scores` is `[batch, kv_heads, groups · seq, keys]`: the last `seq` keys are those of the queries
/// themselves, and row `r` is the query at `r % seq`. Keys after a query get probability 0, and so do those that it
/// does not see through a `window` of so many keys, its own included. For inference: on the CPU it has no backward
/// (training goes through [`super::attention::packed`]).
///
/// # Errors
/// Shapes that do not fit.
pub fn causal_softmax(
    scores: &Tensor,
    scale: f64,
    seq: usize,
    window: Option<usize>,
) -> Result<Tensor> {
    let (_, _, rows, keys) = scores.dims4()?;
    if seq == 0 || keys < seq || rows % seq != 0 || window == Some(0) {
        bail!("causal_softmax: {seq} queries do not fit scores {:?}", scores.shape());
    }
    if fused(scores.device()) {
        let op = CausalSoftmax { scale: scale as f32, seq, window };
        return scores.contiguous()?.apply_op1(op);
    }
    let mask: Vec<f32> = (0..rows)
        .flat_map(|r| {
            let visible = visible(r, keys, seq, window);
            (0..keys).map(move |k| if visible.contains(&k) { 0.0 } else { f32::NEG_INFINITY })
        })
        .collect();
    let mask = Tensor::from_vec(mask, (rows, keys), scores.device())?;
    candle_nn::ops::softmax(&(scores * scale)?.broadcast_add(&mask)?, D::Minus1)
}
