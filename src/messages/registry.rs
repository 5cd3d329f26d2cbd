//! To the adapter registry actor: adapters on disk and live.

use std::path::PathBuf;

use actix::Message as ActixMessage;

use super::ActorError;
use super::inference::LiveSet;
use crate::domain::{AdapterId, WeightedAdapter};
use crate::engine::FinishReason;
use crate::eval::Promotion;
use crate::store::{JobMetrics, Statistics};

/// Publishes what a job made, and makes it live. From the training actor, which has the promotion from the gate.
///
/// **Reply:** [`Published`] after row and job are committed in one transaction and the inference actor took the adapter.
/// One of another base than that in use is stored as that one's live adapter, and read when that is loaded.
/// **Errors:** `Adapter` when the directory does not hold a loadable adapter of its base; `Store`. Then nothing
/// changed and the job is still evaluating: the training actor fails it.
#[derive(ActixMessage, Debug)]
#[rtype(result = "Result<Published, ActorError>")]
pub struct PublishAdapter {
    /// The job.
    pub job: i64,
    /// The adapter's id.
    pub id: AdapterId,
    /// What the worker made; it is moved to its place in `adapters/`.
    pub dir: PathBuf,
    /// The domain it was trained for.
    pub domain: String,
    /// Rank of its matrices.
    pub rank: usize,
    /// The linear layers that it changes.
    pub target_modules: Vec<String>,
    /// The name of the base that it was trained on.
    pub base: String,
    /// The hash of that base.
    pub base_hash: String,
    /// Examples learnt.
    pub examples: usize,
    /// What was measured, the gate's report included.
    pub metrics: JobMetrics,
    /// The gate's permission.
    pub promotion: Promotion,
}

/// The end of a publication.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Its directory.
    pub path: PathBuf,
    /// Whether it answers in this process (`false` while the inference actor is being restarted, without one, and where
    /// another base is in use).
    pub live: bool,
}

/// Brings rows and files together (in the process that runs the queue) and makes the adapters that are live in the
/// database live in the inference actor. From `app`, once, before the console starts.
///
/// **Reply:** lines for the user about what was found wrong; an adapter that cannot be loaded is reported and its domain
/// answers with the base. **Errors:** `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Vec<String>, ActorError>")]
pub struct RestoreLive;

/// Another base was loaded and put forward: its live adapters are read and handed to the model, then it is in use.
/// From the inference actor. Handled alone, so that nothing is published or switched halfway.
///
/// **Reply:** as [`RestoreLive`]. **Errors:** `Store`; `Refused` when none was put forward. Then the old one stays.
#[derive(ActixMessage, Debug, Clone, Copy)]
#[rtype(result = "Result<Vec<String>, ActorError>")]
pub struct AdoptBase;

/// `/adapters list`: all adapters, newest first. **Errors:** `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Vec<AdapterLine>, ActorError>")]
pub struct ListAdapters;

/// `/adapters load ID`: makes it live in its domain.
///
/// **Reply:** the adapter, after the inference actor took it ([`LiveChanged`](super::console::LiveChanged) goes out
/// before). **Errors:** `Refused` when unknown; `Adapter` when damaged or of another base (the old one stays); `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<AdapterLine, ActorError>")]
pub struct LoadAdapter {
    /// The adapter.
    pub id: AdapterId,
}

/// `/adapters unload [ID]`: back to the base in its domain (in `domain` without an id).
///
/// **Reply:** the adapters that were live. **Errors:** `Refused` when it is not live; `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<Vec<AdapterId>, ActorError>")]
pub struct UnloadAdapter {
    /// The adapter; the live one of the domain when missing.
    pub id: Option<AdapterId>,
    /// The domain.
    pub domain: String,
}

/// `/adapters load A:0.5 B:0.5`, `/adapters compare`: reads adapters of the base in use, to answer together; nothing goes live.
///
/// **Reply:** the adapters, ready to answer. **Errors:** `Refused` when unknown or of another base; `Adapter` when damaged,
/// or a DoRA adapter beside others; `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<LiveSet, ActorError>")]
pub struct ReadAdapters {
    /// The adapters and their weights.
    pub adapters: Vec<WeightedAdapter>,
}

/// `/stats`: usage, marks and trainings, added up. **Errors:** `Store`.
#[derive(ActixMessage, Debug, Clone, Copy)]
#[rtype(result = "Result<Statistics, ActorError>")]
pub struct ShowStats;

/// `/adapters rollback`: back to the parent of the live adapter, or to the base.
///
/// **Reply:** what was and what is live now. **Errors:** `Refused` when the base is live already; `Adapter` when the
/// parent is damaged (nothing changes); `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<RolledBack, ActorError>")]
pub struct RollbackAdapter {
    /// The domain.
    pub domain: String,
}

/// The end of a rollback.
#[derive(Debug, Clone, PartialEq)]
pub struct RolledBack {
    /// What was live.
    pub from: AdapterId,
    /// What is live; `None` is the base.
    pub to: Option<AdapterId>,
}

/// `/adapters delete ID`: removes row and directory.
///
/// **Reply:** the bytes freed. **Errors:** `Refused` when it is live or another adapter's parent, or unknown; `Store`.
#[derive(ActixMessage, Debug, Clone)]
#[rtype(result = "Result<u64, ActorError>")]
pub struct DeleteAdapter {
    /// The adapter.
    pub id: AdapterId,
}

/// An answer was given: one usage row. From the inference actor, after the answer's `Ended`. No reply.
#[derive(ActixMessage, Debug, Clone, PartialEq)]
#[rtype(result = "()")]
pub struct RecordUsage {
    /// The name of the base.
    pub base: String,
    /// The adapters and their weights; empty for the base.
    pub adapters: Vec<(AdapterId, f64)>,
    /// Tokens of the conversation.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub new_tokens: usize,
    /// Milliseconds to read the conversation.
    pub prefill_ms: u64,
    /// Milliseconds to write the answer.
    pub decode_ms: u64,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// One adapter, for a list.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterLine {
    /// Its id.
    pub id: AdapterId,
    /// Its domain.
    pub domain: String,
    /// The adapter it went on from.
    pub parent: Option<AdapterId>,
    /// `ready`, `rolled_back` or `quarantined`.
    pub state: String,
    /// Whether it is live.
    pub live: bool,
    /// Whether it belongs to the loaded model.
    pub fits: bool,
    /// The hash of its base.
    pub base: String,
    /// Its rank.
    pub rank: usize,
    /// Examples learnt.
    pub examples: usize,
    /// Answers given with it.
    pub used_in: usize,
    /// Its directory.
    pub path: PathBuf,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Size of its files.
    pub bytes: u64,
}
