//! The training process: started, watched, stopped and heard by its parent.
//!
//! Training runs in a child of the same binary, so that a panic, an abort, a stack overflow, an exhausted memory or a
//! hang takes down the job and never the chat. [`parent`] is the side of the program, [`child`] that of the hidden
//! sub-command `worker`; between them go the frames of [`codec`] with the messages of [`protocol`].
//!
//! The machinery knows nothing of training: a [`child::Job`] says what goes in and what comes out. The product's job is
//! in `training.rs`.

pub mod child;
pub mod codec;
pub mod exit;
pub mod parent;
pub mod protocol;

mod child_process;
mod meter;
mod monitor;
mod outbox;
mod outcome;
mod stderr_log;
mod training;
mod verdict;

pub use exit::WorkerExit;
pub use parent::{WorkerConfig, WorkerEvent, WorkerHandle};
pub use protocol::JobRequest;
