//! Every fault of a worker through the queue: in which state the job ends, after how many attempts, and what its row says.
//!
//! `tests/worker_faults.rs` has the same faults at the worker's parent. This executable is its own worker too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may fall"
)]

#[path = "worker_faults/faulty.rs"]
#[allow(dead_code, reason = "the other test uses the rest")]
mod faulty;
#[path = "worker_faults/gaps.rs"]
mod gaps;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, ResponseFuture};
use libtest_mimic::{Arguments, Failed, Trial};
use shammah::actors::base::{Base, CurrentBase};
use shammah::actors::db::Db;
use shammah::actors::model_thread::ModelLoader;
use shammah::actors::queue_right::QueueRight;
use shammah::actors::training::notices::Subscribers;
use shammah::actors::training::retry::RetryPolicy;
use shammah::actors::training::runner::{Launcher, Runner};
use shammah::actors::training::{QueueRules, TrainingActor};
use shammah::config::Config;
use shammah::domain::{Confinement, DeviceChoice, Mark, Message};
use shammah::eval::{ItemLoss, Measurements};
use shammah::lora::{AdapterSet, JobInput};
use shammah::messages::inference::ModelLine;
use shammah::messages::registry::{PublishAdapter, Published};
use shammah::messages::training::EnqueueTraining;
use shammah::messages::{ActorError, ActorName, Port};
use shammah::models::ModelSource;
use shammah::plan::TrainedBase;
use shammah::store::{Home, JobMetrics, JobRow, JobState, NewAdapter, NewFeedback, Store};
use shammah::worker::child::{Job, JobFailure, Report};
use shammah::worker::protocol::Limits;
use shammah::worker::{JobRequest, WorkerConfig, WorkerHandle};

use faulty::{Fault, Faulty};

/// No fault may keep the queue longer than this, on a busy machine.
const BOUND: Duration = Duration::from_secs(90);
const ATTEMPTS: usize = 3;
const FILES: [&str; 3] = ["adapter_model.safetensors", "adapter_config.json", "training.json"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--as-worker", fault] => shammah::worker::child::main_with(Broken(fault.to_owned())),
        ["--as-raw-worker", fault] => faulty::speak_badly(fault),
        _ => {
            let mut arguments = Arguments::from_args();
            arguments.test_threads.get_or_insert(4);
            let mut trials: Vec<Trial> = cases().into_iter().map(trial).collect();
            trials.push(
                Trial::test("tokens_keep_flowing_while_each_fault_strikes", keep_flowing)
                    .with_ignored_flag(true),
            );
            libtest_mimic::run(&arguments, trials).exit_code()
        }
    }
}

/// A training that goes wrong in one way.
struct Broken(String);

impl Job for Broken {
    type Input = JobInput;
    type Output = Measurements;

