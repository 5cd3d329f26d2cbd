//! From a file's metadata to the model's shape, by way of the keys of `config.json`.
//!
//! A family that [`ModelConfig::parse`] learns is added to [`ARCHITECTURES`], with the keys that are its own.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::reader::Header;
use super::value::{Metadata, required};
use crate::models::{ModelConfig, ModelError};

/// A family of models, as either side calls it.
pub(super) struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// `model_type`.
    model_type: &'static str,
    /// Whether the rows of q and k are stored in pairs of neighbours, as ggml's first kind of rotation takes them.
    pub pairs: bool,
}

/// Those that are read. Mistral's files say `llama`.
const ARCHITECTURES: [Architecture; 3] = [
    Architecture { name: "llama", model_type: "llama", pairs: true },
    Architecture { name: "qwen2", model_type: "qwen2", pairs: false },
    Architecture { name: "qwen3", model_type: "qwen3", pairs: false },
];

/// Keys behind the architecture's name that would change what is computed, and their values that do not.
const NEUTRAL: [(&str, f64); 7] = [
    ("expert_count", 0.0),
    ("rope.scale_linear", 1.0),
    ("logit_scale", 1.0),
    ("embedding_scale", 1.0),
    ("residual_scale", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attn_logit_softcapping", 0.0),
];

/// The tensor of frequencies by which Llama 3.1 and later stretch their context.
const ROPE_FREQS: &str = "rope_freqs.weight";

fn invalid(path: &Path, problem: String) -> ModelError {
    ModelError::invalid(path, problem, "choose another file of the model")
}

fn unsupported(path: &Path, what: String, remedy: &str) -> ModelError {
    ModelError::Unsupported { path: path.to_owned(), what, remedy: remedy.to_owned() }
}

/// Finds the family of a file.
pub(super) fn architecture(
    header: &Header,
    path: &Path,
) -> Result<&'static Architecture, ModelError> {
    let key = "general.architecture";
    let name = required(key, header.metadata.text(key)).map_err(|e| invalid(path, e))?;
    ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| {
        let names: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
        let remedy = format!("choose a model of the architectures {}", names.join(", "));
        unsupported(path, format!("architecture \"{name}\""), &remedy)
    })
}

/// Returns the model's shape; `eos_token_ids` come from the tokenizer's metadata.
///
/// # Errors
/// Keys that are missing or of another type, shapes that cannot be, options that are not supported, each by name.
pub(super) fn config(
    header: &Header,
    eos_token_ids: &[u32],
    path: &Path,
) -> Result<ModelConfig, ModelError> {
    let architecture = architecture(header, path)?;
    refuse_other_computations(header, architecture.name, path)?;
    let keys = Keys { metadata: &header.metadata, prefix: architecture.name };
    let mut config = keys.shape().map_err(|e| invalid(path, e))?;
    let has = |tensor: &str| header.tensors.contains_key(tensor);
    let embedding = header.tensors.get("token_embd.weight");
    let rows = embedding.and_then(|t| t.shape.first().copied());
    let rows = rows.ok_or_else(|| invalid(path, "tensor token_embd.weight is missing".into()))?;
    config.insert("model_type".into(), architecture.model_type.into());
    config.insert("vocab_size".into(), rows.into());
    config.insert("tie_word_embeddings".into(), (!has("output.weight")).into());
    config.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
    config.insert("mlp_bias".into(), has("blk.0.ffn_gate.bias").into());
    config.insert("eos_token_id".into(), json!(eos_token_ids));
    ModelConfig::parse(&Json::Object(config).to_string(), path)
}

fn refuse_other_computations(header: &Header, name: &str, path: &Path) -> Result<(), ModelError> {
    let metadata = &header.metadata;
    for (key, neutral) in NEUTRAL {
        let key = format!("{name}.{key}");
        match metadata.float(&key).map_err(|e| invalid(path, e))? {
            Some(value) if value != neutral => {
                return Err(unsupported(path, format!("{key} = {value}"), "choose another model"));
            }
            _ => {}
        }
    }
    let flag = format!("{name}.attention.causal");
    if metadata.flag(&flag).map_err(|e| invalid(path, e))? == Some(false) {
        return Err(unsupported(
            path,
            format!("{flag} = false"),
            "choose a model that writes text",
        ));
    }
    if header.tensors.contains_key(ROPE_FREQS) {
        let what = format!("rope scaling \"llama3\" ({ROPE_FREQS})");
        return Err(unsupported(path, what, "choose a model without rope scaling"));
    }
    Ok(())
}

/// The keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn count(&self, name: &str) -> Result<Option<u64>, String> {
        self.metadata.uniform(&self.key(name))
    }

    fn needed(&self, name: &str) -> Result<u64, String> {
        required(&self.key(name), self.count(name))
    }

    fn float(&self, name: &str) -> Result<Option<f64>, String> {
        self.metadata.float(&self.key(name))
    }

    /// Returns what a `config.json` would say of the shape.
    fn shape(&self) -> Result<Map<String, Json>, String> {
        let hidden = self.needed("embedding_length")?;
        let heads = self.needed("attention.head_count")?;
        let head_dim = match self.count("attention.key_length")? {
            Some(width) => width,
            None if heads > 0 => hidden / heads,
            None => return Err(format!("{} is 0", self.key("attention.head_count"))),
        };
        for other in ["attention.value_length", "rope.dimension_count"] {
            if let Some(width) = self.count(other)?.filter(|width| *width != head_dim) {
                return Err(format!("{} is {width}, heads are {head_dim} wide", self.key(other)));
            }
        }
        let epsilon = "attention.layer_norm_rms_epsilon";
        let context = self.needed("context_length")?;
        let mut config = json!({
            "hidden_size": hidden,
            "intermediate_size": self.needed("feed_forward_length")?,
            "num_hidden_layers": self.needed("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_dim,
            "rms_norm_eps": required(&self.key(epsilon), self.float(epsilon))?,
            "rope_theta": self.float("rope.freq_base")?.unwrap_or(10_000.0),
            "max_position_embeddings": context,
        });
        if let Some(scaling) = self.rope_scaling()? {
            config["rope_scaling"] = scaling;
        }
        if let Some(window) = self.count("attention.sliding_window")?.filter(|w| *w < context) {
            config["use_sliding_window"] = true.into();
            config["sliding_window"] = window.into();
        }
        match config {
            Json::Object(map) => Ok(map),
            _ => Ok(Map::new()),
        }
    }

    fn rope_scaling(&self) -> Result<Option<Json>, String> {
        let kind = self.metadata.text(&self.key("rope.scaling.type"))?;
        let Some(kind) = kind.filter(|kind| *kind != "none") else { return Ok(None) };
        let mut scaling = json!({ "rope_type": kind });
        for (name, key) in [
            ("factor", "rope.scaling.factor"),
            ("attention_factor", "rope.scaling.attn_factor"),
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ] {
            if let Some(value) = self.float(key)? {
                scaling[name] = value.into();
            }
        }
        if let Some(length) = self.count("rope.scaling.original_context_length")? {
            scaling["original_max_position_embeddings"] = length.into();
        }
        Ok(Some(scaling))
    }
}
