//! The states of a job, and which may follow which.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a job stands.
///
/// ```text
/// queued ──► running ──► evaluating ──► succeeded
///   ▲ │         │ │          │ │ └────► rejected
///   │ └─────────┼─┼──────────┼─┴──────► cancelled
///   └───────────┘ └──────────┴────────► failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waiting for its turn.
    Queued,
    /// In a worker process.
    Running,
    /// Trained; the gate is measuring.
    Evaluating,
    /// Its adapter was published.
    Succeeded,
    /// The gate refused its adapter.
    Rejected,
    /// It could not be trained.
    Failed,
    /// The user took it back.
    Cancelled,
}

impl JobState {
    /// All states, in the order of a job's life.
    pub const ALL: [JobState; 7] = [
        JobState::Queued,
        JobState::Running,
        JobState::Evaluating,
        JobState::Succeeded,
        JobState::Rejected,
        JobState::Failed,
        JobState::Cancelled,
    ];

    /// Returns the state's name as it is shown and stored.
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Evaluating => "evaluating",
            JobState::Succeeded => "succeeded",
            JobState::Rejected => "rejected",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// Whether the job has a worker.
    pub fn is_active(self) -> bool {
        matches!(self, JobState::Running | JobState::Evaluating)
    }

    /// Whether the job has ended for good.
    pub fn is_final(self) -> bool {
        !self.is_active() && self != JobState::Queued
    }

    /// Whether a job in this state may go to `next`.
    ///
    /// Back to the queue goes a job whose worker died, or whose process ended.
    pub fn may_become(self, next: JobState) -> bool {
        use JobState::{Cancelled, Evaluating, Failed, Queued, Rejected, Running, Succeeded};
        match self {
            Queued => matches!(next, Running | Failed | Cancelled),
            Running => matches!(next, Evaluating | Queued | Failed | Cancelled),
            Evaluating => matches!(next, Succeeded | Rejected | Queued | Failed | Cancelled),
            Succeeded | Rejected | Failed | Cancelled => false,
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("unknown job state \"{text}\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_has_ended_stays_so() {
        for from in JobState::ALL.into_iter().filter(|s| s.is_final()) {
            for to in JobState::ALL {
                assert!(!from.may_become(to), "{from} must not become {to}");
            }
        }
    }

    #[test]
    fn only_a_measured_job_succeeds_or_is_rejected() {
        for from in JobState::ALL {
            let measured = from == JobState::Evaluating;
            assert_eq!(from.may_become(JobState::Succeeded), measured);
            assert_eq!(from.may_become(JobState::Rejected), measured);
        }
    }

    #[test]
    fn names_read_back() {
        for state in JobState::ALL {
            assert_eq!(state.as_str().parse::<JobState>(), Ok(state));
        }
    }
}
