//! The inference actor: keeper of the model thread.
//!
//! It owns the way to the thread and the flags that stop answers; it never computes, blocks or reads the store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Weak};

use actix::{Actor, Context, Handler, ResponseFuture};
use tokio::sync::watch;

use super::model_thread::{
    INFERENCE_QUEUE, LiveTable, ModelJob, ModelLoader, Pending, UsageSink, spawn,
};
use super::supervisor::Guard;
use crate::messages::inference::{Generate, SetLive, StopGenerating};
use crate::messages::registry::RecordUsage;
use crate::messages::{ActorError, MAILBOX_CAPACITY, Port};

/// Makes a loader for a new thread.
pub type LoaderFactory = Box<dyn Fn() -> ModelLoader + Send>;

/// Owns the model through one named thread.
pub struct InferenceActor {
    make_loader: LoaderFactory,
    live: LiveTable,
    usage: Port<RecordUsage>,
    thread: Option<SyncSender<ModelJob>>,
    pending: Arc<watch::Sender<usize>>,
    flags: Vec<Weak<AtomicBool>>,
    closing: bool,
    _guard: Option<Guard>,
}

impl InferenceActor {
    /// Makes the actor; its thread starts with the first answer. `live` survives the actor, `usage` gets a row for each
    /// answer.
    pub fn new(
        make_loader: LoaderFactory,
        live: LiveTable,
        usage: Port<RecordUsage>,
        guard: Option<Guard>,
    ) -> Self {
        let (pending, _) = watch::channel(0);
        Self {
            make_loader,
            live,
            usage,
            thread: None,
            pending: Arc::new(pending),
            flags: Vec::new(),
            closing: false,
            _guard: guard,
        }
    }

    /// Puts a job into the thread's queue; starts the thread (again) where there is none.
    fn submit(&mut self, mut job: ModelJob) -> Result<(), ActorError> {
        if let Some(thread) = &self.thread {
            match thread.try_send(job) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(_)) => return Err(busy()),
                Err(TrySendError::Disconnected(back)) => job = back,
            }
        }
        let thread = self.start_thread()?;
        let sent = thread.try_send(job).map_err(|_| busy());
        self.thread = Some(thread);
        sent
    }

    fn start_thread(&self) -> Result<SyncSender<ModelJob>, ActorError> {
        let usage = self.usage.clone();
        let sink: UsageSink = Box::new(move |row| {
            if let Err(error) = usage.try_send(row) {
                tracing::warn!(%error, "a usage row was lost");
            }
        });
        spawn((self.make_loader)(), self.live.clone(), sink)
            .map_err(|error| ActorError::ModelUnavailable(format!("no thread for it: {error}")))
    }

    fn cancel_all(&mut self) {
        for flag in self.flags.drain(..).filter_map(|flag| flag.upgrade()) {
            flag.store(true, Ordering::Relaxed);
        }
    }
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
        if self.closing {
            return Err(ActorError::Closing);
        }
        let Generate { messages, sampling, adapters, out, cancel } = message;
        self.flags.retain(|flag| flag.strong_count() > 0);
        self.flags.push(Arc::downgrade(&cancel));
        let pending = Pending::new(&self.pending);
        self.submit(ModelJob { messages, sampling, adapters, out, cancel, pending })
    }
}

impl Handler<SetLive> for InferenceActor {
    type Result = ();

    fn handle(&mut self, message: SetLive, _: &mut Self::Context) {
        self.live.set(message.domain, message.live);
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
