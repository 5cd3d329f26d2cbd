//! The database's schema: how it is opened and brought up to date.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::error::StoreError;
use super::home::open_private;
use crate::crash;

/// The steps from an empty database to the newest schema; `user_version` counts those applied.
///
/// A step that was released never changes; a new schema is a new step.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_initial.sql"),
    include_str!("migrations/0002_sweeps.sql"),
    include_str!("migrations/0003_bases.sql"),
    include_str!("migrations/0004_revisions.sql"),
];

/// How long a statement waits for another process's write; the longest write here is a snapshot
/// of a few hundred rows.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The schema version that this program writes.
pub const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Opens the database at `path`, creates it when it is missing, and migrates it.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    // Made before SQLite does it, so that the file and its log are the owner's alone.
    open_private(path).map_err(StoreError::io("open the database"))?;
    crash::point("after the database file was made");
    let open = || -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        configure(&connection)?;
        migrate(&connection, path)?;
        Ok(connection)
    };
    open().map_err(|e| e.at(path))
}

fn configure(connection: &Connection) -> Result<(), StoreError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is forgotten is overwritten, not just unlinked.
    connection.pragma_update(None, "secure_delete", true)?;
    Ok(())
}

/// Applies the steps that the database lacks, each in a transaction with its version.
fn migrate(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    loop {
        if version(connection)? == SCHEMA_VERSION {
            return Ok(());
        }
        // Read again inside the transaction: another process may be migrating too.
        let tx = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let found = version(&tx)?;
        let step = usize::try_from(found).ok().filter(|&v| v <= MIGRATIONS.len());
        let Some(step) = step else {
            let path = path.to_owned();
            return Err(StoreError::NewerSchema { path, found, supported: SCHEMA_VERSION });
        };
        if let Some(sql) = MIGRATIONS.get(step) {
            tx.execute_batch(sql)?;
            tx.pragma_update(None, "user_version", found + 1)?;
            crash::point("before a migration's commit");
            tx.commit()?;
            crash::point("after a migration's commit");
        }
    }
}

fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}
