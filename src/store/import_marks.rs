//! Many marks at once, without storing again what is there.

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
    /// Marks that were there before: the same conversation with the same answer to learn, in the same domain, of the same
    /// model or of none.
    pub merged: usize,
    /// Those of them that got a higher weight.
    pub raised: usize,
}

/// What makes two marks the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// The conversation, as JSON.
    messages: String,
    /// The answer to learn or, without one, the criticised answer.
    answer: String,
    domain: String,
    /// The model that learns it; `None` is any.
    base: Option<String>,
}

fn answer_of(mark: Mark, response: &str, fix: Option<&str>) -> String {
    let fix = fix.filter(|fix| !fix.trim().is_empty());
    match (fix, mark) {
        (Some(fix), _) => format!("target {fix}"),
        (None, Mark::Good) => format!("target {response}"),
        (None, _) => format!("against {response}"),
    }
}

impl Store {
    /// Stores many marks, all or none. One that was there before is not stored again: it keeps its weight, or takes the
    /// higher one unless a job has it. It is there if whoever learns the new one learns it too: it is of the same model,
    /// or of none. One that names no model is also there as a mark of `in_use`, the hash of the model in use: an export of
    /// one's own marks, which names none, brings nothing new.
    ///
    /// What is repeated within `new` is stored as often as it stands there, because it counts as often: ten equal marks
    /// are ten, and the trainer learns them as one with the sum of their weights.
    ///
    /// # Errors
    /// When a field of one is out of its range, or the database cannot be written.
    pub fn import_feedback(
        &self,
        new: &[NewFeedback],
        in_use: Option<&str>,
    ) -> Result<Imported, StoreError> {
        let safe = new.iter().map(|one| self.guarded(one)).collect::<Result<Vec<_>, _>>()?;
        safe.iter().try_for_each(|one| feedback::check(one))?;
        self.write(|db| {
            let mut known = known(db)?;
            let mut done = Imported::default();
            for one in &safe {
                let messages = serde_json::to_string(&one.messages)
                    .map_err(|e| StoreError::InvalidFeedback(e.to_string()))?;
                let answer = answer_of(one.mark, &one.response, one.fix.as_deref());
                let (domain, base) = (one.domain.clone(), one.base.clone());
                match find(&mut known, &Key { messages, answer, domain, base }, in_use) {
                    Some(there) => {
                        done.merged += 1;
                        if one.weight > there.weight && !there.taken {
                            let set = "UPDATE feedback SET weight = ?2 WHERE id = ?1";
                            db.prepare_cached(set)?.execute((there.id, one.weight))?;
                            there.weight = one.weight;
                            done.raised += 1;
                        }
                    }
                    None => done.ids.push(feedback::insert(db, one)?),
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

/// A mark that was there before the import.
#[derive(Debug, Clone, Copy)]
struct Known {
    id: i64,
    weight: f64,
    taken: bool,
}

/// Finds the mark of the same model or, failing that, the one of none, which that model learns too; for a mark of none
/// that of the model in use.
fn find<'a>(
    known: &'a mut HashMap<Key, Known>,
    key: &Key,
    in_use: Option<&str>,
) -> Option<&'a mut Known> {
    let other = match key.base {
        Some(_) => None,
        None => in_use.map(str::to_owned),
    };
    let other = Key { base: other, ..key.clone() };
    let there = if known.contains_key(key) { key } else { &other };
    known.get_mut(there)
}

/// Reads the marks that are there; of repeated ones the heaviest stands for all.
fn known(db: &Connection) -> Result<HashMap<Key, Known>, StoreError> {
    let mut known: HashMap<Key, Known> = HashMap::new();
    for domain in feedback::domains(db)? {
        for row in buffer::rows_of_domain(db, &domain, None, true)? {
            let messages = serde_json::to_string(&row.messages)
                .map_err(|e| StoreError::bad_row("feedback", row.id, e))?;
            let answer = answer_of(row.mark, &row.response, row.fix.as_deref());
            let key = Key { messages, answer, domain: row.domain, base: row.base };
            let taken = row.consumed_by.is_some() || row.in_job.is_some();
            let mark = Known { id: row.id, weight: row.weight, taken };
            let there = known.entry(key).or_insert(mark);
            // Otherwise the same file, imported again, would raise the lighter ones.
            if mark.weight > there.weight {
                *there = mark;
            }
        }
    }
    Ok(known)
}
