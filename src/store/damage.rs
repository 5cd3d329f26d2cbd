//! Adapters whose files are there and cannot be used.

use std::path::PathBuf;

use super::adapters::{self, AdapterState};
use super::error::StoreError;
use super::events::adapter_event;
use super::{Store, publish};
use crate::domain::AdapterId;

/// What became of a damaged adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Where its files lie now.
    pub to: PathBuf,
    /// What answers in its place, if it was live; `None` is the base.
    pub instead: Option<AdapterId>,
}

impl Store {
    /// Moves a damaged adapter's files to the quarantine, where nobody deletes them, and notes it in its row; if it was
    /// live, its nearest ancestor takes its place. Files that are put back make it usable again. Only for the holder of
    /// the queue's lock.
    ///
    /// # Errors
    /// When there is none with this id, or something cannot be written.
    pub fn quarantine_adapter(&self, id: &AdapterId, why: &str) -> Result<SetAside, StoreError> {
        self.write(|db| {
            let row = adapters::one(db, id)?;
            let state = AdapterState::Quarantined;
            let instead = match row.live {
                true => self.step_back(db, &row, state)?,
                false => {
                    adapters::set_state(db, id, state)?;
                    None
                }
            };
            adapter_event(db, None, id, state.as_str(), Some(why))?;
            // Dead between the two, the next start finds a row without files.
            let to = publish::set_aside(&self.home, &self.home.adapter(id))?;
            Ok(SetAside { to, instead })
        })
    }
}
