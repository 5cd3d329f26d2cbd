//! `config.json` of a Hugging Face model, read into what the decoder needs.

use std::path::Path;

use serde::Deserialize;

use super::attention::Heads;
use super::{ModelError, Module};

/// Which decoder family a model belongs to; the differences are stated by [`ModelConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama: no projection biases unless the config says so.
    Llama,
    /// Qwen2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMS norms on the heads of q and k.
    Qwen3,
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
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Context length in tokens.
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
    /// Ids that end a sequence, as far as the config names them.
    pub eos_token_ids: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// The keys of `config.json` that matter here; files hold many more.
#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    rope_parameters: Option<serde_json::Value>,
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    #[serde(default)]
    use_sliding_window: bool,
    hidden_act: Option<String>,
    quantization_config: Option<serde_json::Value>,
    eos_token_id: Option<OneOrMany>,
}

/// No model that this program can hold is larger in any dimension; keeps products from overflowing.
const MAX_DIMENSION: usize = 1 << 24;

impl ModelConfig {
    /// Parses the text of a `config.json`; `path` is for messages only.
    ///
    /// # Errors
    /// Malformed JSON, an unknown `model_type`, impossible shapes and unsupported options, each by name.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelError> {
        let model_type = serde_json::from_str::<serde_json::Value>(text)
            .ok()
            .and_then(|v| v.get("model_type").and_then(|m| m.as_str().map(str::to_owned)));
        if let Some(name) = &model_type {
            family(name, path)?;
        }
        let raw: RawConfig = serde_json::from_str(text).map_err(|e| {
            ModelError::invalid(path, format!("not a model's config: {e}"), "download it again")
        })?;
        let config = Self::from_raw(raw, path)?;
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

    /// Returns how heads lie in a row.
    pub fn heads(&self) -> Heads {
        Heads {
            queries: self.num_attention_heads,
            keys: self.num_key_value_heads,
            dim: self.head_dim,
        }
    }

    fn from_raw(raw: RawConfig, path: &Path) -> Result<Self, ModelError> {
        let family = family(&raw.model_type, path)?;
        let unsupported = |what: String, remedy: &str| ModelError::Unsupported {
            path: path.to_owned(),
            what,
            remedy: remedy.to_owned(),
        };
        if raw.use_sliding_window {
            return Err(unsupported(
                "use_sliding_window = true".into(),
                "choose a model with full attention",
            ));
        }
        if let Some(act) = raw.hidden_act.as_deref().filter(|a| *a != "silu") {
            return Err(unsupported(
                format!("hidden_act \"{act}\""),
                "choose a model that uses silu",
            ));
        }
        if let Some(quantization) = &raw.quantization_config {
            let method = quantization["quant_method"].as_str().unwrap_or("unknown");
            return Err(unsupported(
                format!("quantization_config of method \"{method}\""),
                "choose the model's full weights (bf16, f16 or f32)",
            ));
        }
        for scaling in [&raw.rope_scaling, &raw.rope_parameters].into_iter().flatten() {
            let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
            if let Some(kind) = kind.and_then(|k| k.as_str()).filter(|k| *k != "default") {
                return Err(unsupported(
                    format!("rope scaling \"{kind}\""),
                    "choose a model without rope scaling",
                ));
            }
        }
        let nested_theta = raw.rope_parameters.as_ref().and_then(|p| p.get("rope_theta")?.as_f64());
        let heads = raw.num_attention_heads;
        Ok(Self {
            family,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim: raw.head_dim.unwrap_or_else(|| raw.hidden_size / heads.max(1)),
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: raw.rope_theta.or(nested_theta).unwrap_or(10_000.0),
            max_position_embeddings: raw.max_position_embeddings,
            tie_word_embeddings: raw.tie_word_embeddings,
            // Qwen2 has these biases whatever its config says, and no key for them.
            qkv_bias: family == Family::Qwen2 || raw.attention_bias.unwrap_or(false),
            o_bias: raw.attention_bias.unwrap_or(false) && family != Family::Qwen2,
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            qk_norm: family == Family::Qwen3,
            eos_token_ids: match raw.eos_token_id {
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
                None => Vec::new(),
            },
        })
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
        for (name, value) in [("rms_norm_eps", self.rms_norm_eps), ("rope_theta", self.rope_theta)]
        {
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
        if !self.head_dim.is_multiple_of(2) {
            return invalid(format!(
                "head_dim {} is odd, rotary embedding needs pairs",
                self.head_dim
            ));
        }
        Ok(())
    }
}

fn family(model_type: &str, path: &Path) -> Result<Family, ModelError> {
    match model_type {
        "llama" => Ok(Family::Llama),
        "qwen2" => Ok(Family::Qwen2),
        "qwen3" => Ok(Family::Qwen3),
        other => Err(ModelError::Unsupported {
            path: path.to_owned(),
            what: format!("model_type \"{other}\""),
            remedy: "choose a model of the families llama, qwen2 or qwen3".into(),
        }),
    }
}
