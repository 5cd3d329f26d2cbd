//! The actors and the ports between them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix::{Actor, Addr};
use tokio::sync::mpsc;

use super::Setup;
use crate::actors::db::Db;
use crate::actors::feedback::{FeedbackActor, FeedbackRules};
use crate::actors::inference::{InferenceActor, InferenceParts};
use crate::actors::model_thread::LiveTable;
use crate::actors::queue_right::QueueRight;
use crate::actors::registry::follow::Answering;
use crate::actors::registry::{AdapterRegistryActor, RegistryParts};
use crate::actors::routes::RouteTable;
use crate::actors::supervisor::{RestartPolicy, SHUTDOWN_QUEUE, Starter, Supervisor};
use crate::actors::training::notices::Subscribers;
use crate::actors::training::retry::RetryPolicy;
use crate::actors::training::runner::{Launcher, Runner};
use crate::actors::training::{QueueRules, TrainingActor};
use crate::config::{Config, Term, WorkerSection};
use crate::eval;
use crate::messages::console::{JobNotice, LiveChanged, Notice};
use crate::messages::feedback::{
    AddFix, AddMark, ForgetMark, ListDomains, ListMarks, ListWaiting, SetAutoTrain, SetTarget,
    UndoMark,
};
use crate::messages::inference::{
    Generate, Revise, SetLive, ShowModel, StopGenerating, SwitchModel,
};
use crate::messages::registry::{
    AdoptBase, DeleteAdapter, ListAdapters, LoadAdapter, PublishAdapter, ReadAdapters, RecordUsage,
    RestoreLive, RollbackAdapter, ShowStats, UnloadAdapter,
};
use crate::messages::supervisor::Shutdown;
use crate::messages::training::{
    CancelJob, EnqueueTraining, ListJobs, ParkTraining, Reconfigure, ThresholdReached, WaitForJobs,
};
use crate::messages::{ActorName, Port};
use crate::store::{Store, StoreError};
use crate::worker::protocol::Limits;
use crate::worker::{WorkerConfig, WorkerHandle};

/// Bytes in a mebibyte.
const MEBIBYTE: u64 = 1 << 20;
/// The log of the worker, in the directory of logs.
const WORKER_LOG: &str = "worker.log";

/// Declares the ports of all actors, and how each actor is put behind its own.
macro_rules! ports {
    ($($(#[$doc:meta])* $actor:ident by $connect:ident: $type:ty { $($port:ident: $message:ty,)* })*) => {
        /// Where every message goes.
        #[derive(Clone)]
        pub struct Ports {
            $($(#[doc = concat!("[`", stringify!($message), "`]")] pub $port: Port<$message>,)*)*
        }

        impl Ports {
            /// Makes ports with nobody behind them.
            pub fn unconnected() -> Self {
                Self { $($($port: Port::unconnected(ActorName::$actor),)*)* }
            }

            $(fn $connect(&self, actor: &Addr<$type>) {
                $(self.$port.connect(actor.clone().recipient());)*
            })*
        }
    };
}

ports! {
    Inference by connect_inference: InferenceActor {
        generate: Generate,
        revise: Revise,
        show_model: ShowModel,
        switch_model: SwitchModel,
        set_live: SetLive,
        stop_generating: StopGenerating,
    }
    Feedback by connect_feedback: FeedbackActor {
        add_mark: AddMark,
        add_fix: AddFix,
        set_target: SetTarget,
        list_waiting: ListWaiting,
        undo_mark: UndoMark,
        forget_mark: ForgetMark,
        set_auto_train: SetAutoTrain,
        list_marks: ListMarks,
        list_domains: ListDomains,
        reconfigure_marks: Reconfigure,
    }
    Training by connect_training: TrainingActor {
        enqueue: EnqueueTraining,
        threshold: ThresholdReached,
        cancel_job: CancelJob,
        list_jobs: ListJobs,
        wait_for_jobs: WaitForJobs,
        park: ParkTraining,
        reconfigure_queue: Reconfigure,
    }
    Registry by connect_registry: AdapterRegistryActor {
        publish: PublishAdapter,
        restore: RestoreLive,
        adopt: AdoptBase,
        list_adapters: ListAdapters,
        load_adapter: LoadAdapter,
        unload_adapter: UnloadAdapter,
        rollback_adapter: RollbackAdapter,
        delete_adapter: DeleteAdapter,
        read_adapters: ReadAdapters,
        show_stats: ShowStats,
        usage: RecordUsage,
    }
}

/// What a console (or [`run_queue`](super::run_queue)) is told; an actor of its own is put behind these.
#[derive(Clone)]
pub struct Inputs {
    /// What becomes of jobs.
    pub jobs: Port<JobNotice>,
    /// Swaps.
    pub live: Port<LiveChanged>,
    /// Lines for the user.
    pub notices: Port<Notice>,
}

impl Inputs {
    /// Makes ports with nobody behind them.
    pub fn unconnected() -> Self {
        let console = ActorName::Console;
        Self {
            jobs: Port::unconnected(console),
            live: Port::unconnected(console),
            notices: Port::unconnected(console),
        }
    }
}

/// What a process is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A console: answers, marks, jobs.
    Chat,
    /// Jobs that are waited for.
    Jobs,
    /// The queue as a service: jobs, and the thresholds that start them.
    Service,
}

/// The configuration in force, for actors that are started (again).
#[derive(Clone)]
pub struct CurrentConfig(Arc<RwLock<Arc<Config>>>);

impl CurrentConfig {
    fn new(config: Config) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(config))))
    }

    /// Returns it.
    pub fn get(&self) -> Arc<Config> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces it; actors that run are told by [`Reconfigure`].
    pub fn set(&self, config: Arc<Config>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }
}

