//! The model of the configuration, or another that the user names: its hash, and the model itself on its device.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use candle_core::{Device, DeviceLocation};

use super::context::Session;
use super::download;
use crate::actors::base::{Base, CurrentBase, ModelOpener};
use crate::app::{self, Setup};
use crate::config::ModelSection;
use crate::device::{self, Opened};
use crate::domain::AdapterId;
use crate::hub::{self, Hub, HubError, Resolved};
use crate::lora::{self, LoraAdapter};
use crate::models::{self, LoadedModel, ModelInfo, ModelSource, Quantize};
use crate::plan;
use crate::store::JobBase;
use crate::text::bytes;
use crate::worker::available_memory;

/// Hashes of models' files, so that gigabytes are hashed once; in the data directory.
const HASH_CACHE: &str = "model_hashes.json";

/// What is needed to load models after the session is gone.
#[derive(Clone)]
struct Loading {
    config: ModelSection,
    max_tokens: usize,
    hash_cache: PathBuf,
}

impl Loading {
    fn of(session: &Session) -> Self {
        let config = &session.loaded.config;
        Self {
            config: config.model.clone(),
            max_tokens: config.generation.max_tokens,
            hash_cache: session.home.root().join(HASH_CACHE),
        }
    }

    fn quantize(&self) -> Option<Quantize> {
        plan::quantize(self.config.quantize)
    }

    fn hash(&self, source: &ModelSource) -> Result<String> {
        Ok(models::base_hash(source, Some(&self.hash_cache))?)
    }

    fn load(&self, source: &ModelSource, device: &Device) -> Result<LoadedModel> {
        if device.is_cpu() {
            self.check_memory(source)?;
        }
        let cache = Some(self.hash_cache.as_path());
        let mut model = models::load_as(source, device, cache, self.quantize())?;
        if self.config.context_length > 0 {
            model.context_length = model.context_length.min(self.config.context_length);
        }
        Ok(model)
    }

    /// Loads a model for the actors.
    fn base(&self, source: ModelSource, device: &Device) -> Result<Base> {
        let model = self.load(&source, device)?;
        let opened = app::Opened {
            device: name_of(model.decoder.device()),
            model,
            source,
            hash_cache: Some(self.hash_cache.clone()),
            choice: self.config.device,
            limits: plan::engine_limits(&self.config),
        };
        Ok(opened.into())
    }

    /// Returns the longest conversation that the configuration lets a model have, in tokens.
    fn context(&self, info: &ModelInfo) -> usize {
        match self.config.context_length {
            0 => info.config.max_position_embeddings,
            limit => limit.min(info.config.max_position_embeddings),
        }
    }

    /// Refuses a model that cannot fit before a byte of its weights is read. What is wrong with its files is for loading
    /// to say.
    fn check_memory(&self, source: &ModelSource) -> Result<()> {
        let info = models::inspect(source, self.quantize());
        let (Ok(info), Some(there)) = (info, available_memory()) else {
            return Ok(());
        };
        let tokens = self.max_tokens.min(self.context(&info));
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
            "the model {source} needs {} of memory ({} of weights, {} of key/value cache for an answer of {tokens} tokens) \
             and {} is available: {quantized}choose a smaller model, or free memory",
            bytes(needed),
            bytes(info.weight_bytes),
            bytes(info.cache_bytes_per_token * tokens as u64),
            bytes(there),
        )
    }
}

/// Returns the content hash of the configured model without loading it.
///
/// # Errors
/// Missing or unreadable files.
pub fn base_hash(session: &Session) -> Result<String> {
    Loading::of(session).hash(&found(session)?.source)
}

/// Fetches the configured model if it is one of the hub that is not in the cache; shows how far it is on stderr.
///
/// # Errors
/// As [`Hub::pull`].
pub fn fetch(session: &Session, quiet: bool, cancel: &AtomicBool) -> Result<()> {
    let found = match resolve(&session.loaded.config.model.source) {
        Err(HubError::NotCached { id, .. }) => {
            let found = download::pull(&Hub::from_env()?, &id, quiet, cancel)?;
            Resolved::of_hub(id, found)
        }
        found => found?,
    };
    session.model.get_or_init(|| found);
    Ok(())
}

