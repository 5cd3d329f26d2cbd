//! The queue: which job runs, how far it is, how it goes back or ends early.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, named_params};

use super::error::{StoreError, from_millis, now};
use super::events::job_event;
use super::job_state::JobState;
use super::jobs::{self, JobRow};
use super::{Store, stored};
use crate::domain::AdapterId;

/// How far a running job is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Optimiser steps done.
    pub step: usize,
    /// Optimiser steps to do.
    pub total_steps: usize,
    /// The last training loss, nats per token.
    pub loss: Option<f64>,
}

/// What became of the jobs of a process that is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orphans {
    /// Those that went back to the queue.
    pub requeued: Vec<i64>,
    /// Those that the user had asked to stop.
    pub cancelled: Vec<i64>,
    /// Those that were tried often enough.
    pub failed: Vec<i64>,
}

impl Store {
    /// Takes the next job that is due, if no other is active: queued → running, one attempt more.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn claim_next(&self) -> Result<Option<JobRow>, StoreError> {
        self.claim_next_at(now())
    }

    /// [`Store::claim_next`] at a given time.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn claim_next_at(&self, time: DateTime<Utc>) -> Result<Option<JobRow>, StoreError> {
        self.write(|db| {
            let due = "SELECT id FROM jobs WHERE state = 'queued'
                AND coalesce(not_before, 0) <= ?1
                AND NOT EXISTS (SELECT 1 FROM jobs WHERE state IN ('running', 'evaluating'))
                ORDER BY priority DESC, id LIMIT 1";
            let id: Option<i64> = db
                .prepare_cached(due)?
                .query_row([time.timestamp_millis()], |r| r.get(0))
                .optional()?;
            let Some(id) = id else { return Ok(None) };
            db.execute(
                "UPDATE jobs SET attempts = attempts + 1, not_before = NULL,
                     started_at = coalesce(started_at, ?2) WHERE id = ?1",
                (id, time.timestamp_millis()),
            )?;
            transition(db, id, JobState::Running, None).map(Some)
        })
    }

    /// Returns when the next queued job may be claimed; a time in the past means now.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn next_due(&self) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.read(|db| {
            let sql =
                "SELECT min(coalesce(not_before, created_at)) FROM jobs WHERE state = 'queued'";
            let millis: Option<i64> = db.query_row(sql, [], |row| row.get(0))?;
            Ok(millis.map(from_millis))
        })
    }

    /// Records what a job continues from, so that it is not deleted meanwhile.
    ///
    /// # Errors
    /// When there is no such job, or the database cannot be written.
    pub fn set_job_parent(&self, id: i64, parent: Option<&AdapterId>) -> Result<(), StoreError> {
        self.write(|db| {
            jobs::one(db, id)?;
            db.execute(
                "UPDATE jobs SET parent = ?2 WHERE id = ?1",
                (id, parent.map(AdapterId::as_str)),
            )?;
            Ok(())
        })
    }

    /// Records how far a job is, and returns whether somebody asked to cancel it.
    ///
    /// # Errors
    /// When there is no such job, or the database cannot be written.
    pub fn set_progress(&self, id: i64, progress: &Progress) -> Result<bool, StoreError> {
        self.write(|db| {
            let changed = db
                .prepare_cached(
                    "UPDATE jobs SET step = :step, total_steps = :total, loss = coalesce(:loss, loss)
                     WHERE id = :id RETURNING cancel_requested",
                )?
                .query_row(
                    named_params! {
                        ":id": id,
                        ":step": stored(progress.step),
                        ":total": stored(progress.total_steps),
                        ":loss": progress.loss.filter(|l| l.is_finite()),
                    },
                    |row| row.get(0),
                )
                .optional()?;
            changed.ok_or(StoreError::UnknownJob(id))
        })
    }

    /// Records that a job's worker has trained and is measuring: running → evaluating.
    ///
    /// # Errors
    /// When the job is not running, or the database cannot be written.
    pub fn set_evaluating(&self, id: i64) -> Result<JobRow, StoreError> {
        self.write(|db| transition(db, id, JobState::Evaluating, None))
    }

    /// Puts a job whose worker died back into the queue, to be tried again after `delay`; after
    /// `max_attempts` it fails instead.
    ///
    /// # Errors
    /// When the job is not active, or the database cannot be written.
    pub fn requeue_or_fail(
        &self,
        id: i64,
        max_attempts: usize,
        delay: Duration,
        error: &str,
    ) -> Result<JobRow, StoreError> {
        self.write(|db| {
            let job = jobs::one(db, id)?;
            if !job.state.is_active() {
                let (from, to) = (job.state, JobState::Queued);
                return Err(StoreError::IllegalTransition { job: id, from, to });
            }
            if job.attempts >= max_attempts {
                return transition(db, id, JobState::Failed, Some(error));
            }
            let delay = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
            let not_before = now().timestamp_millis().saturating_add(delay);
            db.execute(
                "UPDATE jobs SET not_before = ?2, error = ?3 WHERE id = ?1",
                (id, not_before, error),
            )?;
            transition(db, id, JobState::Queued, Some(error))
        })
    }

    /// Puts a running job back into the queue because this process ends; that is no failed attempt.
    ///
    /// # Errors
    /// When the job is not active, or the database cannot be written.
    pub fn release_job(&self, id: i64) -> Result<JobRow, StoreError> {
        self.write(|db| release(db, id))
    }

    /// Puts whatever this process runs back into the queue, as [`Store::release_job`] does, or cancels it where that was
    /// asked for; returns the jobs. Only for the holder of the queue's lock, when it ends.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn release_active(&self) -> Result<Vec<i64>, StoreError> {
        self.write(|db| {
            let sql = "SELECT id FROM jobs WHERE state IN ('running', 'evaluating')";
            let ids: Vec<i64> =
                db.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            for &id in &ids {
                if jobs::one(db, id)?.cancel_requested {
                    transition(db, id, JobState::Cancelled, Some("cancelled by the user"))?;
                } else {
                    release(db, id)?;
                }
            }
            Ok(ids)
        })
    }

    /// Puts the jobs of a process that is gone back into the queue, cancels those that were to be
    /// cancelled, and fails those that have had `max_attempts`: one that takes the whole machine
    /// down must not do so at every start. Only for the holder of the queue's lock, before it claims a job.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn requeue_orphans(&self, max_attempts: usize) -> Result<Orphans, StoreError> {
        self.write(|db| {
            let sql = "SELECT id FROM jobs WHERE state IN ('running', 'evaluating')";
            let ids: Vec<i64> =
                db.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let mut orphans = Orphans::default();
            for id in ids {
                let job = jobs::one(db, id)?;
                if job.cancel_requested {
                    transition(db, id, JobState::Cancelled, Some("cancelled by the user"))?;
                    orphans.cancelled.push(id);
                } else if job.attempts >= max_attempts {
                    let why = format!(
                        "its process ended in attempt {} of {max_attempts} (queue.max_attempts): see the logs, then train again",
                        job.attempts
                    );
                    transition(db, id, JobState::Failed, Some(&why))?;
                    orphans.failed.push(id);
                } else {
                    transition(db, id, JobState::Queued, Some("its process ended"))?;
                    orphans.requeued.push(id);
                }
            }
            Ok(orphans)
        })
    }

    /// Asks to cancel a job: a queued one is cancelled at once, an active one by whoever runs it
    /// (see [`Store::set_progress`] and [`Store::cancel_requested`]), who then calls
    /// [`Store::finish_cancelled`].
    ///
    /// # Errors
    /// When the job has ended, when there is none with this id, or the database cannot be written.
    pub fn request_cancel(&self, id: i64) -> Result<JobRow, StoreError> {
        self.write(|db| {
            let job = jobs::one(db, id)?;
            if !job.state.is_active() {
                return transition(db, id, JobState::Cancelled, Some("cancelled by the user"));
            }
            db.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = ?1", [id])?;
            jobs::one(db, id)
        })
    }

    /// Whether somebody asked to cancel a job.
    ///
    /// # Errors
    /// When there is no such job, or the database cannot be read.
    pub fn cancel_requested(&self, id: i64) -> Result<bool, StoreError> {
        self.read(|db| Ok(jobs::one(db, id)?.cancel_requested))
    }
}

