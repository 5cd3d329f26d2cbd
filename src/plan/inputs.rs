//! What the worker of a claimed job computes on.

use std::collections::{BTreeMap, BTreeSet};

use super::{MEBIBYTE, NOTE, OUT_OF_MEMORY, PlanError, TrainedBase, lora_section, training_params};
use crate::domain::{AdapterId, TrainExample};
use crate::lora::{self, Bound, JobInput, MemoryBudget, Rules};
use crate::store::{self, ExampleRole, Home, JobRow, Store, StoreError};

/// The examples of a job as they were when it was enqueued, and the adapters it has to do with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobData {
    /// To learn.
    pub train: Vec<TrainExample>,
    /// To keep.
    pub replay: Vec<TrainExample>,
    /// To measure with.
    pub heldout: Vec<TrainExample>,
    /// Criticised answers that better ones are preferred to, by the ids of examples.
    pub rejected: Vec<(i64, String)>,
    /// What it goes on from.
    pub parent: Option<AdapterId>,
    /// What is live, and what it must beat.
    pub live: Option<AdapterId>,
    /// What was said about the examples, by id.
    pub notes: BTreeMap<i64, String>,
    /// Earlier attempts that ran out of memory.
    pub memory_deaths: usize,
}

/// Reads what a claimed job computes on, and writes down what it goes on from.
///
/// # Errors
/// A store that cannot be read or written.
pub fn read_inputs(store: &Store, job: &JobRow, base_hash: &str) -> Result<JobData, StoreError> {
    let live = store.live(base_hash, &job.domain)?.map(|row| row.id);
    let parent = live.clone().filter(|_| job.from != store::StartFrom::Fresh);
    store.set_job_parent(job.id, parent.as_ref())?;
    let preferring = lora_section(job).is_ok_and(|lora| lora.training.preference > 0.0);
    let rejected = if preferring { store.rejected_answers(job.id)? } else { Vec::new() };
    let data = JobData {
        train: examples(store, job.id, ExampleRole::New)?,
        replay: examples(store, job.id, ExampleRole::Replay)?,
        heldout: examples(store, job.id, ExampleRole::Heldout)?,
        rejected,
        parent,
        live,
        notes: store.job_notes(job.id)?,
        memory_deaths: store.count_job_events(job.id, OUT_OF_MEMORY)?,
    };
    if let Some(rule) = data.rule().filter(|_| job.attempts <= 1) {
        // Without its text: notes are private.
        let note = format!(
            "{} of {} examples have the same instruction as their note: judged as a rule for every answer",
            rule.len(),
            data.rule_examples().len()
        );
        store.note_job(job.id, NOTE, &note)?;
    }
    Ok(data)
}

impl JobData {
    fn rule_examples(&self) -> Vec<&TrainExample> {
        lora::rule_examples(&self.train, &self.replay, self.parent.is_some())
    }

    /// Returns the examples of the rule that it teaches, if it is one.
    fn rule(&self) -> Option<BTreeSet<i64>> {
        lora::rule(&self.rule_examples(), &self.notes)
    }
}

/// Reads examples without their secrets, and notes what was replaced: rules may be newer than marks.
fn examples(store: &Store, job: i64, role: ExampleRole) -> Result<Vec<TrainExample>, StoreError> {
    let (examples, replaced) = store.learnable_examples(job, role)?;
    for (id, found) in replaced {
        let what = store::listed(&found);
        store.note_job(job, NOTE, &format!("replaced in feedback {id} before training: {what}"))?;
    }
    Ok(examples)
}

/// Makes what the worker of a claimed job computes.
///
/// # Errors
/// When another version of the program stored the job's hyper-parameters.
pub fn job_input(
    home: &Home,
    base: &TrainedBase,
    job: &JobRow,
    data: JobData,
) -> Result<JobInput, PlanError> {
    let directory = |id: AdapterId| home.adapter(&id);
    let lora = lora_section(job)?;
    let parent = data.parent.clone().map(directory);
    let rules = Rules {
        taught: data.rule().is_some(),
        inherited: parent.as_deref().is_some_and(lora::holds_rule),
    };
    // What only learns again what was learned replaces the live adapter, so it is measured against the base.
    let baseline = data.live.filter(|_| !data.train.is_empty());
    Ok(JobInput {
        rules,
        model: base.source.clone(),
        base_hash: base.base_hash.clone(),
        hash_cache: base.hash_cache.clone(),
        quantize: base.quantize,
        device: base.device,
        params: training_params(
            &lora,
            base.parameters,
            data.train.len() + data.replay.len(),
            rules.taught,
        ),
        train: data.train,
        replay: data.replay,
        heldout: data.heldout,
        rejected: data.rejected,
        delta: job.from == store::StartFrom::Delta && data.parent.is_some(),
        parent,
        baseline: baseline.map(directory),
        notes: data.notes,
        memory: MemoryBudget {
            bytes: lora.training.memory_limit_mb.saturating_mul(MEBIBYTE),
            bound: Bound::Setting,
            deaths: data.memory_deaths,
        },
    })
}
