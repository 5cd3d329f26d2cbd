//! The data directory: where everything lies, and the lock of its queue.

use std::fs::{DirBuilder, Metadata, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err::os::unix::fs::OpenOptionsExt;
use fs_err::{File, OpenOptions};

use super::error::StoreError;
use crate::domain::{AdapterId, CURVE_FILE};

/// Permissions of every directory made here: for the owner alone.
const DIRECTORY_MODE: u32 = 0o700;
/// Permissions of every file made here: for the owner alone.
const FILE_MODE: u32 = 0o600;
/// The bits that let the group or others write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Tries to take the queue's lock, and the pause between them: one that only looks ([`Home::queue_is_held`]) has it for
/// microseconds and must not look like a holder.
const LOCK_TRIES: usize = 4;
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// The bits that let the group or others reach what is in a directory.
const SEARCHABLE_BY_OTHERS: u32 = 0o011;
/// Longest text of a lock file that is read back: a process id.
const MAX_LOCK_TEXT: u64 = 20;

/// The data directory (`~/.shammah`), checked to belong to this user alone.
///
/// Making one creates the directory; holding one proves the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Opens the data directory at `path` and creates what is missing, for the owner alone.
    ///
    /// # Errors
    /// When it, or something in it that the program goes by, belongs to another user or can be written by group or
    /// others, when it is no directory, or cannot be made.
    pub fn open_or_create(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let root = std::path::absolute(path.as_ref())
            .map_err(StoreError::io("find the data directory"))?;
        let home = Self { root };
        make_directory(&home.root)?;
        let open_to_others = check_owner(&home.root)?.mode() & SEARCHABLE_BY_OTHERS != 0;
        for directory in [home.adapters(), home.checkpoints(), home.logs()] {
            make_directory(&directory)?;
            check_inner(&directory, open_to_others)?;
        }
        for file in [home.db(), home.config(), home.history(), home.lock()] {
            check_inner(&file, open_to_others)?;
        }
        Ok(home)
    }

    /// The data directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The database.
    pub fn db(&self) -> PathBuf {
        self.root.join("shammah.db")
    }

    /// The directory of all adapters.
    pub fn adapters(&self) -> PathBuf {
        self.root.join("adapters")
    }

    /// The directory of one adapter.
    pub fn adapter(&self, id: &AdapterId) -> PathBuf {
        self.adapters().join(id.as_str())
    }

    /// Where deleted adapters lie until their files are gone; on the adapters' file system.
    pub(super) fn trash(&self) -> PathBuf {
        self.adapters().join(".trash")
    }

    /// Where things lie that were found among the adapters and belong to none; nobody deletes them but the user.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// The directory of all jobs' checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The directory of one job's checkpoints and unpublished outcome.
    pub fn checkpoint(&self, job: i64) -> PathBuf {
        self.checkpoints().join(format!("job-{job}"))
    }

    /// Where a job's worker leaves its adapter until it is published.
    pub fn outcome(&self, job: i64) -> PathBuf {
        self.checkpoint(job).join("outcome")
    }

    /// Where a job's worker notes its steps until the job has ended.
    pub fn curve(&self, job: i64) -> PathBuf {
        self.checkpoint(job).join(CURVE_FILE)
    }

    /// Removes what a job that has ended leaves: checkpoints, and an outcome that was not published.
    ///
    /// # Errors
    /// When something cannot be removed; that nothing is there is no error.
    pub fn remove_checkpoint(&self, job: i64) -> Result<(), StoreError> {
        let path = self.checkpoint(job);
        match fs_err::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove a checkpoint")(error))
            }
            _ => Ok(()),
        }
    }

    /// The directory of the log files.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The console's history.
    pub fn history(&self) -> PathBuf {
        self.root.join("history")
    }

    /// The user's configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The lock of the queue.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Takes the right to run this directory's queue, or returns `None` when another process (or
    /// another handle of this one) has it.
    ///
    /// # Errors
    /// When the lock file cannot be opened or written.
    pub fn try_lock_queue(&self) -> Result<Option<QueueLock>, StoreError> {
        let mut file = open_private(&self.lock()).map_err(StoreError::io("lock the queue"))?;
        for _ in 0..LOCK_TRIES {
            match file.try_lock() {
                Ok(()) => {
                    write_holder(&mut file).map_err(StoreError::io("lock the queue"))?;
                    return Ok(Some(QueueLock { _file: file }));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::Error(source)) => {
                    return Err(StoreError::io("lock the queue")(source));
                }
            }
        }
        Ok(None)
    }

    /// Whether a process runs the queue at this moment: the lock ends with its process, the lock file does not.
    pub fn queue_is_held(&self) -> bool {
        let probe = File::open(self.lock()).map(|file| file.try_lock_shared());
        matches!(probe, Ok(Err(TryLockError::WouldBlock)))
    }

    /// Returns the process id of whoever holds the queue, as far as the lock file tells.
    ///
    /// For messages only: between this answer and its use the holder may have gone.
    pub fn queue_holder(&self) -> Option<u32> {
        let mut text = String::new();
        let file = File::open(self.lock()).ok()?;
        file.take(MAX_LOCK_TEXT).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }
}

/// The right to run the queue of a data directory, held until this value is dropped.
///
/// The lock belongs to an open file, so it ends with the process however that ends, and children
/// do not inherit it.
#[derive(Debug)]
pub struct QueueLock {
    _file: File,
}

/// Opens a file for reading and writing; one that is made here is the owner's alone.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)
}

/// Leaves this process's id in the lock file, for the message of the process that comes too late.
fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Makes a directory, with its parents, for the owner alone; one that is there stays as it is.
pub(super) fn make_directory(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path) {
        Ok(()) => Ok(()),
        Err(_) if path.exists() && !path.is_dir() => {
            Err(StoreError::NotADirectory { path: path.to_owned() })
        }
        Err(error) => {
            // `fs_err` has no directories with a mode; this is how it words its errors.
            let error = io::Error::new(error.kind(), format!("`{}`: {error}", path.display()));
            Err(StoreError::io("create directory")(error))
        }
    }
}

/// Checks something in the data directory, if it is there. That others may write it does no harm where they cannot get to
/// it (an editor may well have made it so).
fn check_inner(path: &Path, open_to_others: bool) -> Result<(), StoreError> {
    match check_owner(path) {
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(StoreError::WritableByOthers { .. }) if !open_to_others => Ok(()),
        checked => checked.map(drop),
    }
}

fn check_owner(path: &Path) -> Result<Metadata, StoreError> {
    let metadata = fs_err::metadata(path).map_err(StoreError::io("use the data directory"))?;
    let user = rustix::process::geteuid().as_raw();
    // The system's administrator could read and change everything anyway.
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(StoreError::ForeignOwner {
            path: path.to_owned(),
            owner: metadata.uid(),
            user,
        });
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(StoreError::WritableByOthers { path: path.to_owned(), mode });
    }
    Ok(metadata)
}
