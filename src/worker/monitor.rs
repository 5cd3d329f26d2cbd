//! The monitor of one worker: a loop that hears the process, watches the clock, and decides how it ended.

use std::io::{self, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use super::codec::{self, CodecError};
use super::exit::WorkerExit;
use super::outbox::{self, Outbox};
use super::parent::{Wish, WorkerConfig, WorkerEvent};
use super::protocol::{Event, JobRequest, Limits, ParentCommand, Request};
use super::starvation::Silence;
use super::stderr_log::{self, Tail};
use super::verdict::{self, Verdict};

/// How often the monitor looks at the clock, the owner's wishes and the process: soon enough for a person.
const TICK: Duration = Duration::from_millis(50);

/// The most that one turn of the loop may add to the silence of a worker: a program that was stopped itself (Ctrl-Z)
/// must not take its own sleep for the worker's.
const MAX_TURN: Duration = Duration::from_secs(1);

/// Returns what a user is told of a worker that gets no processor.
fn waits_for_processor(limits: &Limits) -> String {
    let remedy = match limits {
        Limits { idle: true, .. } => "worker.idle = false gives it a share",
        Limits { nice: 1.., .. } => "a smaller worker.nice gives it a larger share",
        _ => "fewer of them leave it more",
    };
    format!(
        "it waits for a processor: other programs keep the machine busy, and training takes what they leave ({remedy})"
    )
}

/// How long a worker may take to leave after its last word.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// How long to wait for a killed process, and for the ends of its streams; then it is given up.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Frames between the reading thread and the monitor; a worker that says more waits.
const MAX_FRAMES: usize = 64;

/// Commands between the monitor and the writing thread: there is one, and it is sent once.
const MAX_COMMANDS: usize = 1;

/// The end of the log is told once.
const MAX_TAILS: usize = 1;

/// What the reading thread brings.
enum Incoming<O> {
    Event(Event<O>),
    End(CodecError),
}

/// Runs a worker from its start to its end; the body of the monitor's thread.
pub fn run<I, O>(
    config: &WorkerConfig,
    job: JobRequest<I>,
    events: Sender<WorkerEvent<O>>,
    wish: &Wish,
) where
    I: Serialize,
    O: DeserializeOwned + Send + 'static,
{
    let mut outbox = Outbox::new(events);
    let (last, child) = match Monitor::start(config, job, wish) {
        Ok(mut monitor) => (monitor.watch(&mut outbox), Some(monitor.child)),
        Err(reason) => (WorkerExit::NotStarted(reason), None),
    };
    outbox.close(WorkerEvent::Ended(last));
    if let Some(mut child) = child {
        // Already reaped, or a killed process that the kernel holds on to: then this thread waits, nobody else.
        let _ = child.wait();
    }
}

struct Monitor<'a, O> {
    config: &'a WorkerConfig,
    wish: &'a Wish,
    child: Child,
    incoming: Receiver<Incoming<O>>,
    commands: SyncSender<ParentCommand>,
    log: Receiver<Tail>,
    started: Instant,
    /// How long nothing was heard, as far as the monitor itself was awake.
    silence: Silence,
    turn: Instant,
    /// When the process has to be gone.
    leave_by: Option<Instant>,
    killed: Option<Instant>,
    stream_ended: bool,
    gone: Option<Instant>,
    verdict: Verdict<O>,
    /// How many processes the kernel had killed for memory before.
    memory_kills: u64,
}

