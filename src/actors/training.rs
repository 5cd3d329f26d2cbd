//! The training actor: the queue of jobs, one after the other.
//!
//! It enqueues, claims the next job and lets a [`Runner`] run it; it knows which one runs, who waits, and when to stop. The
//! queue itself is in the database, so nothing is lost with the actor.

mod beside;
pub mod ends;
pub mod follow;
pub mod notices;
pub mod retry;
pub mod runner;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use actix::fut::ActorFutureExt;
use actix::{
    Actor, AsyncContext, Context, Handler, ResponseActFuture, ResponseFuture, SpawnHandle,
    WrapFuture,
};
use chrono::{DateTime, Utc};
use futures::FutureExt;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tracing::Instrument;

use self::follow::{FOLLOW_POLL, Followed};
use self::retry::RetryPolicy;
use self::runner::{Runner, Wish};
use super::db::DbError;
use super::model_thread::panic_text;
use super::queue_right::QueueRight;
use super::supervisor::{Guard, actor_span};
use super::views;
use crate::config::Config;
use crate::messages::console::JobNotice;
use crate::messages::training::{
    CancelJob, EnqueueTraining, JobLine, ListJobs, ParkTraining, Reconfigure, ThresholdReached,
    WaitForJobs,
};
use crate::messages::{ActorError, ActorName, MAILBOX_CAPACITY};
use crate::plan::{self, JobWish, PlanError};
use crate::store::{JobRow, JobState, Keep, Store, StoreError};

/// How often the queue is looked at for jobs of other processes: soon enough for a person.
pub const QUEUE_POLL: Duration = Duration::from_secs(2);
/// Those who may wait for the queue to be empty at a time: one console and a test or two.
const MAX_WAITERS: usize = 8;

/// What the actor goes by.
#[derive(Debug, Clone)]
pub struct QueueRules {
    /// The configuration.
    pub config: Arc<Config>,
    /// Whether this process runs the queue.
    pub right: QueueRight,
}

/// Owns the queue and the worker.
pub struct TrainingActor {
    runner: Runner,
    rules: QueueRules,
    clock: Clock,
    current: Option<Current>,
    claiming: bool,
    /// Whether something has ended since what is old was last removed.
    untidy: bool,
    /// Requests to enqueue that are not in the database yet.
    enqueuing: usize,
    /// Domains whose threshold was reached while a job ran.
    flagged: BTreeMap<String, usize>,
    waiters: Vec<Waiter>,
    /// The jobs of the process that runs the queue, where this one does not.
    followed: Followed,
    following: Option<SpawnHandle>,
    /// Since when nobody runs the queue.
    free_since: Option<Instant>,
    parked: Vec<oneshot::Sender<()>>,
    closing: bool,
    _guard: Option<Guard>,
}

struct Current {
    job: i64,
    wish: watch::Sender<Wish>,
}

struct Waiter {
    seen: BTreeSet<i64>,
    reply: oneshot::Sender<Result<usize, ActorError>>,
}

/// The time by which jobs are due. It follows tokio's clock, so that tests can let hours pass, and the wall clock where
/// that is ahead (a suspended machine).
struct Clock {
    start: (DateTime<Utc>, Instant),
}

impl Clock {
    fn new() -> Self {
        Self { start: (Utc::now(), Instant::now()) }
    }

    fn now(&self) -> DateTime<Utc> {
        let passed = chrono::Duration::from_std(self.start.1.elapsed()).unwrap_or_default();
        Utc::now().max(self.start.0 + passed)
    }
}

impl TrainingActor {
    /// Makes the actor.
    pub fn new(runner: Runner, rules: QueueRules, guard: Option<Guard>) -> Self {
        Self {
            runner,
            rules,
            clock: Clock::new(),
            current: None,
            claiming: false,
            untidy: true,
            enqueuing: 0,
            flagged: BTreeMap::new(),
            waiters: Vec::new(),
            followed: Followed::default(),
            following: None,
            free_since: None,
            parked: Vec::new(),
            closing: false,
            _guard: guard,
        }
    }

