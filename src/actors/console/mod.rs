//! The console: reads what the user types, asks the other actors, and says what they answer.
//!
//! It is the only writer to the screen, through a [`Frontend`]: a thread that owns the terminal ([`screen`]) or two that
//! own the pipes ([`plain`]). What is said is made by pure functions ([`render`], [`lists`], [`prompt`], [`flow`]); which
//! input is worked on when is decided by [`intake`]; this file and [`act`] connect them with the messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Recipient,
    ResponseActFuture, StreamHandler, WrapFuture,
};
use futures::future::AbortHandle;
use tokio::sync::oneshot;

mod act;
mod beside;
mod command_help;
pub mod commands;
pub mod compare;
mod conversation;
mod domains;
pub mod flow;
mod frontend;
mod history;
mod intake;
pub mod lists;
mod model;
mod offers;
mod paint;
pub mod plain;
pub mod prompt;
pub mod render;
mod revise;
mod revision_text;
mod screen;
mod settings;
pub mod stats;

pub use beside::{BESIDE, Program};
pub use frontend::{Event, Frontend, Output, Ticket};
pub use history::History;
pub use render::Banner;
pub use settings::Settings;

use self::beside::Beside;
use self::commands::{Command, Input};
use self::conversation::Conversation;
use self::domains::Pins;
use self::intake::{Intake, WAITING_INPUTS, Work};
use self::offers::Offers;
use self::prompt::JobStatus;
use crate::messages::console::{CloseConsole, JobNotice, LiveChanged, Notice, Progress};
use crate::messages::feedback::{
    AddFix, AddMark, ForgetMark, ListDomains, ListMarks, ListWaiting, SetAutoTrain, SetTarget,
    UndoMark,
};
use crate::messages::inference::{Generate, Revise, ShowModel, SwitchModel};
use crate::messages::registry::{
    DeleteAdapter, ListAdapters, LoadAdapter, ReadAdapters, RollbackAdapter, ShowStats,
    UnloadAdapter,
};
use crate::messages::supervisor::{Shutdown, ShutdownReason};
use crate::messages::training::{CancelJob, EnqueueTraining, ListJobs, WaitForJobs};
use crate::messages::{MAILBOX_CAPACITY, Port};
use crate::text::printable_line;

/// Exit code when a line of a script failed, or a job did.
const FAILED: u8 = 1;
/// Exit code when the gate rejected a job of a script and nothing else failed.
const REJECTED: u8 = 3;
/// Progress lines per job while a script waits for it: enough to see it move, few enough for a transcript.
const PROGRESS_LINES: usize = 4;

/// Where the console's messages go.
pub struct ConsolePorts {
    /// Texts.
    pub generate: Port<Generate>,
    /// `/medium NOTE`, `/critical NOTE`: the answer again.
    pub revise: Port<Revise>,
    /// `/model`.
    pub show_model: Port<ShowModel>,
    /// `/model M`.
    pub switch_model: Port<SwitchModel>,
    /// `/good`, `/medium`, `/critical`.
    pub add_mark: Port<AddMark>,
    /// `/fix`.
    pub add_fix: Port<AddFix>,
    /// `/accept`, `/fix #ID`.
    pub set_target: Port<SetTarget>,
    /// `/pending`.
    pub list_waiting: Port<ListWaiting>,
    /// `/undo`.
    pub undo_mark: Port<UndoMark>,
    /// `/forget`.
    pub forget_mark: Port<ForgetMark>,
    /// `/set auto_train`.
    pub set_auto_train: Port<SetAutoTrain>,
    /// `/marks`.
    pub list_marks: Port<ListMarks>,
    /// `/domain`.
    pub list_domains: Port<ListDomains>,
    /// `/train`.
    pub enqueue: Port<EnqueueTraining>,
    /// `/jobs cancel`.
    pub cancel_job: Port<CancelJob>,
    /// `/jobs`.
    pub list_jobs: Port<ListJobs>,
    /// `/jobs wait`.
    pub wait_for_jobs: Port<WaitForJobs>,
    /// `/adapters`.
    pub list_adapters: Port<ListAdapters>,
    /// `/adapters load`.
    pub load_adapter: Port<LoadAdapter>,
    /// `/adapters unload`.
    pub unload_adapter: Port<UnloadAdapter>,
    /// `/adapters rollback`.
    pub rollback_adapter: Port<RollbackAdapter>,
    /// `/adapters delete`.
    pub delete_adapter: Port<DeleteAdapter>,
    /// `/adapters load` of several, `/adapters compare`.
    pub read_adapters: Port<ReadAdapters>,
    /// `/stats`.
    pub show_stats: Port<ShowStats>,
    /// `/quit` and the end of the input.
    pub shutdown: Recipient<Shutdown>,
}