impl<'a, O: DeserializeOwned + Send + 'static> Monitor<'a, O> {
    fn start<I: Serialize>(
        config: &'a WorkerConfig,
        job: JobRequest<I>,
        wish: &'a Wish,
    ) -> Result<Self, String> {
        let request =
            Request { parent_pid: std::process::id(), limits: config.limits.clone(), job };
        let request =
            codec::encode(&request).map_err(|e| format!("the job cannot be sent to it: {e}"))?;
        let memory_kills = verdict::memory_kills();
        let mut child = command(config).spawn().map_err(|error| cannot_start(config, &error))?;
        match attach(&mut child, request, config) {
            Ok((incoming, commands, log)) => {
                let now = Instant::now();
                let silence = Silence::of(child.id(), now);
                Ok(Self {
                    config,
                    wish,
                    child,
                    incoming,
                    commands,
                    log,
                    started: now,
                    silence,
                    turn: now,
                    leave_by: None,
                    killed: None,
                    stream_ended: false,
                    gone: None,
                    verdict: Verdict::default(),
                    memory_kills,
                })
            }
            Err(error) => {
                kill_group(&child);
                let _ = child.wait();
                Err(format!("no threads to attend it: {error}"))
            }
        }
    }

    /// Watches until the process is gone (or cannot be got rid of); returns how it ended.
    fn watch(&mut self, outbox: &mut Outbox<O>) -> WorkerExit<O> {
        outbox.push(WorkerEvent::Started { pid: self.child.id() });
        while !self.is_over() {
            self.hear(outbox);
            self.mind_owner(outbox.flush());
            self.mind_clock();
            self.mind_process();
        }
        let tail = self.log.recv_timeout(KILL_WAIT).unwrap_or_default();
        let kills = verdict::memory_kills().saturating_sub(self.memory_kills);
        let exit = std::mem::take(&mut self.verdict).pass(&tail, kills);
        if exit.leaves_questions()
            && let Some(words) = stderr_log::last_words(&tail, self.config.log_path.as_ref())
        {
            outbox.push(WorkerEvent::Note(words));
        }
        if exit.is_failure()
            && let Some(lines) = tail.last_lines()
        {
            outbox.push(WorkerEvent::LogTail(lines));
        }
        exit
    }

    fn is_over(&self) -> bool {
        let given_up = |since: Option<Instant>| since.is_some_and(|at| at.elapsed() > KILL_WAIT);
        (self.gone.is_some() && self.stream_ended) || given_up(self.gone) || given_up(self.killed)
    }

    /// Takes what the worker said; waits a tick for it if there is nothing.
    fn hear(&mut self, outbox: &mut Outbox<O>) {
        let now = Instant::now();
        self.silence.pass(now.duration_since(self.turn).min(MAX_TURN), now);
        self.turn = now;
        if self.silence.is_worth_telling() {
            outbox.push(WorkerEvent::Note(waits_for_processor(&self.config.limits)));
        }
        if self.stream_ended {
            return thread::sleep(TICK);
        }
        for turn in 0..MAX_FRAMES {
            let patience = if turn == 0 { TICK } else { Duration::ZERO };
            match self.incoming.recv_timeout(patience) {
                Ok(Incoming::Event(event)) => self.take(event, outbox),
                Ok(Incoming::End(error)) => return self.end_of_stream(&error),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    return self.end_of_stream(&CodecError::Closed);
                }
            }
        }
    }

    fn take(&mut self, event: Event<O>, outbox: &mut Outbox<O>) {
        self.silence.heard();
        if event.ends() {
            self.leave_by.get_or_insert(Instant::now() + EXIT_GRACE);
        }
        match event {
            Event::Heartbeat { silent_ms } => {
                let silent = self.silence.beat(Duration::from_millis(silent_ms));
                if silent > self.config.stall_timeout {
                    self.kill(WorkerExit::Hung(silent_ms / 1000));
                }
            }
            Event::Progress { epoch, epochs, step, total_steps, loss, elapsed_ms, eta_ms } => {
                outbox.push(WorkerEvent::Progress {
                    epoch,
                    epochs,
                    step,
                    total_steps,
                    loss,
                    elapsed_ms,
                    eta_ms,
                });
            }
            Event::Isolated(how) => outbox.push(WorkerEvent::Isolated(how)),
            Event::Checkpointed { step } => outbox.push(WorkerEvent::Checkpointed { step }),
            Event::Evaluating => outbox.push(WorkerEvent::Evaluating),
            Event::Note(text) => outbox.push(WorkerEvent::Note(text)),
            Event::Resources(known) => outbox.push(WorkerEvent::Resources(known)),
            Event::Finished(output) => self.verdict.finished(output),
            Event::Failed(reason) => self.verdict.decide(WorkerExit::Failed(reason)),
            Event::Cancelled => self.verdict.left_as_asked(),
            Event::Panicked { message, location } => {
                self.verdict.decide(WorkerExit::Panicked(format!("{message} (at {location})")));
            }
            Event::Refused(reason) => {
                let reason = format!("it did not understand its job: {reason}");
                self.verdict.decide(WorkerExit::Protocol(reason));
            }
        }
    }

    fn end_of_stream(&mut self, error: &CodecError) {
        self.stream_ended = true;
        self.leave_by.get_or_insert(Instant::now() + EXIT_GRACE);
        match error {
            CodecError::Closed => {}
            // Also what a worker leaves that was struck while it wrote: its exit status tells which.
            CodecError::Truncated { .. } => self.verdict.broken_off(error.to_string()),
            _ => self.kill(WorkerExit::Protocol(error.to_string())),
        }
    }

    /// Does what the owner wants; one that no longer listens wants nothing more.
    fn mind_owner(&mut self, receiver: outbox::Receiver) {
        if self.wish.kill() {
            self.verdict.asked_to_leave();
            self.kill(WorkerExit::Cancelled);
        } else if (self.wish.cancel() || receiver == outbox::Receiver::Gone)
            && self.verdict.asked_to_leave()
        {
            // Cannot be full: it is sent once. A closed channel means that the worker is gone.
            let _ = self.commands.try_send(ParentCommand::Cancel);
            self.leave_by.get_or_insert(Instant::now() + self.config.cancel_grace);
        }
    }

    fn mind_clock(&mut self) {
        if let Some(at) = self.leave_by {
            if Instant::now() >= at {
                self.kill(WorkerExit::Protocol("it ended its stream but not itself".to_owned()));
            }
            return;
        }
        if self.config.timeout.is_some_and(|timeout| self.started.elapsed() >= timeout) {
            self.kill(WorkerExit::TimedOut);
        } else if self.silence.since_frame() >= self.config.heartbeat_timeout {
            self.kill(WorkerExit::Hung(self.silence.since_frame().as_secs()));
        }
    }

    fn mind_process(&mut self) {
        if self.gone.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.gone = Some(Instant::now());
            self.verdict.status(status);
        }
    }

    /// Kills the worker's process group, once, for `reason` (unless the end was decided before).
    fn kill(&mut self, reason: WorkerExit<O>) {
        self.verdict.decide(reason);
        // A reaped process has no id any more: the group of that number could be somebody else's.
        if self.killed.is_none() && self.gone.is_none() {
            self.killed = Some(Instant::now());
            self.leave_by.get_or_insert(Instant::now());
            kill_group(&self.child);
        }
    }
}

