//! The supervisor: starts the other actors, restarts those that die, and gives up loudly when that does not help.
//!
//! actix's own supervisor does not restart after a panic, so ours is told by a [`Guard`] that every actor holds: its
//! `Drop` runs however the actor ends. A restarted actor is put behind the same ports, so nobody else notices.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Recipient};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::messages::console::Notice;
use crate::messages::supervisor::{Down, Shutdown, ShutdownReason, StartChild};
use crate::messages::{ActorName, MAILBOX_CAPACITY, Port};

/// Restarts of one actor within [`RESTART_WINDOW`] before the program gives up: a fault that comes back five times in a
/// minute comes back for ever, and a crash loop helps nobody.
pub const MAX_RESTARTS: usize = 5;
/// The time in which [`MAX_RESTARTS`] counts.
pub const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// The pause before the first restart; doubled for each further one in the window.
pub const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause before a restart: the chat is waiting.
pub const LONGEST_RESTART_PAUSE: Duration = Duration::from_secs(5);
/// Requests to shut down that wait for the shutdown task: the first counts, the second hurries, more say nothing new.
pub const SHUTDOWN_QUEUE: usize = 4;
/// The exit code after giving up.
const GAVE_UP_CODE: u8 = 1;

/// How often and after which pause an actor is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Restarts within `window` before giving up.
    pub max_restarts: usize,
    /// The time in which they count.
    pub window: Duration,
    /// The first pause.
    pub pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl RestartPolicy {
    /// The program's policy.
    pub const STANDARD: RestartPolicy = RestartPolicy {
        max_restarts: MAX_RESTARTS,
        window: RESTART_WINDOW,
        pause: RESTART_PAUSE,
        longest_pause: LONGEST_RESTART_PAUSE,
    };
}

/// The recent restarts of one actor.
#[derive(Debug, Default)]
struct RestartHistory(VecDeque<Instant>);

impl RestartHistory {
    /// Returns the pause before the next restart, or `None` when there were too many.
    fn next(&mut self, policy: &RestartPolicy, now: Instant) -> Option<Duration> {
        self.0.retain(|&at| now.duration_since(at) < policy.window);
        if self.0.len() >= policy.max_restarts {
            return None;
        }
        let doublings = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.push_back(now);
        let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
        Some(policy.pause.saturating_mul(factor).min(policy.longest_pause))
    }
}

/// Tells the supervisor when the actor that holds it is gone.
pub struct Guard {
    down: Down,
    supervisor: Recipient<Down>,
}

impl Guard {
    /// Makes a guard for one incarnation of an actor.
    pub fn new(down: Down, supervisor: Recipient<Down>) -> Self {
        Self { down, supervisor }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Not try_send: this must not be lost, and there is one per incarnation, so the mailbox stays bounded.
        self.supervisor.do_send(self.down);
    }
}

/// The span in which an actor logs.
pub fn actor_span(actor: ActorName) -> tracing::Span {
    tracing::info_span!("actor", name = actor.as_str())
}

/// Starts one actor with this guard and connects its ports.
pub type Starter = Box<dyn FnMut(Guard) -> Result<(), String>>;

struct Child {
    start: Starter,
    incarnation: u32,
    history: RestartHistory,
}

/// Watches the other actors.
pub struct Supervisor {
    policy: RestartPolicy,
    children: BTreeMap<ActorName, Child>,
    notices: Port<Notice>,
    shutdown: mpsc::Sender<Shutdown>,
    closing: bool,
}

impl Supervisor {
    /// Makes a supervisor without children; requests to shut down go to `shutdown`, news for the user to `notices`.
    pub fn new(
        policy: RestartPolicy,
        notices: Port<Notice>,
        shutdown: mpsc::Sender<Shutdown>,
    ) -> Self {
        Self { policy, children: BTreeMap::new(), notices, shutdown, closing: false }
    }

    /// Adds a child; [`StartChild`] starts it.
    #[must_use]
    pub fn with_child(mut self, actor: ActorName, start: Starter) -> Self {
        let history = RestartHistory::default();
        self.children.insert(actor, Child { start, incarnation: 0, history });
        self
    }

    fn start_child(&mut self, actor: ActorName, ctx: &mut Context<Self>) {
        if self.closing {
            return;
        }
        let supervisor = ctx.address().recipient();
        let Some(child) = self.children.get_mut(&actor) else { return };
        child.incarnation += 1;
        let down = Down { actor, incarnation: child.incarnation };
        // Where starting fails the guard is dropped with it, which reports `Down` like any other death.
        match (child.start)(Guard::new(down, supervisor)) {
            Ok(()) => tracing::info!(%actor, incarnation = down.incarnation, "started"),
            Err(error) => tracing::error!(%actor, error, "could not be started"),
        }
    }

    fn restart(&mut self, actor: ActorName, ctx: &mut Context<Self>) {
        let Some(child) = self.children.get_mut(&actor) else { return };
        match child.history.next(&self.policy, Instant::now()) {
            Some(pause) => {
                let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                tracing::error!(%actor, pause_ms, "died and will be restarted");
                self.tell(format!(
                    "the {actor} part failed and is being restarted; the log says why"
                ));
                ctx.run_later(pause, move |this, ctx| this.start_child(actor, ctx));
            }
            None => self.give_up(actor),
        }
    }

    fn give_up(&mut self, actor: ActorName) {
        let limit = self.policy.max_restarts;
        tracing::error!(%actor, restarts = limit, "died too often: giving up");
        self.tell(format!(
            "the {actor} part failed more than {limit} times in {} s: giving up, the log says why",
            self.policy.window.as_secs()
        ));
        self.request(Shutdown { reason: ShutdownReason::GaveUp(actor), code: GAVE_UP_CODE });
    }

    fn tell(&self, text: String) {
        // Without a console there is nobody to tell; the log has it.
        let _ = self.notices.try_send(Notice(text));
    }

    fn request(&mut self, shutdown: Shutdown) {
        self.closing = true;
        if self.shutdown.try_send(shutdown).is_err() {
            tracing::debug!("the shutdown is already under way");
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Handler<Down> for Supervisor {
    type Result = ();

    fn handle(&mut self, down: Down, ctx: &mut Self::Context) {
        let current = self.children.get(&down.actor).map(|child| child.incarnation);
        if self.closing || current != Some(down.incarnation) {
            return;
        }
        if down.actor == ActorName::Console {
            // The terminal is in an unknown state and the conversation is gone: nothing to go on with.
            tracing::error!("the console died");
            let reason = ShutdownReason::GaveUp(ActorName::Console);
            self.request(Shutdown { reason, code: GAVE_UP_CODE });
        } else {
            self.restart(down.actor, ctx);
        }
    }
}

impl Handler<StartChild> for Supervisor {
    type Result = ();

    fn handle(&mut self, message: StartChild, ctx: &mut Self::Context) {
        self.start_child(message.0, ctx);
    }
}

impl Handler<Shutdown> for Supervisor {
    type Result = ();

    fn handle(&mut self, shutdown: Shutdown, _: &mut Self::Context) {
        self.request(shutdown);
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
