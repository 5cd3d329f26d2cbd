//! One token through the decoder, on plain slices: decoding on the CPU.
//!
//! The same computation as [`Decoder::hidden`] of a token and a cache, without a tensor for each operation, and with the
//! products that share an input done together: of a small model those would cost more than the products do.

use candle_core::{DType, Result, Tensor};

use super::attention;
use super::decoder::{Attention, Layer, Mlp, Pass};
use super::elements::Elements;
use super::kernels::product::{LowRank, Product, token_products};
use super::kernels::team::{Team, with_team};
use super::linear::{Adapt, Added, Linear, Module, Site, Term};
use super::rotation::Rotation;
use super::{Decoder, KvCache, gated_of, ops};

impl Decoder {
    /// Returns the states of tokens before the first layer, `[tokens, hidden]`.
    ///
    /// # Errors
    /// Ids beyond the vocabulary.
    pub fn embeddings(&self, ids: &[u32]) -> Result<Tensor> {
        self.embed(ids)?.to_dtype(DType::F32)
    }

    /// Computes the hidden state `[hidden]`, final norm applied, of one token behind those in the cache.
    pub(super) fn step(
        &self,
        id: u32,
        pass: &Pass<'_>,
        cache: &KvCache,
        adapt: &dyn Adapt,
    ) -> Result<Vec<f32>> {
        let mut x = self.embed(&[id])?.flatten_all()?.to_vec1()?;
        // What acts in a way of its own computes with the pool, whose threads a team would keep.
        let modules = Module::ALL.into_iter();
        let mut sites = (0..self.layers().len())
            .flat_map(|layer| modules.clone().map(move |module| Site { layer, module }));
        let alone = sites.any(|site| matches!(adapt.added(site), Added::Otherwise));
        with_team(!alone, |team| {
            self.layers().iter().enumerate().try_for_each(|(index, layer)| {
                Step { decoder: self, index, pass, cache, adapt, team }.layer(layer, &mut x)
            })
        })?;
        norm(&x, self.norm(), self.config().rms_norm_eps)
    }
}

/// One layer's part of a step.
struct Step<'a> {
    decoder: &'a Decoder,
    index: usize,
    pass: &'a Pass<'a>,
    cache: &'a KvCache,
    adapt: &'a dyn Adapt,
    team: &'a Team<'a>,
}

