//! A whole training job: load, measure, train, measure again, write the adapter.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dataset::Sequence;
use super::delta::{self, Compressed};
use super::estimate::Workload;
use super::preference::{self, Pairs};
use super::rule::Rules;
use super::sets::{Sets, check_heldout};
use super::trainer::{self, MemoryPlan, TrainingData};
use super::verified::check_base;
use super::watch::LossWatch;
use super::{
    AdamW, AdamWConfig, JobError, LoraAdapter, MemoryBudget, Resources, TrainableLora,
    TrainingParams, adapter, checkpoint,
};
use crate::device::{self, Opened};
use crate::domain::{DeviceChoice, TrainExample};
use crate::eval::{ItemLoss, Measurements, measure, neighbours};
use crate::models::{self, Adapt, LoadedModel, ModelSource, NoAdapter, Quantize, hex};

/// What is kept beside an adapter, ours, not PEFT's.
pub const TRAINING_FILE: &str = "training.json";

/// Everything a job computes from; a snapshot, nothing is read from a database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobInput {
    /// The base model.
    pub model: ModelSource,
    /// Its content hash when the job was enqueued; another model fails the job.
    pub base_hash: String,
    /// Where hashes of weight files are cached.
    pub hash_cache: Option<PathBuf>,
    /// The format that the model's projections are brought to, if any.
    pub quantize: Option<Quantize>,
    /// Where answers are computed, which says where to train.
    pub device: DeviceChoice,
    /// Hyper-parameters.
    pub params: TrainingParams,
    /// What is new.
    pub train: Vec<TrainExample>,
    /// Learned before, shown again so that it is not forgotten.
    pub replay: Vec<TrainExample>,
    /// Never trained on; measures.
    pub heldout: Vec<TrainExample>,
    /// Criticised answers by the ids of examples that have a better one: what they are preferred to.
    pub rejected: Vec<(i64, String)>,
    /// The adapter to go on from.
    pub parent: Option<PathBuf>,
    /// Whether that adapter is frozen and a difference is trained on top of it.
    pub delta: bool,
    /// The adapter that is live, which the new one must beat.
    pub baseline: Option<PathBuf>,
    /// Rules for every answer, in it and before it.
    pub rules: Rules,
    /// What was said about examples, by id: what the prompt would say instead of training.
    pub notes: BTreeMap<i64, String>,
    /// The memory it may use.
    pub memory: MemoryBudget,
}

/// What a job reports while it runs.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEvent {
    /// The job is laid out; nothing is measured or trained yet.
    Planned {
        /// Memory expected at the peak.
        bytes: u64,
        /// How memory is traded for time.
        plan: MemoryPlan,
    },
    /// The first step follows.
    Ready {
        /// Floating-point operations since [`JobEvent::Planned`].
        done: f64,
        /// Those to come.
        left: f64,
    },
    /// An optimiser step was done.
    Step(trainer::Progress),
    /// A checkpoint is about to be written: what belongs to its steps becomes durable first.
    Checkpointing,
    /// A checkpoint was written after so many steps.
    Checkpointed {
        /// Steps done.
        step: usize,
    },
    /// Training is over, measuring has begun.
    Evaluating,
    /// Something the user should know, such as an example that was cut.
    Note(String),
}

/// `training.json`: where an adapter comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// Name of the base model.
    pub base: String,
    /// Content hash of the base model.
    pub base_hash: String,
    /// The format that the base's matrices were brought to, if any.
    #[serde(default)]
    pub quantize: Option<Quantize>,
    /// Ids of the new examples.
    pub examples: Vec<i64>,
    /// Ids of the replayed examples.
    pub replay: Vec<i64>,
    /// Ids of the held-out examples.
    pub heldout: Vec<i64>,
    /// Ids of the examples that were preferred to their criticised answers.
    #[serde(default)]
    pub pairs: Vec<i64>,
    /// Every hyper-parameter, the seed among them.
    pub params: TrainingParams,
    /// What was measured before and after.
    pub measurements: Measurements,
    /// How far the adapter is from the sum that it stands for, if it is one (relative Frobenius norm).
    #[serde(default)]
    pub compression_error: Option<f64>,
    /// What it was expected to need and took; whoever has a clock writes it ([`record_resources`]).
    pub resources: Option<Resources>,
}

