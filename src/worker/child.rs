//! The worker: the hidden sub-command that does one job for the program that started it.
//!
//! Requests come on stdin, events go out on what was stdout, the log is stderr. The worker leaves when stdin closes.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::child_process::{self, Channel, EXIT_PARENT_GONE};
use super::codec::{self, CodecError};
use super::confine::{Needs, confine};
use super::protocol::{Event, JobRequest, ParentCommand, Request};
use super::training::Training;
use crate::domain::Confinement;
use crate::lora::Resources;

/// How often the worker says that it lives.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// The least time between two reports of progress: nobody reads more than ten figures a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Stack of the thread that runs the job: candle walks the graph of a training step by recursion.
const JOB_STACK_BYTES: usize = 64 * 1024 * 1024;

/// Exit code of a worker that nobody can use: no program started it, or another version did.
const EXIT_UNUSABLE: u8 = 2;

/// What a worker does for its parent.
pub trait Job: Send + 'static {
    /// What goes in.
    type Input: DeserializeOwned + Send + 'static;
    /// What comes out.
    type Output: Serialize + Send + 'static;

    /// Returns what the job must reach besides its own directories.
    fn needs(&self, _input: &Self::Input) -> Needs {
        Needs::default()
    }

    /// Runs the job: reports what happens, asks `cancelled` often (at every step), publishes `request.out_dir`.
    ///
    /// # Errors
    /// [`JobFailure`]: cancelled, or impossible for a reason the user can read.
    fn run(
        &self,
        request: &JobRequest<Self::Input>,
        report: &mut dyn FnMut(Report),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Self::Output, JobFailure>;
}

/// What a job reports while it runs; it knows no clock.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// A step of training was done.
    Step {
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
    /// What the job is expected to need and, at its end, what it took.
    Resources(Resources),
}

/// Why a job has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobFailure {
    /// It was asked to stop, and did, leaving a checkpoint.
    Cancelled,
    /// It cannot be done; the message names the reason and the remedy.
    Failed(String),
}

/// Runs the product's worker, which trains adapters; the whole of the hidden sub-command.
pub fn main() -> ExitCode {
    main_with(Training)
}

/// Runs the worker with `job` and returns the process's exit code.
///
/// Takes file descriptor 1 first of all: nothing may have been written to stdout before.
pub fn main_with<J: Job>(job: J) -> ExitCode {
    if io::stdin().is_terminal() {
        complain("this command is internal: shammah starts it by itself");
        return ExitCode::from(EXIT_UNUSABLE);
    }
    match work(job) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(EXIT_UNUSABLE)
        }
    }
}

fn work<J: Job>(job: J) -> Result<(), CodecError> {
    let channel = Arc::new(Channel::take_stdout()?);
    child_process::install_panic_hook(&channel);
    child_process::die_with_parent()?;
    channel.hello()?;
    codec::read_hello(&mut io::stdin())?;
    let request = match codec::read_frame::<Request<J::Input>>(&mut io::stdin()) {
        Ok(request) => request,
        Err(error) => return channel.send(&Event::<()>::Refused(error.to_string())),
    };
    if !child_process::is_parent(request.parent_pid) {
        return Err(CodecError::Closed);
    }
    match isolate(&job, &request) {
        Ok(how) => channel.send(&Event::<()>::Isolated(how))?,
        Err(reason) => return channel.send(&Event::<()>::Failed(reason)),
    }
    run_job(job, request.job, &channel)
}

/// Applies the limits and closes what the job does not need; returns what is in force.
fn isolate<J: Job>(job: &J, request: &Request<J::Input>) -> Result<String, String> {
    let limited = child_process::apply(&request.limits)?;
    let JobRequest { checkpoint_dir, out_dir, input } = &request.job;
    let mut needs = job.needs(input);
    needs.write.push(checkpoint_dir.clone());
    needs.write.extend(out_dir.parent().map(Path::to_owned));
    if request.limits.confinement != Confinement::Off {
        // What is not there cannot be opened to it.
        for directory in &needs.write {
            fs_err::create_dir_all(directory).map_err(|e| e.to_string())?;
        }
    }
    let closed = confine(request.limits.confinement, &needs)?;
    child_process::start_pool(request.limits.threads)?;
    Ok(format!("{limited}; {closed}"))
}

fn run_job<J: Job>(
    job: J,
    request: JobRequest<J::Input>,
    channel: &Arc<Channel>,
) -> Result<(), CodecError> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let pulse = Arc::new(Pulse::new());
    watch_parent(&cancelled)?;
    beat(channel, &pulse)?;
    let reporter = Reporter::new(Arc::clone(channel), pulse);
    let running = thread::Builder::new()
        .name("job".to_owned())
        .stack_size(JOB_STACK_BYTES)
        .spawn(move || perform(&job, &request, reporter, &cancelled))?;
    let outcome = running.join().unwrap_or_else(|_| process::exit(EXIT_PARENT_GONE));
    let sent = match outcome {
        Ok(output) => channel.send(&Event::Finished(Box::new(output))),
        Err(JobFailure::Cancelled) => channel.send(&Event::<()>::Cancelled),
        Err(JobFailure::Failed(reason)) => channel.send(&Event::<()>::Failed(reason)),
    };
    match sent {
        Err(error @ (CodecError::TooLarge { .. } | CodecError::Encode(_))) => {
            channel.send(&Event::<()>::Failed(format!("the job's result cannot be sent: {error}")))
        }
        sent => sent,
    }
}

