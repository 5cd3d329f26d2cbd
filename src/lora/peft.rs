//! PEFT's `adapter_config.json`: what is read of it, what is refused, and what is written.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::LoraError;
use super::adapter::{Factors, LoraConfig, invalid};
use crate::models::{Fused, ModelConfig, Module, Site};

/// The keys that change what an adapter computes.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    rank_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    target_modules: Targets,
    #[serde(default)]
    init_lora_weights: Value,
    #[serde(flatten)]
    rest: HashMap<String, Value>,
}

/// What `target_modules` may be; a pattern is not looked into.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    #[expect(dead_code, reason = "the tensors say what it matched")]
    Pattern(String),
    #[default]
    Absent,
}

/// Ways of setting the first values that leave the base as it is. The others (PiSSA, OLoRA, CorDA,
/// LoftQ) subtract something from the base's weights, so their adapter fits no other base.
const HARMLESS_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What PEFT can do and this program cannot: an adapter that uses one of them is refused by its name.
const UNSUPPORTED: [&str; 13] = [
    "fan_in_fan_out",
    "modules_to_save",
    "layer_replication",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
];

/// The most patterns of a key and the most bytes of one: the file may be anybody's.
const MAX_PATTERNS: usize = 4096;
const MAX_PATTERN_BYTES: usize = 1 << 17;
/// The largest rank that is read, far above any in use: keeps a config from asking for absurd shapes.
const MAX_RANK: usize = 1 << 16;

/// An adapter's configuration as its file says it.
pub(super) struct AdapterConfig {
    /// The shape; `target_modules` is empty, the tensors fill it.
    pub lora: LoraConfig,
    ranks: Patterns<usize>,
    alphas: Patterns<f64>,
    targets: Targets,
}

impl AdapterConfig {
    /// Reads and checks the file's bytes; `path` is for messages.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, LoraError> {
        let peft: PeftConfig = serde_json::from_slice(bytes).map_err(|e| {
            invalid(path, format!("not a PEFT config: {e}"), "export the adapter again")
        })?;
        refuse_unsupported(&peft, path)?;
        let rank = |value: usize| (1..=MAX_RANK).contains(&value);
        if !rank(peft.r) || !peft.lora_alpha.is_finite() {
            let problem = format!("rank {} and alpha {} make no adapter", peft.r, peft.lora_alpha);
            return Err(invalid(path, problem, "export the adapter again"));
        }
        let as_rank =
            |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| rank(*n));
        let as_alpha = |v: &Value| v.as_f64().filter(|a| a.is_finite());
        let patterns = |key| PatternReader { path, key };
        Ok(Self {
            ranks: patterns("rank_pattern").read(peft.rank_pattern, as_rank)?,
            alphas: patterns("alpha_pattern").read(peft.alpha_pattern, as_alpha)?,
            targets: peft.target_modules,
            lora: LoraConfig {
                rank: peft.r,
                alpha: peft.lora_alpha,
                rslora: peft.use_rslora,
                dora: peft.use_dora,
                target_modules: Vec::new(),
            },
        })
    }

    /// Returns the rank of the matrix at a path inside a layer.
    pub fn rank(&self, layer: usize, path: &str) -> usize {
        self.ranks.of(&module_name(layer, path)).unwrap_or(self.lora.rank)
    }

    /// Returns alpha of the matrix at a path inside a layer.
    pub fn alpha(&self, layer: usize, path: &str) -> f64 {
        self.alphas.of(&module_name(layer, path)).unwrap_or(self.lora.alpha)
    }

    /// Checks that the config names the modules that the weights adapt, and no others.
    pub fn check_targets(
        &self,
        modules: &[Module],
        model: &ModelConfig,
        path: &Path,
    ) -> Result<(), LoraError> {
        let Targets::Names(names) = &self.targets else {
            return Ok(());
        };
        // A name may be a whole path; its end is the module, or the matrix of several.
        let named = |name: &str| -> Vec<Module> {
            let end = name.rsplit('.').next().unwrap_or(name);
            match Fused::all(model).find(|fused| fused.name() == end) {
                Some(fused) => fused.parts.to_vec(),
                None => Module::from_name(end).into_iter().collect(),
            }
        };
        let held = |name: &str| named(name).iter().any(|m| modules.contains(m));
        let problem = modules
            .iter()
            .find(|m| !names.iter().any(|n| named(n).contains(m)))
            .map(|m| format!("the weights adapt {}, target_modules does not name it", m.name()))
            .or_else(|| {
                let lacking = names.iter().find(|n| !held(n));
                lacking
                    .map(|n| format!("target_modules names \"{n}\", the weights hold none of it"))
            });
        match problem {
            Some(problem) => Err(invalid(path, problem, "take config and weights of one adapter")),
            None => Ok(()),
        }
    }
}

