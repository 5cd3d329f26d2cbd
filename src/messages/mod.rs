//! What the actors say to each other: one file per receiving actor.
//!
//! Commands are imperative (`Generate`), events past tense (`AnswerGiven`). Every message documents who sends it, what
//! comes back, which errors, and in what order. Senders hold a [`Port`], never an actor's address: tests put a recording
//! probe behind it, and the supervisor puts a restarted actor behind it without telling anybody.
//!
//! | message | from | to |
//! |---|---|---|
//! | [`inference::Generate`], [`inference::Revise`], [`inference::StopGenerating`] | console, shutdown | inference |
//! | [`inference::ShowModel`], [`inference::SwitchModel`] | console | inference |
//! | [`inference::SetLive`] | registry | inference |
//! | [`registry::AdoptBase`] | inference | registry |
//! | [`feedback`] | console | feedback |
//! | [`training::EnqueueTraining`], cancel, list, wait | console, `run_queue` | training |
//! | [`training::ThresholdReached`] | feedback | training |
//! | [`training::Reconfigure`] | `jobs run` | training, feedback |
//! | [`registry::PublishAdapter`] | training | registry |
//! | [`registry::RestoreLive`] | `app` at start | registry |
//! | [`registry::RecordUsage`] | inference | registry |
//! | [`registry::LoadAdapter`] and others | console | registry |
//! | [`console::JobNotice`] | training | console, `run_queue` |
//! | [`console::LiveChanged`] | registry | console |
//! | [`console::Notice`] | supervisor, shutdown | console |
//! | [`console::CloseConsole`] | shutdown | console |
//! | [`supervisor::Shutdown`] | console, signals | supervisor |
//! | [`supervisor::StartChild`] | `app` | supervisor |
//! | [`supervisor::Down`] | guards of all actors | supervisor |

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix::prelude::SendError;
use actix::{MailboxError, Message, Recipient};

pub mod console;
pub mod feedback;
pub mod inference;
pub mod registry;
pub mod supervisor;
pub mod training;

/// Messages that wait in an actor's mailbox before senders get [`ActorError::Busy`].
///
/// Sixteen is actix's own default: a person types slower, and a job reports every few milliseconds at most.
pub const MAILBOX_CAPACITY: usize = 16;

/// How long a sender waits for an actor that is being started: the others come up within milliseconds of the console, and
/// a first restart follows at once.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks.
const CONNECT_INTERVAL: Duration = Duration::from_millis(10);

/// The actors, as errors and the supervisor name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ActorName {
    /// Owns the model.
    Inference,
    /// Owns the buffer of marks.
    Feedback,
    /// Owns the queue of training jobs and the worker process.
    Training,
    /// Owns the adapters.
    Registry,
    /// Owns the terminal.
    Console,
}

impl ActorName {
    /// Returns the name as logs and errors spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            ActorName::Inference => "inference",
            ActorName::Feedback => "feedback",
            ActorName::Training => "training",
            ActorName::Registry => "registry",
            ActorName::Console => "console",
        }
    }
}

impl fmt::Display for ActorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an actor did not do what it was asked. The text is for users: one line with a remedy.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ActorError {
    /// A bounded queue is full.
    #[error("{what} is busy ({limit} waiting already): try again in a moment")]
    Busy {
        /// Whose queue.
        what: &'static str,
        /// Its limit.
        limit: usize,
    },
    /// The actor died and is being restarted.
    #[error(
        "the {0} part is being restarted after a failure: try again in a moment, the log says why"
    )]
    Restarting(ActorName),
    /// The program is shutting down.
    #[error("shammah is shutting down and takes no new work")]
    Closing,
    /// The model could not answer (context overflow, sampling out of range, damaged weights, ...).
    #[error("{0}")]
    Engine(String),
    /// The model panicked; it is loaded anew before the next answer.
    #[error("the model failed while answering ({0}): it is loaded anew, ask again")]
    ModelPanicked(String),
    /// The model could not be loaded anew after a panic.
    #[error("the model could not be loaded: {0}")]
    ModelUnavailable(String),
    /// The data directory refused to read or write.
    #[error("{0}")]
    Store(String),
    /// There is no example with a target to train on; the text counts what is there.
    #[error("{0}")]
    NothingToTrain(String),
    /// A job, adapter or mark with this name does not exist, or is in no state for what was asked.
    #[error("{0}")]
    Refused(String),
    /// An adapter on disk is damaged or belongs to another base.
    #[error("{0}")]
    Adapter(String),
}

