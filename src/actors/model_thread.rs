//! The one OS thread, named `inference`, that owns the model.
//!
//! It takes one job after the other from a bounded queue. A panic of the model ends the answer with an error; the model is
//! dropped and loaded anew before the next answer, and the thread goes on.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use std::{io, thread};

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;

use super::routes::RouteTable;
use super::supervisor::actor_span;
use crate::domain::{AdapterId, DEFAULT_DOMAIN, Message, Role, Route, Routes};
use crate::engine::{Generated, Revised, RevisionEvent, RevisionRequest, Sampling};
use crate::lora::AdapterSet;
use crate::messages::inference::{AdapterChoice, Answer, LiveSet, Piece, RevisionPiece};
use crate::messages::registry::RecordUsage;
use crate::messages::{ActorError, ActorName};

/// Answers that wait for the model. One person asks one question at a time; the rest is slack for scripts.
pub const INFERENCE_QUEUE: usize = 8;

/// Pause between two tries to hand a piece to a reader that is behind; far below what a person notices.
const READER_PAUSE: Duration = Duration::from_millis(2);

/// How long the end of a cancelled answer waits for a reader that is behind, before it is dropped: a reader that cancels
/// promises to read on, one that broke its promise must not hold the model.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What the thread needs of a model: an [`Engine`](crate::engine::Engine), or a script in tests.
pub trait Answerer {
    /// Answers `messages`; the text goes through `on_text` in pieces until it breaks or `cancel` is set.
    ///
    /// # Errors
    /// One line for the user.
    fn answer(
        &mut self,
        messages: &[Message],
        sampling: &Sampling,
        adapters: &AdapterSet,
        cancel: &AtomicBool,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, String>;

    /// Answers a conversation again with a note in the context, until `on_event` breaks or `cancel` is set.
    ///
    /// # Errors
    /// One line for the user.
    fn revise(
        &mut self,
        request: &RevisionRequest,
        adapters: &AdapterSet,
        cancel: &AtomicBool,
        on_event: &mut dyn FnMut(RevisionEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Revised, String>;

    /// Finds the domain of a question; `None` where there is no choice.
    fn route(&mut self, _routes: &Arc<Routes>, _question: &str) -> Option<Route> {
        None
    }
}

/// Loads the model inside the thread: at the first answer, and again after each panic.
pub type ModelLoader = Box<dyn FnMut() -> Result<Box<dyn Answerer>, String> + Send>;

/// Takes the usage row of each finished answer.
pub type UsageSink = Box<dyn Fn(RecordUsage) + Send>;

/// The live adapters by base and domain; a swap is a pointer store here. It outlives the actor, so a restarted one has them.
#[derive(Clone, Default)]
pub struct LiveTable(Arc<RwLock<BTreeMap<LiveKey, Arc<LiveSet>>>>);

/// Hash of a base model, and a domain.
type LiveKey = (String, String);

impl LiveTable {
    /// Returns what is live on `base` (by its hash) in `domain`, or the base.
    pub fn get(&self, base: &str, domain: &str) -> Arc<LiveSet> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.get(&(base.to_owned(), domain.to_owned())).cloned().unwrap_or_default()
    }

    /// Returns the adapters that are live on `base` in any domain.
    pub fn ids(&self, base: &str) -> Vec<AdapterId> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let live = table.iter().filter(|((of, _), _)| of == base).flat_map(|(_, live)| &live.ids);
        let mut ids: Vec<AdapterId> = live.map(|(id, _)| id.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Makes `live` (or the base) the answer of [`LiveTable::get`] from now on.
    pub fn set(&self, base: String, domain: String, live: Option<LiveSet>) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match live {
            Some(live) => table.insert((base, domain), Arc::new(live)),
            None => table.remove(&(base, domain)),
        };
    }

    /// Forgets the adapters of all other bases.
    pub fn keep(&self, bases: &[&str]) {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.retain(|(base, _), _| bases.contains(&base.as_str()));
    }
}

/// Whom a thread answers for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseName {
    /// The model's name, for usage rows.
    pub name: String,
    /// The hash of its weights.
    pub hash: String,
}

/// One thing for the model to do.
pub struct ModelJob {
    /// What.
    pub task: Task,
    /// With which adapters, looked up when it starts.
    pub adapters: AdapterChoice,
    /// Set to stop.
    pub cancel: Arc<AtomicBool>,
    /// Counts the job until it is dropped.
    pub pending: Pending,
}

/// What the model does.
pub enum Task {
    /// Answers a conversation.
    Answer {
        /// The conversation.
        messages: Vec<Message>,
        /// How tokens are chosen.
        sampling: Sampling,
        /// Where the pieces go.
        out: Sender<Piece>,
    },
    /// Answers one again with a note in the context.
    Revise {
        /// What is to be revised.
        request: RevisionRequest,
        /// Where the pieces go.
        out: Sender<RevisionPiece>,
    },
}

/// Counts one job as long as it lives, however it ends.
pub struct Pending(Arc<watch::Sender<usize>>);

impl Pending {
    /// Counts one more.
    pub fn new(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|n| *n += 1);
        Self(Arc::clone(count))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n = n.saturating_sub(1));
    }
}

