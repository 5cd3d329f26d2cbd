//! To the console (and, for [`JobNotice`], to `run_queue`): what happened elsewhere.

use std::path::PathBuf;

use actix::Message as ActixMessage;

use crate::domain::AdapterId;

/// Something happened to a training job. From the training actor, to all subscribers.
///
/// Order per job: `Queued`, then per attempt `Started`, `Expected`, `Progressed`… (any number), `Checkpointed`…, `Evaluating`; a died
/// worker gives `Retrying` and then `Started` again; exactly one of `Succeeded`, `Rejected`, `Failed`, `Cancelled`,
/// `Parked` ends it (a parked job comes back at the next start). Progress may be dropped, the others are not.
/// `Succeeded` is sent after the adapter is live.
#[derive(ActixMessage, Debug, Clone, PartialEq)]
#[rtype(result = "()")]
pub enum JobNotice {
    /// A job is in the queue.
    Queued {
        /// Its number.
        job: i64,
        /// Its domain.
        domain: String,
        /// Examples it will learn.
        examples: usize,
        /// Whether the threshold asked for it (otherwise a person).
        automatic: bool,
    },
    /// Its worker runs.
    Started {
        /// Its number.
        job: i64,
        /// Examples it learns.
        examples: usize,
        /// From 1.
        attempt: u32,
    },
    /// What it is expected to need.
    Expected {
        /// Its number.
        job: i64,
        /// Milliseconds in all.
        ms: u64,
        /// Bytes at the peak.
        bytes: u64,
    },
    /// It made steps.
    Progressed(Progress),
    /// What is done so far survives a crash.
    Checkpointed {
        /// Its number.
        job: i64,
        /// The step.
        step: usize,
    },
    /// Training is done, the gate's measurements are being made.
    Evaluating {
        /// Its number.
        job: i64,
    },
    /// Something that the user should know about it, one line.
    Noted {
        /// Its number.
        job: i64,
        /// The line.
        text: String,
    },
    /// Its worker died; another attempt follows.
    Retrying {
        /// Its number.
        job: i64,
        /// Why.
        reason: String,
        /// The attempt to come.
        attempt: u32,
        /// How many there may be.
        max_attempts: u32,
        /// The pause before it, milliseconds.
        pause_ms: u64,
    },
    /// The gate promoted the adapter, and it is live.
    Succeeded {
        /// Its number.
        job: i64,
        /// The adapter.
        adapter: AdapterId,
        /// Its directory.
        path: PathBuf,
        /// Examples learnt.
        examples: usize,
        /// The last training loss.
        final_loss: f64,
        /// The gate's report, one or two lines for users (`5 better, 1 worse (held-out loss 1.92 → 1.41)`).
        report: String,
        /// Whether it answers in this process already (not in `run_queue`).
        live: bool,
    },
    /// The gate refused the adapter; the old one stays, the examples stay.
    Rejected {
        /// Its number.
        job: i64,
        /// Why, in words.
        reasons: Vec<String>,
        /// Examples tried.
        examples: usize,
        /// The last training loss.
        final_loss: f64,
        /// The gate's report.
        report: String,
    },
    /// It failed for good; the examples stay.
    Failed {
        /// Its number.
        job: i64,
        /// Why.
        error: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// A person cancelled it; the examples stay.
    Cancelled {
        /// Its number.
        job: i64,
    },
    /// The program shuts down: checkpointed, and in the queue for the next start.
    Parked {
        /// Its number.
        job: i64,
        /// The step reached.
        step: usize,
    },
}

impl JobNotice {
    /// Returns the number of the job.
    pub fn job(&self) -> i64 {
        match self {
            JobNotice::Queued { job, .. }
            | JobNotice::Started { job, .. }
            | JobNotice::Expected { job, .. }
            | JobNotice::Checkpointed { job, .. }
            | JobNotice::Evaluating { job }
            | JobNotice::Noted { job, .. }
            | JobNotice::Retrying { job, .. }
            | JobNotice::Succeeded { job, .. }
            | JobNotice::Rejected { job, .. }
            | JobNotice::Failed { job, .. }
            | JobNotice::Cancelled { job }
            | JobNotice::Parked { job, .. } => *job,
            JobNotice::Progressed(progress) => progress.job,
        }
    }

    /// Tells whether no more notices of this job follow in this process.
    pub fn is_end(&self) -> bool {
        matches!(
            self,
            JobNotice::Succeeded { .. }
                | JobNotice::Rejected { .. }
                | JobNotice::Failed { .. }
                | JobNotice::Cancelled { .. }
                | JobNotice::Parked { .. }
        )
    }
}

/// How far a job is, for the prompt: `[job 3 · 41% · loss 1.23]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Its number.
    pub job: i64,
    /// The epoch, from 1.
    pub epoch: usize,
    /// Epochs in all.
    pub epochs: usize,
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub total_steps: usize,
    /// The last step's loss.
    pub loss: f64,
    /// Milliseconds since the worker began.
    pub elapsed_ms: u64,
    /// Milliseconds it will still need, estimated from the steps so far.
    pub eta_ms: Option<u64>,
}

/// Other adapters are live in a domain. From the registry actor, after the inference actor took them: by a promotion,
/// `load`, `unload`, `rollback`, at start, or because another process changed it.
#[derive(ActixMessage, Debug, Clone, PartialEq)]
#[rtype(result = "()")]
pub struct LiveChanged {
    /// The domain.
    pub domain: String,
    /// The adapters; empty for the base.
    pub adapters: Vec<AdapterId>,
    /// Whether another process of the data directory changed it: then nobody here has told the user yet.
    pub elsewhere: bool,
}

/// A line from elsewhere that the user should see (an actor was restarted, the queue is held by another process).
/// From the supervisor and the shutdown task.
#[derive(ActixMessage, Debug, Clone, PartialEq)]
#[rtype(result = "()")]
pub struct Notice(pub String);

/// The program shuts down: stop reading, restore the terminal, then stop the actor. From the shutdown task.
///
/// **Reply:** when the terminal is restored. The wait is bounded.
#[derive(ActixMessage, Debug, Clone, PartialEq)]
#[rtype(result = "()")]
pub struct CloseConsole {
    /// Why, one line for the user.
    pub reason: String,
}