/// Everything that several actors share, and the supervisor that will start them.
pub struct Team {
    /// Where messages go.
    pub ports: Ports,
    /// The database.
    pub db: Db,
    /// What answers, by domain.
    pub live: LiveTable,
    /// The configuration in force.
    pub config: CurrentConfig,
    /// Requests to shut down come out here.
    pub ended: mpsc::Receiver<Shutdown>,
    /// Not started yet.
    pub supervisor: Supervisor,
}

impl Team {
    /// Puts the actors together; none runs yet.
    ///
    /// # Errors
    /// A database that cannot be opened, or a program that does not know its own file.
    pub fn new(
        setup: &Setup,
        inputs: &Inputs,
        right: &QueueRight,
        work: Work,
    ) -> Result<Self, TeamError> {
        let store = Store::open(&setup.home)?.with_secrets(setup.config.feedback.secrets);
        let chat = work == Work::Chat;
        let generation = &setup.config.generation;
        let routes = RouteTable::new(generation.routing_margin, eval::routing_prompts());
        if chat && generation.routing {
            // The first question may come before the feedback actor has looked.
            routes.set_marks(store.routed_marks()?);
        }
        let db = Db::new(store);
        let (ports, live) = (Ports::unconnected(), LiveTable::default());
        let config = CurrentConfig::new(setup.config.clone());
        let (shutdown, ended) = mpsc::channel(SHUTDOWN_QUEUE);
        let mut supervisor =
            Supervisor::new(RestartPolicy::STANDARD, inputs.notices.clone(), shutdown);
        if chat {
            let start = inference(setup, &ports, &live, &routes);
            supervisor = supervisor.with_child(ActorName::Inference, start);
        }
        if work != Work::Jobs {
            let routes = (chat && generation.routing).then(|| routes.clone());
            let start = feedback(setup, &config, &db, &ports, right, routes);
            supervisor = supervisor.with_child(ActorName::Feedback, start);
        }
        let changed = inputs.live.clone();
        let start = registry(setup, &db, &ports, chat.then_some(changed), right);
        supervisor = supervisor.with_child(ActorName::Registry, start);
        let runner = runner(setup, &config, &db, &ports)?;
        runner.notices.add(inputs.jobs.clone());
        let start = training(runner, &config, &ports, right);
        supervisor = supervisor.with_child(ActorName::Training, start);
        Ok(Self { ports, db, live, config, ended, supervisor })
    }
}

/// Why the actors cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum TeamError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The program's own file, which is the worker too.
    #[error("cannot find the program's own file, which trains too: {0}")]
    Program(io::Error),
}

