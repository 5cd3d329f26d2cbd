//! Loss and gradients of a batch, layer by layer.
//!
//! Each layer is a graph of its own, so that backward frees one after the other; a checkpointed layer keeps only its
//! input and computes its graph again (Chen et al. 2016).

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result as TensorResult, Shape, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::TrainableLora;
use super::dataset::Sequence;
use super::loss::{HeadLoss, head_cross_entropy, head_kl, head_token_losses};
use super::preference::Terms;
use super::trainer::{Batch, TrainingData};
use crate::models::{Adapt, Decoder, ModelError, Packing, Pass, forget};

/// How memory is traded for time. Checkpointing changes no bit; examples computed in several parts change the order of
/// sums, and which inputs dropout drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// So many layers, from the lowest, keep only their input and are computed twice.
    pub checkpointed_layers: usize,
    /// Examples computed at a time (gradient accumulation); 0 means all of a batch.
    pub micro_batch: usize,
}

/// What a batch teaches.
#[derive(Debug)]
pub struct Gradients {
    /// The loss, anchor included: nats per answer token.
    pub loss: f64,
    /// One tensor for each variable, in their order; `None` where nothing reaches it.
    pub tensors: Vec<Option<Tensor>>,
}

/// Sequences that are computed together, and what is wanted of their answers.
pub(super) struct Objective<'a> {
    sequences: Vec<&'a Sequence>,
    /// Sequences with a cross-entropy come first, so many; per answer token a factor.
    weights: Vec<Vec<f32>>,
    /// Criticised answers come next, beside the better ones before them.
    pairs: Terms<'a>,
    /// The others are anchors: the base's hidden states at their answers.
    base_hidden: Vec<&'a Tensor>,
    /// Factor on the sum of their KL.
    anchor_weight: f32,
}

impl<'a> Objective<'a> {
    /// Splits a batch: Σᵢ ŵᵢ Σₜ CEᵢₜ / Σᵢ nᵢ, plus the anchors' mean KL per token times its weight, plus the mean of
    /// ŵᵢ times the preference loss over its pairs, times their weight.
    fn of_batch(
        data: &'a TrainingData<'a>,
        batch: &Batch,
        anchor_weight: f64,
        micro_batch: usize,
    ) -> Vec<Self> {
        let tokens = |items: &[usize]| -> usize {
            items.iter().map(|&i| data.train[i].answer_tokens()).sum()
        };
        let total = tokens(&batch.items) as f64;
        let anchored = anchor_weight != 0.0 && !batch.anchors.is_empty();
        let anchors: &[usize] = if anchored { &batch.anchors } else { &[] };
        let anchor_tokens: usize =
            anchors.iter().map(|&i| data.anchors[i].sequence.answer_tokens()).sum();
        let paired = batch.items.iter().filter(|&&i| data.pairs.get(i).is_some()).count();
        let terms = |items: &[usize]| Terms::of(data.pairs, items, &data.weights, paired);
        let chunk = |items: &[usize], anchors: &[usize]| Self {
            sequences: items
                .iter()
                .map(|&i| &data.train[i])
                .chain(terms(items).sequences())
                .chain(anchors.iter().map(|&i| &data.anchors[i].sequence))
                .collect(),
            pairs: terms(items),
            weights: items
                .iter()
                .map(|&i| vec![(data.weights[i] / total) as f32; data.train[i].answer_tokens()])
                .collect(),
            base_hidden: anchors.iter().map(|&i| &data.anchors[i].base_hidden).collect(),
            anchor_weight: (anchor_weight / anchor_tokens.max(1) as f64) as f32,
        };
        let parts = split(&batch.items, anchors, micro_batch).into_iter();
        parts.map(|(items, anchors)| chunk(items, anchors)).collect()
    }

