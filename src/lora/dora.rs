//! DoRA (Liu et al. 2024): `m · (W x + s · B(A x)) / ‖W + s · B A‖ + bias`, the length taken of each output row.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::adapter::Factors;
use crate::models::{Linear, WeightId};

/// Rows of weights that are squared at a time, to keep the copy small.
const SQUARED_ROWS: usize = 1024;

/// A tensor that follows from a layer's frozen weights, computed once for them.
#[derive(Debug, Default)]
pub(super) struct OfWeights(OnceLock<(WeightId, Tensor)>);

impl OfWeights {
    /// Returns what `compute` gives for `linear`; other weights than the first ones met are computed anew each time.
    pub fn get(&self, linear: &Linear, compute: impl Fn() -> Result<Tensor>) -> Result<Tensor> {
        let weights = linear.weight().id();
        if let Some((of, known)) = self.0.get()
            && *of == weights
        {
            return Ok(known.clone());
        }
        let tensor = compute()?;
        // Someone else may have been faster; both are right.
        let _ = self.0.set((weights, tensor.clone()));
        Ok(tensor)
    }
}

/// Returns the squared length of each row of a layer's weights, `[out]`.
pub(super) fn row_squares(linear: &Linear) -> Result<Tensor> {
    let (rows, _) = linear.dims()?;
    let squares = (0..rows)
        .step_by(SQUARED_ROWS)
        .map(|from| linear.wide_rows(from..(from + SQUARED_ROWS).min(rows))?.sqr()?.sum(1));
    Tensor::cat(&squares.collect::<Result<Vec<_>>>()?, 0)
}

/// Returns the length of each row of `W + s · B A`, `[out]`, without a gradient: PEFT and the paper (section 4.3) take it
/// for a constant.
///
/// `squares` are those of the rows of W. The sum itself is never made:
/// `‖W + s B A‖² = ‖W‖² + 2 s Σ (W Aᵀ) ∘ B + s² Σ (B (A Aᵀ)) ∘ B`.
pub(super) fn row_lengths(
    linear: &Linear,
    squares: &Tensor,
    a: &Tensor,
    b: &Tensor,
    scale: f64,
) -> Result<Tensor> {
    let (a, b) = (a.detach(), b.detach());
    let at = a.t()?.contiguous()?;
    let cross = (linear.times(&at)? * &b)?.sum(1)?;
    let own = (b.matmul(&a.matmul(&at)?)? * &b)?.sum(1)?;
    let sum = ((squares + (cross * (2.0 * scale))?)? + (own * (scale * scale))?)?;
    // A row of nothing but zeros stays one: its trained length is 0 as well.
    sum.maximum(f64::from(f32::MIN_POSITIVE))?.sqrt()
}

/// Returns what multiplies the rows of `W + s · B A` to give each its trained length `magnitude` `[out]`.
pub(super) fn ratio(
    linear: &Linear,
    factors: &Factors,
    magnitude: &Tensor,
    scale: f64,
) -> Result<Tensor> {
    let squares = row_squares(linear)?;
    magnitude / row_lengths(linear, &squares, &factors.a, &factors.b, scale)?
}

/// Returns the projection `[tokens, out]` of `x` `[tokens, in]` with each row of the weights at its trained length.
///
/// `ratio` is `m / ‖W + s · B A‖`, `[out]`. With dropout PEFT takes the frozen part from `x` itself and all that training
/// adds from the `dropped` input.
pub(super) fn project(
    linear: &Linear,
    factors: &Factors,
    scale: f64,
    ratio: &Tensor,
    x: &Tensor,
    dropped: Option<&Tensor>,
) -> Result<Tensor> {
    let delta = |x: &Tensor| x.matmul(&factors.a.t()?)?.matmul(&factors.b.t()?)? * scale;
    let y = match dropped {
        None => (linear.without_bias(x)? + delta(x)?)?.broadcast_mul(ratio)?,
        Some(dropped) => {
            let frozen = linear.without_bias(dropped)?.broadcast_mul(&(ratio - 1.0)?)?;
            let added = (frozen + delta(dropped)?.broadcast_mul(ratio)?)?;
            (linear.without_bias(x)? + added)?
        }
    };
    match linear.bias() {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn random(shape: impl Into<candle_core::Shape>) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    fn apart(x: &Tensor, y: &Tensor) -> f32 {
        let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        (norm(&(x - y).unwrap()) / norm(y)).sqrt()
    }

    /// A layer of more rows than are squared at a time, and factors for it.
    fn site() -> (Linear, Tensor, Factors) {
        let (input, output, rank) = (24, SQUARED_ROWS + 5, 3);
        let weight = random((output, input));
        let linear = Linear::new(weight.clone(), Some(random(output)));
        let (a, b) = (random((rank, input)), random((output, rank)));
        (linear, weight, Factors { a, b, magnitude: Some(random(output)), alpha: 6.0 })
    }

    fn lengths_of(weight: &Tensor) -> Tensor {
        weight.sqr().unwrap().sum(1).unwrap().sqrt().unwrap()
    }

    #[test]
    fn lengths_are_those_of_the_sum_that_is_never_made() {
        let (linear, weight, factors) = site();
        let squares = row_squares(&linear).unwrap();
        let got = row_lengths(&linear, &squares, &factors.a, &factors.b, 2.0).unwrap();
        let sum = (weight + (factors.b.matmul(&factors.a).unwrap() * 2.0).unwrap()).unwrap();
        assert!(apart(&got, &lengths_of(&sum)) < 1e-6);
    }

    /// PEFT: base(x) + (r − 1) · W drop(x) + r · s · B(A drop(x)), biases in base(x) alone.
    #[test]
    fn dropout_touches_all_that_is_added_and_not_the_frozen_output() {
        let (linear, weight, factors) = site();
        let ratio = ratio(&linear, &factors, factors.magnitude.as_ref().unwrap(), 2.0).unwrap();
        let (x, dropped) = (random((7, 24)), random((7, 24)));
        let got = project(&linear, &factors, 2.0, &ratio, &x, Some(&dropped)).unwrap();
        let frozen = dropped.matmul(&weight.t().unwrap()).unwrap();
        let low = dropped.matmul(&factors.a.t().unwrap()).unwrap();
        let delta = (low.matmul(&factors.b.t().unwrap()).unwrap() * 2.0).unwrap();
        let added = (frozen.broadcast_mul(&(&ratio - 1.0).unwrap()).unwrap()
            + delta.broadcast_mul(&ratio).unwrap())
        .unwrap();
        assert!(apart(&got, &(linear.forward(&x).unwrap() + added).unwrap()) < 1e-5);
        let same = project(&linear, &factors, 2.0, &ratio, &x, Some(&x)).unwrap();
        let none = project(&linear, &factors, 2.0, &ratio, &x, None).unwrap();
        assert!(apart(&same, &none) < 1e-5, "nothing dropped is no dropout");
    }

    #[test]
    fn what_follows_from_weights_is_computed_anew_for_others() {
        let known = OfWeights::default();
        let (first, second) = (site().0, site().0);
        let of = |linear: &Linear| known.get(linear, || row_squares(linear)).unwrap();
        let squares = of(&first);
        assert_eq!(of(&first).id(), squares.id(), "it is kept");
        assert_eq!(apart(&of(&second), &row_squares(&second).unwrap()), 0.0);
        assert_eq!(of(&first).id(), squares.id());
    }
}
