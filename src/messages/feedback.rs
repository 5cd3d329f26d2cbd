//! To the feedback actor: marks on answers, and the buffer they make.
//!
//! All from the console. Each is answered after it is on disk; answers come in the order of the questions.

use actix::Message as ActixMessage;

use super::ActorError;
use crate::domain::{AdapterId, Mark, Message};
use crate::store::{FeedbackRow, Forgotten, MarkState, SecretFound};

/// The answer that a mark is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// The conversation up to and including the user's message.
    pub messages: Vec<Message>,
    /// The answer as given.
    pub response: String,
    /// The domain it belongs to: that of the adapter that gave it, else the pinned or default one.
    pub domain: String,
    /// The adapter that gave it, if one did.
    pub adapter: Option<AdapterId>,
    /// The hash of the base that gave it: a job of that base learns from it.
    pub base: Option<String>,
}

/// `/good`, `/medium`, `/critical`.
///
/// **Reply:** [`Marked`] after the row is committed. **Errors:** `Store`; `Refused` when `replaces` names a mark that was
/// trained on already or does not exist; `Closing`.
///
/// Reaching the threshold makes the feedback actor send `ThresholdReached` to the training actor after the row is
/// committed and before this reply, so that a `WaitForJobs` sent next waits for that job too; the console then sees
/// [`JobNotice::Queued`](super::console::JobNotice::Queued).
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Marked, ActorError>")]
pub struct AddMark {
    /// The answer marked.
    pub turn: Turn,
    /// `Good`, `Medium` or `Critical` (`Fix` is [`AddFix`]).
    pub mark: Mark,
    /// The user's words.
    pub note: Option<String>,
    /// The mark that the same turn already has (its id in [`Marked`]): it is changed instead of a second one added.
    pub replaces: Option<i64>,
}

/// `/fix TEXT`: the strongest signal.
///
/// **Reply** and **errors** as [`AddMark`].
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Marked, ActorError>")]
pub struct AddFix {
    /// The answer to correct.
    pub turn: Turn,
    /// The better answer.
    pub fix: String,
    /// The mark that the turn already has: it keeps its kind, note and weight and gets the fix.
    pub mark: Option<i64>,
}

/// A stored mark, to be acknowledged as
/// `… weight 3 … Training buffer: 8 examples (42.0 weighted)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Marked {
    /// Its id: give it to [`AddFix`], [`UndoMark`], or `AddMark::replaces`.
    pub id: i64,
    /// The kind, after the change.
    pub mark: Mark,
    /// Its weight.
    pub weight: f64,
    /// Its note.
    pub note: Option<String>,
    /// The secrets that were replaced before it was stored.
    pub redacted: Vec<SecretFound>,
    /// Whether it can be trained on; otherwise it is "waiting for a correction".
    pub has_target: bool,
    /// Whether it is kept out of training to measure it.
    pub heldout: bool,
    /// What it was before this change; `None` if it is new. [`UndoMark`] takes it.
    pub before: Option<MarkState>,
    /// The buffer of its domain now.
    pub buffer: Buffer,
}

/// The buffer of one domain.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Buffer {
    /// The domain.
    pub domain: String,
    /// Marks not yet trained on.
    pub examples: usize,
    /// The sum of their weights.
    pub weighted: f64,
    /// Those with a target and not held out: what counts towards the threshold.
    pub trainable: usize,
    /// Those waiting for a correction.
    pub waiting_for_correction: usize,
    /// Those held out.
    pub heldout: usize,
    /// The threshold; `None` when jobs do not start by themselves.
    pub threshold: Option<usize>,
}

/// `/accept`, `/fix #ID TEXT`: gives a stored mark its better answer.
///
/// **Reply** and **errors** as [`AddMark`]; `Refused` too when there is no such mark.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Marked, ActorError>")]
pub struct SetTarget {
    /// The mark.
    pub id: i64,
    /// The better answer.
    pub text: String,
    /// Whether the model made it, with the note in its context; otherwise the user did.
    pub revised: bool,
}

/// `/pending`: the marks that wait for a better answer, of all domains, newest first, at most `limit`.
///
/// **Errors:** `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Waiting, ActorError>")]
pub struct ListWaiting {
    /// At most this many.
    pub limit: usize,
}

/// Marks that wait for a better answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Waiting {
    /// The newest of them.
    pub marks: Vec<WaitingMark>,
    /// How many there are in all.
    pub total: usize,
}

/// A mark that waits for a better answer.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingMark {
    /// Its id.
    pub id: i64,
    /// The kind.
    pub mark: Mark,
    /// The user's last message before the answer.
    pub question: String,
    /// The user's words on the answer.
    pub note: Option<String>,
}

/// `/undo`: takes a mark back, or the last change of it.
///
/// **Reply:** the buffer after it. **Errors:** `Refused` when it was trained on already (`/forget` is for those) or is
/// in a job's snapshot, or does not exist; `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Buffer, ActorError>")]
pub struct UndoMark {
    /// The mark.
    pub id: i64,
    /// What it was before the change that is taken back; `None` takes back all of it.
    pub to: Option<MarkState>,
}

/// `/forget ID`: drops a mark for good, learned or not.
///
/// **Reply:** who has seen it, after its text is gone from the disk. **Errors:** `Refused` when it does not exist; `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Forgotten, ActorError>")]
pub struct ForgetMark {
    /// The mark.
    pub id: i64,
}

/// `/set auto_train`, `/set auto_train_threshold`: changes when jobs start by themselves, until the program ends.
///
/// **Reply:** `Ok` at once; the buffer is looked at again. Has no effect on other processes. Never refused.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<(), ActorError>")]
pub struct SetAutoTrain {
    /// Unconsumed trainable marks that start a job; `None` stops automatic training.
    pub threshold: Option<usize>,
}

/// `/marks`: the newest marks, newest first, at most `limit`. **Errors:** `Store`.
#[derive(ActixMessage, Debug, Clone, Copy)]
#[rtype(result = "Result<Vec<FeedbackRow>, ActorError>")]
pub struct ListMarks {
    /// At most this many.
    pub limit: usize,
}

/// `/domain`: the domains that are configured or have marks, by name. **Errors:** `Store`.
#[derive(ActixMessage, Debug, Clone, Copy)]
#[rtype(result = "Result<Vec<DomainLine>, ActorError>")]
pub struct ListDomains;

/// One domain, for a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainLine {
    /// Its name.
    pub name: String,
    /// Its marks, learned ones too.
    pub marks: usize,
    /// The adapter that is live in it on the model in use.
    pub adapter: Option<AdapterId>,
}
