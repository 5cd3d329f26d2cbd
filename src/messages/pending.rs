//! Stand-ins for types of `lora` and `eval` until those land; to be deleted then.
#![allow(missing_docs)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::TrainExample;
use crate::eval::Promotion;

#[derive(Clone, Default, Debug)]
pub struct AdapterSet;
impl AdapterSet {
    pub fn empty() -> Self {
        Self
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct GateReport(pub String);
impl std::fmt::Display for GateReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ItemLoss {
    pub id: i64,
    pub before: f64,
    pub after: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurements {
    pub trained: Vec<ItemLoss>,
    pub heldout: Vec<ItemLoss>,
    pub general: Vec<ItemLoss>,
    pub kl: f64,
    pub final_loss: f64,
    pub steps: usize,
    pub examples: usize,
}

#[derive(Debug)]
pub enum Verdict {
    Promote(Promotion),
    Reject { reasons: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobInput {
    pub train: Vec<TrainExample>,
    pub heldout: Vec<TrainExample>,
    pub replay: Vec<TrainExample>,
    pub parent: Option<PathBuf>,
}
