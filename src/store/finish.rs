//! How a job ends.

use rusqlite::{Connection, OptionalExtension, named_params};

use super::adapters::{self, AdapterRow, NewAdapter};
use super::error::StoreError;
use super::events::adapter_event;
use super::job_state::JobState;
use super::jobs::{self, JobRow};
use super::publish::{self, Published};
use super::queue::transition;
use super::{Store, stored};
use crate::eval::Promotion;

/// What was measured of a job's outcome.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobMetrics {
    /// Optimiser steps done.
    pub steps: usize,
    /// Mean training loss at the end, nats per token.
    pub loss: Option<f64>,
    /// Mean loss on the held-out items before training, nats per token.
    pub heldout_before: Option<f64>,
    /// Mean loss on the held-out items after training, nats per token.
    pub heldout_after: Option<f64>,
    /// The gate's whole report.
    pub gate: serde_json::Value,
}

impl Store {
    /// Publishes a job's adapter and makes it live: its files are made durable and moved to their
    /// place, its row, the job's end and the consumption of its examples are one transaction.
    ///
    /// The promotion is what only the gate can make: nothing goes live unmeasured.
    ///
    /// # Errors
    /// When the job is not being evaluated or was asked to stop, an example of it was learned in another job meanwhile,
    /// the name is taken, the directory lacks a file, or something cannot be written. Then nothing
    /// has changed, and the files lie where they lay.
    pub fn finish_succeeded(
        &self,
        job: i64,
        adapter: &NewAdapter,
        metrics: &JobMetrics,
        _promotion: &Promotion,
    ) -> Result<AdapterRow, StoreError> {
        let bytes = publish::prepare(&adapter.dir)?;
        let mut published = None;
        let done = self.write(|db| {
            let row = jobs::one(db, job)?;
            if row.cancel_requested {
                return Err(StoreError::CancelAsked(job));
            }
            check_unlearned(db, job)?;
            if adapters::exists(db, &adapter.id)? {
                return Err(StoreError::NameTaken(adapter.id.clone()));
            }
            write_metrics(db, job, metrics)?;
            db.execute("UPDATE jobs SET adapter = ?2 WHERE id = ?1", (job, adapter.id.as_str()))?;
            transition(db, job, JobState::Succeeded, None)?;
            adapters::insert(db, adapter, &metrics.gate, bytes, row.parent.as_ref())?;
            adapters::make_live(db, &adapter.id)?;
            adapter_event(db, Some(job), &adapter.id, "live", Some("promoted by the gate"))?;
            published = Some(Published::publish(&adapter.dir, &self.home, &adapter.id)?);
            adapters::one(db, &adapter.id)
        });
        match (&done, published) {
            (Ok(_), _) | (Err(_), None) => {}
            (Err(_), Some(published)) => published.take_back(),
        }
        done
    }

    /// Ends a job whose adapter the gate refused; its examples return to the buffer.
    ///
    /// # Errors
    /// When the job is not being evaluated, or the database cannot be written.
    pub fn finish_rejected(
        &self,
        job: i64,
        reasons: &[String],
        metrics: &JobMetrics,
    ) -> Result<JobRow, StoreError> {
        self.write(|db| {
            write_metrics(db, job, metrics)?;
            transition(db, job, JobState::Rejected, Some(&reasons.join("; ")))
        })
    }

    /// Ends a job that could not be trained; its examples return to the buffer.
    ///
    /// # Errors
    /// When the job has ended, or the database cannot be written.
    pub fn finish_failed(&self, job: i64, error: &str) -> Result<JobRow, StoreError> {
        self.write(|db| transition(db, job, JobState::Failed, Some(error)))
    }

    /// Ends a job that was taken back; its examples return to the buffer.
    ///
    /// # Errors
    /// When the job has ended, or the database cannot be written.
    pub fn finish_cancelled(&self, job: i64) -> Result<JobRow, StoreError> {
        let why = Some("cancelled by the user");
        self.write(|db| transition(db, job, JobState::Cancelled, why))
    }
}

fn write_metrics(db: &Connection, job: i64, metrics: &JobMetrics) -> Result<(), StoreError> {
    let finite = |value: Option<f64>| value.filter(|v| v.is_finite());
    db.prepare_cached(
        "UPDATE jobs SET step = :steps, loss = coalesce(:loss, loss), heldout_before = :before,
             heldout_after = :after, gate = :gate WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": job,
        ":steps": stored(metrics.steps),
        ":loss": finite(metrics.loss),
        ":before": finite(metrics.heldout_before),
        ":after": finite(metrics.heldout_after),
        ":gate": metrics.gate.to_string(),
    })?;
    Ok(())
}

/// Refuses to learn an example twice, but in jobs of one sweep; the schema's trigger would, but says less.
fn check_unlearned(db: &Connection, job: i64) -> Result<(), StoreError> {
    let sql = "SELECT theirs.feedback_id, theirs.job_id FROM jobs me
               JOIN job_feedback mine ON mine.job_id = me.id AND mine.role = 'new'
               JOIN job_feedback theirs ON theirs.feedback_id = mine.feedback_id
                   AND theirs.job_id <> me.id AND theirs.role = 'new'
               JOIN jobs j ON j.id = theirs.job_id AND j.state = 'succeeded'
               WHERE me.id = ?1 AND (me.sweep IS NULL OR j.sweep IS NOT me.sweep) LIMIT 1";
    let learned: Option<(i64, i64)> =
        db.query_row(sql, [job], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match learned {
        Some((feedback, job)) => Err(StoreError::AlreadyLearned { feedback, job }),
        None => Ok(()),
    }
}