/// Runs a job and writes the adapter into `out_dir`, which exists and is empty.
///
/// A checkpoint of the same input in `checkpoint_dir` is taken up; the last one stays there until the
/// caller has published the adapter. `cancelled` is asked while the data is prepared and after every step, when a
/// checkpoint is written; then the job ends with [`JobError::Cancelled`].
///
/// # Errors
/// Whatever keeps the job from its end; the adapter is complete only if there is none.
pub fn run_job(
    input: &JobInput,
    checkpoint_dir: &Path,
    out_dir: &Path,
    events: &mut dyn FnMut(JobEvent),
    cancelled: &dyn Fn() -> bool,
) -> Result<Measurements, JobError> {
    let device = open_device(input, events)?;
    input.memory.check_weights(input.model.weight_bytes()?)?;
    let model =
        models::load_as(&input.model, &device, input.hash_cache.as_deref(), input.quantize)?;
    if model.base_hash != input.base_hash {
        return Err(JobError::Input(format!(
            "{} changed since the job was enqueued; enqueue it again with /train",
            model.name
        )));
    }
    check_heldout(input)?;
    let parent = load_adapter(input.parent.as_deref(), &model)?.map(Arc::new);
    let before_it = parent.as_deref().map(|parent| parent as &dyn Adapt);
    let sets = Sets::encode(input, &model, before_it, events, cancelled)?;
    if let Some(parent) = parent.as_ref().filter(|_| input.delta) {
        delta::check(parent.config(), input.params.dora)?;
    }
    let job = sets.workload(input, &model, parent.as_deref());
    let (plan, note) = input.memory.plan(&job)?;
    note.into_iter().for_each(|note| events(JobEvent::Note(note)));
    events(JobEvent::Planned { bytes: job.peak_bytes(plan), plan });
    let baseline = load_adapter(input.baseline.as_deref(), &model)?;
    let before: &dyn Adapt = baseline.as_ref().map_or(&NoAdapter, |a| a as &dyn Adapt);
    let trained_before = trainer::evaluate(&model.decoder, &sets.new, before)?;
    let heldout_before = trainer::evaluate(&model.decoder, &sets.heldout, before)?;

    let course = Course { parent: parent.clone(), job, plan, checkpoint_dir };
    let Trained { lora, final_loss, steps, exploded_at } =
        train(input, &model, &sets, course, events, cancelled)?;
    events(JobEvent::Evaluating);
    let (after, compression_error) = publish(input, &lora, parent.as_deref(), events)?;
    let general = measure::general(&model, &sets.general, &after)?;
    let measured = |sequences: &[Sequence], before| {
        let after = trainer::evaluate(&model.decoder, sequences, &after)?;
        Ok::<_, JobError>(pair(sequences, before, &after))
    };
    let trained = measured(&sets.new, trained_before)?;
    let heldout = measured(&sets.heldout, heldout_before)?;
    let neighbours = neighbours::losses(&model, &sets.neighbours, &after)?;
    let prompted = prompted(&model, &sets.prompted, trained.iter().chain(&heldout))?;
    let measurements = Measurements {
        trained,
        heldout,
        general: general.items,
        prompted,
        neighbours,
        rule: input.rules.any(),
        kl: general.kl,
        final_loss,
        steps,
        examples: sets.new.len(),
        exploded_at,
    };
    let learned = Learned { compression_error, pairs: sets.paired() };
    write(input, &model, &after, learned, &measurements, out_dir)?;
    Ok(measurements)
}

/// Returns what is published: the trained factors, or their sum with the adapter that they were trained on top of, and how
/// far that is from the sum.
fn publish(
    input: &JobInput,
    lora: &TrainableLora,
    parent: Option<&LoraAdapter>,
    events: &mut dyn FnMut(JobEvent),
) -> Result<(LoraAdapter, Option<f64>), JobError> {
    let trained = lora.publish()?;
    let Some(parent) = parent.filter(|_| input.delta) else { return Ok((trained, None)) };
    let Compressed { adapter, error } = delta::sum(parent, &trained, None)?;
    let rank = adapter.config().rank;
    events(JobEvent::Note(format!(
        "the adapter before and the new difference are one adapter of rank {rank} now, which leaves out {:.2} % of their sum (Frobenius norm)",
        error * 100.0
    )));
    Ok((adapter, Some(error)))
}

/// Compares the base, told in the prompt, with the new adapter, told nothing, on the same answers.
fn prompted<'a>(
    model: &LoadedModel,
    told: &[Sequence],
    adapted: impl Iterator<Item = &'a ItemLoss>,
) -> Result<Vec<ItemLoss>, JobError> {
    let adapted: HashMap<i64, f64> = adapted.map(|item| (item.id, item.after)).collect();
    let losses = trainer::evaluate(&model.decoder, told, &NoAdapter)?;
    let items = told.iter().zip(losses).filter_map(|(sequence, before)| {
        let after = *adapted.get(&sequence.id)?;
        Some(ItemLoss { id: sequence.id, before, after })
    });
    Ok(items.collect())
}

