//! The adapted projection as one operation: `y = x Wᵀ + b + s · (drop(x) Aᵀ) Bᵀ`.
//!
//! One operation keeps only what its backward needs: `x`, and `u = drop(x) Aᵀ` of `rank` numbers a token. Dropout is a
//! function of seed and place, so its mask is computed again instead of being kept.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::adapter::{Factors, add_delta};
use crate::models::kernels::gemm::View;
use crate::models::kernels::math::vectorised;
use crate::models::kernels::product;
use crate::models::{
    Activation, Gated, Linear, elements, gated_grads, gated_of, ops, with_elements,
};

/// Elements of dropout that one task computes.
const DROPOUT_TASK: usize = 1 << 15;

/// Zeroes inputs of an adapter with a probability; what stays is scaled up to keep the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability that an input is zeroed, from 0 to below 1.
    pub probability: f64,
    /// Decides, with the place, which.
    pub seed: u64,
}

impl Dropout {
    /// Returns whether anything is dropped.
    pub fn is_active(&self) -> bool {
        self.probability > 0.0
    }

    fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.probability)) as f32
    }

    /// Calls `f(factor, x, out)` for each element of `x` and `out`; the factor is 0 or [`Self::scale`].
    fn for_each(&self, x: &[f32], out: &mut [f32], f: impl Fn(f32, f32, &mut f32) + Sync) {
        let scale = self.scale();
        // Of 2³² equally likely hashes so many drop.
        let limit = (self.probability * 4_294_967_296.0) as u32;
        let mixed = mix(self.seed);
        let (low, high) = (mixed as u32, (mixed >> 32) as u32);
        let tasks = out.par_chunks_mut(DROPOUT_TASK).zip(x.par_chunks(DROPOUT_TASK));
        tasks.enumerate().for_each(|(task, (out, x))| {
            let from = (task * DROPOUT_TASK) as u32;
            vectorised!({
                for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                    let hash = hash((from.wrapping_add(i as u32) ^ low).wrapping_add(high));
                    f(if hash < limit { 0.0 } else { scale }, *x, out);
                }
            });
        });
    }

    /// Returns `x` `[tokens, in]` with some elements zeroed and the others scaled, on any device.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        let mask = self.apply(&vec![1.0; x.elem_count()]);
        x * Tensor::from_vec(mask, x.shape(), x.device())?
    }

    /// Returns `x` with some elements zeroed and the others scaled.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; x.len()];
        self.for_each(
            x,
            &mut out,
            #[inline(always)]
            |factor, x, out| *out = x * factor,
        );
        out
    }
}

/// 32 bits that look random: the mixer `lowbias32` (Wellons 2018).
#[inline(always)]
fn hash(index: u32) -> u32 {
    let h = (index ^ (index >> 16)).wrapping_mul(0x7FEB_352D);
    let h = (h ^ (h >> 15)).wrapping_mul(0x846C_A68B);
    h ^ (h >> 16)
}

/// 64 bits that look random: the mixer of SplitMix64 (Steele et al. 2014).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Returns the adapted projection of `x` `[tokens, in]`; gradients go to `x`, A and B.
///
/// # Errors
/// Shapes that do not fit.
pub fn project(
    linear: &Linear,
    factors: &Factors,
    scale: f64,
    dropout: Dropout,
    x: &Tensor,
) -> Result<Tensor> {
    if ops::fused(x.device()) && !linear.weight().is_trained() {
        let op = Adapted::new(linear, factors, scale, dropout)?;
        return x.contiguous()?.apply_op3(&factors.a, &factors.b, op);
    }
    let y = linear.forward(x)?;
    if !dropout.is_active() {
        return add_delta(factors, scale, x, &y);
    }
    add_delta(factors, scale, &dropout.of(x)?, &y)
}

