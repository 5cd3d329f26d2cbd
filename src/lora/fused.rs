//! The adapted projection as one operation: `y = x Wᵀ + b + s · (drop(x) Aᵀ) Bᵀ`.
//!
//! One operation keeps only what its backward needs: `x`, and `u = drop(x) Aᵀ` of `rank` numbers a token. Dropout is a
//! function of seed and place, so its mask is computed again instead of being kept.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::adapter::{Factors, add_delta};
use crate::models::kernels::gemm::View;
use crate::models::kernels::{math, product};
use crate::models::{Linear, elements, with_elements, with_rows};

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

    /// Calls `f(index, factor)` for each element; the factor is 0 or [`Self::scale`].
    fn for_each(&self, out: &mut [f32], f: impl Fn(usize, f32, &mut f32) + Sync) {
        let scale = self.scale();
        // Of 2³² equally likely hashes so many drop.
        let limit = (self.probability * 4_294_967_296.0) as u32;
        let (low, high) = (self.seed as u32, (self.seed >> 32) as u32);
        out.par_chunks_mut(DROPOUT_TASK).enumerate().for_each(|(task, out)| {
            let from = task * DROPOUT_TASK;
            math::vectorised(|| {
                for (i, out) in out.iter_mut().enumerate() {
                    let hash = hash((from + i) as u32, low, high);
                    let factor = if hash < limit { 0.0 } else { scale };
                    f(from + i, factor, out);
                }
            });
        });
    }

    /// Returns `x` with some elements zeroed and the others scaled, with a gradient for `x`.
    ///
    /// # Errors
    /// No memory.
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        let mask = self.apply(&vec![1.0; x.elem_count()]);
        x * Tensor::from_vec(mask, x.shape(), x.device())?
    }

    /// Returns `x` with some elements zeroed and the others scaled.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; x.len()];
        self.for_each(&mut out, |i, factor, out| *out = x[i] * factor);
        out
    }
}

/// A finaliser of MurmurHash3 over place and seed: 32 bits that look random.
#[inline(always)]
fn hash(index: u32, low: u32, high: u32) -> u32 {
    let mut h = index.wrapping_mul(0x9E37_79B9) ^ low;
    h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
    h = (h ^ (h >> 13) ^ high).wrapping_mul(0xC2B2_AE35);
    h ^ (h >> 16)
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
    let (a, b) = (&factors.a, &factors.b);
    if x.device().is_cpu() && !linear.weight().track_op() {
        let op =
            Adapted { linear: linear.clone(), scale: scale as f32, dropout, u: OnceLock::new() };
        return x.contiguous()?.apply_op3(a, b, op);
    }
    let y = linear.forward(x)?;
    if !dropout.is_active() {
        return add_delta(factors, scale, x, &y);
    }
    add_delta(factors, scale, &dropout.of(x)?, &y)
}

struct Adapted {
    linear: Linear,
    scale: f32,
    dropout: Dropout,
    /// `drop(x) Aᵀ`, `[tokens, rank]`.
    u: OnceLock<Vec<f32>>,
}

/// The sizes of one projection.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    input: usize,
    output: usize,
    rank: usize,
}

impl Adapted {
    fn sizes(&self, x: &[usize], a: &[usize], b: &[usize]) -> Result<Sizes> {
        let (output, input) = self.linear.weight().dims2()?;
        match (x, a, b) {
            (&[tokens, width], &[rank, a_in], &[b_out, b_rank])
                if width == input && a_in == input && b_out == output && b_rank == rank =>
            {
                Ok(Sizes { tokens, input, output, rank })
            }
            _ => bail!("x {x:?}, A {a:?} and B {b:?} do not fit weights [{output}, {input}]"),
        }
    }

    /// `x` as the adapter sees it.
    fn dropped<'a>(&self, x: &'a [f32]) -> std::borrow::Cow<'a, [f32]> {
        if self.dropout.is_active() { self.dropout.apply(x).into() } else { x.into() }
    }

    /// The gradients of x (if wanted), A and B.
    fn backward(
        &self,
        s: Sizes,
        [x, a, b, grad]: [&[f32]; 4],
        wanted: bool,
    ) -> Result<(Option<Vec<f32>>, Vec<f32>, Vec<f32>)> {
        let Some(u) = self.u.get() else {
            bail!("adapted projection: backward before forward");
        };
        let Sizes { tokens, input, output, rank } = s;
        let (a, b) = (View::whole(a, input), View::whole(b, rank));
        let (grad_view, u) = (View::whole(grad, output), View::whole(u, rank));
        let mut du = vec![0f32; tokens * rank];
        product::dense(&mut du, (tokens, rank), grad_view, b, self.scale, false);
        let du = View::whole(&du, rank);
        let mut db = vec![0f32; output * rank];
        product::dense(&mut db, (output, rank), grad_view.t(), u, self.scale, false);
        let mut da = vec![0f32; rank * input];
        product::dense(
            &mut da,
            (rank, input),
            du.t(),
            View::whole(&self.dropped(x), input),
            1.0,
            false,
        );
        if !wanted {
            return Ok((None, da, db));
        }
        let mut dx = vec![0f32; tokens * input];
        with_rows(self.linear.weight(), |w| product::times(grad, w, output, input, &mut dx))?;
        if self.dropout.is_active() {
            let mut through = vec![0f32; tokens * input];
            product::dense(&mut through, (tokens, input), du, a, 1.0, false);
            self.dropout.for_each(&mut dx, |i, factor, dx| *dx += through[i] * factor);
        } else {
            product::dense(&mut dx, (tokens, input), du, a, 1.0, true);
        }
        Ok((Some(dx), da, db))
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
        let s = self.sizes(x_layout.dims(), a_layout.dims(), b_layout.dims())?;
        let (x, a, b) = (elements(x, x_layout)?, elements(a, a_layout)?, elements(b, b_layout)?);
        let Sizes { tokens, input, output, rank } = s;
        let mut y = vec![0f32; tokens * output];
        with_rows(self.linear.weight(), |w| {
            product::times_transposed(x, w, output, input, &mut y)
        })?;
        if let Some(bias) = self.linear.bias() {
            with_elements([bias], |[bias]| {
                y.chunks_mut(output)
                    .for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            })?;
        }
        let mut u = vec![0f32; tokens * rank];
        let seen = self.dropped(x);
        product::dense(
            &mut u,
            (tokens, rank),
            View::whole(&seen, input),
            View::whole(a, input).t(),
            1.0,
            false,
        );
        let (u_view, b) = (View::whole(&u, rank), View::whole(b, rank));
        product::dense(&mut y, (tokens, output), u_view, b.t(), self.scale, true);
        // A second forward of the same operation computes the same numbers.
        let _ = self.u.set(u);
        Ok((CpuStorage::F32(y), Shape::from((tokens, output))))
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
        let s = self.sizes(x.dims(), a.dims(), b.dims())?;
        let (dx, da, db) =
            with_elements([x, a, b, &grad], |slices| self.backward(s, slices, x.track_op()))??;
        let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        let dx = dx.map(|dx| tensor(dx, x)).transpose()?;
        Ok((dx, Some(tensor(da, a)?), Some(tensor(db, b)?)))
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
