//! What can go wrong with the data directory and the database in it.

use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rusqlite::ErrorCode;

use super::job_state::JobState;
use crate::domain::AdapterId;

/// Extended result code of SQLite: a write to the file failed (`SQLITE_IOERR_WRITE`).
const SQLITE_IOERR_WRITE: i32 = 10 | (3 << 8);
/// Extended result code of SQLite: the file could not be made longer (`SQLITE_IOERR_TRUNCATE`).
const SQLITE_IOERR_TRUNCATE: i32 = 10 | (6 << 8);
/// Extended result code of SQLite: the shared memory of the log could not grow
/// (`SQLITE_IOERR_SHMSIZE`).
const SQLITE_IOERR_SHMSIZE: i32 = 10 | (19 << 8);

/// An error of the store: one line, with the path or value and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data directory, or something in it, belongs to somebody else.
    #[error(
        "{path} belongs to user {owner}, not to user {user}: give it to this user (chown) or choose another data directory with --home"
    )]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner's uid.
        owner: u32,
        /// The uid of this process.
        user: u32,
    },
    /// Others could change the data directory, or something in it.
    #[error(
        "{path} can be changed by other users (mode {mode:03o}): run `chmod go-w {path}` or choose another data directory with --home"
    )]
    WritableByOthers {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Something that is no directory stands where one is needed.
    #[error("{path} is not a directory: move it away or choose another data directory with --home")]
    NotADirectory {
        /// What stands there.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {action}: {source}; {}", remedy(.source))]
    Io {
        /// What was being done, as an infinitive.
        action: &'static str,
        /// Which file and why; from `fs_err`, so it names the path.
        source: io::Error,
    },
    /// An error of SQLite that no other variant describes.
    #[error("database {path}: {source}; run `shammah doctor`, or move the file away to start anew")]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// An error of SQLite inside a transaction, before the database's path is known.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The database cannot grow.
    #[error(
        "cannot write the database {path}: the disk or a file-size limit is full; nothing was stored, free some space and try again"
    )]
    DatabaseFull {
        /// The database.
        path: PathBuf,
    },
    /// The database cannot be written.
    #[error(
        "cannot write the database {path}: the file or its directory is read-only; make both writable for this user or choose another data directory with --home"
    )]
    DatabaseReadOnly {
        /// The database.
        path: PathBuf,
    },
    /// The database cannot be opened.
    #[error(
        "cannot open the database {path}: make the file and its directory readable and writable for this user or choose another data directory with --home"
    )]
    DatabaseUnreadable {
        /// The database.
        path: PathBuf,
    },
    /// Another process kept the database locked for too long.
    #[error("the database {path} is busy: another process holds it; try again")]
    DatabaseBusy {
        /// The database.
        path: PathBuf,
    },
    /// The database's file was taken away under the program.
    #[error(
        "the database {path} was removed or replaced while shammah ran: nothing was stored; put it back, or restart shammah to begin a new one"
    )]
    DatabaseGone {
        /// The database.
        path: PathBuf,
    },
    /// The database is damaged, or no database.
    #[error(
        "the database {path} is damaged or is no database: restore it from a copy, or move it away to start anew (adapters stay on disk, their rows are lost)"
    )]
    DatabaseCorrupt {
        /// The database.
        path: PathBuf,
    },
    /// The database was made by a newer program.
    #[error(
        "the database {path} has schema version {found}, this program knows up to {supported}: use a newer shammah or another data directory with --home"
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known here.
        supported: i64,
    },
    /// A stored value cannot be read back.
    #[error("row {id} of table {table} cannot be read: {reason}; restore the database from a copy")]
    BadRow {
        /// The table.
        table: &'static str,
        /// The row.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such mark.
    #[error("no feedback {0}: see `shammah feedback list`")]
    UnknownFeedback(i64),
    /// There is no such job.
    #[error("no job {0}: see `shammah jobs list`")]
    UnknownJob(i64),
    /// There is no such adapter.
    #[error("no adapter \"{0}\": see `shammah adapters list`")]
    UnknownAdapter(AdapterId),
    /// A mark that cannot be stored.
    #[error("feedback not stored: {0}")]
    InvalidFeedback(String),
    /// A mark with a secret, where such are refused.
    #[error(
        "feedback not stored: it holds what looks like a secret ({0}): take it out, or let it be replaced with feedback.secrets = \"redact\""
    )]
    HoldsSecret(String),
    /// An example with a secret, where such are refused.
    #[error(
        "feedback {feedback} holds what looks like a secret ({what}) and is not trained on: drop it with `shammah feedback forget {feedback}`, or let it be replaced with feedback.secrets = \"redact\""
    )]
    SecretInExample {
        /// The mark.
        feedback: i64,
        /// Which, and where.
        what: String,
    },
    /// A mark that was already learned cannot be changed, nor learned again.
    #[error(
        "feedback {feedback} was learned in job {job} and stays as it is: mark the answer again, or give a better one with /fix"
    )]
    AlreadyLearned {
        /// The mark.
        feedback: i64,
        /// The job that learned it.
        job: i64,
    },
    /// A mark that is being learned cannot be changed.
    #[error(
        "feedback {feedback} is in job {job} and stays as it is: mark the answer again, or give a better one with /fix"
    )]
    InTraining {
        /// The mark.
        feedback: i64,
        /// The job that is learning it.
        job: i64,
    },
    /// A job would have no examples.
    #[error(
        "nothing to train in domain \"{domain}\": no new example with a target ({waiting} waiting for a correction, {heldout} held out, {in_training} already in a job); mark answers with /good or /fix first"
    )]
    NothingToTrain {
        /// The domain.
        domain: String,
        /// Marks without a target.
        waiting: usize,
        /// Marks kept for measuring.
        heldout: usize,
        /// Marks in a queued or running job.
        in_training: usize,
    },
    /// Enough jobs wait already.
    #[error(
        "the queue is full: {limit} jobs wait (queue.max_queued): wait for one to end, or cancel one"
    )]
    QueueFull {
        /// The limit.
        limit: usize,
    },
    /// The name is an adapter's or a waiting job's.
    #[error("the name \"{0}\" is taken by an adapter or a job: choose another with --name")]
    NameTaken(AdapterId),
    /// A job without new examples would do again what another is doing.
    #[error(
        "job {0} waits or runs and learns the same anew, with the same settings, whatever its name: `shammah train --wait` waits for it, `shammah jobs cancel {0}` makes room for another"
    )]
    SameJob(i64),
    /// A job that was asked to stop publishes nothing.
    #[error("job {0} was asked to stop: nothing is published; train again")]
    CancelAsked(i64),
    /// A job cannot go from one state to another.
    #[error("job {job} {}", no_transition(*.from, *.to))]
    IllegalTransition {
        /// The job.
        job: i64,
        /// The state it is in.
        from: JobState,
        /// The state that was asked for.
        to: JobState,
    },
    /// The adapter is live.
    #[error("adapter \"{0}\" is live: unload it or roll back first")]
    AdapterIsLive(AdapterId),
    /// The adapter is what a rollback of the live one goes back to.
    #[error(
        "adapter \"{adapter}\" is the parent of \"{child}\", which is live: unload or delete \"{child}\" first"
    )]
    AdapterIsParentOfLive {
        /// The adapter.
        adapter: AdapterId,
        /// Its live child.
        child: AdapterId,
    },
    /// A job continues from the adapter.
    #[error("adapter \"{adapter}\" is the start of job {job}: wait for the job or cancel it first")]
    AdapterInUse {
        /// The adapter.
        adapter: AdapterId,
        /// The job.
        job: i64,
    },
    /// The adapter is not live.
    #[error("adapter \"{0}\" is not live: see `shammah adapters list`")]
    AdapterNotLive(AdapterId),
    /// The adapter's files are missing.
    #[error(
        "adapter \"{0}\" is quarantined because its files are missing: put them back or delete it"
    )]
    AdapterQuarantined(AdapterId),
    /// The adapter was made for another base model.
    #[error(
        "adapter \"{adapter}\" was trained on another base model ({trained_on}, loaded: {loaded}): load that model first (--model, or /model in the console)"
    )]
    OtherBase {
        /// The adapter.
        adapter: AdapterId,
        /// Name and hash of its base.
        trained_on: String,
        /// Hash of the model in use.
        loaded: String,
    },
    /// No adapter is live that could be rolled back.
    #[error("nothing to roll back in domain \"{0}\": the base model is live")]
    NothingLive(String),
    /// An adapter's directory lacks a file.
    #[error(
        "adapter directory {path} has no {missing}: an adapter needs adapter_model.safetensors, adapter_config.json and training.json"
    )]
    IncompleteAdapter {
        /// The directory.
        path: PathBuf,
        /// The file.
        missing: &'static str,
    },
}

