//! Taking in an adapter that no job of this data directory made.

use super::Store;
use super::adapters::{self, AdapterRow, NewAdapter};
use super::error::StoreError;
use super::events::adapter_event;
use super::home::make_directory;
use super::publish::{self, Published};

impl Store {
    /// Makes an empty directory on the adapters' file system to put a foreign adapter's files in; it goes when it is
    /// dropped, or at the next start.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn import_directory(&self) -> Result<tempfile::TempDir, StoreError> {
        let trash = self.home.trash();
        make_directory(&trash)?;
        tempfile::Builder::new()
            .prefix("import-")
            .tempdir_in(&trash)
            .map_err(StoreError::io("make room for the adapter"))
    }

    /// Takes in an adapter that was checked: its files are made durable and moved to their place with its row. It is not
    /// live: nothing was measured of it here, so only the user can make it so.
    ///
    /// # Errors
    /// When the name is taken, the directory lacks a file, or something cannot be written. Then nothing has changed.
    pub fn import_adapter(&self, adapter: &NewAdapter) -> Result<AdapterRow, StoreError> {
        let bytes = publish::prepare(&adapter.dir)?;
        let mut published = None;
        let done = self.write(|db| {
            if super::jobs::name_is_taken(db, &adapter.id)? {
                return Err(StoreError::NameTaken(adapter.id.clone()));
            }
            let gate = serde_json::json!({"imported": true});
            adapters::insert(db, adapter, &gate, bytes, None)?;
            adapter_event(db, None, &adapter.id, "imported", None)?;
            published = Some(Published::publish(&adapter.dir, &self.home, &adapter.id)?);
            adapters::one(db, &adapter.id)
        });
        if let (Err(_), Some(published)) = (&done, published) {
            published.take_back();
        }
        done
    }
}
