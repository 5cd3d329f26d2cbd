use std::sync::Mutex;

use actix::Addr;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::notices::Subscribers;
use super::retry::RetryPolicy;
use super::runner::{Launcher, Worker};
use super::*;
use crate::actors::base::CurrentBase;
use crate::actors::db::Db;
use crate::actors::test_kit::{Log, eventually, probe, question, temp_home, tiny};
use crate::domain::Mark;
use crate::eval::{ItemLoss, Measurements};
use crate::lora::Resources;
use crate::messages::Port;
use crate::messages::registry::{PublishAdapter, Published};
use crate::store::{Home, JobMetrics, NewAdapter, NewFeedback, QueueLock};
use crate::worker::{WorkerEvent, WorkerExit};

/// A worker that does what the test says.
#[derive(Clone)]
struct Puppet {
    events: mpsc::Sender<WorkerEvent<Measurements>>,
    asked: Arc<Mutex<Vec<&'static str>>>,
    examples: usize,
    memory_deaths: usize,
    base_hash: String,
}

impl Worker for Puppet {
    fn cancel(&self) {
        self.asked.lock().unwrap().push("cancel");
        let _ = self.events.try_send(WorkerEvent::Ended(WorkerExit::Cancelled));
    }

    fn kill(&self) {
        self.asked.lock().unwrap().push("kill");
    }
}

impl Puppet {
    async fn say(&self, event: WorkerEvent<Measurements>) {
        self.events.send(event).await.unwrap();
    }

    async fn end(&self, exit: WorkerExit<Measurements>) {
        self.say(WorkerEvent::Ended(exit)).await;
    }

    async fn finish(&self, before: f64, after: f64) {
        self.say(WorkerEvent::Evaluating).await;
        let item = |id| ItemLoss { id, before, after };
        let measured = Measurements {
            rule: false,
            trained: vec![item(1), item(2)],
            heldout: vec![],
            general: vec![],
            prompted: Vec::new(),
            neighbours: Vec::new(),
            kl: 0.01,
            final_loss: after,
            steps: 30,
            examples: 2,
            exploded_at: None,
        };
        self.end(WorkerExit::Finished(Box::new(measured))).await;
    }
}

struct Stage {
    _dir: TempDir,
    home: Home,
    db: Db,
    actor: Addr<TrainingActor>,
    workers: Arc<Mutex<Vec<Puppet>>>,
    notices: Log<JobNotice>,
    current: CurrentBase,
    /// The lock of the process that runs the queue, where that is another.
    other: Option<QueueLock>,
}

#[path = "training_bases_tests.rs"]
mod bases;
#[path = "training_beside_tests.rs"]
mod beside;
#[path = "training_runner_tests.rs"]
mod runner_tests;

fn stage() -> Stage {
    stage_of(true, |_| ())
}

fn stage_of(holds_queue: bool, adjust: impl FnOnce(&mut Config)) -> Stage {
    let (dir, home) = temp_home();
    let db = Db::new(Store::open(&home).unwrap());
    let mut config = Config::defaults().unwrap();
    adjust(&mut config);
    let workers: Arc<Mutex<Vec<Puppet>>> = Arc::default();
    let launched = Arc::clone(&workers);
    let launch: Launcher = Arc::new(move |request, _, events| {
        let examples = request.input.train.len();
        let memory_deaths = request.input.memory.deaths;
        let base_hash = request.input.base_hash;
        let puppet = Puppet { events, asked: Arc::default(), examples, memory_deaths, base_hash };
        launched.lock().unwrap().push(puppet.clone());
        Box::new(puppet)
    });
    let subscribers = Subscribers::default();
    let (port, notices) = probe(|_: &JobNotice| ());
    subscribers.add(port);
    let (registry, _) = {
        let home = home.clone();
        probe(move |message: &PublishAdapter| publish(&home, message))
    };
    let current = tiny();
    let runner = Runner {
        home: home.clone(),
        db: db.clone(),
        current: current.clone(),
        launch,
        registry,
        notices: subscribers,
        retry: RetryPolicy {
            max_attempts: 3,
            base: Duration::from_secs(600),
            longest: Duration::from_secs(3600),
        },
    };
    let lock = home.try_lock_queue().unwrap();
    // Where this one does not run the queue, another does.
    let (ours, other) = if holds_queue { (lock, None) } else { (None, lock) };
    let right = QueueRight::new(&home, ours, Port::unconnected(ActorName::Console));
    let rules = QueueRules { config: Arc::new(config), right };
    let actor = TrainingActor::new(runner, rules, None).start();
    Stage { _dir: dir, home, db, actor, workers, notices, current, other }
}