/// Returns the adapted projection of a gated activation `[tokens, in]` without keeping that product; gradients go to
/// gate, up, A and B.
///
/// # Errors
/// Shapes that do not fit.
pub fn project_gated(
    linear: &Linear,
    factors: &Factors,
    scale: f64,
    dropout: Dropout,
    input: Gated<'_>,
) -> Result<Tensor> {
    let Gated { gate, up, activation } = input;
    if !ops::fused(gate.device()) || linear.weight().is_trained() || gate.dims() != up.dims() {
        return project(linear, factors, scale, dropout, &input.product()?);
    }
    // An operation has three operands at most.
    let both = Tensor::cat(&[factors.a.flatten_all()?, factors.b.flatten_all()?], 0)?;
    let op = AdaptedGated(Adapted::new(linear, factors, scale, dropout)?, activation);
    gate.contiguous()?.apply_op3(&up.contiguous()?, &both, op)
}

/// A projection with its adapter, on the CPU.
struct Adapted {
    linear: Linear,
    input: usize,
    output: usize,
    rank: usize,
    scale: f32,
    dropout: Dropout,
    /// `drop(x) Aᵀ`, `[tokens, rank]`.
    u: OnceLock<Vec<f32>>,
}

/// The gradients of x (if wanted), A and B.
type AdaptedGrads = (Option<Vec<f32>>, Vec<f32>, Vec<f32>);

impl Adapted {
    fn new(linear: &Linear, factors: &Factors, scale: f64, dropout: Dropout) -> Result<Self> {
        let (output, input) = linear.dims()?;
        let ((rank, a_in), (b_out, b_rank)) = (factors.a.dims2()?, factors.b.dims2()?);
        if (a_in, b_out, b_rank) != (input, output, rank) {
            bail!("A [{rank}, {a_in}] and B [{b_out}, {b_rank}] do not fit [{output}, {input}]");
        }
        let (linear, u) = (linear.clone(), OnceLock::new());
        Ok(Self { linear, input, output, rank, scale: scale as f32, dropout, u })
    }

    /// Returns the number of tokens of an input.
    fn tokens(&self, x: &[f32]) -> Result<usize> {
        if !x.len().is_multiple_of(self.input) {
            bail!("{} inputs are no rows of {}", x.len(), self.input);
        }
        Ok(x.len() / self.input)
    }

    /// `x` as the adapter sees it.
    fn dropped<'a>(&self, x: &'a [f32]) -> std::borrow::Cow<'a, [f32]> {
        if self.dropout.is_active() { self.dropout.apply(x).into() } else { x.into() }
    }

    fn forward(&self, x: &[f32], a: &[f32], b: &[f32]) -> Result<Vec<f32>> {
        let tokens = self.tokens(x)?;
        let (input, output, rank) = (self.input, self.output, self.rank);
        let mut y = vec![0f32; tokens * output];
        self.linear
            .weight()
            .with_rows(|w| product::times_transposed(x, w, output, input, &mut y))?;
        if let Some(bias) = self.linear.bias() {
            with_elements([bias], |[bias]| {
                y.chunks_mut(output)
                    .for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            })?;
        }
        let mut u = vec![0f32; tokens * rank];
        let seen = self.dropped(x);
        let a = View::whole(a, input).t();
        product::dense(&mut u, (tokens, rank), View::whole(&seen, input), a, 1.0, false);
        let b = View::whole(b, rank).t();
        product::dense(&mut y, (tokens, output), View::whole(&u, rank), b, self.scale, true);
        // A second forward of the same operation computes the same numbers.
        let _ = self.u.set(u);
        Ok(y)
    }

    fn backward(
        &self,
        x: &[f32],
        a: &[f32],
        b: &[f32],
        grad: &[f32],
        wanted: bool,
    ) -> Result<AdaptedGrads> {
        let Some(u) = self.u.get() else {
            bail!("adapted projection: backward before forward");
        };
        let tokens = self.tokens(x)?;
        let (input, output, rank) = (self.input, self.output, self.rank);
        let (a, b) = (View::whole(a, input), View::whole(b, rank));
        let (grad_view, u) = (View::whole(grad, output), View::whole(u, rank));
        let mut du = vec![0f32; tokens * rank];
        product::dense(&mut du, (tokens, rank), grad_view, b, self.scale, false);
        let du = View::whole(&du, rank);
        let mut db = vec![0f32; output * rank];
        product::dense(&mut db, (output, rank), grad_view.t(), u, self.scale, false);
        let mut da = vec![0f32; rank * input];
        let seen = self.dropped(x);
        product::dense(&mut da, (rank, input), du.t(), View::whole(&seen, input), 1.0, false);
        drop(seen);
        if !wanted {
            return Ok((None, da, db));
        }
        let mut dx = vec![0f32; tokens * input];
        self.linear.weight().with_rows(|w| product::times(grad, w, output, input, &mut dx))?;
        if self.dropout.is_active() {
            let mut through = vec![0f32; tokens * input];
            product::dense(&mut through, (tokens, input), du, a, 1.0, false);
            self.dropout.for_each(&through, &mut dx, |factor, through, dx| *dx += through * factor);
        } else {
            product::dense(&mut dx, (tokens, input), du, a, 1.0, true);
        }
        Ok((Some(dx), da, db))
    }

    fn shaped(&self, y: Vec<f32>) -> (CpuStorage, Shape) {
        let shape = Shape::from((y.len() / self.output.max(1), self.output));
        (CpuStorage::F32(y), shape)
    }
}

