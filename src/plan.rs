//! From the configuration to a job, and from a job to what its worker computes.
//!
//! A job keeps the `[lora]` section as it was when it was enqueued: later changes of the configuration do not touch it.
//! What is `"auto"` is resolved when it is claimed, because only then the model, and with it its size, is known.

mod inputs;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::inputs::{JobData, job_input, read_inputs};
use crate::config::{
    Config, GenerationSection, LoraSection, ModelSection, OverflowChoice, QuantizeChoice,
    StartFrom, Weighting,
};
use crate::domain::{AdapterId, DeviceChoice};
use crate::engine::{ContextOverflow, Limits, Sampling};
use crate::eval::GateConfig;
use crate::lora::{self, TrainingParams};
use crate::models::{ModelSource, Quantize};
use crate::store::{self, ExampleRole, JobBase, JobRow, JobState, NewJob, Store, StoreError};

/// The event of a job whose worker ran out of memory.
pub const OUT_OF_MEMORY: &str = "out_of_memory";
/// The event with what a job is expected to need and took, as JSON ([`lora::Resources`]).
pub const RESOURCES: &str = "resources";
/// The event with the limits that a job's worker was under.
pub const ISOLATION: &str = "isolation";
/// The event with the end of the log of a worker that failed.
pub const LOG_TAIL: &str = "log_tail";
/// The event with a line about a job that its user should read.
pub const NOTE: &str = "note";

/// Bytes in a mebibyte.
const MEBIBYTE: u64 = 1 << 20;
/// Percent in one.
const PERCENT: f64 = 100.0;

