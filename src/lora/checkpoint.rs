//! What a retry goes on from: factors, moments, step. The order of data and dropout follow from the step.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::trainable::TrainableLora;
use super::watch::LossWatch;
use super::{AdamW, AdamWConfig, JobError, Moments};
use crate::crash;

/// The one file of a checkpoint, replaced as a whole.
const FILE: &str = "checkpoint.safetensors";
const STEP: &str = "step";
const FINGERPRINT: &str = "fingerprint";
const LOSS: &str = "loss";
const WATCH: &str = "watch";

/// Writes a checkpoint: temporary file, fsync, rename, fsync of the directory.
///
/// `loss` is the last step's, `fingerprint` names the job's input; a checkpoint of another input is never taken up.
///
/// # Errors
/// A directory that cannot be written.
pub fn save(
    dir: &Path,
    lora: &TrainableLora,
    optimizer: &AdamW,
    loss: f64,
    watch: &LossWatch,
    fingerprint: &str,
) -> Result<(), JobError> {
    let mut tensors = HashMap::new();
    for ((name, var), moments) in lora.vars().into_iter().zip(optimizer.moments()) {
        tensors.insert(format!("first {name}"), moments.first.clone());
        tensors.insert(format!("second {name}"), moments.second.clone());
        tensors.insert(name, var.as_tensor().clone());
    }
    let metadata = HashMap::from([
        (STEP.to_owned(), optimizer.step_count().to_string()),
        (FINGERPRINT.to_owned(), fingerprint.to_owned()),
        // The shortest text that reads back as the same number.
        (LOSS.to_owned(), loss.to_string()),
        (WATCH.to_owned(), watch.to_string()),
    ]);
    let bytes = safetensors::serialize(&tensors, Some(metadata))
        .map_err(|e| JobError::Input(format!("checkpoint cannot be serialised: {e}")))?;
    fs_err::create_dir_all(dir)?;
    let temporary = dir.join("checkpoint.tmp");
    let mut file = fs_err::File::create(&temporary)?;
    std::io::Write::write_all(&mut file, &bytes)?;
    crash::point("after a checkpoint was written");
    file.sync_all()?;
    crash::point("after a checkpoint was synced");
    fs_err::rename(&temporary, dir.join(FILE))?;
    crash::point("after a checkpoint was moved");
    fs_err::File::open(dir)?.sync_all()?;
    crash::point("after a checkpoint's directory was synced");
    Ok(())
}

/// Sets `lora` to the checkpoint of the same input and returns its optimiser, last loss and watch; `None` if
/// there is none that is whole and fits: then the job starts anew.
///
/// # Errors
/// A failed tensor operation.
pub fn restore(
    dir: &Path,
    lora: &TrainableLora,
    config: AdamWConfig,
    fingerprint: &str,
    device: &Device,
) -> Result<Option<(AdamW, f64, LossWatch)>, JobError> {
    let Ok(bytes) = fs_err::read(dir.join(FILE)) else {
        return Ok(None);
    };
    let Ok((_, header)) = safetensors::SafeTensors::read_metadata(&bytes) else {
        return Ok(None);
    };
    let Some(metadata) = header.metadata() else {
        return Ok(None);
    };
    let step = metadata.get(STEP).and_then(|s| s.parse().ok());
    let loss = metadata.get(LOSS).and_then(|s| s.parse().ok());
    let watch = metadata.get(WATCH).and_then(|s| s.parse().ok());
    let same = metadata.get(FINGERPRINT).map(|f| f == fingerprint);
    let (Some(step), Some(loss), Some(watch), Some(true)) = (step, loss, watch, same) else {
        return Ok(None);
    };
    let Ok(tensors) = candle_core::safetensors::load_buffer(&bytes, device) else {
        return Ok(None);
    };
    let vars = lora.vars();
    let fits =
        |name: &str, like: &Tensor| tensors.get(name).is_some_and(|t| t.dims() == like.dims());
    let whole = vars.iter().all(|(name, var)| {
        [name.clone(), format!("first {name}"), format!("second {name}")]
            .iter()
            .all(|key| fits(key, var.as_tensor()))
    });
    if !whole {
        return Ok(None);
    }
    let mut moments = Vec::new();
    for (name, var) in &vars {
        var.set(&tensors[name])?;
        moments.push(Moments {
            first: tensors[&format!("first {name}")].clone(),
            second: tensors[&format!("second {name}")].clone(),
        });
    }
    let vars = vars.into_iter().map(|(_, var)| var).collect();
    Ok(Some((AdamW::resume(vars, config, moments, step)?, loss, watch)))
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
