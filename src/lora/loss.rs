//! The losses: weighted cross-entropy and the divergence from the base model.
//!
//! Both keep no `[tokens, vocab]` tensor for the backward but the logits themselves.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};

/// Returns the elements of contiguous f32 logits `[rows, vocab]`, and the vocabulary's size.
fn rows<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<(&'a [f32], usize)> {
    let (_, vocab) = layout.shape().dims2()?;
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("logits are not contiguous");
    };
    match storage {
        CpuStorage::F32(data) => Ok((&data[start..end], vocab)),
        _ => bail!("logits are not f32"),
    }
}

/// Returns log Σ exp of a row, with the maximum taken out.
fn log_sum_exp(row: &[f32]) -> f32 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // In f64: a vocabulary of 150,000 terms would cost an f32 sum five digits.
    let sum: f64 = row.iter().map(|x| f64::from((x - max).exp())).sum();
    max + sum.ln() as f32
}

struct CrossEntropy {
    targets: Vec<u32>,
    weights: Vec<f32>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (logits, vocab) = rows(logits, layout)?;
        let items = logits.chunks(vocab).zip(&self.targets).zip(&self.weights);
        // Summed in f64: thousands of terms of one sign.
        let sum: f64 = items
            .map(|((row, &t), &w)| f64::from(w) * f64::from(log_sum_exp(row) - row[t as usize]))
            .sum();
        Ok((CpuStorage::F32(vec![sum as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = CrossEntropyGrad {
            targets: &self.targets,
            weights: &self.weights,
            scale: grad.to_scalar::<f32>()?,
        };
        Ok(Some(logits.detach().apply_op1_no_bwd(&back)?))
    }
}

struct CrossEntropyGrad<'a> {
    targets: &'a [u32],
    weights: &'a [f32],
    scale: f32,
}

impl CustomOp1 for CrossEntropyGrad<'_> {
    fn name(&self) -> &'static str {
        "cross-entropy-grad"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (logits, vocab) = rows(logits, layout)?;
        let mut out = vec![0f32; logits.len()];
        let items = out.chunks_mut(vocab).zip(logits.chunks(vocab));
        for ((out, row), (&target, &weight)) in items.zip(self.targets.iter().zip(self.weights)) {
            let scale = weight * self.scale;
            let log_sum = log_sum_exp(row);
            for (o, x) in out.iter_mut().zip(row) {
                *o = (x - log_sum).exp() * scale;
            }
            out[target as usize] -= scale;
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// Weighted sum of token cross-entropies: Σᵢ wᵢ · −log softmax(logitsᵢ)\[targetᵢ\], a scalar in nats.
///
/// `logits` is `[tokens, vocab]`.
///
/// # Errors
/// Lengths that do not fit, targets beyond the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    let (tokens, vocab) = logits.dims2()?;
    if tokens != targets.len() || tokens != weights.len() {
        bail!("{tokens} rows of logits, {} targets, {} weights", targets.len(), weights.len());
    }
    if let Some(target) = targets.iter().find(|&&t| t as usize >= vocab) {
        bail!("token id {target} is beyond the vocabulary of {vocab}");
    }
    if logits.device().is_cpu() {
        let op = CrossEntropy { targets: targets.to_vec(), weights: weights.to_vec() };
        return logits.contiguous()?.apply_op1(op);
    }
    let log_probs = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    let index = Tensor::from_slice(targets, (tokens, 1), logits.device())?;
    let weights = Tensor::from_slice(weights, tokens, logits.device())?;
    log_probs.gather(&index, 1)?.squeeze(1)?.mul(&weights)?.sum_all()?.neg()
}

struct KlFromBase {
    /// Logits of the base, `[tokens, vocab]`.
    base: Vec<f32>,
}

impl CustomOp1 for KlFromBase {
    fn name(&self) -> &'static str {
        "kl-from-base"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (logits, vocab) = rows(logits, layout)?;
        let sum: f64 =
            logits.chunks(vocab).zip(self.base.chunks(vocab)).map(|(q, p)| row_kl(p, q)).sum();
        Ok((CpuStorage::F32(vec![sum as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = KlGrad { base: &self.base, scale: grad.to_scalar::<f32>()? };
        Ok(Some(logits.detach().apply_op1_no_bwd(&back)?))
    }
}

/// KL(p ‖ q) in nats of two rows of logits.
fn row_kl(p: &[f32], q: &[f32]) -> f64 {
    let (p_sum, q_sum) = (log_sum_exp(p), log_sum_exp(q));
    p.iter()
        .zip(q)
        .map(|(p, q)| {
            let (log_p, log_q) = (p - p_sum, q - q_sum);
            f64::from(log_p.exp()) * f64::from(log_p - log_q)
        })
        .sum()
}

struct KlGrad<'a> {
    base: &'a [f32],
    scale: f32,
}

impl CustomOp1 for KlGrad<'_> {
    fn name(&self) -> &'static str {
        "kl-from-base-grad"
    }

    /// d/dq KL(p ‖ softmax q) = softmax(q) − p.
    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (logits, vocab) = rows(logits, layout)?;
        let mut out = vec![0f32; logits.len()];
        let items = out.chunks_mut(vocab).zip(logits.chunks(vocab)).zip(self.base.chunks(vocab));
        for ((out, q), p) in items {
            let (p_sum, q_sum) = (log_sum_exp(p), log_sum_exp(q));
            for ((o, q), p) in out.iter_mut().zip(q).zip(p) {
                *o = ((q - q_sum).exp() - (p - p_sum).exp()) * self.scale;
            }
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// Sum over tokens of KL(base ‖ adapted), a scalar in nats.
///
/// Both are logits `[tokens, vocab]`; the base's get no gradient.
///
/// # Errors
/// Shapes that differ.
pub fn kl_from_base(base: &Tensor, adapted: &Tensor) -> Result<Tensor> {
    if base.dims2()? != adapted.dims2()? {
        bail!(
            "logits of base {:?} and adapter {:?} differ in shape",
            base.shape(),
            adapted.shape()
        );
    }
    if adapted.device().is_cpu() {
        let base = base.detach().flatten_all()?.to_vec1::<f32>()?;
        return adapted.contiguous()?.apply_op1(KlFromBase { base });
    }
    let log_p = candle_nn::ops::log_softmax(&base.detach(), D::Minus1)?;
    let log_q = candle_nn::ops::log_softmax(adapted, D::Minus1)?;
    log_p.exp()?.mul(&(log_p - log_q)?)?.sum_all()
}