/// Opens the device to train on, and tells of it unless the CPU was asked for.
fn open_device(input: &JobInput, events: &mut dyn FnMut(JobEvent)) -> Result<Device, JobError> {
    let Opened { device, fallback } = device::open_for_training(input.device)?;
    if !device.is_cpu() {
        events(JobEvent::Note(format!("trains on {}", device::choice_of(&device))));
    } else if let Some(reason) = fallback.filter(|_| cfg!(any(feature = "cuda", feature = "metal")))
    {
        events(JobEvent::Note(reason));
    }
    Ok(device)
}

fn load_adapter(dir: Option<&Path>, model: &LoadedModel) -> Result<Option<LoraAdapter>, JobError> {
    let Some(dir) = dir else {
        return Ok(None);
    };
    check_base(dir, model)?;
    Ok(Some(LoraAdapter::load(dir, model.decoder.config(), model.decoder.device())?))
}

/// How a job is trained.
struct Course<'a> {
    parent: Option<Arc<LoraAdapter>>,
    job: Workload,
    plan: MemoryPlan,
    checkpoint_dir: &'a Path,
}

/// What training leaves.
struct Trained {
    lora: TrainableLora,
    final_loss: f64,
    steps: usize,
    exploded_at: Option<usize>,
}

fn train(
    input: &JobInput,
    model: &LoadedModel,
    sets: &Sets,
    course: Course<'_>,
    events: &mut dyn FnMut(JobEvent),
    cancelled: &dyn Fn() -> bool,
) -> Result<Trained, JobError> {
    let Course { parent, job, plan, checkpoint_dir } = course;
    let params = &input.params;
    let (decoder, device) = (&model.decoder, model.decoder.device());
    // A rule that was learned before is in the parent's answers and not in the base's.
    let still = parent.clone().filter(|_| input.rules.inherited);
    let lora = match parent {
        Some(parent) if input.delta => TrainableLora::fresh(decoder, params)?.on_top_of(parent),
        Some(parent) => {
            note_shape(&parent, params, events);
            TrainableLora::from_adapter(&parent, params.dropout)?
        }
        None => TrainableLora::fresh(decoder, params)?,
    };
    let fingerprint = fingerprint(input, device::choice_of(device))?;
    let config = AdamWConfig { weight_decay: params.weight_decay, ..AdamWConfig::default() };
    let (mut optimizer, last_loss, mut watch) =
        match checkpoint::restore(checkpoint_dir, &lora, config, &fingerprint, device)? {
            Some((optimizer, loss, watch)) => {
                let step = optimizer.step_count();
                events(JobEvent::Note(format!("goes on from the checkpoint of step {step}")));
                (optimizer, loss, watch)
            }
            None => {
                let vars = lora.vars().into_iter().map(|(_, var)| var).collect();
                (AdamW::new(vars, config)?, f64::NAN, LossWatch::default())
            }
        };
    let still: &dyn Adapt = still.as_deref().map_or(&NoAdapter, |parent| parent);
    let anchors = trainer::anchors(decoder, sets.anchors.clone(), still)?;
    let pairs = preference::pairs(decoder, &sets.train, &sets.rejected)?;
    let data = TrainingData {
        pairs: Pairs { of: &pairs, strength: params.preference },
        train: &sets.train,
        weights: trainer::loss_weights(&sets.train, params),
        anchors: &anchors,
    };
    let left = job.training_flops(optimizer.step_count(), plan) + job.flops_after();
    events(JobEvent::Ready { done: job.flops_before(), left });
    let mut after_step = |progress: trainer::Progress, optimizer: &AdamW| {
        events(JobEvent::Step(progress));
        let trainer::Progress { epoch, step, loss, .. } = progress;
        if let Some((mean, bound)) = watch.exploded(epoch, loss) {
            let why = format!("the loss rose to {mean:.2}, above {bound:.2},");
            return Err(JobError::Exploded { step, loss, why });
        }
        let stop = cancelled();
        let due = progress.step.is_multiple_of(params.checkpoint_every_steps.max(1));
        if stop || due || progress.step == progress.total_steps {
            events(JobEvent::Checkpointing);
            checkpoint::save(checkpoint_dir, &lora, optimizer, loss, &watch, &fingerprint)?;
            events(JobEvent::Checkpointed { step: progress.step });
        }
        if stop { Err(JobError::Cancelled) } else { Ok(()) }
    };
    let trained =
        trainer::train(decoder, &lora, &data, params, plan, &mut optimizer, &mut after_step);
    let (final_loss, exploded_at) = match trained {
        Ok(loss) => (loss.unwrap_or(last_loss), None),
        Err(JobError::Exploded { step, loss, why }) => {
            events(JobEvent::Note(format!("training stopped early: {why} at step {step}")));
            (loss, Some(step))
        }
        Err(error) => return Err(error),
    };
    Ok(Trained { lora, final_loss, steps: optimizer.step_count(), exploded_at })
}

