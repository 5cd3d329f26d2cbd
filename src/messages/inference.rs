//! To the inference actor: ask for an answer, stop answering, change the live adapters.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use actix::Message as ActixMessage;
use tokio::sync::mpsc;

use super::ActorError;
use crate::domain::{AdapterId, Message, Route};
pub use crate::engine::{Candidate, FinishReason, Revised, RevisionRequest, Sampling};
use crate::lora::AdapterSet;

/// Pieces that wait for the reader of an answer. When it is full the model waits for the reader (but not past a cancel):
/// a terminal that takes 64 pieces behind is blocked, and the answer with it.
pub const ANSWER_CAPACITY: usize = 64;

/// Makes the channel of one answer.
pub fn answer_channel() -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    mpsc::channel(ANSWER_CAPACITY)
}

/// Which adapters an answer is given with.
#[derive(Clone)]
pub enum AdapterChoice {
    /// Those that are live in this domain when the answer starts.
    Live {
        /// The domain, usually [`DEFAULT_DOMAIN`](crate::domain::DEFAULT_DOMAIN).
        domain: String,
    },
    /// Those that are live in the domain that the last question belongs to.
    Routed,
    /// None: the base alone.
    Base,
    /// These.
    Set(LiveSet),
}

/// Asks for an answer. From the console (and tests).
///
/// **Reply**, at once: `Ok(())` when the job is in the model's queue; `Busy` when that is full, `Closing` at shutdown,
/// in which case nothing is sent on `out`.
///
/// **Then on `out`, in order:** one [`Piece::Started`], any number of [`Piece::Text`], exactly one [`Piece::Ended`]
/// (last). The channel closing without `Ended` means that the inference actor died: show [`ActorError::Restarting`].
///
/// **To stop:** set `cancel` (the answer ends within one token with [`FinishReason::Cancelled`]; keep reading until
/// `Ended`), or drop the receiver (nobody wants to know the end).
#[derive(ActixMessage)]
#[rtype(result = "Result<(), ActorError>")]
pub struct Generate {
    /// The conversation, ending with the user's message.
    pub messages: Vec<Message>,
    /// How tokens are chosen, seed included.
    pub sampling: Sampling,
    /// With which adapters.
    pub adapters: AdapterChoice,
    /// Where the pieces go: see [`answer_channel`].
    pub out: mpsc::Sender<Piece>,
    /// Set it to stop.
    pub cancel: Arc<AtomicBool>,
}

/// Makes the channel of one revision.
pub fn revision_channel() -> (mpsc::Sender<RevisionPiece>, mpsc::Receiver<RevisionPiece>) {
    mpsc::channel(ANSWER_CAPACITY)
}

/// Asks to answer a conversation again with a note on its answer. From the console.
///
/// **Reply**, **stopping** and **errors** as [`Generate`]. **On `out`, in order:** any number of
/// [`RevisionPiece::Text`] and [`RevisionPiece::Answered`], exactly one [`RevisionPiece::Ended`]. Nothing is stored.
#[derive(ActixMessage)]
#[rtype(result = "Result<(), ActorError>")]
pub struct Revise {
    /// What is to be revised, and how.
    pub request: RevisionRequest,
    /// With which adapters.
    pub adapters: AdapterChoice,
    /// Where the pieces go: see [`revision_channel`].
    pub out: mpsc::Sender<RevisionPiece>,
    /// Set it to stop.
    pub cancel: Arc<AtomicBool>,
}

/// A part of a revision, in the order of [`Revise`].
#[derive(Debug, Clone, PartialEq)]
pub enum RevisionPiece {
    /// More text of the first candidate, never a broken UTF-8 character. The others are not streamed.
    Text(String),
    /// So many candidates are complete.
    Answered(usize),
    /// The end.
    Ended(Result<Revised, ActorError>),
}

/// A part of an answer, in the order of [`Generate`].
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// The model begins with this answer, with these adapters; it keeps them to the end, whatever is swapped in meanwhile.
    Started {
        /// The adapters and their weights; empty for the base.
        adapters: Vec<(AdapterId, f64)>,
    },
    /// More text, never a broken UTF-8 character. Control characters are the console's to make harmless.
    Text(String),
    /// The end.
    Ended(Result<Answer, ActorError>),
}

/// A finished (or cancelled) answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The whole text, as far as it came.
    pub text: String,
    /// The adapters and their weights; empty for the base.
    pub adapters: Vec<(AdapterId, f64)>,
    /// Tokens of the conversation.
    pub prompt_tokens: usize,
    /// How many of those were still in the cache.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub new_tokens: usize,
    /// Milliseconds to read the conversation.
    pub prefill_ms: u64,
    /// Milliseconds to write the answer.
    pub decode_ms: u64,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Oldest turns of the conversation that the model did not see, as its context does not hold them.
    pub dropped_turns: usize,
    /// The hash of the base that gave it.
    pub base: String,
    /// The domain that it was given in.
    pub route: Route,
}

/// Adapters ready to compute with, and their names; the default is the base.
#[derive(Clone, Default)]
pub struct LiveSet {
    /// Names and weights, for people and usage rows.
    pub ids: Vec<(AdapterId, f64)>,
    /// The tensors.
    pub set: AdapterSet,
}

/// Makes these adapters live in a domain. From the registry actor only.
///
/// **Reply:** `Ok` once the next answer will use them; the answer in flight finishes with those it started with.
/// Never fails but for a dead actor.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub struct SetLive {
    /// The hash of the base that they belong to; answers of another are not touched.
    pub base: String,
    /// The domain.
    pub domain: String,
    /// The adapters; `None` goes back to the base.
    pub live: Option<LiveSet>,
}

/// Sets the cancel flag of every queued and running answer. From the shutdown task (and a console's Ctrl-C at will).
///
/// **Reply:** when no answer is running any more. With `closing`, later [`Generate`]s are answered `Closing`.
#[derive(ActixMessage)]
#[rtype(result = "()")]
pub struct StopGenerating {
    /// Whether the program is shutting down.
    pub closing: bool,
}

/// `/model`: what is in use. From the console.
///
/// **Reply:** the model and its live adapters. Never fails but for a dead actor.
#[derive(ActixMessage, Debug, Clone, Copy)]
#[rtype(result = "Result<ModelLine, ActorError>")]
pub struct ShowModel;

/// `/model M`: loads another model and changes to it. From the console.
///
/// The old one goes on answering until the new one is loaded and its live adapters are read; from then on new answers,
/// marks and jobs belong to the new one, and answers in the queue end on the old one.
///
/// **Reply:** the new model, when it is in use. **Errors:** `Refused` when it is in use already or another is being
/// loaded; `ModelUnavailable` when it cannot be loaded, or memory does not hold both; `Store`; `Closing`. Then the old one
/// stays.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<ModelLine, ActorError>")]
pub struct SwitchModel {
    /// As `--model` takes it.
    pub source: String,
}

/// A model, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelLine {
    /// Its name.
    pub name: String,
    /// How `--model` and `/model` call it.
    pub source: String,
    /// The family of its architecture.
    pub family: String,
    /// Number of parameters.
    pub parameters: usize,
    /// The format of its weights in memory.
    pub format: String,
    /// Longest conversation in tokens.
    pub context_length: usize,
    /// Where it computes.
    pub device: String,
    /// Whether its chat template has a place for a system message.
    pub takes_system: bool,
    /// Whether it is the small one inside the program.
    pub builtin: bool,
    /// The adapters that are live in any domain; filled in by the inference actor.
    pub adapters: Vec<AdapterId>,
    /// What was found wrong while its adapters were read.
    pub notes: Vec<String>,
}