impl StoreError {
    /// Wraps a failed file operation whose `source` names the path.
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// Gives an error of SQLite the database's path and, where it is a known case, its own words.
    pub(super) fn at(self, path: &Path) -> Self {
        let Self::Sqlite(source) = self else { return self };
        let path = path.to_owned();
        match source.sqlite_error().map(|e| (e.code, e.extended_code)) {
            Some((ErrorCode::DiskFull, _)) => Self::DatabaseFull { path },
            Some((
                ErrorCode::SystemIoFailure,
                SQLITE_IOERR_WRITE | SQLITE_IOERR_TRUNCATE | SQLITE_IOERR_SHMSIZE,
            )) => Self::DatabaseFull { path },
            Some((ErrorCode::ReadOnly, _)) => Self::DatabaseReadOnly { path },
            Some((ErrorCode::CannotOpen | ErrorCode::PermissionDenied, _)) => {
                Self::DatabaseUnreadable { path }
            }
            Some((ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _)) => {
                Self::DatabaseBusy { path }
            }
            Some((ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _)) => {
                Self::DatabaseCorrupt { path }
            }
            _ => Self::Database { path, source },
        }
    }

    /// Makes the error of a row that does not read back.
    pub(super) fn bad_row(
        table: &'static str,
        id: impl ToString,
        reason: impl std::fmt::Display,
    ) -> Self {
        Self::BadRow { table, id: id.to_string(), reason: reason.to_string() }
    }
}

/// Says what helps against an error of the file system.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::FileTooLarge
        | io::ErrorKind::WriteZero => "free some space and try again",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "make it readable and writable for this user or choose another data directory with --home"
        }
        io::ErrorKind::NotFound => "check the path",
        _ => "check the path, or choose another data directory with --home",
    }
}

/// Says why a job in one state gets to no other, and what helps.
fn no_transition(from: JobState, to: JobState) -> String {
    match (from.is_final(), to) {
        (true, JobState::Cancelled) => {
            format!("has ended already ({from}): there is nothing left to cancel")
        }
        (true, _) => {
            format!("has ended already ({from}) and cannot become {to}: enqueue a new one")
        }
        (false, _) => format!("is {from} and cannot become {to}"),
    }
}

/// The present, in whole milliseconds as the database keeps it.
pub(super) fn now() -> DateTime<Utc> {
    from_millis(Utc::now().timestamp_millis())
}

/// Reads a time in milliseconds since 1970; one that no calendar has becomes 1970.
pub(super) fn from_millis(millis: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(millis).unwrap_or_default()
}
