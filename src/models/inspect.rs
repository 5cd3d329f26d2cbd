//! What a model is and how much memory it needs, told from its config and the headers of its weight files.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::files::{CONFIG, ModelSource};
use super::gguf::{GgufFile, TensorInfo as TensorInGguf};
use super::loader::{WIDENED_BYTES, kept_type};
use super::weight_file::WeightFile;
use super::{ModelConfig, ModelError, Quantize};

/// Bytes of a number of the key/value cache, and of norms and biases (f32).
const CACHE_NUMBER: u64 = 4;
/// The process without a model: code, pools, stacks in use, buffers of the products.
const PROCESS_BYTES: u64 = 40 << 20;
/// A token of the tokenizer: its text in both directions, and its merge.
const TOKENIZER_BYTES: u64 = 400;
/// Copies of a tensor that is being widened: its bytes, the tensor, the type that it is kept in. Others are mapped.
const READ_COPIES: u64 = 3;

/// A model, as its files describe it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// `model_type` of its config.
    pub family: String,
    /// Its shape.
    pub config: ModelConfig,
    /// Number of parameters.
    pub parameters: u64,
    /// The types of its matrices in the files, such as `bf16`.
    pub dtype: String,
    /// Bytes of its weight files.
    pub file_bytes: u64,
    /// Bytes of its weights as they are kept in memory.
    pub weight_bytes: u64,
    /// Bytes of the key/value cache for one token.
    pub cache_bytes_per_token: u64,
    /// Bytes of the process, of the tokenizer, and of what only loading needs.
    pub other_bytes: u64,
}

impl ModelInfo {
    /// Returns the memory that the model needs with a conversation of so many tokens, bytes.
    pub fn needed(&self, tokens: usize) -> u64 {
        let cache = self.cache_bytes_per_token.saturating_mul(tokens as u64);
        self.weight_bytes.saturating_add(self.other_bytes).saturating_add(cache)
    }
}

/// Returns the `model_type` that a model's config names, of a family that is supported or not.
pub fn model_type(source: &ModelSource) -> Option<String> {
    if let ModelSource::Gguf(path) = source {
        return GgufFile::open(path).ok()?.architecture().map(str::to_owned);
    }
    let config: serde_json::Value = serde_json::from_slice(&source.read(CONFIG).ok()?).ok()?;
    Some(config["model_type"].as_str()?.to_owned())
}

/// Describes a model without loading it, as it would be kept on the CPU.
///
/// # Errors
/// Missing or broken files, and what is not supported, each by name.
pub fn inspect(source: &ModelSource, quantize: Option<Quantize>) -> Result<ModelInfo, ModelError> {
    if let ModelSource::Gguf(path) = source {
        return inspect_gguf(path, quantize);
    }
    let path = source.path(CONFIG);
    let text = String::from_utf8(source.read(CONFIG)?)
        .map_err(|_| ModelError::invalid(&path, "not UTF-8", "download the model again"))?;
    let config = ModelConfig::parse(&text, &path)?;
    let files = source.weight_files()?;
    let files: Vec<WeightFile> =
        files.iter().map(|file| WeightFile::open(source, file)).collect::<Result<_, _>>()?;
    let file_bytes = files.iter().map(WeightFile::data_bytes).sum();
    let widened = file_bytes < WIDENED_BYTES;
    let (mut parameters, mut weight_bytes, mut largest) = (0, 0, 0);
    let mut types = BTreeSet::new();
    for (name, tensor) in files.iter().flat_map(WeightFile::tensors) {
        if !is_used(&name, &config) {
            continue;
        }
        let kept = kept_bytes(&name, &tensor, widened, quantize);
        parameters += numbers(&tensor);
        weight_bytes += kept;
        let read = (tensor.data_offsets.1 - tensor.data_offsets.0) as u64;
        largest = largest.max(read);
        if tensor.shape.len() == 2 {
            types.insert(format!("{:?}", tensor.dtype).to_lowercase());
        }
    }
    Ok(ModelInfo {
        family: model_type(source).unwrap_or_default(),
        parameters,
        dtype: types.into_iter().collect::<Vec<_>>().join(", "),
        file_bytes,
        weight_bytes,
        cache_bytes_per_token: cache_bytes_per_token(&config),
        other_bytes: PROCESS_BYTES
            + if widened { READ_COPIES * largest } else { 0 }
            + TOKENIZER_BYTES * config.vocab_size as u64,
        config,
    })
}