    /// Takes the next job that is due, if none runs.
    fn claim(&mut self, ctx: &mut Context<Self>) {
        // A job that is being enqueued is announced before it starts; the end of that claims.
        let busy = self.claiming || self.enqueuing > 0 || self.closing;
        let idle = self.current.is_none() && !busy;
        if !self.rules.right.is_held() || !idle {
            return;
        }
        self.claiming = true;
        let (runner, now) = (self.runner.clone(), self.clock.now());
        let queue = &self.rules.config.queue;
        let keep = Keep { jobs: queue.keep_jobs, adapters: queue.keep_adapters };
        let keep = std::mem::take(&mut self.untidy).then_some(keep);
        let claimed = async move {
            let attempts = runner.retry.max_attempts;
            let claimed = runner.db.call(move |store| claim(store, now, attempts, keep)).await?;
            for row in &claimed.given_up {
                runner.tell_end(row).await;
            }
            Ok::<_, DbError>(claimed)
        };
        ctx.spawn(claimed.into_actor(self).map(|claimed, this, ctx| {
            this.claiming = false;
            if !matches!(claimed, Ok(Claimed { job: Some(_), .. })) {
                this.answer_parked();
            }
            match claimed {
                Ok(Claimed { job: Some(job), .. }) => this.start(job, ctx),
                Ok(Claimed { due, .. }) => this.claim_at(due, ctx),
                Err(error) => tracing::warn!(%error, "the queue could not be read"),
            }
        }));
    }

    /// Comes back for a job that may be tried again before the next poll.
    fn claim_at(&mut self, due: Option<DateTime<Utc>>, ctx: &mut Context<Self>) {
        let wait = due.and_then(|due| (due - self.clock.now()).to_std().ok());
        if let Some(wait) = wait.filter(|wait| *wait < QUEUE_POLL) {
            ctx.run_later(wait, |this, ctx| this.claim(ctx));
        }
    }

    fn start(&mut self, job: JobRow, ctx: &mut Context<Self>) {
        let wish = if self.closing { Wish::Stop } else { Wish::Run };
        let (sender, receiver) = watch::channel(wish);
        self.current = Some(Current { job: job.id, wish: sender });
        let runner = self.runner.clone();
        let actor = actor_span(ActorName::Training);
        let span = tracing::info_span!(parent: &actor, "job", id = job.id, attempt = job.attempts);
        let run = async move {
            // A panic here must cost the job and not the queue.
            let attempt = runner.run(job.clone(), receiver).instrument(span);
            let attempt = AssertUnwindSafe(attempt).catch_unwind().await;
            if let Err(panic) = attempt {
                let what = panic_text(panic.as_ref());
                runner.fail(&job, format!("the job stopped on an internal error: {what}")).await;
            }
        };
        ctx.spawn(run.into_actor(self).map(|(), this, ctx| this.ended(ctx)));
    }

    fn ended(&mut self, ctx: &mut Context<Self>) {
        self.current = None;
        self.untidy = true;
        self.answer_parked();
        for (domain, threshold) in std::mem::take(&mut self.flagged) {
            self.enqueue_if_due(domain, threshold, ctx);
        }
        self.claim(ctx);
        self.look_for_waiters(ctx);
    }

    fn answer_parked(&mut self) {
        for reply in self.parked.drain(..) {
            // Whoever waited may have run out of patience.
            let _ = reply.send(());
        }
    }

    /// Enqueues an automatic job if its domain really has enough marks.
    fn enqueue_if_due(&mut self, domain: String, threshold: usize, ctx: &mut Context<Self>) {
        if self.closing {
            return;
        }
        let base = self.runner.current.get().trained.of_job();
        let wish = JobWish { domain, base, ..JobWish::default() };
        let new = match plan::new_job(&self.rules.config, wish) {
            Ok(new) => new,
            Err(error) => return tracing::error!(%error, "no automatic job"),
        };
        self.enqueuing += 1;
        let runner = self.runner.clone();
        let enqueue = async move {
            let job = runner.db.call(move |store| store.enqueue_if_due(&new, threshold)).await?;
            if let Some(job) = &job {
                runner.notices.tell(queued(job, true)).await;
            }
            Ok::<_, DbError>(())
        };
        ctx.spawn(enqueue.into_actor(self).map(|result, this, ctx| {
            this.enqueuing -= 1;
            if let Err(error) = result {
                tracing::warn!(%error, "no automatic job");
            }
            this.claim(ctx);
            this.look_for_waiters(ctx);
        }));
    }