/// What the registry does, without a model: its tests show the rest.
fn publish(home: &Home, message: &PublishAdapter) -> Result<Published, ActorError> {
    fs_err::create_dir_all(&message.dir).unwrap();
    for file in ["adapter_model.safetensors", "adapter_config.json", "training.json"] {
        fs_err::write(message.dir.join(file), "x").unwrap();
    }
    let new = NewAdapter {
        id: message.id.clone(),
        domain: message.domain.clone(),
        base: message.base.clone(),
        base_hash: message.base_hash.clone(),
        rank: message.rank,
        target_modules: message.target_modules.clone(),
        examples: message.examples,
        dir: message.dir.clone(),
    };
    let store = Store::open(home).unwrap();
    store
        .finish_succeeded(message.job, &new, &JobMetrics::default(), &message.promotion)
        .map_err(|error| ActorError::Adapter(error.to_string()))?;
    Ok(Published { path: home.adapter(&message.id), live: true })
}

impl Stage {
    async fn marks(&self, texts: &[&'static str]) {
        let texts = texts.to_vec();
        let add = move |store: &Store| {
            for text in texts {
                store.add_feedback(&NewFeedback {
                    messages: question(text),
                    response: format!("{text} indeed"),
                    mark: Mark::Good,
                    weight: 10.0,
                    note: None,
                    fix: None,
                    domain: "general".to_owned(),
                    adapter: None,
                    base: None,
                })?;
            }
            Ok(())
        };
        self.db.call(add).await.unwrap();
    }

    async fn enqueue(&self) -> Result<JobLine, ActorError> {
        self.actor.send(EnqueueTraining::of("general")).await.unwrap()
    }

    /// Waits for the n-th worker, from 1.
    async fn worker(&self, n: usize) -> Puppet {
        eventually("a worker", || self.workers.lock().unwrap().len() >= n).await;
        self.workers.lock().unwrap()[n - 1].clone()
    }

    fn started(&self) -> usize {
        self.workers.lock().unwrap().len()
    }

    /// Waits for the notice of this attempt, and returns the pause before it, milliseconds.
    async fn retry(&self, next: u32) -> u64 {
        let this = move |n: &JobNotice| matches!(n, JobNotice::Retrying { attempt, .. } if *attempt == next);
        self.notices.until("a retry", this).await;
        let mut pauses = self.notices.take().into_iter().filter_map(|n| match n {
            JobNotice::Retrying { pause_ms, .. } => Some(pause_ms),
            _ => None,
        });
        pauses.next_back().unwrap()
    }

    async fn job(&self, id: i64) -> JobRow {
        self.db.call(move |store| store.job(id)).await.unwrap()
    }

    async fn threshold(&self) {
        let domain = "general".to_owned();
        self.actor.send(ThresholdReached { domain, threshold: 1 }).await.unwrap();
    }
}

fn killed() -> WorkerExit<Measurements> {
    WorkerExit::Signal(9)
}

#[actix::test]
async fn a_good_job_is_published_and_everything_is_told_in_order() {
    let stage = stage();
    stage.marks(&["bees", "rivers"]).await;
    let job = stage.enqueue().await.unwrap();
    let worker = stage.worker(1).await;
    assert_eq!(worker.examples, 2);
    let (epoch, epochs, step, total_steps) = (1, 3, 10, 30);
    let (loss, elapsed_ms, eta_ms) = (1.5, 100, Some(200));
    worker
        .say(WorkerEvent::Progress { epoch, epochs, step, total_steps, loss, elapsed_ms, eta_ms })
        .await;
    worker.say(WorkerEvent::Checkpointed { step: 10 }).await;
    worker.finish(2.0, 0.5).await;
    stage.notices.until("success", |n| matches!(n, JobNotice::Succeeded { .. })).await;
    let told: Vec<_> = stage.notices.take();
    let names: Vec<_> = told.iter().map(name).collect();
    let all = ["queued", "started", "progressed", "checkpointed", "evaluating", "succeeded"];
    assert_eq!(names, all);
    let JobNotice::Succeeded { final_loss, examples, path, live, .. } = &told[5] else { panic!() };
    assert_eq!((*final_loss, *examples, *live), (0.5, 2, true));
    assert!(path.is_dir());
    let row = stage.job(job.id).await;
    assert_eq!((row.state, row.step), (JobState::Succeeded, 0));
    assert!(!stage.home.checkpoint(job.id).exists());
}

fn name(notice: &JobNotice) -> &'static str {
    match notice {
        JobNotice::Queued { .. } => "queued",
        JobNotice::Started { .. } => "started",
        JobNotice::Expected { .. } => "expected",
        JobNotice::Progressed(_) => "progressed",
        JobNotice::Checkpointed { .. } => "checkpointed",
        JobNotice::Evaluating { .. } => "evaluating",
        JobNotice::Noted { .. } => "noted",
        JobNotice::Retrying { .. } => "retrying",
        JobNotice::Succeeded { .. } => "succeeded",
        JobNotice::Rejected { .. } => "rejected",
        JobNotice::Failed { .. } => "failed",
        JobNotice::Cancelled { .. } => "cancelled",
        JobNotice::Parked { .. } => "parked",
    }
}

