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
    /// Things among the adapters that no row knows; they were removed.
    pub removed: Vec<PathBuf>,
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
    /// Removes adapters' directories without a row, and quarantines rows without a directory: what
    /// a process leaves that dies between the two. Only for the holder of the queue's lock.
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
                            set_state(db, &row.id, state)?;
                            None
                        };
                        adapter_event(db, None, &row.id, state.as_str(), Some("files missing"))?;
                        done.quarantined.push((row.id, instead));
                    }
                    (true, AdapterState::Quarantined) => {
                        set_state(db, &row.id, AdapterState::Ready)?;
                        adapter_event(db, None, &row.id, "restored", Some("files are back"))?;
                        done.restored.push(row.id);
                    }
                    _ => {}
                }
            }
            done.removed = self.remove_strangers(db)?;
            Ok(done)
        })
    }

    /// Removes what lies among the adapters without a row, the trash included.
    fn remove_strangers(&self, db: &rusqlite::Connection) -> Result<Vec<PathBuf>, StoreError> {
        let directory = self.home.adapters();
        let list = || fs_err::read_dir(&directory)?.collect::<Result<Vec<_>, _>>();
        let entries = list().map_err(StoreError::io("list the adapters"))?;
        let trash = self.home.trash();
        let mut removed = Vec::new();
        for path in entries.into_iter().map(|entry| entry.path()) {
            let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
            let known = match &id {
                Some(id) => adapters::exists(db, id)?,
                None => false,
            };
            if !known && path != trash {
                publish::discard(&self.home, &path)?;
                removed.push(path);
            }
        }
        if trash.exists() {
            fs_err::remove_dir_all(&trash).map_err(StoreError::io("empty the trash"))?;
        }
        Ok(removed)
    }
}

fn set_state(
    db: &rusqlite::Connection,
    id: &AdapterId,
    state: AdapterState,
) -> Result<(), StoreError> {
    db.execute("UPDATE adapters SET state = ?2 WHERE id = ?1", (id.as_str(), state.as_str()))?;
    Ok(())
}
