//! An adapter checked as far as it can be before it answers anybody.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;

use super::adapter::{invalid, read_capped};
use super::{LoraAdapter, LoraError, TRAINING_FILE};
use crate::models::LoadedModel;

/// Token ids of the smoke forward: any that every vocabulary has.
const SMOKE_IDS: [u32; 2] = [0, 1];

/// The largest `training.json` that is read: about a hundred bytes for each measured example, and far more of them than
/// a buffer holds.
pub(super) const MAX_RECORD_BYTES: u64 = 16 << 20;

/// What is asked of `training.json` here.
#[derive(Deserialize)]
struct Origin {
    base: Option<String>,
    base_hash: String,
}

/// Loads an adapter, compares the base it was trained on with `model` where it names one, and lets the model compute
/// with it once.
///
/// # Errors
/// As [`LoraAdapter::load`]; another base; values that make the model's output no number.
pub fn load_verified(dir: &Path, model: &LoadedModel) -> Result<LoraAdapter, LoraError> {
    check_base(dir, model)?;
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

/// Checks that an adapter was made for `model`, as far as its `training.json` says; one of PEFT has none, there names and
/// shapes decide.
///
/// # Errors
/// Another base, or a file that is no training record.
pub(super) fn check_base(dir: &Path, model: &LoadedModel) -> Result<(), LoraError> {
    let path = dir.join(TRAINING_FILE);
    if !path.exists() {
        return Ok(());
    }
    let origin: Origin =
        serde_json::from_slice(&read_capped(&path, MAX_RECORD_BYTES)?).map_err(|e| {
            let problem = format!("not a training record: {e}");
            invalid(&path, problem, "train it again, or delete it")
        })?;
    if origin.base_hash == model.base_hash {
        return Ok(());
    }
    let trained_on = origin.base.as_deref().unwrap_or("unknown");
    let problem =
        format!("it was trained on another base model ({trained_on}, loaded: {})", model.name);
    Err(invalid(&path, problem, "load that model with --model first, or train a new adapter"))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::{self, ModelSource};

    #[test]
    fn a_record_is_of_the_loaded_model_and_of_a_size_that_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let model = models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
        let check = |record: &str| {
            fs_err::write(folder.path().join(TRAINING_FILE), record).unwrap();
            check_base(folder.path(), &model).map_err(|error| error.to_string())
        };
        assert_eq!(check(&format!("{{\"base_hash\": \"{}\"}}", model.base_hash)), Ok(()));
        let other = check("{\"base\": \"big\", \"base_hash\": \"0123\"}").unwrap_err();
        assert!(other.contains("another base model (big, loaded: builtin)"), "{other}");
        assert!(check("[]").unwrap_err().contains("not a training record"));
        let size = usize::try_from(MAX_RECORD_BYTES).unwrap();
        let huge = check(&" ".repeat(size + 1)).unwrap_err();
        assert!(huge.contains("more than the 16777216 bytes"), "{huge}");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_does_not_say_its_size_is_read_as_far_as_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nine");
        fs_err::write(&path, [7; 9]).unwrap();
        assert_eq!(read_capped(&path, 9).unwrap(), [7; 9]);
        // Its size is zero, and it has no end.
        let endless = read_capped(Path::new("/dev/zero"), 9).unwrap_err().to_string();
        assert!(endless.contains("more than the 9 bytes"), "{endless}");
    }
}