fn inspect_gguf(path: &Path, quantize: Option<Quantize>) -> Result<ModelInfo, ModelError> {
    let file = GgufFile::open(path)?;
    let (config, description) = (file.config()?, file.describe()?);
    let matrices = file.tensors().filter(|tensor| tensor.shape.len() == 2);
    let types: BTreeSet<_> = matrices.map(|tensor| tensor.kind.name()).collect();
    let kept = |tensor: &TensorInGguf| {
        let count = tensor.elements();
        let &[_, cols] = tensor.shape.as_slice() else { return CACHE_NUMBER * count };
        let place = match tensor.name.as_str() {
            "token_embd.weight" => "model.embed_tokens.weight",
            "output.weight" => "lm_head.weight",
            other => other,
        };
        let format = quantize.filter(|_| tensor.kind.block() == 1);
        match format.map(|format| at_place(place, format).format(cols)) {
            Some(Ok(format)) => count / format.block() as u64 * format.block_bytes() as u64,
            _ => tensor.bytes,
        }
    };
    Ok(ModelInfo {
        family: file.architecture().unwrap_or_default().to_owned(),
        parameters: description.parameters,
        dtype: types.into_iter().collect::<Vec<_>>().join(", "),
        file_bytes: description.bytes,
        weight_bytes: file.tensors().map(kept).sum(),
        cache_bytes_per_token: cache_bytes_per_token(&config),
        other_bytes: PROCESS_BYTES + TOKENIZER_BYTES * config.vocab_size as u64,
        config,
    })
}

fn cache_bytes_per_token(config: &ModelConfig) -> u64 {
    let sizes = [config.num_hidden_layers, config.num_key_value_heads, config.head_dim];
    sizes.into_iter().fold(2 * CACHE_NUMBER, |product, n| product.saturating_mul(n as u64))
}

/// Whether the decoder takes a tensor: not the head that tied models carry, nor the frequencies of old files.
fn is_used(name: &str, config: &ModelConfig) -> bool {
    let spare_head = config.tie_word_embeddings && name == "lm_head.weight";
    !spare_head && !name.ends_with(".rotary_emb.inv_freq")
}

fn numbers(tensor: &TensorInfo) -> u64 {
    tensor.shape.iter().map(|&n| n as u64).product()
}

fn kept_bytes(name: &str, tensor: &TensorInfo, widened: bool, quantize: Option<Quantize>) -> u64 {
    let count = numbers(tensor);
    if let (Some(format), &[_, cols]) = (quantize, tensor.shape.as_slice())
        && let Ok(format) = at_place(name, format).format(cols)
    {
        return count / format.block() as u64 * format.block_bytes() as u64;
    }
    let dtype = match tensor.dtype {
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        _ => DType::F32,
    };
    count * kept_type(dtype, tensor.shape.len(), widened).size_in_bytes() as u64
}

/// The format that a matrix is brought to: embedding and head keep 8 bits.
fn at_place(name: &str, format: Quantize) -> Quantize {
    match name {
        "model.embed_tokens.weight" | "lm_head.weight" => Quantize::Q8_0,
        _ => format,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::{self, Quantize};

    /// Bytes of norms and biases, which [`models::Decoder::weight_bytes`] leaves out.
    fn vectors(info: &ModelInfo) -> u64 {
        let c = &info.config;
        let layer = 2 * c.hidden_size + if c.qk_norm { 2 * c.head_dim } else { 0 };
        4 * (c.num_hidden_layers * layer + c.hidden_size) as u64
    }

    #[test]
    fn what_is_told_is_what_the_loaded_model_has() {
        let source = ModelSource::Builtin;
        for quantize in [None, Some(Quantize::Q8_0), Some(Quantize::Q4_0), Some(Quantize::Q4K)] {
            let info = inspect(&source, quantize).unwrap();
            let model = models::load_as(&source, &Device::Cpu, None, quantize).unwrap();
            assert_eq!(info.parameters, model.parameters as u64);
            assert!(!info.config.qkv_bias, "no biases to count below");
            assert_eq!(
                info.weight_bytes,
                model.decoder.weight_bytes() + vectors(&info),
                "{quantize:?}"
            );
            assert_eq!(&info.config, model.decoder.config());
        }
        let info = inspect(&source, None).unwrap();
        assert!(info.file_bytes < source.weight_bytes().unwrap(), "a file has a header, too");
        assert_eq!(info.needed(10) - info.needed(0), 10 * info.cache_bytes_per_token);
    }
}
