//! The trainer: `batches`, `loss`, `step`, `evaluate`, `train`. It prints nothing and knows no clock.

use candle_core::Tensor;

use super::dataset::{Sequence, epoch_order, normalised_weights};
use super::gradients::{answers, pack};
use super::loss::head_cross_entropy;
use super::params::Weighting;
use super::preference::Pairs;
use super::{AdamW, JobError, TrainableLora, TrainingParams, clip_gradients, warmup_cosine};
use crate::models::{Adapt, Decoder, ModelError};

pub use super::gradients::{Gradients, MemoryPlan, gradients, loss};

/// Steps whose gradients are looked at one by one: B of a fresh adapter moves in the first, A in the second.
const CHECKED_STEPS: usize = 2;

/// What one step trains on.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Indices into the training set.
    pub items: Vec<usize>,
    /// Indices into the anchors.
    pub anchors: Vec<usize>,
}

/// A training set and what keeps the model where it was.
pub struct TrainingData<'a> {
    /// What is learned.
    pub train: &'a [Sequence],
    /// Per example, its factor on the loss.
    pub weights: Vec<f64>,
    /// Prompts with the base's hidden states at their answers, `[tokens, hidden]`.
    pub anchors: &'a [Anchor],
    /// The criticised answers beside better ones.
    pub pairs: Pairs<'a>,
}

/// A conversation on which the model shall stay as it was.
pub struct Anchor {
    /// The conversation with its answer.
    pub sequence: Sequence,
    /// The base's hidden states that predict the answer's tokens; small, unlike its logits.
    pub base_hidden: Tensor,
}

/// How far training is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// The epoch, from 1.
    pub epoch: usize,
    /// Epochs in all.
    pub epochs: usize,
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub total_steps: usize,
    /// The step's loss, anchor included: nats per answer token.
    pub loss: f64,
    /// The step size.
    pub learning_rate: f64,
}

/// Prepares the weights of a training set: for the loss, or all 1 where sampling already counts them.
pub fn loss_weights(train: &[Sequence], params: &TrainingParams) -> Vec<f64> {
    let one = &train[..train.len() / params.forms()];
    let weights: Vec<f64> = one.iter().map(|s| s.weight).collect();
    match params.weighting {
        Weighting::Loss => normalised_weights(&weights, params.max_share).repeat(params.forms()),
        Weighting::Sampling => vec![1.0; train.len()],
    }
}

/// Lays out every batch of a job; the same input gives the same batches.
pub fn batches(train: &[Sequence], anchors: usize, params: &TrainingParams) -> Vec<Batch> {
    let (forms, count) = (params.forms(), train.len() / params.forms());
    let raw: Vec<f64> = train[..count].iter().map(|s| s.weight).collect();
    let weights = normalised_weights(&raw, params.max_share);
    let batch_size = params.batch_size.max(1);
    let per_epoch = count.div_ceil(batch_size).max(1);
    let epochs = params.epochs.max(params.min_steps.div_ceil(per_epoch)).max(1);
    let per_step = params.anchor_prompts.min(anchors);
    let mut next_anchor = 0;
    let mut all = Vec::with_capacity(epochs * per_epoch);
    for epoch in 0..epochs {
        let order = epoch_order(&weights, params.weighting, params.seed, epoch);
        for items in order.chunks(batch_size) {
            // In turn, so that all anchors hold equally often.
            let anchors = (0..per_step).map(|i| (next_anchor + i) % anchors).collect();
            next_anchor += per_step;
            let items = items.iter().map(|i| i + count * (epoch % forms)).collect();
            all.push(Batch { epoch: epoch + 1, items, anchors });
        }
    }
    all
}

/// Returns the hidden states `[tokens, hidden]` that predict the answers' tokens of all sequences,
/// one sequence after the other, and those tokens.
///
/// # Errors
/// Token ids beyond the vocabulary, a failed tensor operation.
pub fn answer_hidden(
    decoder: &Decoder,
    sequences: &[&Sequence],
    adapt: &dyn Adapt,
) -> Result<(Tensor, Vec<u32>), ModelError> {
    let packing = pack(sequences, true)?;
    let (rows, targets) = answers(&packing, sequences);
    Ok((decoder.hidden_packed(&packing, Some(&rows), adapt)?, targets))
}

/// One optimiser step; returns the gradients' norm before clipping.
///
/// `check_gradients` (in the first steps of a job) makes sure that every tensor really learns: candle
/// skips operations without a backward silently.
///
/// # Errors
/// A gradient that is no number, a tensor without gradient.
pub fn step(
    gradients: Gradients,
    lora: &TrainableLora,
    optimizer: &mut AdamW,
    learning_rate: f64,
    max_grad_norm: f64,
    check_gradients: bool,
) -> Result<f64, JobError> {
    let mut all = Vec::new();
    for ((name, _), gradient) in lora.vars().into_iter().zip(gradients.tensors) {
        all.push(gradient.ok_or(JobError::NoGradient(name))?);
    }
    if check_gradients {
        check_all_learn(lora, &all)?;
    }
    let limit = if max_grad_norm > 0.0 { max_grad_norm } else { f64::INFINITY };
    let norm = clip_gradients(&mut all, limit)?;
    if !norm.is_finite() {
        let why = "the gradient is no number any more".to_owned();
        return Err(JobError::Exploded { step: optimizer.step_count() + 1, loss: f64::NAN, why });
    }
    optimizer.step(&all, learning_rate)?;
    Ok(norm)
}

