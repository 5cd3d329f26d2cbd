//! What a job needs, told before it runs: memory at its peak, and floating-point operations.
//!
//! Counts alone; nothing here knows a clock or a machine. Every sequence counts whole: where packed sequences share a
//! beginning, the job takes less.

use super::dataset::Sequence;
use super::gradients::{MemoryPlan, split};
use super::loss::CHUNK_LOGITS;
use super::trainer::{Batch, EVALUATED_TOKENS};
use crate::models::{ModelConfig, Module};

/// Bytes of an f32: activations, adapters, norms and biases.
const F32: usize = 4;
/// Copies of the adapter while it learns: values, gradients, two moments, and the one that is live or published.
const ADAPTER_COPIES: usize = 5;
/// Copies of the answers' hidden states at the head: picked rows, their gradient and its parts.
const HEAD_COPIES: usize = 4;
/// The process without a model: code, pools, stacks in use, buffers of the products.
const PROCESS_BYTES: u64 = 40 << 20;
/// A token of the tokenizer: its text in both directions, and its merge.
const TOKENIZER_BYTES: usize = 400;

/// Tokens of a sequence, or of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Tokens that go through the layers.
    pub tokens: usize,
    /// Tokens that go through the head.
    pub answers: usize,
}

impl Load {
    /// Returns that of a sequence: nothing follows its last token, so that is not computed.
    pub fn of(sequence: &Sequence) -> Self {
        Self { tokens: sequence.ids.len() - 1, answers: sequence.answer_tokens() }
    }

    fn sum(loads: &[Self]) -> Self {
        let add = |a: Self, b: &Self| Self {
            tokens: a.tokens + b.tokens,
            answers: a.answers + b.answers,
        };
        loads.iter().fold(Self::default(), add)
    }
}

/// One step: its examples and its anchors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// What is learned.
    pub items: Vec<Load>,
    /// What holds the model where it was.
    pub anchors: Vec<Load>,
}

impl Step {
    /// Returns that of a batch.
    pub fn of(batch: &Batch, train: &[Sequence], anchors: &[Sequence]) -> Self {
        Self {
            items: batch.items.iter().map(|&i| Load::of(&train[i])).collect(),
            anchors: batch.anchors.iter().map(|&i| Load::of(&anchors[i])).collect(),
        }
    }
}

impl Step {
    /// Adds the criticised answers of a batch's items, which are computed beside the better ones.
    #[must_use]
    pub fn with_rejected(mut self, batch: &Batch, rejected: &[Option<Sequence>]) -> Self {
        for (load, &index) in self.items.iter_mut().zip(&batch.items) {
            if let Some(Some(sequence)) = rejected.get(index) {
                *load = Load::sum(&[*load, Load::of(sequence)]);
            }
        }
        self
    }
}

/// A whole job, in counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// The model's shape.
    pub model: ModelConfig,
    /// Bytes of the model's weights, as they are kept.
    pub model_bytes: u64,
    /// Rank of the adapter.
    pub rank: usize,
    /// The projections that it adapts.
    pub modules: Vec<Module>,
    /// Its steps, in order.
    pub steps: Vec<Step>,
    /// What is measured before and after training.
    pub measured: Vec<Load>,
    /// General prompts, measured after training on base and adapter.
    pub general: Vec<Load>,
    /// Prompts whose hidden states are kept to hold the model where it was.
    pub anchors: Vec<Load>,
}

/// A job that fits in no way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// What it needs at least, bytes.
    pub needed: u64,
    /// Tokens of its longest sequence.
    pub longest: usize,
    /// Tokens of the longest sequence that would fit; 0 if none would.
    pub fitting: usize,
}

impl Workload {
    /// Returns the weights of a layer's matrices, a count.
    fn layer_weights(&self) -> usize {
        let size = |m| {
            let (input, output) = self.model.projection(m);
            input * output
        };
        Module::ALL.into_iter().map(size).sum()
    }

    fn head_weights(&self) -> usize {
        self.model.vocab_size * self.model.hidden_size
    }

    /// Returns the adapter's numbers in one layer.
    fn layer_adapter(&self) -> usize {
        let size = |&m: &Module| {
            let (input, output) = self.model.projection(m);
            self.rank * (input + output)
        };
        self.modules.iter().map(size).sum()
    }

    /// Bytes that stay for the whole of training: process, model, adapter with gradients and moments, anchors.
    fn standing_bytes(&self) -> u64 {
        let adapter = self.model.num_hidden_layers * self.layer_adapter() * ADAPTER_COPIES * F32;
        let anchors = Load::sum(&self.anchors).answers * self.model.hidden_size * F32;
        let tokenizer = self.model.vocab_size * TOKENIZER_BYTES;
        PROCESS_BYTES + self.model_bytes + (adapter + anchors + tokenizer) as u64
    }

