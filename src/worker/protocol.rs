//! What the program and its worker say to each other.
//!
//! Order: each side sends its hello; the parent one [`Request`], later any number of [`ParentCommand`]s; the worker
//! any number of [`Event`]s, of which one that [ends](Event::ends) the job is the last.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::Confinement;
use crate::lora::Resources;

/// One job: what to compute and where its files go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRequest<I> {
    /// Directory of this job's checkpoints; kept between attempts.
    pub checkpoint_dir: PathBuf,
    /// The directory that the job publishes at its end; it appears there whole or not at all.
    pub out_dir: PathBuf,
    /// What the job computes on.
    pub input: I,
}

/// What the worker may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Niceness, 0 to 19.
    pub nice: i32,
    /// Whether it computes only while a core has nothing else to do (Linux: `SCHED_IDLE`).
    pub idle: bool,
    /// Threads of the compute pool; 0 takes one per core.
    pub threads: usize,
    /// Private memory in bytes (`RLIMIT_DATA`); 0 sets no limit.
    pub memory_bytes: u64,
    /// How much sooner the kernel ends it when memory runs out, 0 to 1000 (Linux).
    pub oom_score_adj: u16,
    /// Whether it may leave core dumps.
    pub core_dumps: bool,
    /// Whether it gives up files and network that its job does not need.
    pub confinement: Confinement,
}

/// The parent's first message after its hello.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request<I> {
    /// The parent's process id: a worker whose parent is already another leaves.
    pub parent_pid: u32,
    /// What the worker may use.
    pub limits: Limits,
    /// The job.
    pub job: JobRequest<I>,
}

/// The parent's later messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParentCommand {
    /// Write a checkpoint and leave.
    Cancel,
}

/// The worker's messages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event<O> {
    /// Sent every second: the process lives; the job last reported something `silent_ms` ago.
    Heartbeat {
        /// Milliseconds since the job's last report, or since its start.
        silent_ms: u64,
    },
    /// The limits are in force: which, in words. Sent before the job begins.
    Isolated(String),
    /// A step of training was done.
    Progress {
        /// The epoch, from 1.
        epoch: usize,
        /// Epochs of the job.
        epochs: usize,
        /// Steps done, counted over all attempts.
        step: usize,
        /// Steps of the job.
        total_steps: usize,
        /// The step's loss.
        loss: f64,
        /// Milliseconds since this worker began.
        elapsed_ms: u64,
        /// Milliseconds that the remaining steps will take at this worker's pace; unknown before its second step.
        eta_ms: Option<u64>,
    },
    /// A checkpoint was written.
    Checkpointed {
        /// The step that a retry goes on from.
        step: usize,
    },
    /// Training is over, measuring has begun.
    Evaluating,
    /// Something the user should read.
    Note(String),
    /// What the job is expected to need and, at its end, what it took; each replaces the one before.
    Resources(Resources),
    /// The job is done and its directory is published.
    Finished(Box<O>),
    /// The job cannot be done; the message names the reason and the remedy.
    Failed(String),
    /// The job stopped because the parent asked for it.
    Cancelled,
    /// A thread of the worker panicked; the process ends.
    Panicked {
        /// The panic's message.
        message: String,
        /// `file:line:column`, if known.
        location: String,
    },
    /// The request could not be read.
    Refused(String),
}

impl<O> Event<O> {
    /// Tells whether no other event may follow.
    pub fn ends(&self) -> bool {
        matches!(
            self,
            Event::Finished(_)
                | Event::Failed(_)
                | Event::Cancelled
                | Event::Panicked { .. }
                | Event::Refused(_)
        )
    }
}
