//! The queue as a service: `jobs run`. No console and no answers; jobs, the thresholds that start them, and the supervisor.

use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Context, Handler, System};
use tokio::signal::unix::Signal;

use super::notify::Notifier;
use super::queue::start;
use super::reload::{self, Changes};
use super::shutdown::Ending;
use super::signals;
use super::team::{CurrentConfig, Inputs, Ports, Team, Work};
use super::{AppError, Setup};
use crate::actors::queue_right::QueueRight;
use crate::config::Config;
use crate::messages::console::{JobNotice, Notice};
use crate::messages::registry::RestoreLive;
use crate::messages::supervisor::{Shutdown, ShutdownReason};
use crate::messages::training::{JobLine, ListJobs, Reconfigure};
use crate::messages::{ActorName, MAILBOX_CAPACITY};

/// Jobs that are counted for the state that the service manager shows.
const JOBS_COUNTED: usize = 1000;

/// Something to tell whoever reads the service's stderr.
#[derive(Debug)]
pub enum Said<'a> {
    /// What became of a job.
    Job(&'a JobNotice),
    /// Something else, one line.
    Line(&'a str),
}

/// Takes what is said.
pub type OnSaid = Box<dyn FnMut(Said<'_>)>;
/// Reads the configuration again; one line for the user on failure.
pub type ReadConfig = Box<dyn Fn() -> Result<Config, String>>;

/// Runs the queue until SIGTERM (exit code 0) or SIGINT (130), or until an actor dies again and again (1). SIGHUP reads the
/// configuration again; a wrong one is refused and the old one stays.
///
/// # Errors
/// [`AppError::QueueHeld`]; a data directory that refuses.
pub fn run_service(setup: &Setup, read: ReadConfig, said: OnSaid) -> Result<u8, AppError> {
    let Some(lock) = setup.home.try_lock_queue()? else {
        return Err(AppError::held(&setup.home));
    };
    let inputs = Inputs::unconnected();
    // Held to the end of this function: the queue is ours as long as the actors live.
    let right = QueueRight::new(&setup.home, Some(lock), inputs.notices.clone());
    System::new().block_on(run(setup, read, said, inputs, &right))
}

async fn run(
    setup: &Setup,
    read: ReadConfig,
    said: OnSaid,
    inputs: Inputs,
    right: &QueueRight,
) -> Result<u8, AppError> {
    let listener = Listener { said }.start();
    inputs.jobs.connect(listener.clone().recipient());
    inputs.notices.connect(listener.recipient());
    let Team { ports, db, config, mut ended, supervisor, .. } =
        Team::new(setup, &inputs, right, Work::Service)?;
    let supervisor = supervisor.start();
    let hangups = signals::watch_service(&supervisor.clone().recipient())
        .map_err(AppError::system("watch for signals"))?;
    start(&supervisor, ActorName::Registry).await;
    for line in ports.restore.ask(RestoreLive).await? {
        tracing::warn!("{line}");
    }
    for actor in [ActorName::Feedback, ActorName::Training] {
        start(&supervisor, actor).await;
    }
    let notifier = Rc::new(Notifier::from_env());
    notifier.ready();
    say(&inputs, format!("running the queue of {}", setup.home.root().display()));
    if notifier.is_connected() {
        actix::spawn(beat(ports.clone(), Rc::clone(&notifier)));
    }
    let reloads = Reloads { config, read, ports: ports.clone(), notifier: Rc::clone(&notifier) };
    actix::spawn(reloads.follow(hangups, inputs.clone()));
    let gone = Shutdown { reason: ShutdownReason::GaveUp(ActorName::Training), code: 1 };
    let first = ended.recv().await.unwrap_or(gone);
    notifier.stopping();
    let (notices, hurry) = (&inputs.notices, &mut ended);
    let ending =
        Ending { ports: &ports, notices, console: None, db: &db, hurry, holds_queue: true };
    ending.run(&first).await;
    Ok(first.code)
}

fn say(inputs: &Inputs, line: String) {
    tracing::info!("{line}");
    // A full mailbox loses a line of information, which the log has.
    let _ = inputs.notices.try_send(Notice(line));
}

/// Gives signs of life as long as the queue answers: a hung one is restarted by the service manager.
async fn beat(ports: Ports, notifier: Rc<Notifier>) {
    let mut ticks = tokio::time::interval(notifier.period());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let jobs = ports.list_jobs.ask(ListJobs { limit: JOBS_COUNTED });
        match tokio::time::timeout(notifier.period(), jobs).await {
            Ok(Ok(jobs)) => notifier.alive(&status(&jobs)),
            Ok(Err(error)) => tracing::warn!(%error, "the queue gives no sign of life"),
            Err(_) => tracing::warn!("the queue gives no sign of life in time"),
        }
    }
}

/// Says what the queue does, one line.
fn status(jobs: &[JobLine]) -> String {
    let waiting = jobs.iter().filter(|job| job.state == "queued").count();
    let running = jobs.iter().find(|job| ["running", "evaluating"].contains(&job.state.as_str()));
    let doing = running.map_or("no job runs".to_owned(), |job| {
        format!("job {} {}: step {} of {}", job.id, job.state, job.step, job.total_steps)
    });
    format!("{doing}; {waiting} waiting")
}

/// What SIGHUP does.
struct Reloads {
    config: CurrentConfig,
    read: ReadConfig,
    ports: Ports,
    notifier: Rc<Notifier>,
}

impl Reloads {
    async fn follow(self, mut hangups: Signal, inputs: Inputs) {
        while hangups.recv().await.is_some() {
            self.notifier.reloading();
            match (self.read)() {
                Ok(new) => say(&inputs, self.take(new).await),
                Err(error) => {
                    tracing::error!(error, "the configuration is refused and the old one stays");
                }
            }
            self.notifier.ready();
        }
    }

    async fn take(&self, new: Config) -> String {
        let old = self.config.get();
        let changes = Changes::between(&old, &new);
        let new = Arc::new(reload::applied(&old, new));
        self.config.set(Arc::clone(&new));
        for port in [&self.ports.reconfigure_queue, &self.ports.reconfigure_marks] {
            // An actor that is being restarted reads it at its start.
            if let Err(error) = port.send(Reconfigure(Arc::clone(&new))).await {
                tracing::debug!(%error, "it hears of the configuration at its start");
            }
        }
        changes.line()
    }
}

struct Listener {
    said: OnSaid,
}

impl Actor for Listener {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Handler<JobNotice> for Listener {
    type Result = ();

    fn handle(&mut self, notice: JobNotice, _: &mut Self::Context) {
        (self.said)(Said::Job(&notice));
    }
}

impl Handler<Notice> for Listener {
    type Result = ();

    fn handle(&mut self, notice: Notice, _: &mut Self::Context) {
        (self.said)(Said::Line(&notice.0));
    }
}
