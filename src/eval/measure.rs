//! What is measured of an adapter; numbers only, no judgement.

use serde::{Deserialize, Serialize};

use super::NeighbourLoss;
use crate::lora::dataset::Sequence;
use crate::lora::loss::{head_cross_entropy, head_kl};
use crate::lora::trainer::answer_hidden;
use crate::models::{Adapt, LoadedModel, ModelError, NoAdapter};

/// Mean loss per answer token of one item, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ItemLoss {
    /// Row id of the mark, or the item's number in a fixed set.
    pub id: i64,
    /// With what was live before.
    pub before: f64,
    /// With the new adapter.
    pub after: f64,
}

/// Everything the gate looks at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurements {
    /// The new examples: did it learn what it was told?
    pub trained: Vec<ItemLoss>,
    /// Examples that training never saw.
    pub heldout: Vec<ItemLoss>,
    /// The fixed general prompts, base against new adapter.
    pub general: Vec<ItemLoss>,
    /// The held-out items, or where there are none the new ones: the base with the note in its prompt (`before`) against
    /// the new adapter without it (`after`).
    #[serde(default)]
    pub prompted: Vec<ItemLoss>,
    /// Questions like the taught ones about something else.
    #[serde(default)]
    pub neighbours: Vec<NeighbourLoss>,
    /// Whether the adapter holds a rule for every answer, of this job or an earlier one; such a one may change more.
    #[serde(default)]
    pub rule: bool,
    /// Mean over the general prompts' answer positions of KL(base ‖ adapter), nats per token.
    pub kl: f64,
    /// Loss of the last step, nats per token, anchor included.
    pub final_loss: f64,
    /// Optimiser steps.
    pub steps: usize,
    /// Examples trained on, without replayed ones.
    pub examples: usize,
    /// The step at which training was stopped because it got worse and worse.
    pub exploded_at: Option<usize>,
}

/// The general prompts, measured.
pub(crate) struct General {
    pub items: Vec<ItemLoss>,
    pub kl: f64,
}

/// Measures loss and divergence from the base on general prompts.
pub(crate) fn general(
    model: &LoadedModel,
    sequences: &[Sequence],
    adapter: &dyn Adapt,
) -> Result<General, ModelError> {
    let decoder = &model.decoder;
    let head = decoder.head();
    let (mut items, mut kl_sum, mut tokens) = (Vec::new(), 0.0, 0);
    for sequence in sequences {
        let (base, targets) = answer_hidden(decoder, &[sequence], &NoAdapter)?;
        let (adapted, _) = answer_hidden(decoder, &[sequence], adapter)?;
        let weights = vec![1.0 / targets.len() as f32; targets.len()];
        let loss = |hidden| head_cross_entropy(head, hidden, &targets, &weights, false);
        items.push(ItemLoss {
            id: sequence.id,
            before: loss(&base)?.value,
            after: loss(&adapted)?.value,
        });
        kl_sum += head_kl(head, &base, &adapted, 1.0, false)?.value;
        tokens += targets.len();
    }
    let kl = if tokens == 0 { 0.0 } else { kl_sum / tokens as f64 };
    Ok(General { items, kl })
}
