//! Two small fixed sets of general prompts: one anchors training, the other measures it.
//!
//! They are disjoint: a set that is trained on measures nothing. The built-in model has sets of its
//! own, because it knows nothing of the world; `examples/pretrain` draws them from its corpus.

use serde::Deserialize;

use crate::domain::{Message, TrainExample};
use crate::lora::JobError;
use crate::models::ModelSource;

/// The sets that fit a model.
#[derive(Debug, Clone, Copy)]
pub struct GeneralSet {
    anchors: &'static str,
    gate: &'static str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    prompt: String,
    response: String,
}

impl GeneralSet {
    /// Chooses the sets for a model.
    pub fn for_model(source: &ModelSource) -> Self {
        match source {
            ModelSource::Builtin => Self {
                anchors: include_str!("../../assets/general/builtin_anchors.jsonl"),
                gate: include_str!("../../assets/general/builtin_gate.jsonl"),
            },
            ModelSource::Dir(_) => Self {
                anchors: include_str!("../../assets/general/anchors.jsonl"),
                gate: include_str!("../../assets/general/gate.jsonl"),
            },
        }
    }

    /// Returns the prompts that training holds still.
    ///
    /// # Errors
    /// A malformed row, by line.
    pub fn anchors(&self) -> Result<Vec<TrainExample>, JobError> {
        parse(self.anchors)
    }

    /// Returns the prompts that the gate measures on.
    ///
    /// # Errors
    /// A malformed row, by line.
    pub fn gate(&self) -> Result<Vec<TrainExample>, JobError> {
        parse(self.gate)
    }
}

fn parse(text: &str) -> Result<Vec<TrainExample>, JobError> {
    let row = |(index, line): (usize, &str)| {
        let row: Row = serde_json::from_str(line)
            .map_err(|e| JobError::Input(format!("general prompt {}: {e}", index + 1)))?;
        Ok(TrainExample {
            id: index as i64 + 1,
            messages: vec![Message::user(row.prompt)],
            target: row.response,
            weight: 1.0,
        })
    };
    text.lines().filter(|line| !line.is_empty()).enumerate().map(row).collect()
}
