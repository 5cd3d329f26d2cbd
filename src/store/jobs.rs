//! Training jobs: what they are, how they are made, what they learn from.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, Row, named_params};
use serde::{Deserialize, Serialize};

use super::buffer::{self, BufferStatus};
use super::error::{StoreError, from_millis, now};
use super::events::job_event;
use super::feedback::FeedbackRow;
use super::job_state::JobState;
use super::{Store, count, heldout, queue, stored};
use crate::domain::{AdapterId, TrainExample};

/// What a job's adapter grows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartFrom {
    /// The live adapter of the domain, with a sample of old examples.
    #[default]
    Continue,
    /// Zero, on all examples of the domain.
    Fresh,
    /// The live adapter, frozen, with a small difference on top.
    Delta,
}

impl StartFrom {
    /// Returns the name as it is typed and stored.
    pub fn as_str(self) -> &'static str {
        match self {
            StartFrom::Continue => "continue",
            StartFrom::Fresh => "fresh",
            StartFrom::Delta => "delta",
        }
    }
}

impl fmt::Display for StartFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StartFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "continue" => Ok(StartFrom::Continue),
            "fresh" => Ok(StartFrom::Fresh),
            "delta" => Ok(StartFrom::Delta),
            other => Err(format!("unknown start \"{other}\": use continue, fresh or delta")),
        }
    }
}

/// What a job uses an example for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExampleRole {
    /// To learn it; it is consumed when the job succeeds.
    New,
    /// To keep what was learned before.
    Replay,
    /// To measure what was learned.
    Heldout,
}

impl ExampleRole {
    /// Returns the name as it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            ExampleRole::New => "new",
            ExampleRole::Replay => "replay",
            ExampleRole::Heldout => "heldout",
        }
    }
}

/// The model that a job trains an adapter for.
#[derive(Debug, Clone, PartialEq)]
pub struct JobBase {
    /// The hash of its weights: the job learns the marks of this model.
    pub hash: String,
    /// How to load it.
    pub model: serde_json::Value,
}

/// A job to enqueue.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// The name of its adapter; made from the time when there is none.
    pub name: Option<AdapterId>,
    /// The domain that it learns.
    pub domain: String,
    /// What its adapter grows from.
    pub from: StartFrom,
    /// Jobs with a greater one go first; equal ones in the order of their making.
    pub priority: i64,
    /// The hyper-parameters as configured when it was enqueued; "auto" is resolved when the job is claimed.
    pub params: serde_json::Value,
    /// At most so many old examples are replayed when it does not start fresh; a fresh job takes
    /// all of them.
    pub replay_limit: usize,
    /// Only these marks are new in it; all of the domain when there is no list.
    pub only: Option<Vec<i64>>,
    /// The model that it trains; `None` is the one in use when it runs, and marks of all models.
    pub base: Option<JobBase>,
    /// It is refused when so many jobs wait already.
    pub max_queued: usize,
}

/// A job. Serialises to a row of `jobs list`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRow {
    /// Row id.
    pub id: i64,
    /// The name that its adapter gets.
    pub name: AdapterId,
    /// Where it stands.
    pub state: JobState,
    /// How often a worker was started for it.
    pub attempts: usize,
    /// How many examples are new in it.
    pub examples: usize,
    /// Optimiser steps done.
    pub step: usize,
    /// Optimiser steps to do; 0 until the worker knows.
    pub total_steps: usize,
    /// The last training loss that was measured, nats per token.
    pub loss: Option<f64>,
    /// Loss on the held-out items before training, nats per token.
    pub heldout_before: Option<f64>,
    /// Loss on the held-out items after training, nats per token.
    pub heldout_after: Option<f64>,
    /// The adapter that it published.
    pub adapter: Option<AdapterId>,
    /// Why it failed, was rejected or is tried again.
    pub error: Option<String>,
    /// When it was enqueued.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// The domain that it learns.
    pub domain: String,
    /// What its adapter grows from.
    pub from: StartFrom,
    /// The adapter that it continues from, once it has been claimed.
    pub parent: Option<AdapterId>,
    /// Its sweep, if other jobs learn the same examples: the first job of that.
    pub sweep: Option<i64>,
    /// Jobs with a greater one go first.
    pub priority: i64,
    /// When its first worker started.
    pub started_at: Option<DateTime<Utc>>,
    /// When it may be tried again.
    pub not_before: Option<DateTime<Utc>>,
    /// Whether it should stop; whoever runs it looks.
    pub cancel_requested: bool,
    /// What the gate measured.
    pub gate: Option<serde_json::Value>,
    /// The hyper-parameters as configured when it was enqueued; "auto" is resolved when the job is claimed.
    pub params: serde_json::Value,
    /// The model that it trains; `None` is the one in use when it runs.
    #[serde(skip)]
    pub base: Option<JobBase>,
}