/// Why a job cannot be enqueued or read back.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The hyper-parameters stored with a job are not those of this program.
    #[error("job {job} cannot be run by this version: {source}; cancel it and enqueue a new one")]
    Parameters {
        /// The job.
        job: i64,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// A job that cannot be tried again.
    #[error(
        "job {job} is {state}: only one that was rejected, failed or cancelled can be tried again"
    )]
    NotToRetry {
        /// The job.
        job: i64,
        /// Its state.
        state: JobState,
    },
    /// A job whose examples are all elsewhere.
    #[error(
        "job {job} has no example left: all were learned in another job, are in one that waits, or were forgotten"
    )]
    NothingLeft {
        /// The job.
        job: i64,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What may be said about a job when it is asked for.
#[derive(Debug, Clone, Default)]
pub struct JobWish {
    /// The name of the job and of its adapter; made up when missing.
    pub name: Option<AdapterId>,
    /// The domain that it learns.
    pub domain: String,
    /// Where it starts; the configuration's `lora.training.from` when missing.
    pub from: Option<store::StartFrom>,
    /// Higher goes first.
    pub priority: i64,
    /// Only these marks are new in it; all of the domain when missing.
    pub only: Option<Vec<i64>>,
    /// The model that it trains; the one in use when it runs when missing.
    pub base: Option<JobBase>,
}

/// Makes a job from a wish and the configuration.
///
/// # Errors
/// Only if a number of the configuration has no JSON.
pub fn new_job(config: &Config, wish: JobWish) -> Result<NewJob, serde_json::Error> {
    let training = &config.lora.training;
    Ok(NewJob {
        name: wish.name,
        domain: wish.domain,
        from: wish.from.unwrap_or_else(|| training.from.into()),
        priority: wish.priority,
        params: serde_json::to_value(&config.lora)?,
        replay_limit: training.replay,
        only: wish.only,
        base: wish.base,
        max_queued: config.queue.max_queued,
    })
}

/// Puts a job into the queue, if it has room.
///
/// # Errors
/// A full queue, nothing to learn, a taken name, or a store that cannot be written.
pub fn enqueue(store: &Store, config: &Config, wish: JobWish) -> Result<JobRow, PlanError> {
    let job = new_job(config, wish).map_err(|source| PlanError::Parameters { job: 0, source })?;
    Ok(store.enqueue_job(&job)?)
}

/// Puts the examples of a job that did not succeed into the queue again, with the settings it had: those that nobody has
/// learned meanwhile and no other job has.
///
/// # Errors
/// A job that has not ended or succeeded, one without an example left, a full queue, a taken name, or a store that cannot
/// be written.
pub fn retry(
    store: &Store,
    config: &Config,
    id: i64,
    priority: Option<i64>,
) -> Result<JobRow, PlanError> {
    let job = store.job(id)?;
    if !job.state.is_final() || job.state == JobState::Succeeded {
        return Err(PlanError::NotToRetry { job: id, state: job.state });
    }
    let mut only = Vec::new();
    for example in store.job_examples(id, ExampleRole::New)? {
        let row = store.feedback(example.id)?;
        if row.consumed_by.is_none() && row.in_job.is_none() {
            only.push(example.id);
        }
    }
    // A fresh job learns old examples too.
    let fresh_alone = job.from == store::StartFrom::Fresh
        && !store.job_examples(id, ExampleRole::Replay)?.is_empty();
    if only.is_empty() && !fresh_alone {
        return Err(PlanError::NothingLeft { job: id });
    }
    let new = NewJob {
        name: Some(job.name.clone()),
        domain: job.domain.clone(),
        from: job.from,
        priority: priority.unwrap_or(job.priority),
        replay_limit: lora_section(&job)?.training.replay,
        params: job.params,
        only: Some(only),
        base: job.base,
        max_queued: config.queue.max_queued,
    };
    let again = store.enqueue_job(&new)?;
    store.note_job(again.id, NOTE, &format!("job {id} again"))?;
    Ok(again)
}

/// Returns the `[lora]` section that a job was enqueued with.
///
/// # Errors
/// When another version of the program stored it.
pub fn lora_section(job: &JobRow) -> Result<LoraSection, PlanError> {
    section_of(&job.params).map_err(|source| PlanError::Parameters { job: job.id, source })
}

fn section_of(params: &serde_json::Value) -> serde_json::Result<LoraSection> {
    // A job of an earlier version does not name what came after it; without its tables it is no job's.
    if ["training", "gate"].iter().any(|table| !params[table].is_object()) {
        return serde_json::from_value(params.clone());
    }
    let defaults = Config::defaults().map_err(serde::ser::Error::custom)?;
    let mut all = serde_json::to_value(defaults.lora)?;
    lay_over(&mut all, params);
    serde_json::from_value(all)
}

/// Puts the values of `over` in place of those of `under`, table by table.
fn lay_over(under: &mut serde_json::Value, over: &serde_json::Value) {
    use serde_json::Value;
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                lay_over(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// Returns how long one attempt at a job may take.
pub fn timeout(lora: &LoraSection) -> Duration {
    /// Seconds in a minute.
    const MINUTE: u64 = 60;
    Duration::from_secs(lora.training.timeout_minutes.saturating_mul(MINUTE))
}

/// Resolves what is `"auto"` for a model of this many parameters and a job of so many examples, replayed ones too, that teaches
/// a rule for every answer ([`lora::rule()`]) or does not.
pub fn training_params(
    lora: &LoraSection,
    parameters: usize,
    examples: usize,
    rule: bool,
) -> TrainingParams {
    let training = &lora.training;
    let by_size = lora::size_defaults(parameters);
    TrainingParams {
        rank: lora.rank,
        alpha: lora.alpha,
        rslora: lora.rslora,
        dora: lora.dora,
        dropout: lora.dropout,
        target_modules: lora.target_modules.clone(),
        learning_rate: training.learning_rate.resolve(|| by_size.learning_rate),
        batch_size: training.batch_size,
        epochs: training.epochs,
        min_steps: training.min_steps.resolve(|| by_size.steps(examples)),
        weighting: match training.weighting {
            Weighting::Loss => lora::Weighting::Loss,
            Weighting::Sampling => lora::Weighting::Sampling,
        },
        preference: lora::Preference {
            weight: training.preference,
            beta: training.preference_beta,
        },
        warmup_ratio: training.warmup_ratio,
        seed: training.seed,
        max_grad_norm: training.max_grad_norm,
        weight_decay: training.weight_decay,
        anchor: training.anchor.resolve(|| match rule {
            true => by_size.rule_anchor,
            false => by_size.anchor,
        }),
        anchor_prompts: training.anchor_prompts.resolve(|| by_size.anchor_prompts),
        max_share: f64::from(training.max_share_percent) / PERCENT,
        checkpoint_every_steps: training.checkpoint_every_steps,
        paraphrase: training.paraphrase.resolve(|| by_size.paraphrase),
        neighbour_prompts: training.neighbour_prompts.resolve(|| by_size.neighbour_prompts),
    }
}

/// Returns the format that the projections of a model are brought to.
pub fn quantize(choice: QuantizeChoice) -> Option<Quantize> {
    match choice {
        QuantizeChoice::None => None,
        QuantizeChoice::Q8_0 => Some(Quantize::Q8_0),
        QuantizeChoice::Q4_0 => Some(Quantize::Q4_0),
        QuantizeChoice::Q4K => Some(Quantize::Q4K),
    }
}

/// The model that a process trains adapters for.
#[derive(Debug, Clone)]
pub struct TrainedBase {
    /// Its name, for people.
    pub name: String,
    /// Where it is.
    pub source: ModelSource,
    /// The content hash of its files.
    pub base_hash: String,
    /// Where hashes of weight files are cached.
    pub hash_cache: Option<PathBuf>,
    /// Its size, by which `"auto"` is resolved.
    pub parameters: usize,
    /// The format that its projections are brought to, if any.
    pub quantize: Option<Quantize>,
    /// Where it is to compute.
    pub device: DeviceChoice,
}

/// How to load the model of a job, as it is stored with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct JobModel {
    name: String,
    source: ModelSource,
    quantize: Option<Quantize>,
    parameters: usize,
}

impl TrainedBase {
    /// Returns what a job that trains this model stores of it.
    pub fn of_job(&self) -> Option<JobBase> {
        job_base(&self.name, &self.source, &self.base_hash, self.quantize, self.parameters)
    }

    /// Returns the model that a job trains: its own, or this one where it has none.
    ///
    /// # Errors
    /// When it was enqueued by another version.
    pub fn for_job(&self, job: &JobRow) -> Result<Self, PlanError> {
        let Some(base) = job.base.as_ref().filter(|base| base.hash != self.base_hash) else {
            return Ok(self.clone());
        };
        let model: JobModel = serde_json::from_value(base.model.clone())
            .map_err(|source| PlanError::Parameters { job: job.id, source })?;
        let JobModel { name, source, quantize, parameters } = model;
        let base_hash = base.hash.clone();
        let (hash_cache, device) = (self.hash_cache.clone(), self.device);
        Ok(Self { name, source, base_hash, hash_cache, parameters, quantize, device })
    }
}

/// Returns what a job stores of the model that it trains; a model whose path is no Unicode has no such form.
pub fn job_base(
    name: &str,
    source: &ModelSource,
    base_hash: &str,
    quantize: Option<Quantize>,
    parameters: usize,
) -> Option<JobBase> {
    let (name, source) = (name.to_owned(), source.clone());
    let model = serde_json::to_value(JobModel { name, source, quantize, parameters }).ok()?;
    Some(JobBase { hash: base_hash.to_owned(), model })
}

/// Returns when the gate lets an adapter pass.
pub fn gate_config(lora: &LoraSection) -> GateConfig {
    GateConfig {
        max_kl: lora.gate.max_kl,
        max_taken_over: lora.gate.max_taken_over,
        rule_max_kl: lora.gate.rule_max_kl,
        confidence: lora.gate.confidence,
        bootstrap_samples: lora.gate.bootstrap_samples,
    }
}

impl From<StartFrom> for store::StartFrom {
    fn from(from: StartFrom) -> Self {
        match from {
            StartFrom::Continue => Self::Continue,
            StartFrom::Fresh => Self::Fresh,
            StartFrom::Delta => Self::Delta,
        }
    }
}

/// Returns what an engine goes by.
pub fn engine_limits(model: &ModelSection) -> Limits {
    Limits {
        context_overflow: match model.context_overflow {
            OverflowChoice::Error => ContextOverflow::Error,
            OverflowChoice::Slide => ContextOverflow::Slide,
        },
        cache_bytes: model.cache_mb.saturating_mul(MEBIBYTE),
    }
}

/// Returns the settings of one answer; `draw` gives the seed when none is fixed.
pub fn sampling(generation: &GenerationSection, draw: impl FnOnce() -> u64) -> Sampling {
    Sampling {
        temperature: generation.temperature,
        top_k: generation.top_k,
        top_p: generation.top_p,
        min_p: generation.min_p,
        // The configuration counts in f64 throughout; the logits are f32.
        repetition_penalty: generation.repetition_penalty as f32,
        max_tokens: generation.max_tokens,
        seed: generation.seed.resolve(draw),
        stop: generation.stop.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Auto;

    #[test]
    fn a_jobs_section_survives_the_database_and_auto_goes_by_size() {
        let config = Config::defaults().unwrap();
        let params = new_job(&config, JobWish::default()).unwrap().params;
        let lora: LoraSection = serde_json::from_value(params).unwrap();
        assert_eq!(lora, config.lora);

        let (tiny, small) = (
            training_params(&lora, 4_000_000, 1, false),
            training_params(&lora, 500_000_000, 100, true),
        );
        assert!(tiny.learning_rate > small.learning_rate);
        assert_eq!(small.min_steps, 30);
        assert_eq!(tiny.max_share, 0.3);
        let rule = training_params(&lora, 4_000_000, 1, true);
        assert!(rule.anchor < tiny.anchor, "a rule is meant to spread");
        let mut fixed = lora;
        fixed.training.learning_rate = Auto::Value(1e-3);
        assert_eq!(training_params(&fixed, 4_000_000, 1, false).learning_rate, 1e-3);
        let steps = |examples| training_params(&fixed, 4_000_000, examples, false).min_steps;
        assert_eq!((steps(10), steps(20), steps(1000)), (60, 120, 300));
    }

    #[test]
    fn a_job_of_an_earlier_version_gets_todays_value_of_what_it_does_not_name() {
        let config = Config::defaults().unwrap();
        let mut params = serde_json::to_value(&config.lora).unwrap();
        params["gate"].as_object_mut().unwrap().remove("max_taken_over").unwrap();
        params["training"]["epochs"] = 7.into();
        let mut read = config.lora;
        read.training.epochs = 7;
        assert_eq!(section_of(&params).unwrap(), read);
        assert!(section_of(&serde_json::json!({ "rank": 8 })).is_err());
        params["gate"]["no_such_key"] = 1.into();
        assert!(section_of(&params).unwrap_err().to_string().contains("no_such_key"));
    }

    #[test]
    fn the_wish_wins_over_the_configured_start() {
        let config = Config::defaults().unwrap();
        let start = |from| new_job(&config, JobWish { from, ..JobWish::default() }).unwrap().from;
        assert_eq!(start(None), store::StartFrom::Continue);
        assert_eq!(start(Some(store::StartFrom::Fresh)), store::StartFrom::Fresh);
    }
}