/// An adapter that is continued keeps its shape and kind: says so where the configuration asks for another.
fn note_shape(parent: &LoraAdapter, params: &TrainingParams, events: &mut dyn FnMut(JobEvent)) {
    let kept = parent.config();
    let shape = |rank: usize, alpha: f64, rslora: bool, dora: bool| {
        let scaled = if rslora { " (rsLoRA)" } else { "" };
        format!("{} of rank {rank} and alpha {alpha}{scaled}", if dora { "DoRA" } else { "LoRA" })
    };
    let kept = shape(kept.rank, kept.alpha, kept.rslora, kept.dora);
    let fresh = shape(params.rank, params.alpha, params.rslora, params.dora);
    if kept != fresh {
        events(JobEvent::Note(format!(
            "goes on with the {kept} of the adapter before; a fresh one would be a {fresh}"
        )));
    }
}

/// Names a job's input and device, so that a checkpoint of another one is never taken up: devices round differently, and
/// the adapter of a resumed job shall be that of an unbroken one. The memory at hand is not part of it: an attempt that
/// died of too little goes on with another plan.
pub(super) fn fingerprint(input: &JobInput, device: DeviceChoice) -> Result<String, JobError> {
    // What "auto" opened counts, not that it was asked for.
    // Notes are measured with alone, and the user may change them meanwhile.
    let notes = BTreeMap::new();
    let input = JobInput { memory: MemoryBudget::default(), device, notes, ..input.clone() };
    let json = serde_json::to_vec(&input)
        .map_err(|e| JobError::Input(format!("the job cannot be serialised: {e}")))?;
    Ok(hex(&Sha256::digest(json)))
}

fn pair(sequences: &[Sequence], before: Vec<f64>, after: &[f64]) -> Vec<ItemLoss> {
    let items = sequences.iter().zip(before).zip(after);
    items.map(|((s, before), &after)| ItemLoss { id: s.id, before, after }).collect()
}

/// What only the job knows of how its adapter was made.
struct Learned {
    compression_error: Option<f64>,
    /// Ids of the examples that were preferred to their criticised answers.
    pairs: Vec<i64>,
}

fn write(
    input: &JobInput,
    model: &LoadedModel,
    after: &LoraAdapter,
    learned: Learned,
    measurements: &Measurements,
    out_dir: &Path,
) -> Result<(), JobError> {
    adapter::save(out_dir, after.config(), input.params.dropout, &model.name, after.sites())?;
    let ids = |examples: &[TrainExample]| examples.iter().map(|e| e.id).collect();
    let record = TrainingRecord {
        base: model.name.clone(),
        base_hash: model.base_hash.clone(),
        quantize: input.quantize,
        examples: ids(&input.train),
        replay: ids(&input.replay),
        heldout: ids(&input.heldout),
        pairs: learned.pairs,
        params: input.params.clone(),
        measurements: measurements.clone(),
        compression_error: learned.compression_error,
        resources: None,
    };
    let json = serde_json::to_string_pretty(&record)
        .map_err(|e| JobError::Input(format!("training.json cannot be serialised: {e}")))?;
    fs_err::write(out_dir.join(TRAINING_FILE), json + "\n")?;
    Ok(())
}

/// Writes what an adapter's training was expected to need, and took, into the `training.json` in `dir`.
///
/// # Errors
/// A file that cannot be read or written.
pub fn record_resources(dir: &Path, resources: &Resources) -> Result<(), JobError> {
    let path = dir.join(TRAINING_FILE);
    let broken = |e: serde_json::Error| {
        JobError::Input(format!("{} cannot be written: {e}", path.display()))
    };
    // Not as a record: a measured loss that is no number has no JSON, and reads back as null.
    let mut record: serde_json::Value =
        serde_json::from_slice(&fs_err::read(&path)?).map_err(broken)?;
    record["resources"] = serde_json::to_value(resources).map_err(broken)?;
    let json = serde_json::to_string_pretty(&record).map_err(broken)?;
    Ok(fs_err::write(&path, json + "\n")?)
}