#[actix::test]
async fn a_job_that_learned_nothing_is_rejected_with_reasons_and_keeps_its_examples() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    stage.worker(1).await.finish(1.0, 1.0).await;
    let rejected =
        |n: &JobNotice| matches!(n, JobNotice::Rejected { reasons, .. } if !reasons.is_empty());
    stage.notices.until("rejection", rejected).await;
    let row = stage.job(job.id).await;
    assert_eq!(row.state, JobState::Rejected);
    assert!(row.error.unwrap().contains("did not learn"));
    let buffer = stage.db.call(|store| store.buffer_status("general", None)).await.unwrap();
    assert_eq!(buffer.trainable_unconsumed, 1);
}

#[actix::test]
async fn a_killed_worker_is_tried_again_after_longer_and_longer_pauses_and_then_fails() {
    let stage = stage();
    tokio::time::pause();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    stage.worker(1).await.end(killed()).await;
    assert!((300_000..=600_000).contains(&stage.retry(2).await));
    // Half of the pause is certain, whatever the jitter.
    tokio::time::sleep(Duration::from_secs(290)).await;
    assert_eq!(stage.started(), 1, "not yet");
    tokio::time::sleep(Duration::from_secs(320)).await;
    stage.worker(2).await.end(killed()).await;
    assert!((600_000..=1_200_000).contains(&stage.retry(3).await));
    tokio::time::sleep(Duration::from_secs(1210)).await;
    stage.worker(3).await.end(killed()).await;
    let failed = |n: &JobNotice| matches!(n, JobNotice::Failed { attempts: 3, error, .. } if error.contains("SIGKILL"));
    stage.notices.until("failure", failed).await;
    assert_eq!(stage.job(job.id).await.state, JobState::Failed);
}

#[actix::test]
async fn a_worker_that_ran_out_of_memory_is_followed_by_one_that_plans_with_less() {
    let stage = stage();
    tokio::time::pause();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    let first = stage.worker(1).await;
    assert_eq!(first.memory_deaths, 0);
    first.end(WorkerExit::OutOfMemory).await;
    let told = |n: &JobNotice| matches!(n, JobNotice::Retrying { reason, attempt: 2, .. } if reason.contains("out of memory") && reason.contains("planned with less"));
    stage.notices.until("a retry", told).await;
    tokio::time::sleep(Duration::from_secs(610)).await;
    let second = stage.worker(2).await;
    assert_eq!(second.memory_deaths, 1);
    second.end(killed()).await;
    stage.retry(3).await;
    let count = move |store: &Store| store.count_job_events(job.id, plan::OUT_OF_MEMORY);
    assert_eq!(stage.db.call(count).await.unwrap(), 1, "only a lack of memory counts");
}

