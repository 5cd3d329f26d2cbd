//! How an adapter's directory gets to its place, and out of it.

use std::path::{Path, PathBuf};

use fs_err::File;

use super::error::StoreError;
use super::home::{Home, make_directory};
use crate::crash;
use crate::domain::AdapterId;

/// The files that every adapter has.
pub(super) const ADAPTER_FILES: [&str; 3] =
    ["adapter_model.safetensors", "adapter_config.json", "training.json"];

/// Checks that `directory` holds a whole adapter, makes its files durable, and returns their size
/// in bytes.
pub(super) fn prepare(directory: &Path) -> Result<u64, StoreError> {
    if let Some(missing) = first_missing(directory) {
        return Err(StoreError::IncompleteAdapter { path: directory.to_owned(), missing });
    }
    let mut bytes = 0;
    for name in ADAPTER_FILES {
        let path = directory.join(name);
        let sync = || {
            let file = File::open(path)?;
            file.sync_all()?;
            file.metadata()
        };
        bytes += sync().map_err(StoreError::io("make the adapter durable"))?.len();
        crash::point("after a file was synced");
    }
    sync_directory(directory)?;
    Ok(bytes)
}

/// Names the first file that an adapter's directory lacks; a link is no file.
pub(super) fn first_missing(directory: &Path) -> Option<&'static str> {
    let is_file =
        |name: &str| directory.join(name).symlink_metadata().is_ok_and(|m| m.file_type().is_file());
    ADAPTER_FILES.into_iter().find(|name| !is_file(name))
}

/// An adapter's directory in its place, whose row is not committed yet.
pub(super) struct Published {
    from: PathBuf,
    to: PathBuf,
}

impl Published {
    /// Moves a prepared directory to its adapter's place, durably; one that is there stays.
    ///
    /// Called inside the transaction that makes the row: another process that cleans up waits.
    pub(super) fn publish(from: &Path, home: &Home, id: &AdapterId) -> Result<Self, StoreError> {
        let to = home.adapter(id);
        if from == to {
            sync_directory(&home.adapters())?;
            return Ok(Self { from: to.clone(), to });
        }
        // A directory without a row is the remainder of a process that died here before.
        discard(home, &to)?;
        crash::point("before the adapter was moved");
        fs_err::rename(from, &to).map_err(StoreError::io("publish the adapter"))?;
        crash::point("after the adapter was moved");
        let published = Self { from: from.to_owned(), to };
        let synced = sync_directory(&home.adapters());
        if let Err(error) = synced {
            published.take_back();
            return Err(error);
        }
        Ok(published)
    }

    /// Moves the directory back. When that fails too, it has no row and the next start removes it.
    pub(super) fn take_back(self) {
        if self.from == self.to {
            return;
        }
        if let Err(error) = fs_err::rename(&self.to, &self.from) {
            tracing::warn!(%error, path = %self.to.display(), "unpublished adapter stays until the next start");
        }
    }
}

/// Removes a directory: first out of its place in one step, then its files.
pub(super) fn discard(home: &Home, directory: &Path) -> Result<(), StoreError> {
    if directory.symlink_metadata().is_err() {
        return Ok(());
    }
    let trash = home.trash();
    make_directory(&trash)?;
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let grave = tempfile::Builder::new()
        .prefix(&name)
        .tempdir_in(&trash)
        .map_err(StoreError::io("remove the adapter"))?;
    crash::point("before a directory was discarded");
    fs_err::rename(directory, grave.path().join(&name))
        .map_err(StoreError::io("remove the adapter"))?;
    crash::point("after a directory was discarded");
    sync_directory(&home.adapters())?;
    grave.close().map_err(StoreError::io("empty the trash"))
}

/// Moves something out of the adapters into the quarantine, and returns where it lies now.
pub(super) fn set_aside(home: &Home, path: &Path) -> Result<PathBuf, StoreError> {
    let quarantine = home.quarantine();
    make_directory(&quarantine)?;
    let name = path.file_name().unwrap_or_default();
    let mut to = quarantine.join(name);
    let mut number = 1;
    while to.symlink_metadata().is_ok() {
        number += 1;
        to = quarantine.join(format!("{}-{number}", name.to_string_lossy()));
    }
    fs_err::rename(path, &to).map_err(StoreError::io("set aside what is no adapter"))?;
    crash::point("after a stranger was set aside");
    sync_directory(&quarantine)?;
    sync_directory(&home.adapters())?;
    Ok(to)
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(StoreError::io("make the adapter durable"))?;
    crash::point("after a directory was synced");
    Ok(())
}
