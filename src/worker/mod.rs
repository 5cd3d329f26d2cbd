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
mod confine;
mod curve;
mod machine;
mod meter;
mod monitor;
mod outbox;
mod outcome;
mod starvation;
mod stderr_log;
mod training;
mod verdict;

/// What candle and the C library read from the environment of a process that computes.
///
/// candle's own threads spin at barriers beside those of the pool. glibc's allocator gives each thread an arena of small
/// heaps, which buffers of some megabytes fragment, and hands every large buffer back to the system at once: on a 0.5 B
/// model that cost 40 % more memory and a tenth of the speed. Other C libraries ignore these names.
pub const ENVIRONMENT: [(&str, &str); 4] = [
    ("CANDLE_NUM_THREADS", "1"),
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
    ("MALLOC_TRIM_THRESHOLD_", "4294967296"),
];

pub use child_process::die_with_parent;
pub use confine::Needs;
pub use exit::WorkerExit;
pub use machine::available_memory;
pub use parent::{WorkerConfig, WorkerEvent, WorkerHandle};
pub use protocol::JobRequest;
