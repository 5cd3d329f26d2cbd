//! The state that outlives a process: marks, jobs, adapters, events and usage in SQLite, adapters'
//! weights in files, all in one data directory ([`Home`]).
//!
//! Every method of [`Store`] is one transaction and blocks; none keeps anything between calls, so
//! several processes may use one directory. Only the one that holds the [`QueueLock`] runs jobs.

mod adapters;
mod buffer;
mod check;
mod curve;
mod damage;
mod error;
mod events;
mod feedback;
mod finish;
mod guard;
pub mod heldout;
mod home;
mod import;
mod import_marks;
mod job_state;
mod jobs;
mod lineage;
mod publish;
mod queue;
mod reconcile;
mod redact;
mod retention;
mod routes;
mod schema;
mod stats;
mod sweep;
mod target;
mod usage;

#[cfg(test)]
mod tests;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::crash;
use crate::domain::SecretPolicy;

pub use adapters::{AdapterRow, AdapterState, NewAdapter};
pub use buffer::BufferStatus;
pub use damage::SetAside;
pub use error::StoreError;
pub use events::EventRow;
pub use feedback::{FeedbackEdit, FeedbackFilter, FeedbackRow, Forgotten, NewFeedback};
pub use finish::JobMetrics;
pub use guard::{SecretFound, listed};
pub use home::{Home, QueueLock};
pub use import_marks::Imported;
pub use job_state::JobState;
pub use jobs::{ExampleRole, JobBase, JobRow, NewJob, StartFrom};
pub use lineage::Seen;
pub use queue::{Orphans, Progress};
pub use reconcile::Reconciled;
pub use redact::{Redacted, SecretElsewhere};
pub use retention::{Keep, Pruned};
pub use schema::SCHEMA_VERSION;
pub use stats::{Giver, GiverStats, Statistics, Tally, TrainingStats, WeekStats};
pub use sweep::{BatchError, ExampleSet};
pub use target::MarkState;
pub use usage::{NewUsage, UsageSummary, UsedAdapter};

/// The database of a data directory.
///
/// Not shared between threads: each owner opens its own, which costs about a millisecond.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    home: Home,
    /// What becomes of secrets.
    secrets: SecretPolicy,
    /// Which file it is: device and inode.
    file: (u64, u64),
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
        let file = identity(&path).map_err(StoreError::io("open the database"))?;
        Ok(Self { connection, path, home: home.clone(), secrets: SecretPolicy::Redact, file })
    }

    /// The data directory that this database belongs to.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Checks that the database is still where it was opened: what is written to a file without a name is lost with the
    /// process.
    fn check_in_place(&self) -> Result<(), StoreError> {
        match identity(&self.path) {
            Ok(file) if file == self.file => Ok(()),
            _ => Err(StoreError::DatabaseGone { path: self.path.clone() }),
        }
    }

    /// Writes the database's log back and empties it, so that what was overwritten is nowhere any more; returns whether
    /// it is empty. It is not while another process reads from it.
    fn empty_log(&self) -> bool {
        let busy =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
        crash::point("after the log was emptied");
        matches!(busy, Ok(0))
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
            self.check_in_place()?;
            let tx = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
            let value = work(&tx)?;
            crash::point("before a commit");
            tx.commit()?;
            crash::point("after a commit");
            Ok(value)
        };
        run().map_err(|e: StoreError| e.at(&self.path))
    }
}

fn identity(path: &std::path::Path) -> std::io::Result<(u64, u64)> {
    let metadata = fs_err::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
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
