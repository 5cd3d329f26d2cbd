//! The database as actors use it: off the arbiter, one call at a time, in the order of the calls.
//!
//! SQLite calls are short, but a full disk or another process's lock can hold one for seconds. So each runs on tokio's
//! blocking threads, behind a fair lock that keeps the order: a mark is stored before the list that was asked for next is
//! read. One connection serves all actors of a process.

use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore};

use crate::messages::ActorError;
use crate::store::{Store, StoreError};

/// Calls that may wait for the database: about four for each actor's mailbox of ordinary traffic. More than this means
/// that the disk hangs, and senders should hear it.
pub const DB_QUEUE: usize = 64;

/// Why a call of the database gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too many calls wait.
    #[error(
        "the database does not keep up ({DB_QUEUE} calls waiting): check the disk, then try again"
    )]
    Busy,
    /// The program is shutting down.
    #[error("the database is closed: shammah is shutting down")]
    Closed,
    /// The call panicked; its transaction was rolled back.
    #[error("the database failed on an internal error: {0}; nothing was stored")]
    Panicked(String),
}

impl From<DbError> for ActorError {
    fn from(error: DbError) -> Self {
        use StoreError as S;
        match error {
            DbError::Busy => ActorError::Busy { what: "the database", limit: DB_QUEUE },
            DbError::Closed => ActorError::Closing,
            DbError::Store(error) => match error {
                S::NothingToTrain { .. } => ActorError::NothingToTrain(error.to_string()),
                S::QueueFull { limit } => ActorError::Busy { what: "the queue of jobs", limit },
                S::UnknownFeedback(_)
                | S::UnknownJob(_)
                | S::UnknownAdapter(_)
                | S::InvalidFeedback(_)
                | S::HoldsSecret(_)
                | S::SecretInExample { .. }
                | S::AlreadyLearned { .. }
                | S::InTraining { .. }
                | S::NameTaken(_)
                | S::SameJob(_)
                | S::IllegalTransition { .. }
                | S::CancelAsked(_)
                | S::AdapterIsLive(_)
                | S::AdapterIsParentOfLive { .. }
                | S::AdapterInUse { .. }
                | S::AdapterNotLive(_)
                | S::NothingLive(_) => ActorError::Refused(error.to_string()),
                S::AdapterQuarantined(_) | S::OtherBase { .. } | S::IncompleteAdapter { .. } => {
                    ActorError::Adapter(error.to_string())
                }
                other => ActorError::Store(other.to_string()),
            },
            panicked @ DbError::Panicked(_) => ActorError::Store(panicked.to_string()),
        }
    }
}

/// A shared database; cloning shares the connection.
#[derive(Clone)]
pub struct Db {
    store: Arc<Mutex<Option<Store>>>,
    slots: Arc<Semaphore>,
}

impl Db {
    /// Takes over a store.
    pub fn new(store: Store) -> Self {
        Self { store: Arc::new(Mutex::new(Some(store))), slots: Arc::new(Semaphore::new(DB_QUEUE)) }
    }

    /// Runs `work` on a blocking thread, after all calls made before.
    ///
    /// # Errors
    /// What `work` returns; [`DbError::Busy`] when [`DB_QUEUE`] calls wait; [`DbError::Closed`] after [`Db::close`].
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, DbError> {
        let _slot = self.slots.try_acquire().map_err(|_| DbError::Busy)?;
        let guard = Arc::clone(&self.store).lock_owned().await;
        let run = move || guard.as_ref().map_or(Err(DbError::Closed), |store| Ok(work(store)?));
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => {
                Err(DbError::Panicked(super::model_thread::panic_text(error.into_panic().as_ref())))
            }
            Err(_) => Err(DbError::Closed),
        }
    }

    /// Closes the database after the calls made before; later ones get [`DbError::Closed`].
    pub async fn close(&self) {
        let store = self.store.lock().await.take();
        // Closing writes the log back into the database file, which may take a moment.
        let _ = tokio::task::spawn_blocking(move || drop(store)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::test_kit::temp_store;

    #[actix::test]
    async fn calls_run_in_the_order_in_which_they_were_made() {
        let (_dir, store) = temp_store();
        let db = Db::new(store);
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let calls = (0..20).map(|i| {
            let order = Arc::clone(&order);
            db.call(move |_| {
                order.lock().unwrap().push(i);
                Ok(())
            })
        });
        futures::future::join_all(calls).await;
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[actix::test]
    async fn a_panicking_call_is_an_error_and_the_next_one_works() {
        let (_dir, store) = temp_store();
        let db = Db::new(store);
        let failed = db.call::<()>(|_| panic!("boom")).await;
        assert!(matches!(failed, Err(DbError::Panicked(text)) if text == "boom"));
        assert!(db.call(|store| store.jobs()).await.is_ok());
    }

    #[actix::test]
    async fn too_many_waiting_calls_are_refused_as_busy() {
        let (_dir, store) = temp_store();
        let db = Db::new(store);
        let calls = (0..DB_QUEUE + 1).map(|_| db.call(|_| Ok(())));
        let results = futures::future::join_all(calls).await;
        assert!(matches!(results.last(), Some(Err(DbError::Busy))));
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), DB_QUEUE);
    }

    #[actix::test]
    async fn a_closed_database_says_so() {
        let (_dir, store) = temp_store();
        let db = Db::new(store);
        db.close().await;
        assert!(matches!(db.call(|s| s.jobs()).await, Err(DbError::Closed)));
    }
}
