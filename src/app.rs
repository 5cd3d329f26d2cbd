//! The running program: starts the actors, waits for the end, and ends them in order.
//!
//! Three ways to run: [`run_console`] with a person or a script in front of it, [`run_queue`] until some jobs have ended, and
//! [`run_service`] for the queue as a service. All build the same [`team`], all end through [`shutdown`].

mod base;
mod console;
mod notify;
mod queue;
mod reload;
mod service;
mod shutdown;
mod signals;
mod team;

use std::path::PathBuf;

use crate::actors::base::{CurrentBase, ModelOpener};
use crate::config::Config;
use crate::messages::ActorError;
use crate::store::{Home, StoreError};

pub use base::Opened;
pub use console::run_console;
pub use queue::{QueueEnd, run_queue};
pub use service::{OnSaid, ReadConfig, Said, run_service};

/// Exit code of a program that was interrupted by a signal.
pub const INTERRUPTED: u8 = 130;

/// What a running program is made of.
pub struct Setup {
    /// The data directory.
    pub home: Home,
    /// The configuration.
    pub config: Config,
    /// The model in use.
    pub current: CurrentBase,
    /// Loads another.
    pub open: ModelOpener,
    /// Lines that the user should see at the start.
    pub notes: Vec<String>,
}

/// Why the program could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Another process runs the queue of this data directory. Exit code 75.
    #[error(
        "the queue of {home} is run by another process{}: end that one, or choose another data directory with --home",
        .holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    QueueHeld {
        /// The data directory.
        home: PathBuf,
        /// The process, as far as the lock file tells.
        holder: Option<u32>,
    },
    /// The data directory refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An actor refused at the start.
    #[error("{0}")]
    Actor(#[from] ActorError),
    /// The system gave no thread, signal handler or terminal.
    #[error("cannot {action}: {source}")]
    System {
        /// What was being done, as an infinitive.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl From<team::TeamError> for AppError {
    fn from(error: team::TeamError) -> Self {
        match error {
            team::TeamError::Store(error) => Self::Store(error),
            team::TeamError::Program(source) => {
                Self::System { action: "find the program's own file, which trains too", source }
            }
        }
    }
}

impl AppError {
    /// Says that another process runs the queue.
    pub fn held(home: &Home) -> Self {
        Self::QueueHeld { home: home.root().to_owned(), holder: home.queue_holder() }
    }

    fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}
