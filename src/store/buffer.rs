//! The training buffer of a domain: what is in it, when it is full, when it is enough for a job.

use std::collections::HashSet;
use std::fmt;

use rusqlite::{Connection, named_params};
use serde::Serialize;

use super::error::StoreError;
use super::feedback::{FeedbackRow, read_row};
use super::heldout::{Candidate, held_out};
use super::{Store, stored};

/// What waits in a domain's buffer. Displays as `Training buffer: 8 examples (42.0 weighted)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct BufferStatus {
    /// Marks that no job has learned or is about to, with or without a target.
    pub examples: usize,
    /// Sum of their weights.
    pub weighted: f64,
    /// Those of them that the next job would learn.
    pub trainable_unconsumed: usize,
    /// Those of them without a target.
    pub waiting_for_correction: usize,
    /// Those of them that are kept for measuring.
    pub heldout: usize,
    /// Marks in a queued or running job; they come back if it fails.
    pub in_training: usize,
}

impl fmt::Display for BufferStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.examples == 1 { "example" } else { "examples" };
        write!(f, "Training buffer: {} {noun} ({:.1} weighted)", self.examples, self.weighted)
    }
}

impl BufferStatus {
    /// Says why a domain has nothing to train.
    pub(super) fn nothing_to_train(&self, domain: &str) -> StoreError {
        StoreError::NothingToTrain {
            domain: domain.to_owned(),
            waiting: self.waiting_for_correction,
            heldout: self.heldout,
            in_training: self.in_training,
        }
    }

    /// Counts a domain's marks.
    pub(super) fn of(rows: &[FeedbackRow]) -> Self {
        let mut status = Self::default();
        for row in rows.iter().filter(|row| row.consumed_by.is_none()) {
            if row.in_job.is_some() {
                status.in_training += 1;
                continue;
            }
            status.examples += 1;
            status.weighted += row.weight;
            if row.target().is_none() {
                status.waiting_for_correction += 1;
            } else if row.heldout {
                status.heldout += 1;
            } else {
                status.trainable_unconsumed += 1;
            }
        }
        status
    }
}

impl Store {
    /// Counts what waits in a domain's buffer for a model to learn it, by its hash, or for all models.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn buffer_status(
        &self,
        domain: &str,
        base: Option<&str>,
    ) -> Result<BufferStatus, StoreError> {
        self.read(|db| Ok(BufferStatus::of(&rows_of_domain(db, domain, base, false)?)))
    }

    /// Returns the domains that have marks in the buffer.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn domains_with_marks(&self) -> Result<Vec<String>, StoreError> {
        self.read(|db| {
            let sql = "SELECT DISTINCT domain FROM feedback WHERE archived = 0 AND forgotten = 0";
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Archives the oldest learned marks until at most `limit` marks are in the buffer of all
    /// domains, and returns how many; a mark that was not learned is never dropped.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn archive_over(&self, limit: usize) -> Result<usize, StoreError> {
        self.write(|db| {
            let sql = "UPDATE feedback SET archived = 1 WHERE id IN (
                SELECT f.id FROM feedback f JOIN consumed c ON c.feedback_id = f.id
                WHERE f.archived = 0 AND f.forgotten = 0 ORDER BY f.id
                LIMIT max(0, (SELECT count(*) FROM feedback WHERE archived = 0 AND forgotten = 0) - :limit))";
            Ok(db.prepare_cached(sql)?.execute(named_params! {":limit": stored(limit)})?)
        })
    }

    /// Whether a domain has marks enough for a job of this model (all marks without one) that starts by itself.
    ///
    /// It counts marks that the job would learn. Those in a rejected or cancelled job do not count
    /// again: after one the next waits for `threshold` new marks. After a failed job one new mark
    /// is enough, but it needs that one, so that a job that always fails is not tried for ever.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn should_train(
        &self,
        domain: &str,
        base: Option<&str>,
        threshold: usize,
    ) -> Result<bool, StoreError> {
        self.read(|db| is_due(db, domain, base, threshold))
    }
}

/// [`Store::should_train`] inside a transaction.
pub(super) fn is_due(
    db: &Connection,
    domain: &str,
    base: Option<&str>,
    threshold: usize,
) -> Result<bool, StoreError> {
    let rows = rows_of_domain(db, domain, base, false)?;
    let (mut counted, mut untried) = (0, 0);
    for row in rows.iter().filter(|row| is_new(row)) {
        let tried = tried_in(db, row.id)?;
        counted += usize::from(!tried.refused);
        untried += usize::from(!tried.refused && !tried.failed);
    }
    Ok(counted >= threshold.max(1) && untried > 0)
}

