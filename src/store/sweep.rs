//! Enqueueing the jobs of a runs file together: all or none, and several of them with the same examples.

use std::collections::{BTreeMap, HashSet};

use rusqlite::Connection;

use super::Store;
use super::buffer::{self, BufferStatus};
use super::error::StoreError;
use super::feedback::{self, FeedbackRow, NewFeedback};
use super::jobs::{self, JobRow, NewJob};

/// Examples that one job learns, or several: then they make a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct ExampleSet {
    /// The domain of its marks.
    pub domain: String,
    /// Marks to store, which are the examples; `None` takes the marks of the domain that no job has learned or is about
    /// to, those stored with it left out.
    pub marks: Option<Vec<NewFeedback>>,
}

/// Why no job of a batch was enqueued.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct BatchError {
    /// The job that was refused, by its place.
    pub job: usize,
    /// Why.
    pub source: StoreError,
}

/// What jobs of the same examples are made from.
struct Snapshot {
    domain: String,
    new: Vec<i64>,
}

impl Store {
    /// Stores the marks of all sets and enqueues the jobs, each with the place of its set, in one transaction.
    ///
    /// All jobs train the same model. Jobs of the same set make a sweep: they must start fresh. All jobs of a domain see the same marks held out, so
    /// what is measured can be compared and nothing that one measures is learned by another.
    ///
    /// # Errors
    /// Which job is refused and why: a mark out of range, nothing to learn, a full queue, a taken name, a database that
    /// cannot be written. Then nothing is stored.
    pub fn enqueue_batch(
        &self,
        sets: &[ExampleSet],
        jobs: &[(usize, NewJob)],
    ) -> Result<Vec<JobRow>, BatchError> {
        let mut at = 0;
        let done = self.write(|db| {
            let first_of = |set| jobs.iter().position(|(of, _)| *of == set).unwrap_or(0);
            let mut stored = Vec::new();
            for (place, set) in sets.iter().enumerate() {
                at = first_of(place);
                stored.push(self.store_marks(db, set)?);
            }
            let mut rows = BTreeMap::new();
            let base = jobs.first().and_then(|(_, new)| new.base_hash());
            for set in sets {
                if !rows.contains_key(&set.domain) {
                    let of_domain = buffer::rows_of_domain(db, &set.domain, base, true)?;
                    rows.insert(set.domain.clone(), of_domain);
                }
            }
            let mut snapshots = Vec::new();
            for (place, set) in sets.iter().enumerate() {
                at = first_of(place);
                snapshots.push(snapshot(set, &rows[&set.domain], place, &stored)?);
            }
            let mut sweeps = vec![None; sets.len()];
            let mut enqueued = Vec::new();
            for (place, (set, new)) in jobs.iter().enumerate() {
                at = place;
                let Snapshot { domain, new: ids } = &snapshots[*set];
                let new = NewJob { only: Some(ids.clone()), ..new.clone() };
                let id = jobs::enqueue_from(db, &new, &rows[domain])?.id;
                if jobs.iter().filter(|(of, _)| of == set).count() > 1 {
                    let sweep = *sweeps[*set].get_or_insert(id);
                    db.execute("UPDATE jobs SET sweep = ?2 WHERE id = ?1", (id, sweep))?;
                }
                enqueued.push(jobs::one(db, id)?);
            }
            Ok(enqueued)
        });
        done.map_err(|source| BatchError { job: at, source })
    }

    /// Stores the marks of a set and returns their ids; `None` for a set without marks of its own.
    fn store_marks(
        &self,
        db: &Connection,
        set: &ExampleSet,
    ) -> Result<Option<HashSet<i64>>, StoreError> {
        let store = |mark: &NewFeedback| {
            let mark = self.guarded(mark)?;
            feedback::check(&mark)?;
            feedback::insert(db, &mark)
        };
        set.marks.as_ref().map(|marks| marks.iter().map(store).collect()).transpose()
    }
}

/// Chooses what is new in the jobs of a set among the rows of its domain.
fn snapshot(
    set: &ExampleSet,
    rows: &[FeedbackRow],
    place: usize,
    stored: &[Option<HashSet<i64>>],
) -> Result<Snapshot, StoreError> {
    let wanted = |row: &&FeedbackRow| match &stored[place] {
        Some(own) => own.contains(&row.id),
        None => !stored.iter().flatten().any(|others| others.contains(&row.id)),
    };
    let new: Vec<i64> =
        rows.iter().filter(|r| buffer::is_new(r)).filter(wanted).map(|row| row.id).collect();
    if new.is_empty() {
        return Err(BufferStatus::of(rows).nothing_to_train(&set.domain));
    }
    Ok(Snapshot { domain: set.domain.clone(), new })
}
