//! How much two adapters change the same thing: the cosine of their updates, from the factors.

use candle_core::{Result as TensorResult, Tensor};

use super::adapter::{Factors, LoraAdapter};

/// Returns `⟨ΔA, ΔB⟩ / (‖ΔA‖ ‖ΔB‖)` over all sites, `Δ = (α/r) · B A`: 1 for the same update, 0 for unrelated ones, −1 for
/// opposite ones; `None` where one of them changes nothing. No Δ is made: `⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ)`.
///
/// What DoRA does besides, the scaling of rows, is not counted.
///
/// # Errors
/// A failed tensor operation.
pub fn overlap(one: &LoraAdapter, other: &LoraAdapter) -> TensorResult<Option<f64>> {
    let (product, one, other) =
        (inner(one, other)?, inner(one, one)?.sqrt(), inner(other, other)?.sqrt());
    Ok((one > 0.0 && other > 0.0).then(|| (product / (one * other)).clamp(-1.0, 1.0)))
}

/// Returns `⟨ΔA, ΔB⟩` over the sites that both have.
fn inner(one: &LoraAdapter, other: &LoraAdapter) -> TensorResult<f64> {
    let mut sum = 0.0;
    for (site, factors) in one.sites() {
        if let Some(others) = other.sites().get(site) {
            let scale = one.config().scale_of(factors) * other.config().scale_of(others);
            sum += scale * product(factors, others)?;
        }
    }
    Ok(sum)
}

fn product(one: &Factors, other: &Factors) -> TensorResult<f64> {
    let left: Tensor = one.b.t()?.contiguous()?.matmul(&other.b)?;
    let right = one.a.matmul(&other.a.t()?.contiguous()?)?;
    Ok(f64::from((left * right)?.sum_all()?.to_vec0::<f32>()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Device;

    use super::*;
    use crate::lora::LoraConfig;
    use crate::models::{Module, Site};

    fn adapter(a: Tensor, b: Tensor) -> LoraAdapter {
        let rank = a.dims()[0];
        let config = LoraConfig {
            rank,
            alpha: 3.0,
            rslora: false,
            dora: false,
            target_modules: vec!["q_proj".into()],
        };
        let factors = Factors { a, b, magnitude: None, alpha: 3.0 };
        let site = Site { layer: 0, module: Module::QProj };
        LoraAdapter::from_factors(config, BTreeMap::from([(site, factors)])).unwrap()
    }

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap()
    }

    fn delta(adapter: &LoraAdapter) -> Tensor {
        let factors = adapter.sites().values().next().unwrap();
        (factors.b.matmul(&factors.a).unwrap() * (3.0 / factors.rank() as f64)).unwrap()
    }

    #[test]
    fn the_overlap_of_factors_is_that_of_the_matrices() {
        let (one, other) =
            (adapter(random(2, 7), random(5, 2)), adapter(random(3, 7), random(5, 3)));
        let dot = |x: &Tensor, y: &Tensor| {
            f64::from((x * y).unwrap().sum_all().unwrap().to_vec0::<f32>().unwrap())
        };
        let (x, y) = (delta(&one), delta(&other));
        let expected = dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt();
        let found = overlap(&one, &other).unwrap().unwrap();
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
        assert!((overlap(&one, &one).unwrap().unwrap() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn opposite_updates_have_minus_one_and_no_update_has_none() {
        let (a, b) = (random(2, 4), random(3, 2));
        let one = adapter(a.clone(), b.clone());
        let opposite = adapter(a.clone(), b.neg().unwrap());
        assert!((overlap(&one, &opposite).unwrap().unwrap() + 1.0).abs() < 1e-5);
        let nothing = adapter(a, b.zeros_like().unwrap());
        assert_eq!(overlap(&one, &nothing).unwrap(), None);
    }
}