/// A's gradient is zero while B is all zero; everything else must move. Values that are no numbers are
/// left to the norm.
fn check_all_learn(lora: &TrainableLora, gradients: &[Tensor]) -> Result<(), JobError> {
    let largest = |t: &Tensor| t.detach().abs()?.max_all()?.to_scalar::<f32>();
    let vars = lora.vars();
    for (index, ((name, _), gradient)) in vars.iter().zip(gradients).enumerate() {
        // The B of a site follows its A.
        let may_rest = name.ends_with("lora_A") && largest(vars[index + 1].1.as_tensor())? == 0.0;
        if largest(gradient)? == 0.0 && !may_rest {
            return Err(JobError::NoGradient(name.clone()));
        }
    }
    Ok(())
}

/// Tokens that [`evaluate`] computes together.
pub(super) const EVALUATED_TOKENS: usize = 1024;

/// Mean loss per answer token of each sequence, in nats.
///
/// # Errors
/// A failed tensor operation.
pub fn evaluate(
    decoder: &Decoder,
    sequences: &[Sequence],
    adapt: &dyn Adapt,
) -> Result<Vec<f64>, ModelError> {
    rayon::scope(|_| evaluate_here(decoder, sequences, adapt))
}

fn evaluate_here(
    decoder: &Decoder,
    sequences: &[Sequence],
    adapt: &dyn Adapt,
) -> Result<Vec<f64>, ModelError> {
    let mut losses = Vec::with_capacity(sequences.len());
    for group in groups(sequences, EVALUATED_TOKENS) {
        let members: Vec<&Sequence> = group.iter().collect();
        let (hidden, targets) = answer_hidden(decoder, &members, adapt)?;
        let mut from = 0;
        for sequence in group {
            let tokens = sequence.answer_tokens();
            let part = hidden.narrow(0, from, tokens)?;
            let weights = vec![1.0 / tokens as f32; tokens];
            let targets = &targets[from..from + tokens];
            let loss = head_cross_entropy(decoder.head(), &part, targets, &weights, false)?;
            losses.push(loss.value);
            from += tokens;
        }
    }
    Ok(losses)
}

/// Splits sequences into runs of at most so many tokens, or one sequence.
pub(crate) fn groups(sequences: &[Sequence], tokens: usize) -> Vec<&[Sequence]> {
    let (mut groups, mut start, mut held) = (Vec::new(), 0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        if index > start && held + sequence.ids.len() > tokens {
            groups.push(&sequences[start..index]);
            (start, held) = (index, 0);
        }
        held += sequence.ids.len();
    }
    if start < sequences.len() {
        groups.push(&sequences[start..]);
    }
    groups
}

/// Runs all batches from where the optimiser stands. `after_step` is told of every step, with the
/// optimiser to checkpoint; what it returns as an error ends the run. Returns the last step's loss, if a
/// step was left to do.
///
/// # Errors
/// Divergence, missing gradients, cancellation, a failed tensor operation.
pub fn train(
    decoder: &Decoder,
    lora: &TrainableLora,
    data: &TrainingData<'_>,
    params: &TrainingParams,
    memory: MemoryPlan,
    optimizer: &mut AdamW,
    after_step: &mut dyn FnMut(Progress, &AdamW) -> Result<(), JobError>,
) -> Result<Option<f64>, JobError> {
    let plan = batches(data.train, data.anchors.len(), params);
    let total_steps = plan.len();
    let epochs = plan.last().map_or(0, |b| b.epoch);
    let warmup = (params.warmup_ratio * total_steps as f64).round() as usize;
    let mut last = None;
    for (index, batch) in plan.iter().enumerate().skip(optimizer.step_count()) {
        lora.seed_step(params.seed, index);
        let gradients = gradients(decoder, lora, data, batch, params.anchor, memory)?;
        let value = gradients.loss;
        if !value.is_finite() {
            let examples = batch.items.iter().map(|&i| data.train[i].id).collect();
            return Err(JobError::Diverged { step: index + 1, loss: value, examples });
        }
        last = Some(value);
        let rate = params.learning_rate * warmup_cosine(index, warmup, total_steps);
        let stepped =
            step(gradients, lora, optimizer, rate, params.max_grad_norm, index < CHECKED_STEPS);
        stepped.map_err(|error| match error {
            // The factors are as they were: what they are worth is for the gate to say.
            JobError::Exploded { why, .. } => {
                JobError::Exploded { step: index + 1, loss: value, why }
            }
            error => error,
        })?;
        let (epoch, step) = (batch.epoch, index + 1);
        let progress =
            Progress { epoch, epochs, step, total_steps, loss: value, learning_rate: rate };
        after_step(progress, optimizer)?;
    }
    Ok(last)
}

/// Prepares anchors: the hidden states at their answers that shall stay, of the base alone or with `still`.
///
/// # Errors
/// A failed tensor operation.
pub fn anchors(
    decoder: &Decoder,
    sequences: Vec<Sequence>,
    still: &dyn Adapt,
) -> Result<Vec<Anchor>, ModelError> {
    let mut hidden = Vec::with_capacity(sequences.len());
    for group in groups(&sequences, EVALUATED_TOKENS) {
        let members: Vec<&Sequence> = group.iter().collect();
        let (all, _) = answer_hidden(decoder, &members, still)?;
        let mut from = 0;
        for sequence in group {
            let tokens = sequence.answer_tokens();
            hidden.push(all.narrow(0, from, tokens)?.copy()?);
            from += tokens;
        }
    }
    let anchor = |(sequence, base_hidden)| Anchor { sequence, base_hidden };
    Ok(sequences.into_iter().zip(hidden).map(anchor).collect())
}
