//! Marks and the buffer they make.

use super::*;

#[test]
fn a_criticised_answer_is_never_a_target() {
    let f = fixture();
    for kind in [Mark::Medium, Mark::Critical] {
        let new = NewFeedback { note: Some("be shorter".to_owned()), ..mark(kind, 1) };
        let row = f.store.add_feedback(&new).unwrap();
        assert_eq!(row.target(), None);
        assert!(row.waits_for_correction());
        let edit = FeedbackEdit { fix: Some("short".to_owned()), ..FeedbackEdit::default() };
        let row = f.store.update_feedback(row.id, &edit).unwrap();
        assert_eq!((row.target(), row.weight), (Some("short"), new.weight));
    }
    let good = f.store.add_feedback(&mark(Mark::Good, 1)).unwrap();
    assert_eq!(good.target(), Some("answer number1"));
}

#[test]
fn the_buffer_counts_examples_and_weights() {
    let f = fixture();
    assert_eq!(
        f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap().to_string(),
        "Training buffer: 0 examples (0.0 weighted)"
    );
    let kinds = [
        Mark::Critical,
        Mark::Critical,
        Mark::Critical,
        Mark::Medium,
        Mark::Medium,
        Mark::Medium,
        Mark::Fix,
    ];
    for (n, kind) in kinds.into_iter().enumerate() {
        f.store.add_feedback(&mark(kind, n)).unwrap();
    }
    let status = f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap();
    assert_eq!(status.to_string(), "Training buffer: 7 examples (42.0 weighted)");
    assert_eq!((status.trainable_unconsumed, status.waiting_for_correction), (1, 6));
    let other = f.store.buffer_status("rust", None).unwrap();
    assert_eq!(other, BufferStatus::default());
    let one = BufferStatus { examples: 1, weighted: 2.5, ..BufferStatus::default() };
    assert_eq!(one.to_string(), "Training buffer: 1 example (2.5 weighted)");
}

#[test]
fn a_full_buffer_archives_what_was_learned_and_drops_no_mark() {
    let f = fixture();
    let learned = f.add(3);
    let job = f.measured_job(&job());
    f.succeed(&job);
    let waiting = f.add(4);
    assert_eq!(f.store.archive_over(100).unwrap(), 0);
    assert_eq!(f.store.archive_over(5).unwrap(), 2, "the two oldest learned ones");
    let all = FeedbackFilter { archived: true, ..FeedbackFilter::default() };
    let archived = |rows: Vec<FeedbackRow>| -> Vec<i64> {
        rows.into_iter().filter(|r| r.archived).map(|r| r.id).collect()
    };
    assert_eq!(archived(f.store.list_feedback(&all).unwrap()), learned[..2]);
    assert_eq!(f.store.archive_over(0).unwrap(), 1, "no unconsumed mark goes");
    let left = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    assert_eq!(left.iter().map(|r| r.id).collect::<Vec<_>>(), waiting);
}

#[test]
fn a_mark_out_of_range_is_refused_with_its_reason() {
    let f = fixture();
    let cases = [
        (NewFeedback { weight: 0.0, ..mark(Mark::Good, 1) }, "weight 0"),
        (NewFeedback { weight: f64::INFINITY, ..mark(Mark::Good, 1) }, "weight inf"),
        (
            NewFeedback { messages: Vec::new(), ..mark(Mark::Good, 1) },
            "must end with one of the user",
        ),
        (NewFeedback { fix: Some(" ".to_owned()), ..mark(Mark::Fix, 1) }, "better answer"),
        (NewFeedback { domain: "a b".to_owned(), ..mark(Mark::Good, 1) }, "domain"),
    ];
    for (new, reason) in cases {
        let error = f.store.add_feedback(&new).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(f.store.add_all_feedback(&[mark(Mark::Good, 2), new]).is_err());
    }
    let rows = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    assert!(rows.is_empty(), "all or none of an import is stored");
}

