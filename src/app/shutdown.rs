//! The orderly end: stop the intake, cancel the answers, let the worker write its checkpoint, close what is open.
//!
//! Each wait is bounded, and a second request to shut down cuts all of them short.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::team::Ports;
use crate::actors::db::Db;
use crate::messages::Port;
use crate::messages::console::{CloseConsole, Notice};
use crate::messages::inference::StopGenerating;
use crate::messages::supervisor::{Shutdown, ShutdownReason};
use crate::messages::training::ParkTraining;
use crate::worker::parent::CANCEL_GRACE;

/// How long the console may take to restore the terminal.
pub const CONSOLE_PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer may take to notice that it is cancelled: one token, or one chunk of a long prompt.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How long everything may take together: what stops services waits ten seconds and kills.
pub const ALL_PATIENCE: Duration = Duration::from_millis(9500);
/// How long the worker may take: its own grace, after which it is killed, and the rows to write.
pub const WORKER_PATIENCE: Duration = CANCEL_GRACE.saturating_add(Duration::from_secs(2));
/// How long the database may take to write its log back.
pub const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// What is to be ended.
pub struct Ending<'a> {
    /// The actors.
    pub ports: &'a Ports,
    /// Where lines for the user go.
    pub notices: &'a Port<Notice>,
    /// The console, where there is one.
    pub console: Option<&'a Port<CloseConsole>>,
    /// The database.
    pub db: &'a Db,
    /// Further requests to shut down.
    pub hurry: &'a mut mpsc::Receiver<Shutdown>,
    /// Whether this process runs the queue.
    pub holds_queue: bool,
}

impl Ending<'_> {
    /// Ends everything, in order. The console goes after the worker: the user sees that the job is kept.
    pub async fn run(mut self, first: &Shutdown) {
        tracing::info!(?first, "shutting down");
        if let Some(reason) = reason(&first.reason) {
            // Without a console there is nobody to tell.
            let _ = self.notices.try_send(Notice(reason));
        }
        let until = Instant::now() + ALL_PATIENCE;
        // Without a console nobody answers.
        if self.console.is_some() {
            let stop = self.ports.stop_generating.clone();
            let stop = async move { drop(stop.send(StopGenerating { closing: true }).await) };
            self.step("the answer", ANSWER_PATIENCE, stop, until).await;
        }
        let park = self.ports.park.clone();
        let park = async move { drop(park.send(ParkTraining).await) };
        if !self.step("the worker", WORKER_PATIENCE, park, until).await && self.holds_queue {
            self.leave_the_job().await;
        }
        if let Some(console) = self.console.cloned() {
            let close = CloseConsole { reason: String::new() };
            let close = async move { drop(console.send(close).await) };
            self.step("the console", CONSOLE_PATIENCE, close, until).await;
        }
        let db = self.db.clone();
        let close = async move { db.close().await };
        self.step("the database", STORE_PATIENCE, close, until).await;
    }

    /// Puts the job of a worker that nobody waits for any more back into the queue: it dies with this process, and that is
    /// no failed attempt.
    async fn leave_the_job(&self) {
        match self.db.call(|store| store.release_active()).await {
            Ok(jobs) => tracing::info!(?jobs, "left for the next start"),
            Err(error) => tracing::warn!(%error, "the running job was not put back"),
        }
    }

    /// Waits for one step, for so long at most, or until somebody is in a hurry; returns whether it was done.
    async fn step(
        &mut self,
        what: &str,
        patience: Duration,
        step: impl Future<Output = ()>,
        until: Instant,
    ) -> bool {
        let patience = patience.min(until.saturating_duration_since(Instant::now()));
        tokio::select! {
            // A step that is done counts, however late.
            biased;
            () = step => return true,
            () = tokio::time::sleep(patience) => tracing::warn!(what, "took too long to end"),
            Some(_) = self.hurry.recv() => tracing::warn!(what, "was not waited for"),
        }
        false
    }
}

/// Says why the program ends, where the user does not know.
fn reason(reason: &ShutdownReason) -> Option<String> {
    match reason {
        ShutdownReason::Quit | ShutdownReason::Done => None,
        ShutdownReason::Signal(name) => Some(format!("ending on {name}")),
        ShutdownReason::GaveUp(actor) => {
            Some(format!("ending: the {actor} part fails again and again; the log says why"))
        }
    }
}

#[cfg(test)]
#[path = "shutdown_tests.rs"]
mod tests;
