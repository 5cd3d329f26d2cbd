//! LoRA: adapters, their training, and the losses and optimiser of it.

mod adapter;
mod adapter_set;
mod budget;
mod checkpoint;
#[cfg(test)]
mod composed_tests;
pub mod dataset;
mod delta;
mod dora;
mod error;
pub mod estimate;
mod exchange;
mod fused;
mod gradients;
mod job;
pub mod loss;
mod optimizer;
mod overlap;
pub mod params;
pub(crate) mod paraphrase;
mod peft;
pub mod preference;
mod rule;
mod sets;
mod svd;
mod trainable;
pub mod trainer;
mod verified;
mod watch;

pub use adapter::{CONFIG_FILE, Factors, LoraAdapter, LoraConfig, WEIGHTS_FILE, save};
pub use adapter_set::AdapterSet;
pub use budget::{Bound, MemoryBudget, PROCESS_RESERVE, Resources};
pub use error::{JobError, LoraError};
pub use exchange::{exported_record, imported_record};
pub use job::{JobEvent, JobInput, TRAINING_FILE, TrainingRecord, record_resources, run_job};
pub use optimizer::{AdamW, AdamWConfig, Moments, clip_gradients, warmup_cosine};
pub use overlap::overlap;
pub use params::{FORMS, Preference, SizeDefaults, TrainingParams, Weighting, size_defaults};
pub use rule::{Rules, holds_rule, rule, rule_examples};
pub use trainable::TrainableLora;
pub use verified::load_verified;
