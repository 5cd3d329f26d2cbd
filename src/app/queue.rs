//! The queue without a console: `train --wait`.

use std::time::Duration;

use actix::{Actor, Context, Handler, System};

use super::shutdown::Ending;
use super::signals::{self, CtrlC};
use super::team::{Inputs, Ports, Team, Work};
use super::{AppError, Setup};
use crate::actors::db::Db;
use crate::actors::queue_right::QueueRight;
use crate::messages::console::JobNotice;
use crate::messages::registry::RestoreLive;
use crate::messages::supervisor::{Shutdown, ShutdownReason, StartChild};
use crate::messages::{ActorName, MAILBOX_CAPACITY};
use crate::store::{JobRow, Store, StoreError};

/// How often the end of the jobs is looked for.
const END_POLL: Duration = Duration::from_millis(300);

/// How the queue stood at the end.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueEnd {
    /// The jobs that were waited for.
    pub jobs: Vec<JobRow>,
    /// The exit code of an end that came from outside (a signal, an actor that dies again and again); `None` when the
    /// jobs have ended.
    pub cut_short: Option<u8>,
}

/// Takes what becomes of jobs.
pub type OnNotice = Box<dyn FnMut(&JobNotice)>;

/// Runs the queue until these jobs have ended, and tells `on_notice` everything that becomes of jobs. While another process runs it, only
/// the progress of the jobs waited for is told (without epochs and times, which only that process knows).
///
/// # Errors
/// A data directory that refuses.
pub fn run_queue(setup: &Setup, ids: &[i64], on_notice: OnNotice) -> Result<QueueEnd, AppError> {
    let lock = setup.home.try_lock_queue()?;
    let inputs = Inputs::unconnected();
    let right = QueueRight::new(&setup.home, lock, inputs.notices.clone());
    let cut_short = System::new().block_on(run(setup, ids, on_notice, inputs, &right))?;
    // The database of the actors is closed; what they wrote is there.
    let store = Store::open(&setup.home)?;
    let jobs = rows(&store, ids)?;
    Ok(QueueEnd { jobs, cut_short })
}

async fn run(
    setup: &Setup,
    ids: &[i64],
    on_notice: OnNotice,
    inputs: Inputs,
    right: &QueueRight,
) -> Result<Option<u8>, AppError> {
    let listener = Listener { on_notice }.start();
    inputs.jobs.connect(listener.clone().recipient());
    let team = Team::new(setup, &inputs, right, Work::Jobs)?;
    let Team { ports, db, mut ended, supervisor, .. } = team;
    let supervisor = supervisor.start();
    signals::watch(CtrlC::Signal, supervisor.clone().recipient())
        .map_err(AppError::system("watch for signals"))?;
    start(&supervisor, ActorName::Registry).await;
    for line in ports.restore.ask(RestoreLive).await? {
        tracing::warn!("{line}");
    }
    start(&supervisor, ActorName::Training).await;
    let first = tokio::select! {
        asked = ended.recv() => asked.unwrap_or(DONE),
        over = all_ended(&db, ids) => over.map(|()| DONE)?,
    };
    end(&ports, &inputs, &db, &mut ended, right.is_held(), &first).await;
    Ok((first.reason != ShutdownReason::Done).then_some(first.code))
}

const DONE: Shutdown = Shutdown { reason: ShutdownReason::Done, code: 0 };

/// Starts an actor; one that cannot start is restarted by the supervisor, which gives up in the end.
pub(super) async fn start(
    supervisor: &actix::Addr<crate::actors::supervisor::Supervisor>,
    actor: ActorName,
) {
    if supervisor.send(StartChild(actor)).await.is_err() {
        tracing::error!(%actor, "the supervisor is gone");
    }
}

async fn end(
    ports: &Ports,
    inputs: &Inputs,
    db: &Db,
    hurry: &mut tokio::sync::mpsc::Receiver<Shutdown>,
    holds_queue: bool,
    first: &Shutdown,
) {
    Ending { ports, notices: &inputs.notices, console: None, db, hurry, holds_queue }
        .run(first)
        .await;
}

/// Waits until the jobs have ended.
async fn all_ended(db: &Db, ids: &[i64]) -> Result<(), AppError> {
    loop {
        let wanted = ids.to_vec();
        let found = db.call(move |store| rows(store, &wanted)).await;
        let jobs = found.map_err(crate::messages::ActorError::from)?;
        if jobs.iter().all(|job| job.state.is_final()) {
            return Ok(());
        }
        tokio::time::sleep(END_POLL).await;
    }
}

fn rows(store: &Store, ids: &[i64]) -> Result<Vec<JobRow>, StoreError> {
    ids.iter().map(|id| store.job(*id)).collect()
}

struct Listener {
    on_notice: OnNotice,
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
        (self.on_notice)(&notice);
    }
}
