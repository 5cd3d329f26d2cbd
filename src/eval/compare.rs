//! Two adapters on the same items, as the gate compares them.

use std::collections::BTreeMap;

use super::gate::taken_over;
use super::neighbours::{self, Asking};
use super::{GeneralSet, ItemLoss, measure, with_note};
use crate::domain::TrainExample;
use crate::lora::dataset::{Sequence, encode};
use crate::lora::{JobError, trainer};
use crate::models::{Adapt, LoadedModel, ModelSource, NoAdapter};

/// Longest item in tokens, as in training.
const MAX_TOKENS: usize = 2048;

/// What two adapters make of the same items.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Loss of each item with the one (`before`) and the other (`after`).
    pub items: Vec<ItemLoss>,
    /// The base with the note in its prompt (`before`) against the other without it (`after`).
    pub prompted: Vec<ItemLoss>,
    /// The general prompts, base against the other.
    pub general: Vec<ItemLoss>,
    /// KL(base ‖ the other) on them, nats per token.
    pub kl: f64,
    /// Of the questions like the taught ones about something else, those that the other answers with a taught answer.
    pub taken_over: Option<(usize, usize)>,
    /// Items that were cut or left out.
    pub notes: Vec<String>,
}

/// Compares `adapter` with `against` on `items`, of which something may have been said in `notes`, by id; the answers of
/// `taught` are those that no other question should get.
///
/// # Errors
/// A template that refuses an item, a failed tensor operation.
pub fn compare(
    model: &LoadedModel,
    source: &ModelSource,
    items: &[TrainExample],
    notes: &BTreeMap<i64, String>,
    taught: &[TrainExample],
    adapter: &dyn Adapt,
    against: &dyn Adapt,
) -> Result<Compared, JobError> {
    let limit = model.context_length.min(MAX_TOKENS);
    let set = encode(items, &model.tokenizer, limit)?;
    let told: Vec<TrainExample> =
        items.iter().filter_map(|e| with_note(e, notes.get(&e.id).map(String::as_str))).collect();
    let told = encode(&told, &model.tokenizer, limit)?.sequences;
    let prompts = GeneralSet::for_model(source);
    let general = encode(&prompts.gate(items)?, &model.tokenizer, limit)?;
    let common = prompts.common_words()?;
    let asking =
        Asking { model, parent: None, known: items, common: &common, limit, cancelled: &|| false };
    let neighbours = neighbours::losses(model, &asking.measured(taught)?, adapter)?;
    let losses =
        |sequences: &[Sequence], adapt: &dyn Adapt| -> Result<BTreeMap<i64, f64>, JobError> {
            let losses = trainer::evaluate(&model.decoder, sequences, adapt)?;
            Ok(sequences.iter().map(|s| s.id).zip(losses).collect())
        };
    let (before, after) = (losses(&set.sequences, against)?, losses(&set.sequences, adapter)?);
    let told = losses(&told, &NoAdapter)?;
    let pair = |before: &BTreeMap<i64, f64>| {
        let both =
            |(&id, &before): (&i64, &f64)| Some(ItemLoss { id, before, after: *after.get(&id)? });
        before.iter().filter_map(both).collect::<Vec<_>>()
    };
    let (items, prompted) = (pair(&before), pair(&told));
    let measured = measure::general(model, &general.sequences, adapter)?;
    Ok(Compared {
        items,
        prompted,
        general: measured.items,
        kl: measured.kl,
        taken_over: taken_over(&neighbours),
        notes: set.notes,
    })
}
