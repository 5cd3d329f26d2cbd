//! From files to a model that answers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use safetensors::Dtype;

use super::files::{
    self, CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, ModelSource, TOKENIZER, TOKENIZER_CONFIG,
};
use super::weight_file::WeightFile;
use super::{Decoder, ModelConfig, ModelError, Quantize, Tokenizer, Weight, gguf, ops};

/// A model in memory.
#[derive(Clone)]
pub struct LoadedModel {
    /// `builtin`, the name of the directory or file, or `ORG/NAME` in the hub's cache.
    pub name: String,
    /// Hex SHA-256 of config and weights; adapters and caches are pinned to it.
    pub base_hash: String,
    /// The weights.
    pub decoder: Arc<Decoder>,
    /// Text to ids.
    pub tokenizer: Arc<Tokenizer>,
    /// Number of parameters.
    pub parameters: usize,
    /// Longest sequence in tokens.
    pub context_length: usize,
    /// The format that its projections were brought to, if any.
    pub quantize: Option<Quantize>,
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedModel")
            .field("name", &self.name)
            .field("base_hash", &self.base_hash)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

/// Loads a model on `device`; `hash_cache` as in [`super::base_hash`].
///
/// # Errors
/// Missing, truncated or hostile files, unsupported models, no memory: each names the file.
pub fn load(
    source: &ModelSource,
    device: &Device,
    hash_cache: Option<&Path>,
) -> Result<LoadedModel, ModelError> {
    load_as(source, device, hash_cache, None)
}

/// The same with the projections brought to a format of a few bits, if one is given.
///
/// # Errors
/// Those of [`load`]; a device that is not the CPU, rows that do not divide into blocks.
pub fn load_as(
    source: &ModelSource,
    device: &Device,
    hash_cache: Option<&Path>,
    quantize: Option<Quantize>,
) -> Result<LoadedModel, ModelError> {
    if quantize.is_some() && !device.is_cpu() {
        return Err(ModelError::Unsupported {
            path: source.path(CONFIG),
            what: "model.quantize on another device than the CPU".into(),
            remedy: "set model.device = \"cpu\", or model.quantize = \"none\"".into(),
        });
    }
    let (decoder, tokenizer, parameters) = match source {
        ModelSource::Gguf(path) => gguf::load(path, device, gguf::Rows::AsNeeded)?,
        _ => load_directory(source, device, WIDENED_BYTES)?,
    };
    let decoder = match quantize {
        Some(format) => decoder.quantised(format)?,
        None => decoder,
    };
    let context_length = decoder.config().max_position_embeddings;
    Ok(LoadedModel {
        name: name_of(source),
        base_hash: files::base_hash(source, hash_cache)?,
        decoder: Arc::new(decoder),
        tokenizer: Arc::new(tokenizer),
        parameters,
        context_length,
        quantize,
    })
}

/// Checks that a model would load: its config, its tokenizer, and that each tensor is there in its shape. No matrix is
/// read, so that this takes no memory and the time of the tokenizer.
///
/// # Errors
/// Those of [`load`] but for the device's.
pub fn check(source: &ModelSource) -> Result<(), ModelError> {
    match source {
        ModelSource::Gguf(path) => gguf::load(path, &Device::Cpu, gguf::Rows::AsTheyLie)?,
        _ => load_directory(source, &Device::Cpu, 0)?,
    };
    Ok(())
}

/// Loads a directory in Hugging Face layout, widened if its weights have fewer than `widened` bytes; returns the number of
/// parameters as well.
fn load_directory(
    source: &ModelSource,
    device: &Device,
    widened: u64,
) -> Result<(Decoder, Tokenizer, usize), ModelError> {
    let weight_files = source.weight_files()?;
    let config_path = source.path(CONFIG);
    let config_text = String::from_utf8(source.read(CONFIG)?)
        .map_err(|_| ModelError::invalid(&config_path, "not UTF-8", "download the model again"))?;
    let config = ModelConfig::parse(&config_text, &config_path)?;
    let tokenizer = tokenizer_of(source, &config)?;
    check_stop(&tokenizer, source)?;
    let mut tensors = read_tensors(source, &weight_files, device, widened)?;
    let mut parameters = 0;
    let decoder = Decoder::new(config, device, &mut |name, shape| {
        parameters += shape.iter().product::<usize>();
        take(&mut tensors, name, shape, source)
    })?;
    refuse_unused(&tensors)?;
    Ok((decoder, tokenizer, parameters))
}

/// Returns the name of a model, for people: `builtin`, `ORG/NAME` of the hub, or that of its directory or file.
pub fn name_of(source: &ModelSource) -> String {
    match source {
        ModelSource::Builtin => "builtin".to_owned(),
        ModelSource::Dir(path) | ModelSource::Gguf(path) => name_of_path(path),
    }
}

fn name_of_path(dir: &Path) -> String {
    let full = fs_err::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    if let Some(name) = name_on_hub(&full) {
        return name;
    }
    full.file_name().unwrap_or(full.as_os_str()).to_string_lossy().into_owned()
}

/// Returns `ORG/NAME` of a directory `models--ORG--NAME/snapshots/COMMIT`, as the hub's cache has them.
fn name_on_hub(dir: &Path) -> Option<String> {
    let snapshots =
        dir.parent().filter(|parent| parent.file_name() == Some("snapshots".as_ref()))?;
    let repo = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(repo.replacen("--", "/", 1))
}

/// Builds the tokenizer of a directory, with what its other files say of templates and ends.
fn tokenizer_of(source: &ModelSource, config: &ModelConfig) -> Result<Tokenizer, ModelError> {
    let mut ends = config.eos_token_ids.clone();
    if let Some(bytes) = source.read_optional(GENERATION_CONFIG)? {
        let of_generation: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| {
            let path = source.path(GENERATION_CONFIG);
            ModelError::invalid(path, format!("not JSON: {e}"), "download it again")
        })?;
        let ids = &of_generation["eos_token_id"];
        let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
        let ids = ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok());
        ends.extend(ids.filter(|id| (*id as usize) < config.vocab_size));
    }
    let mut texts = source.read_optional(TOKENIZER_CONFIG)?;
    if let Some(template) = source.read_optional(CHAT_TEMPLATE)? {
        let path = source.path(CHAT_TEMPLATE);
        let template = String::from_utf8(template)
            .map_err(|_| ModelError::invalid(&path, "not UTF-8", "download it again"))?;
        let mut config: serde_json::Value = match &texts {
            Some(bytes) => serde_json::from_slice(bytes).unwrap_or_default(),
            None => serde_json::json!({}),
        };
        // What is no object is refused below.
        if let Some(keys) = config.as_object_mut() {
            keys.insert("chat_template".to_owned(), template.into());
            texts = Some(config.to_string().into_bytes());
        }
    }
    let json = source.read(TOKENIZER)?;
    Tokenizer::new(&json, texts.as_deref(), &ends, &source.path(TOKENIZER))
}

