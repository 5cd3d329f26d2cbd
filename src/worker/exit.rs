//! How a worker ended.

use std::fmt;

use rustix::process::Signal;

use crate::eval::Measurements;

/// How a worker ended. [`Display`](fmt::Display) says it in the user's words.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerExit<O = Measurements> {
    /// The job is done and its directory is published.
    Finished(Box<O>),
    /// The job says that it cannot be done, and why.
    Failed(String),
    /// The process could not be started.
    NotStarted(String),
    /// A thread of the process panicked: message and place.
    Panicked(String),
    /// The process ran out of memory or over its memory limit.
    OutOfMemory,
    /// The process overflowed a stack.
    StackOverflow,
    /// A signal that the parent did not send ended the process.
    Signal(i32),
    /// The job took longer than it may; it was stopped.
    TimedOut,
    /// The process gave no sign of life, or its job no sign of progress, for this many seconds; it was stopped.
    Hung(u64),
    /// The job was cancelled.
    Cancelled,
    /// The process said something that it should not say; it was stopped.
    Protocol(String),
    /// The process left with this code and without a result.
    Exited(i32),
}

impl<O> WorkerExit<O> {
    /// Tells whether another attempt from the last checkpoint may end differently: true for what struck the process,
    /// false for what the job itself, the user or the program decided.
    pub fn may_succeed_again(&self) -> bool {
        match self {
            WorkerExit::Panicked(_)
            | WorkerExit::OutOfMemory
            | WorkerExit::StackOverflow
            | WorkerExit::Signal(_)
            | WorkerExit::Hung(_)
            | WorkerExit::Protocol(_)
            | WorkerExit::Exited(_) => true,
            WorkerExit::Finished(_)
            | WorkerExit::Failed(_)
            | WorkerExit::NotStarted(_)
            | WorkerExit::TimedOut
            | WorkerExit::Cancelled => false,
        }
    }

    /// Tells whether the job was neither done nor taken back.
    pub(super) fn is_failure(&self) -> bool {
        !matches!(self, WorkerExit::Finished(_) | WorkerExit::Cancelled)
    }

    /// Tells whether the end of the process's log may say more than the exit itself.
    pub(super) fn leaves_questions(&self) -> bool {
        matches!(
            self,
            WorkerExit::Signal(_)
                | WorkerExit::Hung(_)
                | WorkerExit::Protocol(_)
                | WorkerExit::Exited(_)
        )
    }
}

impl<O> fmt::Display for WorkerExit<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkerExit::Finished(_) => f.write_str("the job finished"),
            WorkerExit::Failed(reason) => f.write_str(reason),
            WorkerExit::NotStarted(reason) => {
                write!(f, "the training process could not be started: {reason}")
            }
            WorkerExit::Panicked(what) => {
                write!(f, "the training process stopped on an internal error: {what}")
            }
            WorkerExit::OutOfMemory => f.write_str(
                "the training process ran out of memory (lora.training.memory_limit_mb is what it plans with)",
            ),
            WorkerExit::StackOverflow => {
                f.write_str("the training process stopped on an internal error: stack overflow")
            }
            WorkerExit::Signal(number) => write_signal(f, *number),
            WorkerExit::TimedOut => f.write_str(
                "the job took longer than it may and was stopped: raise lora.training.timeout_minutes",
            ),
            WorkerExit::Hung(seconds) => {
                write!(f, "the training process did not move for {seconds} s and was stopped")
            }
            WorkerExit::Cancelled => f.write_str("the job was cancelled"),
            WorkerExit::Protocol(what) => {
                write!(f, "the training process could not be understood and was stopped: {what}")
            }
            WorkerExit::Exited(code) => {
                write!(f, "the training process left with code {code} and without a result")
            }
        }
    }
}

fn write_signal(f: &mut fmt::Formatter<'_>, number: i32) -> fmt::Result {
    write!(f, "the training process was ended by signal {number}")?;
    if let Some(name) = signal_name(number) {
        write!(f, " ({name})")?;
    }
    if number == Signal::KILL.as_raw() {
        // Nothing tells a process killed for memory from one killed by hand, so this stays a hint.
        f.write_str(": somebody killed it, or the system was out of memory")?;
    }
    Ok(())
}

fn signal_name(number: i32) -> Option<&'static str> {
    let names = [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ILL, "SIGILL"),
        (Signal::TRAP, "SIGTRAP"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::KILL, "SIGKILL"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::TERM, "SIGTERM"),
        (Signal::XCPU, "SIGXCPU"),
        (Signal::XFSZ, "SIGXFSZ"),
        (Signal::SYS, "SIGSYS"),
    ];
    names.iter().find(|(signal, _)| signal.as_raw() == number).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_named_and_a_kill_is_no_certain_lack_of_memory() {
        let told = |number| WorkerExit::<()>::Signal(number).to_string();
        assert_eq!(told(11), "the training process was ended by signal 11 (SIGSEGV)");
        assert_eq!(told(63), "the training process was ended by signal 63");
        assert!(
            told(9).ends_with("(SIGKILL): somebody killed it, or the system was out of memory")
        );
    }

    #[test]
    fn what_the_user_or_the_job_decided_is_not_tried_again() {
        let final_ones = [
            WorkerExit::Finished(Box::new(())),
            WorkerExit::Failed("no rows".to_owned()),
            WorkerExit::TimedOut,
            WorkerExit::Cancelled,
        ];
        assert!(!final_ones.iter().any(WorkerExit::may_succeed_again));
        let struck = [WorkerExit::<()>::Signal(9), WorkerExit::Hung(60), WorkerExit::OutOfMemory];
        assert!(struck.iter().all(WorkerExit::may_succeed_again));
    }
}
