//! Signals as requests to shut down.

use std::io;

use actix::Recipient;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::INTERRUPTED;
use crate::messages::supervisor::{Shutdown, ShutdownReason};

/// Who takes Ctrl-C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtrlC {
    /// A terminal in raw mode: it is a key there, and a signal only when somebody sends one.
    Key,
    /// Nobody else: it ends the program.
    Signal,
}

/// Turns SIGTERM into the orderly end of a service, which is no failure, and SIGINT into an interruption; the second one
/// cuts the waits short. SIGHUP comes out of the stream that is returned.
///
/// # Errors
/// When the system takes no handler.
pub fn watch_service(supervisor: &Recipient<Shutdown>) -> io::Result<Signal> {
    let watched =
        [("SIGTERM", SignalKind::terminate(), 0), ("SIGINT", SignalKind::interrupt(), INTERRUPTED)];
    for (name, kind, code) in watched {
        actix::spawn(forward(name, code, signal(kind)?, supervisor.clone()));
    }
    signal(SignalKind::hangup())
}

/// Turns SIGTERM, SIGHUP and, where Ctrl-C is no key, SIGINT into requests to shut down; the second one cuts the waits
/// short.
///
/// # Errors
/// When the system takes no handler.
pub fn watch(ctrl_c: CtrlC, supervisor: Recipient<Shutdown>) -> io::Result<()> {
    let mut watched = vec![("SIGTERM", SignalKind::terminate()), ("SIGHUP", SignalKind::hangup())];
    if ctrl_c == CtrlC::Signal {
        watched.push(("SIGINT", SignalKind::interrupt()));
    }
    for (name, kind) in watched {
        let signals = signal(kind)?;
        actix::spawn(forward(name, INTERRUPTED, signals, supervisor.clone()));
    }
    Ok(())
}

async fn forward(
    name: &'static str,
    code: u8,
    mut signals: Signal,
    supervisor: Recipient<Shutdown>,
) {
    while signals.recv().await.is_some() {
        tracing::info!(name, "asked to end");
        let reason = ShutdownReason::Signal(name);
        supervisor.do_send(Shutdown { reason, code });
    }
}
