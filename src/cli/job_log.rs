//! What `jobs show` says of a job's worker: the limits it was under and, if it failed, the end of its log.

use std::io;

use serde::Serialize;

use super::output;
use crate::plan;
use crate::store::{EventRow, JobRow, JobState};

/// What events tell of the last worker of a job.
#[derive(Debug, Serialize)]
pub struct JobLog<'a> {
    /// Its limits.
    isolation: Option<&'a str>,
    /// The end of the log of the last one that failed, if the job has not succeeded since.
    log_tail: Option<&'a str>,
}

impl<'a> JobLog<'a> {
    /// Reads it from the events of `job`.
    pub fn of(job: &JobRow, events: &'a [EventRow]) -> Self {
        let last = |kind: &str| {
            events.iter().rev().find(|e| e.kind == kind).and_then(|e| e.detail.as_deref())
        };
        let fell = !matches!(job.state, JobState::Succeeded | JobState::Rejected);
        Self { isolation: last(plan::ISOLATION), log_tail: last(plan::LOG_TAIL).filter(|_| fell) }
    }

    /// Writes it for people.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn print(&self) -> io::Result<()> {
        if let Some(how) = self.isolation {
            output::line(&format!("worker: {how}"))?;
        }
        let Some(tail) = self.log_tail else { return Ok(()) };
        output::line("the end of its log:")?;
        tail.lines().try_for_each(|line| output::line(&format!("  {line}")))
    }
}
