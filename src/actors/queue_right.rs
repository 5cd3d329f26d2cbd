//! The right to run the queue: there from the start, or taken when the process that had it is gone.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::messages::Port;
use crate::messages::console::Notice;
use crate::store::{Home, QueueLock, StoreError};

/// Whether this process runs the queue of its data directory; shared by all who ask, held to the end of the process.
#[derive(Clone)]
pub struct QueueRight(Arc<Inner>);

struct Inner {
    home: Home,
    lock: Mutex<Option<QueueLock>>,
    told: Port<Notice>,
}

impl QueueRight {
    /// Makes it of what could be locked at the start; `told` hears when it is taken later.
    pub fn new(home: &Home, lock: Option<QueueLock>, told: Port<Notice>) -> Self {
        Self(Arc::new(Inner { home: home.clone(), lock: Mutex::new(lock), told }))
    }

    fn lock(&self) -> MutexGuard<'_, Option<QueueLock>> {
        self.0.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process runs the queue.
    pub fn is_held(&self) -> bool {
        self.lock().is_some()
    }

    /// Takes it if nobody has it; returns whether it was taken now. Blocks for a moment.
    ///
    /// # Errors
    /// A lock file that cannot be written.
    pub fn take(&self) -> Result<bool, StoreError> {
        if self.is_held() {
            return Ok(false);
        }
        let taken = self.0.home.try_lock_queue()?;
        let is_new = taken.is_some();
        if is_new {
            *self.lock() = taken;
        }
        Ok(is_new)
    }

    /// Tells the user a line.
    pub(super) fn tell(&self, line: String) {
        tracing::info!("{line}");
        // Without a console the log has it.
        let _ = self.0.told.try_send(Notice(line));
    }
}

impl fmt::Debug for QueueRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueRight").field("is_held", &self.is_held()).finish()
    }
}