#[test]
fn a_mark_in_a_job_is_not_changed_behind_its_back() {
    let f = fixture();
    let id = f.add(1)[0];
    let job = f.measured_job(&job());
    let edit = FeedbackEdit { fix: Some("other".to_owned()), ..FeedbackEdit::default() };
    assert!(matches!(f.store.update_feedback(id, &edit), Err(StoreError::InTraining { .. })));
    assert!(matches!(f.store.undo_feedback(id), Err(StoreError::InTraining { .. })));
    f.succeed(&job);
    assert!(matches!(f.store.update_feedback(id, &edit), Err(StoreError::AlreadyLearned { .. })));
    assert!(matches!(f.store.undo_feedback(id), Err(StoreError::AlreadyLearned { .. })));
}

#[test]
fn undo_takes_a_mark_back_and_its_id_is_not_used_again() {
    let f = fixture();
    let first = f.add(1)[0];
    f.store.undo_feedback(first).unwrap();
    assert!(matches!(f.store.feedback(first), Err(StoreError::UnknownFeedback(_))));
    assert!(f.add(1)[0] > first);
}

#[test]
fn forgetting_tells_who_has_seen_a_mark_and_erases_its_text() {
    let f = fixture();
    let known = f.train("first").id;
    let learned = f.store.list_feedback(&FeedbackFilter::default()).unwrap()[0].id;
    let queued = f.add(2);
    let job = f.store.enqueue_job(&job()).unwrap();
    let forgotten = f.store.remove_feedback(learned).unwrap();
    assert_eq!(forgotten.seen_by, [known]);
    let alone = Forgotten { domain: forgotten.domain.clone(), ..Forgotten::default() };
    assert_eq!(f.store.remove_feedback(queued[0]).unwrap(), alone);
    assert_eq!(f.store.job(job.id).unwrap().examples, 1);
    let last = f.store.remove_feedback(queued[1]).unwrap();
    assert_eq!(last.cancelled_jobs, [job.id], "a job without an example is no job");
    assert!(f.store.list_feedback(&FeedbackFilter::default()).unwrap().is_empty());
    let text: i64 = f
        .store
        .connection
        .query_row("SELECT count(*) FROM feedback WHERE fix LIKE '%number%'", [], |r| r.get(0))
        .unwrap();
    assert_eq!(text, 0);
}

#[test]
fn a_fresh_job_goes_on_with_the_old_examples_that_are_left() {
    let f = fixture();
    for name in ["first", "second", "third"] {
        f.train(name);
    }
    let rows = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    let learned: Vec<i64> = rows.iter().map(|row| row.id).collect();
    f.store.remove_feedback(learned[0]).unwrap();
    let fresh = f.store.enqueue_job(&NewJob { from: StartFrom::Fresh, ..job() }).unwrap();
    assert_eq!(f.ids(fresh.id, ExampleRole::Replay), learned[1..]);
    assert!(f.store.remove_feedback(learned[1]).unwrap().cancelled_jobs.is_empty());
    assert_eq!(f.store.job(fresh.id).unwrap().state, JobState::Queued);
    assert_eq!(f.ids(fresh.id, ExampleRole::Replay), learned[2..]);
    assert_eq!(f.store.remove_feedback(learned[2]).unwrap().cancelled_jobs, [fresh.id]);
}

#[test]
fn an_import_stores_what_it_repeats_and_not_what_was_there_before() {
    let f = fixture();
    let import = |marks: &[NewFeedback]| {
        let done = f.store.import_feedback(marks, None).unwrap();
        (done.ids.len(), done.merged, done.raised)
    };
    let good = || mark(Mark::Good, 1);
    let heavy = || NewFeedback { weight: 2.0, ..good() };
    assert_eq!(import(&[good(), good(), heavy()]), (3, 0, 0), "three marks are three");
    assert_eq!(import(&[good(), good(), heavy()]), (0, 3, 0), "the same file changes nothing");
    assert_eq!(import(&[NewFeedback { weight: 5.0, ..good() }]), (0, 1, 1));
    let rows = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    let weights: Vec<f64> = rows.iter().map(|row| row.weight).collect();
    assert_eq!(weights, [1.0, 1.0, 5.0]);
}