    /// Answers those who wait for the queue to be empty, if it is.
    fn look_for_waiters(&mut self, ctx: &mut Context<Self>) {
        if self.waiters.is_empty() {
            return;
        }
        let db = self.runner.db.clone();
        let open = async move { db.call(open_jobs).await };
        ctx.spawn(open.into_actor(self).map(|open, this, _| match open {
            Ok(open) => this.answer_waiters(&open),
            Err(error) => tracing::warn!(%error, "the queue could not be read"),
        }));
    }

    fn answer_waiters(&mut self, open: &[i64]) {
        self.waiters.iter_mut().for_each(|waiter| waiter.seen.extend(open));
        // What another process's jobs came to is told before anybody hears that they are over.
        let told = self.rules.right.is_held() || self.followed.is_settled();
        let idle = open.is_empty() && self.enqueuing == 0 && self.flagged.is_empty() && told;
        if idle && self.current.is_none() {
            for Waiter { seen, reply } in self.waiters.drain(..) {
                // Whoever stopped waiting dropped the other end.
                let _ = reply.send(Ok(seen.len()));
            }
        }
    }
}

/// What a look at the queue found.
struct Claimed {
    job: Option<JobRow>,
    due: Option<DateTime<Utc>>,
    /// Orphans that have ended.
    given_up: Vec<JobRow>,
}

/// Claims the next job. Whoever holds the queue and runs nothing owns no active job: one that is active is an orphan.
fn claim(
    store: &Store,
    now: DateTime<Utc>,
    attempts: usize,
    keep: Option<Keep>,
) -> Result<Claimed, StoreError> {
    let orphans = store.requeue_orphans(attempts)?;
    if orphans != Default::default() {
        tracing::info!(?orphans, "jobs of a process that is gone");
    }
    // What cannot be removed is no reason not to train.
    match keep.map(|keep| store.prune(&keep)) {
        Some(Ok(pruned)) if pruned != Default::default() => {
            tracing::info!(?pruned, "removed what is not kept");
        }
        Some(Err(error)) => tracing::warn!(%error, "what is old was not removed"),
        _ => {}
    }
    let ended = orphans.cancelled.iter().chain(&orphans.failed);
    let given_up = ended.map(|id| store.job(*id)).collect::<Result<_, _>>()?;
    let job = store.claim_next_at(now)?;
    Ok(Claimed { due: store.next_due()?, job, given_up })
}

fn open_jobs(store: &Store) -> Result<Vec<i64>, StoreError> {
    let open = |job: &JobRow| !job.state.is_final();
    Ok(store.jobs()?.into_iter().filter(open).map(|job| job.id).collect())
}

fn queued(job: &JobRow, automatic: bool) -> JobNotice {
    JobNotice::Queued { job: job.id, domain: job.domain.clone(), examples: job.examples, automatic }
}

impl Actor for TrainingActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        if self.rules.right.is_held() {
            self.run_queue(ctx);
        } else {
            self.following = Some(ctx.run_interval(FOLLOW_POLL, Self::follow));
        }
    }
}

impl Handler<EnqueueTraining> for TrainingActor {
    type Result = ResponseActFuture<Self, Result<JobLine, ActorError>>;

    fn handle(&mut self, message: EnqueueTraining, _: &mut Self::Context) -> Self::Result {
        let EnqueueTraining { domain, name, from, priority, only } = message;
        let base = self.runner.current.get().trained.of_job();
        let wish = JobWish { name, domain, from, priority, only, base };
        let (runner, config) = (self.runner.clone(), Arc::clone(&self.rules.config));
        let closing = self.closing;
        self.enqueuing += 1;
        let enqueue = async move {
            if closing {
                return Err(ActorError::Closing);
            }
            let job = runner.db.call(move |store| Ok(plan::enqueue(store, &config, wish))).await?;
            let job = job.map_err(refusal)?;
            runner.notices.tell(queued(&job, false)).await;
            Ok(views::job_line(job))
        };
        Box::pin(enqueue.into_actor(self).map(|result, this, ctx| {
            this.enqueuing -= 1;
            this.claim(ctx);
            result
        }))
    }
}

