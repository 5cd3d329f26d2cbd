//! What each command does: which message it sends, and what is said when the reply comes.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use futures::future::{Aborted, abortable};
use tokio::sync::mpsc;

use super::commands::{AdaptersCommand, Command, JobsCommand, help_of};
use super::settings::Changed;
use super::{ConsoleActor, Output, Ticket, lists, render};
use crate::domain::{Mark, Route};
use crate::messages::feedback::{ForgetMark, SetAutoTrain};
use crate::messages::inference::{Answer, Generate, LiveSet, Piece, answer_channel};
use crate::messages::registry::{
    DeleteAdapter, ListAdapters, LoadAdapter, RollbackAdapter, UnloadAdapter,
};
use crate::messages::training::{CancelJob, EnqueueTraining, ListJobs, StartFrom, WaitForJobs};
use crate::messages::{ActorError, ActorName, Port};
use crate::text::printable;

/// Places before the screen that an answer leaves free: notices and replies cannot wait, a model can.
const ROOM_FOR_NOTICES: usize = 64;

impl ConsoleActor {
    /// Sends a text to the model and streams the answer.
    pub(super) fn answer(&mut self, text: String, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        let cancel = Arc::new(AtomicBool::new(false));
        let (out, pieces) = answer_channel();
        let sampling = self.options.settings.sampling(rand::random);
        let max_tokens = sampling.max_tokens;
        // What is pinned while it streams does not change who answers.
        let pinned = self.pins.domain.clone();
        let question = Generate {
            messages: self.conversation.ask(text, self.options.settings.history_turns()),
            sampling,
            adapters: self.pins.choice(),
            out,
            cancel: Arc::clone(&cancel),
        };
        self.offers.close();
        self.intake.answering = true;
        self.cancel = Some(cancel);
        let port = self.ports.generate.clone();
        let outputs = self.frontend.outputs.clone();
        let streaming = stream(port, question, pieces, outputs);
        ctx.spawn(streaming.into_actor(self).map(move |result, this, ctx| {
            this.answer_ended(result, max_tokens, pinned);
            if this.intake.text_is_next() {
                // Its question was typed above: nothing else would part the answers.
                this.say("");
            }
            drop(ticket);
            this.go_on(ctx);
        }));
    }

    fn answer_ended(
        &mut self,
        result: Result<Answer, ActorError>,
        max_tokens: usize,
        pinned: Option<String>,
    ) {
        self.intake.answering = false;
        self.cancel = None;
        self.show(Output::EndAnswer);
        match result {
            Ok(mut answer) => {
                if let Some(pinned) = pinned {
                    answer.route = Route::to(&pinned);
                }
                self.conversation.answered(&answer);
                let usage = self.options.show_usage;
                if let Some(tail) = render::answer_tail(&answer, max_tokens, usage) {
                    self.say(tail);
                }
                if answer.dropped_turns > 0 && !std::mem::replace(&mut self.slid, true) {
                    self.say(render::slid(answer.dropped_turns));
                }
            }
            Err(error) => {
                self.conversation.unanswered();
                if !self.leaving {
                    self.error(&error.to_string());
                }
            }
        }
        if std::mem::take(&mut self.clear_next) {
            self.clear();
        }
    }

    /// Runs a command; its ticket ends with it.
    pub(super) fn run(
        &mut self,
        command: Command,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        match command {
            Command::Mark { mark, note } => self.mark(mark, note, ticket, ctx),
            Command::Fix(text) => self.fix(text, ticket, ctx),
            Command::FixOf { id, text } => self.fix_of(id, text, ticket, ctx),
            Command::Accept(mark) => self.accept(mark, ticket, ctx),
            Command::Skip => self.skip(),
            Command::Pending => self.pending(ticket, ctx),
            Command::Undo => self.undo(ticket, ctx),
            Command::Forget { id, retrain } => self.forget_mark(id, retrain, ticket, ctx),
            Command::Marks(limit) => self.marks(limit, ticket, ctx),
            Command::Domain(command) => self.domain(command, ticket, ctx),
            Command::Stats => self.stats(ticket, ctx),
            Command::Train { domain } => self.train(domain, ticket, ctx),
            Command::Jobs(JobsCommand::Wait) => self.wait_for_jobs(ticket, ctx),
            Command::Jobs(command) => self.jobs(command, ticket, ctx),
            Command::Adapters(command) => self.adapters(command, ticket, ctx),
            Command::Compare(prompt) => self.compare(prompt, ticket, ctx),
            Command::Model(name) => self.model(name, ticket, ctx),
            Command::System(command) => self.system(command, ticket, ctx),
            Command::Set { key, value } => self.set(key, value, ticket, ctx),
            Command::Run(words) => self.run_beside(&words, ticket, ctx),
            Command::Clear => self.clear(),
            Command::Help(name) => self.help(name.as_deref()),
            Command::Quit => self.leave(),
        }
    }