/// A model whose end no token marks would answer until its context is full.
fn check_stop(tokenizer: &Tokenizer, source: &ModelSource) -> Result<(), ModelError> {
    if tokenizer.stop_ids().is_empty() {
        return Err(ModelError::invalid(
            source.path(CONFIG),
            "no token ends an answer",
            "add eos_token_id to config.json",
        ));
    }
    Ok(())
}

fn read_tensors(
    source: &ModelSource,
    weight_files: &[String],
    device: &Device,
    widened: u64,
) -> Result<HashMap<String, (PathBuf, Weight)>, ModelError> {
    let files: Vec<WeightFile> =
        weight_files.iter().map(|file| WeightFile::open(source, file)).collect::<Result<_, _>>()?;
    let widened = files.iter().map(WeightFile::data_bytes).sum::<u64>() < widened;
    let mut tensors = HashMap::new();
    for file in files {
        for (name, info) in file.tensors() {
            if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
                return Err(ModelError::invalid(
                    file.path(),
                    format!("tensor {name} has the type {:?}", info.dtype),
                    "choose the model's full weights (bf16, f16 or f32)",
                ));
            }
            let mapped = match ops::fused(device) && !widened {
                true => file.matrix(&info)?,
                false => None,
            };
            let weight = match mapped {
                Some(matrix) => matrix.into(),
                None => {
                    let tensor = file.read(&info)?;
                    let widened = widened && ops::fused(device);
                    let kept = kept_type(tensor.dtype(), info.shape.len(), widened);
                    Weight::Dense(tensor.to_dtype(kept)?.to_device(device)?)
                }
            };
            tensors.insert(name, (file.path().to_owned(), weight));
        }
    }
    Ok(tensors)
}

/// Weight files below so many bytes are widened for the CPU when they are read: that costs little memory, and saves the
/// widening at every use, which counts when a matrix is used for a few tokens at a time.
pub(super) const WIDENED_BYTES: u64 = 64 << 20;

/// Returns the type in which a tensor is kept: matrices in that of their file unless they are `widened`, all else in f32.
pub(super) fn kept_type(dtype: DType, dimensions: usize, widened: bool) -> DType {
    match dtype {
        DType::BF16 | DType::F16 if dimensions == 2 && !widened => dtype,
        _ => DType::F32,
    }
}

/// A weight of a layer that the decoder has no use for (a bias, a scale) would change what the model
/// computes. Heads that tied models carry and frequencies that old files carry would not.
fn refuse_unused(tensors: &HashMap<String, (PathBuf, Weight)>) -> Result<(), ModelError> {
    let unused = |name: &&String| {
        name.starts_with("model.layers.") && !name.ends_with(".rotary_emb.inv_freq")
    };
    match tensors.keys().filter(unused).min() {
        Some(name) => Err(ModelError::invalid(
            &tensors[name].0,
            format!("tensor {name} has no place in the model that config.json describes"),
            "take config.json and weights of the same model",
        )),
        None => Ok(()),
    }
}

fn take(
    tensors: &mut HashMap<String, (PathBuf, Weight)>,
    name: &str,
    shape: &[usize],
    source: &ModelSource,
) -> Result<Weight, ModelError> {
    let Some((path, weight)) = tensors.remove(name) else {
        return Err(ModelError::invalid(
            source.path("*.safetensors"),
            format!("tensor {name} is missing"),
            "download the model again, all shards of it",
        ));
    };
    let dims = weight.shape();
    if dims != shape {
        return Err(ModelError::invalid(
            path,
            format!("tensor {name} has shape {dims:?}, config.json says {shape:?}"),
            "take config.json and weights of the same model",
        ));
    }
    Ok(weight)
}
