//! From a file's metadata to the model's shape, by way of the keys of `config.json`.
//!
//! A family that [`ModelConfig::parse`] learns is added to [`ARCHITECTURES`], with the keys that are its own.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::divisors;
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
    /// Tensors that divide rotary frequencies, in a family that may have them; the first is used.
    pub divisors: &'static [&'static str],
}

/// Those that are read. Mistral's files say `llama`.
const ARCHITECTURES: [Architecture; 5] = [
    Architecture { name: "llama", model_type: "llama", pairs: true, divisors: &divisors::OF_LLAMA },
    Architecture { name: "qwen2", model_type: "qwen2", pairs: false, divisors: &[] },
    Architecture { name: "qwen3", model_type: "qwen3", pairs: false, divisors: &[] },
    Architecture { name: GEMMA3, model_type: "gemma3_text", pairs: false, divisors: &[] },
    Architecture { name: PHI3, model_type: "phi3", pairs: false, divisors: &divisors::OF_PHI3 },
];

const GEMMA3: &str = "gemma3";
const PHI3: &str = "phi3";
/// Layers of the one Gemma 3 whose scores are scaled by the width of the residual stream; files do not say so.
const GEMMA3_27B_LAYERS: u64 = 62;

/// Keys behind the architecture's name that would change what is computed, and their values that do not.
const NEUTRAL: [(&str, f64); 8] = [
    ("expert_count", 0.0),
    ("rope.scale_linear", 1.0),
    ("logit_scale", 1.0),
    ("embedding_scale", 1.0),
    ("residual_scale", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
];

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

/// Returns the model's shape; `divisors` are those of its frequencies, `eos_token_ids` come from the tokenizer's metadata.
///
/// # Errors
/// Keys that are missing or of another type, shapes that cannot be, options that are not supported, each by name.
pub(super) fn config(
    header: &Header,
    divisors: Option<&[f32]>,
    eos_token_ids: &[u32],
    path: &Path,
) -> Result<ModelConfig, ModelError> {
    let architecture = architecture(header, path)?;
    refuse_other_computations(header, architecture.name, path)?;
    let keys = Keys { metadata: &header.metadata, prefix: architecture.name };
    let mut config = keys.shape(divisors).map_err(|e| invalid(path, e))?;
    let has = |tensor: &str| header.tensors.contains_key(tensor);
    let embedding = header.tensors.get("token_embd.weight");
    let rows = embedding.and_then(|t| t.shape.first().copied());
    let rows = rows.ok_or_else(|| invalid(path, "tensor token_embd.weight is missing".into()))?;
    config.entry("model_type").or_insert(architecture.model_type.into());
    config.insert("vocab_size".into(), rows.into());
    config.insert("tie_word_embeddings".into(), (!has("output.weight")).into());
    config.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
    config.insert("mlp_bias".into(), has("blk.0.ffn_gate.bias").into());
    config.insert("eos_token_id".into(), json!(eos_token_ids));
    let mut config = ModelConfig::parse(&Json::Object(config).to_string(), path)?;
    // Converters add what Gemma's own files have less.
    config.norm_offset = false;
    Ok(config)
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
    fn shape(&self, divisors: Option<&[f32]>) -> Result<Map<String, Json>, String> {
        let hidden = self.needed("embedding_length")?;
        let heads = self.needed("attention.head_count")?;
        let head_dim = match self.count("attention.key_length")? {
            Some(width) => width,
            None if heads > 0 => hidden / heads,
            None => return Err(format!("{} is 0", self.key("attention.head_count"))),
        };
        let rotated = self.count("rope.dimension_count")?;
        let whole = rotated.filter(|_| self.prefix != PHI3);
        let values = self.count("attention.value_length")?;
        for (other, width) in [("attention.value_length", values), ("rope.dimension_count", whole)]
        {
            if let Some(width) = width.filter(|width| *width != head_dim) {
                return Err(format!("{} is {width}, heads are {head_dim} wide", self.key(other)));
            }
        }
        let epsilon = "attention.layer_norm_rms_epsilon";
        let mut config = json!({
            "hidden_size": hidden,
            "intermediate_size": self.needed("feed_forward_length")?,
            "num_hidden_layers": self.needed("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_dim,
            "rms_norm_eps": required(&self.key(epsilon), self.float(epsilon))?,
            "rope_theta": self.float("rope.freq_base")?.unwrap_or(10_000.0),
            "max_position_embeddings": self.needed("context_length")?,
        });
        if let Some(part) = rotated.filter(|part| *part != head_dim) {
            // Half a number more, so that rounding cannot lose one.
            config["partial_rotary_factor"] = ((part as f64 + 0.5) / head_dim as f64).into();
        }
        if let Some(scaling) = self.rope_scaling(divisors)? {
            let original = "original_max_position_embeddings";
            config[original] = scaling[original].clone();
            config["rope_scaling"] = scaling;
        }
        self.windows(&mut config)?;
        match config {
            Json::Object(map) => Ok(map),
            _ => Ok(Map::new()),
        }
    }

    /// Adds the keys of sliding windows, and what else is Gemma's.
    fn windows(&self, config: &mut Json) -> Result<(), String> {
        let window = self.count("attention.sliding_window")?.filter(|window| *window > 0);
        if self.prefix == GEMMA3 {
            let pattern = self.count("attention.sliding_window_pattern")?.unwrap_or(6);
            config["sliding_window"] = window.into();
            config["sliding_window_pattern"] = window.map_or(1, |_| pattern).into();
            config["rope_local_base_freq"] =
                self.float("rope.freq_base_swa")?.unwrap_or(10_000.0).into();
            config["query_pre_attn_scalar"] = match self.needed("block_count")? {
                GEMMA3_27B_LAYERS => {
                    self.needed("embedding_length")? / self.needed("attention.head_count")?.max(1)
                }
                _ => config["head_dim"].as_u64().unwrap_or_default(),
            }
            .into();
            return Ok(());
        }
        let context = self.needed("context_length")?;
        if let Some(window) = window.filter(|window| *window < context) {
            config["use_sliding_window"] = true.into();
            config["sliding_window"] = window.into();
            if self.prefix == "llama" {
                config["model_type"] = "mistral".into();
            }
        }
        Ok(())
    }

    fn rope_scaling(&self, divisors: Option<&[f32]>) -> Result<Option<Json>, String> {
        let key = "rope.scaling.type";
        let factor =
            self.float("rope.scaling.factor")?.filter(|factor| ![0.0, 1.0].contains(factor));
        let implied = factor.map(|_| "linear");
        let kind = self.metadata.text(&self.key(key))?.or(implied).filter(|kind| *kind != "none");
        let kind = match (kind, divisors) {
            (None, None) => return Ok(None),
            (Some(kind), None) => kind,
            (None | Some("longrope"), Some(_)) => "longrope",
            (Some(kind), Some(_)) => {
                return Err(format!("{} is \"{kind}\" beside divisors", self.key(key)));
            }
        };
        let mut scaling = json!({ "rope_type": kind });
        if let Some(divisors) = divisors {
            scaling["short_factor"] = json!(divisors);
        }
        let of_llama = divisors.is_some() && self.prefix != PHI3;
        if of_llama {
            scaling["attention_factor"] = 1.0.into();
        }
        // With YaRN llama.cpp multiplies this factor with the one that follows from the scaling; elsewhere it is the factor.
        let own_factor = "rope.scaling.attn_factor";
        let multiplied = kind == "yarn" && self.float(own_factor)?.is_some_and(|f| f != 1.0);
        if multiplied {
            return Err(format!("{} is not 1, which is not supported", self.key(own_factor)));
        }
        for (name, key) in [
            ("factor", "rope.scaling.factor"),
            ("attention_factor", "rope.scaling.attn_factor"),
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ] {
            let value = self.float(key)?.filter(|_| key != own_factor || kind != "yarn");
            if let Some(value) = value {
                scaling[name] = value.into();
            }
        }
        // Llama's divisors hold in the whole context, Phi's in the part before stretching.
        let original = match of_llama {
            true => None,
            false => self.count("rope.scaling.original_context_length")?,
        };
        if let Some(length) = original {
            scaling["original_max_position_embeddings"] = length.into();
        }
        Ok(Some(scaling))
    }
}