#[actix::test]
async fn what_a_job_is_expected_to_need_is_told_once_it_is_known_and_kept_with_what_it_took() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    let worker = stage.worker(1).await;
    let planned = Resources { expected_bytes: 1 << 30, ..Resources::default() };
    let ready = Resources { expected_ms: Some(40_000), ..planned };
    let done = Resources { elapsed_ms: Some(38_000), peak_bytes: Some(1 << 29), ..ready };
    worker.say(WorkerEvent::Resources(planned)).await;
    worker.say(WorkerEvent::Note("example 3 repeats example 1".to_owned())).await;
    worker.say(WorkerEvent::Resources(ready)).await;
    worker.say(WorkerEvent::Resources(done)).await;
    worker.finish(2.0, 0.5).await;
    stage.notices.until("success", |n| matches!(n, JobNotice::Succeeded { .. })).await;
    let mut told = stage.notices.take();
    told.retain(|notice| name(notice) == "expected");
    assert_eq!(told, [JobNotice::Expected { job: job.id, ms: 40_000, bytes: 1 << 30 }]);
    let events = stage.db.call(move |store| store.events(job.id)).await.unwrap();
    let of_kind =
        |kind| events.iter().filter(move |e| e.kind == kind).filter_map(|e| e.detail.clone());
    let kept: Vec<Resources> =
        of_kind(plan::RESOURCES).map(|json| serde_json::from_str(&json).unwrap()).collect();
    assert_eq!(kept, [planned, ready, done]);
    assert_eq!(of_kind(plan::NOTE).collect::<Vec<_>>(), ["example 3 repeats example 1"]);
}

#[actix::test]
async fn what_the_job_itself_decides_is_not_tried_again() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    stage.worker(1).await.end(WorkerExit::Failed("the loss became NaN".to_owned())).await;
    let failed = |n: &JobNotice| matches!(n, JobNotice::Failed { attempts: 1, .. });
    stage.notices.until("failure", failed).await;
    assert_eq!(stage.job(job.id).await.error.as_deref(), Some("the loss became NaN"));
}

#[actix::test]
async fn a_cancelled_job_stops_its_worker_and_gives_its_examples_back() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    let worker = stage.worker(1).await;
    stage.actor.send(CancelJob { id: job.id }).await.unwrap().unwrap();
    stage.notices.until("the end", |n| matches!(n, JobNotice::Cancelled { .. })).await;
    assert_eq!(worker.asked.lock().unwrap()[0], "cancel");
    assert_eq!(stage.job(job.id).await.state, JobState::Cancelled);
    let again = stage.actor.send(CancelJob { id: job.id }).await.unwrap();
    assert!(matches!(again, Err(ActorError::Refused(_))));
}

#[actix::test]
async fn a_job_cancelled_while_it_is_measured_publishes_nothing() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    let worker = stage.worker(1).await;
    worker.say(WorkerEvent::Evaluating).await;
    stage.notices.until("evaluation", |n| matches!(n, JobNotice::Evaluating { .. })).await;
    Store::open(&stage.home).unwrap().request_cancel(job.id).unwrap();
    worker.finish(2.0, 0.5).await;
    stage.notices.until("the end", |n| matches!(n, JobNotice::Cancelled { .. })).await;
    assert_eq!(stage.job(job.id).await.state, JobState::Cancelled);
    assert!(stage.db.call(|store| store.adapters()).await.unwrap().is_empty());
}

#[actix::test]
async fn another_process_can_cancel_the_running_job() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    stage.worker(1).await;
    let other = Store::open(&stage.home).unwrap();
    other.request_cancel(job.id).unwrap();
    stage.notices.until("the end", |n| matches!(n, JobNotice::Cancelled { .. })).await;
}

