//! The configuration: layers of values, each checked against its rule, merged by the crate `config`.
//!
//! `config/default.toml` is the only place where a default is written. Errors name the file, the line, the key and
//! what would be right.

mod auto;
mod error;
mod layer;
mod mixture;
mod origin;
mod rules;
mod runs;
mod sections;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use crate::domain::DeviceChoice;
pub use auto::{Auto, Seed};
pub use error::ConfigError;
use layer::Layer;
pub use mixture::Term;
pub use origin::Origin;
pub use runs::{Run, Runs, job_name};
pub use sections::*;

/// The defaults, with their comments.
pub const DEFAULT_TOML: &str = include_str!("../config/default.toml");
/// How the names of environment variables start that set a key.
pub const ENV_PREFIX: &str = "SHAMMAH__";
/// What stands for the dot of a key in the name of an environment variable.
pub const ENV_SEPARATOR: &str = "__";
/// Name of the user's file in the data directory.
pub const FILE_NAME: &str = "config.toml";

/// What [`Config::load`] merges, besides the defaults.
#[derive(Debug, Clone, Default)]
pub struct LoadArgs {
    /// The data directory; its `config.toml` may be absent.
    pub home: Option<PathBuf>,
    /// The file of `--config`; it must exist.
    pub config_file: Option<PathBuf>,
    /// The environment, whole or in part.
    pub env: Vec<(String, String)>,
    /// Texts of `--set`, `KEY=VALUE`, in order.
    pub overrides: Vec<String>,
    /// Values of other flags, in order; they win over everything.
    pub flags: Vec<Flag>,
}

/// The value of a flag that sets a key.
#[derive(Debug, Clone)]
pub struct Flag {
    /// The flag, with its dashes.
    pub name: &'static str,
    /// The key it sets.
    pub key: &'static str,
    /// Its value as typed.
    pub value: String,
}

/// A configuration and where its values come from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The origin of each, by key.
    pub origins: BTreeMap<String, Origin>,
}

impl Config {
    /// Merges the layers: defaults, the data directory's file, `--config`, the environment, `--set`, flags.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML, an unknown key, a value of the wrong type or out of range.
    pub fn load(args: &LoadArgs) -> Result<Loaded, ConfigError> {
        let mut layers = vec![Layer::from_toml(DEFAULT_TOML, &Origin::Default { line: 1 })?];
        if let Some(home) = &args.home {
            layers.extend(Layer::from_file(&home.join(FILE_NAME))?);
        }
        if let Some(path) = &args.config_file {
            layers.push(required_file(path)?);
        }
        layers.push(Layer::from_env(&args.env)?);
        let mut last = Layer::default();
        for text in &args.overrides {
            last.add_assignment(text)?;
        }
        for flag in &args.flags {
            let origin = Origin::Flag { name: flag.name.to_owned() };
            last.add_text(flag.key.to_owned(), &flag.value, origin)?;
        }
        layers.push(last);
        let loaded = merge(layers)?;
        loaded.check_together()?;
        Ok(loaded)
    }

    /// Returns the defaults.
    ///
    /// # Errors
    /// Only if the program was built with defaults that do not fit it.
    pub fn defaults() -> Result<Self, ConfigError> {
        Self::load(&LoadArgs::default()).map(|loaded| loaded.config)
    }
}

impl LoraSection {
    /// Changes some keys of `[lora]` and `[lora.training]` for one job; names are given without the section (`epochs`).
    ///
    /// # Errors
    /// An unknown key, a value of the wrong type or out of range.
    pub fn with_changes(
        &self,
        changes: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, ConfigError> {
        let drift = |error: serde_json::Error| ConfigError::Drift(error.to_string());
        let mut layer = Layer::default();
        let mut whole = serde_json::to_value(self).map_err(drift)?;
        for (name, value) in changes {
            let sections = ["lora.training", "lora"];
            let keys = sections.map(|section| format!("{section}.{name}"));
            let [training, lora] = &keys;
            let key = if rules::rule_of(lora).is_some() { lora } else { training };
            layer.add_json(key.clone(), value, Origin::Job)?;
            let target = if key == lora { &mut whole } else { &mut whole["training"] };
            target[name.as_str()] = value.clone();
        }
        serde_json::from_value(whole).map_err(drift)
    }
}

fn required_file(path: &Path) -> Result<Layer, ConfigError> {
    Layer::from_file(path)?.ok_or_else(|| ConfigError::Missing { path: path.to_owned() })
}

fn merge(layers: Vec<Layer>) -> Result<Loaded, ConfigError> {
    let mut origins = BTreeMap::new();
    let mut builder = config::Config::builder();
    for layer in layers {
        for entry in &layer.entries {
            origins.insert(entry.key.clone(), entry.origin.clone());
        }
        builder = builder.add_source(layer);
    }
    let merged = builder.build().and_then(config::Config::try_deserialize);
    let config = merged.map_err(|error| ConfigError::Drift(error.to_string()))?;
    Ok(Loaded { config, origins })
}

impl Loaded {
    /// Checks what one key alone cannot show.
    fn check_together(&self) -> Result<(), ConfigError> {
        let queue = &self.config.queue;
        if queue.backoff_base_ms > queue.backoff_max_ms {
            return Err(self.conflict(
                "queue.backoff_base_ms",
                format!(
                    "is {}, more than queue.backoff_max_ms = {}: lower the first or raise the second",
                    queue.backoff_base_ms, queue.backoff_max_ms
                ),
            ));
        }
        Ok(())
    }

    fn conflict(&self, key: &str, problem: String) -> ConfigError {
        let origin = self.origins.get(key).cloned().unwrap_or(Origin::Set);
        ConfigError::Conflict { origin, key: key.to_owned(), problem }
    }
}
