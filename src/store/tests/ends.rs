//! What is left when a job or a process ends, and what names are printed as.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::store::jobs::place;
use crate::store::publish::Published;

#[test]
fn starts_and_states_are_read_and_printed_as_they_are_stored() {
    for start in ["continue", "fresh", "delta"] {
        assert_eq!(start.parse::<StartFrom>().unwrap().to_string(), start);
    }
    let message = "renew".parse::<StartFrom>().unwrap_err();
    assert!(message.contains("use continue, fresh or delta"), "{message}");
    let f = fixture();
    assert_eq!(f.train("a").state.to_string(), "ready");
}

#[test]
fn each_job_draws_its_replayed_marks_in_an_order_of_its_own_without_ties() {
    let order = |job| {
        let mut marks: Vec<i64> = (1..=64).collect();
        marks.sort_by_key(|&mark| place(job, mark));
        marks
    };
    let mut orders = BTreeSet::new();
    for job in 1..=32 {
        let places: BTreeSet<u64> = (1..=64).map(|mark| place(job, mark)).collect();
        assert_eq!(places.len(), 64, "job {job}");
        orders.insert(order(job));
    }
    assert_eq!(orders.len(), 32);
}

#[test]
fn a_published_directory_is_taken_back_to_where_it_was() {
    let f = fixture();
    let from = f.outcome(1);
    let to = f.home.adapter(&id("a"));
    Published::publish(&from, &f.home, &id("a")).unwrap().take_back();
    assert!(from.join("training.json").is_file() && !to.exists());
    // One that was in its place stays there.
    write_adapter(&to);
    Published::publish(&to, &f.home, &id("a")).unwrap().take_back();
    assert!(to.join("training.json").is_file());
}

#[test]
fn the_holder_of_the_queue_leaves_its_job_queued_or_cancelled() {
    let f = fixture();
    f.add(1);
    let failed = f.store.enqueue_job(&job()).unwrap().id;
    f.store.claim_next().unwrap().unwrap();
    f.store.requeue_or_fail(failed, 1, Duration::ZERO, "signal 9").unwrap();
    f.add(1);
    let second = f.store.enqueue_job(&job()).unwrap().id;
    assert_eq!(f.store.release_active().unwrap(), Vec::<i64>::new());
    f.store.claim_next().unwrap().unwrap();
    assert_eq!(f.store.release_active().unwrap(), [second]);
    let left = f.store.job(second).unwrap();
    assert_eq!((left.state, left.attempts, left.error), (JobState::Queued, 0, None));
    f.store.claim_next().unwrap().unwrap();
    f.store.request_cancel(second).unwrap();
    assert_eq!(f.store.release_active().unwrap(), [second]);
    assert_eq!(f.store.job(second).unwrap().state, JobState::Cancelled);
    assert_eq!(f.store.job(failed).unwrap().state, JobState::Failed);
}

#[test]
fn a_job_whose_process_ended_has_no_error_of_its_own() {
    let f = fixture();
    f.add(1);
    f.store.enqueue_job(&job()).unwrap();
    let id = f.store.claim_next().unwrap().unwrap().id;
    assert_eq!(f.store.requeue_orphans(3).unwrap().requeued, [id]);
    let row = f.store.job(id).unwrap();
    assert_eq!((row.state, row.error, row.finished_at), (JobState::Queued, None, None));
}

#[test]
fn a_job_that_could_only_replay_ends_when_its_new_mark_is_forgotten() {
    let f = fixture();
    f.train("a");
    let new = f.add(1)[0];
    let job = f.store.enqueue_job(&job()).unwrap().id;
    assert_eq!(
        (f.ids(job, ExampleRole::New), f.ids(job, ExampleRole::Replay)),
        (vec![new], vec![1])
    );
    f.store.remove_feedback(new).unwrap();
    assert_eq!(f.store.job(job).unwrap().state, JobState::Cancelled);
}

#[test]
fn an_adapter_whose_parent_is_gone_has_none() {
    let f = fixture();
    f.add(1);
    let job = f.measured_job(&job());
    f.store.set_job_parent(job.id, Some(&id("gone"))).unwrap();
    assert_eq!(f.succeed(&job).parent, None);
}

#[test]
fn a_line_goes_through_the_newest_job_of_a_name_and_through_no_other_domain() {
    let f = fixture();
    f.train("a");
    f.store.unload(&id("a")).unwrap();
    f.store.delete_adapter(&id("a")).unwrap();
    f.train("a");
    let marked = NewFeedback { domain: "rust".to_owned(), ..mark(Mark::Fix, 50) };
    let elsewhere = f.store.add_feedback(&marked).unwrap().id;
    let other = NewJob { domain: "rust".to_owned(), name: Some(id("x")), ..job() };
    f.succeed(&f.measured_job(&other));
    let own = f.add(1)[0];
    let job = f.measured_job(&NewJob { name: Some(id("b")), replay_limit: 0, ..job() });
    f.store.set_job_parent(job.id, Some(&id("a"))).unwrap();
    let seen = f.store.seen(&f.succeed(&job).id).unwrap();
    assert_eq!((&seen.learned[..], &seen.inherited[..]), (&[own][..], &[1, 2][..]));
    assert!(!seen.inherited.contains(&elsewhere));
}