fn perform<J: Job>(
    job: &J,
    request: &JobRequest<J::Input>,
    mut reporter: Reporter,
    cancelled: &AtomicBool,
) -> Result<J::Output, JobFailure> {
    job.run(request, &mut |report| reporter.report(report), &|| cancelled.load(Ordering::Relaxed))
}

/// Listens to the parent: a cancel sets the flag, the end of stdin (or nonsense on it) ends the process at once,
/// because without a parent nobody wants the job; its last checkpoint is on disk.
fn watch_parent(cancelled: &Arc<AtomicBool>) -> io::Result<()> {
    let cancelled = Arc::clone(cancelled);
    thread::Builder::new().name("parent-watch".to_owned()).spawn(move || {
        loop {
            match codec::read_frame(&mut io::stdin()) {
                Ok(ParentCommand::Cancel) => cancelled.store(true, Ordering::Relaxed),
                Err(_) => process::exit(EXIT_PARENT_GONE),
            }
        }
    })?;
    Ok(())
}

/// Says every second that the process lives, and how long its job has been silent.
fn beat(channel: &Arc<Channel>, pulse: &Arc<Pulse>) -> io::Result<()> {
    let (channel, pulse) = (Arc::clone(channel), Arc::clone(pulse));
    thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
        loop {
            thread::sleep(HEARTBEAT_EVERY);
            let beat = Event::<()>::Heartbeat { silent_ms: pulse.silent_ms() };
            if channel.send(&beat).is_err() {
                process::exit(EXIT_PARENT_GONE);
            }
        }
    })?;
    Ok(())
}

/// When the job last reported something.
struct Pulse {
    start: Instant,
    last_ms: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn elapsed_ms(&self) -> u64 {
        millis(self.start.elapsed())
    }

    fn felt(&self) {
        self.last_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    fn silent_ms(&self) -> u64 {
        self.elapsed_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed))
    }
}

/// Adds the time to a job's reports and sends them.
struct Reporter {
    channel: Arc<Channel>,
    pulse: Arc<Pulse>,
    pace: Pace,
    last_progress: Option<Instant>,
}

impl Reporter {
    fn new(channel: Arc<Channel>, pulse: Arc<Pulse>) -> Self {
        Self { channel, pulse, pace: Pace::default(), last_progress: None }
    }

    fn report(&mut self, report: Report) {
        self.pulse.felt();
        let event = match report {
            Report::Step { epoch, epochs, step, total_steps, loss } => {
                let elapsed_ms = self.pulse.elapsed_ms();
                let eta_ms = self.pace.eta_ms(step, total_steps, elapsed_ms);
                if !self.is_due(step == total_steps) {
                    return;
                }
                Event::Progress { epoch, epochs, step, total_steps, loss, elapsed_ms, eta_ms }
            }
            Report::Checkpointed { step } => Event::Checkpointed { step },
            Report::Evaluating => Event::Evaluating,
            Report::Note(text) => Event::Note(text),
            Report::Resources(resources) => Event::Resources(resources),
        };
        if self.channel.send::<()>(&event).is_err() {
            process::exit(EXIT_PARENT_GONE);
        }
    }

    fn is_due(&mut self, last_step: bool) -> bool {
        let due = last_step || self.last_progress.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY);
        if due {
            self.last_progress = Some(Instant::now());
        }
        due
    }
}

/// The pace of this worker's own steps: those of earlier attempts cost it nothing.
#[derive(Default)]
struct Pace {
    first: Option<(usize, u64)>,
}

impl Pace {
    /// Returns the milliseconds that the steps after `step` will take; unknown before the second step seen.
    fn eta_ms(&mut self, step: usize, total_steps: usize, now_ms: u64) -> Option<u64> {
        let (first_step, first_ms) = *self.first.get_or_insert((step, now_ms));
        let done = step.checked_sub(first_step).filter(|&done| done > 0)?;
        let left = total_steps.saturating_sub(step);
        let spent = u128::from(now_ms.saturating_sub(first_ms));
        u64::try_from(spent * left as u128 / done as u128).ok()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes a line to the log, which is stderr; a log that cannot be written has nowhere to complain.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "shammah worker: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_counts_only_this_attempts_steps() {
        let mut pace = Pace::default();
        assert_eq!(pace.eta_ms(51, 100, 4_000), None, "one step tells no pace");
        assert_eq!(pace.eta_ms(52, 100, 4_500), Some(500 * 48));
        assert_eq!(pace.eta_ms(100, 100, 30_000), Some(0));
        assert_eq!(pace.eta_ms(40, 100, 31_000), None, "a step back tells no pace");
    }

    #[test]
    fn a_silent_job_is_seen_in_the_pulse() {
        let pulse = Pulse::new();
        thread::sleep(Duration::from_millis(30));
        assert!(pulse.silent_ms() >= 30);
        pulse.felt();
        assert!(pulse.silent_ms() < 30);
    }
}
