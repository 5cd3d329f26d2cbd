//! Revisions in the console: made after a mark with a note, offered, taken or left.
//!
//! A revision uses the model as an answer does, but nothing waits for it: whatever the user says next stops it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::sync::mpsc;

use super::{ConsoleActor, Output, Ticket, lists, render, revision_text};
use crate::config::Revisions;
use crate::messages::feedback::{ListWaiting, Marked, SetTarget, Turn};
use crate::messages::inference::{
    AdapterChoice, Revise, Revised, RevisionPiece, RevisionRequest, revision_channel,
};
use crate::messages::{ActorError, ActorName, Port};
use crate::text::printable;

impl ConsoleActor {
    /// Goes on after a mark was stored: with a revision if it has a note and no better answer.
    pub(super) fn after_mark(
        &mut self,
        marked: Marked,
        turn: Turn,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let settings = &self.options.settings;
        let wanted = settings.revisions() != Revisions::Off && !marked.has_target;
        match marked.note {
            Some(note) if wanted && !self.leaving && !self.intake.stops_revision() => {
                let criticised = self.conversation.shown().unwrap_or(&turn.response).to_owned();
                let request = RevisionRequest {
                    messages: turn.messages,
                    criticised,
                    note,
                    candidates: settings.revision_candidates(),
                    sampling: settings.sampling(rand::random),
                };
                self.revise(marked.id, request, turn.domain, ticket, ctx);
            }
            _ => {
                drop(ticket);
                self.go_on(ctx);
            }
        }
    }

    fn revise(
        &mut self,
        mark: i64,
        request: RevisionRequest,
        domain: String,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let cancel = Arc::new(AtomicBool::new(false));
        let (out, pieces) = revision_channel();
        let candidates = request.candidates;
        let adapters = AdapterChoice::Live { domain };
        let message = Revise { request, adapters, out, cancel: Arc::clone(&cancel) };
        self.intake.answering = true;
        self.intake.revising = true;
        self.cancel = Some(cancel);
        self.say(revision_text::revising(candidates));
        let port = self.ports.revise.clone();
        let made = stream(port, message, pieces, self.frontend.outputs.clone());
        ctx.spawn(made.into_actor(self).map(move |result, this, ctx| {
            this.intake.answering = false;
            this.intake.revising = false;
            this.cancel = None;
            this.show(Output::EndAnswer);
            if std::mem::take(&mut this.clear_next) {
                this.clear();
            }
            this.revised(mark, result, ticket, ctx);
        }));
        // What was typed while the mark was stored.
        self.go_on(ctx);
    }

    /// Offers what was made, or takes it, as the policy says.
    fn revised(
        &mut self,
        mark: i64,
        result: Result<Revised, ActorError>,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let threshold = self.options.settings.revision_threshold();
        match result {
            Err(error) if !self.leaving => self.say(revision_text::revision_failed(mark, &error)),
            Ok(revised) if revised.cancelled && !self.leaving => {
                self.say(revision_text::revision_stopped(mark));
            }
            Ok(revised) if !revised.cancelled => match revised.best(threshold) {
                None => self.say(revision_text::no_revision(mark, &revised, threshold)),
                Some(best) => {
                    self.say(revision_text::revision(best, revised.answers));
                    let text = best.text.clone();
                    self.offers.offer(mark, text);
                    if self.options.settings.revisions() == Revisions::Auto {
                        return self.accept(Some(mark), ticket, ctx);
                    }
                    let too_weak = self.options.settings.too_weak_to_revise();
                    self.say(revision_text::offer(self.frontend.interactive, too_weak));
                }
            },
            _ => {}
        }
        drop(ticket);
        self.go_on(ctx);
    }

    /// Makes a revision the answer to learn.
    pub(super) fn accept(
        &mut self,
        mark: Option<i64>,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let (id, text) = match self.offers.find(mark) {
            Ok(found) => found,
            Err(problem) => return self.error(&problem),
        };
        let port = self.ports.set_target.clone();
        let message = SetTarget { id, text: text.clone(), revised: true };
        self.work(ticket, ctx, async move { port.ask(message).await }, move |this, marked| {
            this.offers.close();
            this.conversation.step(&marked);
            this.conversation.corrected(marked.id, &text);
            revision_text::accepted(&marked)
        });
    }

    /// Gives any mark its better answer.
    pub(super) fn fix_of(
        &mut self,
        id: i64,
        text: String,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let port = self.ports.set_target.clone();
        let message = SetTarget { id, text: text.clone(), revised: false };
        self.work(ticket, ctx, async move { port.ask(message).await }, move |this, marked| {
            this.offers.close();
            this.conversation.step(&marked);
            this.conversation.corrected(marked.id, &text);
            render::fixed(&marked)
        });
    }

    /// Leaves the mark of the open offer waiting.
    pub(super) fn skip(&mut self) {
        match self.offers.close() {
            Some(mark) => self.say(revision_text::skipped(mark)),
            // It ended the revision that was being made, which is said there.
            None if std::mem::take(&mut self.skipping) => {}
            None => self.error("no revision is on offer: there is nothing to skip"),
        }
    }

    /// Lists the marks that wait for a better answer.
    pub(super) fn pending(&mut self, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        let port = self.ports.list_waiting.clone();
        let message = ListWaiting { limit: lists::PENDING_SHOWN };
        self.work(ticket, ctx, async move { port.ask(message).await }, |this, waiting| {
            lists::pending(&waiting, |mark| this.offers.has(mark))
        });
    }

    /// Stops the revision that is being made; there may be none.
    pub(super) fn stop_revision(&self) {
        if let (true, Some(cancel)) = (self.intake.revising, &self.cancel) {
            cancel.store(true, Ordering::Relaxed);
        }
    }
}

/// Streams the first candidate to the screen; what comes of all of them is the reply.
async fn stream(
    port: Port<Revise>,
    message: Revise,
    mut pieces: mpsc::Receiver<RevisionPiece>,
    outputs: mpsc::Sender<Output>,
) -> Result<Revised, ActorError> {
    let (cancel, candidates) = (Arc::clone(&message.cancel), message.request.candidates);
    port.ask(message).await?;
    while let Some(piece) = pieces.recv().await {
        let shown = match piece {
            RevisionPiece::Text(text) => {
                super::act::show_piece(&outputs, Output::Piece(printable(&text).into_owned())).await
            }
            RevisionPiece::Answered(1) if candidates > 1 => {
                super::act::show_piece(&outputs, Output::EndAnswer).await
            }
            RevisionPiece::Answered(_) => true,
            RevisionPiece::Ended(result) => return result,
        };
        if !shown {
            cancel.store(true, Ordering::Relaxed);
        }
    }
    Err(ActorError::Restarting(ActorName::Inference))
}
