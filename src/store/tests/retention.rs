//! What is removed of the past, and what never is.

use super::*;
use crate::domain::CURVE_FILE;

const KEEP_ALL: Keep = Keep { jobs: 0, adapters: 0 };

/// Leaves a loss curve of one step where a worker would.
fn leave_curve(f: &Fixture, job: i64) {
    let directory = f.home.checkpoint(job);
    std::fs::create_dir_all(&directory).unwrap();
    let line = "{\"step\":1,\"loss\":2.0,\"learning_rate\":0.1}\n";
    std::fs::write(directory.join(CURVE_FILE), line).unwrap();
}

#[test]
fn old_adapters_go_but_never_a_live_one_a_parent_or_one_without_files() {
    let f = fixture();
    for name in ["a", "b", "c"] {
        f.train(name);
    }
    f.store.rollback(BASE_HASH, DEFAULT_DOMAIN).unwrap();
    f.train("d");
    assert_eq!(f.store.adapter(&id("d")).unwrap().parent, Some(id("b")));
    assert_eq!(f.store.prune(&Keep { jobs: 0, adapters: 2 }).unwrap().adapters, []);
    let pruned = f.store.prune(&Keep { jobs: 0, adapters: 1 }).unwrap();
    assert_eq!(pruned.adapters, [id("c")], "the only one that nothing needs");
    assert!(!f.home.adapter(&id("c")).exists());
    for (name, live) in [("a", false), ("b", false), ("d", true)] {
        assert_eq!(f.store.adapter(&id(name)).unwrap().live, live, "{name}");
        assert!(f.home.adapter(&id(name)).exists(), "{name}");
    }

    f.store.unload(&id("d")).unwrap();
    f.train("e");
    std::fs::remove_dir_all(f.home.adapter(&id("d"))).unwrap();
    f.store.reconcile().unwrap();
    assert_eq!(f.store.prune(&Keep { jobs: 0, adapters: 1 }).unwrap().adapters, []);
    assert_eq!(f.store.adapter(&id("d")).unwrap().state, AdapterState::Quarantined);
}

#[test]
fn curves_and_notes_of_old_jobs_go_and_what_they_learned_stays_learned() {
    let f = fixture();
    let mut jobs = Vec::new();
    for name in ["a", "b"] {
        f.train(name);
        let job = f.store.jobs().unwrap().last().unwrap().id;
        leave_curve(&f, job);
        f.store.keep_curve(job).unwrap();
        f.store.note_job(job, "note", "a line").unwrap();
        jobs.push(job);
    }
    let counts =
        |job| (f.store.curve(job).unwrap().len(), f.store.count_job_events(job, "note").unwrap());
    f.home.remove_checkpoint(jobs[0]).unwrap();
    f.home.remove_checkpoint(jobs[1]).unwrap();
    assert_eq!(f.store.prune(&KEEP_ALL).unwrap(), Pruned::default());
    let pruned = f.store.prune(&Keep { jobs: 1, adapters: 0 }).unwrap();
    assert_eq!(pruned.details, 2);
    assert_eq!((counts(jobs[0]), counts(jobs[1])), ((0, 0), (1, 1)));
    assert_eq!(f.store.job(jobs[0]).unwrap().state, JobState::Succeeded);
    assert_eq!(f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap().examples, 0);
    assert!(!f.store.should_train(DEFAULT_DOMAIN, None, 1).unwrap());
}

#[test]
fn checkpoints_that_a_dead_process_left_go_with_their_job_and_others_stay() {
    let f = fixture();
    f.store.add_feedback(&mark(Mark::Fix, 1)).unwrap();
    let over = f.store.enqueue_job(&job()).unwrap().id;
    f.store.request_cancel(over).unwrap();
    let waits = f.store.enqueue_job(&job()).unwrap().id;
    for job in [over, waits, 77] {
        leave_curve(&f, job);
    }
    std::fs::create_dir(f.home.checkpoints().join("mine")).unwrap();
    let mut pruned = f.store.prune(&KEEP_ALL).unwrap();
    pruned.checkpoints.sort_unstable();
    assert_eq!(pruned.checkpoints, [over, 77]);
    assert!(!f.home.checkpoint(over).exists() && !f.home.checkpoint(77).exists());
    assert!(f.home.checkpoint(waits).exists() && f.home.checkpoints().join("mine").exists());
    assert_eq!(f.store.curve(over).unwrap().len(), 1, "its curve is kept first");
}