impl NewJob {
    /// Returns the hash of the model that it trains.
    pub(super) fn base_hash(&self) -> Option<&str> {
        self.base.as_ref().map(|base| base.hash.as_str())
    }
}

impl Store {
    /// Enqueues a job with a snapshot of the domain's examples, taken in the same transaction.
    ///
    /// # Errors
    /// When the queue is full, when there is nothing to learn, when the name is taken, or the database
    /// cannot be written.
    pub fn enqueue_job(&self, new: &NewJob) -> Result<JobRow, StoreError> {
        self.write(|db| enqueue(db, new))
    }

    /// Enqueues a job if the domain has marks enough ([`Store::should_train`]), in one transaction.
    ///
    /// # Errors
    /// When the queue is full, when the name is taken or the database cannot be written.
    pub fn enqueue_if_due(
        &self,
        new: &NewJob,
        threshold: usize,
    ) -> Result<Option<JobRow>, StoreError> {
        self.write(|db| {
            if !buffer::is_due(db, &new.domain, new.base_hash(), threshold)? {
                return Ok(None);
            }
            enqueue(db, new).map(Some)
        })
    }

    /// Returns all jobs, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.read(|db| {
            let mut statement = db.prepare_cached("SELECT * FROM jobs ORDER BY id")?;
            let mut cursor = statement.query([])?;
            let mut rows = Vec::new();
            while let Some(row) = cursor.next()? {
                rows.push(read_row(row)?);
            }
            Ok(rows)
        })
    }

    /// Returns one job.
    ///
    /// # Errors
    /// When there is none with this id, or the database cannot be read.
    pub fn job(&self, id: i64) -> Result<JobRow, StoreError> {
        self.read(|db| one(db, id))
    }

    /// Returns the examples of a job in one role as they were when it was enqueued, by id; those
    /// that were forgotten since are gone.
    ///
    /// # Errors
    /// When there is no such job, or the database cannot be read.
    pub fn job_examples(
        &self,
        id: i64,
        role: ExampleRole,
    ) -> Result<Vec<TrainExample>, StoreError> {
        self.read(|db| {
            one(db, id)?;
            let sql = "SELECT f.id, f.messages, jf.target, jf.weight
                       FROM job_feedback jf JOIN feedback f ON f.id = jf.feedback_id
                       WHERE jf.job_id = ?1 AND jf.role = ?2 AND f.forgotten = 0 ORDER BY f.id";
            let mut statement = db.prepare_cached(sql)?;
            let mut cursor = statement.query((id, role.as_str()))?;
            let mut examples = Vec::new();
            while let Some(row) = cursor.next()? {
                examples.push(read_example(row)?);
            }
            Ok(examples)
        })
    }
}

fn enqueue(db: &Connection, new: &NewJob) -> Result<JobRow, StoreError> {
    let rows = buffer::rows_of_domain(db, &new.domain, new.base_hash(), true)?;
    let job = enqueue_from(db, new, &rows)?;
    match queue::twin(db, job.id)? {
        Some(other) => Err(StoreError::SameJob(other)),
        None => Ok(job),
    }
}

