//! Who hears what becomes of jobs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::messages::Port;
use crate::messages::console::JobNotice;

/// How long a notice other than progress waits for a subscriber with a full mailbox; then that one misses it, because the
/// queue must go on.
const NOTICE_PATIENCE: Duration = Duration::from_secs(5);

/// Who may hear of jobs at a time: a console or `run_queue`, and a test's probe.
const MAX_SUBSCRIBERS: usize = 4;

/// The subscribers; they outlive the training actor, so a restarted one has them.
#[derive(Clone, Default)]
pub struct Subscribers(Arc<Mutex<Vec<Port<JobNotice>>>>);

impl Subscribers {
    /// Adds one; beyond the limit the oldest goes.
    pub fn add(&self, port: Port<JobNotice>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_SUBSCRIBERS {
            all.remove(0);
        }
        all.push(port);
    }

    fn all(&self) -> Vec<Port<JobNotice>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells progress to those who have room for it.
    pub fn hint(&self, notice: &JobNotice) {
        for port in self.all() {
            // The next step brings newer figures.
            let _ = port.try_send(notice.clone());
        }
    }

    /// Tells all, and waits for those who are behind.
    pub async fn tell(&self, notice: JobNotice) {
        for port in self.all() {
            let told = tokio::time::timeout(NOTICE_PATIENCE, port.send(notice.clone())).await;
            if !matches!(told, Ok(Ok(()))) {
                tracing::warn!(job = notice.job(), "a subscriber missed a notice");
            }
        }
    }
}