fn refusal(error: PlanError) -> ActorError {
    match error {
        PlanError::Store(error) => DbError::Store(error).into(),
        other => ActorError::Refused(other.to_string()),
    }
}

impl Handler<ThresholdReached> for TrainingActor {
    type Result = ();

    fn handle(&mut self, message: ThresholdReached, ctx: &mut Self::Context) {
        if self.current.is_some() {
            self.flagged.insert(message.domain, message.threshold);
        } else {
            self.enqueue_if_due(message.domain, message.threshold, ctx);
        }
    }
}

impl Handler<Reconfigure> for TrainingActor {
    type Result = ();

    fn handle(&mut self, message: Reconfigure, _: &mut Self::Context) {
        self.runner.retry = RetryPolicy::of(&message.0.queue);
        self.rules.config = message.0;
    }
}

impl Handler<CancelJob> for TrainingActor {
    type Result = ResponseActFuture<Self, Result<JobLine, ActorError>>;

    fn handle(&mut self, message: CancelJob, _: &mut Self::Context) -> Self::Result {
        let runner = self.runner.clone();
        let cancel = async move {
            let row = runner.db.call(move |store| store.request_cancel(message.id)).await?;
            if row.state == JobState::Cancelled {
                runner.notices.tell(JobNotice::Cancelled { job: row.id }).await;
            }
            Ok(views::job_line(row))
        };
        Box::pin(cancel.into_actor(self).map(|result: Result<JobLine, _>, this, ctx| {
            if let (Ok(line), Some(current)) = (&result, &this.current)
                && line.id == current.job
            {
                current.wish.send_replace(Wish::Stop);
            }
            this.look_for_waiters(ctx);
            result
        }))
    }
}

impl Handler<ListJobs> for TrainingActor {
    type Result = ResponseFuture<Result<Vec<JobLine>, ActorError>>;

    fn handle(&mut self, message: ListJobs, _: &mut Self::Context) -> Self::Result {
        let db = self.runner.db.clone();
        Box::pin(async move {
            let rows = db.call(|store| store.jobs()).await?;
            Ok(rows.into_iter().rev().take(message.limit).map(views::job_line).collect())
        })
    }
}

impl Handler<WaitForJobs> for TrainingActor {
    type Result = ResponseFuture<Result<usize, ActorError>>;

    fn handle(&mut self, _: WaitForJobs, ctx: &mut Self::Context) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        if self.closing {
            return Box::pin(async { Err(ActorError::Closing) });
        }
        self.waiters.retain(|waiter| !waiter.reply.is_closed());
        if self.waiters.len() >= MAX_WAITERS {
            let full = ActorError::Busy { what: "the queue's waiting room", limit: MAX_WAITERS };
            return Box::pin(async { Err(full) });
        }
        let seen = self.current.iter().map(|current| current.job).collect();
        self.waiters.push(Waiter { seen, reply });
        self.look_for_waiters(ctx);
        // A dropped sender is an actor that died or closed.
        Box::pin(async { answer.await.unwrap_or(Err(ActorError::Closing)) })
    }
}

impl Handler<ParkTraining> for TrainingActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: ParkTraining, _: &mut Self::Context) -> Self::Result {
        self.closing = true;
        for waiter in self.waiters.drain(..) {
            let _ = waiter.reply.send(Err(ActorError::Closing));
        }
        match &self.current {
            Some(current) => drop(current.wish.send_replace(Wish::Stop)),
            // A job claimed in this moment starts with the wish to stop.
            None if self.claiming => {}
            None => return Box::pin(async {}),
        }
        let (reply, stopped) = oneshot::channel();
        self.parked.push(reply);
        Box::pin(async { drop(stopped.await) })
    }
}

#[cfg(test)]
#[path = "training_tests.rs"]
mod tests;
