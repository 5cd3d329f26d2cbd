//! To the training actor: the queue of jobs.

use std::sync::Arc;

use actix::Message as ActixMessage;

use super::ActorError;
use crate::config::Config;
use crate::domain::AdapterId;
pub use crate::store::StartFrom;

/// `/train [domain]`, `shammah train`: puts a job into the queue, with a snapshot of the unconsumed examples.
///
/// **Reply:** the queued job, after it is committed. [`JobNotice::Queued`](super::console::JobNotice::Queued) goes to all subscribers before the reply.
/// **Errors:** `NothingToTrain`; `Busy` when `queue.max_queued` jobs wait; `Refused` when the name is taken, or an open job learns the same anew; `Closing`;
/// `Store`.
/// Works in a second instance too: the holder of the queue finds the job by itself.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<JobLine, ActorError>")]
pub struct EnqueueTraining {
    /// The domain to train.
    pub domain: String,
    /// The job's (and the adapter's) name; made up when missing.
    pub name: Option<AdapterId>,
    /// Where it starts; the configuration's when missing.
    pub from: Option<StartFrom>,
    /// Higher goes first; 0 is usual.
    pub priority: i64,
    /// Only these marks are new in it; all of the domain's when missing.
    pub only: Option<Vec<i64>>,
}

impl EnqueueTraining {
    /// Asks for a job of a domain with nothing special about it.
    pub fn of(domain: impl Into<String>) -> Self {
        Self { domain: domain.into(), name: None, from: None, priority: 0, only: None }
    }
}

/// The buffer of a domain reached its threshold. From the feedback actor.
///
/// No reply. While a job runs, one flag per domain is set, however often this comes; the follow-up job is enqueued when it
/// ends. When nothing is left to train then, nothing happens.
#[derive(ActixMessage, Debug, Clone, PartialEq)]
#[rtype(result = "()")]
pub struct ThresholdReached {
    /// The domain.
    pub domain: String,
    /// The threshold; it is checked again in the transaction that takes the snapshot.
    pub threshold: usize,
}

/// `/jobs cancel ID`.
///
/// **Reply:** the job. A queued one is cancelled at once; a running one is asked to stop and
/// [`JobNotice::Cancelled`](super::console::JobNotice::Cancelled) follows when it did; its adapter is not published, even
/// if it was being measured already. **Errors:** `Refused` when unknown or already over; `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<JobLine, ActorError>")]
pub struct CancelJob {
    /// The job.
    pub id: i64,
}

/// `/jobs`: all jobs, newest first, at most `limit`. **Errors:** `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Vec<JobLine>, ActorError>")]
pub struct ListJobs {
    /// At most this many.
    pub limit: usize,
}

/// `/jobs wait`: waits until no job is queued or running and none is pending by a threshold.
///
/// **Reply:** how many jobs it waited for (0: there was nothing to wait for). In a second instance it waits for
/// the jobs of the other process. All notices of those jobs were sent before the reply.
/// **Errors:** `Closing` at shutdown; `Store`. To give up waiting, drop the reply's future.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<usize, ActorError>")]
pub struct WaitForJobs;

/// Stops taking work and lets the running job write its checkpoint. From the shutdown task.
///
/// **Reply:** when no worker runs; the job is back in the queue and goes on from its checkpoint at the next start.
/// The sender bounds the wait and kills by dropping the actor.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "()")]
pub struct ParkTraining;

/// The configuration was read again. From `jobs run`, to the training and the feedback actor.
///
/// No reply. Jobs in the queue keep what they were enqueued with.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "()")]
pub struct Reconfigure(pub Arc<Config>);

/// One job, for a list.
#[derive(Debug, Clone, PartialEq)]
pub struct JobLine {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// The domain.
    pub domain: String,
    /// `queued`, `running`, `evaluating`, `succeeded`, `rejected`, `failed` or `cancelled`.
    pub state: String,
    /// How often it was started.
    pub attempts: u32,
    /// Examples it trains on (replayed and held-out ones not counted).
    pub examples: usize,
    /// Steps done.
    pub step: usize,
    /// Steps in all; 0 until known.
    pub total_steps: usize,
    /// The last loss.
    pub loss: Option<f64>,
    /// Mean held-out loss before.
    pub heldout_before: Option<f64>,
    /// Mean held-out loss after.
    pub heldout_after: Option<f64>,
    /// What it made.
    pub adapter: Option<AdapterId>,
    /// Why it failed or was rejected.
    pub error: Option<String>,
    /// When it was enqueued, RFC 3339.
    pub created_at: String,
    /// When it ended.
    pub finished_at: Option<String>,
}
