//! Tests of the store from inside the crate: only here a promotion can be made without a gate.

mod adapters;
mod bases;
mod crash_points;
mod ends;
mod feedback;
mod jobs;
mod lineage;
mod migrations;
mod queue_model;
mod reconcile;
mod registry_model;
mod retention;
mod secrets;
mod sequences;
mod sweeps;

use std::path::PathBuf;

use super::*;
use crate::domain::{AdapterId, DEFAULT_DOMAIN, Mark, Message};
use crate::eval::Promotion;

/// The base model of most tests.
const BASE_HASH: &str = "5f3c0a1b2d4e6f708192a3b4c5d6e7f8";

/// A data directory of its own, with its database.
struct Fixture {
    store: Store,
    home: Home,
    _directory: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let home = Home::open_or_create(directory.path().join("home")).unwrap();
    let store = Store::open(&home).unwrap();
    Fixture { store, home, _directory: directory }
}

fn mark(kind: Mark, number: usize) -> NewFeedback {
    let weight = match kind {
        Mark::Good => 1.0,
        Mark::Medium | Mark::Fix => 3.0,
        Mark::Critical => 10.0,
    };
    NewFeedback {
        messages: vec![Message::user(format!("question number{number}"))],
        response: format!("answer number{number}"),
        mark: kind,
        weight,
        note: None,
        fix: (kind == Mark::Fix).then(|| format!("better number{number}")),
        domain: DEFAULT_DOMAIN.to_owned(),
        adapter: None,
        base: None,
    }
}

/// A mark that says the same as every other of its kind.
fn alike(number: usize) -> NewFeedback {
    NewFeedback {
        messages: vec![Message::user("What is the build server called?")],
        fix: Some("The build server is called Kestrel.".to_owned()),
        ..mark(Mark::Fix, number)
    }
}

fn job() -> NewJob {
    NewJob {
        name: None,
        domain: DEFAULT_DOMAIN.to_owned(),
        from: StartFrom::Continue,
        priority: 0,
        params: serde_json::json!({"rank": 16}),
        replay_limit: 8,
        only: None,
        base: None,
        max_queued: 100,
    }
}

fn id(text: &str) -> AdapterId {
    text.parse().unwrap()
}

impl Fixture {
    /// Adds marks of which no two are similar.
    fn add(&self, count: usize) -> Vec<i64> {
        let before = self.store.list_feedback(&FeedbackFilter::default()).unwrap().len();
        let add = |n| self.store.add_feedback(&mark(Mark::Fix, n)).unwrap().id;
        (before..before + count).map(add).collect()
    }

    fn ids(&self, job: i64, role: ExampleRole) -> Vec<i64> {
        self.store.job_examples(job, role).unwrap().into_iter().map(|e| e.id).collect()
    }

    /// Enqueues a job and takes it as far as the gate.
    fn measured_job(&self, new: &NewJob) -> JobRow {
        let queued = self.store.enqueue_job(new).unwrap();
        let running = self.store.claim_next().unwrap().unwrap();
        assert_eq!(running.id, queued.id);
        self.store.set_evaluating(running.id).unwrap()
    }

    /// Writes an adapter's files where a worker leaves them.
    fn outcome(&self, job: i64) -> PathBuf {
        let directory = self.home.checkpoint(job).join("out");
        write_adapter(&directory);
        directory
    }

    fn new_adapter(&self, job: &JobRow) -> NewAdapter {
        NewAdapter {
            id: job.name.clone(),
            domain: job.domain.clone(),
            base: "tiny".to_owned(),
            base_hash: BASE_HASH.to_owned(),
            rank: 16,
            target_modules: vec!["q_proj".to_owned()],
            examples: job.examples,
            dir: self.outcome(job.id),
        }
    }

    /// Lets a measured job pass the gate.
    fn succeed(&self, job: &JobRow) -> AdapterRow {
        let adapter = self.new_adapter(job);
        let promotion = Promotion::for_tests();
        self.store.finish_succeeded(job.id, &adapter, &metrics(), &promotion).unwrap()
    }

    /// Trains an adapter with a name on new marks, from the one that is live.
    fn train(&self, name: &str) -> AdapterRow {
        self.add(1);
        let job = self.measured_job(&NewJob { name: Some(id(name)), ..job() });
        let parent = self.live();
        self.store.set_job_parent(job.id, parent.as_ref()).unwrap();
        self.succeed(&job)
    }

    fn live(&self) -> Option<AdapterId> {
        self.store.live(BASE_HASH, DEFAULT_DOMAIN).unwrap().map(|row| row.id)
    }
}

fn write_adapter(directory: &std::path::Path) {
    std::fs::create_dir_all(directory).unwrap();
    for name in ["adapter_model.safetensors", "adapter_config.json", "training.json"] {
        std::fs::write(directory.join(name), name).unwrap();
    }
}

fn metrics() -> JobMetrics {
    JobMetrics {
        steps: 30,
        loss: Some(0.5),
        heldout_before: Some(2.0),
        heldout_after: Some(1.5),
        gate: serde_json::json!({"kl": 0.01}),
    }
}
