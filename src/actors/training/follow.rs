//! Following the jobs that another process runs, by their rows: a console beside the holder of the queue shows them too.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::Utc;

use super::ends;
use crate::messages::console::{JobNotice, Progress};
use crate::store::{Home, JobRow, JobState};

/// How often the rows are looked at: the holder writes progress twice a second.
pub const FOLLOW_POLL: Duration = Duration::from_secs(1);

/// The open jobs as they were at the last look.
#[derive(Debug, Default)]
pub struct Followed {
    open: BTreeMap<i64, Seen>,
    /// The job whose process was found to be gone.
    orphan: Option<i64>,
    looked: bool,
    /// The last job at the last look.
    newest: i64,
}

/// What a look at the database and the queue's lock shows.
#[derive(Debug)]
pub struct Look {
    /// All jobs.
    pub rows: Vec<JobRow>,
    /// Whether a process runs the queue.
    pub held: bool,
    /// How often a job is tried.
    pub max_attempts: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    state: JobState,
    step: usize,
}

impl Followed {
    /// Whether no job was open at the last look, so that every end has been told.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// Returns what happened since the last look.
    pub fn news(&mut self, home: &Home, look: &Look) -> Vec<JobNotice> {
        let rows = &look.rows;
        let mut news = Vec::new();
        let first = !std::mem::replace(&mut self.looked, true);
        for row in rows {
            let before = self.open.remove(&row.id);
            // What had ended before the first look is history, and so is a start.
            if before.is_none() && first && row.state.is_final() {
                continue;
            }
            let unseen = Seen { state: JobState::Queued, step: 0 };
            let was = before.unwrap_or(unseen);
            news.extend(change(row, was, first && before.is_none(), look.max_attempts));
            let came = !first && row.id > self.newest;
            news.extend(ends::notice(home, row).filter(|_| before.is_some() || came));
        }
        self.newest = rows.iter().map(|row| row.id).fold(self.newest, i64::max);
        let now = |row: &JobRow| (row.id, Seen { state: row.state, step: row.step });
        self.open = rows.iter().filter(|row| !row.state.is_final()).map(now).collect();
        let active = rows.iter().find(|row| row.state.is_active());
        news.extend(self.orphaned(active, look.held));
        news
    }

    fn orphaned(&mut self, active: Option<&JobRow>, held: bool) -> Option<JobNotice> {
        let orphan = active.filter(|_| !held).map(|row| row.id);
        let known = std::mem::replace(&mut self.orphan, orphan);
        let job = orphan.filter(|_| known != orphan)?;
        let text =
            "the process that ran it is gone: the next one that runs the queue takes it up again"
                .to_owned();
        Some(JobNotice::Noted { job, text })
    }
}

/// What a look at one open job shows.
fn change(row: &JobRow, was: Seen, first: bool, max_attempts: usize) -> Vec<JobNotice> {
    let job = row.id;
    let mut news = Vec::new();
    if row.state.is_active() && was.state == JobState::Queued && !first {
        let attempt = u32::try_from(row.attempts).unwrap_or(u32::MAX);
        news.push(JobNotice::Started { job, examples: row.examples, attempt });
    }
    if row.state == JobState::Running && row.step != was.step {
        news.push(JobNotice::Progressed(progress(row)));
    }
    if row.state == JobState::Evaluating && was.state != JobState::Evaluating {
        news.push(JobNotice::Evaluating { job });
    }
    if row.state == JobState::Queued && was.state.is_active() {
        news.push(back_in_the_queue(row, max_attempts));
    }
    news
}

/// Its worker died, or its process ended in order.
fn back_in_the_queue(row: &JobRow, max_attempts: usize) -> JobNotice {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let Some(due) = row.not_before else {
        return JobNotice::Parked { job: row.id, step: row.step };
    };
    let pause = (due - Utc::now()).num_milliseconds();
    JobNotice::Retrying {
        job: row.id,
        reason: row.error.clone().unwrap_or_default(),
        attempt: count(row.attempts + 1),
        max_attempts: count(max_attempts),
        pause_ms: u64::try_from(pause).unwrap_or(0),
    }
}

/// What a row tells of a job's progress: not its epoch, nor the time it takes.
pub fn progress(row: &JobRow) -> Progress {
    Progress {
        job: row.id,
        epoch: 0,
        epochs: 0,
        step: row.step,
        total_steps: row.total_steps,
        loss: row.loss.unwrap_or(f64::NAN),
        elapsed_ms: 0,
        eta_ms: None,
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
