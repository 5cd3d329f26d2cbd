//! The model of the configuration: its hash, and the model itself on its device.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{Device, DeviceLocation};

use super::context::Session;
use crate::actors::base::{Base, CurrentBase, ModelOpener};
use crate::app::{self, Setup};
use crate::config::ModelSection;
use crate::device::{self, Opened};
use crate::domain::AdapterId;
use crate::lora::{self, LoraAdapter};
use crate::models::{self, LoadedModel, ModelSource};
use crate::plan;
use crate::store::JobBase;
use crate::worker;

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
    let config = &session.loaded.config.model;
    use_threads(config.threads)?;
    let (source, cache) = source_and_cache(&session)?;
    let base = open(config, source, cache.clone(), &opened.device)?;
    Ok(Setup {
        current: CurrentBase::new(base),
        open: opener(config.clone(), cache, opened.device),
        home: session.home,
        config: session.loaded.config,
        notes: opened.fallback.into_iter().collect(),
    })
}

/// Loads a model for the actors.
fn open(
    config: &ModelSection,
    source: ModelSource,
    cache: PathBuf,
    device: &Device,
) -> Result<Base> {
    let model = load_from(config, &source, &cache, device)?;
    let opened = app::Opened {
        device: name_of(model.decoder.device()),
        model,
        source,
        hash_cache: Some(cache),
        choice: config.device,
        limits: plan::engine_limits(config),
    };
    Ok(opened.into())
}

/// Loads models while the program runs, beside the one in use.
fn opener(config: ModelSection, cache: PathBuf, device: Device) -> ModelOpener {
    Arc::new(move |name, in_use| {
        let open = || -> Result<Base> {
            let source = resolve(name)?;
            if models::base_hash(&source, Some(&cache))? == in_use {
                anyhow::bail!("it is in use already");
            }
            if device.is_cpu() {
                check_room(source.weight_bytes()?)?;
            }
            open(&config, source, cache.clone(), &device)
        };
        open().map_err(|error| format!("{error:#}"))
    })
}

/// Refuses a model that the memory does not hold beside the one in use.
fn check_room(needed: u64) -> Result<()> {
    /// Bytes in a mebibyte.
    const MEBIBYTE: u64 = 1 << 20;
    match worker::available_memory() {
        Some(free) if free < needed => anyhow::bail!(
            "its weights take {} MiB beside the model in use, and {} MiB of memory are available: free some, or leave \
             and start with --model",
            needed.div_ceil(MEBIBYTE),
            free / MEBIBYTE
        ),
        _ => Ok(()),
    }
}

/// Returns what a job stores of the configured model, which is not loaded for that.
///
/// # Errors
/// Missing or unreadable files.
pub fn job_base(session: &Session) -> Result<Option<JobBase>> {
    let (source, cache) = source_and_cache(session)?;
    let hash = models::base_hash(&source, Some(&cache))?;
    let quantize = plan::quantize(session.loaded.config.model.quantize);
    Ok(plan::job_base(&source.to_string(), &source, &hash, quantize, None))
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
    load_from(config, &source, &cache, &device)
}

fn load_from(
    config: &ModelSection,
    source: &ModelSource,
    cache: &Path,
    device: &Device,
) -> Result<LoadedModel> {
    let mut model = models::load_as(source, device, Some(cache), plan::quantize(config.quantize))?;
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
    let source = resolve(&session.loaded.config.model.source)?;
    Ok((source, session.home.root().join(HASH_CACHE)))
}

/// Finds the model that `--model`, `model.source` and `/model` name; a directory by its whole path, as jobs and other
/// working directories need it.
fn resolve(name: &str) -> Result<ModelSource> {
    Ok(match name.parse()? {
        ModelSource::Dir(dir) => ModelSource::Dir(fs_err::canonicalize(&dir).unwrap_or(dir)),
        source => source,
    })
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
