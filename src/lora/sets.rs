//! A job's data as token sequences.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::dataset::{self, Sequence, encode};
use super::estimate::{Load, Step, Workload};
use super::job::{JobEvent, JobInput};
use super::params::FORMS;
use super::paraphrase::asked_in;
use super::rule::{rule, rule_examples};
use super::{JobError, LoraAdapter, preference, trainer};
use crate::domain::TrainExample;
use crate::eval::neighbours::{Asking, Parting};
use crate::eval::{GeneralSet, with_note};
use crate::models::{Adapt, LoadedModel, Module, Tokenizer};

/// Largest part of a context that one example may fill; longer ones cost memory no mark is worth.
const MAX_TRAINING_TOKENS: usize = 2048;

/// Reasons of one kind that a job gives at most.
const REASONS_TOLD: usize = 3;

/// An example that is trained on measures nothing.
pub(super) fn check_heldout(input: &JobInput) -> Result<(), JobError> {
    let trained = |id: i64| input.train.iter().chain(&input.replay).any(|e| e.id == id);
    match input.heldout.iter().find(|e| trained(e.id)) {
        Some(both) => Err(JobError::Input(format!(
            "example {} is held out and trained on; enqueue the job again with /train",
            both.id
        ))),
        None => Ok(()),
    }
}

/// Adds questions like the taught ones about something else to the anchors, if there are any, and returns those that the
/// gate measures.
fn about_something_else(
    input: &JobInput,
    asking: &Asking<'_>,
    anchors: &mut Vec<Sequence>,
) -> Result<Vec<Parting>, JobError> {
    // What is held out was not taught: its answers spread from nowhere.
    let learned: Vec<TrainExample> = input.train.iter().chain(&input.replay).cloned().collect();
    if input.params.anchor > 0.0 && input.params.anchor_prompts > 0 {
        anchors.extend(asking.held(&learned, input.params.neighbour_prompts)?);
        // Steps take them in turn: kinds that lie together would leave many steps without a kind.
        anchors.shuffle(&mut StdRng::seed_from_u64(input.params.seed));
    }
    // A rule is meant to reach other questions too; facts beside it are not.
    let examples = rule_examples(&input.train, &input.replay, input.parent.is_some());
    let found = rule(&examples, &input.notes).filter(|_| input.rules.taught);
    let of_rule = found.unwrap_or_default();
    let facts: Vec<TrainExample> =
        learned.into_iter().filter(|example| !of_rule.contains(&example.id)).collect();
    asking.measured(&facts)
}

/// Names the examples that answer the same conversation otherwise than another does.
fn contradictions(train: &[Sequence]) -> Vec<String> {
    let mut first: HashMap<&[u32], i64> = HashMap::new();
    let mut notes = Vec::new();
    for sequence in train {
        match first.entry(&sequence.ids[..sequence.answer_start]) {
            Entry::Vacant(free) => drop(free.insert(sequence.id)),
            Entry::Occupied(of) => notes.push(format!(
                "examples {} and {} answer the same question differently: neither is learned well; take one back or change it",
                of.get(),
                sequence.id
            )),
        }
    }
    let more = notes.len().saturating_sub(REASONS_TOLD);
    notes.truncate(REASONS_TOLD);
    notes.extend((more > 0).then(|| format!("{more} more examples contradict earlier ones")));
    notes
}

/// Says why no example is left to learn.
fn nothing_to_learn(
    taught: &[TrainExample],
    model: &LoadedModel,
    limit: usize,
) -> Result<String, JobError> {
    if taught.is_empty() {
        return Ok("all its examples were forgotten since it was enqueued".to_owned());
    }
    let why = encode(taught, &model.tokenizer, limit)?.notes;
    let more = why.len().saturating_sub(REASONS_TOLD);
    let mut why = why.into_iter().take(REASONS_TOLD).collect::<Vec<_>>().join("; ");
    if more > 0 {
        why.push_str(&format!("; and {more} more"));
    }
    Ok(format!("no example has an answer to learn ({why}): give another with /fix or /good"))
}

/// Adds the other forms of the questions behind the sequences; where a form does not fit, the question stays as it is.
fn in_all_forms(
    input: &JobInput,
    prompts: &GeneralSet,
    train: Vec<Sequence>,
    tokenizer: &Tokenizer,
    limit: usize,
) -> Result<Vec<Sequence>, JobError> {
    let common = prompts.common_words()?;
    let mut all = train.clone();
    for form in 1..FORMS {
        for sequence in &train {
            let mut found = input.train.iter().chain(&input.replay);
            let example = found.find(|e| e.id == sequence.id);
            let other = example.and_then(|example| asked_in(example, form, &common));
            let encoded = other.map(|other| encode(&[other], tokenizer, limit)).transpose()?;
            let encoded = encoded.and_then(|set| set.sequences.into_iter().next());
            let weight = sequence.weight;
            all.push(encoded.map_or_else(|| sequence.clone(), |s| Sequence { weight, ..s }));
        }
    }
    Ok(all)
}

/// The job's data as token sequences.
pub(super) struct Sets {
    pub new: Vec<Sequence>,
    /// New and replayed ones together, in each form of their questions, one form after the other.
    pub train: Vec<Sequence>,
    /// The criticised answers beside the first form of those of `train`.
    pub rejected: Vec<Option<Sequence>>,
    pub heldout: Vec<Sequence>,
    pub anchors: Vec<Sequence>,
    pub general: Vec<Sequence>,
    /// Questions like the taught ones about something else.
    pub neighbours: Vec<Parting>,
    /// The held-out items, or where there are none the new ones, those with a note, with it in the prompt.
    pub prompted: Vec<Sequence>,
}

