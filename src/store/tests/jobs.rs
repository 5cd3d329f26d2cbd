//! The queue, and what becomes of a job's examples.

use std::time::Duration;

use super::*;

fn states(f: &Fixture, job: i64) -> Vec<String> {
    f.store
        .events(job)
        .unwrap()
        .into_iter()
        .filter(|e| e.adapter.is_none())
        .map(|e| e.kind)
        .collect()
}

#[test]
fn a_job_learns_a_snapshot_of_what_there_was() {
    let f = fixture();
    let before = f.add(3);
    let first = f.store.enqueue_job(&job()).unwrap();
    let after = f.add(2);
    assert_eq!(f.ids(first.id, ExampleRole::New), before);
    assert_eq!(first.examples, 3);
    let second = f.store.enqueue_job(&job()).unwrap();
    assert_eq!(f.ids(second.id, ExampleRole::New), after, "what waits in a job is not taken twice");
    let status = f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap();
    assert_eq!((status.examples, status.in_training), (0, 5));
}

#[test]
fn examples_are_consumed_when_a_job_succeeds() {
    let f = fixture();
    let ids = f.add(3);
    let job = f.measured_job(&job());
    f.succeed(&job);
    for id in ids {
        assert_eq!(f.store.feedback(id).unwrap().consumed_by, Some(job.id));
    }
    let done = f.store.job(job.id).unwrap();
    assert_eq!((done.state, done.adapter), (JobState::Succeeded, Some(job.name)));
    assert_eq!(
        (done.loss, done.heldout_before, done.heldout_after),
        (Some(0.5), Some(2.0), Some(1.5))
    );
    assert!(done.finished_at.is_some());
    assert_eq!(states(&f, job.id), ["queued", "running", "evaluating", "succeeded"]);
    assert_eq!(f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap(), BufferStatus::default());
}

#[test]
fn examples_return_when_a_job_fails_is_rejected_or_cancelled() {
    let ends: [fn(&Fixture, i64); 3] = [
        |f, job| drop(f.store.finish_failed(job, "out of memory").unwrap()),
        |f, job| drop(f.store.finish_rejected(job, &["worse".to_owned()], &metrics()).unwrap()),
        |f, job| drop(f.store.finish_cancelled(job).unwrap()),
    ];
    for end in ends {
        let f = fixture();
        f.add(3);
        let job = f.measured_job(&job());
        end(&f, job.id);
        assert_eq!(f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap().examples, 3);
        assert!(f.store.job(job.id).unwrap().error.is_some());
        assert!(f.store.adapters().unwrap().is_empty());
    }
}

#[test]
fn learned_examples_are_replayed_and_a_fresh_job_takes_all() {
    let f = fixture();
    let old = f.add(6);
    let first = f.measured_job(&job());
    f.succeed(&first);
    let new = f.add(2);
    let next = f.store.enqueue_job(&NewJob { replay_limit: 4, ..job() }).unwrap();
    assert_eq!(f.ids(next.id, ExampleRole::New), new);
    let replay = f.ids(next.id, ExampleRole::Replay);
    assert!(replay.len() == 4 && replay.iter().all(|id| old.contains(id)), "{replay:?}");
    f.store.request_cancel(next.id).unwrap();
    let fresh = NewJob { from: StartFrom::Fresh, replay_limit: 0, ..job() };
    let fresh = f.store.enqueue_job(&fresh).unwrap();
    assert_eq!(f.ids(fresh.id, ExampleRole::Replay), old);
}

#[test]
fn what_an_open_job_learns_anew_is_not_learned_twice_with_the_same_settings() {
    let f = fixture();
    f.add(3);
    f.succeed(&f.measured_job(&job()));
    let fresh = || NewJob { from: StartFrom::Fresh, ..job() };
    let first = f.store.enqueue_job(&fresh()).unwrap();
    let refused = f.store.enqueue_job(&fresh());
    assert!(matches!(refused, Err(StoreError::SameJob(id)) if id == first.id), "{refused:?}");
    assert_eq!(f.store.jobs().unwrap().len(), 2, "what was refused leaves nothing");
    let other = NewJob { params: serde_json::json!({"rank": 3}), ..fresh() };
    f.store.enqueue_job(&other).unwrap();
    f.add(1);
    let more = f.store.enqueue_job(&fresh()).unwrap();
    assert_eq!((more.examples, f.ids(more.id, ExampleRole::Replay).len()), (1, 3));
    // It is over: the same may be learned again.
    f.store.request_cancel(first.id).unwrap();
    f.store.enqueue_job(&fresh()).unwrap();
}