/// Loads the configured model on the configured device, with the configured number of threads.
///
/// # Errors
/// A device that is not there, or files that are no model.
pub fn load(session: &Session) -> Result<LoadedModel> {
    load_from(session, &found(session)?.source)
}

/// Loads a model as the configuration wants it, on the configured device.
///
/// # Errors
/// As [`load`].
pub fn load_from(session: &Session, source: &ModelSource) -> Result<LoadedModel> {
    use_threads(session.loaded.config.model.threads)?;
    Loading::of(session).load(source, &open_device(session)?.device)
}

/// Loads the model and hands over all that the running program is made of.
///
/// # Errors
/// A device that is not there, or files that are no model.
pub fn setup(session: Session) -> Result<Setup> {
    use_threads(session.loaded.config.model.threads)?;
    let opened = open_device(&session)?;
    let loading = Loading::of(&session);
    let Resolved { source, of_hub } = found(&session)?.clone();
    let base = loading.base(source, &opened.device)?;
    let mut notes: Vec<String> = opened.fallback.into_iter().collect();
    notes.extend(of_hub.map(|(id, commit)| format!("model {id}, revision {commit}")));
    Ok(Setup {
        current: CurrentBase::new(base),
        open: opener(loading, opened.device),
        home: session.home,
        config: session.loaded.config,
        notes,
    })
}

/// Loads models while the program runs, beside the one in use.
fn opener(loading: Loading, device: Device) -> ModelOpener {
    Arc::new(move |name, in_use| {
        let open = || -> Result<Option<Base>> {
            let source = resolve(name)?.source;
            if loading.hash(&source)? == in_use {
                return Ok(None);
            }
            loading.base(source, &device).map(Some)
        };
        open().map_err(|error| format!("{error:#}"))
    })
}

/// Returns what a job stores of the configured model, which is not loaded for that.
///
/// # Errors
/// Missing or unreadable files.
pub fn job_base(session: &Session) -> Result<Option<JobBase>> {
    let (source, loading) = (&found(session)?.source, Loading::of(session));
    let (hash, quantize) = (loading.hash(source)?, loading.quantize());
    let info = models::inspect(source, quantize)?;
    let parameters = usize::try_from(info.parameters)?;
    Ok(plan::job_base(&models::name_of(source), source, &hash, quantize, parameters))
}

/// Returns the tokens that a conversation has at least: those of one answer, or the whole context.
pub fn least_tokens(session: &Session, info: &ModelInfo) -> usize {
    session.loaded.config.generation.max_tokens.min(context(session, info))
}

/// Returns the longest conversation that the configuration lets a model have, in tokens.
pub fn context(session: &Session, info: &ModelInfo) -> usize {
    Loading::of(session).context(info)
}

fn open_device(session: &Session) -> Result<Opened> {
    let opened = device::open(session.loaded.config.model.device)?;
    if let Some(reason) = &opened.fallback {
        tracing::info!("device \"auto\": {reason}");
    }
    Ok(opened)
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

/// Returns where the configured model is.
///
/// # Errors
/// A model of the hub that is not in the cache, or not whole.
pub fn source(session: &Session) -> Result<ModelSource> {
    Ok(found(session)?.source.clone())
}

/// Returns the configured model, which is looked for once.
fn found(session: &Session) -> Result<&Resolved, HubError> {
    if let Some(found) = session.model.get() {
        return Ok(found);
    }
    let found = resolve(&session.loaded.config.model.source)?;
    Ok(session.model.get_or_init(|| found))
}

/// Finds the model that a text names, as `model.source` does.
///
/// # Errors
/// A model of the hub that is not in the cache, or not whole.
pub fn find(name: &str) -> Result<ModelSource> {
    Ok(resolve(name)?.source)
}

/// Finds the model that `--model`, `model.source` and `/model` name; files by their whole path, as jobs may run in another
/// working directory.
fn resolve(name: &str) -> Result<Resolved, HubError> {
    let whole = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let found = hub::resolve(name)?;
    let source = match found.source {
        ModelSource::Builtin => ModelSource::Builtin,
        ModelSource::Dir(path) => ModelSource::Dir(whole(path)),
        ModelSource::Gguf(path) => ModelSource::Gguf(whole(path)),
    };
    Ok(Resolved { source, ..found })
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