/// What the thread looks up at the beginning of each answer.
#[derive(Clone, Default)]
pub struct Tables {
    /// What is live.
    pub live: LiveTable,
    /// What questions are routed by.
    pub routes: RouteTable,
}

/// Starts the thread; it ends when the sender is dropped and the queue is empty.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn(
    base: BaseName,
    mut load: ModelLoader,
    tables: Tables,
    usage: UsageSink,
) -> io::Result<SyncSender<ModelJob>> {
    let (jobs, queue) = sync_channel(INFERENCE_QUEUE);
    thread::Builder::new()
        .name("inference".to_owned())
        .spawn(move || run(&queue, &base, &mut load, &tables, &usage))?;
    Ok(jobs)
}

fn run(
    queue: &Receiver<ModelJob>,
    base: &BaseName,
    load: &mut ModelLoader,
    tables: &Tables,
    usage: &UsageSink,
) {
    let mut model = None;
    let actor = actor_span(ActorName::Inference);
    for (turn, job) in queue.iter().enumerate() {
        let _turn = tracing::info_span!(parent: &actor, "turn", number = turn + 1).entered();
        match &job.task {
            Task::Answer { messages, sampling, out } => {
                let result = attempt(&mut model, load, |model| {
                    let route = route(model, &job.adapters, messages, &tables.routes);
                    let adapters = resolve(&job.adapters, &route, base, &tables.live);
                    let generated = answer(model, (messages, sampling), &job, out, &adapters)?;
                    Ok(finish(generated, base, &adapters, route))
                });
                log_end(&result);
                let row = result.as_ref().ok().map(|answer| usage_of(answer, base));
                deliver_end(&job, out, Piece::Ended(result));
                if let Some(row) = row {
                    usage(row);
                }
            }
            Task::Revise { request, out } => {
                let result = attempt(&mut model, load, |model| {
                    let route = route(model, &job.adapters, &request.messages, &tables.routes);
                    let adapters = resolve(&job.adapters, &route, base, &tables.live);
                    revise(model, request, &job, out, &adapters)
                });
                if let Err(error) = &result {
                    tracing::warn!("no revision");
                    tracing::trace!(%error, "why there is no revision");
                }
                deliver_end(&job, out, RevisionPiece::Ended(result));
            }
        }
    }
}

/// Lets the model do something; it is loaded before where it must be, and dropped after a panic.
fn attempt<T>(
    model: &mut Option<Box<dyn Answerer>>,
    load: &mut ModelLoader,
    work: impl FnOnce(&mut dyn Answerer) -> Result<T, String>,
) -> Result<T, ActorError> {
    let tried = catch_unwind(AssertUnwindSafe(|| {
        if model.is_none() {
            *model = Some(load().map_err(ActorError::ModelUnavailable)?);
        }
        match model {
            Some(model) => work(model.as_mut()).map_err(ActorError::Engine),
            None => Err(ActorError::ModelUnavailable("no model".to_owned())),
        }
    }));
    tried.unwrap_or_else(|panic| {
        let what = panic_text(panic.as_ref());
        // What it says may quote the chat; the place is in the log already.
        tracing::error!("the model panicked; it will be loaded anew");
        tracing::trace!(what, "the panic of the model");
        // Whatever the panic left behind is not trusted; a panic while dropping it must not end the thread either.
        let broken = model.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
        Err(ActorError::ModelPanicked(what))
    })
}

/// Looks up the adapters of one answer; it keeps them to its end.
fn resolve(
    choice: &AdapterChoice,
    route: &Route,
    base: &BaseName,
    live: &LiveTable,
) -> Arc<LiveSet> {
    match choice {
        AdapterChoice::Live { .. } | AdapterChoice::Routed => live.get(&base.hash, &route.domain),
        AdapterChoice::Base => Arc::default(),
        AdapterChoice::Set(set) => Arc::new(set.clone()),
    }
}

