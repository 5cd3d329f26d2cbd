//! The program's side of a worker: starts it, watches it, stops it, tells how it ended.
//!
//! One thread, the *monitor*, lives as long as its worker: it starts the process (the kernel ends a worker with the
//! thread that started it), reads the clock and delivers events. Two more feed the worker's stdin and keep its log, a
//! fourth reads its frames. Nothing here waits on an async runtime or makes one wait.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::exit::WorkerExit;
use super::monitor;
use super::protocol::{JobRequest, Limits};
use crate::eval::Measurements;
use crate::lora::Resources;

/// The sub-command that makes the program a worker.
pub const WORKER_COMMAND: &str = "worker";

/// How long a cancelled worker may take to write its checkpoint and leave before it is killed: the whole program ends
/// within ten seconds of SIGTERM.
pub const CANCEL_GRACE: Duration = Duration::from_secs(6);

/// How long a worker may give no sign of life. Long: at the lowest priority beside a busy chat it may hardly run.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a job may report nothing (loading a model, one step, one checkpoint, the whole evaluation).
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// How a worker is started and how long its parent has patience.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The executable: the program's own, `std::env::current_exe()`.
    pub exe: PathBuf,
    /// Its arguments: the hidden sub-command.
    pub args: Vec<OsString>,
    /// What the worker may use.
    pub limits: Limits,
    /// How long the whole attempt may take; `None` for ever.
    pub timeout: Option<Duration>,
    /// How long the process may give no sign of life.
    pub heartbeat_timeout: Duration,
    /// How long its job may report nothing.
    pub stall_timeout: Duration,
    /// How long a cancelled worker may take to leave.
    pub cancel_grace: Duration,
    /// Where the worker's stderr goes; `None` keeps only its end in memory.
    pub log_path: Option<PathBuf>,
}

impl WorkerConfig {
    /// Makes the configuration for `exe` with these limits, no time limit, no log file and the usual patience.
    pub fn new(exe: PathBuf, limits: Limits) -> Self {
        Self {
            exe,
            args: vec![WORKER_COMMAND.into()],
            limits,
            timeout: None,
            heartbeat_timeout: HEARTBEAT_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
            cancel_grace: CANCEL_GRACE,
            log_path: None,
        }
    }
}

/// What a worker's owner hears. [`WorkerEvent::Ended`] comes exactly once and last; a channel that closes without it
/// tells that the monitor itself fell, and its worker with it.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerEvent<O = Measurements> {
    /// The process runs.
    Started {
        /// Its process id.
        pid: u32,
    },
    /// Which limits are in force, in words.
    Isolated(String),
    /// A step of training was done; older figures that nobody read are dropped.
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
    /// The end of the log of a worker that did not do its job.
    LogTail(String),
    /// The process is gone.
    Ended(WorkerExit<O>),
}

/// What the owner wants of the worker; only ever raised.
#[derive(Debug, Default)]
pub(super) struct Wish(AtomicU8);

impl Wish {
    const CANCEL: u8 = 1;
    const KILL: u8 = 2;

    fn raise(&self, wish: u8) {
        self.0.fetch_max(wish, Ordering::Relaxed);
    }

    /// Tells whether the worker should leave.
    pub(super) fn cancel(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= Self::CANCEL
    }

    /// Tells whether it should leave without a checkpoint.
    pub(super) fn kill(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= Self::KILL
    }
}

/// A running worker. Dropping the handle, or the receiver of its events, cancels the job.
#[derive(Debug)]
pub struct WorkerHandle {
    wish: Arc<Wish>,
}

impl WorkerHandle {
    /// Starts a worker for `job`; returns at once. Everything that happens, a failure to start included, comes through
    /// `events`; a slow reader of them loses running figures, never a turn of the job.
    pub fn spawn<I, O>(
        config: WorkerConfig,
        job: JobRequest<I>,
        events: mpsc::Sender<WorkerEvent<O>>,
    ) -> Self
    where
        I: Serialize + Send + 'static,
        O: DeserializeOwned + Send + 'static,
    {
        let wish = Arc::new(Wish::default());
        let (seen, refused) = (Arc::clone(&wish), events.clone());
        let started = thread::Builder::new()
            .name("worker-monitor".to_owned())
            .spawn(move || monitor::run(&config, job, events, &seen));
        if let Err(error) = started {
            // A full channel would mean that the caller put other events into it; the drop of the sender tells it too.
            let reason = format!("no thread for its monitor: {error}");
            let _ = refused.try_send(WorkerEvent::Ended(WorkerExit::NotStarted(reason)));
        }
        Self { wish }
    }

    /// Asks the worker to write a checkpoint and leave; it is killed after the grace. The end comes as
    /// [`WorkerExit::Cancelled`], also if the job finished in that moment.
    pub fn cancel(&self) {
        self.wish.raise(Wish::CANCEL);
    }

    /// Kills the worker; its last checkpoint stays. The end comes as [`WorkerExit::Cancelled`].
    pub fn kill(&self) {
        self.wish.raise(Wish::KILL);
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.cancel();
    }
}