#[test]
fn rows_serialise_as_the_interface_says() {
    let f = fixture();
    let row = serde_json::to_value(f.store.add_feedback(&mark(Mark::Fix, 1)).unwrap()).unwrap();
    assert_eq!(row["messages"][0]["role"], "user");
    assert_eq!(row["mark"], "fix");
    let keys = ["id", "messages", "response", "mark", "weight", "note", "fix", "domain", "adapter"];
    for key in keys.into_iter().chain(["created_at", "consumed_by"]) {
        assert!(row.get(key).is_some(), "{key}");
    }
    f.train("first");
    let job = serde_json::to_value(&f.store.jobs().unwrap()[0]).unwrap();
    let keys = ["id", "name", "state", "attempts", "examples", "step", "total_steps", "loss"];
    let more = ["heldout_before", "heldout_after", "adapter", "error", "created_at", "finished_at"];
    for key in keys.into_iter().chain(more) {
        assert!(job.get(key).is_some(), "{key}");
    }
    let adapter = serde_json::to_value(&f.store.adapters().unwrap()[0]).unwrap();
    let keys = ["id", "domain", "parent", "state", "live", "base", "rank", "target_modules"];
    for key in keys.into_iter().chain(["examples", "gate", "used_in", "created_at", "bytes"]) {
        assert!(adapter.get(key).is_some(), "{key}");
    }
}

#[test]
fn a_revision_is_told_from_a_fix_and_makes_a_pair_with_the_criticised_answer() {
    let f = fixture();
    let add = |kind, number| f.store.add_feedback(&mark(kind, number)).unwrap().id;
    let (revised, fixed) = (add(Mark::Critical, 1), add(Mark::Medium, 2));
    let (good, waiting) = (add(Mark::Good, 3), add(Mark::Critical, 4));
    let row = f.store.set_target(revised, "the model's", true).unwrap();
    assert_eq!((row.target(), row.revised), (Some("the model's"), true));
    assert_eq!(row.rejected(), Some("answer number1"));
    assert!(f.store.set_target(revised, " ", true).is_err());
    assert!(!f.store.set_target(fixed, "the user's", false).unwrap().revised);
    assert_eq!(f.store.feedback(good).unwrap().rejected(), None);
    let waits: Vec<i64> = f.store.waiting_marks().unwrap().iter().map(|row| row.id).collect();
    assert_eq!(waits, [waiting]);
    let edit = FeedbackEdit { fix: Some("the user's".to_owned()), ..FeedbackEdit::default() };
    assert!(!f.store.update_feedback(revised, &edit).unwrap().revised, "it took its place");
    let refused = f.store.set_target(revised, "late", true).unwrap_err().to_string();
    assert!(refused.contains("the user's own better answer"), "{refused}");
    assert_eq!(f.store.feedback(revised).unwrap().target(), Some("the user's"));
    f.store.restore_feedback(revised, &row.state()).unwrap();
    f.store.set_target(revised, "answer number1", true).unwrap();
    assert_eq!(f.store.feedback(revised).unwrap().rejected(), None, "the same is no pair");
    f.store.set_target(revised, "the model's", true).unwrap();

    let job = f.measured_job(&job());
    let pairs = [(revised, "answer number1".to_owned()), (fixed, "answer number2".to_owned())];
    assert_eq!(f.store.rejected_answers(job.id).unwrap(), pairs);
    let late = f.store.set_target(revised, "late", true);
    assert!(matches!(late, Err(StoreError::InTraining { .. })));
    let before = f.store.feedback(revised).unwrap().state();
    assert!(matches!(
        f.store.restore_feedback(revised, &before),
        Err(StoreError::InTraining { .. })
    ));
}

#[test]
fn a_mark_is_brought_back_to_what_it_was() {
    let f = fixture();
    let first = f.store.add_feedback(&mark(Mark::Fix, 1)).unwrap();
    let edit = FeedbackEdit {
        mark: Some(Mark::Critical),
        weight: Some(10.0),
        note: Some(Some("no".to_owned())),
        fix: Some("other".to_owned()),
    };
    assert_ne!(f.store.update_feedback(first.id, &edit).unwrap().state(), first.state());
    assert_eq!(f.store.restore_feedback(first.id, &first.state()).unwrap(), first);
}