fn refuse_unsupported(peft: &PeftConfig, path: &Path) -> Result<(), LoraError> {
    if peft.peft_type != "LORA" {
        let problem = format!("peft_type \"{}\" is not supported", peft.peft_type);
        return Err(invalid(path, problem, "only LORA adapters act here"));
    }
    let in_use = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    if let Some(name) = UNSUPPORTED.iter().find(|k| peft.rest.get(**k).is_some_and(in_use)) {
        let problem = format!("its option {name} is not supported");
        return Err(invalid(path, problem, "train it without that option"));
    }
    if peft.rest.get("bias").and_then(Value::as_str).is_some_and(|b| b != "none") {
        let problem = "trained biases are not supported";
        return Err(invalid(path, problem, "train it with bias \"none\""));
    }
    if let Some(init) = peft.init_lora_weights.as_str().filter(|i| !HARMLESS_INITS.contains(i)) {
        let problem =
            format!("init_lora_weights \"{init}\" belongs to a base with changed weights");
        return Err(invalid(path, problem, "convert it to a plain LoRA adapter with PEFT"));
    }
    Ok(())
}

/// Values by regular expressions on a module's name, in the file's order: the first that matches counts.
struct Patterns<T>(Vec<(Regex, T)>);

impl<T: Copy> Patterns<T> {
    fn of(&self, name: &str) -> Option<T> {
        self.0.iter().find(|(pattern, _)| pattern.is_match(name)).map(|(_, value)| *value)
    }
}

struct PatternReader<'a> {
    path: &'a Path,
    /// The key that holds the patterns, for messages.
    key: &'static str,
}

impl PatternReader<'_> {
    fn read<T>(
        &self,
        map: Option<Map<String, Value>>,
        value_of: impl Fn(&Value) -> Option<T>,
    ) -> Result<Patterns<T>, LoraError> {
        let Self { path, key } = self;
        let map = map.unwrap_or_default();
        if map.len() > MAX_PATTERNS {
            let problem = format!("{key} has {} patterns, {MAX_PATTERNS} are read", map.len());
            return Err(invalid(path, problem, "match more modules by each"));
        }
        let read = |(name, value): (String, Value)| {
            let Some(value) = value_of(&value) else {
                let problem = format!("{key} gives \"{name}\" the value {value}");
                return Err(invalid(path, problem, "export the adapter again"));
            };
            // As PEFT matches (get_pattern_key): the whole name, or what follows a dot in it.
            let mut pattern = RegexBuilder::new(&format!(r"\A(?:(.*\.)?({name})$)"));
            let pattern = pattern.size_limit(MAX_PATTERN_BYTES).build().map_err(|_| {
                let problem = format!("{key} has the pattern \"{name}\", which cannot be read");
                invalid(path, problem, "name the modules in it without look-around")
            })?;
            Ok((pattern, value))
        };
        Ok(Patterns(map.into_iter().map(read).collect::<Result<_, _>>()?))
    }
}

/// Returns a matrix' name in the base model.
fn module_name(layer: usize, path: &str) -> String {
    format!("model.layers.{layer}.{path}")
}

/// Returns the text of `adapter_config.json`; `base_name` is for people.
pub(super) fn to_json(
    config: &LoraConfig,
    dropout: f64,
    base_name: &str,
    sites: &BTreeMap<Site, Factors>,
) -> String {
    // By whole names, so that each pattern matches one module whatever the order.
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (site, factors) in sites {
        let name = module_name(site.layer, site.module.path());
        if factors.rank() != config.rank {
            ranks.insert(name.clone(), factors.rank().into());
        }
        if factors.alpha != config.alpha {
            alphas.insert(name, factors.alpha.into());
        }
    }
    let json = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": dropout,
        "use_rslora": config.rslora,
        "target_modules": config.target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_dora": config.dora
    });
    format!("{json:#}\n")
}