fn command(config: &WorkerConfig) -> Command {
    let mut command = Command::new(&config.exe);
    command.args(&config.args);
    if config.limits.threads > 0 {
        // candle asks the environment for its number of threads, not the pool.
        command.env("RAYON_NUM_THREADS", config.limits.threads.to_string());
    }
    command.envs(super::ENVIRONMENT);
    // A group of its own keeps the terminal's Ctrl-C away from the job; the session stays the parent's, because with
    // autogroups niceness counts only inside a session.
    command.process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn cannot_start(config: &WorkerConfig, error: &io::Error) -> String {
    let exe = config.exe.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{exe} is not there: if the program was replaced while it ran, restart it")
        }
        _ => format!("{exe} does not run: {error}"),
    }
}

type Attendants<O> = (Receiver<Incoming<O>>, SyncSender<ParentCommand>, Receiver<Tail>);

/// Starts the three threads that attend the worker's streams.
fn attach<O: DeserializeOwned + Send + 'static>(
    child: &mut Child,
    request: Vec<u8>,
    config: &WorkerConfig,
) -> io::Result<Attendants<O>> {
    let missing = || io::Error::other("a stream of the process is missing");
    let stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;

    let (frames, incoming) = sync_channel(MAX_FRAMES);
    attendant("worker-frames", move || read_events(stdout, &frames))?;
    let (commands, wanted) = sync_channel(MAX_COMMANDS);
    attendant("worker-requests", move || drop(write_requests(stdin, &request, &wanted)))?;
    let (tails, log) = sync_channel(MAX_TAILS);
    let path = config.log_path.clone();
    attendant("worker-log", move || {
        // The monitor may have given up on a log that never ended.
        let _ = tails.send(stderr_log::copy(stderr, path.as_deref()));
    })?;
    Ok((incoming, commands, log))
}

fn attendant(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

fn read_events<O: DeserializeOwned>(stdout: ChildStdout, to: &SyncSender<Incoming<O>>) {
    let mut stdout = BufReader::new(stdout);
    let mut next = codec::read_hello(&mut stdout).and_then(|()| codec::read_frame(&mut stdout));
    loop {
        let sent = match next {
            Ok(event) => to.send(Incoming::Event(event)),
            Err(error) => return drop(to.send(Incoming::End(error))),
        };
        if sent.is_err() {
            return;
        }
        next = codec::read_frame(&mut stdout);
    }
}

/// Writes the hello, the job and later commands. An error means that the worker is gone: its stdout tells the rest.
fn write_requests(
    mut stdin: ChildStdin,
    request: &[u8],
    commands: &Receiver<ParentCommand>,
) -> Result<(), CodecError> {
    codec::write_hello(&mut stdin)?;
    stdin.write_all(request)?;
    while let Ok(command) = commands.recv() {
        codec::write_frame(&mut stdin, &command)?;
    }
    Ok(())
}

fn kill_group(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Fails only when the group is gone, which is what was wanted.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Confinement;

    #[test]
    fn a_starved_worker_is_told_of_what_can_still_be_changed() {
        let advice = |idle, nice| {
            waits_for_processor(&Limits {
                nice,
                idle,
                threads: 1,
                memory_bytes: 0,
                oom_score_adj: 0,
                core_dumps: false,
                confinement: Confinement::Off,
            })
        };
        assert!(advice(true, 19).contains("worker.idle = false"));
        assert!(advice(false, 5).contains("smaller worker.nice"));
        let nothing = advice(false, 0);
        assert!(!nothing.contains("worker.") && nothing.contains("other programs"), "{nothing}");
    }
}
