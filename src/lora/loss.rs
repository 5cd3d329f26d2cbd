//! The losses: weighted cross-entropy and the divergence from the base model.
//!
//! Training takes them through the head chunk by chunk, with the gradient of the hidden states at once: no
//! `[tokens, vocab]` tensor is kept for a backward.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, D, InplaceOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::models::kernels::math::{self, vectorised};
use crate::models::{Linear, elements, ops, with_elements};

/// Logits held at a time, in elements: 128 MiB. Each chunk reads the head's weights twice, so it should not be small.
pub(super) const CHUNK_LOGITS: usize = 1 << 25;

/// A sum of losses of hidden states, and its gradient.
#[derive(Debug)]
pub struct HeadLoss {
    /// The sum, in nats.
    pub value: f64,
    /// Its gradient, like the hidden states, if that was wanted.
    pub grad: Option<Tensor>,
}

/// Weighted sum of token cross-entropies of hidden states `[tokens, hidden]`:
/// Σᵢ wᵢ · −log softmax(W hᵢ)\[targetᵢ\].
///
/// # Errors
/// Lengths that do not fit, targets beyond the vocabulary.
pub fn head_cross_entropy(
    head: &Linear,
    hidden: &Tensor,
    targets: &[u32],
    weights: &[f32],
    with_grad: bool,
) -> Result<HeadLoss> {
    let (vocab, _) = head.dims()?;
    check_targets(hidden.dim(0)?, vocab, targets, weights)?;
    chunked(head, hidden, with_grad, |logits, range| {
        let (targets, weights) = (&targets[range.clone()], &weights[range]);
        if ops::fused(logits.device()) {
            return turn_rows(logits, |index, row| {
                row_cross_entropy(row, targets[index] as usize, weights[index], with_grad)
            });
        }
        let value = composed_cross_entropy(logits, targets, weights)?;
        if !with_grad {
            return Ok((f64::from(value.to_scalar::<f32>()?), None));
        }
        let (rows, device) = (targets.len(), logits.device());
        let weights = Tensor::from_slice(weights, (rows, 1), device)?;
        let index = Tensor::from_slice(targets, (rows, 1), device)?;
        let probs = candle_nn::ops::softmax(logits, D::Minus1)?.broadcast_mul(&weights)?;
        let grad = probs.scatter_add(&index, &weights.neg()?, 1)?;
        Ok((f64::from(value.to_scalar::<f32>()?), Some(grad)))
    })
}

/// The cross-entropy of each token of hidden states `[tokens, hidden]`, in nats: −log softmax(W hᵢ)\[targetᵢ\].
///
/// # Errors
/// Lengths that do not fit, targets beyond the vocabulary.
pub fn head_token_losses(head: &Linear, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
    let (vocab, _) = head.dims()?;
    check_targets(hidden.dim(0)?, vocab, targets, &vec![1.0; targets.len()])?;
    let losses = Mutex::new(vec![0.0; targets.len()]);
    let note = |at: usize, loss: f64| {
        losses.lock().unwrap_or_else(PoisonError::into_inner)[at] = loss;
        loss
    };
    chunked(head, hidden, false, |logits, range| {
        if ops::fused(logits.device()) {
            return turn_rows(logits, |index, row| {
                let at = range.start + index;
                note(at, row_cross_entropy(row, targets[at] as usize, 1.0, false))
            });
        }
        let index = Tensor::from_slice(&targets[range.clone()], (range.len(), 1), logits.device())?;
        let log_probs = candle_nn::ops::log_softmax(logits, D::Minus1)?.gather(&index, 1)?;
        let log_probs = log_probs.squeeze(1)?.to_vec1::<f32>()?;
        let parts = range.zip(log_probs).map(|(at, log_prob)| note(at, -f64::from(log_prob)));
        Ok((parts.sum(), None))
    })?;
    Ok(losses.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// `weight` times the sum over tokens of KL(base ‖ adapted), of hidden states `[tokens, hidden]` both.
///
/// # Errors
/// Shapes that differ.
pub fn head_kl(
    head: &Linear,
    base: &Tensor,
    hidden: &Tensor,
    weight: f32,
    with_grad: bool,
) -> Result<HeadLoss> {
    if base.dims2()? != hidden.dims2()? {
        bail!("hidden states of base {:?} and adapter {:?} differ", base.shape(), hidden.shape());
    }
    chunked(head, hidden, with_grad, |logits, range| {
        let base = head.forward(&base.detach().narrow(0, range.start, range.len())?)?;
        if ops::fused(logits.device()) {
            let vocab = logits.dim(1)?;
            return with_elements([&base], |[base]| {
                turn_rows(logits, |index, row| {
                    row_kl(&base[index * vocab..][..vocab], row, weight, with_grad)
                })
            })?;
        }
        let log_p = candle_nn::ops::log_softmax(&base, D::Minus1)?;
        let log_q = candle_nn::ops::log_softmax(logits, D::Minus1)?;
        let p = log_p.exp()?;
        let value = f64::from(p.mul(&(log_p - &log_q)?)?.sum_all()?.to_scalar::<f32>()?);
        let grad = if with_grad { Some(((log_q.exp()? - p)? * f64::from(weight))?) } else { None };
        Ok((value * f64::from(weight), grad))
    })
}

/// Takes hidden states through the head in chunks. `turn` returns a chunk's loss and the gradient of its logits, for
/// which it may use up their storage.
fn chunked(
    head: &Linear,
    hidden: &Tensor,
    with_grad: bool,
    mut turn: impl FnMut(&Tensor, Range<usize>) -> Result<(f64, Option<Tensor>)>,
) -> Result<HeadLoss> {
    let ((vocab, _), tokens) = (head.dims()?, hidden.dim(0)?);
    let size = (CHUNK_LOGITS / vocab).max(1);
    let hidden = hidden.detach();
    let (mut value, mut grads) = (0f64, Vec::new());
    for start in (0..tokens).step_by(size) {
        let range = start..(start + size).min(tokens);
        let chunk = hidden.narrow(0, range.start, range.len())?.contiguous()?;
        let logits = head.forward(&chunk)?;
        let (part, grad) = turn(&logits, range)?;
        value += part;
        if with_grad {
            // On the CPU the logits have become their gradient.
            grads.push(head.input_gradient(grad.as_ref().unwrap_or(&logits))?);
        }
    }
    let grad = if with_grad { Some(Tensor::cat(&grads, 0)?) } else { None };
    Ok(HeadLoss { value, grad })
}

/// Runs `f(index, row)` over the rows of logits `[rows, vocab]` on the CPU, in place; returns the sum of what it returns.
fn turn_rows(
    logits: &Tensor,
    f: impl Fn(usize, &mut [f32]) -> f64 + Sync,
) -> Result<(f64, Option<Tensor>)> {
    let turn = TurnRows { f, sum: Mutex::new(0.0) };
    logits.inplace_op1(&turn)?;
    Ok((turn.sum.into_inner().unwrap_or_else(PoisonError::into_inner), None))
}

struct TurnRows<F> {
    f: F,
    sum: Mutex<f64>,
}

impl<F: Fn(usize, &mut [f32]) -> f64 + Sync> InplaceOp1 for TurnRows<F> {
    fn name(&self) -> &'static str {
        "turn-rows"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (_, vocab) = layout.shape().dims2()?;
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            bail!("logits are not contiguous f32");
        };
        let rows = data[start..end].par_chunks_mut(vocab).enumerate();
        let parts: Vec<f64> = rows.map(|(index, row)| (self.f)(index, row)).collect();
        *self.sum.lock().unwrap_or_else(PoisonError::into_inner) = parts.iter().sum();
        Ok(())
    }
}

