//! One attempt at one job: plan it, run its worker, judge what it measured, write down how it ended.
//!
//! Every way out of here leaves the job in a state that the next claim understands: ended, or back in the queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::ends;
use super::notices::Subscribers;
use super::retry::RetryPolicy;
use crate::actors::base::CurrentBase;
use crate::actors::db::Db;
use crate::eval::{self, GateReport, ItemLoss, Measurements, Verdict};
use crate::lora::{JobInput, Resources};
use crate::messages::console::{JobNotice, Progress};
use crate::messages::registry::{PublishAdapter, Published};
use crate::messages::{ActorError, Port};
use crate::plan::{self, TrainedBase};
use crate::store::{self, Home, JobMetrics, JobRow, JobState, Store};
use crate::worker::{JobRequest, WorkerEvent, WorkerExit, WorkerHandle};

/// Events of a worker that wait for the actor; the worker's side drops older figures, never a turn of the job.
pub const WORKER_EVENTS: usize = 32;
/// How often the database is asked whether another process wants the job cancelled.
const CANCEL_POLL: Duration = Duration::from_secs(1);
/// The least time between two writes of progress: each one is a sync of the disk.
pub(super) const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// Notes of an attempt that are stored; those of a worker gone mad are only told.
pub(super) const MAX_NOTES: usize = 200;

/// What the owner wants of a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// That it goes on.
    #[default]
    Run,
    /// That it writes a checkpoint and leaves.
    Stop,
}

/// A worker, as the runner holds it.
pub trait Worker {
    /// Asks it to write a checkpoint and leave.
    fn cancel(&self);
    /// Ends it at once.
    fn kill(&self);
}

impl Worker for WorkerHandle {
    fn cancel(&self) {
        WorkerHandle::cancel(self);
    }

    fn kill(&self) {
        WorkerHandle::kill(self);
    }
}