impl CustomOp3 for Adapted {
    fn name(&self) -> &'static str {
        "adapted-projection"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, a, b) = (elements(x, x_layout)?, elements(a, a_layout)?, elements(b, b_layout)?);
        Ok(self.shaped(self.forward(x, a, b)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, da, db) = with_elements([x, a, b, &grad], |[x_data, a, b, grad]| {
            self.backward(x_data, a, b, grad, x.track_op())
        })??;
        let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        let dx = dx.map(|dx| tensor(dx, x)).transpose()?;
        Ok((dx, Some(tensor(da, a)?), Some(tensor(db, b)?)))
    }
}

/// The same with `activation(gate) ∘ up` as input; the third operand is A and B behind each other.
struct AdaptedGated(Adapted, Activation);

impl CustomOp3 for AdaptedGated {
    fn name(&self) -> &'static str {
        "adapted-gated-projection"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
        both: &CpuStorage,
        both_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (elements(gate, gate_layout)?, elements(up, up_layout)?);
        let (a, b) = elements(both, both_layout)?.split_at(self.0.rank * self.0.input);
        Ok(self.0.shaped(self.0.forward(&gated_of(self.1, gate, up), a, b)?))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        both: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let wanted = gate.track_op() || up.track_op();
        let (dx, factors) = with_elements([gate, up, both, &grad], |[gate, up, both, grad]| {
            let (a, b) = both.split_at(self.0.rank * self.0.input);
            let x = gated_of(self.1, gate, up);
            let (dx, mut da, db) = self.0.backward(&x, a, b, grad, wanted)?;
            da.extend(db);
            Ok::<_, candle_core::Error>((dx.map(|dx| gated_grads(self.1, gate, up, dx)), da))
        })??;
        let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        let (dgate, dup) = dx.unzip();
        Ok((
            dgate.map(|d| tensor(d, gate)).transpose()?,
            dup.map(|d| tensor(d, up)).transpose()?,
            Some(tensor(factors, both)?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_drops_its_share_and_keeps_the_mean() {
        let dropout = Dropout { probability: 0.1, seed: 0x1234_5678_9ABC_DEF0 };
        let kept = dropout.apply(&vec![1.0; 200_000]);
        let share = kept.iter().filter(|x| **x == 0.0).count() as f64 / 200_000.0;
        assert!((share - 0.1).abs() < 0.005, "{share}");
        let mean = kept.iter().sum::<f32>() / 200_000.0;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        // Neighbours are independent, and so are seeds.
        let pairs = kept.windows(2).filter(|w| w[0] == 0.0 && w[1] == 0.0).count() as f64;
        assert!((pairs / 200_000.0 - 0.01).abs() < 0.002, "{pairs}");
        let other = Dropout { seed: dropout.seed + 1, ..dropout }.apply(&vec![1.0; 200_000]);
        let both = kept.iter().zip(&other).filter(|(a, b)| **a == 0.0 && **b == 0.0).count() as f64;
        assert!((both / 200_000.0 - 0.01).abs() < 0.002, "{both}");
    }
}