#[test]
fn held_out_marks_are_measured_and_not_learned() {
    let f = fixture();
    for n in 0..40 {
        f.store.add_feedback(&alike(n)).unwrap();
    }
    let status = f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap();
    assert!(status.heldout > 0 && status.trainable_unconsumed + status.heldout == 40);
    let listed = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    let held: Vec<i64> = listed.iter().filter(|r| r.heldout).map(|r| r.id).collect();
    let job = f.measured_job(&job());
    assert_eq!(f.ids(job.id, ExampleRole::Heldout), held);
    assert!(f.ids(job.id, ExampleRole::New).iter().all(|id| !held.contains(id)));
    let adapter = f.succeed(&job);
    let seen = f.store.seen(&adapter.id).unwrap();
    assert_eq!((&seen.heldout, &seen.replayed[..]), (&held, &[][..]));
    let status = f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap();
    assert_eq!((status.examples, status.heldout), (held.len(), held.len()), "still held out");
    let error = f.store.enqueue_job(&super::job()).unwrap_err().to_string();
    assert!(error.contains(&format!("{} held out", held.len())), "{error}");
}

#[test]
fn ten_alike_marks_start_the_first_job() {
    let f = fixture();
    for n in 0..10 {
        assert!(!f.store.should_train(DEFAULT_DOMAIN, None, 10).unwrap());
        f.store.add_feedback(&alike(n)).unwrap();
    }
    let job = f.store.enqueue_if_due(&job(), 10).unwrap().unwrap();
    assert_eq!(job.examples, 10);
    assert_eq!(f.store.enqueue_if_due(&super::job(), 10).unwrap(), None);
}

#[test]
fn after_a_rejected_job_the_next_waits_for_new_marks() {
    let f = fixture();
    f.add(4);
    let job = f.measured_job(&job());
    f.add(1);
    f.store.finish_rejected(job.id, &["worse".to_owned()], &metrics()).unwrap();
    assert!(!f.store.should_train(DEFAULT_DOMAIN, None, 4).unwrap(), "one new mark of four");
    f.add(2);
    assert!(!f.store.should_train(DEFAULT_DOMAIN, None, 4).unwrap());
    f.add(1);
    assert!(f.store.should_train(DEFAULT_DOMAIN, None, 4).unwrap());
    let next = f.store.enqueue_if_due(&super::job(), 4).unwrap().unwrap();
    assert_eq!(next.examples, 8, "the old ones are learned too");
}

#[test]
fn only_a_job_that_runs_can_die() {
    let f = fixture();
    f.add(1);
    let id = f.store.enqueue_job(&job()).unwrap().id;
    f.store.claim_next().unwrap();
    f.store.requeue_or_fail(id, 3, Duration::ZERO, "signal 9").unwrap();
    // A death that is reported twice must not fail a job that waits.
    let again = f.store.requeue_or_fail(id, 1, Duration::ZERO, "signal 9");
    assert!(matches!(again, Err(StoreError::IllegalTransition { .. })), "{again:?}");
    assert_eq!(f.store.job(id).unwrap().state, JobState::Queued);
}

#[test]
fn a_failed_job_is_not_tried_for_ever() {
    let f = fixture();
    f.add(3);
    let job = f.measured_job(&job());
    f.store.finish_failed(job.id, "no memory").unwrap();
    assert!(!f.store.should_train(DEFAULT_DOMAIN, None, 3).unwrap());
    f.add(1);
    assert!(f.store.should_train(DEFAULT_DOMAIN, None, 3).unwrap());
    assert!(f.store.enqueue_job(&super::job()).is_ok(), "who asks gets it at once");
}

#[test]
fn a_job_with_nothing_to_learn_is_refused_with_the_reason() {
    let f = fixture();
    f.store.add_feedback(&mark(Mark::Critical, 1)).unwrap();
    let error = f.store.enqueue_job(&job()).unwrap_err().to_string();
    assert!(error.contains("1 waiting for a correction") && error.contains("/fix"), "{error}");
    assert!(f.store.jobs().unwrap().is_empty());
}

#[test]
fn one_job_is_active() {
    let f = fixture();
    f.add(1);
    let first = f.measured_job(&job());
    f.add(1);
    let second = f.store.enqueue_job(&job()).unwrap();
    assert_eq!(f.store.claim_next().unwrap(), None);
    let forced =
        f.store.connection.execute("UPDATE jobs SET state = 'running' WHERE id = ?1", [second.id]);
    assert!(forced.unwrap_err().to_string().contains("UNIQUE"), "the schema refuses a second");
    f.store.finish_failed(first.id, "x").unwrap();
    assert_eq!(f.store.claim_next().unwrap().map(|j| j.id), Some(second.id));
}

