//! What can go wrong with adapters and their training.

use std::path::PathBuf;

use crate::device::DeviceError;
use crate::models::ModelError;

/// An error of an adapter's files.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// A file could not be read or written; the text names it.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A file is there but is no adapter for this model.
    #[error("adapter {path}: {problem}; {remedy}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        remedy: String,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl LoraError {
    /// Whether its files are damaged or missing: to read them again would not help.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Invalid { .. } => true,
            Self::Io(error) => error.kind() == std::io::ErrorKind::NotFound,
            Self::Tensor(_) => false,
        }
    }
}

/// Why a training job failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An adapter could not be read or written.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// A file could not be read or written; the text names it.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The job's input cannot be trained on.
    #[error("{0}")]
    Input(String),
    /// The loss is no number any more.
    #[error(
        "the loss became {loss} at step {step} (examples {examples:?}); lower lora.training.learning_rate"
    )]
    Diverged {
        /// The step, from 1.
        step: usize,
        /// The loss.
        loss: f64,
        /// Ids of the step's examples.
        examples: Vec<i64>,
    },
    /// Training gets worse and worse: it ends early, and the adapter is left to the gate.
    #[error("{why} at step {step}; lower lora.training.learning_rate")]
    Exploded {
        /// The step, from 1.
        step: usize,
        /// Its loss.
        loss: f64,
        /// What was seen.
        why: String,
    },
    /// A tensor that should learn gets no gradient: a defect, never the user's fault.
    #[error("no gradient reaches {0}; this is a defect of shammah, please report it")]
    NoGradient(String),
    /// The job was cancelled; what steps it had done are in its checkpoint.
    #[error("cancelled")]
    Cancelled,
}