/// How jobs that took a mark ended.
struct Tried {
    refused: bool,
    failed: bool,
}

fn tried_in(db: &Connection, feedback: i64) -> Result<Tried, StoreError> {
    let sql = "SELECT coalesce(max(j.state IN ('rejected', 'cancelled')), 0) AS refused,
                      coalesce(max(j.state = 'failed'), 0) AS failed
               FROM job_feedback jf JOIN jobs j ON j.id = jf.job_id
               WHERE jf.feedback_id = ?1 AND jf.role = 'new'";
    Ok(db.prepare_cached(sql)?.query_row([feedback], |row| {
        Ok(Tried { refused: row.get("refused")?, failed: row.get("failed")? })
    })?)
}

/// Whether the next job of its domain would learn this mark.
pub(super) fn is_new(row: &FeedbackRow) -> bool {
    row.consumed_by.is_none() && row.in_job.is_none() && !row.heldout && row.target().is_some()
}

/// Reads the marks of a domain that a model may learn (of all models without a `base`), with everything that follows from
/// jobs and from one another.
///
/// Which marks are held out is decided for each model; an archived one was learned.
pub(super) fn rows_of_domain(
    db: &Connection,
    domain: &str,
    base: Option<&str>,
    archived: bool,
) -> Result<Vec<FeedbackRow>, StoreError> {
    let sql = "SELECT f.*, c.job_id AS consumed_by, r.job_id AS in_job,
                      m.feedback_id IS NOT NULL AS measured
               FROM feedback f
               LEFT JOIN consumed c ON c.feedback_id = f.id
               LEFT JOIN reserved r ON r.feedback_id = f.id
               LEFT JOIN measured m ON m.feedback_id = f.id
               WHERE f.domain = :domain AND f.forgotten = 0
                 AND (:base IS NULL OR f.base IS NULL OR f.base = :base)
               ORDER BY f.id";
    let mut statement = db.prepare_cached(sql)?;
    let mut cursor = statement.query(named_params! {":domain": domain, ":base": base})?;
    let (mut rows, mut measured) = (Vec::new(), HashSet::new());
    while let Some(row) = cursor.next()? {
        let mark = read_row(row)?;
        if row.get("measured")? {
            measured.insert(mark.id);
        }
        rows.push(mark);
    }
    for base in models_of(&rows, base) {
        let held = {
            let of_base = rows.iter().filter(|row| row.is_of(base.as_deref()));
            let candidates = candidates(of_base, &measured);
            held_out(&candidates, had_jobs(db, domain, base.as_deref())?)
        };
        for row in rows.iter_mut().filter(|row| row.is_of(base.as_deref())) {
            row.heldout = held.contains(&row.id);
        }
    }
    rows.retain(|row| archived || !row.archived);
    Ok(rows)
}

/// The model that is asked for, or those of the marks, the one marked last at the end: it decides about marks of any.
fn models_of(rows: &[FeedbackRow], base: Option<&str>) -> Vec<Option<String>> {
    if let Some(base) = base {
        return vec![Some(base.to_owned())];
    }
    let mut found: Vec<Option<String>> = Vec::new();
    for row in rows.iter().rev().filter(|row| row.base.is_some()) {
        if !found.contains(&row.base) {
            found.push(row.base.clone());
        }
    }
    if found.is_empty() {
        found.push(None);
    }
    found.reverse();
    found
}

fn candidates<'a>(
    rows: impl Iterator<Item = &'a FeedbackRow>,
    measured: &HashSet<i64>,
) -> Vec<Candidate<'a>> {
    let candidate = |row: &'a FeedbackRow| {
        Some(Candidate {
            id: row.id,
            weight: row.weight,
            question: row.question(),
            target: row.target()?,
            taken: row.consumed_by.is_some() || row.in_job.is_some(),
            measured: measured.contains(&row.id),
        })
    };
    // Archived ones too: what they teach is still taught.
    rows.filter_map(candidate).collect()
}

/// Whether a job of this domain and model has reached the gate.
fn had_jobs(db: &Connection, domain: &str, base: Option<&str>) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM jobs
               WHERE domain = ?1 AND state IN ('succeeded', 'rejected')
                 AND (?2 IS NULL OR base IS NULL OR base = ?2))";
    Ok(db.prepare_cached(sql)?.query_row((domain, base), |row| row.get(0))?)
}