/// Kills a worker that nobody listens to any more: the next attempt must not meet it at its checkpoints.
pub(super) struct KillOnDrop(pub(super) Box<dyn Worker>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Starts a worker, which may take so long.
pub type Launcher = Arc<
    dyn Fn(
        JobRequest<JobInput>,
        Duration,
        mpsc::Sender<WorkerEvent<Measurements>>,
    ) -> Box<dyn Worker>,
>;

/// All that an attempt needs.
#[derive(Clone)]
pub struct Runner {
    /// The data directory.
    pub home: Home,
    /// Its database.
    pub db: Db,
    /// The model in use, which jobs without one of their own train.
    pub current: CurrentBase,
    /// Starts workers.
    pub launch: Launcher,
    /// Publishes.
    pub registry: Port<PublishAdapter>,
    /// Who hears of it.
    pub notices: Subscribers,
    /// When to try again.
    pub retry: RetryPolicy,
}

impl Runner {
    /// Runs one attempt at a claimed job to its end.
    ///
    /// A store that cannot be written, or an adapter that cannot be read back, fails the job, unless its row says that it
    /// has ended: the registry may die after the end is stored and before it says so.
    pub async fn run(&self, job: JobRow, mut wish: watch::Receiver<Wish>) {
        if let Err(error) = self.attempt(&job, &mut wish).await {
            self.fail(&job, error.to_string()).await;
        }
    }

    async fn attempt(
        &self,
        job: &JobRow,
        wish: &mut watch::Receiver<Wish>,
    ) -> Result<(), ActorError> {
        let base = self.base_of(job)?;
        let request = self.request(job, &base).await?;
        let attempt = u32::try_from(job.attempts).unwrap_or(u32::MAX);
        self.notices
            .tell(JobNotice::Started { job: job.id, examples: job.examples, attempt })
            .await;
        let timeout = plan::timeout(&plan::lora_section(job).map_err(refused)?);
        let (exit, step) = self.work(job, request, timeout, wish).await;
        match exit {
            WorkerExit::Finished(measured) => self.judge(job, &base, &measured).await,
            WorkerExit::Cancelled => self.stopped(job, step).await,
            exit if exit.may_succeed_again() => self.try_again(job, &exit).await,
            exit => {
                self.fail(job, exit.to_string()).await;
                Ok(())
            }
        }
    }

    /// Returns the model that a job trains; whatever is in use later, it stays that.
    fn base_of(&self, job: &JobRow) -> Result<TrainedBase, ActorError> {
        let current = self.current.get();
        current.trained.for_job(job).map_err(refused)
    }

    async fn request(
        &self,
        job: &JobRow,
        base: &TrainedBase,
    ) -> Result<JobRequest<JobInput>, ActorError> {
        let (row, base_hash) = (job.clone(), base.base_hash.clone());
        let inputs = self.db.call(move |store| plan::read_inputs(store, &row, &base_hash)).await?;
        let input = plan::job_input(&self.home, base, job, inputs).map_err(refused)?;
        Ok(JobRequest {
            checkpoint_dir: self.home.checkpoint(job.id),
            out_dir: self.home.outcome(job.id),
            input,
        })
    }

    /// Runs the worker to its end; returns that and the last step.
    async fn work(
        &self,
        job: &JobRow,
        request: JobRequest<JobInput>,
        timeout: Duration,
        wish: &mut watch::Receiver<Wish>,
    ) -> (WorkerExit<Measurements>, usize) {
        if *wish.borrow_and_update() == Wish::Stop {
            return (WorkerExit::Cancelled, job.step);
        }
        let (sender, mut events) = mpsc::channel(WORKER_EVENTS);
        let worker = KillOnDrop((self.launch)(request, timeout, sender));
        let mut watched = Watched { step: job.step, written: None, notes: 0 };
        let mut look = interval(CANCEL_POLL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(WorkerEvent::Ended(exit)) => return (exit, watched.step),
                    Some(event) => self.heard(job.id, event, &mut watched).await,
                    None => {
                        let reason = "its monitor is gone".to_owned();
                        return (WorkerExit::Protocol(reason), watched.step);
                    }
                },
                Ok(()) = wish.changed() => worker.0.cancel(),
                _ = look.tick() => if self.cancel_requested(job.id).await { worker.0.cancel() },
            }
        }
    }

    async fn cancel_requested(&self, job: i64) -> bool {
        self.db.call(move |store| store.cancel_requested(job)).await.unwrap_or(false)
    }

    /// Passes on what the worker says.
    async fn heard(&self, job: i64, event: WorkerEvent<Measurements>, watched: &mut Watched) {
        match event {
            WorkerEvent::Started { pid } => tracing::info!(job, pid, "the worker runs"),
            WorkerEvent::Progress {
                epoch,
                epochs,
                step,
                total_steps,
                loss,
                elapsed_ms,
                eta_ms,
            } => {
                let progress =
                    Progress { job, epoch, epochs, step, total_steps, loss, elapsed_ms, eta_ms };
                self.progressed(progress, watched).await;
            }
            WorkerEvent::Checkpointed { step } => {
                self.notices.hint(&JobNotice::Checkpointed { job, step });
            }
            WorkerEvent::Evaluating => {
                self.evaluating(job).await;
            }
            WorkerEvent::Note(text) => {
                if watched.notes < MAX_NOTES {
                    watched.notes += 1;
                    self.record(job, plan::NOTE, text.clone()).await;
                }
                self.notices.tell(JobNotice::Noted { job, text }).await;
            }
            WorkerEvent::Isolated(how) => {
                tracing::info!(job, how, "the worker is isolated");
                self.record(job, plan::ISOLATION, how).await;
            }
            WorkerEvent::LogTail(text) => self.record(job, plan::LOG_TAIL, text).await,
            WorkerEvent::Resources(known) => self.resources(job, &known).await,
            WorkerEvent::Ended(_) => {}
        }
    }

    async fn resources(&self, job: i64, known: &Resources) {
        if let Ok(json) = serde_json::to_string(known) {
            self.record(job, plan::RESOURCES, json).await;
        }
        if let Resources {
            expected_bytes: bytes, expected_ms: Some(ms), elapsed_ms: None, ..
        } = *known
        {
            self.notices.tell(JobNotice::Expected { job, ms, bytes }).await;
        }
    }

    async fn record(&self, job: i64, kind: &'static str, detail: String) {
        let noted = self.db.call(move |store| store.note_job(job, kind, &detail)).await;
        if let Err(error) = noted {
            tracing::warn!(job, kind, %error, "an event was not stored");
        }
    }

    async fn progressed(&self, progress: Progress, watched: &mut Watched) {
        watched.step = progress.step;
        let job = progress.job;
        let row = store::Progress {
            step: progress.step,
            total_steps: progress.total_steps,
            loss: Some(progress.loss),
        };
        self.notices.hint(&JobNotice::Progressed(progress));
        let now = Instant::now();
        if is_due(watched.written, now) {
            watched.written = Some(now);
            if let Err(error) = self.db.call(move |store| store.set_progress(job, &row)).await {
                tracing::warn!(job, %error, "progress was not stored");
            }
        }
    }

    async fn evaluating(&self, job: i64) {
        match self.db.call(move |store| store.set_evaluating(job)).await {
            Ok(_) => self.notices.tell(JobNotice::Evaluating { job }).await,
            Err(error) => tracing::warn!(job, %error, "the job's state was not stored"),
        }
    }

    /// Lets the gate decide, and publishes or rejects.
    async fn judge(
        &self,
        job: &JobRow,
        base: &TrainedBase,
        measured: &Measurements,
    ) -> Result<(), ActorError> {
        let id = job.id;
        let state = self.db.call(move |store| Ok(store.job(id)?.state)).await?;
        if state == JobState::Running {
            self.evaluating(id).await;
        }
        // The publication's transaction looks again.
        if self.cancel_requested(id).await {
            return self.stopped(job, measured.steps).await;
        }
        let lora = plan::lora_section(job).map_err(refused)?;
        let (report, verdict) = eval::gate(measured, &plan::gate_config(&lora));
        let metrics = metrics_of(measured, &report);
        let (final_loss, report) = (measured.final_loss, report.to_string());
        let notice = match verdict {
            Verdict::Promote(promotion) => {
                let message = PublishAdapter {
                    job: id,
                    id: job.name.clone(),
                    dir: self.home.outcome(id),
                    domain: job.domain.clone(),
                    rank: lora.rank,
                    target_modules: lora.target_modules,
                    base: base.name.clone(),
                    base_hash: base.base_hash.clone(),
                    examples: measured.examples,
                    metrics,
                    promotion,
                };
                let Published { path, live } = self.registry.ask(message).await?;
                let (adapter, examples) = (job.name.clone(), job.examples);
                JobNotice::Succeeded { job: id, adapter, path, examples, final_loss, report, live }
            }
            Verdict::Reject { reasons } => {
                let stored = reasons.clone();
                self.db.call(move |store| store.finish_rejected(id, &stored, &metrics)).await?;
                JobNotice::Rejected { job: id, reasons, examples: job.examples, final_loss, report }
            }
        };
        self.clean(id).await;
        self.notices.tell(notice).await;
        Ok(())
    }

    /// The worker left because it was asked to: by a person, or because the program ends.
    async fn stopped(&self, job: &JobRow, step: usize) -> Result<(), ActorError> {
        let id = job.id;
        let end = move |store: &Store| {
            if store.cancel_requested(id)? {
                store.finish_cancelled(id)
            } else {
                store.release_job(id)
            }
        };
        let row = self.db.call(end).await?;
        if row.state == JobState::Cancelled {
            self.clean(id).await;
            self.notices.tell(JobNotice::Cancelled { job: id }).await;
        } else {
            self.notices.tell(JobNotice::Parked { job: id, step }).await;
        }
        Ok(())
    }

    /// The worker died: back into the queue for another attempt from the last checkpoint, or the end.
    /// One that ran out of memory leaves a mark, by which the next attempt plans with less.
    async fn try_again(
        &self,
        job: &JobRow,
        exit: &WorkerExit<Measurements>,
    ) -> Result<(), ActorError> {
        let (id, attempts, max_attempts) = (job.id, job.attempts, self.retry.max_attempts);
        let mut reason = exit.to_string();
        let starved = *exit == WorkerExit::OutOfMemory;
        if starved {
            let why = reason.clone();
            self.db.call(move |store| store.note_job(id, plan::OUT_OF_MEMORY, &why)).await?;
        }
        let pause = self.retry.pause(attempts, rand::random());
        let why = reason.clone();
        let row =
            self.db.call(move |store| store.requeue_or_fail(id, max_attempts, pause, &why)).await?;
        // The reason may quote an example, as panics do; it is stored with the job.
        tracing::warn!(job = id, state = %row.state, "the worker died");
        tracing::trace!(job = id, reason, "why the worker died");
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let notice = if row.state == JobState::Queued {
            if starved {
                reason.push_str("; the next attempt is planned with less");
            }
            JobNotice::Retrying {
                job: id,
                reason,
                attempt: count(attempts + 1),
                max_attempts: count(max_attempts),
                pause_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            }
        } else {
            self.clean(id).await;
            JobNotice::Failed { job: id, error: reason, attempts: count(attempts) }
        };
        self.notices.tell(notice).await;
        Ok(())
    }

    /// Ends a job as failed, or as cancelled if it was asked to stop; if its row says that it has left already, that is
    /// told. Where the end cannot be stored, the checkpoint stays: the next claim finds an orphan and tries again.
    pub async fn fail(&self, job: &JobRow, error: String) {
        let (id, why) = (job.id, error.clone());
        let end = move |store: &Store| {
            let row = store.job(id)?;
            if !row.state.is_active() {
                return Ok(row);
            }
            if row.cancel_requested {
                store.finish_cancelled(id)
            } else {
                store.finish_failed(id, &why)
            }
        };
        match self.db.call(end).await {
            Ok(row) => self.tell_end(&row).await,
            Err(unstored) => {
                tracing::error!(job = id, error = %unstored, "the job's end was not stored");
                let text = format!(
                    "{error}; that could not be stored ({unstored}): its checkpoint stays, and it is tried again"
                );
                self.notices.tell(JobNotice::Noted { job: id, text }).await;
            }
        }
    }

    /// Tells how a job ended as its row has it, and removes its checkpoints.
    pub async fn tell_end(&self, row: &JobRow) {
        let job = row.id;
        let Some(notice) = ends::notice(&self.home, row) else {
            return tracing::info!(job, state = %row.state, "the job has not ended");
        };
        self.clean(job).await;
        self.notices.tell(notice).await;
    }

    /// Removes the checkpoints of a job that has ended; its loss curve, which lies among them, is kept first.
    async fn clean(&self, job: i64) {
        if let Err(error) = self.db.call(move |store| store.keep_curve(job)).await {
            return tracing::warn!(job, %error, "the loss curve was not stored: checkpoints stay");
        }
        let home = self.home.clone();
        let removed = tokio::task::spawn_blocking(move || home.remove_checkpoint(job)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(job, %error, "checkpoints were left behind");
        }
    }
}

fn refused(error: impl std::fmt::Display) -> ActorError {
    ActorError::Refused(error.to_string())
}

/// What the runner remembers of its worker.
struct Watched {
    step: usize,
    written: Option<Instant>,
    /// Notes that were stored.
    notes: usize,
}

/// Whether progress is stored again: each step would be a transaction.
pub(super) fn is_due(written: Option<Instant>, now: Instant) -> bool {
    written.is_none_or(|at| now.duration_since(at) >= PROGRESS_PAUSE)
}

fn metrics_of(measured: &Measurements, report: &GateReport) -> JobMetrics {
    JobMetrics {
        steps: measured.steps,
        loss: Some(measured.final_loss),
        heldout_before: mean(&measured.heldout, |item| item.before),
        heldout_after: mean(&measured.heldout, |item| item.after),
        gate: serde_json::to_value(report).unwrap_or_default(),
    }
}

fn mean(items: &[ItemLoss], value: impl Fn(&ItemLoss) -> f64) -> Option<f64> {
    let sum: f64 = items.iter().map(value).sum();
    (!items.is_empty()).then(|| sum / items.len() as f64)
}
