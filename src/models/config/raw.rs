//! `config.json` as transformers 4 and 5 write it, with what transformers takes where a file says nothing.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::{Activation, ModelError};
use super::rope::{RawRope, RopeReader};
use super::{Family, ModelConfig, Rope, unsupported};

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// The keys of `config.json` that matter here; files hold many more.
#[derive(Deserialize)]
pub(super) struct RawConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    quantization_config: Option<Value>,
    eos_token_id: Option<OneOrMany>,
    // Positions.
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    // Windows.
    use_sliding_window: Option<bool>,
    sliding_window: Option<usize>,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    // Gemma.
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
}

/// What transformers takes where a family's file has no such key; a key that is null stays so.
fn defaults(family: Family) -> Value {
    match family {
        Family::Llama => json!({}),
        Family::Mistral => json!({"num_key_value_heads": 8, "sliding_window": 4096}),
        Family::Qwen2 => json!({"sliding_window": 4096, "max_window_layers": 28}),
        Family::Qwen3 => json!({"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28}),
        Family::Phi3 => json!({"original_max_position_embeddings": 4096}),
        Family::Gemma3 => json!({
            "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 131_072, "tie_word_embeddings": true,
            "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096,
            "sliding_window_pattern": 6, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
            "eos_token_id": 1,
        }),
    }
}

/// The ropes of a model, and the longest context that they serve.
struct Ropes {
    full: Rope,
    sliding: Option<Rope>,
    context: usize,
}

impl RawConfig {
    /// Reads the keys of a family's file, the defaults put in.
    pub fn new(mut keys: Map<String, Value>, family: Family) -> serde_json::Result<Self> {
        if let Value::Object(defaults) = defaults(family) {
            for (key, value) in defaults {
                keys.entry(key).or_insert(value);
            }
        }
        serde_json::from_value(Value::Object(keys))
    }

    /// Returns the model that the file describes.
    pub fn model(self, family: Family, path: &Path) -> Result<ModelConfig, ModelError> {
        self.refuse_unsupported(path)?;
        let heads = self.num_attention_heads;
        let head_dim = self.head_dim.unwrap_or_else(|| self.hidden_size / heads.max(1));
        let Ropes { full, sliding, context } = self.ropes(family, head_dim, path)?;
        let layer_windows = self.layer_windows(family, path)?;
        let gemma = family == Family::Gemma3;
        let scaled_for = self.query_pre_attn_scalar.filter(|_| gemma).unwrap_or(head_dim as f64);
        // Only these families' models look at the keys; Qwen2 has q, k and v biases whatever its config says.
        let biased = matches!(family, Family::Llama | Family::Qwen3 | Family::Gemma3)
            && self.attention_bias.unwrap_or(false);
        Ok(ModelConfig {
            family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim,
            rms_norm_eps: self.rms_norm_eps,
            rope: full,
            sliding_rope: sliding,
            layer_windows,
            attention_scale: scaled_for.powf(-0.5),
            max_position_embeddings: context,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: family == Family::Qwen2 || biased,
            o_bias: biased,
            mlp_bias: family == Family::Llama && self.mlp_bias.unwrap_or(false),
            qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
            output_norms: gemma,
            norm_offset: gemma,
            scaled_embedding: gemma,
            fused_projections: family == Family::Phi3,
            activation: self.activation(family, path)?,
            eos_token_ids: match self.eos_token_id {
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
                None => Vec::new(),
            },
        })
    }

    fn refuse_unsupported(&self, path: &Path) -> Result<(), ModelError> {
        if let Some(quantization) = &self.quantization_config {
            let method = quantization["quant_method"].as_str().unwrap_or("unknown");
            return Err(unsupported(
                path,
                format!("quantization_config of method \"{method}\""),
                "choose the model's full weights (bf16, f16 or f32)",
            ));
        }
        for (name, value) in [
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
        ] {
            if let Some(value) = value {
                let what = format!("{name} = {value}");
                return Err(unsupported(path, what, "choose a model without softcapping"));
            }
        }
        if self.use_bidirectional_attention == Some(true) {
            let what = "use_bidirectional_attention = true".into();
            return Err(unsupported(path, what, "choose a model that writes text"));
        }
        Ok(())
    }

    fn activation(&self, family: Family, path: &Path) -> Result<Activation, ModelError> {
        let (key, value) = match family {
            Family::Gemma3 => ("hidden_activation", &self.hidden_activation),
            _ => ("hidden_act", &self.hidden_act),
        };
        match value.as_deref() {
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
            Some(other) => Err(unsupported(
                path,
                format!("{key} \"{other}\""),
                "choose a model that uses silu or gelu_pytorch_tanh",
            )),
        }
    }

    /// Returns the window of each layer: `layer_types` says which have one, or else the family's older keys.
    fn layer_windows(&self, family: Family, path: &Path) -> Result<Vec<Option<usize>>, ModelError> {
        let window = match family {
            Family::Llama => None,
            Family::Qwen2 | Family::Qwen3 => {
                self.sliding_window.filter(|_| self.use_sliding_window == Some(true))
            }
            Family::Mistral | Family::Phi3 | Family::Gemma3 => self.sliding_window,
        };
        let layers = 0..self.num_hidden_layers.min(super::MAX_LAYERS);
        let implied = |layer: usize| match family {
            Family::Llama => false,
            Family::Mistral | Family::Phi3 => window.is_some(),
            Family::Qwen2 | Family::Qwen3 => {
                window.is_some() && layer >= self.max_window_layers.unwrap_or(usize::MAX)
            }
            Family::Gemma3 => !(layer + 1).is_multiple_of(self.sliding_window_pattern.unwrap_or(6)),
        };
        let invalid =
            |problem: String| ModelError::invalid(path, problem, "check the file's origin");
        let sliding: Vec<bool> = match &self.layer_types {
            None => layers.map(implied).collect(),
            Some(types) if types.len() != layers.len() => {
                let problem = format!("layer_types names {} layers", types.len());
                return Err(invalid(format!("{problem}, not {}", layers.len())));
            }
            Some(types) => {
                types.iter().map(|name| is_sliding(name, path)).collect::<Result<_, _>>()?
            }
        };
        let alike = matches!(family, Family::Llama | Family::Mistral | Family::Phi3);
        if alike && sliding.iter().enumerate().any(|(layer, sliding)| *sliding != implied(layer)) {
            let what = "layer_types against sliding_window in this family".into();
            return Err(unsupported(path, what, "choose a model whose layers are all of one type"));
        }
        match window {
            Some(0) => Err(invalid("sliding_window is 0: no token would see itself".into())),
            None if sliding.contains(&true) => Err(invalid(
                "layer_types names sliding_attention, and sliding_window is none".into(),
            )),
            _ => Ok(sliding.into_iter().map(|sliding| window.filter(|_| sliding)).collect()),
        }
    }

    fn ropes(&self, family: Family, head_dim: usize, path: &Path) -> Result<Ropes, ModelError> {
        let reader = |theta| RopeReader {
            path,
            head_dim,
            max_position_embeddings: self.max_position_embeddings,
            theta,
            partial: self.partial_rotary_factor,
            original: self.original_max_position_embeddings,
            phi3: family == Family::Phi3,
        };
        let theta = self.rope_theta.unwrap_or(10_000.0);
        let scaling = self.rope_scaling.as_ref().filter(|v| has_keys(v));
        let given = self.rope_parameters.as_ref();
        let of_type = |name: &str| given.and_then(|p| p.get(name)).filter(|v| has_keys(v));
        if family == Family::Gemma3 {
            let full = raw_rope(of_type("full_attention").or(scaling), path)?;
            let sliding = raw_rope(of_type("sliding_attention"), path)?;
            let (full, context) = reader(theta).read(&full)?;
            let local = self.rope_local_base_freq.unwrap_or(10_000.0);
            let (sliding, shorter) = reader(local).read(&sliding)?;
            return Ok(Ropes { full, sliding: Some(sliding), context: context.min(shorter) });
        }
        if of_type("full_attention").or(of_type("sliding_attention")).is_some() {
            let what = "rope_parameters by layer type in this family".into();
            return Err(unsupported(path, what, "choose a model with one rope for all layers"));
        }
        let raw = raw_rope(scaling.or(given), path)?;
        let (full, context) = reader(theta).read(&raw)?;
        Ok(Ropes { full, sliding: None, context })
    }
}

fn has_keys(value: &Value) -> bool {
    value.as_object().is_some_and(|keys| !keys.is_empty())
}

fn is_sliding(layer_type: &str, path: &Path) -> Result<bool, ModelError> {
    match layer_type {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(unsupported(
            path,
            format!("layer type \"{other}\""),
            "choose a model of the layer types full_attention and sliding_attention",
        )),
    }
}

fn raw_rope(value: Option<&Value>, path: &Path) -> Result<RawRope, ModelError> {
    let Some(value) = value else {
        return Ok(RawRope::default());
    };
    serde_json::from_value(value.clone()).map_err(|e| {
        ModelError::invalid(path, format!("its rope scaling: {e}"), "check the file's origin")
    })
}