impl Sets {
    /// Encodes all sets; what is cut, skipped or repeated is noted.
    pub fn encode(
        input: &JobInput,
        model: &LoadedModel,
        parent: Option<&dyn Adapt>,
        events: &mut dyn FnMut(JobEvent),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, JobError> {
        let limit = model.context_length.min(MAX_TRAINING_TOKENS);
        let mut tell =
            |notes: Vec<String>| notes.into_iter().for_each(|n| events(JobEvent::Note(n)));
        let mut take = |examples: &[TrainExample], before: Vec<Sequence>| {
            let taken = encode(examples, &model.tokenizer, limit)?;
            tell(taken.notes);
            let merged = dataset::merge(before.into_iter().chain(taken.sequences).collect());
            tell(merged.notes);
            Ok::<_, JobError>(merged.sequences)
        };
        let none = Vec::new;
        // A job without new examples learns old ones again: they are what it is judged by.
        let taught = if input.train.is_empty() { &input.replay } else { &input.train };
        let new = take(taught, none())?;
        if new.is_empty() {
            return Err(JobError::Input(nothing_to_learn(taught, model, limit)?));
        }
        let mut train = match input.train.is_empty() {
            true => new.clone(),
            false => take(&input.replay, new.clone())?,
        };
        let contradicting = contradictions(&train);
        let (mut rejected, mut unpaired) = (Vec::new(), Vec::new());
        if input.params.preference.weight > 0.0 {
            let examples: Vec<&TrainExample> = input.train.iter().chain(&input.replay).collect();
            (rejected, unpaired) =
                preference::encode(&input.rejected, &examples, &train, &model.tokenizer, limit)?;
        }
        let prompts = GeneralSet::for_model(&input.model);
        if input.params.paraphrase {
            train = in_all_forms(input, &prompts, train, &model.tokenizer, limit)?;
        }
        let taught: Vec<TrainExample> =
            [&input.train, &input.replay, &input.heldout].into_iter().flatten().cloned().collect();
        let general = take(&prompts.gate(&taught)?, none())?;
        if general.is_empty() {
            return Err(JobError::Input(format!(
                "no general prompt fits in {limit} tokens, so the gate could not measure; choose a model with a longer context"
            )));
        }
        let anchored = input.params.anchor > 0.0;
        let mut anchors = if anchored { take(&prompts.anchors(&taught)?, none())? } else { none() };
        let common = prompts.common_words()?;
        let asking = Asking { model, parent, known: &taught, common: &common, limit, cancelled };
        let neighbours = about_something_else(input, &asking, &mut anchors)?;
        let mut heldout = take(&input.heldout, none())?;
        tell(contradicting);
        tell(unpaired);
        heldout.retain(|held| {
            // An example that is trained on measures nothing.
            let same = |s: &&Sequence| s.ids == held.ids && s.answer_start == held.answer_start;
            let twin = train.iter().find(same);
            tell(twin.map(|t| format!("held-out example {} repeats example {}, which is trained on: it was left out", held.id, t.id)).into_iter().collect());
            twin.is_none()
        });
        let measured = if heldout.is_empty() { &input.train } else { &input.heldout };
        let told = |e: &TrainExample| with_note(e, input.notes.get(&e.id).map(String::as_str));
        let told: Vec<TrainExample> = measured.iter().filter_map(told).collect();
        // Its notes would repeat what was said of the same examples before.
        let prompted = encode(&told, &model.tokenizer, limit)?.sequences;
        Ok(Self { new, train, rejected, heldout, anchors, general, neighbours, prompted })
    }

    /// The examples that are preferred to their criticised answers.
    pub fn paired(&self) -> Vec<i64> {
        let both = self.train.iter().zip(&self.rejected);
        both.filter(|(_, rejected)| rejected.is_some()).map(|(taught, _)| taught.id).collect()
    }

    /// The job in counts.
    pub fn workload(
        &self,
        input: &JobInput,
        model: &LoadedModel,
        parent: Option<&LoraAdapter>,
    ) -> Workload {
        let (rank, names) = match parent.map(LoraAdapter::config) {
            Some(kept) if input.delta => {
                (kept.rank + input.params.rank, &input.params.target_modules)
            }
            Some(kept) => (kept.rank, &kept.target_modules),
            None => (input.params.rank, &input.params.target_modules),
        };
        let batches = trainer::batches(&self.train, self.anchors.len(), &input.params);
        let loads = |sequences: &[Sequence]| sequences.iter().map(Load::of).collect();
        Workload {
            model: model.decoder.config().clone(),
            model_bytes: model.decoder.weight_bytes(),
            rank,
            modules: names.iter().filter_map(|name| Module::from_name(name)).collect(),
            steps: batches
                .iter()
                .map(|b| Step::of(b, &self.train, &self.anchors).with_rejected(b, &self.rejected))
                .collect(),
            measured: self
                .new
                .iter()
                .chain(&self.heldout)
                .chain(&self.prompted)
                .map(Load::of)
                .collect(),
            // Measured at the end too, in two passes each.
            general: self
                .general
                .iter()
                .chain(self.neighbours.iter().map(|parting| &parting.own))
                .map(Load::of)
                .collect(),
            anchors: loads(&self.anchors),
        }
    }
}
