//! What can go wrong between a model's files and its logits.

use std::path::PathBuf;

/// An error of the model layer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read; the text names it.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A file is there but not what a model needs.
    #[error("{path}: {problem}; {remedy}")]
    Invalid {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        remedy: String,
    },
    /// The model type or an option of it has no implementation here.
    #[error("{path}: {what} is not supported; {remedy}")]
    Unsupported {
        /// The config file.
        path: PathBuf,
        /// The option, by name.
        what: String,
        /// What is supported.
        remedy: String,
    },
    /// A text could not be tokenized or a template not be rendered.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl ModelError {
    /// Makes an [`ModelError::Invalid`].
    pub fn invalid(
        path: impl Into<PathBuf>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Invalid { path: path.into(), problem: problem.into(), remedy: remedy.into() }
    }
}
