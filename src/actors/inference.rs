//! The inference actor: keeper of the model thread.
//!
//! It owns the way to the thread and the flags that stop answers; it never computes, blocks or reads the store. Which model
//! the thread has is told by [`CurrentBase`]: after a change the next answer starts a new thread, and the old one ends
//! with the answers that it has.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Weak};

use actix::{
    Actor, ActorFutureExt, Context, Handler, ResponseActFuture, ResponseFuture, WrapFuture,
};
use tokio::sync::{oneshot, watch};

use super::base::{Base, CurrentBase, ModelOpener};
use super::model_thread::{
    BaseName, INFERENCE_QUEUE, LiveTable, ModelJob, Pending, Tables, Task, UsageSink, panic_text,
    spawn,
};
use super::routes::RouteTable;
use super::supervisor::Guard;
use crate::messages::inference::{
    AdapterChoice, Generate, ModelLine, Revise, SetLive, ShowModel, StopGenerating, SwitchModel,
};
use crate::messages::registry::{AdoptBase, RecordUsage};
use crate::messages::{ActorError, MAILBOX_CAPACITY, Port};

/// What the actor works with; all of it survives the actor.
#[derive(Clone)]
pub struct InferenceParts {
    /// The model in use.
    pub current: CurrentBase,
    /// Loads another.
    pub open: ModelOpener,
    /// What is live.
    pub live: LiveTable,
    /// What questions are routed by.
    pub routes: RouteTable,
    /// Gets a row for each answer.
    pub usage: Port<RecordUsage>,
    /// Reads the adapters of another model before it is used.
    pub adopt: Port<AdoptBase>,
}

/// Owns the model through one named thread.
pub struct InferenceActor {
    parts: InferenceParts,
    thread: Option<Thread>,
    pending: Arc<watch::Sender<usize>>,
    flags: Vec<Weak<AtomicBool>>,
    switching: bool,
    closing: bool,
    _guard: Option<Guard>,
}

/// The way to the thread of one model.
struct Thread {
    base: String,
    jobs: SyncSender<ModelJob>,
}

impl InferenceActor {
    /// Makes the actor; its thread starts with the first answer.
    pub fn new(parts: InferenceParts, guard: Option<Guard>) -> Self {
        let (pending, _) = watch::channel(0);
        Self {
            parts,
            thread: None,
            pending: Arc::new(pending),
            flags: Vec::new(),
            switching: false,
            closing: false,
            _guard: guard,
        }
    }

