//! What the worker does to its own process: a private channel, its limits, its end.

use std::fs::File;
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::process;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use serde::Serialize;

use super::codec::{self, CodecError};
use super::protocol::{Event, Limits};
use crate::text;

/// Exit code after a panic; Rust's own.
const EXIT_PANICKED: i32 = 101;

/// Exit code of a worker whose parent is gone; nobody reads it.
pub const EXIT_PARENT_GONE: i32 = 3;

/// The lowest priority there is.
const MAX_NICE: i32 = 19;

/// Lowest number of the private channel's descriptor: above the three standard ones.
const FIRST_PRIVATE_FD: i32 = 3;

/// How often, and how long between, a panicking thread tries to get the channel that another thread is writing to.
const PANIC_TRIES: usize = 100;
const PANIC_PAUSE: Duration = Duration::from_millis(10);

/// The way to the parent, shared by the threads of the worker.
pub struct Channel {
    out: Mutex<File>,
}

impl Channel {
    /// Takes file descriptor 1 private and points stdout at stderr, so that a stray print of any library becomes a
    /// line of the log and cannot corrupt a frame.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn take_stdout() -> io::Result<Self> {
        let private = rustix::io::fcntl_dupfd_cloexec(io::stdout(), FIRST_PRIVATE_FD)?;
        rustix::stdio::dup2_stdout(io::stderr())?;
        Ok(Self { out: Mutex::new(File::from(private)) })
    }

    /// Sends the hello.
    ///
    /// # Errors
    /// [`CodecError::Io`].
    pub fn hello(&self) -> Result<(), CodecError> {
        codec::write_hello(&mut *self.out.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends one event; threads take turns.
    ///
    /// # Errors
    /// Those of [`codec::write_frame`].
    pub fn send<O: Serialize>(&self, event: &Event<O>) -> Result<(), CodecError> {
        // Encoded before the lock is taken: whoever holds it only writes, so a panic never finds it held by its own
        // thread.
        let frame = codec::encode(event)?;
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(io::Write::write_all(&mut *out, &frame)?)
    }

    /// Sends one event from a panic hook: gives up rather than wait for ever.
    fn send_from_panic(&self, event: &Event<()>) {
        let Ok(frame) = codec::encode(event) else { return };
        for _ in 0..PANIC_TRIES {
            let mut out = match self.out.try_lock() {
                Ok(out) => out,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(PANIC_PAUSE);
                    continue;
                }
            };
            // The process ends in any case: the parent learns it from the exit code if not from the frame.
            let _ = io::Write::write_all(&mut *out, &frame);
            return;
        }
    }
}

/// Makes every panic tell the parent, then end the process: a worker that lost a thread is no worker.
pub fn install_panic_hook(channel: &Arc<Channel>) {
    let channel = Arc::clone(channel);
    panic::set_hook(Box::new(move |info| {
        // Only the place: the message may quote an example, and stderr is kept as a log.
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(io::stderr(), "panic at {place}");
        channel.send_from_panic(&panicked(info));
        process::exit(EXIT_PANICKED);
    }));
}

fn panicked(info: &PanicHookInfo<'_>) -> Event<()> {
    let message = info.payload_as_str().unwrap_or("no message").to_owned();
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    Event::Panicked { message, location }
}

/// Asks the kernel to end this process with its parent's thread; elsewhere than on Linux the closing of stdin does.
///
/// # Errors
/// Those of the operating system.
pub fn die_with_parent() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

/// Tells whether `pid` is still this process's parent (it may have died before [`die_with_parent`]).
pub fn is_parent(pid: u32) -> bool {
    rustix::process::getppid().is_some_and(|parent| parent.as_raw_nonzero().get() as u32 == pid)
}

/// Applies the limits to this process and says which; called before a second thread exists, because on Linux niceness belongs to the
/// thread that asks and those that it makes later.
///
/// # Errors
/// A message that names the limit and the reason.
pub fn apply(limits: &Limits) -> Result<String, String> {
    let mut said = Vec::new();
    if limits.idle {
        // Before the niceness, which it sets to 0 where it may. Where it is refused the niceness has to do.
        said.push(match become_idle() {
            Ok(()) => IDLE.to_owned(),
            Err(error) => format!("the scheduler's idle class is refused ({error})"),
        });
    }
    let nice = limits.nice.clamp(0, MAX_NICE);
    rustix::process::setpriority_process(None, nice)
        .map_err(|e| format!("could not set the priority to {nice}: {e}"))?;
    said.push(format!("nice {nice}"));
    if !limits.core_dumps {
        limit(Resource::Core, 0).map_err(|e| format!("could not switch core dumps off: {e}"))?;
        said.push("no core dumps".to_owned());
    }
    if limits.oom_score_adj > 0 {
        said.push(match offer_to_oom_killer(limits.oom_score_adj) {
            Ok(score) => format!("oom_score_adj {score}"),
            Err(error) => format!("oom_score_adj is refused ({error})"),
        });
    }
    if limits.memory_bytes > 0 {
        limit(Resource::Data, limits.memory_bytes).map_err(|e| {
            format!("could not limit the memory to {} bytes: {e}", limits.memory_bytes)
        })?;
        said.push(format!("at most {} of memory", text::bytes(limits.memory_bytes)));
    }
    Ok(said.join(", "))
}

/// Starts the threads that compute; after everything that threads inherit.
///
/// # Errors
/// A message that names their number and the reason.
pub fn start_pool(threads: usize) -> Result<(), String> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("train-{index}"))
        .build_global()
        .map_err(|e| format!("could not start {threads} compute threads: {e}"))
}

/// Lets the kernel end this process before others when memory runs out; a score that is higher already stays.
#[cfg(target_os = "linux")]
fn offer_to_oom_killer(score: u16) -> io::Result<i32> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let held: i32 = fs_err::read_to_string(PATH)?.trim().parse().unwrap_or(0);
    let score = held.max(i32::from(score));
    fs_err::write(PATH, score.to_string())?;
    Ok(score)
}

/// Other systems have no such score.
#[cfg(not(target_os = "linux"))]
fn offer_to_oom_killer(_: u16) -> io::Result<i32> {
    Err(io::Error::other("this system has none"))
}

/// What there is to say of the idle class.
#[cfg(target_os = "linux")]
const IDLE: &str = "idle class";
#[cfg(not(target_os = "linux"))]
const IDLE: &str = "no idle class on this system";

/// Lets this thread, and those it makes later, compute only while a core has nothing else to do.
#[cfg(target_os = "linux")]
fn become_idle() -> Result<(), thread_priority::Error> {
    use thread_priority::{
        NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
        set_thread_priority_and_policy, thread_native_id,
    };
    let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy)
}

/// Other systems know no such class.
#[cfg(not(target_os = "linux"))]
fn become_idle() -> Result<(), std::convert::Infallible> {
    Ok(())
}

/// Lowers a limit; one that is lower already stays.
fn limit(resource: Resource, most: u64) -> rustix::io::Result<()> {
    let held = rustix::process::getrlimit(resource);
    let most = held.maximum.map_or(most, |maximum| maximum.min(most));
    rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
}