/// The loss of one token; with a gradient, the logits become w · (softmax − onehot).
fn row_cross_entropy(row: &mut [f32], target: usize, weight: f32, with_grad: bool) -> f64 {
    let log_sum = math::log_sum_exp(row);
    let loss = f64::from(weight) * f64::from(log_sum - row[target]);
    if with_grad {
        vectorised!(row.iter_mut().for_each(|x| *x = math::exp(*x - log_sum) * weight));
        row[target] -= weight;
    }
    loss
}

/// w · KL(p ‖ q) in nats of two rows of logits; with a gradient, q becomes w · (softmax q − softmax p).
fn row_kl(p: &[f32], q: &mut [f32], weight: f32, with_grad: bool) -> f64 {
    let (p_sum, q_sum) = (math::log_sum_exp(p), math::log_sum_exp(q));
    vectorised!({
        let mut kl = 0f64;
        // Blocks in f32, their sums in f64.
        for (p, q) in p.chunks(1024).zip(q.chunks(1024)) {
            kl += f64::from(math::sum_map(p.len(), |i| {
                let (log_p, log_q) = (p[i] - p_sum, q[i] - q_sum);
                math::exp(log_p) * (log_p - log_q)
            }));
        }
        if with_grad {
            for (q, p) in q.iter_mut().zip(p) {
                *q = (math::exp(*q - q_sum) - math::exp(p - p_sum)) * weight;
            }
        }
        kl * f64::from(weight)
    })
}

fn check_targets(tokens: usize, vocab: usize, targets: &[u32], weights: &[f32]) -> Result<()> {
    if tokens != targets.len() || tokens != weights.len() {
        bail!("{tokens} rows of logits, {} targets, {} weights", targets.len(), weights.len());
    }
    match targets.iter().find(|&&t| t as usize >= vocab) {
        Some(target) => bail!("token id {target} is beyond the vocabulary of {vocab}"),
        None => Ok(()),
    }
}

/// Cross-entropy of logits with a backward, for training in which the head learns too.
struct CrossEntropy {
    targets: Vec<u32>,
    weights: Vec<f32>,
}

impl CrossEntropy {
    /// The loss, with the logits' gradients in `rows` if that is wanted.
    fn run(&self, rows: &mut [f32], vocab: usize, with_grad: bool) -> f64 {
        let items = rows.chunks_mut(vocab).zip(&self.targets).zip(&self.weights);
        items.map(|((row, &t), &w)| row_cross_entropy(row, t as usize, w, with_grad)).sum()
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, vocab) = layout.shape().dims2()?;
        let mut rows = elements(logits, layout)?.to_vec();
        Ok((CpuStorage::F32(vec![self.run(&mut rows, vocab, false) as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, vocab) = logits.dims2()?;
        let mut rows = logits.flatten_all()?.to_vec1::<f32>()?;
        self.run(&mut rows, vocab, true);
        let grads = Tensor::from_vec(rows, logits.shape(), logits.device())?;
        Ok(Some((grads * f64::from(grad.to_scalar::<f32>()?))?))
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
    check_targets(tokens, vocab, targets, weights)?;
    if ops::fused(logits.device()) {
        let op = CrossEntropy { targets: targets.to_vec(), weights: weights.to_vec() };
        return logits.contiguous()?.apply_op1(op);
    }
    composed_cross_entropy(logits, targets, weights)
}

fn composed_cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    let tokens = targets.len();
    let log_probs = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    let index = Tensor::from_slice(targets, (tokens, 1), logits.device())?;
    let weights = Tensor::from_slice(weights, tokens, logits.device())?;
    log_probs.gather(&index, 1)?.squeeze(1)?.mul(&weights)?.sum_all()?.neg()
}
