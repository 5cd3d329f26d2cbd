//! Where a value of the configuration comes from.

use std::fmt;

/// The file name that stands for the built-in defaults.
const BUILT_IN: &str = "default.toml (built in)";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `config/default.toml`, at this line.
    Default {
        /// Counted from 1.
        line: usize,
    },
    /// A file, at this line.
    File {
        /// As given or found.
        path: String,
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable.
    Env {
        /// Its name.
        name: String,
    },
    /// `--set KEY=VALUE`.
    Set,
    /// The request of one training job.
    Job,
    /// A job of a runs file.
    Run {
        /// As given.
        path: String,
        /// Of the key, or of the job; counted from 1.
        line: usize,
        /// The job's place in the file, counted from 1.
        job: usize,
    },
    /// Another flag.
    Flag {
        /// Its name, with the dashes.
        name: String,
    },
}

impl Origin {
    /// The same place at another line, if it is a file.
    pub(super) fn at_line(&self, line: usize) -> Self {
        match self {
            Origin::Default { .. } => Origin::Default { line },
            Origin::File { path, .. } => Origin::File { path: path.clone(), line },
            other => other.clone(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default { line } => write!(f, "{BUILT_IN}:{line}"),
            Origin::File { path, line } => write!(f, "{path}:{line}"),
            Origin::Env { name } => write!(f, "environment variable {name}"),
            Origin::Set => f.write_str("--set"),
            Origin::Job => f.write_str("the job's request"),
            Origin::Run { path, line, job } => write!(f, "{path}:{line}: job {job}"),
            Origin::Flag { name } => f.write_str(name),
        }
    }
}