/// Enqueues a job with a snapshot of its domain's marks as they were read.
pub(super) fn enqueue_from(
    db: &Connection,
    new: &NewJob,
    rows: &[FeedbackRow],
) -> Result<JobRow, StoreError> {
    let sql = "SELECT count(*) FROM jobs WHERE state = 'queued'";
    let queued: i64 = db.query_row(sql, [], |row| row.get(0))?;
    if queued >= stored(new.max_queued) {
        return Err(StoreError::QueueFull { limit: new.max_queued });
    }
    let only: Option<HashSet<&i64>> = new.only.as_ref().map(|ids| ids.iter().collect());
    let listed = |row: &&FeedbackRow| only.as_ref().is_none_or(|ids| ids.contains(&row.id));
    let fresh: Vec<_> = rows.iter().filter(|r| buffer::is_new(r)).filter(listed).collect();
    let all = all_models(db, new)?;
    let old = all.as_deref().unwrap_or(rows).iter();
    let old: Vec<_> = old.filter(|row| row.consumed_by.is_some()).collect();
    if fresh.is_empty() && (new.from != StartFrom::Fresh || old.is_empty()) {
        return Err(BufferStatus::of(rows).nothing_to_train(&new.domain));
    }
    let name = match &new.name {
        Some(name) if name_is_taken(db, name)? => return Err(StoreError::NameTaken(name.clone())),
        Some(name) => name.clone(),
        None => free_name(db)?,
    };
    let id = insert(db, new, &name, fresh.len())?;
    for row in fresh {
        add_example(db, id, row, ExampleRole::New)?;
    }
    for row in replayed(old, new, id) {
        add_example(db, id, row, ExampleRole::Replay)?;
    }
    for row in rows.iter().filter(|row| row.heldout) {
        add_example(db, id, row, ExampleRole::Heldout)?;
    }
    job_event(db, id, JobState::Queued.as_str(), None)?;
    one(db, id)
}

/// Reads the marks of all models for a job that starts fresh: what one of them learned, it learns too.
fn all_models(db: &Connection, new: &NewJob) -> Result<Option<Vec<FeedbackRow>>, StoreError> {
    let wanted = new.from == StartFrom::Fresh && new.base.is_some();
    wanted.then(|| buffer::rows_of_domain(db, &new.domain, None, true)).transpose()
}

/// Draws the old examples that a job replays: another sample for each job, the same each time.
fn replayed<'a>(mut old: Vec<&'a FeedbackRow>, new: &NewJob, job: i64) -> Vec<&'a FeedbackRow> {
    if new.from != StartFrom::Fresh {
        old.sort_by_key(|row| place(job, row.id));
        old.truncate(new.replay_limit);
    }
    old
}

/// Returns where a mark comes when a job draws what it replays.
pub(super) fn place(job: i64, mark: i64) -> u64 {
    heldout::mix(heldout::mix(job as u64) ^ mark as u64)
}

fn insert(
    db: &Connection,
    new: &NewJob,
    name: &AdapterId,
    examples: usize,
) -> Result<i64, StoreError> {
    db.prepare_cached(
        "INSERT INTO jobs (name, domain, start, priority, examples, params, base, model, created_at)
         VALUES (:name, :domain, :start, :priority, :examples, :params, :base, :model, :created_at)",
    )?
    .execute(named_params! {
        ":name": name.as_str(),
        ":domain": new.domain,
        ":start": new.from.as_str(),
        ":priority": new.priority,
        ":examples": stored(examples),
        ":params": new.params.to_string(),
        ":base": new.base_hash(),
        ":model": new.base.as_ref().map(|base| base.model.to_string()),
        ":created_at": now().timestamp_millis(),
    })?;
    Ok(db.last_insert_rowid())
}

fn add_example(
    db: &Connection,
    job: i64,
    row: &FeedbackRow,
    role: ExampleRole,
) -> Result<(), StoreError> {
    let Some(target) = row.target() else { return Ok(()) };
    db.prepare_cached(
        "INSERT INTO job_feedback (job_id, feedback_id, role, target, weight)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute((job, row.id, role.as_str(), target, row.weight))?;
    Ok(())
}

/// Whether an adapter or a job that may still publish one has this name.
pub(super) fn name_is_taken(db: &Connection, name: &AdapterId) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM adapters WHERE id = ?1)
            OR EXISTS (SELECT 1 FROM jobs
                       WHERE name = ?1 AND state IN ('queued', 'running', 'evaluating'))";
    Ok(db.prepare_cached(sql)?.query_row([name.as_str()], |row| row.get(0))?)
}

/// Makes a name that is free: `lora_<YYYYMMDD_HHMMSS>_<4 hex>`.
fn free_name(db: &Connection) -> Result<AdapterId, StoreError> {
    loop {
        let text = format!("lora_{}_{:04x}", now().format("%Y%m%d_%H%M%S"), rand::random::<u16>());
        let name = text.parse().map_err(|e| StoreError::bad_row("jobs", &text, e))?;
        if !name_is_taken(db, &name)? {
            return Ok(name);
        }
    }
}

