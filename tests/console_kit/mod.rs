//! The other actors as the console sees them: one actor that answers every message from memory.
//!
//! It is no model and no trainer: it lets the console's own behaviour be seen, at any speed.

mod domains;
mod queue;
mod revision;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use shammah::actors::console::{
    Banner, ConsoleActor, ConsoleOptions, ConsolePorts, Event, Frontend, Output, Program, Settings,
};
use shammah::config::Config;
use shammah::domain::{AdapterId, Mark, Role};
use shammah::engine::FinishReason;
use shammah::messages::console::{CloseConsole, JobNotice, Progress};
use shammah::messages::feedback::{
    AddFix, AddMark, Buffer, ForgetMark, ListWaiting, Marked, SetAutoTrain, SetTarget, UndoMark,
    Waiting, WaitingMark,
};
use shammah::messages::inference::{
    AdapterChoice, Answer, Generate, ModelLine, Piece, ShowModel, SwitchModel,
};
use shammah::messages::registry::{
    AdapterLine, DeleteAdapter, ListAdapters, LoadAdapter, RollbackAdapter, RolledBack,
    UnloadAdapter,
};
use shammah::messages::supervisor::Shutdown;
use shammah::messages::training::{CancelJob, EnqueueTraining, JobLine, ListJobs, WaitForJobs};
use shammah::messages::{ActorError, ActorName, Port};
use shammah::store::{Forgotten, MarkState};
use tokio::sync::{mpsc, oneshot, watch};

#[allow(unused_imports, reason = "not every test that uses the fake types")]
pub use revision::Person;

/// How the fake behaves.
#[derive(Clone)]
pub struct Script {
    /// Between two pieces of an answer.
    pub pause: Duration,
    /// Steps of a job, and the pause between two.
    pub steps: usize,
    pub step_pause: Duration,
    /// How a job ends.
    pub rejected: bool,
    /// Whether an adapter is live.
    pub adapter: bool,
    /// How long another model takes to load.
    pub load_pause: Duration,
    /// Whether the settings are those of the built-in model.
    pub builtin: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            pause: Duration::ZERO,
            steps: 8,
            step_pause: Duration::from_millis(2),
            rejected: false,
            adapter: false,
            load_pause: Duration::ZERO,
            builtin: false,
        }
    }
}

#[derive(Clone)]
struct Row {
    mark: Mark,
    weight: f64,
    note: Option<String>,
    fix: Option<String>,
    revised: bool,
}

pub struct Others {
    script: Script,
    model: ModelLine,
    rows: BTreeMap<i64, Row>,
    threshold: Option<usize>,
    jobs: i64,
    running: watch::Sender<usize>,
    console: Option<Addr<ConsoleActor>>,
    shutdown: Option<oneshot::Sender<u8>>,
}

impl Actor for Others {
    type Context = Context<Self>;
}

impl Others {
    fn buffer(&self) -> Buffer {
        let trainable = self.rows.values().filter(|row| has_target(row)).count();
        Buffer {
            domain: "general".into(),
            examples: self.rows.len(),
            weighted: self.rows.values().map(|row| row.weight).sum(),
            trainable,
            waiting_for_correction: self.rows.len() - trainable,
            heldout: 0,
            threshold: self.threshold,
        }
    }

    fn marked(&self, id: i64) -> Marked {
        let row = self.rows[&id].clone();
        Marked {
            id,
            has_target: has_target(&row),
            mark: row.mark,
            weight: row.weight,
            note: row.note,
            redacted: Vec::new(),
            heldout: false,
            before: None,
            buffer: self.buffer(),
        }
    }

    fn put(&mut self, id: Option<i64>, row: Row) -> Marked {
        let id = id.unwrap_or_else(|| self.rows.keys().max().map_or(1, |id| id + 1));
        let before = self.rows.insert(id, row).map(|row| MarkState {
            mark: row.mark,
            weight: row.weight,
            note: row.note,
            fix: row.fix,
            revised: row.revised,
        });
        Marked { before, ..self.marked(id) }
    }
}

fn has_target(row: &Row) -> bool {
    row.mark == Mark::Good || row.fix.is_some()
}

fn weight(mark: Mark) -> f64 {
    match mark {
        Mark::Good => 1.0,
        Mark::Critical => 10.0,
        _ => 3.0,
    }
}

/// What the fake model says.
fn answer_to(text: &str) -> String {
    match text {
        "long" => {
            "Every word of this answer comes by itself, so that there is time to type. ".repeat(12)
        }
        "hostile" => "before \u{1b}[2J\u{1b}[31mred\u{202e} after".to_owned(),
        text => format!("You said: {text}"),
    }
}

impl Handler<Generate> for Others {
    type Result = Result<(), ActorError>;