    /// Numbers that one layer's graph keeps for a token. Correct this where a layer keeps more or less.
    fn kept_by_layer(&self) -> usize {
        let c = &self.model;
        let (_, queries) = c.projection(Module::QProj);
        let (_, keys) = c.projection(Module::KProj);
        // The input as a variable, the norm of it, the sum with attention, its norm; and what norms of outputs get.
        let residual = (4 + 2 * usize::from(c.output_norms)) * c.hidden_size;
        // Rotated queries, what attention gives to o_proj; and queries before their norm.
        let heads = (2 + usize::from(c.qk_norm)) * queries;
        // Rotated keys, values; and keys before their norm.
        let keys = (2 + usize::from(c.qk_norm)) * keys;
        // Gate and up; what they become for down_proj is computed again.
        let mlp = 2 * c.intermediate_size;
        // log Σ exp of the scores, and `drop(x) Aᵀ` of each adapted projection.
        let small = c.num_attention_heads + self.rank * self.modules.len();
        residual + heads + keys + mlp + small
    }

    /// Numbers that the backward of one layer holds at a time for a token: three of the MLP's width (what goes into
    /// down_proj, its gradient and that through dropout), and the gradients around them.
    fn held_by_backward(&self) -> usize {
        3 * self.model.intermediate_size + 4 * self.model.hidden_size
    }

    /// Bytes of logits that are held at a time for so many answer tokens.
    fn logits_bytes(&self, answers: usize) -> usize {
        let rows = (CHUNK_LOGITS / self.model.vocab_size).max(1).min(answers);
        rows * self.model.vocab_size * F32
    }

    /// Bytes at the head: logits (with anchors, the base's too), and the answers' hidden states.
    fn head_bytes(&self, learned: usize, anchored: usize) -> usize {
        let logits = self.logits_bytes(learned).max(2 * self.logits_bytes(anchored));
        logits + (learned + anchored) * self.model.hidden_size * F32 * HEAD_COPIES
    }

    /// Bytes beyond the standing ones while so many tokens are computed together.
    fn pass_bytes(&self, items: Load, anchors: Load, plan: MemoryPlan) -> usize {
        let layers = self.model.num_hidden_layers;
        let checkpointed = plan.checkpointed_layers.min(layers);
        let per_layer = self.kept_by_layer();
        let tokens = items.tokens + anchors.tokens;
        let kept = checkpointed * self.model.hidden_size + (layers - checkpointed) * per_layer;
        let again = if checkpointed == layers { per_layer } else { 0 };
        let backward = tokens * (again + self.held_by_backward()) * F32;
        tokens * kept * F32 + backward.max(self.head_bytes(items.answers, anchors.answers))
    }

    /// Bytes beyond the standing ones while losses are measured, without a graph.
    fn measuring_bytes(&self) -> usize {
        let all = [&self.measured[..], &self.general, &self.anchors];
        let longest = all.into_iter().flatten().map(|l| l.tokens).max().unwrap_or(0);
        // Short sequences are computed together.
        let packed = |loads: &Vec<Load>| Load::sum(loads).tokens.min(EVALUATED_TOKENS);
        let sets = [&self.measured, &self.general, &self.anchors];
        let together = sets.map(packed).into_iter().fold(longest, usize::max);
        let layer = 3 * self.model.intermediate_size + 4 * self.model.hidden_size;
        (together * layer * F32).max(self.head_bytes(together, longest))
    }

    /// Returns the bytes at the job's peak.
    pub fn peak_bytes(&self, plan: MemoryPlan) -> u64 {
        let passes = self.steps.iter().flat_map(|step| {
            split(&step.items, &step.anchors, plan.micro_batch).into_iter().map(
                move |(items, anchors)| self.pass_bytes(Load::sum(items), Load::sum(anchors), plan),
            )
        });
        let most = passes.max().unwrap_or(0).max(self.measuring_bytes());
        self.standing_bytes() + most as u64
    }

    /// Floating-point operations of one forward: 2 a weight and token.
    fn forward_flops(&self, load: Load) -> f64 {
        let weights = self.layer_weights() + self.layer_adapter();
        2.0 * (weights * self.model.num_hidden_layers) as f64 * load.tokens as f64
    }

    fn head_flops(&self, answers: usize) -> f64 {
        2.0 * self.head_weights() as f64 * answers as f64
    }

