//! To the training actor: the queue of jobs.

use actix::Message as ActixMessage;

use super::{ActorError, Port, console::JobNotice};
use crate::domain::AdapterId;

/// Why a job is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// A person asked.
    Explicit,
    /// The buffer reached its threshold.
    Threshold,
}

/// Where a job starts; the configuration's `lora.training.from` when a request names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// From the live adapter of the domain.
    Continue,
    /// From zero.
    Fresh,
}

/// `/train [domain]`, `shammah train`: puts a job into the queue, with a snapshot of the unconsumed examples.
///
/// **Reply:** the queued job, after it is committed. [`JobNotice::Queued`] goes to all subscribers before the reply.
/// **Errors:** `NothingToTrain`; `Busy` when `queue.max_queued` jobs wait; `Closing`; `Store`.
/// Works in a second instance too: the holder of the queue finds the job by itself.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<JobLine, ActorError>")]
pub struct EnqueueTraining {
    /// The domain to train.
    pub domain: String,
    /// The job's (and the adapter's) name; made up when missing.
    pub name: Option<String>,
    /// Where it starts; the configuration's when missing.
    pub from: Option<From>,
    /// Higher goes first; 0 is usual.
    pub priority: i64,
    /// Changes to `[lora]` and `[lora.training]` for this job only, as `(key, toml value)`, e.g. `("epochs", "5")`.
    pub parameters: Vec<(String, String)>,
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
}

/// `/jobs cancel ID`.
///
/// **Reply:** the job. A queued one is cancelled at once; a running one is asked to stop and
/// [`JobNotice::Cancelled`] follows when it did. **Errors:** `Refused` when unknown or already over; `Store`.
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
/// **Reply:** how many jobs ended while waiting (0: there was nothing to wait for). In a second instance it waits for
/// the jobs of the other process. All notices of those jobs were sent before the reply.
/// **Errors:** `Closing` at shutdown; `Store`. To give up waiting, drop the reply's future.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<usize, ActorError>")]
pub struct WaitForJobs;

/// Subscribes to every [`JobNotice`] from now on. From the console and `run_queue`, at start.
///
/// Notices are sent with `try_send`: a subscriber with a full mailbox misses progress (never the end of a job, which is
/// waited for). Subscribing again with the same port's clone is allowed after a restart.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub struct SubscribeJobs(pub Port<JobNotice>);

/// Stops taking work and lets the running job write its checkpoint. From the shutdown task.
///
/// **Reply:** when no worker runs; the job is back in the queue and goes on from its checkpoint at the next start.
/// The sender bounds the wait and kills by dropping the actor.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "()")]
pub struct ParkTraining;

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
