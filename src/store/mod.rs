//! The state that outlives a process: marks, jobs, adapters, events and usage in SQLite, adapters'
//! weights in files, all in one data directory ([`Home`]).
//!
//! Every method of [`Store`] is one transaction and blocks; none keeps anything between calls, so
//! several processes may use one directory. Only the one that holds the [`QueueLock`] runs jobs.

mod adapters;
mod buffer;
mod check;
mod curve;
mod error;
mod events;
mod feedback;
mod finish;
pub mod heldout;
mod home;
mod job_state;
mod jobs;
mod publish;
mod queue;
mod reconcile;
mod retention;
mod schema;
mod sweep;
mod usage;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use adapters::{AdapterRow, AdapterState, NewAdapter};
pub use buffer::BufferStatus;
pub use error::StoreError;
pub use events::EventRow;
pub use feedback::{FeedbackEdit, FeedbackFilter, FeedbackRow, Forgotten, NewFeedback};
pub use finish::JobMetrics;
pub use home::{Home, QueueLock};
pub use job_state::JobState;
pub use jobs::{ExampleRole, JobBase, JobRow, NewJob, StartFrom};
pub use queue::{Orphans, Progress};
pub use reconcile::Reconciled;
pub use retention::{Keep, Pruned};
pub use schema::SCHEMA_VERSION;
pub use sweep::{BatchError, ExampleSet};
pub use usage::{NewUsage, UsageSummary, UsedAdapter};

/// The database of a data directory.
///
/// Not shared between threads: each owner opens its own, which costs about a millisecond.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    home: Home,
}

impl Store {
    /// Opens the database of `home`, creates it when it is missing, and brings it up to date.
    ///
    /// # Errors
    /// When the file cannot be read or written, is damaged, is no database, or was made by a newer
    /// program.
    pub fn open(home: &Home) -> Result<Self, StoreError> {
        let path = home.db();
        let connection = schema::open(&path)?;
        Ok(Self { connection, path, home: home.clone() })
    }

    /// The data directory that this database belongs to.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Runs `work` in a transaction that sees one state of the database.
    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let run = || {
            let tx = Transaction::new_unchecked(&self.connection, TransactionBehavior::Deferred)?;
            work(&tx)
        };
        run().map_err(|e: StoreError| e.at(&self.path))
    }

    /// Runs `work` in a transaction that is alone in writing, and commits what it did if it
    /// succeeds.
    fn write<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let run = || {
            let tx = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let value = work(&tx)?;
            tx.commit()?;
            Ok(value)
        };
        run().map_err(|e: StoreError| e.at(&self.path))
    }
}

/// Reads a count, which the schema keeps from being negative.
fn count(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<usize> {
    let value: i64 = row.get(column)?;
    Ok(usize::try_from(value).unwrap_or(0))
}

/// Gives a count the type that SQLite stores.
fn stored(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
