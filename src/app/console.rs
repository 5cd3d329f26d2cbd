//! The console: `chat`, with a person or a script in front of it.

use std::cell::RefCell;
use std::io::{self, BufReader, IsTerminal};
use std::rc::Rc;

use actix::{Actor, Addr, System};
use tokio::sync::mpsc;

use super::queue::start;
use super::shutdown::Ending;
use super::signals::{self, CtrlC};
use super::team::{Inputs, Ports, Team, Work};
use super::{AppError, Setup};
use crate::actors::console::{
    Banner, ConsoleActor, ConsoleOptions, ConsolePorts, Frontend, History, Program, Settings,
};
use crate::actors::queue_right::QueueRight;
use crate::actors::supervisor::{Starter, Supervisor};
use crate::config::SecondInstance;
use crate::domain::DEFAULT_DOMAIN;
use crate::messages::console::CloseConsole;
use crate::messages::registry::RestoreLive;
use crate::messages::supervisor::{Shutdown, ShutdownReason};
use crate::messages::{ActorName, Port};

/// Runs the console until it is left, and returns the exit code: at a terminal 0, in a script 1 when a line failed and 3
/// when the gate rejected a job; 130 after a signal; 1 when an actor died again and again.
///
/// `program` is what its `/run` starts. Where another process runs the queue, it chats, marks and enqueues without running it until that process is gone, or
/// refuses, as `queue.second_instance` says.
///
/// # Errors
/// [`AppError::QueueHeld`]; a data directory that refuses; a terminal that cannot be taken over.
pub fn run_console(mut setup: Setup, program: Program) -> Result<u8, AppError> {
    let lock = setup.home.try_lock_queue()?;
    if lock.is_none() {
        if setup.config.queue.second_instance == SecondInstance::Refuse {
            return Err(AppError::held(&setup.home));
        }
        setup.notes.push(second_instance_note(&setup));
    }
    let inputs = Inputs::unconnected();
    // Held to the end of this function: the queue is ours as long as the actors live.
    let right = QueueRight::new(&setup.home, lock, inputs.notices.clone());
    System::new().block_on(run(setup, program, inputs, &right))
}

fn second_instance_note(setup: &Setup) -> String {
    let holder = setup.home.queue_holder().map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    format!(
        "another process{holder} runs the queue of {}: marks and jobs are stored here and trained there",
        setup.home.root().display()
    )
}

async fn run(
    setup: Setup,
    program: Program,
    inputs: Inputs,
    right: &QueueRight,
) -> Result<u8, AppError> {
    let close = Port::unconnected(ActorName::Console);
    let team = Team::new(&setup, &inputs, right, Work::Chat)?;
    let Team { ports, db, live, mut ended, supervisor, .. } = team;
    let parts = Rc::new(RefCell::new(None));
    let console = console(Rc::clone(&parts), &inputs, &close);
    let supervisor = supervisor.with_child(ActorName::Console, console).start();
    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    let ctrl_c = if interactive { CtrlC::Key } else { CtrlC::Signal };
    signals::watch(ctrl_c, supervisor.clone().recipient())
        .map_err(AppError::system("watch for signals"))?;
    for actor in [ActorName::Inference, ActorName::Registry] {
        start(&supervisor, actor).await;
    }
    let found = ports.restore.ask(RestoreLive).await?;
    let ids = live.get(setup.current.get().hash(), DEFAULT_DOMAIN).ids.clone();
    let options = options(&setup, program, &ids, found);
    let frontend = frontend(&setup, interactive)?;
    *parts.borrow_mut() = Some((frontend, console_ports(&ports, &supervisor), options));
    // The console first: it hears what the queue begins with.
    for actor in [ActorName::Console, ActorName::Feedback, ActorName::Training] {
        start(&supervisor, actor).await;
    }
    let first = wait(&mut ended).await;
    let console = Some(&close);
    let ending = Ending {
        ports: &ports,
        notices: &inputs.notices,
        console,
        db: &db,
        hurry: &mut ended,
        holds_queue: right.is_held(),
    };
    ending.run(&first).await;
    Ok(first.code)
}

/// Waits for the first request to shut down; a supervisor that is gone is one.
async fn wait(ended: &mut mpsc::Receiver<Shutdown>) -> Shutdown {
    let gone = Shutdown { reason: ShutdownReason::GaveUp(ActorName::Console), code: 1 };
    ended.recv().await.unwrap_or(gone)
}

type Parts = (Frontend, ConsolePorts, ConsoleOptions);

/// Starts the console once; it owns the terminal, which cannot be had a second time.
fn console(
    parts: Rc<RefCell<Option<Parts>>>,
    inputs: &Inputs,
    close: &Port<CloseConsole>,
) -> Starter {
    let (inputs, close) = (inputs.clone(), close.clone());
    Box::new(move |guard| {
        let Some((frontend, ports, options)) = parts.borrow_mut().take() else {
            return Err("the console starts only once".to_owned());
        };
        let actor = ConsoleActor::new(frontend, ports, options, Some(Box::new(guard))).start();
        inputs.jobs.connect(actor.clone().recipient());
        inputs.live.connect(actor.clone().recipient());
        inputs.notices.connect(actor.clone().recipient());
        close.connect(actor.recipient());
        Ok(())
    })
}

fn frontend(setup: &Setup, interactive: bool) -> Result<Frontend, AppError> {
    let console = &setup.config.console;
    if interactive {
        let history = History::new(setup.home.history(), console.history_limit);
        Frontend::terminal(history, console.wrap)
            .map_err(AppError::system("take over the terminal"))
    } else {
        Frontend::plain(BufReader::new(io::stdin()), io::stdout(), io::stderr())
            .map_err(AppError::system("start the console"))
    }
}

fn options(
    setup: &Setup,
    program: Program,
    live: &[(crate::domain::AdapterId, f64)],
    found: Vec<String>,
) -> ConsoleOptions {
    let base = setup.current.get();
    let line = &base.line;
    ConsoleOptions {
        banner: Banner {
            model: line.name.clone(),
            parameters: line.parameters,
            device: line.device.clone(),
            adapters: live.iter().map(|(id, _)| id.clone()).collect(),
            notes: setup.notes.iter().cloned().chain(found).collect(),
        },
        settings: Settings::new(&setup.config, line.builtin),
        show_usage: setup.config.console.show_usage,
        program,
    }
}

fn console_ports(ports: &Ports, supervisor: &Addr<Supervisor>) -> ConsolePorts {
    let ports = ports.clone();
    ConsolePorts {
        generate: ports.generate,
        revise: ports.revise,
        show_model: ports.show_model,
        switch_model: ports.switch_model,
        add_mark: ports.add_mark,
        add_fix: ports.add_fix,
        set_target: ports.set_target,
        list_waiting: ports.list_waiting,
        undo_mark: ports.undo_mark,
        forget_mark: ports.forget_mark,
        set_auto_train: ports.set_auto_train,
        list_marks: ports.list_marks,
        list_domains: ports.list_domains,
        enqueue: ports.enqueue,
        cancel_job: ports.cancel_job,
        list_jobs: ports.list_jobs,
        wait_for_jobs: ports.wait_for_jobs,
        list_adapters: ports.list_adapters,
        load_adapter: ports.load_adapter,
        unload_adapter: ports.unload_adapter,
        rollback_adapter: ports.rollback_adapter,
        delete_adapter: ports.delete_adapter,
        read_adapters: ports.read_adapters,
        show_stats: ports.show_stats,
        shutdown: supervisor.clone().recipient(),
    }
}