    /// Puts a job into the thread's queue; starts the thread (again) where there is none of the model in use.
    fn submit(&mut self, mut job: ModelJob) -> Result<(), ActorError> {
        let base = self.parts.current.get();
        if let Some(thread) = self.thread.as_ref().filter(|thread| thread.base == base.hash()) {
            match thread.jobs.try_send(job) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(_)) => return Err(busy()),
                Err(TrySendError::Disconnected(back)) => job = back,
            }
        }
        let jobs = self.start_thread(&base)?;
        let sent = jobs.try_send(job).map_err(|_| busy());
        self.thread = Some(Thread { base: base.hash().to_owned(), jobs });
        sent
    }

    /// Queues what the model is to do.
    fn queue(
        &mut self,
        task: Task,
        adapters: AdapterChoice,
        cancel: Arc<AtomicBool>,
    ) -> Result<(), ActorError> {
        if self.closing {
            return Err(ActorError::Closing);
        }
        self.flags.retain(|flag| flag.strong_count() > 0);
        self.flags.push(Arc::downgrade(&cancel));
        let pending = Pending::new(&self.pending);
        self.submit(ModelJob { task, adapters, cancel, pending })
    }

    fn start_thread(&self, base: &Base) -> Result<SyncSender<ModelJob>, ActorError> {
        let usage = self.parts.usage.clone();
        let sink: UsageSink = Box::new(move |row| {
            if let Err(error) = usage.try_send(row) {
                tracing::warn!(%error, "a usage row was lost");
            }
        });
        let name = BaseName { name: base.line.name.clone(), hash: base.hash().to_owned() };
        let tables = Tables { live: self.parts.live.clone(), routes: self.parts.routes.clone() };
        spawn(name, (base.make_loader)(), tables, sink)
            .map_err(|error| ActorError::ModelUnavailable(format!("no thread for it: {error}")))
    }

    /// Returns the model in use with its live adapters.
    fn line(&self) -> ModelLine {
        let base = self.parts.current.get();
        let adapters = self.parts.live.ids(base.hash());
        ModelLine { adapters, ..base.line.clone() }
    }

    /// Lets go of the old model: its thread ends with the answers that it has.
    fn switched(&mut self, old: &str) -> ModelLine {
        let base = self.parts.current.get();
        self.parts.live.keep(&[old, base.hash()]);
        self.thread = None;
        self.line()
    }

    fn cancel_all(&mut self) {
        for flag in self.flags.drain(..).filter_map(|flag| flag.upgrade()) {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

/// Loads a model on a thread of its own, as it takes seconds to minutes.
async fn open(open: ModelOpener, source: String, in_use: String) -> Result<Base, ActorError> {
    let (done, opened) = oneshot::channel();
    let load = move || {
        let attempt = catch_unwind(AssertUnwindSafe(|| open(&source, &in_use)));
        let result = attempt.unwrap_or_else(|panic| Err(panic_text(panic.as_ref())));
        // Whoever asked may be gone.
        let _ = done.send(result);
    };
    let started = std::thread::Builder::new().name("model-loader".to_owned()).spawn(load);
    started.map_err(|error| ActorError::ModelUnavailable(format!("no thread for it: {error}")))?;
    let result = opened.await.unwrap_or_else(|_| Err("its thread died".to_owned()));
    let base = result.map_err(ActorError::ModelUnavailable)?;
    base.ok_or_else(|| ActorError::Refused("this model is in use already".to_owned()))
}

impl Drop for InferenceActor {
    fn drop(&mut self) {
        // The next incarnation loads the model again: the old thread should go soon.
        self.cancel_all();
    }
}

fn busy() -> ActorError {
    ActorError::Busy { what: "the model", limit: INFERENCE_QUEUE }
}

impl Actor for InferenceActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Handler<Generate> for InferenceActor {
    type Result = Result<(), ActorError>;

    fn handle(&mut self, message: Generate, _: &mut Self::Context) -> Self::Result {
        let Generate { messages, sampling, adapters, out, cancel } = message;
        self.queue(Task::Answer { messages, sampling, out }, adapters, cancel)
    }
}

impl Handler<Revise> for InferenceActor {
    type Result = Result<(), ActorError>;

    fn handle(&mut self, message: Revise, _: &mut Self::Context) -> Self::Result {
        let Revise { request, adapters, out, cancel } = message;
        self.queue(Task::Revise { request, out }, adapters, cancel)
    }
}

impl Handler<SetLive> for InferenceActor {
    type Result = ();

    fn handle(&mut self, message: SetLive, _: &mut Self::Context) {
        self.parts.live.set(message.base, message.domain, message.live);
    }
}

impl Handler<ShowModel> for InferenceActor {
    type Result = Result<ModelLine, ActorError>;

    fn handle(&mut self, _: ShowModel, _: &mut Self::Context) -> Self::Result {
        Ok(self.line())
    }
}

impl Handler<SwitchModel> for InferenceActor {
    type Result = ResponseActFuture<Self, Result<ModelLine, ActorError>>;

    fn handle(&mut self, message: SwitchModel, _: &mut Self::Context) -> Self::Result {
        let refused = match (self.closing, self.switching) {
            (true, _) => Some(ActorError::Closing),
            (_, true) => {
                Some(ActorError::Refused("another model is being loaded: wait for it".to_owned()))
            }
            _ => None,
        };
        if let Some(refused) = refused {
            return Box::pin(actix::fut::err(refused));
        }
        self.switching = true;
        let parts = self.parts.clone();
        let old = parts.current.get().hash().to_owned();
        let in_use = old.clone();
        let switch = async move {
            let base = open(Arc::clone(&parts.open), message.source, in_use).await?;
            parts.current.propose(base);
            let adopted = parts.adopt.ask(AdoptBase).await;
            parts.current.withdraw();
            adopted
        };
        Box::pin(switch.into_actor(self).map(move |adopted, this, _| {
            this.switching = false;
            let notes = adopted?;
            Ok(ModelLine { notes, ..this.switched(&old) })
        }))
    }
}

impl Handler<StopGenerating> for InferenceActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, message: StopGenerating, _: &mut Self::Context) -> Self::Result {
        self.closing |= message.closing;
        self.cancel_all();
        let mut pending = self.pending.subscribe();
        Box::pin(async move {
            // The sender outlives the actor in the jobs, so an error means that nothing is pending.
            let _ = pending.wait_for(|n| *n == 0).await;
        })
    }
}

#[cfg(test)]
#[path = "inference_tests.rs"]
mod tests;