    /// The loss of the hidden states that predict the answers' `targets`, and its gradient for them.
    fn head(
        &self,
        decoder: &Decoder,
        hidden: &Tensor,
        targets: &[u32],
        with_grad: bool,
    ) -> Result<HeadLoss, ModelError> {
        let learned = self.weights.iter().map(Vec::len).sum::<usize>() + self.pairs.tokens();
        let answers = hidden.detach();
        let first = if learned > 0 {
            self.taught(decoder, &answers.narrow(0, 0, learned)?, &targets[..learned], with_grad)?
        } else {
            HeadLoss { value: 0.0, grad: None }
        };
        let mut value = first.value;
        let mut grads: Vec<Tensor> = first.grad.into_iter().collect();
        if !self.base_hidden.is_empty() {
            let part = answers.narrow(0, learned, targets.len() - learned)?;
            let base = Tensor::cat(&self.base_hidden, 0)?;
            let kl = head_kl(decoder.head(), &base, &part, self.anchor_weight, with_grad)?;
            value += kl.value;
            grads.extend(kl.grad);
        }
        let grad = if with_grad { Some(Tensor::cat(&grads, 0)?) } else { None };
        Ok(HeadLoss { value, grad })
    }
}

impl Objective<'_> {
    /// The cross-entropy of the learned answers, and the preference loss of those that have a criticised one.
    ///
    /// The latter depends on sums over whole answers: they are measured first, then its gradient is that of a
    /// cross-entropy with other weights.
    fn taught(
        &self,
        decoder: &Decoder,
        answers: &Tensor,
        targets: &[u32],
        with_grad: bool,
    ) -> Result<HeadLoss, ModelError> {
        let mut weights = self.weights.concat();
        let head = decoder.head();
        if self.pairs.is_empty() {
            return Ok(head_cross_entropy(head, answers, targets, &weights, with_grad)?);
        }
        let losses = head_token_losses(head, answers, targets)?;
        weights.resize(targets.len(), 0.0);
        let learned = weights.iter().zip(&losses).map(|(w, loss)| f64::from(*w) * loss);
        let mut value: f64 = learned.sum();
        let lengths: Vec<usize> = self.weights.iter().map(Vec::len).collect();
        value += self.pairs.add_to(&mut weights, &losses, &lengths);
        let grad = match with_grad {
            true => head_cross_entropy(head, answers, targets, &weights, true)?.grad,
            false => None,
        };
        Ok(HeadLoss { value, grad })
    }
}

/// Splits a batch into what is computed together: all of it, or so many items, then so many anchors at a time.
pub(super) fn split<'a, T>(
    items: &'a [T],
    anchors: &'a [T],
    micro_batch: usize,
) -> Vec<(&'a [T], &'a [T])> {
    if micro_batch == 0 || items.len() + anchors.len() <= micro_batch {
        return vec![(items, anchors)];
    }
    let items = items.chunks(micro_batch).map(|items| (items, &anchors[..0]));
    items.chain(anchors.chunks(micro_batch).map(|anchors| (&anchors[..0], anchors))).collect()
}

/// Packs what predicts the sequences' tokens: all but the last of each.
pub(super) fn pack(sequences: &[&Sequence], share: bool) -> Result<Arc<Packing>, ModelError> {
    let inputs: Vec<&[u32]> = sequences.iter().map(|s| &s.ids[..s.ids.len() - 1]).collect();
    Ok(Arc::new(Packing::new(&inputs, share)?))
}

/// Returns the rows that predict the answers' tokens, one sequence after the other, and those tokens.
pub(super) fn answers(packing: &Packing, sequences: &[&Sequence]) -> (Vec<u32>, Vec<u32>) {
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for (index, sequence) in sequences.iter().enumerate() {
        for at in sequence.answer_start..sequence.ids.len() {
            rows.push(packing.row(index, at - 1) as u32);
            targets.push(sequence.ids[at]);
        }
    }
    (rows, targets)
}

/// The loss of a batch: Σᵢ ŵᵢ Σₜ CEᵢₜ / Σᵢ nᵢ, plus the anchors' mean KL per token times its weight, plus what its
/// preference pairs count.
///
/// # Errors
/// A failed tensor operation.
pub fn loss(
    decoder: &Decoder,
    lora: &TrainableLora,
    data: &TrainingData<'_>,
    batch: &Batch,
    anchor_weight: f64,
) -> Result<f64, ModelError> {
    let mut sum = 0.0;
    lora.seed_part(0);
    for objective in Objective::of_batch(data, batch, anchor_weight, 0) {
        let packing = pack(&objective.sequences, lora.shares_prefixes())?;
        let (rows, targets) = answers(&packing, &objective.sequences);
        let hidden = decoder.hidden_packed(&packing, Some(&rows), &lora.detached())?;
        sum += objective.head(decoder, &hidden, &targets, false)?.value;
    }
    Ok(sum)
}