    fn handle(&mut self, message: Generate, ctx: &mut Self::Context) -> Self::Result {
        let pause = self.script.pause;
        let (model, base) =
            (self.model.name.clone(), matches!(message.adapters, AdapterChoice::Base));
        let adapters: Vec<_> = match &message.adapters {
            AdapterChoice::Set(set) => set.ids.clone(),
            _ if base => Vec::new(),
            _ => self.model.adapters.iter().map(|id| (id.clone(), 1.0)).collect(),
        };
        let system =
            message.messages.first().filter(|m| m.role == Role::System).map(|m| m.content.clone());
        let said = message.messages.last().map(|m| m.content.clone()).unwrap_or_default();
        let turns = message.messages.len();
        let work = async move {
            let _ = message.out.send(Piece::Started { adapters: Vec::new() }).await;
            if said == "fail" {
                let error = ActorError::Engine("the context is full: /clear starts anew".into());
                let _ = message.out.send(Piece::Ended(Err(error))).await;
                return;
            }
            let (mut text, mut reason) = (String::new(), FinishReason::Stop);
            let mut whole = answer_to(&said);
            if said == "who?" {
                whole = format!("{model}{}", if adapters.is_empty() { "" } else { ", taught" });
            }
            if let Some(system) = system {
                whole = format!("[{system}] {whole}");
            }
            for word in whole.split_inclusive(' ') {
                if message.cancel.load(Ordering::Relaxed) {
                    reason = FinishReason::Cancelled;
                    break;
                }
                text.push_str(word);
                let _ = message.out.send(Piece::Text(word.to_owned())).await;
                tokio::time::sleep(pause).await;
            }
            let answer = Answer {
                new_tokens: text.split(' ').count(),
                text,
                adapters,
                prompt_tokens: turns,
                cached_tokens: 0,
                prefill_ms: 1,
                decode_ms: 1,
                finish_reason: reason,
                dropped_turns: usize::from(said == "overflow"),
                base: "parrot".to_owned(),
                route: domains::route(&message.adapters, &said),
            };
            let _ = message.out.send(Piece::Ended(Ok(answer))).await;
        };
        ctx.spawn(work.into_actor(self));
        Ok(())
    }
}

impl Handler<ShowModel> for Others {
    type Result = Result<ModelLine, ActorError>;

    fn handle(&mut self, _: ShowModel, _: &mut Self::Context) -> Self::Result {
        Ok(self.model.clone())
    }
}

impl Handler<SwitchModel> for Others {
    type Result = ResponseActFuture<Self, Result<ModelLine, ActorError>>;

    fn handle(&mut self, m: SwitchModel, _: &mut Self::Context) -> Self::Result {
        let pause = self.script.load_pause;
        let load = async move { tokio::time::sleep(pause).await };
        Box::pin(load.into_actor(self).map(move |(), this, _| {
            if m.source == "broken" {
                let error = "/models/broken: no such model directory: give another";
                return Err(ActorError::ModelUnavailable(error.into()));
            }
            let takes_system = m.source != "gemma";
            this.model =
                ModelLine { name: m.source.clone(), source: m.source, takes_system, ..line() };
            Ok(this.model.clone())
        }))
    }
}

/// The model that the fake says it is.
fn line() -> ModelLine {
    ModelLine {
        name: "parrot".into(),
        source: "builtin".into(),
        family: "llama".into(),
        parameters: 3_400_000,
        format: "f32".into(),
        context_length: 1024,
        device: "cpu".into(),
        takes_system: true,
        ..ModelLine::default()
    }
}

impl Handler<AddMark> for Others {
    type Result = Result<Marked, ActorError>;

    fn handle(&mut self, m: AddMark, _: &mut Self::Context) -> Self::Result {
        let fix = m.replaces.and_then(|id| self.rows[&id].fix.clone());
        let row = Row { mark: m.mark, weight: weight(m.mark), note: m.note, fix, revised: false };
        Ok(self.put(m.replaces, row))
    }
}

impl Handler<AddFix> for Others {
    type Result = Result<Marked, ActorError>;

    fn handle(&mut self, m: AddFix, _: &mut Self::Context) -> Self::Result {
        let fresh = Row {
            mark: Mark::Fix,
            weight: weight(Mark::Fix),
            note: None,
            fix: None,
            revised: false,
        };
        let mut row = m.mark.map_or(fresh, |id| self.rows[&id].clone());
        row.fix = Some(m.fix);
        Ok(self.put(m.mark, row))
    }
}

impl Handler<UndoMark> for Others {
    type Result = Result<Buffer, ActorError>;

    fn handle(&mut self, m: UndoMark, _: &mut Self::Context) -> Self::Result {
        match m.to {
            None => drop(self.rows.remove(&m.id)),
            Some(MarkState { mark, weight, note, fix, revised }) => {
                self.rows.insert(m.id, Row { mark, weight, note, fix, revised });
            }
        }
        Ok(self.buffer())
    }
}

impl Handler<ForgetMark> for Others {
    type Result = Result<Forgotten, ActorError>;

