//! The configuration as types: one struct per section, no default anywhere (`config/default.toml` has them all).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Auto, DeviceChoice, Seed};
use crate::domain::{Confinement, SecretPolicy};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which model, and where it computes.
    pub model: ModelSection,
    /// How answers are sampled.
    pub generation: GenerationSection,
    /// The buffer of marks.
    pub feedback: FeedbackSection,
    /// The shape of adapters, their training and their gate.
    pub lora: LoraSection,
    /// The queue of training jobs.
    pub queue: QueueSection,
    /// The training process.
    pub worker: WorkerSection,
    /// The domains that the user described, by name.
    pub domains: BTreeMap<String, DomainSection>,
    /// The interactive console.
    pub console: ConsoleSection,
    /// The log.
    pub log: LogSection,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// `builtin` or a directory.
    pub source: String,
    /// Where it computes.
    pub device: DeviceChoice,
    /// Longest conversation in tokens; 0 means the model's own limit.
    pub context_length: usize,
    /// What becomes of a conversation that is longer.
    pub context_overflow: OverflowChoice,
    /// Mebibytes of keys and values kept between answers.
    pub cache_mb: u64,
    /// Threads for answers; 0 means one per core.
    pub threads: usize,
    /// The format that matrices are brought to while loading.
    pub quantize: QuantizeChoice,
}

/// `model.context_overflow`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverflowChoice {
    /// It is refused.
    Error,
    /// Its oldest turns are left out.
    Slide,
}

/// `model.quantize`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantizeChoice {
    /// As in the files.
    None,
    /// 8 bits.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 4 bits, with finer scales.
    #[serde(rename = "q4_k")]
    Q4K,
}

/// `[generation]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationSection {
    /// 0 is greedy.
    pub temperature: f64,
    /// Candidates kept; 0 is off.
    pub top_k: usize,
    /// Probability mass kept; 1 is off.
    pub top_p: f64,
    /// Least share of the likeliest token's probability; 0 is off.
    pub min_p: f64,
    /// Divides the logits of used tokens; 1 is off.
    pub repetition_penalty: f64,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Seed of the sampler.
    pub seed: Seed,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Earlier questions with their answers that the model sees.
    pub history_turns: Auto<usize>,
    /// System message; empty means none.
    pub system: String,
    /// Whether questions are routed to domains.
    pub routing: bool,
    /// By how much a question must score above what most of a domain's own marks do.
    pub routing_margin: f64,
}

/// `[feedback]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeedbackSection {
    /// Rows kept before consumed ones are archived.
    pub buffer_limit: usize,
    /// Weight of `/good`.
    pub weight_good: f64,
    /// Weight of `/medium`.
    pub weight_medium: f64,
    /// Weight of `/critical`.
    pub weight_critical: f64,
    /// Weight of `/fix` without another mark.
    pub weight_fix: f64,
    /// What becomes of secrets.
    pub secrets: SecretPolicy,
}

/// `[lora]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSection {
    /// Rank of the adapter.
    pub rank: usize,
    /// Its output counts `alpha / rank` times.
    pub alpha: f64,
    /// Divides by √rank instead (rsLoRA).
    pub rslora: bool,
    /// Learns the rows' lengths by themselves (DoRA).
    pub dora: bool,
    /// Probability that an input is zeroed in training.
    pub dropout: f64,
    /// Linear layers that get an adapter, by their standard names.
    pub target_modules: Vec<String>,
    /// How it is trained.
    pub training: TrainingSection,
    /// When it may go live.
    pub gate: GateSection,
}

/// How the weight of an example enters, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// It scales the example's loss.
    Loss,
    /// The example is drawn more often.
    Sampling,
}

/// Where a training job starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartFrom {
    /// From the live adapter of the domain.
    Continue,
    /// From zero, on all examples of the domain.
    Fresh,
    /// From the live adapter, frozen, with a difference on top.
    Delta,
}

/// `lora.training.revisions`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revisions {
    /// They are offered to the user.
    Ask,
    /// The best is taken if the note really helps it.
    Auto,
    /// None are made.
    Off,
}

