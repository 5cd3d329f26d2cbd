//! To the supervisor: who died, and that it is time to go.

use actix::Message as ActixMessage;

use super::ActorName;

/// An actor is gone. From the guard that each actor holds, when it is dropped: after a panic or a stop. No reply.
#[derive(ActixMessage, Debug, Clone, Copy, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Down {
    /// Which one.
    pub actor: ActorName,
    /// Which incarnation, from 1: a late report of an earlier one changes nothing.
    pub incarnation: u32,
}

/// Why the program ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShutdownReason {
    /// The user quit, or the input ended.
    Quit,
    /// A signal, by its name.
    Signal(&'static str),
    /// An actor died more often than it may be restarted.
    GaveUp(ActorName),
    /// What `run_queue` was asked to wait for is done.
    Done,
}

/// Asks for the orderly shutdown. From the console (`/quit`, end of input), the signal task, the supervisor itself.
///
/// No reply: the program ends. The first one decides the exit code; a second one cuts the waits short.
#[derive(ActixMessage, Debug, Clone, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct Shutdown {
    /// Why.
    pub reason: ShutdownReason,
    /// The exit code: 0 done, 1 the work failed, 130 interrupted.
    pub code: u8,
}

/// Starts an actor. From `app`, which knows what must be there first: the live adapters before anybody can ask, a tidy
/// directory before the queue runs.
///
/// **Reply:** when the actor is behind its ports. A failure is treated like any other death.
#[derive(ActixMessage, Debug, Clone, Copy, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct StartChild(pub ActorName);