#[test]
fn urgent_jobs_go_first_and_equal_ones_in_order() {
    let f = fixture();
    let ids: Vec<i64> = [0, 5, 0, 5]
        .into_iter()
        .map(|priority| {
            f.add(1);
            f.store.enqueue_job(&NewJob { priority, ..job() }).unwrap().id
        })
        .collect();
    let mut order = Vec::new();
    while let Some(job) = f.store.claim_next().unwrap() {
        order.push(job.id);
        f.store.finish_failed(job.id, "x").unwrap();
    }
    assert_eq!(order, [ids[1], ids[3], ids[0], ids[2]]);
}

#[test]
fn a_dead_worker_is_retried_with_back_off_until_it_is_enough() {
    let f = fixture();
    f.add(1);
    let job = f.store.enqueue_job(&job()).unwrap();
    f.store.claim_next().unwrap().unwrap();
    let back = f.store.requeue_or_fail(job.id, 2, Duration::from_secs(60), "signal 9").unwrap();
    assert_eq!((back.state, back.attempts), (JobState::Queued, 1));
    assert_eq!(back.error.as_deref(), Some("signal 9"));
    assert_eq!(f.store.claim_next().unwrap(), None, "not before its time");
    let due = f.store.next_due().unwrap().unwrap();
    assert_eq!(back.not_before, Some(due));
    let again = f.store.claim_next_at(due).unwrap().unwrap();
    assert_eq!((again.attempts, again.not_before), (2, None));
    let over = f.store.requeue_or_fail(job.id, 2, Duration::ZERO, "signal 9").unwrap();
    assert_eq!((over.state, over.error.as_deref()), (JobState::Failed, Some("signal 9")));
    assert_eq!(f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap().examples, 1);
}

#[test]
fn a_job_left_at_shutdown_is_no_failed_attempt() {
    let f = fixture();
    f.add(1);
    f.store.enqueue_job(&job()).unwrap();
    let job = f.store.claim_next().unwrap().unwrap();
    f.store.set_progress(job.id, &Progress { step: 7, total_steps: 30, loss: Some(1.5) }).unwrap();
    let left = f.store.release_job(job.id).unwrap();
    assert_eq!((left.state, left.attempts, left.step), (JobState::Queued, 0, 7));
    assert_eq!(f.store.claim_next().unwrap().unwrap().attempts, 1);
}

#[test]
fn a_job_left_at_its_second_attempt_keeps_the_first_and_other_jobs_theirs() {
    let f = fixture();
    let mut ids = Vec::new();
    for priority in [0, 1] {
        f.add(1);
        let id = f.store.enqueue_job(&NewJob { priority, ..job() }).unwrap().id;
        f.store.claim_next().unwrap();
        f.store.requeue_or_fail(id, 3, Duration::ZERO, "signal 9").unwrap();
        ids.push(id);
    }
    assert_eq!(f.store.claim_next().unwrap().map(|row| row.id), Some(ids[1]));
    assert_eq!(f.store.release_job(ids[1]).unwrap().attempts, 1);
    assert_eq!(f.store.job(ids[0]).unwrap().attempts, 1);
}

#[test]
fn a_waiting_job_counts_what_is_left_when_a_mark_of_it_is_forgotten() {
    let f = fixture();
    let ids = f.add(3);
    let first = f.store.enqueue_job(&job()).unwrap().id;
    f.add(1);
    let other = f.store.enqueue_job(&job()).unwrap().id;
    f.store.remove_feedback(ids[0]).unwrap();
    assert_eq!(f.ids(first, ExampleRole::New), ids[1..]);
    assert_eq!(f.store.job(first).unwrap().examples, 2);
    assert_eq!(f.store.job(other).unwrap().examples, 1);
}

#[test]
fn the_queue_is_due_when_its_first_job_is() {
    let f = fixture();
    f.add(1);
    let late = f.store.enqueue_job(&job()).unwrap().id;
    f.store.claim_next().unwrap();
    let late = f.store.requeue_or_fail(late, 3, Duration::from_secs(60), "signal 9").unwrap();
    assert_eq!(f.store.next_due().unwrap(), late.not_before);
    f.add(1);
    let now = f.store.enqueue_job(&job()).unwrap();
    assert_eq!(f.store.next_due().unwrap(), Some(now.created_at));
}

#[test]
fn cancelling_reaches_a_running_job_from_another_process() {
    let f = fixture();
    f.add(1);
    let running = f.measured_job(&job());
    f.add(1);
    let queued = f.store.enqueue_job(&job()).unwrap();
    let elsewhere = Store::open(&f.home).unwrap();
    assert_eq!(elsewhere.request_cancel(queued.id).unwrap().state, JobState::Cancelled);
    assert_eq!(elsewhere.request_cancel(running.id).unwrap().state, JobState::Evaluating);
    let progress = Progress { step: 1, total_steps: 2, loss: None };
    assert!(f.store.set_progress(running.id, &progress).unwrap());
    f.store.finish_cancelled(running.id).unwrap();
    let error = elsewhere.request_cancel(running.id).unwrap_err().to_string();
    assert!(
        error.contains("has ended already (cancelled): there is nothing left to cancel"),
        "{error}"
    );
}

