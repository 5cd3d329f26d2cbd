//! `config.json` of a Hugging Face model, read into what the decoder needs.

mod raw;
mod rope;

use std::path::Path;

use serde_json::{Map, Value};

use self::raw::RawConfig;
pub use self::rope::{Rope, RopeScaling};
use super::attention::Heads;
use super::{Activation, ModelError, Module};

/// Which decoder family a model belongs to; the differences are stated by [`ModelConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama: no projection biases unless the config says so.
    Llama,
    /// Mistral: a window over all layers, where there is one.
    Mistral,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norms on the heads of q and k.
    Qwen3,
    /// Gemma 3, text: a window over most layers, norms on both ends of attention and MLP, GELU.
    Gemma3,
    /// Phi-3, 3.5 and 4 mini: q, k and v in one matrix, gate and up in another.
    Phi3,
}

/// The shape of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family, for messages.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// That of layers with a window, where it is another one.
    pub sliding_rope: Option<Rope>,
    /// Per layer the most keys that a query sees, its own included; `None` is all before it.
    pub layer_windows: Vec<Option<usize>>,
    /// Factor on the attention's scores; 1 / √`head_dim` in most families.
    pub attention_scale: f64,
    /// Context length in tokens. With LongRoPE it is the one before stretching: beyond it other frequencies hold for all
    /// positions, and a cache of rotated keys cannot change them.
    pub max_position_embeddings: usize,
    /// Whether the head shares the embedding's weights.
    pub tie_word_embeddings: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norms on the heads of q and k.
    pub qk_norm: bool,
    /// RMS norms on what attention and MLP give, before it is added.
    pub output_norms: bool,
    /// The weights of norms are stored less 1, as the files of Gemma have them.
    pub norm_offset: bool,
    /// Embeddings count √`hidden_size` times.
    pub scaled_embedding: bool,
    /// q, k and v are stored as one matrix (`qkv_proj`), and so are gate and up (`gate_up_proj`).
    pub fused_projections: bool,
    /// The function on the MLP's gate.
    pub activation: Activation,
    /// Ids that end a sequence, as far as the config names them.
    pub eos_token_ids: Vec<u32>,
}

/// No model that this program can hold is larger in any dimension; keeps products from overflowing.
const MAX_DIMENSION: usize = 1 << 24;
/// No model has more layers.
const MAX_LAYERS: usize = 1 << 16;

impl ModelConfig {
    /// Parses the text of a `config.json`; `path` is for messages only.
    ///
    /// # Errors
    /// Malformed JSON, an unknown `model_type`, impossible shapes and unsupported options, each by name.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        let bad = |e: serde_json::Error| {
            ModelError::invalid(path, format!("not a model's config: {e}"), "download it again")
        };
        let keys: Map<String, Value> = serde_json::from_str(text).map_err(bad)?;
        let family = family(keys.get("model_type"), path)?;
        let config = RawConfig::new(keys, family).map_err(bad)?.model(family, path)?;
        config.check(path)?;
        Ok(config)
    }

    /// Returns the input and output width of a projection.
    pub fn projection(&self, module: Module) -> (usize, usize) {
        let q_width = self.num_attention_heads * self.head_dim;
        let kv_width = self.num_key_value_heads * self.head_dim;
        match module {
            Module::QProj => (self.hidden_size, q_width),
            Module::KProj | Module::VProj => (self.hidden_size, kv_width),
            Module::OProj => (q_width, self.hidden_size),
            Module::GateProj | Module::UpProj => (self.hidden_size, self.intermediate_size),
            Module::DownProj => (self.intermediate_size, self.hidden_size),
        }
    }

    /// Returns how a layer's heads lie in a row, and what a query sees.
    pub fn heads(&self, layer: usize) -> Heads {
        Heads {
            queries: self.num_attention_heads,
            keys: self.num_key_value_heads,
            dim: self.head_dim,
            scale: self.attention_scale as f32,
            window: self.window(layer),
        }
    }

    /// Returns the most keys that a query of a layer sees; `None` is all before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.layer_windows.get(layer).copied().flatten()
    }

    fn check(&self, path: &Path) -> Result<(), ModelError> {
        let invalid =
            |problem: String| Err(ModelError::invalid(path, problem, "check the file's origin"));
        let dimensions = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (name, value) in dimensions {
            if value == 0 || value > MAX_DIMENSION {
                return invalid(format!("{name} is {value}, out of 1..={MAX_DIMENSION}"));
            }
        }
        if self.layer_windows.len() != self.num_hidden_layers {
            return invalid(format!("num_hidden_layers is above {MAX_LAYERS}"));
        }
        let scale = self.attention_scale;
        for (name, value) in [("rms_norm_eps", self.rms_norm_eps), ("attention scale", scale)] {
            if !(value.is_finite() && value > 0.0) {
                return invalid(format!("{name} is {value}, not a positive number"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return invalid(format!(
                "{} attention heads cannot share {} key-value heads",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        Ok(())
    }
}

fn unsupported(path: &Path, what: String, remedy: &str) -> ModelError {
    ModelError::Unsupported { path: path.to_owned(), what, remedy: remedy.to_owned() }
}

fn family(model_type: Option<&Value>, path: &Path) -> Result<Family, ModelError> {
    let problem = "not a model's config: it has no model_type";
    let Some(name) = model_type.and_then(Value::as_str) else {
        return Err(ModelError::invalid(path, problem, "download it again"));
    };
    let remedy = match name {
        "llama" => return Ok(Family::Llama),
        "mistral" => return Ok(Family::Mistral),
        "qwen2" => return Ok(Family::Qwen2),
        "qwen3" => return Ok(Family::Qwen3),
        "gemma3_text" => return Ok(Family::Gemma3),
        "phi3" => return Ok(Family::Phi3),
        "gemma3" => "choose a Gemma 3 model without images, whose model_type is gemma3_text",
        _ => "choose a model of the families llama, mistral, qwen2, qwen3, gemma3_text or phi3",
    };
    Err(unsupported(path, format!("model_type \"{name}\""), remedy))
}