    /// Asks, says what `then` makes of the reply or why there is none, and goes on.
    pub(super) fn work<T: 'static>(
        &mut self,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
        ask: impl Future<Output = Result<T, ActorError>> + 'static,
        then: impl FnOnce(&mut Self, T) -> String + 'static,
    ) {
        self.intake.working = true;
        ctx.spawn(ask.into_actor(self).map(move |result, this, ctx| {
            match result {
                Ok(reply) => {
                    let text = then(this, reply);
                    this.say(text);
                }
                Err(error) => this.error(&error.to_string()),
            }
            this.intake.working = false;
            drop(ticket);
            this.go_on(ctx);
        }));
    }

    fn mark(
        &mut self,
        mark: Mark,
        note: Option<String>,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        match self.conversation.mark(mark, note) {
            Ok(message) => {
                self.offers.close();
                // What was made for another note is no answer to this one.
                message.replaces.into_iter().for_each(|id| self.offers.forget(id));
                let (port, turn) = (self.ports.add_mark.clone(), message.turn.clone());
                let ask = async move { port.ask(message).await };
                self.intake.working = true;
                ctx.spawn(ask.into_actor(self).map(move |result, this, ctx| {
                    this.intake.working = false;
                    match result {
                        Ok(marked) => {
                            this.conversation.marked(&marked);
                            this.say(render::marked(&marked));
                            this.after_mark(marked, turn, ticket, ctx);
                        }
                        Err(error) => {
                            this.error(&error.to_string());
                            drop(ticket);
                            this.go_on(ctx);
                        }
                    }
                }));
            }
            Err(problem) => self.error(&problem),
        }
    }

    fn fix(&mut self, text: String, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        match self.conversation.fix(text) {
            Ok(message) => {
                self.offers.close();
                message.mark.into_iter().for_each(|id| self.offers.forget(id));
                let text = message.fix.clone();
                let port = self.ports.add_fix.clone();
                let ask = async move { port.ask(message).await };
                self.work(ticket, ctx, ask, move |this, marked| {
                    this.conversation.marked(&marked);
                    this.conversation.corrected(marked.id, &text);
                    render::fixed(&marked)
                });
            }
            Err(problem) => self.error(&problem),
        }
    }

    fn undo(&mut self, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        match self.conversation.undo() {
            Ok(message) => {
                let (port, id, to) = (self.ports.undo_mark.clone(), message.id, message.to.clone());
                let ask = async move { port.ask(message).await };
                self.work(ticket, ctx, ask, move |this, buffer| {
                    this.conversation.undone(id, to.as_ref());
                    if to.is_none() {
                        this.offers.forget(id);
                    }
                    render::undone(id, to.as_ref(), &buffer)
                });
            }
            Err(problem) => self.error(&problem),
        }
    }

    fn forget_mark(
        &mut self,
        id: i64,
        retrain: bool,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        if let Some(cancel) = self.cancel.as_ref().filter(|_| self.intake.revising) {
            // It may be a revision of this very mark.
            cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        let (port, enqueue) = (self.ports.forget_mark.clone(), self.ports.enqueue.clone());
        let ask = async move {
            let done = port.ask(ForgetMark { id }).await?;
            let again = EnqueueTraining {
                from: Some(StartFrom::Fresh),
                ..EnqueueTraining::of(done.domain.clone())
            };
            let again = match retrain && !done.seen_by.is_empty() {
                true => Some(enqueue.ask(again).await),
                false => None,
            };
            Ok((done, again))
        };
        self.work(ticket, ctx, ask, move |this, (done, again)| {
            this.conversation.forgotten(id);
            this.offers.forget(id);
            let text = render::forgotten(id, &done, retrain);
            match again {
                Some(Ok(job)) => format!("{text}\nJob {} learns without it, from zero.", job.id),
                Some(Err(error)) => format!("{text}\nNo job was made: {error}."),
                None => text,
            }
        });
    }

    fn train(&mut self, domain: Option<String>, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        let domain = domain.unwrap_or_else(|| self.pins.domain());
        let message = EnqueueTraining::of(domain);
        let port = self.ports.enqueue.clone();
        // The notice of the queued job came before the reply and says it all but what it is called.
        self.work(ticket, ctx, async move { port.ask(message).await }, |_, job| {
            format!("Its adapter will be {}.", job.name)
        });
    }

    fn jobs(&mut self, command: JobsCommand, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        if let JobsCommand::Cancel(id) = command {
            let port = self.ports.cancel_job.clone();
            let ask = async move { port.ask(CancelJob { id }).await };
            return self.work(ticket, ctx, ask, |_, job| match job.state.as_str() {
                "cancelled" => format!("Job {} will not run.", job.id),
                state => format!("Job {} is {state} and was asked to stop.", job.id),
            });
        }
        let port = self.ports.list_jobs.clone();
        let ask = async move { port.ask(ListJobs { limit: lists::JOBS_SHOWN }).await };
        self.work(ticket, ctx, ask, |_, jobs| lists::jobs(&jobs));
    }

    /// Waits beside everything else, so that a person can go on; a script waits by its ticket.
    fn wait_for_jobs(&mut self, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        if self.wait.is_some() {
            return self.error("waiting already: Ctrl-C ends the wait");
        }
        let (port, list) = (self.ports.wait_for_jobs.clone(), self.ports.list_jobs.clone());
        let outputs = self.frontend.outputs.clone();
        let (waiting, abort) = abortable(async move {
            // What it waits for is said at once; a list that cannot be had is no reason not to wait.
            let tell = async {
                let jobs = list.ask(ListJobs { limit: lists::JOBS_SHOWN }).await;
                if let Some(text) = render::waiting_for(&jobs.unwrap_or_default()) {
                    let _ = outputs.try_send(Output::Say(text));
                }
            };
            futures::join!(port.ask(WaitForJobs), tell).0
        });
        self.wait = Some(abort);
        ctx.spawn(waiting.into_actor(self).map(|result, this, ctx| {
            // After Ctrl-C the handle may belong to a new wait already.
            if !matches!(result, Err(Aborted)) {
                this.wait = None;
            }
            match result {
                Ok(Ok(0)) => this.say("No job is queued or running."),
                Ok(Ok(n)) => this.say(format!("Waited for {}.", render::counted(n, "job"))),
                Ok(Err(error)) => this.error(&error.to_string()),
                Err(Aborted) => this.say("Stopped waiting; the jobs go on."),
            }
            drop(ticket);
            this.go_on(ctx);
        }));
    }

    fn adapters(
        &mut self,
        command: AdaptersCommand,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        match command {
            AdaptersCommand::List => {
                let port = self.ports.list_adapters.clone();
                let ask = async move { port.ask(ListAdapters).await };
                self.work(ticket, ctx, ask, |_, adapters| lists::adapters(&adapters));
            }
            AdaptersCommand::Load(id) => {
                let port = self.ports.load_adapter.clone();
                let ask = async move { port.ask(LoadAdapter { id }).await };
                self.work(ticket, ctx, ask, |this, adapter| {
                    this.pins.mixture = None;
                    format!("Adapter {} is live from the next answer on.", adapter.id)
                });
            }
            AdaptersCommand::LoadAll(adapters) => self.load_mixture(adapters, ticket, ctx),
            AdaptersCommand::Compare { .. } => self.compare_adapters(command, ticket, ctx),
            AdaptersCommand::Unload(None) if self.pins.mixture.take().is_some() => {
                let text = "What is live answers again.".to_owned();
                self.say(self.with_reminder(text));
            }
            AdaptersCommand::Unload(id) => {
                let (port, domain) = (self.ports.unload_adapter.clone(), self.pins.domain());
                let ask = async move { port.ask(UnloadAdapter { id, domain }).await };
                self.work(ticket, ctx, ask, |this, were| {
                    let were: Vec<&str> = were.iter().map(|id| id.as_str()).collect();
                    let text =
                        format!("Unloaded {}: the base answers from now on.", were.join(", "));
                    this.with_reminder(text)
                });
            }
            AdaptersCommand::Rollback { domain } => {
                let domain = domain.unwrap_or_else(|| self.pins.domain());
                let port = self.ports.rollback_adapter.clone();
                let ask = async move { port.ask(RollbackAdapter { domain }).await };
                self.work(ticket, ctx, ask, |this, done| {
                    let text = match done.to {
                        Some(to) => format!("Rolled back from {} to {to}.", done.from),
                        None => format!("Rolled back from {} to the base.", done.from),
                    };
                    this.with_reminder(text)
                });
            }
            AdaptersCommand::Delete(id) => {
                let (port, name) = (self.ports.delete_adapter.clone(), id.clone());
                let ask = async move { port.ask(DeleteAdapter { id }).await };
                self.work(ticket, ctx, ask, move |this, bytes| {
                    // What is gone does not answer on from memory.
                    let answers = |set: &LiveSet| set.ids.iter().any(|(id, _)| *id == name);
                    if this.pins.mixture.as_ref().is_some_and(answers) {
                        this.pins.mixture = None;
                    }
                    format!("Deleted {name} ({}).", render::size(bytes))
                });
            }
        }
    }

    /// Adds that what an adapter said is still in the conversation, where that is so.
    fn with_reminder(&self, text: String) -> String {
        match self.conversation.has_answers() {
            true => {
                format!("{text}\nThe conversation still holds its answers: /clear starts anew.")
            }
            false => text,
        }
    }

    fn set(
        &mut self,
        key: Option<String>,
        value: Option<String>,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let settings = &mut self.options.settings;
        let result = match (&key, &value) {
            (None, _) => Ok((settings.list(), None)),
            (Some(key), None) => settings.show(key).map(|text| (text, None)),
            (Some(key), Some(value)) => settings
                .change(key, value)
                .and_then(|changed| Ok((settings.show(key)?, Some(changed)))),
        };
        match result {
            Ok((text, Some(Changed::AutoTrain))) => {
                let message = SetAutoTrain { threshold: settings.threshold() };
                let port = self.ports.set_auto_train.clone();
                let ask = async move { port.ask(message).await };
                self.work(ticket, ctx, ask, move |_, ()| text);
            }
            Ok((text, _)) => self.say(text),
            Err(problem) => self.error(&problem),
        }
    }

    /// Starts anew; an answer that streams is stopped before, and what was typed ahead for it dropped.
    pub(super) fn clear(&mut self) {
        if self.intake.answering {
            self.interrupt();
            self.clear_next = true;
            return;
        }
        self.offers.close();
        self.conversation.clear(self.options.settings.system());
        self.slid = false;
        self.say("A new conversation.");
    }

    fn help(&mut self, name: Option<&str>) {
        match name.map(help_of) {
            None => self.say(lists::help()),
            Some(Ok(help)) => self.say(lists::help_of(help)),
            Some(Err(error)) => self.error(&error.to_string()),
        }
    }
}

/// Shows a piece of what the model says when the screen has room for it; `false` when the screen is gone.
pub(super) async fn show_piece(outputs: &mpsc::Sender<Output>, output: Output) -> bool {
    match outputs.reserve_many(ROOM_FOR_NOTICES).await {
        Ok(mut room) => {
            if let Some(permit) = room.next() {
                permit.send(output);
            }
            true
        }
        Err(_) => false,
    }
}

/// Streams one answer to the screen; the screen's pace is the model's.
async fn stream(
    port: Port<Generate>,
    question: Generate,
    mut pieces: mpsc::Receiver<Piece>,
    outputs: mpsc::Sender<Output>,
) -> Result<Answer, ActorError> {
    let cancel = Arc::clone(&question.cancel);
    port.ask(question).await?;
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Started { .. } => {}
            Piece::Text(text) => {
                let piece = Output::Piece(printable(&text).into_owned());
                if !show_piece(&outputs, piece).await {
                    // The screen is gone: nobody reads on.
                    cancel.store(true, Ordering::Relaxed);
                }
            }
            Piece::Ended(result) => return result,
        }
    }
    Err(ActorError::Restarting(ActorName::Inference))
}