#[test]
fn a_name_is_used_once() {
    let f = fixture();
    f.train("style");
    f.add(1);
    let taken = NewJob { name: Some(id("style")), ..job() };
    assert!(matches!(f.store.enqueue_job(&taken), Err(StoreError::NameTaken(_))));
    let made = f.store.enqueue_job(&job()).unwrap().name;
    assert!(made.as_str().starts_with("lora_2") && made.as_str().len() == 25, "{made}");
}

#[test]
fn the_name_of_a_job_is_free_when_it_failed_and_not_before() {
    let f = fixture();
    f.add(2);
    let named = NewJob { name: Some(id("style")), ..job() };
    let first = f.store.enqueue_job(&named).unwrap().id;
    f.add(1);
    let taken = || matches!(f.store.enqueue_job(&named), Err(StoreError::NameTaken(_)));
    assert!(taken(), "queued");
    f.store.claim_next().unwrap();
    assert!(taken(), "running");
    f.store.set_evaluating(first).unwrap();
    assert!(taken(), "evaluating");
    f.store.finish_failed(first, "x").unwrap();
    assert_eq!(f.store.enqueue_job(&named).unwrap().name, id("style"));
}

#[test]
fn a_job_can_be_limited_to_given_marks() {
    let f = fixture();
    let ids = f.add(4);
    let only = Some(vec![ids[1], ids[2]]);
    let job = f.store.enqueue_job(&NewJob { only, ..job() }).unwrap();
    assert_eq!(f.ids(job.id, ExampleRole::New), ids[1..3]);
}

#[test]
fn no_example_is_learned_twice() {
    let f = fixture();
    let id = f.add(1)[0];
    let first = f.measured_job(&job());
    // What no method does: the same example, new in a second job.
    f.add(1);
    let second = f.store.enqueue_job(&job()).unwrap();
    f.store
        .connection
        .execute("INSERT INTO job_feedback VALUES (?1, ?2, 'new', 'x', 1.0)", (second.id, id))
        .unwrap();
    f.succeed(&first);
    let second = f.store.claim_next().unwrap().unwrap();
    f.store.set_evaluating(second.id).unwrap();
    let adapter = f.new_adapter(&second);
    let promotion = Promotion::for_tests();
    let error = f.store.finish_succeeded(second.id, &adapter, &metrics(), &promotion).unwrap_err();
    assert!(
        matches!(error, StoreError::AlreadyLearned { feedback, job } if (feedback, job) == (id, first.id))
    );
    let forced = f
        .store
        .connection
        .execute("UPDATE jobs SET state = 'succeeded' WHERE id = ?1", [second.id]);
    assert!(forced.unwrap_err().to_string().contains("already learned"), "the schema refuses too");
    assert!(adapter.dir.exists(), "a refused adapter stays where it was");
}

#[test]
fn a_full_queue_takes_no_job_however_it_comes() {
    let f = fixture();
    f.add(1);
    let one = NewJob { max_queued: 1, ..job() };
    f.store.enqueue_job(&one).unwrap();
    f.add(1);
    assert!(matches!(f.store.enqueue_job(&one), Err(StoreError::QueueFull { limit: 1 })));
    assert!(matches!(f.store.enqueue_if_due(&one, 1), Err(StoreError::QueueFull { limit: 1 })));
    f.store.claim_next().unwrap();
    f.store.enqueue_job(&one).unwrap();
}

#[test]
fn a_job_that_takes_the_machine_down_each_time_fails_in_the_end() {
    let f = fixture();
    f.add(1);
    f.store.enqueue_job(&job()).unwrap();
    let job = f.store.claim_next().unwrap().unwrap().id;
    assert_eq!(f.store.requeue_orphans(2).unwrap().requeued, [job]);
    f.store.claim_next().unwrap();
    let orphans = f.store.requeue_orphans(2).unwrap();
    assert_eq!((orphans.failed.len(), orphans.requeued.len()), (1, 0));
    let row = f.store.job(job).unwrap();
    assert_eq!(row.state, JobState::Failed);
    assert!(row.error.unwrap().contains("attempt 2 of 2"));
    assert_eq!(f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap().examples, 1);
}

#[test]
fn a_job_that_was_asked_to_stop_publishes_nothing() {
    let f = fixture();
    f.add(1);
    let job = f.measured_job(&job());
    f.store.request_cancel(job.id).unwrap();
    let adapter = f.new_adapter(&job);
    let refused = f.store.finish_succeeded(job.id, &adapter, &metrics(), &Promotion::for_tests());
    assert!(matches!(refused, Err(StoreError::CancelAsked(id)) if id == job.id));
    assert!(f.store.adapters().unwrap().is_empty());
}