/// Finds the domain of an answer: the named one, or that of the last question.
fn route(
    model: &mut dyn Answerer,
    adapters: &AdapterChoice,
    messages: &[Message],
    routes: &RouteTable,
) -> Route {
    match adapters {
        AdapterChoice::Live { domain } => Route::to(domain),
        AdapterChoice::Routed => {
            let asked = messages.iter().rev().find(|message| message.role == Role::User);
            let found = asked.and_then(|asked| model.route(&routes.get(), &asked.content));
            found.unwrap_or_default()
        }
        AdapterChoice::Base | AdapterChoice::Set(_) => Route::to(DEFAULT_DOMAIN),
    }
}

fn answer(
    model: &mut dyn Answerer,
    (messages, sampling): (&[Message], &Sampling),
    job: &ModelJob,
    out: &Sender<Piece>,
    adapters: &LiveSet,
) -> Result<Generated, String> {
    // A reader that left before the start is found at the first piece of text.
    let _ = deliver(job, out, Piece::Started { adapters: adapters.ids.clone() }, None);
    let mut on_text = |text: &str| deliver(job, out, Piece::Text(text.to_owned()), None);
    model.answer(messages, sampling, &adapters.set, &job.cancel, &mut on_text)
}

fn revise(
    model: &mut dyn Answerer,
    request: &RevisionRequest,
    job: &ModelJob,
    out: &Sender<RevisionPiece>,
    adapters: &LiveSet,
) -> Result<Revised, String> {
    let mut on_event = |event: RevisionEvent<'_>| {
        let piece = match event {
            RevisionEvent::Text { candidate: 0, text } => RevisionPiece::Text(text.to_owned()),
            // Of the others only the best is shown, and which that is, is known at the end.
            RevisionEvent::Text { .. } => return still_wanted(out),
            RevisionEvent::Answered { candidate } => RevisionPiece::Answered(candidate + 1),
        };
        deliver(job, out, piece, None)
    };
    model.revise(request, &adapters.set, &job.cancel, &mut on_event)
}

/// Breaks when the reader left.
fn still_wanted<T>(out: &Sender<T>) -> ControlFlow<()> {
    if out.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

fn finish(generated: Generated, base: &BaseName, adapters: &LiveSet, route: Route) -> Answer {
    let millis = |time: Option<Duration>| {
        time.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX))
    };
    Answer {
        text: generated.text,
        adapters: adapters.ids.clone(),
        prompt_tokens: generated.prompt_tokens,
        cached_tokens: generated.cached_tokens,
        new_tokens: generated.new_tokens,
        prefill_ms: millis(generated.prefill),
        decode_ms: millis(generated.decode),
        finish_reason: generated.finish_reason,
        dropped_turns: generated.dropped_turns,
        base: base.hash.clone(),
        route,
    }
}

fn usage_of(answer: &Answer, base: &BaseName) -> RecordUsage {
    RecordUsage {
        base: base.name.clone(),
        adapters: answer.adapters.clone(),
        prompt_tokens: answer.prompt_tokens,
        new_tokens: answer.new_tokens,
        prefill_ms: answer.prefill_ms,
        decode_ms: answer.decode_ms,
        finish_reason: answer.finish_reason,
    }
}

/// Figures only: an error of the engine may quote the chat.
fn log_end(result: &Result<Answer, ActorError>) {
    match result {
        Ok(Answer { prompt_tokens, new_tokens, prefill_ms, decode_ms, finish_reason, .. }) => {
            tracing::info!(
                prompt_tokens,
                new_tokens,
                prefill_ms,
                decode_ms,
                ?finish_reason,
                "answered"
            );
        }
        Err(error) => {
            tracing::warn!("no answer");
            tracing::trace!(%error, "why there is no answer");
        }
    }
}

/// Hands over the last piece; waits for the reader, but not for one that cancelled and does not read on.
fn deliver_end<T>(job: &ModelJob, out: &Sender<T>, end: T) {
    if deliver(job, out, end, Some(END_PATIENCE)).is_break() {
        tracing::debug!("nobody read the end of an answer");
    }
}

/// Waits until the reader has room. Breaks when it left, or when the answer was cancelled and `patience` is over (at once
/// without one).
fn deliver<T>(
    job: &ModelJob,
    out: &Sender<T>,
    mut piece: T,
    patience: Option<Duration>,
) -> ControlFlow<()> {
    let mut left = patience.unwrap_or(Duration::ZERO);
    loop {
        match out.try_send(piece) {
            Ok(()) => return ControlFlow::Continue(()),
            Err(TrySendError::Closed(_)) => return ControlFlow::Break(()),
            Err(TrySendError::Full(back)) => piece = back,
        }
        if job.cancel.load(Ordering::Relaxed) {
            if left.is_zero() {
                return ControlFlow::Break(());
            }
            left = left.saturating_sub(READER_PAUSE);
        }
        thread::sleep(READER_PAUSE);
    }
}

/// Reads the text of a panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "internal error".to_owned())
}
