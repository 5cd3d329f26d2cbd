//! An adapter checked as far as it can be before it answers anybody.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;

use super::{LoraAdapter, LoraError, TRAINING_FILE};
use crate::models::LoadedModel;

/// Token ids of the smoke forward: any that every vocabulary has.
const SMOKE_IDS: [u32; 2] = [0, 1];

/// What is asked of `training.json` here.
#[derive(Deserialize)]
struct Origin {
    base_hash: String,
}

/// Loads an adapter, compares the base it was trained on with `model` where it names one, and lets the model compute
/// with it once.
///
/// # Errors
/// As [`LoraAdapter::load`]; another base; values that make the model's output no number.
pub fn load_verified(dir: &Path, model: &LoadedModel) -> Result<LoraAdapter, LoraError> {
    check_origin(dir, model)?;
    let decoder = &model.decoder;
    let adapter = LoraAdapter::load(dir, decoder.config(), decoder.device())?;
    let unusable = |problem: String| LoraError::Invalid {
        path: dir.to_owned(),
        problem,
        remedy: "train it again, or delete it".to_owned(),
    };
    let ids = Tensor::new(&SMOKE_IDS, decoder.device())?.unsqueeze(0)?;
    let hidden = decoder.hidden(&ids, None, &adapter).map_err(|e| unusable(e.to_string()))?;
    let logits = decoder.logits(&hidden).map_err(|e| unusable(e.to_string()))?;
    let sum = logits.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() {
        Ok(adapter)
    } else {
        Err(unusable("the model computes no numbers with it".to_owned()))
    }
}

/// An adapter of PEFT has no `training.json`: then names and shapes decide.
fn check_origin(dir: &Path, model: &LoadedModel) -> Result<(), LoraError> {
    let path = dir.join(TRAINING_FILE);
    if !path.exists() {
        return Ok(());
    }
    let invalid = |problem: String, remedy: &str| LoraError::Invalid {
        path: path.clone(),
        problem,
        remedy: remedy.to_owned(),
    };
    let origin: Origin = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|error| invalid(error.to_string(), "train it again, or delete it"))?;
    if origin.base_hash == model.base_hash {
        return Ok(());
    }
    let problem = format!("it was trained on another base than \"{}\"", model.name);
    Err(invalid(problem, "load that model with --model first"))
}