/// The same with the gradients of all variables.
///
/// # Errors
/// A failed tensor operation.
pub fn gradients(
    decoder: &Decoder,
    lora: &TrainableLora,
    data: &TrainingData<'_>,
    batch: &Batch,
    anchor_weight: f64,
    memory: MemoryPlan,
) -> Result<Gradients, ModelError> {
    // On a thread of the pool, which saves waking one from outside at every operation.
    rayon::scope(|_| {
        let mut sum = Gradients { loss: 0.0, tensors: vec![None; lora.vars().len()] };
        let parts = Objective::of_batch(data, batch, anchor_weight, memory.micro_batch);
        for (index, objective) in parts.iter().enumerate() {
            lora.seed_part(index);
            backward(decoder, lora, objective, memory, &mut sum)?;
        }
        Ok(sum)
    })
}

/// What a layer leaves behind for its backward.
enum Kept {
    /// Its input; the graph is computed again.
    Input(Tensor),
    /// Its graph: input (a variable, unless nothing below learns) and output.
    Graph { input: Tensor, output: Tensor },
}

fn backward(
    decoder: &Decoder,
    lora: &TrainableLora,
    objective: &Objective<'_>,
    memory: MemoryPlan,
    sum: &mut Gradients,
) -> Result<(), ModelError> {
    let packing = pack(&objective.sequences, lora.shares_prefixes())?;
    let (rows, targets) = answers(&packing, &objective.sequences);
    let (pass, mut x) = decoder.begin(&packing, Some(&rows))?;
    let layers = decoder.config().num_hidden_layers;
    let lowest = lora.lowest_layer();
    let mut kept = Vec::with_capacity(layers);
    for layer in 0..layers {
        if layer < memory.checkpointed_layers || layer < lowest {
            let output = decoder.layer(layer, &x, &pass, &lora.detached())?;
            if layer >= lowest {
                kept.push(Kept::Input(x));
            }
            x = output;
        } else {
            let (input, output) = graph(decoder, lora, layer, lowest, &x, &pass)?;
            // The next layer keeps a copy as its input.
            x = output.copy()?.detach();
            forget(&output)?;
            kept.push(Kept::Graph { input, output });
        }
    }
    let top = Var::from_tensor(&x)?;
    let hidden = decoder.finish(top.as_tensor())?;
    let HeadLoss { value, grad } = objective.head(decoder, &hidden, &targets, true)?;
    sum.loss += value;
    let Some(grad) = grad else {
        return Ok(());
    };
    let store = seeded(&hidden, grad)?.backward()?;
    let Some(mut grad) = store.get(&top).map(Tensor::detach) else {
        return Ok(());
    };
    for layer in (lowest..layers).rev() {
        let (input, output) = match kept.pop() {
            Some(Kept::Graph { input, output }) => (input, output),
            Some(Kept::Input(x)) => graph(decoder, lora, layer, lowest, &x, &pass)?,
            None => break,
        };
        let mut store = seeded(&output, grad)?.backward()?;
        for (index, var) in lora.layer_vars(layer) {
            if let Some(new) = store.remove(&var) {
                let new = new.detach();
                let slot = &mut sum.tensors[index];
                *slot = Some(match slot.take() {
                    Some(old) => (old + new)?,
                    None => new,
                });
            }
        }
        match store.remove(&input) {
            Some(g) if layer > lowest => grad = g.detach(),
            _ => break,
        }
    }
    Ok(())
}

/// Returns a scalar whose backward gives `output` the gradient `grad`.
fn seeded(output: &Tensor, grad: Tensor) -> TensorResult<Tensor> {
    if output.device().is_cpu() { output.apply_op1(Seed(grad)) } else { (output * grad)?.sum_all() }
}

/// Reads no value: that of a layer's output is gone by then.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> TensorResult<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> TensorResult<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// Computes one layer with its graph; the lowest that learns needs no gradient for its input.
fn graph(
    decoder: &Decoder,
    lora: &dyn Adapt,
    layer: usize,
    lowest: usize,
    x: &Tensor,
    pass: &Pass<'_>,
) -> Result<(Tensor, Tensor), ModelError> {
    let input = if layer > lowest { Var::from_tensor(x)?.as_tensor().clone() } else { x.detach() };
    let output = decoder.layer(layer, &input, pass, lora)?;
    Ok((input, output))
}
