//! What a start finds after the process before it died, at each point where it may.

use super::*;

/// A start after a death: what the holder of the queue does first.
fn restart(f: &Fixture) -> (Store, Reconciled, Orphans) {
    let store = Store::open(&f.home).unwrap();
    let reconciled = store.reconcile().unwrap();
    let orphans = store.requeue_orphans(3).unwrap();
    (store, reconciled, orphans)
}

#[test]
fn dead_while_training_goes_back_to_the_queue() {
    let f = fixture();
    let marks = f.add(2);
    f.store.enqueue_job(&job()).unwrap();
    let job = f.store.claim_next().unwrap().unwrap();
    f.store.set_progress(job.id, &Progress { step: 12, total_steps: 30, loss: Some(1.0) }).unwrap();
    let (store, reconciled, orphans) = restart(&f);
    assert!(reconciled.is_empty());
    assert_eq!(orphans.requeued, [job.id]);
    let again = store.claim_next().unwrap().unwrap();
    assert_eq!((again.id, again.attempts, again.step), (job.id, 2, 12));
    assert_eq!(f.ids(job.id, ExampleRole::New), marks, "the snapshot is the same");
}

#[test]
fn dead_before_the_rename_keeps_the_outcome() {
    let f = fixture();
    f.add(1);
    let job = f.measured_job(&job());
    let adapter = f.new_adapter(&job);
    let (_, reconciled, orphans) = restart(&f);
    assert!(reconciled.is_empty() && adapter.dir.exists());
    assert_eq!(orphans.requeued, [job.id]);
}

#[test]
fn dead_between_rename_and_row_removes_the_directory_and_tries_again() {
    let f = fixture();
    f.add(1);
    let job = f.measured_job(&job());
    let stray = f.home.adapter(&job.name);
    write_adapter(&stray);
    let (store, reconciled, orphans) = restart(&f);
    assert_eq!(reconciled.removed, std::slice::from_ref(&stray));
    assert_eq!(orphans.requeued, [job.id]);
    assert!(!stray.exists());
    store.claim_next().unwrap().unwrap();
    f.succeed(&store.set_evaluating(job.id).unwrap());
    assert_eq!(f.live(), Some(job.name));
}

#[test]
fn dead_after_the_row_has_lost_nothing() {
    let f = fixture();
    let row = f.train("a");
    let (store, reconciled, orphans) = restart(&f);
    assert!(reconciled.is_empty() && orphans == Orphans::default());
    assert_eq!(store.live(BASE_HASH, DEFAULT_DOMAIN).unwrap(), Some(row));
}

#[test]
fn a_job_that_was_to_be_cancelled_is_not_tried_again() {
    let f = fixture();
    f.add(1);
    let job = f.measured_job(&job());
    f.store.request_cancel(job.id).unwrap();
    let (store, _, orphans) = restart(&f);
    assert_eq!((orphans.requeued, orphans.cancelled), (vec![], vec![job.id]));
    assert_eq!(store.job(job.id).unwrap().state, JobState::Cancelled);
}

#[test]
fn a_row_without_files_is_quarantined_and_its_parent_takes_over() {
    let f = fixture();
    f.train("a");
    f.train("b");
    let saved = f.home.root().join("saved");
    std::fs::rename(f.home.adapter(&id("b")), &saved).unwrap();
    let (store, reconciled, _) = restart(&f);
    assert_eq!(reconciled.quarantined, [(id("b"), Some(id("a")))]);
    assert_eq!(f.live(), Some(id("a")));
    let error = store.set_live(&id("b"), BASE_HASH).unwrap_err().to_string();
    assert!(error.contains("quarantined"), "{error}");
    std::fs::rename(&saved, f.home.adapter(&id("b"))).unwrap();
    let (store, reconciled, _) = restart(&f);
    assert_eq!(reconciled.restored, [id("b")]);
    assert!(store.set_live(&id("b"), BASE_HASH).unwrap().live);
}

#[test]
fn a_damaged_adapter_is_set_aside_and_comes_back_with_its_files() {
    let f = fixture();
    ["a", "b", "c"].into_iter().for_each(|name| drop(f.train(name)));
    let SetAside { to, instead } = f.store.quarantine_adapter(&id("c"), "torn").unwrap();
    assert_eq!((instead, f.live()), (Some(id("b")), Some(id("b"))));
    assert!(to.join("training.json").is_file() && !f.home.adapter(&id("c")).exists());
    // One that is not live leaves what answers alone.
    assert_eq!(f.store.quarantine_adapter(&id("a"), "torn").unwrap().instead, None);
    assert_eq!(f.live(), Some(id("b")));
    assert!(restart(&f).1.is_empty(), "known already");
    let error = f.store.set_live(&id("c"), BASE_HASH).unwrap_err().to_string();
    assert!(error.contains("quarantined"), "{error}");
    assert_eq!(f.store.rollback(BASE_HASH, DEFAULT_DOMAIN).unwrap(), None, "not to a damaged one");
    std::fs::rename(&to, f.home.adapter(&id("c"))).unwrap();
    assert_eq!(restart(&f).1.restored, [id("c")]);
    assert!(f.store.quarantine_adapter(&id("nobody"), "torn").is_err());
}

#[test]
fn strangers_among_the_adapters_are_set_aside_and_the_known_stay() {
    let f = fixture();
    f.train("a");
    let strangers = [".tmp-x", "Not An Id", "unknown"].map(|name| f.home.adapters().join(name));
    strangers.iter().for_each(|path| write_adapter(path));
    std::fs::write(f.home.adapters().join("file"), "x").unwrap();
    let (_, reconciled, _) = restart(&f);
    assert!(reconciled.removed.is_empty());
    let mut aside: Vec<_> = reconciled.set_aside.into_iter().map(|(_, to)| to).collect();
    aside.sort_unstable();
    let place = |name: &str| f.home.quarantine().join(name);
    assert_eq!(aside, [".tmp-x", "Not An Id", "file", "unknown"].map(place));
    assert!(place("unknown").join("training.json").is_file(), "nothing is deleted");
    let left: Vec<_> =
        f.home.adapters().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["a"]);
    assert!(restart(&f).1.is_empty());
    write_adapter(&f.home.adapters().join("unknown"));
    assert_eq!(restart(&f).1.set_aside[0].1, place("unknown-2"), "an earlier one stays");
}

#[test]
fn an_adapter_that_cannot_be_moved_changes_nothing() {
    let f = fixture();
    f.add(1);
    let job = f.measured_job(&job());
    let adapter = f.new_adapter(&job);
    std::fs::remove_dir_all(f.home.adapters()).unwrap();
    let promotion = Promotion::for_tests();
    let error = f.store.finish_succeeded(job.id, &adapter, &metrics(), &promotion).unwrap_err();
    assert!(error.to_string().contains("cannot publish the adapter"), "{error}");
    assert!(adapter.dir.exists() && f.store.adapters().unwrap().is_empty());
    assert_eq!(f.store.job(job.id).unwrap().state, JobState::Evaluating);
}
