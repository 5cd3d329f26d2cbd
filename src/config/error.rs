//! What can be wrong with the configuration.

use std::path::PathBuf;

use super::origin::Origin;

/// Why the configuration cannot be used. Each message names the place, the key and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of `--config` does not exist.
    #[error("config file {} does not exist: check the path of --config", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read config file: {source}: make it a readable text file, or remove it")]
    Unreadable {
        /// What the system said; it names the path.
        source: std::io::Error,
    },
    /// A file is far too big to be a configuration.
    #[error("config file {} has {bytes} bytes, more than {limit}: it is not a configuration", path.display())]
    TooBig {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A file is no TOML.
    #[error("{origin}: not valid TOML: {message}: correct this line")]
    Syntax {
        /// The file and line.
        origin: Origin,
        /// What the parser expected.
        message: String,
    },
    /// A key does not exist.
    #[error("{origin}: unknown key \"{key}\": {remedy}")]
    UnknownKey {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: String,
        /// What would be right.
        remedy: String,
    },
    /// A value is of the wrong type.
    #[error("{origin}: {key} is {found}: it must be {expected}")]
    WrongType {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: String,
        /// What it is.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// A value is not one of those allowed.
    #[error("{origin}: {key} = {found} is not allowed: it must be {expected}")]
    OutOfRange {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: String,
        /// What it is.
        found: String,
        /// What is allowed.
        expected: String,
    },
    /// Two values do not fit together.
    #[error("{origin}: {key} {problem}")]
    Conflict {
        /// Where the first one stands.
        origin: Origin,
        /// Its key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A runs file cannot be used at all.
    #[error("runs file {}: {problem}", path.display())]
    Runs {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A text of `--set` is not `KEY=VALUE`.
    #[error("--set \"{text}\" has no \"=\": write --set KEY=VALUE, as in --set lora.rank=8")]
    NotAnAssignment {
        /// The text.
        text: String,
    },
    /// The layers do not give a whole configuration: a mistake in the program.
    #[error("the merged configuration does not fit the program: {0}: report this as a bug")]
    Drift(String),
}
