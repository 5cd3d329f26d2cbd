//! Tells a process that hangs from one that a busy machine keeps waiting for a processor.
//!
//! A worker of the idle class may wait for minutes; to stop it for that would only make it begin anew.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often the kernel is asked.
const EVERY: Duration = Duration::from_secs(1);

/// Waiting, since the job last reported something, that is worth telling.
const WORTH_TELLING: Duration = Duration::from_secs(20);

/// How long nothing was heard of a worker, without the time in which it wanted a processor and got none.
pub(super) struct Silence {
    waiting: Waiting,
    asked: Instant,
    /// Since the last frame.
    since_frame: Duration,
    /// Waited since the job last reported something.
    waited: Duration,
    /// What the last heartbeat said about the job.
    job_silent: Duration,
    told: bool,
}

impl Silence {
    /// Begins to watch a process.
    pub fn of(pid: u32, now: Instant) -> Self {
        Self {
            waiting: Waiting::of(pid),
            asked: now,
            since_frame: Duration::ZERO,
            waited: Duration::ZERO,
            job_silent: Duration::ZERO,
            told: false,
        }
    }

    /// Lets `turn` pass, which ends `now`.
    pub fn pass(&mut self, turn: Duration, now: Instant) {
        self.since_frame += turn;
        let interval = now.duration_since(self.asked);
        if interval >= EVERY {
            self.asked = now;
            let waited = self.waiting.more().min(interval);
            self.since_frame = self.since_frame.saturating_sub(waited);
            self.waited += waited;
        }
    }

    /// Takes note of a frame.
    pub fn heard(&mut self) {
        self.since_frame = Duration::ZERO;
    }

    /// Takes note of a heartbeat; returns for how long the job stood still when it could have moved.
    pub fn beat(&mut self, job_silent: Duration) -> Duration {
        if job_silent < self.job_silent {
            self.waited = Duration::ZERO;
        }
        self.job_silent = job_silent;
        job_silent.saturating_sub(self.waited)
    }

    /// Returns how long nothing was heard when something could have been.
    pub fn since_frame(&self) -> Duration {
        self.since_frame
    }

    /// Tells once whether the process waits so long that a user should know.
    pub fn is_worth_telling(&mut self) -> bool {
        let tell = !self.told && self.waited >= WORTH_TELLING;
        self.told |= tell;
        tell
    }
}

/// What the kernel counts of the waiting of a process's threads (Linux: `schedstat`; elsewhere nothing is known).
struct Waiting {
    tasks: PathBuf,
    seen: HashMap<std::ffi::OsString, Duration>,
}

impl Waiting {
    fn of(pid: u32) -> Self {
        Self { tasks: format!("/proc/{pid}/task").into(), seen: HashMap::new() }
    }

    /// Returns how long the thread that waited most did so since the last call.
    fn more(&mut self) -> Duration {
        let mut most = Duration::ZERO;
        for task in fs_err::read_dir(&self.tasks).into_iter().flatten().flatten() {
            let text = fs_err::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            // Nanoseconds on a processor, nanoseconds of waiting for one, slices.
            let waited = text.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok());
            let Some(waited) = waited.map(Duration::from_nanos) else { continue };
            let before = self.seen.insert(task.file_name(), waited);
            most = most.max(waited.saturating_sub(before.unwrap_or_default()));
        }
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fake(dir: &std::path::Path) -> Silence {
        let mut silence = Silence::of(1, Instant::now());
        silence.waiting.tasks = dir.to_owned();
        silence
    }

    fn write(dir: &std::path::Path, task: &str, waited: Duration) {
        fs_err::create_dir_all(dir.join(task)).unwrap();
        let text = format!("5 {} 9\n", waited.as_nanos());
        fs_err::write(dir.join(task).join("schedstat"), text).unwrap();
    }

    #[test]
    fn what_waits_for_a_processor_is_not_silent() {
        let dir = tempfile::tempdir().unwrap();
        let mut silence = fake(dir.path());
        let mut now = silence.asked;
        for turn in 1..=30 {
            write(dir.path(), "7", SECOND * turn);
            write(dir.path(), "8", Duration::ZERO);
            now += SECOND;
            silence.pass(SECOND, now);
        }
        assert_eq!(silence.since_frame(), Duration::ZERO);
        assert_eq!(silence.beat(SECOND * 30), Duration::ZERO);
        assert!(silence.is_worth_telling() && !silence.is_worth_telling(), "once");
        // Then it got a processor and stands still.
        for _ in 0..10 {
            now += SECOND;
            silence.pass(SECOND, now);
        }
        assert_eq!(silence.since_frame(), SECOND * 10);
        assert_eq!(silence.beat(SECOND * 40), SECOND * 10);
    }

    #[test]
    fn waiting_before_the_job_reported_counts_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let mut silence = fake(dir.path());
        write(dir.path(), "7", SECOND * 5);
        let now = silence.asked + SECOND * 5;
        silence.pass(SECOND * 5, now);
        assert_eq!(silence.beat(SECOND * 5), Duration::ZERO);
        assert_eq!(silence.beat(SECOND), SECOND, "it reported in between");
    }

    #[test]
    fn a_process_without_figures_is_taken_at_its_word() {
        let mut silence = fake(std::path::Path::new("/no/such/process"));
        silence.pass(SECOND * 3, silence.asked + SECOND * 3);
        assert_eq!(silence.since_frame(), SECOND * 3);
        assert_eq!(silence.beat(SECOND * 2), SECOND * 2);
        assert!(!silence.is_worth_telling());
        silence.heard();
        assert_eq!(silence.since_frame(), Duration::ZERO);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernel_counts_the_waiting_of_this_process() {
        let own = format!("/proc/{}/task", std::process::id());
        let tasks = fs_err::read_dir(own).unwrap().flatten().count();
        let mut waiting = Waiting::of(std::process::id());
        waiting.more();
        assert!(!waiting.seen.is_empty() && waiting.seen.len() <= tasks + 8, "{tasks}");
    }
}