/// `[lora.training]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingSection {
    /// Peak step size.
    pub learning_rate: Auto<f64>,
    /// Examples per step.
    pub batch_size: usize,
    /// Passes over the examples.
    pub epochs: usize,
    /// Steps that a job takes at least.
    pub min_steps: Auto<usize>,
    /// Whether jobs start by themselves.
    pub auto_train: bool,
    /// Unconsumed trainable marks that start a job.
    pub auto_train_threshold: usize,
    /// How weights enter.
    pub weighting: Weighting,
    /// What becomes of a note without a better answer.
    pub revisions: Revisions,
    /// Answers that the model gives with the note, of which the best is taken.
    pub revision_candidates: usize,
    /// How much the note must help, nats per token.
    pub revision_threshold: f64,
    /// Weight of the loss on pairs of a better and a criticised answer; 0 is off.
    pub preference: f64,
    /// How far that loss lets the model go from the base.
    pub preference_beta: f64,
    /// Share of the steps spent warming up.
    pub warmup_ratio: f64,
    /// Seed of first values, order and dropout.
    pub seed: u64,
    /// Minutes after which a job is stopped.
    pub timeout_minutes: u64,
    /// Norm to which gradients are scaled down; 0 is off.
    pub max_grad_norm: f64,
    /// Decay of the adapter's values.
    pub weight_decay: f64,
    /// Where a job starts.
    pub from: StartFrom,
    /// Old examples mixed into a continued job.
    pub replay: usize,
    /// Weight of the KL divergence to the base; 0 is off.
    pub anchor: Auto<f64>,
    /// General prompts per step for the anchor.
    pub anchor_prompts: Auto<usize>,
    /// Percent of an epoch's weight that one example may have.
    pub max_share_percent: u32,
    /// Steps between two checkpoints.
    pub checkpoint_every_steps: usize,
    /// Whether each epoch asks the questions in another form.
    pub paraphrase: Auto<bool>,
    /// Questions like the taught ones about something else among the anchor's prompts, at most.
    pub neighbour_prompts: Auto<usize>,
    /// Mebibytes that a job plans with; 0 means what the machine has available.
    pub memory_limit_mb: u64,
}

/// `[lora.gate]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateSection {
    /// Ceiling of the mean KL divergence to the base, nats per answer token.
    pub max_kl: f64,
    /// Share of questions like the taught ones about something else that may get a taught answer.
    pub max_taken_over: f64,
    /// The same ceiling for an adapter that holds a rule for every answer.
    pub rule_max_kl: f64,
    /// Confidence of the bootstrap interval.
    pub confidence: f64,
    /// Draws of that bootstrap.
    pub bootstrap_samples: usize,
}

/// What a console does when another process runs the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecondInstance {
    /// It chats, marks and enqueues, and does not run the queue.
    Chat,
    /// It refuses to start.
    Refuse,
}

/// `[queue]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueSection {
    /// Jobs that may wait.
    pub max_queued: usize,
    /// Attempts of a job before it counts as failed.
    pub max_attempts: u32,
    /// Milliseconds before the second attempt.
    pub backoff_base_ms: u64,
    /// Longest pause in milliseconds.
    pub backoff_max_ms: u64,
    /// What a second console does.
    pub second_instance: SecondInstance,
    /// Ended jobs whose curves and notes are kept; 0 keeps all.
    pub keep_jobs: usize,
    /// Adapters kept for each domain and model; 0 keeps all.
    pub keep_adapters: usize,
}

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSection {
    /// Threads for training; 0 means one per core.
    pub threads: usize,
    /// Unix priority, 0 to 19.
    pub nice: u8,
    /// Whether it computes only while a core has nothing else to do.
    pub idle: bool,
    /// Mebibytes of private writable memory (RLIMIT_DATA); 0 means no limit.
    pub memory_limit_mb: u64,
    /// How much sooner it goes when memory runs out, 0 to 1000.
    pub oom_score_adj: u16,
    /// Whether it may leave core dumps.
    pub core_dumps: bool,
    /// Whether it gives up files and network.
    pub landlock: Confinement,
    /// Seconds of silence after which it counts as hung.
    pub heartbeat_timeout_s: u64,
}

/// `[domains.NAME]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainSection {
    /// What the domain is about, for people.
    pub description: Option<String>,
    /// The adapters that answer, `live` for the one that is; that one alone where there is no list.
    pub adapters: Option<Vec<String>>,
}

/// `[console]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSection {
    /// Whether tokens and speed follow each answer.
    pub show_usage: bool,
    /// Lines kept in the history file.
    pub history_limit: usize,
    /// Whether answers are wrapped between words.
    pub wrap: bool,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSection {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// Whether `logs/shammah.log.DATE` is written.
    pub file: bool,
    /// Days of log that are kept.
    pub keep_days: usize,
}