/// What the console starts with.
pub struct ConsoleOptions {
    /// What it says first, at a terminal; a pipe only gets its notes.
    pub banner: Banner,
    /// The settings of the session.
    pub settings: Settings,
    /// Whether tokens and speed follow each answer.
    pub show_usage: bool,
    /// What `/run` and `/eval` start.
    pub program: Program,
}

/// Owns the conversation and, through its frontend, the screen.
pub struct ConsoleActor {
    frontend: Frontend,
    ports: ConsolePorts,
    options: ConsoleOptions,
    conversation: Conversation,
    pins: Pins,
    intake: Intake,
    offers: Offers,
    status: JobStatus,
    /// Stops the answer that streams.
    cancel: Option<Arc<AtomicBool>>,
    /// Stops `/jobs wait`.
    wait: Option<AbortHandle>,
    /// What `/run` started.
    beside: Option<Beside>,
    /// Another model is being loaded.
    loading: bool,
    /// The user knows that the oldest turns of this conversation are left out.
    slid: bool,
    /// Quarters of the running job that a waiting script was told about.
    told: usize,
    /// The conversation is cleared when the answer that is being stopped has ended.
    clear_next: bool,
    /// `/skip` was typed while a revision was being made.
    skipping: bool,
    failed: bool,
    rejected: bool,
    leaving: bool,
    /// Tells the supervisor when the actor is gone, by being dropped.
    _guard: Option<Box<dyn std::any::Any>>,
}

impl ConsoleActor {
    /// Makes the actor; `guard` is dropped with it.
    pub fn new(
        frontend: Frontend,
        ports: ConsolePorts,
        options: ConsoleOptions,
        guard: Option<Box<dyn std::any::Any>>,
    ) -> Self {
        Self {
            conversation: Conversation::new(options.settings.system()),
            frontend,
            ports,
            options,
            pins: Pins::default(),
            intake: Intake::default(),
            offers: Offers::default(),
            status: JobStatus::Idle,
            cancel: None,
            wait: None,
            beside: None,
            loading: false,
            slid: false,
            told: 0,
            clear_next: false,
            skipping: false,
            failed: false,
            rejected: false,
            leaving: false,
            _guard: guard,
        }
    }

    /// Shows something; a screen that takes nothing any more loses it, and the log says so. A pipe loses nothing of what
    /// a line leads to, as the next line is read when all of it is written; what only a screen shows takes no place there.
    fn show(&self, output: Output) {
        if !self.frontend.interactive && matches!(output, Output::Status(_)) {
            return;
        }
        if let Err(error) = self.frontend.outputs.try_send(output) {
            tracing::warn!(%error, "the screen does not keep up: an output is lost");
        }
    }

    fn say(&self, text: impl Into<String>) {
        self.show(Output::Say(text.into()));
    }

    fn error(&mut self, text: &str) {
        self.failed = true;
        self.show(Output::Error(printable_line(text)));
    }

    /// Understands a line and queues it.
    fn take_line(&mut self, line: &str, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        if self.leaving {
            return;
        }
        let work = match commands::parse(line) {
            // Enter says yes to what is offered; in a script an empty line parts others.
            Ok(Input::Empty) if self.frontend.interactive && self.offers.open().is_some() => {
                if self.options.settings.too_weak_to_revise() {
                    return self.say("Enter does not take what a weak model made: /accept does.");
                }
                Work::Command(Command::Accept(None))
            }
            Ok(Input::Empty) => return,
            Ok(Input::Text(text)) => Work::Say(text),
            // Leaving waits for nothing.
            Ok(Input::Command(Command::Quit)) => return self.leave(),
            Ok(Input::Command(command)) => Work::Command(command),
            Err(error) => return self.error(&error.to_string()),
        };
        let (waited, revising) = (self.intake.waiting(), self.intake.revising);
        let stops = revising && work.stops_revision();
        self.skipping = stops && work == Work::Command(Command::Skip);
        if !self.intake.push(work, ticket) {
            return self.error(&format!(
                "busy: {WAITING_INPUTS} inputs wait already; Ctrl-C stops the answer and drops them"
            ));
        }
        if stops {
            self.stop_revision();
        }
        self.go_on(ctx);
        if self.intake.waiting() > waited && self.intake.answering && !revising {
            self.say("(waits for the answer above)");
        }
    }

