//! The model of the configuration: its hash, and the model itself on its device.

use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{Device, DeviceLocation};

use super::context::Session;
use crate::app::Setup;
use crate::device::{self, Opened};
use crate::domain::AdapterId;
use crate::lora::{self, LoraAdapter};
use crate::models::{self, LoadedModel, ModelSource};
use crate::plan;

/// Hashes of models' files, so that gigabytes are hashed once; in the data directory.
const HASH_CACHE: &str = "model_hashes.json";

/// Returns the content hash of the configured model without loading it.
///
/// # Errors
/// Missing or unreadable files.
pub fn base_hash(session: &Session) -> Result<String> {
    let (source, cache) = source_and_cache(session)?;
    Ok(models::base_hash(&source, Some(&cache))?)
}

/// Loads the configured model on the configured device, with the configured number of threads.
///
/// # Errors
/// A device that is not there, or files that are no model.
pub fn load(session: &Session) -> Result<LoadedModel> {
    load_on(session, open_device(session)?.device)
}

/// Loads the model and hands over all that the running program is made of.
///
/// # Errors
/// A device that is not there, or files that are no model.
pub fn setup(session: Session) -> Result<Setup> {
    let opened = open_device(&session)?;
    let model = load_on(&session, opened.device)?;
    let (source, cache) = source_and_cache(&session)?;
    Ok(Setup {
        device: name_of(model.decoder.device()),
        home: session.home,
        config: session.loaded.config,
        model,
        source,
        hash_cache: Some(cache),
        notes: opened.fallback.into_iter().collect(),
    })
}

fn open_device(session: &Session) -> Result<Opened> {
    let opened = device::open(session.loaded.config.model.device)?;
    if let Some(reason) = &opened.fallback {
        tracing::info!("device \"auto\": {reason}");
    }
    Ok(opened)
}

fn load_on(session: &Session, device: Device) -> Result<LoadedModel> {
    let config = &session.loaded.config.model;
    use_threads(config.threads)?;
    let (source, cache) = source_and_cache(session)?;
    let mut model =
        models::load_as(&source, &device, Some(&cache), plan::quantize(config.quantize))?;
    if config.context_length > 0 {
        model.context_length = model.context_length.min(config.context_length);
    }
    Ok(model)
}

/// Returns the name of a device as `--device` takes it.
pub fn name_of(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// Loads an adapter, checks it against the model, and lets it compute once.
///
/// # Errors
/// Files that are missing, damaged, or made for another model.
pub fn load_adapter(session: &Session, id: &AdapterId, model: &LoadedModel) -> Result<LoraAdapter> {
    Ok(lora::load_verified(&session.home.adapter(id), model)?)
}

fn source_and_cache(session: &Session) -> Result<(ModelSource, PathBuf)> {
    let source = session.loaded.config.model.source.parse()?;
    Ok((source, session.home.root().join(HASH_CACHE)))
}

/// Sizes the pool that computes; 0 leaves it at one thread per core.
fn use_threads(threads: usize) -> Result<()> {
    if threads == 0 {
        return Ok(());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global()
        .with_context(|| format!("cannot start {threads} threads: lower model.threads"))
}