fn inference(setup: &Setup, ports: &Ports, live: &LiveTable, routes: &RouteTable) -> Starter {
    let ports = ports.clone();
    let parts = InferenceParts {
        current: setup.current.clone(),
        open: Arc::clone(&setup.open),
        live: live.clone(),
        routes: routes.clone(),
        usage: ports.usage.clone(),
        adopt: ports.adopt.clone(),
    };
    Box::new(move |guard| {
        let actor = InferenceActor::new(parts.clone(), Some(guard));
        ports.connect_inference(&actor.start());
        Ok(())
    })
}

fn feedback(
    setup: &Setup,
    config: &CurrentConfig,
    db: &Db,
    ports: &Ports,
    right: &QueueRight,
    routes: Option<RouteTable>,
) -> Starter {
    let (db, ports, current) = (db.clone(), ports.clone(), setup.current.clone());
    let (config, right) = (config.clone(), right.clone());
    Box::new(move |guard| {
        let threshold = ports.threshold.clone();
        let rules = FeedbackRules::of(&config.get(), right.clone());
        let (db, current) = (db.clone(), current.clone());
        let actor = FeedbackActor::new(db, rules, current, threshold, Some(guard))
            .with_routes(routes.clone());
        ports.connect_feedback(&actor.start());
        Ok(())
    })
}

fn registry(
    setup: &Setup,
    db: &Db,
    ports: &Ports,
    changed: Option<Port<LiveChanged>>,
    right: &QueueRight,
) -> Starter {
    let ports = ports.clone();
    let parts = RegistryParts {
        home: setup.home.clone(),
        db: db.clone(),
        current: setup.current.clone(),
        inference: changed.is_some().then(|| ports.set_live.clone()),
        changed,
        answering: Answering::default(),
        mixtures: mixtures(&setup.config),
        right: right.clone(),
    };
    Box::new(move |guard| {
        let actor = AdapterRegistryActor::new(parts.clone(), Some(guard));
        ports.connect_registry(&actor.start());
        Ok(())
    })
}

/// The domains that answer with other adapters than their live one.
fn mixtures(config: &Config) -> BTreeMap<String, Vec<Term>> {
    let alone = [Term { adapter: None, weight: 1.0 }];
    let all = config.domains.iter().map(|(name, domain)| (name.clone(), domain.mixture()));
    all.filter(|(_, terms)| terms.as_slice() != alone).collect()
}

fn training(runner: Runner, config: &CurrentConfig, ports: &Ports, right: &QueueRight) -> Starter {
    let (ports, config, right) = (ports.clone(), config.clone(), right.clone());
    Box::new(move |guard| {
        let rules = QueueRules { config: config.get(), right: right.clone() };
        let retry = RetryPolicy::of(&rules.config.queue);
        let actor = TrainingActor::new(Runner { retry, ..runner.clone() }, rules, Some(guard));
        ports.connect_training(&actor.start());
        Ok(())
    })
}

fn runner(
    setup: &Setup,
    config: &CurrentConfig,
    db: &Db,
    ports: &Ports,
) -> Result<Runner, TeamError> {
    let retry = RetryPolicy::of(&setup.config.queue);
    let (exe, log) =
        (std::env::current_exe().map_err(TeamError::Program)?, setup.home.logs().join(WORKER_LOG));
    let config = config.clone();
    let launch: Launcher = Arc::new(move |request, timeout, events| {
        let worker = worker_config(&config.get().worker, exe.clone(), log.clone(), timeout);
        Box::new(WorkerHandle::spawn(worker, request, events))
    });
    Ok(Runner {
        home: setup.home.clone(),
        db: db.clone(),
        current: setup.current.clone(),
        launch,
        registry: ports.publish.clone(),
        notices: Subscribers::default(),
        retry,
    })
}

fn worker_config(
    worker: &WorkerSection,
    exe: PathBuf,
    log: PathBuf,
    timeout: Duration,
) -> WorkerConfig {
    let limits = Limits {
        nice: i32::from(worker.nice),
        idle: worker.idle,
        threads: worker.threads,
        memory_bytes: worker.memory_limit_mb.saturating_mul(MEBIBYTE),
        oom_score_adj: worker.oom_score_adj,
        core_dumps: worker.core_dumps,
        confinement: worker.landlock,
    };
    WorkerConfig {
        timeout: Some(timeout),
        heartbeat_timeout: Duration::from_secs(worker.heartbeat_timeout_s),
        log_path: Some(log),
        ..WorkerConfig::new(exe, limits)
    }
}