    fn run(
        &self,
        request: &JobRequest<JobInput>,
        report: &mut dyn FnMut(Report),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Measurements, JobFailure> {
        let fault = match self.0.as_str() {
            "panic" => Fault::Panic,
            "abort" => Fault::Abort,
            "segfault" => Fault::Signal(11),
            "stack" => Fault::StackOverflow,
            "memory" => Fault::Allocate(2 << 30),
            "hang" => Fault::Hang,
            "exit-0" => Fault::Exit(0),
            "exit-3" => Fault::Exit(3),
            "fail" => Fault::Fail("no rows".to_owned()),
            "noise" => Fault::Noise,
            "die-saving" => {
                let partial = request.out_dir.with_file_name(".outcome.partial");
                std::fs::create_dir_all(&partial).unwrap();
                std::fs::write(partial.join(FILES[0]), "half").unwrap();
                Fault::Abort
            }
            "disk-full" => {
                // The device whose every write fails as on a full disk.
                let full =
                    std::fs::write("/dev/full", "x").map_err(|e| JobFailure::Failed(e.to_string()));
                return full.map(|()| measured());
            }
            other => panic!("no fault {other}"),
        };
        let JobRequest { checkpoint_dir, out_dir, .. } = request;
        let (checkpoint_dir, out_dir) = (checkpoint_dir.clone(), out_dir.clone());
        let request = JobRequest { checkpoint_dir, out_dir: out_dir.clone(), input: fault };
        Faulty.run(&request, report, cancelled)?;
        std::fs::create_dir_all(&out_dir).unwrap();
        FILES.iter().for_each(|name| std::fs::write(out_dir.join(name), "x").unwrap());
        Ok(measured())
    }
}

fn measured() -> Measurements {
    Measurements {
        rule: false,
        trained: vec![ItemLoss { id: 1, before: 2.0, after: 0.5 }],
        heldout: vec![],
        general: vec![],
        prompted: Vec::new(),
        neighbours: Vec::new(),
        kl: 0.01,
        final_loss: 0.5,
        steps: 30,
        examples: 1,
        exploded_at: None,
    }
}

/// A fault, and how its job must end.
struct Case {
    fault: &'static str,
    state: JobState,
    attempts: usize,
    /// How its reason begins.
    message: String,
}

fn cases() -> Vec<Case> {
    let died = |what: &str| format!("the training process {what}");
    let internal = |what: &str| died(&format!("stopped on an internal error: {what}"));
    let unclear = |what: &str| died(&format!("could not be understood and was stopped: {what}"));
    let left = |code| died(&format!("left with code {code} and without a result"));
    let memory = died("ran out of memory (lora.training.memory_limit_mb is what it plans with)");
    let full = "No space left on device".to_owned();
    let failed =
        |fault, attempts, message| Case { fault, state: JobState::Failed, attempts, message };
    let message = String::new();
    vec![
        failed(
            "panic",
            ATTEMPTS,
            internal("the loss is not finite (at tests/worker_faults/faulty.rs:"),
        ),
        failed("abort", ATTEMPTS, died("was ended by signal 6 (SIGABRT)")),
        failed("segfault", ATTEMPTS, died("was ended by signal 11 (SIGSEGV)")),
        failed("stack", ATTEMPTS, internal("stack overflow")),
        failed("memory", ATTEMPTS, memory),
        failed("hang", ATTEMPTS, died("did not move for 2 s and was stopped")),
        failed("exit-0", ATTEMPTS, left(0)),
        failed("exit-3", ATTEMPTS, left(3)),
        failed("raw garbage", ATTEMPTS, unclear("")),
        failed("raw oversized", ATTEMPTS, unclear("")),
        failed("raw wrong-version", ATTEMPTS, unclear("")),
        failed("raw drip", ATTEMPTS, died("did not move for 2 s and was stopped")),
        failed("die-saving", ATTEMPTS, died("was ended by signal 6 (SIGABRT)")),
        // What the job itself says is final.
        failed("fail", 1, "no rows".to_owned()),
        failed("disk-full", 1, full),
        Case { fault: "noise", state: JobState::Succeeded, attempts: 1, message },
    ]
}

/// As workers are by default. Beside other builds such a worker hardly gets a processor, so the trials do without.
const IDLE: bool = true;
/// Pauses between tokens that are seen beside each fault, at least; it strikes as often as that takes.
const FEWEST_GAPS: usize = 1000;

/// Answers go on beside every fault: the pauses between tokens stay within twice what they are alone.
fn keep_flowing() -> Result<(), Failed> {
    actix::System::new().block_on(async {
        let chat = gaps::Chat::start();
        chat.alone().await;
        let (mut alone, mut beside) = (gaps::Gaps::default(), Vec::new());
        for Case { fault, .. } in cases() {
            alone.add(chat.alone().await);
            let (mut gaps, mut times, mut state) = (gaps::Gaps::default(), 0, None);
            // Most faults are over within a tenth of a second: of so few pauses the p99 would be the longest.
            while gaps.count() < FEWEST_GAPS {
                let folder = tempfile::tempdir().unwrap();
                let home = Home::open_or_create(folder.path().join("home")).unwrap();
                let (job, more) = chat.during(run(&home, fault, IDLE)).await;
                gaps.add(more);
                times += 1;
                state = Some(job.state);
            }
            beside.push((format!("{fault} → {} × {times}", state.unwrap()), gaps));
        }
        let bound = 2.0 * alone.share(0.99);
        println!("bound: {bound:.2} ms, twice the p99 alone");
        println!("{}", alone.line("alone", bound));
        beside.iter().for_each(|(fault, gaps)| println!("{}", gaps.line(fault, bound)));
        let late = beside.iter().filter(|(_, gaps)| gaps.share(0.99) > bound);
        let late: Vec<_> = late.map(|(fault, _)| fault).collect();
        assert!(late.is_empty(), "tokens came late beside {late:?}");
        Ok(())
    })
}

fn trial(case: Case) -> Trial {
    let Case { fault, state, attempts, message } = case;
    let name = format!("{}_ends_as_{state}", fault.replace([' ', '-'], "_"));
    Trial::test(name, move || {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open_or_create(folder.path().join("home")).unwrap();
        let job = actix::System::new().block_on(run(&home, fault, !IDLE));
        assert_eq!((job.state, job.attempts), (state, attempts), "{:?}", job.error);
        let error = job.error.unwrap_or_default();
        assert!(error.starts_with(&message), "{error}\nshould begin with\n{message}");
        assert_eq!(error.is_empty(), state == JobState::Succeeded);
        check_what_is_left(&home, state);
        Ok::<(), Failed>(())
    })
}

/// Adapters are whole or absent, marks are learned or back, and nothing is left of the job.
fn check_what_is_left(home: &Home, state: JobState) {
    let store = Store::open(home).unwrap();
    let succeeded = state == JobState::Succeeded;
    assert_eq!(store.adapters().unwrap().len(), usize::from(succeeded));
    let row = store.feedback(1).unwrap();
    assert_eq!((row.consumed_by.is_some(), row.in_job), (succeeded, None));
    assert!(!home.checkpoint(1).exists(), "no checkpoint is left");
    assert!(store.reconcile().unwrap().is_empty());
    let kinds: Vec<String> = store.events(1).unwrap().into_iter().map(|e| e.kind).collect();
    let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
    assert_eq!(count(state.as_str()), 1, "{kinds:?}");
}

fn with_a_mark(home: &Home) -> Store {
    let store = Store::open(home).unwrap();
    store
        .add_feedback(&NewFeedback {
            messages: vec![Message::user("What is the build server called?")],
            response: "I do not know.".to_owned(),
            mark: Mark::Fix,
            weight: 3.0,
            note: None,
            fix: Some("Kestrel.".to_owned()),
            domain: "general".to_owned(),
            adapter: None,
            base: None,
        })
        .unwrap();
    store
}

/// One mark, and the job that learns from it, to its end.
async fn run(home: &Home, fault: &'static str, idle: bool) -> JobRow {
    let at = home.clone();
    // Off the arbiter, as in the program: what is measured beside it is the queue's doing.
    let store = tokio::task::spawn_blocking(move || with_a_mark(&at)).await.unwrap();
    let db = Db::new(store);
    let publisher = Publisher { home: home.clone(), db: db.clone() }.start();
    let retry = Duration::from_millis(10);
    let runner = Runner {
        home: home.clone(),
        db: db.clone(),
        current: CurrentBase::new(base()),
        launch: launcher(fault, idle),
        registry: Port::new(ActorName::Registry, publisher.recipient()),
        notices: Subscribers::default(),
        retry: RetryPolicy { max_attempts: ATTEMPTS, base: retry, longest: retry },
    };
    let lock = home.try_lock_queue().unwrap();
    assert!(lock.is_some());
    let right = QueueRight::new(home, lock, Port::unconnected(ActorName::Console));
    let rules = QueueRules { config: Arc::new(Config::defaults().unwrap()), right };
    let actor = TrainingActor::new(runner, rules, None).start();
    actor.send(EnqueueTraining::of("general")).await.unwrap().unwrap();
    let start = Instant::now();
    loop {
        let job = db.call(|store| store.job(1)).await.unwrap();
        // The checkpoints go after the end is stored.
        if job.state.is_final() && !home.checkpoint(1).exists() {
            return job;
        }
        assert!(start.elapsed() < BOUND, "job 1 is {} after {BOUND:?}", job.state);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn launcher(fault: &'static str, idle: bool) -> Launcher {
    Arc::new(move |request, _, events| {
        let limits = Limits {
            nice: 5,
            idle,
            threads: 1,
            memory_bytes: if fault == "memory" { 1 << 30 } else { 0 },
            oom_score_adj: 0,
            core_dumps: false,
            confinement: Confinement::Off,
        };
        let mut config = WorkerConfig::new(std::env::current_exe().unwrap(), limits);
        config.args = match fault.strip_prefix("raw ") {
            Some(raw) => vec!["--as-raw-worker".into(), raw.into()],
            None => vec!["--as-worker".into(), fault.into()],
        };
        match fault {
            "hang" => config.stall_timeout = Duration::from_millis(1500),
            "raw drip" => config.heartbeat_timeout = Duration::from_secs(2),
            _ => {}
        }
        Box::new(WorkerHandle::spawn(config, request, events))
    })
}

fn base() -> Base {
    let nothing = || Box::new(|| Err("no model".to_owned())) as ModelLoader;
    Base {
        line: ModelLine { name: "tiny".to_owned(), takes_system: true, ..ModelLine::default() },
        trained: TrainedBase {
            name: "tiny".to_owned(),
            source: ModelSource::Builtin,
            base_hash: "b".repeat(64),
            hash_cache: None,
            quantize: None,
            parameters: 1000,
            device: DeviceChoice::Cpu,
        },
        make_loader: Arc::new(nothing),
        load_adapter: Arc::new(|_| Ok(AdapterSet::empty())),
    }
}

/// Publishes as the registry does, without a model.
struct Publisher {
    home: Home,
    db: Db,
}

impl Actor for Publisher {
    type Context = Context<Self>;
}

impl Handler<PublishAdapter> for Publisher {
    type Result = ResponseFuture<Result<Published, ActorError>>;

    fn handle(&mut self, message: PublishAdapter, _: &mut Self::Context) -> Self::Result {
        let new = NewAdapter {
            id: message.id.clone(),
            domain: message.domain,
            base: message.base,
            base_hash: message.base_hash,
            rank: message.rank,
            target_modules: message.target_modules,
            examples: message.examples,
            dir: message.dir,
        };
        let (db, path) = (self.db.clone(), self.home.adapter(&message.id));
        let (job, promotion) = (message.job, message.promotion);
        Box::pin(async move {
            let finish = move |store: &Store| {
                store.finish_succeeded(job, &new, &JobMetrics::default(), &promotion)
            };
            db.call(finish).await.map_err(|error| ActorError::Adapter(error.to_string()))?;
            Ok(Published { path, live: true })
        })
    }
}
