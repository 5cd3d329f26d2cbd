//! How a worker ended, put together from its last word, its exit status, its log and what its parent did.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::Signal;

use super::exit::WorkerExit;
use super::stderr_log::Tail;

/// The evidence so far. What was decided first stands; the exit status counts only where nothing was.
#[derive(Debug)]
pub struct Verdict<O> {
    decided: Option<WorkerExit<O>>,
    asked_to_leave: bool,
    broken_off: Option<String>,
    status: Option<ExitStatus>,
}

impl<O> Default for Verdict<O> {
    fn default() -> Self {
        Self { decided: None, asked_to_leave: false, broken_off: None, status: None }
    }
}

impl<O> Verdict<O> {
    /// Decides the end, unless it was decided before. Whatever strikes a worker that was asked to leave counts as
    /// leaving, except what it says itself.
    pub fn decide(&mut self, exit: WorkerExit<O>) {
        let own_word = matches!(
            exit,
            WorkerExit::Finished(_) | WorkerExit::Failed(_) | WorkerExit::Panicked(_)
        );
        let exit = if self.asked_to_leave && !own_word { WorkerExit::Cancelled } else { exit };
        self.decided.get_or_insert(exit);
    }

    /// The job is done. A job that was cancelled before its result came stays cancelled: its owner was told so.
    pub fn finished(&mut self, output: Box<O>) {
        let exit =
            if self.asked_to_leave { WorkerExit::Cancelled } else { WorkerExit::Finished(output) };
        self.decide(exit);
    }

    /// The worker says that it left because it was asked to.
    pub fn left_as_asked(&mut self) {
        let exit = if self.asked_to_leave {
            WorkerExit::Cancelled
        } else {
            WorkerExit::Protocol("it stopped a job that nobody cancelled".to_owned())
        };
        self.decide(exit);
    }

    /// The parent asks the worker to leave; true if it is news.
    pub fn asked_to_leave(&mut self) -> bool {
        !std::mem::replace(&mut self.asked_to_leave, true)
    }

    /// The stream ended inside a frame.
    pub fn broken_off(&mut self, what: String) {
        self.broken_off.get_or_insert(what);
    }

    /// The process is gone.
    pub fn status(&mut self, status: ExitStatus) {
        self.status = Some(status);
    }

    /// Tells how the worker ended, as far as the evidence goes.
    ///
    /// `memory_kills` is how many processes the kernel killed for memory while this one ran.
    pub fn pass(self, tail: &Tail, memory_kills: u64) -> WorkerExit<O> {
        if let Some(decided) = self.decided {
            return decided;
        }
        let Some(status) = self.status else {
            return WorkerExit::Protocol("it could not be stopped".to_owned());
        };
        match (status.signal(), status.code(), self.broken_off) {
            (Some(number), _, _) if number == Signal::KILL.as_raw() && memory_kills > 0 => {
                WorkerExit::OutOfMemory
            }
            (Some(number), _, _) => struck(number, tail),
            (None, _, Some(what)) => WorkerExit::Protocol(what),
            (None, code, None) => WorkerExit::Exited(code.unwrap_or_default()),
        }
    }
}

/// Returns how many processes the kernel has killed for memory since the machine started; 0 where it does not say.
pub fn memory_kills() -> u64 {
    fs_err::read_to_string("/proc/vmstat").ok().and_then(|text| kills_of(&text)).unwrap_or(0)
}

fn kills_of(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// Tells the aborts of Rust's runtime apart by what it wrote before.
fn struck<O>(number: i32, tail: &Tail) -> WorkerExit<O> {
    let aborted = number == Signal::ABORT.as_raw();
    if aborted && tail.tells_out_of_memory() {
        WorkerExit::OutOfMemory
    } else if aborted && tail.tells_stack_overflow() {
        WorkerExit::StackOverflow
    } else {
        WorkerExit::Signal(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn killed(signal: i32, memory_kills: u64) -> WorkerExit<()> {
        let mut verdict = Verdict::default();
        verdict.status(ExitStatus::from_raw(signal));
        verdict.pass(&Tail::default(), memory_kills)
    }

    #[test]
    fn a_kill_is_a_lack_of_memory_only_where_the_kernel_killed_for_memory_meanwhile() {
        assert_eq!(killed(9, 1), WorkerExit::OutOfMemory);
        assert_eq!(killed(9, 0), WorkerExit::Signal(9));
        assert_eq!(killed(15, 1), WorkerExit::Signal(15));
        let text = "nr_free_pages 12\noom_kill 34\noom_kill_x 5\n";
        assert_eq!((kills_of(text), kills_of("pgfault 1\n")), (Some(34), None));
    }
}
