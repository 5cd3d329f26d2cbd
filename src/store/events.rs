//! What happened to jobs and adapters, in order.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, named_params};
use serde::Serialize;

use super::Store;
use super::error::{StoreError, from_millis, now};
use crate::domain::AdapterId;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// Row id; later events have greater ones.
    pub id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// The job that it happened to.
    pub job: Option<i64>,
    /// The adapter that it happened to.
    pub adapter: Option<String>,
    /// What: the new state of a job, `out_of_memory`, `resources`, `isolation`, `log_tail` or `note` of one, or `live`, `unloaded`, `rolled_back`, `deleted`,
    /// `quarantined`, `restored`, `imported` of an adapter.
    pub kind: String,
    /// Why, for people.
    pub detail: Option<String>,
}

impl Store {
    /// Returns the events of one job, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn events(&self, job: i64) -> Result<Vec<EventRow>, StoreError> {
        self.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT * FROM events WHERE job_id = ?1 ORDER BY id")?;
            let rows = statement.query_map([job], |row| {
                Ok(EventRow {
                    id: row.get("id")?,
                    at: from_millis(row.get("at")?),
                    job: row.get("job_id")?,
                    adapter: row.get("adapter")?,
                    kind: row.get("kind")?,
                    detail: row.get("detail")?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Records something about a job besides the changes of its state.
    ///
    /// # Errors
    /// When there is no such job, or the database cannot be written.
    pub fn note_job(&self, job: i64, kind: &str, detail: &str) -> Result<(), StoreError> {
        self.write(|db| job_event(db, job, kind, Some(detail)))
    }

    /// Returns how many events of a kind a job has had.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn count_job_events(&self, job: i64, kind: &str) -> Result<usize, StoreError> {
        Ok(self.events(job)?.iter().filter(|event| event.kind == kind).count())
    }
}

/// Records what happened to a job.
pub(super) fn job_event(
    db: &Connection,
    job: i64,
    kind: &str,
    detail: Option<&str>,
) -> Result<(), StoreError> {
    record(db, Some(job), None, kind, detail)
}

/// Records what happened to an adapter, and through which job.
pub(super) fn adapter_event(
    db: &Connection,
    job: Option<i64>,
    adapter: &AdapterId,
    kind: &str,
    detail: Option<&str>,
) -> Result<(), StoreError> {
    record(db, job, Some(adapter.as_str()), kind, detail)
}

fn record(
    db: &Connection,
    job: Option<i64>,
    adapter: Option<&str>,
    kind: &str,
    detail: Option<&str>,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO events (at, job_id, adapter, kind, detail)
         VALUES (:at, :job, :adapter, :kind, :detail)",
    )?
    .execute(named_params! {
        ":at": now().timestamp_millis(),
        ":job": job,
        ":adapter": adapter,
        ":kind": kind,
        ":detail": detail,
    })?;
    Ok(())
}