    fn handle(&mut self, m: ForgetMark, _: &mut Self::Context) -> Self::Result {
        self.rows.remove(&m.id);
        Ok(Forgotten::default())
    }
}

impl Handler<SetAutoTrain> for Others {
    type Result = Result<(), ActorError>;

    fn handle(&mut self, m: SetAutoTrain, _: &mut Self::Context) -> Self::Result {
        self.threshold = m.threshold;
        Ok(())
    }
}

impl Handler<Shutdown> for Others {
    type Result = ();

    fn handle(&mut self, m: Shutdown, _: &mut Self::Context) {
        if let Some(shutdown) = self.shutdown.take() {
            let _ = shutdown.send(m.code);
        }
    }
}

fn port<M>(actor: ActorName, others: &Addr<Others>) -> Port<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
    Others: Handler<M>,
{
    Port::new(actor, others.clone().recipient())
}

fn ports(others: &Addr<Others>) -> ConsolePorts {
    ConsolePorts {
        generate: port(ActorName::Inference, others),
        revise: port(ActorName::Inference, others),
        show_model: port(ActorName::Inference, others),
        switch_model: port(ActorName::Inference, others),
        add_mark: port(ActorName::Feedback, others),
        add_fix: port(ActorName::Feedback, others),
        set_target: port(ActorName::Feedback, others),
        list_waiting: port(ActorName::Feedback, others),
        undo_mark: port(ActorName::Feedback, others),
        forget_mark: port(ActorName::Feedback, others),
        set_auto_train: port(ActorName::Feedback, others),
        list_marks: port(ActorName::Feedback, others),
        list_domains: port(ActorName::Feedback, others),
        enqueue: port(ActorName::Training, others),
        cancel_job: port(ActorName::Training, others),
        list_jobs: port(ActorName::Training, others),
        wait_for_jobs: port(ActorName::Training, others),
        list_adapters: port(ActorName::Registry, others),
        load_adapter: port(ActorName::Registry, others),
        unload_adapter: port(ActorName::Registry, others),
        rollback_adapter: port(ActorName::Registry, others),
        delete_adapter: port(ActorName::Registry, others),
        read_adapters: port(ActorName::Registry, others),
        show_stats: port(ActorName::Registry, others),
        shutdown: others.clone().recipient(),
    }
}

/// Something that sets the connection to the others, for it and the console know each other.
#[derive(Message)]
#[rtype(result = "()")]
struct Meet(Addr<ConsoleActor>);

impl Handler<Meet> for Others {
    type Result = ();

    fn handle(&mut self, m: Meet, _: &mut Self::Context) {
        self.console = Some(m.0);
    }
}

/// Runs a console between this frontend and the fake until it asks to end; returns the exit code.
pub fn run(frontend: Frontend, script: Script) -> u8 {
    System::new().block_on(async move {
        let (shutdown, asked) = oneshot::channel();
        let builtin = script.builtin;
        let adapters = script.adapter.then(|| "lora_1".parse().expect("an id"));
        let others = Others {
            model: ModelLine { adapters: adapters.into_iter().collect(), ..line() },
            script,
            rows: BTreeMap::new(),
            threshold: Some(10),
            jobs: 0,
            running: watch::Sender::new(0),
            console: None,
            shutdown: Some(shutdown),
        }
        .start();
        let banner = Banner {
            model: "a test's parrot".into(),
            parameters: 0,
            device: "no device".into(),
            adapters: Vec::new(),
            notes: Vec::new(),
        };
        let config = Config::defaults().expect("the defaults fit");
        let program = Program {
            path: env!("CARGO_BIN_EXE_shammah").into(),
            options: Vec::new(),
            model: None,
        };
        let settings = Settings::new(&config, builtin);
        let options = ConsoleOptions { banner, settings, show_usage: false, program };
        let console = ConsoleActor::new(frontend, ports(&others), options, None).start();
        others.send(Meet(console.clone())).await.expect("the fake lives");
        let code = asked.await.expect("the console asks to end");
        console.send(CloseConsole { reason: String::new() }).await.expect("the console closes");
        code
    })
}

/// A place to write to that the test keeps.
#[derive(Clone, Default)]
pub struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no writer panicked").clone()).expect("UTF-8")
    }
}

/// What a piped session said.
#[allow(dead_code, reason = "not every test that uses the fake is piped")]
pub struct Transcript {
    pub out: String,
    pub errors: String,
    pub code: u8,
}

/// Runs a piped session.
#[allow(dead_code, reason = "not every test that uses the fake is piped")]
pub fn piped(input: impl BufRead + Send + 'static, script: Script) -> Transcript {
    let (out, errors) = (Sink::default(), Sink::default());
    let frontend = Frontend::plain(input, out.clone(), errors.clone()).expect("threads start");
    let code = run(frontend, script);
    Transcript { out: out.text(), errors: errors.text(), code }
}
