//! Bringing rows and files together again after a process died.

use std::path::PathBuf;

use super::Store;
use super::adapters::{self, AdapterState};
use super::error::StoreError;
use super::events::adapter_event;
use super::publish;
use crate::domain::AdapterId;

/// What was brought together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Adapters of jobs that are not over, whose row was never stored; they were removed, and the jobs make them again.
    pub removed: Vec<PathBuf>,
    /// Other things among the adapters that no row knows, with where they lie now.
    pub set_aside: Vec<(PathBuf, PathBuf)>,
    /// Adapters whose files are missing, with what took the place of those that were live (`None`
    /// is the base).
    pub quarantined: Vec<(AdapterId, Option<AdapterId>)>,
    /// Quarantined adapters whose files are back.
    pub restored: Vec<AdapterId>,
}

impl Reconciled {
    /// Whether all was well.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

impl Store {
    /// Removes adapters' directories without a row that a process left which died between the two, sets aside what else
    /// lies there, and quarantines rows without a directory. Only for the holder of the queue's lock.
    ///
    /// # Errors
    /// When the database or the directory cannot be read or written.
    pub fn reconcile(&self) -> Result<Reconciled, StoreError> {
        self.write(|db| {
            let mut done = Reconciled::default();
            for row in adapters::all(db)? {
                let whole = publish::first_missing(&self.home.adapter(&row.id)).is_none();
                match (whole, row.state) {
                    (false, AdapterState::Ready | AdapterState::RolledBack) => {
                        let state = AdapterState::Quarantined;
                        let instead = if row.live {
                            self.step_back(db, &row, state)?
                        } else {
                            adapters::set_state(db, &row.id, state)?;
                            None
                        };
                        adapter_event(db, None, &row.id, state.as_str(), Some("files missing"))?;
                        done.quarantined.push((row.id, instead));
                    }
                    (true, AdapterState::Quarantined) => {
                        adapters::set_state(db, &row.id, AdapterState::Ready)?;
                        adapter_event(db, None, &row.id, "restored", Some("files are back"))?;
                        done.restored.push(row.id);
                    }
                    _ => {}
                }
            }
            self.remove_strangers(db, &mut done)?;
            Ok(done)
        })
    }

    /// Takes away what lies among the adapters without a row, and empties the trash.
    fn remove_strangers(
        &self,
        db: &rusqlite::Connection,
        done: &mut Reconciled,
    ) -> Result<(), StoreError> {
        let directory = self.home.adapters();
        let list = || fs_err::read_dir(&directory)?.collect::<Result<Vec<_>, _>>();
        let entries = list().map_err(StoreError::io("list the adapters"))?;
        let trash = self.home.trash();
        for path in entries.into_iter().map(|entry| entry.path()) {
            let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
            let ours = match &id {
                Some(id) if adapters::exists(db, id)? => continue,
                Some(id) => is_being_made(db, id)?,
                None => false,
            };
            if ours {
                publish::discard(&self.home, &path)?;
                done.removed.push(path);
            } else if path != trash {
                let to = publish::set_aside(&self.home, &path)?;
                done.set_aside.push((path, to));
            }
        }
        if trash.exists() {
            fs_err::remove_dir_all(&trash).map_err(StoreError::io("empty the trash"))?;
        }
        Ok(())
    }
}

/// Whether a job that is not over will publish an adapter of this name.
fn is_being_made(db: &rusqlite::Connection, id: &AdapterId) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM jobs
               WHERE name = ?1 AND state IN ('queued', 'running', 'evaluating'))";
    Ok(db.query_row(sql, [id.as_str()], |row| row.get(0))?)
}
