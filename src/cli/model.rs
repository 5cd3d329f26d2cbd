//! The model of the configuration: its hash, and the model itself on its device.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use candle_core::{Device, DeviceLocation};

use super::context::Session;
use super::download;
use crate::app::Setup;
use crate::device::{self, Opened};
use crate::domain::AdapterId;
use crate::hub::{self, Hub, HubError};
use crate::lora::{self, LoraAdapter};
use crate::models::{self, LoadedModel, ModelInfo, ModelSource, Quantize};
use crate::plan;
use crate::text::bytes;
use crate::worker::available_memory;

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

/// Fetches the configured model if it is one of the hub that is not in the cache; shows how far it is on stderr.
///
/// # Errors
/// As [`Hub::pull`].
pub fn fetch(session: &Session, quiet: bool, cancel: &AtomicBool) -> Result<()> {
    let Some(id) = hub::named(&session.loaded.config.model.source) else { return Ok(()) };
    let hub = Hub::from_env()?;
    if matches!(hub.cached(&id), Err(HubError::NotCached { .. })) {
        download::pull(&hub, &id, quiet, cancel)?;
    }
    Ok(())
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
    let mut notes: Vec<String> = opened.fallback.into_iter().collect();
    if let Some(id) = hub::named(&session.loaded.config.model.source) {
        notes.push(format!("model {id}, revision {}", Hub::from_env()?.cached(&id)?.commit));
    }
    Ok(Setup {
        device: name_of(model.decoder.device()),
        home: session.home,
        config: session.loaded.config,
        model,
        source,
        hash_cache: Some(cache),
        notes,
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
    let (source, _) = source_and_cache(session)?;
    load_source(session, &source, device)
}

/// Loads a model as the configuration wants it, on the configured device.
///
/// # Errors
/// As [`load`].
pub fn load_from(session: &Session, source: &ModelSource) -> Result<LoadedModel> {
    load_source(session, source, open_device(session)?.device)
}

fn load_source(session: &Session, source: &ModelSource, device: Device) -> Result<LoadedModel> {
    let config = &session.loaded.config.model;
    use_threads(config.threads)?;
    if device.is_cpu() {
        check_memory(session, source)?;
    }
    let cache = session.home.root().join(HASH_CACHE);
    let mut model =
        models::load_as(source, &device, Some(&cache), plan::quantize(config.quantize))?;
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
    let source = hub::source(&session.loaded.config.model.source)?;
    Ok((source, session.home.root().join(HASH_CACHE)))
}

/// Returns the tokens that a conversation has at least: those of one answer, or the whole context.
pub fn least_tokens(session: &Session, info: &ModelInfo) -> usize {
    session.loaded.config.generation.max_tokens.min(context(session, info))
}

/// Returns the longest conversation that the configuration lets a model have, in tokens.
pub fn context(session: &Session, info: &ModelInfo) -> usize {
    match session.loaded.config.model.context_length {
        0 => info.config.max_position_embeddings,
        limit => limit.min(info.config.max_position_embeddings),
    }
}

/// Refuses a model that cannot fit before a byte of its weights is read. What is wrong with its files is for loading to
/// say.
fn check_memory(session: &Session, source: &ModelSource) -> Result<()> {
    let quantize = plan::quantize(session.loaded.config.model.quantize);
    let (Ok(info), Some(there)) = (models::inspect(source, quantize), available_memory()) else {
        return Ok(());
    };
    let tokens = least_tokens(session, &info);
    let needed = info.needed(tokens);
    if needed <= there {
        return Ok(());
    }
    let smaller = models::inspect(source, Some(Quantize::Q4_0)).map(|info| info.needed(tokens));
    let quantized = match smaller {
        Ok(smaller) if smaller <= there => {
            format!("set model.quantize = \"q4_0\" (it then needs {}), ", bytes(smaller))
        }
        _ => String::new(),
    };
    bail!(
        "the model {source} needs {} of memory ({} of weights, {} of key/value cache for an answer of {tokens} tokens) and \
         {} is available: {quantized}choose a smaller model, or free memory",
        bytes(needed),
        bytes(info.weight_bytes),
        bytes(info.cache_bytes_per_token * tokens as u64),
        bytes(there),
    )
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