/// Takes a mark that is being forgotten out of queued jobs, cancels those that have nothing else to
/// learn, and returns the cancelled ones.
pub(super) fn drop_from_queued(db: &Connection, feedback: i64) -> Result<Vec<i64>, StoreError> {
    let queued = "SELECT job_id FROM job_feedback JOIN jobs ON jobs.id = job_id
                  WHERE feedback_id = ?1 AND state = 'queued'";
    let mut statement = db.prepare_cached(queued)?;
    let ids: Vec<i64> =
        statement.query_map([feedback], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut cancelled = Vec::new();
    for id in ids {
        db.execute(
            "DELETE FROM job_feedback WHERE job_id = ?1 AND feedback_id = ?2",
            (id, feedback),
        )?;
        let count_new = "UPDATE jobs SET examples =
            (SELECT count(*) FROM job_feedback WHERE job_id = ?1 AND role = 'new') WHERE id = ?1";
        db.execute(count_new, [id])?;
        if !has_to_learn(db, id)? {
            let why = "its last example was forgotten";
            queue::transition(db, id, JobState::Cancelled, Some(why))?;
            cancelled.push(id);
        }
    }
    Ok(cancelled)
}

/// Whether a job has an example to learn: a new one, or an old one where it starts fresh.
fn has_to_learn(db: &Connection, job: i64) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM job_feedback jf JOIN jobs j ON j.id = jf.job_id
               WHERE j.id = ?1 AND (jf.role = 'new' OR (jf.role = 'replay' AND j.start = 'fresh')))";
    Ok(db.prepare_cached(sql)?.query_row([job], |row| row.get(0))?)
}

/// Reads one job inside a transaction.
pub(super) fn one(db: &Connection, id: i64) -> Result<JobRow, StoreError> {
    let mut statement = db.prepare_cached("SELECT * FROM jobs WHERE id = ?1")?;
    let row = statement.query_row([id], |row| Ok(read_row(row))).optional()?;
    row.unwrap_or(Err(StoreError::UnknownJob(id)))
}

/// Reads a row of `jobs`.
pub(super) fn read_row(row: &Row<'_>) -> Result<JobRow, StoreError> {
    let id: i64 = row.get("id")?;
    let time = |column| row.get::<_, Option<i64>>(column).map(|t| t.map(from_millis));
    Ok(JobRow {
        id,
        name: parsed(row, "name", id)?,
        state: parsed(row, "state", id)?,
        attempts: count(row, "attempts")?,
        examples: count(row, "examples")?,
        step: count(row, "step")?,
        total_steps: count(row, "total_steps")?,
        loss: row.get("loss")?,
        heldout_before: row.get("heldout_before")?,
        heldout_after: row.get("heldout_after")?,
        adapter: optional(row, "adapter", id)?,
        error: row.get("error")?,
        created_at: from_millis(row.get("created_at")?),
        finished_at: time("finished_at")?,
        domain: row.get("domain")?,
        from: parsed(row, "start", id)?,
        parent: optional(row, "parent", id)?,
        sweep: row.get("sweep")?,
        priority: row.get("priority")?,
        started_at: time("started_at")?,
        not_before: time("not_before")?,
        cancel_requested: row.get("cancel_requested")?,
        gate: json(row, "gate", id)?,
        params: json(row, "params", id)?.unwrap_or_default(),
        base: match row.get("base")? {
            None => None,
            Some(hash) => {
                Some(JobBase { hash, model: json(row, "model", id)?.unwrap_or_default() })
            }
        },
    })
}

fn parsed<T>(row: &Row<'_>, column: &'static str, id: i64) -> Result<T, StoreError>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|e| StoreError::bad_row("jobs", id, e))
}

fn optional(row: &Row<'_>, column: &'static str, id: i64) -> Result<Option<AdapterId>, StoreError> {
    let text: Option<String> = row.get(column)?;
    text.map(|t| t.parse().map_err(|e| StoreError::bad_row("jobs", id, e))).transpose()
}

fn json(
    row: &Row<'_>,
    column: &'static str,
    id: i64,
) -> Result<Option<serde_json::Value>, StoreError> {
    let text: Option<String> = row.get(column)?;
    text.map(|t| serde_json::from_str(&t).map_err(|e| StoreError::bad_row("jobs", id, e)))
        .transpose()
}

fn read_example(row: &Row<'_>) -> Result<TrainExample, StoreError> {
    let id: i64 = row.get("id")?;
    let messages: String = row.get("messages")?;
    let messages =
        serde_json::from_str(&messages).map_err(|e| StoreError::bad_row("feedback", id, e))?;
    Ok(TrainExample { id, messages, target: row.get("target")?, weight: row.get("weight")? })
}