    /// Starts whatever may start now.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        while !self.leaving
            && let Some((work, ticket)) = self.intake.next()
        {
            match work {
                Work::Say(text) => self.answer(text, ticket, ctx),
                Work::Command(command) => self.run(command, ticket, ctx),
            }
        }
    }

    /// Ctrl-C.
    fn interrupt(&mut self) {
        if let Some(cancel) = &self.cancel {
            cancel.store(true, Ordering::Relaxed);
            match self.intake.drop_waiting() {
                0 => {}
                n => self.say(format!("({} dropped)", render::counted(n, "waiting input"))),
            }
        } else if self.wait.is_some() || self.beside.is_some() {
            self.wait.take().into_iter().for_each(|wait| wait.abort());
            self.beside.iter().for_each(Beside::stop);
        } else {
            self.say("/quit or Ctrl-D leaves; Ctrl-C stops an answer.");
        }
    }

    /// Asks for the orderly end of the program.
    fn leave(&mut self) {
        if std::mem::replace(&mut self.leaving, true) {
            return;
        }
        if let Some(cancel) = &self.cancel {
            cancel.store(true, Ordering::Relaxed);
        }
        let shutdown = Shutdown { reason: ShutdownReason::Quit, code: self.exit_code() };
        if let Err(error) = self.ports.shutdown.try_send(shutdown) {
            tracing::error!(%error, "the supervisor cannot be asked to shut down");
        }
    }

    /// A person has seen what failed; a script is told by the code.
    fn exit_code(&self) -> u8 {
        match (self.frontend.interactive, self.failed, self.rejected) {
            (false, true, _) => FAILED,
            (false, false, true) => REJECTED,
            _ => 0,
        }
    }

    /// Says a quarter of a job to a waiting script.
    fn tell_progress(&mut self, progress: &Progress) {
        if self.frontend.interactive || self.wait.is_none() || progress.total_steps == 0 {
            return;
        }
        let quarter = progress.step * PROGRESS_LINES / progress.total_steps;
        if quarter > self.told {
            self.told = quarter;
            self.say(render::progress(progress));
        }
    }
}

impl Actor for ConsoleActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        if self.frontend.interactive {
            self.say(self.options.banner.text());
        } else if !self.options.banner.notes.is_empty() {
            self.say(self.options.banner.notes_text());
        }
        // The receiver moves into the stream; what stays behind is closed and never read.
        let events = std::mem::replace(
            &mut self.frontend.events,
            tokio::sync::mpsc::channel(frontend::EVENT_CAPACITY).1,
        );
        ctx.add_stream(futures::stream::unfold(events, |mut events| async {
            events.recv().await.map(|event| (event, events))
        }));
    }
}

impl StreamHandler<Event> for ConsoleActor {
    fn handle(&mut self, event: Event, ctx: &mut Self::Context) {
        match event {
            Event::Line { text, ticket } => self.take_line(&text, ticket, ctx),
            Event::Unreadable { problem, ticket: _ } => self.error(&problem),
            Event::Interrupt => self.interrupt(),
            Event::End => self.leave(),
            Event::Broken(problem) => {
                tracing::error!(problem, "the console cannot go on");
                self.failed = true;
                self.leave();
            }
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {
        // The screen's threads are gone: after the end of the input that is in order, else there is nobody to talk to.
        self.leave();
    }
}

impl Handler<JobNotice> for ConsoleActor {
    type Result = ();

    fn handle(&mut self, notice: JobNotice, _: &mut Self::Context) {
        match &notice {
            JobNotice::Progressed(progress) => self.tell_progress(progress),
            JobNotice::Started { .. } => self.told = 0,
            JobNotice::Failed { .. } => self.failed = true,
            JobNotice::Rejected { .. } => self.rejected = true,
            _ => {}
        }
        if self.status.update(&notice) {
            self.show(Output::Status(self.status.clone()));
        }
        if let Some(text) = render::job_notice(&notice) {
            self.say(text);
        }
    }
}

impl Handler<LiveChanged> for ConsoleActor {
    type Result = ();

    fn handle(&mut self, change: LiveChanged, _: &mut Self::Context) {
        tracing::debug!(domain = change.domain, adapters = ?change.adapters, "live adapters changed");
        // Whoever asks for a change here hears of it (`/adapters load`, the end of a job); twice would be noise.
        if change.elsewhere {
            self.say(render::live_changed(&change));
        }
    }
}

impl Handler<Notice> for ConsoleActor {
    type Result = ();

    fn handle(&mut self, notice: Notice, _: &mut Self::Context) {
        self.say(printable_line(&notice.0));
    }
}

impl Handler<CloseConsole> for ConsoleActor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, message: CloseConsole, _: &mut Self::Context) -> Self::Result {
        self.leaving = true;
        self.intake.drop_waiting();
        if !message.reason.is_empty() {
            self.say(printable_line(&message.reason));
        }
        let (done, closed) = oneshot::channel();
        let outputs = self.frontend.outputs.clone();
        let close = async move {
            // The screen's thread may be gone already, which is as good as closed.
            if outputs.send(Output::Close(done)).await.is_ok() {
                let _ = closed.await;
            }
        };
        Box::pin(close.into_actor(self).map(|(), _, ctx| ctx.stop()))
    }
}