/// Where to send messages of one type: a recipient that the supervisor can replace.
///
/// Cloning shares the place: after a restart every clone reaches the new actor.
pub struct Port<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    actor: ActorName,
    slot: Arc<RwLock<Option<Recipient<M>>>>,
}

impl<M> Clone for Port<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn clone(&self) -> Self {
        Self { actor: self.actor, slot: Arc::clone(&self.slot) }
    }
}

impl<M> Port<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    /// Makes a port with nobody behind it yet: sending answers [`ActorError::Restarting`].
    pub fn unconnected(actor: ActorName) -> Self {
        Self { actor, slot: Arc::new(RwLock::new(None)) }
    }

    /// Makes a port to a recipient.
    pub fn new(actor: ActorName, recipient: Recipient<M>) -> Self {
        let port = Self::unconnected(actor);
        port.connect(recipient);
        port
    }

    /// Puts a (restarted) actor behind this port and all its clones.
    pub fn connect(&self, recipient: Recipient<M>) {
        *self.slot.write().unwrap_or_else(PoisonError::into_inner) = Some(recipient);
    }

    /// Takes the actor away: later messages are answered [`ActorError::Restarting`].
    pub fn disconnect(&self) {
        *self.slot.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn recipient(&self) -> Option<Recipient<M>> {
        self.slot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits a little for an actor that is being started or restarted.
    async fn connected(&self) -> Result<Recipient<M>, ActorError> {
        let end = tokio::time::Instant::now() + CONNECT_PATIENCE;
        loop {
            match self.recipient() {
                Some(recipient) => return Ok(recipient),
                None if tokio::time::Instant::now() < end => {
                    tokio::time::sleep(CONNECT_INTERVAL).await;
                }
                None => return Err(ActorError::Restarting(self.actor)),
            }
        }
    }

    /// Sends and waits for the answer; an actor that is just being (re)started is waited for.
    ///
    /// # Errors
    /// [`ActorError::Restarting`] if nobody comes in time, or the actor dies before it answers.
    pub async fn send(&self, message: M) -> Result<M::Result, ActorError> {
        let recipient = self.connected().await?;
        recipient.send(message).await.map_err(|error| match error {
            MailboxError::Closed | MailboxError::Timeout => ActorError::Restarting(self.actor),
        })
    }

    /// Sends without waiting; the answer is dropped.
    ///
    /// # Errors
    /// [`ActorError::Busy`] if the mailbox is full, [`ActorError::Restarting`] if nobody is there.
    pub fn try_send(&self, message: M) -> Result<(), ActorError> {
        let recipient = self.recipient().ok_or(ActorError::Restarting(self.actor))?;
        recipient.try_send(message).map_err(|error| match error {
            SendError::Full(_) => {
                ActorError::Busy { what: self.actor.as_str(), limit: MAILBOX_CAPACITY }
            }
            SendError::Closed(_) => ActorError::Restarting(self.actor),
        })
    }
}

impl<M, T> Port<M>
where
    M: Message<Result = Result<T, ActorError>> + Send + 'static,
    T: Send + 'static,
{
    /// Sends, waits, and folds a missing actor and a refusal into one error.
    ///
    /// # Errors
    /// As [`Port::send`], and whatever the message documents.
    pub async fn ask(&self, message: M) -> Result<T, ActorError> {
        self.send(message).await?
    }
}
