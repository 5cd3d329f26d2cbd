//! What an adapter has seen, itself and through those it grew from; and what was said of a job's examples.

use std::collections::BTreeMap;

use rusqlite::OptionalExtension;
use serde::Serialize;

use super::Store;
use super::error::StoreError;
use super::jobs::ExampleRole;
use crate::domain::{AdapterId, SecretPolicy};
use crate::secrets;

/// The marks that an adapter has to do with, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// New in its job.
    pub learned: Vec<i64>,
    /// Shown again in its job.
    pub replayed: Vec<i64>,
    /// Its job was measured on them and did not learn them.
    pub heldout: Vec<i64>,
    /// Learned by the adapters that it grew from, and not in its own job.
    pub inherited: Vec<i64>,
    /// Those of all these whose text was forgotten since.
    pub forgotten: Vec<i64>,
}

impl Store {
    /// Returns the marks that an adapter has seen; none for one that came from elsewhere. Its line is followed from job to
    /// job, as an adapter in between may be deleted.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn seen(&self, id: &AdapterId) -> Result<Seen, StoreError> {
        self.read(|db| {
            let newest = "SELECT max(id) FROM jobs WHERE adapter = ?1 AND state = 'succeeded'";
            let job: Option<i64> = db.query_row(newest, [id.as_str()], |row| row.get(0)).optional()?.flatten();
            let sql = "WITH RECURSIVE line(job) AS (
                    SELECT ?1
                    UNION
                    SELECT (SELECT max(before.id) FROM jobs before
                            WHERE before.adapter = j.parent AND before.id < j.id AND before.state = 'succeeded')
                    FROM line JOIN jobs j ON j.id = line.job WHERE j.parent IS NOT NULL)
                SELECT jf.feedback_id, jf.role, jf.job_id = ?1 AS own, f.forgotten
                FROM line JOIN job_feedback jf ON jf.job_id = line.job JOIN feedback f ON f.id = jf.feedback_id
                WHERE own OR jf.role <> 'heldout'
                ORDER BY jf.feedback_id, own DESC";
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query([job])?;
            let (mut seen, mut last) = (Seen::default(), None);
            while let Some(row) = rows.next()? {
                let (mark, role, own): (i64, String, bool) = (row.get(0)?, row.get(1)?, row.get(2)?);
                // Its own job comes first.
                if last.replace(mark) == Some(mark) {
                    continue;
                }
                let list = match role.as_str() {
                    _ if !own => &mut seen.inherited,
                    role if role == ExampleRole::New.as_str() => &mut seen.learned,
                    role if role == ExampleRole::Replay.as_str() => &mut seen.replayed,
                    _ => &mut seen.heldout,
                };
                list.push(mark);
                if row.get(3)? {
                    seen.forgotten.push(mark);
                }
            }
            Ok(seen)
        })
    }

    /// Returns what was said about the examples of a job, by id, without secrets.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn job_notes(&self, job: i64) -> Result<BTreeMap<i64, String>, StoreError> {
        let notes: BTreeMap<i64, String> = self.read(|db| {
            let sql = "SELECT f.id, f.note FROM job_feedback jf JOIN feedback f ON f.id = jf.feedback_id
                       WHERE jf.job_id = ?1 AND f.forgotten = 0 AND trim(coalesce(f.note, '')) <> ''";
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([job], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        if self.secrets == SecretPolicy::Off {
            return Ok(notes);
        }
        let safe = |note: String| secrets::redact(&note).map_or(note, |(safe, _)| safe);
        Ok(notes.into_iter().map(|(id, note)| (id, safe(note))).collect())
    }
}