    /// Returns the operations of the steps from `first` (from 0) on: 4 a weight and token (forward, gradient of the
    /// input), 6 a number of the adapter, 2 more for all of a layer that is computed twice; at the head 4 a weight and
    /// answer token, 2 more for the base's logits of an anchor. Attention itself is left out.
    pub fn training_flops(&self, first: usize, plan: MemoryPlan) -> f64 {
        let layers = self.model.num_hidden_layers;
        let twice = plan.checkpointed_layers.min(layers) as f64 / layers as f64;
        let adapter = 2.0 * (self.layer_adapter() * layers) as f64;
        let step = |step: &Step| {
            let (items, anchors) = (Load::sum(&step.items), Load::sum(&step.anchors));
            let all = Load { tokens: items.tokens + anchors.tokens, answers: items.answers };
            (2.0 + twice) * self.forward_flops(all)
                + adapter * all.tokens as f64
                + 2.0 * self.head_flops(items.answers)
                + 3.0 * self.head_flops(anchors.answers)
        };
        self.steps.iter().skip(first).map(step).sum()
    }

    /// Returns the operations before the first step: measuring, and the base's hidden states of the anchors.
    pub fn flops_before(&self) -> f64 {
        let measured = Load::sum(&self.measured);
        self.forward_flops(measured)
            + self.head_flops(measured.answers)
            + self.forward_flops(Load::sum(&self.anchors))
    }

    /// Returns the operations after the last step: measuring again, and the general prompts.
    pub fn flops_after(&self) -> f64 {
        let (measured, general) = (Load::sum(&self.measured), Load::sum(&self.general));
        self.forward_flops(measured)
            + self.head_flops(measured.answers)
            // Base and adapter; two losses, and both logits again for the divergence.
            + 2.0 * self.forward_flops(general)
            + 4.0 * self.head_flops(general.answers)
    }

    fn too_large(&self, least: MemoryPlan, budget: u64) -> TooLarge {
        let one = |tokens| {
            let load = Load { tokens, answers: tokens };
            self.standing_bytes() + self.pass_bytes(load, Load::default(), least) as u64
        };
        let sequences = self.steps.iter().flat_map(|s| s.items.iter().chain(&s.anchors));
        let measured = self.measured.iter().chain(&self.general);
        let longest = sequences.chain(measured).map(|l| l.tokens).max().unwrap_or(0);
        let fitting = (1..longest).rev().find(|&tokens| one(tokens) <= budget).unwrap_or(0);
        // Counted as a sequence has them, with the token that is only predicted.
        let whole = |tokens: usize| if tokens == 0 { 0 } else { tokens + 1 };
        TooLarge {
            needed: self.peak_bytes(least),
            longest: whole(longest),
            fitting: whole(fitting),
        }
    }
}

impl MemoryPlan {
    /// Returns the fastest plan with which a job stays within `budget` bytes: no layer computed twice if it fits; else
    /// the fewest; else all, and batches halved until one example is computed at a time.
    ///
    /// # Errors
    /// [`TooLarge`]: the job fits in no way.
    pub fn fitting(job: &Workload, budget: u64) -> Result<Self, TooLarge> {
        let fits = |plan: &Self| job.peak_bytes(*plan) <= budget;
        let layers = job.model.num_hidden_layers;
        let by_layers =
            (0..=layers).map(|checkpointed_layers| Self { checkpointed_layers, micro_batch: 0 });
        if let Some(plan) = by_layers.into_iter().find(fits) {
            return Ok(plan);
        }
        let mut plan = Self { checkpointed_layers: layers, micro_batch: 0 };
        while let Some(smaller) = plan.smaller(job) {
            plan = smaller;
            if fits(&plan) {
                return Ok(plan);
            }
        }
        Err(job.too_large(plan, budget))
    }

    /// Returns the next plan that needs less, for a job that ran out of memory with this one: all layers computed twice,
    /// then half of the examples at a time; `None` where there is no smaller one.
    pub fn smaller(self, job: &Workload) -> Option<Self> {
        let layers = job.model.num_hidden_layers;
        if self.checkpointed_layers < layers {
            return Some(Self { checkpointed_layers: layers, ..self });
        }
        // Examples and anchors of a step are computed together unless they are split.
        let most = job.steps.iter().map(|s| s.items.len() + s.anchors.len()).max().unwrap_or(0);
        let together = if self.micro_batch == 0 { most } else { self.micro_batch };
        (together > 1).then_some(Self { micro_batch: together / 2, ..self })
    }
}

#[cfg(test)]
#[path = "estimate_tests.rs"]
mod tests;
