//! The sum of an adapter and a difference that was trained on top of it, as one adapter.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result as TensorResult, Tensor};

use super::JobError;
use super::adapter::{Factors, LoraAdapter, LoraConfig};
use super::svd::{self, Columns, Svd};
use crate::models::Site;

/// An adapter, and how far it is from what it stands for.
#[derive(Debug)]
pub struct Compressed {
    /// The adapter.
    pub adapter: LoraAdapter,
    /// ‖sum − adapter‖ / ‖sum‖, Frobenius norms over all sites; 0 where nothing was cut off.
    pub error: f64,
}

/// Refuses what is no sum of low-rank terms.
///
/// # Errors
/// A DoRA adapter on either side.
pub fn check(parent: &LoraConfig, dora: bool) -> Result<(), JobError> {
    if parent.dora || dora {
        return Err(JobError::Input(
            "a DoRA adapter rescales the base's own output, so no difference can be added to it: use --from continue or --from fresh".to_owned(),
        ));
    }
    Ok(())
}

/// Returns `parent + delta` with the ranks of `parent` (of `delta` where only that acts), or with `rank` everywhere: the
/// nearest there is (Eckart and Young 1936).
///
/// # Errors
/// No memory.
pub fn sum(
    parent: &LoraAdapter,
    delta: &LoraAdapter,
    rank: Option<usize>,
) -> TensorResult<Compressed> {
    let mut config = parent.config().clone();
    config.rank = rank.unwrap_or(config.rank);
    for name in &delta.config().target_modules {
        if !config.target_modules.contains(name) {
            config.target_modules.push(name.clone());
        }
    }
    let (mut sites, mut whole, mut cut) = (BTreeMap::new(), 0.0, 0.0);
    let mut all: Vec<Site> = parent.sites().keys().chain(delta.sites().keys()).copied().collect();
    all.sort_unstable();
    all.dedup();
    for site in all {
        let terms: Vec<(&Factors, f64)> = [parent, delta]
            .into_iter()
            .filter_map(|of| of.sites().get(&site).map(|f| (f, of.config().scale_of(f))))
            .collect();
        let Some((first, _)) = terms.first() else { continue };
        let (svd, device) = (decompose(&terms)?, first.a.device());
        let kept = rank.unwrap_or(first.rank()).min(svd.values.len());
        whole += squares(&svd.values);
        cut += squares(&svd.values[kept..]);
        let scale = config.scale(kept, first.alpha);
        sites.insert(site, factors(&svd, kept, scale, first.alpha, device)?);
    }
    let error = if whole > 0.0 { (cut / whole).sqrt() } else { 0.0 };
    Ok(Compressed { adapter: LoraAdapter::from_factors(config, sites)?, error })
}

/// Decomposes `Σ s B A`, the terms side by side.
fn decompose(terms: &[(&Factors, f64)]) -> TensorResult<Svd> {
    let (mut left, mut right): (Columns, Columns) = (Vec::new(), Vec::new());
    for (factors, scale) in terms {
        left.extend(rows(&factors.b.t()?.contiguous()?, *scale)?);
        right.extend(rows(&factors.a, 1.0)?);
    }
    Ok(svd::of_product(&left, &right))
}

fn rows(tensor: &Tensor, scale: f64) -> TensorResult<Columns> {
    let values = tensor.to_dtype(DType::F64)?.to_device(&Device::Cpu)?.to_vec2::<f64>()?;
    Ok(values.into_iter().map(|row| row.into_iter().map(|x| x * scale).collect()).collect())
}

/// Makes factors of the largest values, each shared evenly between both; a value of 0 leaves A as it is and B zero, so that
/// it can still be learned.
fn factors(
    svd: &Svd,
    kept: usize,
    scale: f64,
    alpha: f64,
    device: &Device,
) -> TensorResult<Factors> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for c in 0..kept {
        let root = (svd.values[c] / scale).sqrt();
        let of_a = if root > 0.0 { root } else { 1.0 };
        a.extend(svd.right[c].iter().map(|x| (x * of_a) as f32));
        b.extend(svd.left[c].iter().map(|x| (x * root) as f32));
    }
    let a = Tensor::from_vec(a, (kept, svd.right.first().map_or(0, Vec::len)), device)?;
    let b = Tensor::from_vec(b, (kept, svd.left.first().map_or(0, Vec::len)), device)?;
    Ok(Factors { a, b: b.t()?.contiguous()?, magnitude: None, alpha })
}

fn squares(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum()
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
