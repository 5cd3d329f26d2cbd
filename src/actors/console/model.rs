//! The commands about the model: which one answers, with which system message, and what its adapter changes.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};

use super::commands::SystemCommand;
use super::compare::{Pair, Side};
use super::{ConsoleActor, Output, Ticket, render};
use crate::messages::inference::{
    AdapterChoice, Answer, FinishReason, Generate, ModelLine, Piece, ShowModel, SwitchModel,
    answer_channel,
};
use crate::messages::{ActorError, ActorName, Port};
use crate::text::{printable, printable_line};

impl ConsoleActor {
    /// `/model [M]`.
    pub(super) fn model(
        &mut self,
        name: Option<String>,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let Some(source) = name else {
            let port = self.ports.show_model.clone();
            return self.work(ticket, ctx, async move { port.ask(ShowModel).await }, |_, line| {
                render::model(&line)
            });
        };
        if self.loading {
            return self.error("another model is being loaded: wait for it");
        }
        self.loading = true;
        self.say(format!(
            "Loading {}: until it is ready, the old model answers.",
            printable_line(&source)
        ));
        let port = self.ports.switch_model.clone();
        // Beside everything else: the old model answers meanwhile.
        let name = source.clone();
        let switch = async move { port.ask(SwitchModel { source }).await };
        ctx.spawn(switch.into_actor(self).map(|result, this, ctx| {
            this.loading = false;
            match result {
                Ok(line) => {
                    this.options.program.model = Some(name);
                    this.switched(&line);
                }
                Err(error @ ActorError::ModelUnavailable(_)) => {
                    this.error(&format!("{error}. The old model stays"));
                }
                Err(error) => this.error(&error.to_string()),
            }
            drop(ticket);
            this.go_on(ctx);
        }));
    }

    fn switched(&mut self, line: &ModelLine) {
        self.options.settings.adopt(line.builtin);
        // What another model made is not taken by the way.
        self.offers.close();
        self.slid = false;
        let mut text = render::switched(line);
        if self.pins.mixture.take().is_some() {
            text.push_str("\nThe adapters that were loaded together were the old model's: they answer no more.");
        }
        if self.conversation.system().is_some() && !line.takes_system {
            text.push_str(
                "\nIts chat template takes no system message: /system off takes it away.",
            );
        }
        if self.intake.answering {
            text.push_str("\nWhat is being written is still the old model's.");
        }
        self.say(text);
    }

    /// `/system [TEXT|off]`.
    pub(super) fn system(
        &mut self,
        command: SystemCommand,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        match command {
            SystemCommand::Show => self.say(match self.conversation.system() {
                Some(text) => format!("System message: {}", printable(text)),
                None => "There is no system message: /system TEXT sets one.".to_owned(),
            }),
            SystemCommand::Off => {
                self.conversation.set_system("");
                self.say("No system message from the next answer on.");
            }
            SystemCommand::Set(text) => {
                let port = self.ports.show_model.clone();
                let ask = async move {
                    let line = port.ask(ShowModel).await?;
                    match line.takes_system {
                        true => Ok(()),
                        false => Err(ActorError::Refused(format!(
                            "the chat template of model \"{}\" takes no system message: put it into the question",
                            line.name
                        ))),
                    }
                };
                self.work(ticket, ctx, ask, move |this, ()| {
                    this.conversation.set_system(&text);
                    "It holds from the next answer on, in this conversation.".to_owned()
                });
            }
        }
    }

    /// `/compare PROMPT`: asks the base and the live adapter, and keeps neither answer.
    pub(super) fn compare(
        &mut self,
        prompt: String,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let (show, live) = (self.ports.show_model.clone(), self.pins.choice());
        let mixed = self.pins.mixture.is_some();
        let sides = async move {
            let line = show.ask(ShowModel).await?;
            if line.adapters.is_empty() && !mixed {
                return Err(ActorError::Refused(
                    "no adapter is live, so there is nothing to compare: /adapters lists those there are".to_owned(),
                ));
            }
            let alone = format!("{} alone", printable_line(&line.name));
            Ok([(alone, AdapterChoice::Base), (String::new(), live)])
        };
        self.side_by_side(prompt, sides, ticket, ctx);
    }

    /// Asks the same of two, and keeps neither answer. A side without a title is called by its adapters.
    pub(super) fn side_by_side(
        &mut self,
        prompt: String,
        sides: impl Future<Output = Result<[(String, AdapterChoice); 2], ActorError>> + 'static,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let cancel = Arc::new(AtomicBool::new(false));
        let generate = self.ports.generate.clone();
        let messages = self.conversation.aside(prompt);
        let sampling = self.options.settings.sampling(rand::random);
        let (max_tokens, usage) = (sampling.max_tokens, self.options.show_usage);
        self.intake.answering = true;
        self.cancel = Some(Arc::clone(&cancel));
        let compared = async move {
            let [(left, one), (right, other)] = sides.await?;
            let ask = |adapters| {
                let (messages, sampling) = (messages.clone(), sampling.clone());
                whole(generate.clone(), messages, sampling, adapters, Arc::clone(&cancel))
            };
            let first = ask(one).await?;
            if first.finish_reason == FinishReason::Cancelled {
                return Ok(None);
            }
            let second = ask(other).await?;
            let side = |title: String, answer: &Answer| {
                let mut text = printable(answer.text.trim()).into_owned();
                if let Some(tail) = render::answer_tail(answer, max_tokens, usage) {
                    text.push_str(&format!("\n{tail}"));
                }
                let given = || render::with_adapters(&answer.adapters);
                Side { title: Some(title).filter(|t| !t.is_empty()).unwrap_or_else(given), text }
            };
            Ok::<_, ActorError>(Some(Pair(side(left, &first), side(right, &second))))
        };
        ctx.spawn(compared.into_actor(self).map(|result, this, ctx| {
            this.intake.answering = false;
            this.cancel = None;
            match result {
                Ok(Some(pair)) => this.show(Output::Pair(pair)),
                Ok(None) => this.say("[stopped]"),
                Err(error) if !this.leaving => this.error(&error.to_string()),
                Err(_) => {}
            }
            if std::mem::take(&mut this.clear_next) {
                this.clear();
            }
            drop(ticket);
            this.go_on(ctx);
        }));
    }
}

/// Asks for an answer and waits for all of it.
async fn whole(
    port: Port<Generate>,
    messages: Vec<crate::domain::Message>,
    sampling: crate::messages::inference::Sampling,
    adapters: AdapterChoice,
    cancel: Arc<AtomicBool>,
) -> Result<Answer, ActorError> {
    let (out, mut pieces) = answer_channel();
    port.ask(Generate { messages, sampling, adapters, out, cancel }).await?;
    while let Some(piece) = pieces.recv().await {
        if let Piece::Ended(result) = piece {
            return result;
        }
    }
    Err(ActorError::Restarting(ActorName::Inference))
}