#[actix::test]
async fn a_parked_job_is_left_for_the_next_start_without_costing_an_attempt() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    stage.worker(1).await;
    stage.actor.send(ParkTraining).await.unwrap();
    assert!(stage.notices.any(|n| matches!(n, JobNotice::Parked { .. })));
    let row = stage.job(job.id).await;
    assert_eq!((row.state, row.attempts), (JobState::Queued, 0));
    assert_eq!(stage.enqueue().await, Err(ActorError::Closing));
    assert_eq!(stage.actor.send(WaitForJobs).await.unwrap(), Err(ActorError::Closing));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(stage.started(), 1, "nothing is claimed any more");
}

#[actix::test]
async fn thresholds_reached_while_a_job_runs_make_one_follow_up_job() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    stage.threshold().await;
    let first = stage.worker(1).await;
    stage.marks(&["rivers", "copper"]).await;
    for _ in 0..3 {
        stage.threshold().await;
    }
    let waited = stage.actor.send(WaitForJobs);
    first.finish(2.0, 0.5).await;
    let second = stage.worker(2).await;
    assert_eq!(second.examples, 2);
    second.finish(2.0, 0.5).await;
    assert_eq!(waited.await.unwrap(), Ok(2));
    assert_eq!(stage.started(), 2);
    let automatic = |n: &&JobNotice| matches!(n, JobNotice::Queued { automatic: true, .. });
    assert_eq!(stage.notices.take().iter().filter(automatic).count(), 2);
}

#[actix::test]
async fn waiting_with_nothing_to_wait_for_answers_at_once() {
    let stage = stage();
    assert_eq!(stage.actor.send(WaitForJobs).await.unwrap(), Ok(0));
}

#[actix::test]
async fn a_threshold_reported_just_before_is_waited_for() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let domain = "general".to_owned();
    stage.actor.do_send(ThresholdReached { domain, threshold: 1 });
    let waited = stage.actor.send(WaitForJobs);
    let finish = async { stage.worker(1).await.finish(2.0, 0.5).await };
    let (waited, ()) = tokio::join!(waited, finish);
    assert_eq!(waited.unwrap(), Ok(1));
}

#[actix::test]
async fn nothing_to_train_and_a_full_queue_are_refused() {
    let stage = stage_of(false, |config| config.queue.max_queued = 1);
    let nothing = stage.enqueue().await;
    assert!(matches!(nothing, Err(ActorError::NothingToTrain(_))), "{nothing:?}");
    stage.marks(&["bees"]).await;
    stage.enqueue().await.unwrap();
    stage.marks(&["rivers"]).await;
    let full = stage.enqueue().await;
    assert!(matches!(full, Err(ActorError::Busy { limit: 1, .. })), "{full:?}");
    stage.threshold().await;
    assert_eq!(stage.actor.send(ListJobs { limit: 9 }).await.unwrap().unwrap().len(), 1);
}

#[actix::test]
async fn a_job_left_running_by_a_dead_process_goes_on() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    stage.worker(1).await;
    // The actor dies as a panic would make it die; its runner goes with it.
    let (home, db) = (stage.home.clone(), stage.db.clone());
    assert_eq!(db.call(move |store| store.job(job.id)).await.unwrap().state, JobState::Running);
    drop(stage.actor);
    let orphans = Store::open(&home).unwrap().requeue_orphans(3).unwrap();
    assert_eq!(orphans.requeued, [job.id]);
}

#[actix::test]
async fn an_adapter_that_cannot_be_published_fails_the_job() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    let worker = stage.worker(1).await;
    // The probe behind the registry's port dies of it, as an actor may.
    let taken = stage.home.outcome(job.id);
    fs_err::create_dir_all(taken.parent().unwrap()).unwrap();
    fs_err::write(&taken, "a file where a directory should be").unwrap();
    worker.finish(2.0, 0.5).await;
    stage.notices.until("failure", |n| matches!(n, JobNotice::Failed { .. })).await;
    assert_eq!(stage.job(job.id).await.state, JobState::Failed);
}