fn release(db: &Connection, id: i64) -> Result<JobRow, StoreError> {
    db.execute("UPDATE jobs SET attempts = max(0, attempts - 1) WHERE id = ?1", [id])?;
    transition(db, id, JobState::Queued, Some("left for the next start"))
}

/// Returns an open job that learns the same examples from the beginning with the same settings.
pub(super) fn twin(db: &Connection, job: i64) -> Result<Option<i64>, StoreError> {
    let examples = |of: &str| {
        format!(
            "SELECT feedback_id, target, weight FROM job_feedback
             WHERE job_id = {of}.id AND role IN ('new', 'replay')"
        )
    };
    let (mine, other) = (examples("mine"), examples("other"));
    let sql = format!(
        "SELECT other.id FROM jobs mine JOIN jobs other ON other.id != mine.id
            AND other.domain = mine.domain AND other.start = mine.start
            AND other.params = mine.params AND other.base IS mine.base
         WHERE mine.id = ?1 AND mine.start = 'fresh'
            AND other.state IN ('queued', 'running', 'evaluating') AND other.cancel_requested = 0
            AND NOT EXISTS ({mine} EXCEPT {other}) AND NOT EXISTS ({other} EXCEPT {mine})"
    );
    Ok(db.prepare_cached(&sql)?.query_row([job], |row| row.get(0)).optional()?)
}

/// Moves a job to another state if it may go there, with a row in `events`; what ends it sets
/// `finished_at`, and `detail` becomes its `error` unless it succeeded.
pub(super) fn transition(
    db: &Connection,
    id: i64,
    to: JobState,
    detail: Option<&str>,
) -> Result<JobRow, StoreError> {
    let from = jobs::one(db, id)?.state;
    if !from.may_become(to) {
        return Err(StoreError::IllegalTransition { job: id, from, to });
    }
    let finished_at = to.is_final().then(|| now().timestamp_millis());
    let error = detail.filter(|_| to.is_final() && to != JobState::Succeeded);
    db.prepare_cached(
        "UPDATE jobs SET state = :state, finished_at = :finished_at,
             error = CASE WHEN :state = 'succeeded' THEN NULL ELSE coalesce(:error, error) END
         WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": id,
        ":state": to.as_str(),
        ":finished_at": finished_at,
        ":error": error,
    })?;
    job_event(db, id, to.as_str(), detail)?;
    jobs::one(db, id)
}
