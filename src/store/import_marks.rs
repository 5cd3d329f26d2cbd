//! Many marks at once, without storing one twice.

use std::collections::HashMap;

use rusqlite::Connection;
use serde::Serialize;

use super::error::StoreError;
use super::feedback::{self, NewFeedback};
use super::{Store, adapters, buffer};
use crate::domain::{AdapterId, Mark, TrainExample};
use crate::store::ExampleRole;

/// What came of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The marks that were stored, new ones only.
    pub ids: Vec<i64>,
    /// Marks that were there already: the same conversation with the same answer to learn, in the same domain.
    pub merged: usize,
    /// Those of them that got a higher weight.
    pub raised: usize,
}

/// What makes two marks the same: conversation, answer to learn (or, without one, the criticised answer), domain.
type Key = (String, String, String);

fn key(messages: &str, domain: &str, mark: Mark, response: &str, fix: Option<&str>) -> Key {
    let fix = fix.filter(|fix| !fix.trim().is_empty());
    let answer = match (fix, mark) {
        (Some(fix), _) => format!("target {fix}"),
        (None, Mark::Good) => format!("target {response}"),
        (None, _) => format!("against {response}"),
    };
    (messages.to_owned(), answer, domain.to_owned())
}

impl Store {
    /// Stores many marks, all or none. One that is there already is not stored again: it keeps its weight, or takes the
    /// higher one unless a job has it.
    ///
    /// # Errors
    /// When a field of one is out of its range, or the database cannot be written.
    pub fn import_feedback(&self, new: &[NewFeedback]) -> Result<Imported, StoreError> {
        let safe = new.iter().map(|one| self.guarded(one)).collect::<Result<Vec<_>, _>>()?;
        safe.iter().try_for_each(|one| feedback::check(one))?;
        self.write(|db| {
            let mut known = known(db)?;
            let mut done = Imported::default();
            for one in &safe {
                let messages = serde_json::to_string(&one.messages)
                    .map_err(|e| StoreError::InvalidFeedback(e.to_string()))?;
                let key = key(&messages, &one.domain, one.mark, &one.response, one.fix.as_deref());
                match known.get_mut(&key) {
                    Some(there) => {
                        done.merged += 1;
                        if one.weight > there.weight && !there.taken {
                            let set = "UPDATE feedback SET weight = ?2 WHERE id = ?1";
                            db.prepare_cached(set)?.execute((there.id, one.weight))?;
                            there.weight = one.weight;
                            done.raised += 1;
                        }
                    }
                    None => {
                        let id = feedback::insert(db, one)?;
                        known.insert(key, Known { id, weight: one.weight, taken: false });
                        done.ids.push(id);
                    }
                }
            }
            Ok(done)
        })
    }

    /// Puts a mark that no job has into another domain.
    ///
    /// # Errors
    /// When it was learned or is in a job, when there is none with this id, or the database cannot be written.
    pub fn move_feedback(&self, id: i64, domain: &str) -> Result<(), StoreError> {
        self.write(|db| {
            feedback::check_untouched(&feedback::one(db, id)?)?;
            db.execute("UPDATE feedback SET domain = ?2 WHERE id = ?1", (id, domain))?;
            Ok(())
        })
    }

    /// Returns what an adapter was taught, by its own job and those of its ancestors: at most `limit`, the newest.
    ///
    /// # Errors
    /// When there is none with this id, or the database cannot be read.
    pub fn taught(&self, id: &AdapterId, limit: usize) -> Result<Vec<TrainExample>, StoreError> {
        let (all, jobs) = (self.adapters()?, self.jobs()?);
        self.read(|db| adapters::one(db, id))?;
        let mut taught: Vec<TrainExample> = Vec::new();
        let (mut next, mut seen) = (Some(id.clone()), Vec::new());
        while let Some(id) = next.filter(|id| !seen.contains(id)) {
            for job in jobs.iter().filter(|job| job.adapter.as_ref() == Some(&id)) {
                taught.extend(self.job_examples(job.id, ExampleRole::New)?);
            }
            next = all.iter().find(|row| row.id == id).and_then(|row| row.parent.clone());
            seen.push(id);
        }
        taught.sort_by_key(|example| std::cmp::Reverse(example.id));
        taught.dedup_by_key(|example| example.id);
        taught.truncate(limit);
        Ok(taught)
    }
}

struct Known {
    id: i64,
    weight: f64,
    taken: bool,
}

fn known(db: &Connection) -> Result<HashMap<Key, Known>, StoreError> {
    let mut known = HashMap::new();
    for domain in feedback::domains(db)? {
        for row in buffer::rows_of_domain(db, &domain, None, true)? {
            let messages = serde_json::to_string(&row.messages)
                .map_err(|e| StoreError::bad_row("feedback", row.id, e))?;
            let key = key(&messages, &domain, row.mark, &row.response, row.fix.as_deref());
            let taken = row.consumed_by.is_some() || row.in_job.is_some();
            known.insert(key, Known { id: row.id, weight: row.weight, taken });
        }
    }
    Ok(known)
}