impl Step<'_> {
    fn layer(&self, layer: &Layer, x: &mut [f32]) -> Result<()> {
        let eps = self.decoder.config().rms_norm_eps;
        let (of_attention, of_mlp) = layer.output_norms.as_ref().map(|(a, m)| (a, m)).unzip();
        let output = |y: Vec<f32>, weight: Option<&Tensor>| match weight {
            Some(weight) => norm(&y, weight, eps),
            None => Ok(y),
        };
        let attended = self.attention(&layer.attention, &norm(x, &layer.input_norm, eps)?)?;
        add(x, &output(attended, of_attention)?);
        let computed = self.mlp(&layer.mlp, &norm(x, &layer.mlp_norm, eps)?)?;
        add(x, &output(computed, of_mlp)?);
        Ok(())
    }

    fn attention(&self, attention: &Attention, x: &[f32]) -> Result<Vec<f32>> {
        let config = self.decoder.config();
        let Attention { q_proj, k_proj, v_proj, o_proj, qk_norm } = attention;
        let [mut q, mut k, v] = self.project(
            x,
            [(Module::QProj, q_proj), (Module::KProj, k_proj), (Module::VProj, v_proj)],
        )?;
        if let Some((q_norm, k_norm)) = qk_norm {
            q = norm(&q, q_norm, config.rms_norm_eps)?;
            k = norm(&k, k_norm, config.rms_norm_eps)?;
        }
        let Rotation { cos, sin } = self.pass.rotation(self.index);
        let (cos, sin) = (Elements::of(cos)?, Elements::of(sin)?);
        for x in [&mut q, &mut k] {
            rotate(x, config.head_dim, cos.as_slice(), sin.as_slice());
        }
        let heads = config.heads(self.index);
        let y = self.cache.with_token(self.index, &k, &v, |keys, values, seen| {
            attention::token(self.team, &q, keys, values, seen, heads)
        })?;
        let [y] = self.project(&y, [(Module::OProj, o_proj)])?;
        Ok(y)
    }

    fn mlp(&self, mlp: &Mlp, x: &[f32]) -> Result<Vec<f32>> {
        let Mlp { gate_proj, up_proj, down_proj, activation } = mlp;
        let [gate, up] =
            self.project(x, [(Module::GateProj, gate_proj), (Module::UpProj, up_proj)])?;
        let gated = gated_of(*activation, &gate, &up);
        let [y] = self.project(&gated, [(Module::DownProj, down_proj)])?;
        Ok(y)
    }

    /// Computes projections of one input together.
    fn project<const N: usize>(
        &self,
        x: &[f32],
        layers: [(Module, &Linear); N],
    ) -> Result<[Vec<f32>; N]> {
        let added = layers.map(|(module, _)| self.adapt.added(Site { layer: self.index, module }));
        if added.iter().any(|added| matches!(added, Added::Otherwise)) {
            return self.project_alone(x, layers);
        }
        let mut outputs = [const { Vec::new() }; N];
        let mut locked = Vec::with_capacity(N);
        for ((_, linear), added) in layers.iter().zip(&added) {
            let bias = linear.bias().map(Elements::of).transpose()?;
            let terms: &[Term<'_>] = match added {
                Added::LowRank(terms) => terms,
                Added::Otherwise => &[],
            };
            let (rows, _) = linear.dims()?;
            let coarse = linear.weight().is_of_blocks();
            let terms = terms.iter().map(|term| {
                let (rank, cols) = term.a.dims2()?;
                if cols != x.len() || term.b.dims2()? != (rows, rank) {
                    let (a, b) = (term.a.shape(), term.b.shape());
                    candle_core::bail!("factors {a:?}, {b:?} do not fit [{rows}, {}]", x.len());
                }
                let (a, b) = term.halves.filter(|_| coarse).unwrap_or((term.a, term.b));
                Ok((Elements::of_rows(a)?, Elements::of_rows(b)?, rank, term.scale))
            });
            locked.push((linear.weight().lock()?, bias, terms.collect::<Result<Vec<_>>>()?));
        }
        let mut products = Vec::with_capacity(N);
        for ((weight, bias, terms), y) in locked.iter().zip(&mut outputs) {
            let (rows, cols) = weight.dims();
            if cols != x.len() {
                candle_core::bail!("an input of {} does not fit weights [{rows}, {cols}]", x.len());
            }
            *y = vec![0f32; rows];
            let low_rank = terms.iter().map(|(a, b, rank, scale)| LowRank {
                a: a.rows(),
                b: b.rows(),
                rank: *rank,
                scale: *scale,
            });
            let bias = bias.as_ref().map(Elements::as_slice);
            products.push(Product { weight: weight.rows(), bias, low_rank: low_rank.collect(), y });
        }
        token_products(self.team, x, products);
        Ok(outputs)
    }

    /// The same for what acts in a way of its own.
    fn project_alone<const N: usize>(
        &self,
        x: &[f32],
        layers: [(Module, &Linear); N],
    ) -> Result<[Vec<f32>; N]> {
        let x = Tensor::from_slice(x, (1, x.len()), self.decoder.device())?;
        let mut outputs = [const { Vec::new() }; N];
        for (y, (module, linear)) in outputs.iter_mut().zip(layers) {
            let site = Site { layer: self.index, module };
            *y = self.adapt.project(site, linear, &x)?.flatten_all()?.to_vec1()?;
        }
        Ok(outputs)
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// RMS norm of rows as long as the weights.
fn norm(x: &[f32], weight: &Tensor, eps: f64) -> Result<Vec<f32>> {
    let weight = Elements::of(weight)?;
    Ok(ops::rms_norm_of(x, weight.as_slice(), eps as f32))
}

/// Turns the pairs of each head by the angles of a position; what is beyond them passes.
fn rotate(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for head in x.chunks_exact_mut(head_dim) {
        let (first, second) = head[..2 * cos.len()].split_at_mut(cos.len());
        let pairs = first.iter_mut().zip(second);
        for ((a, b), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
