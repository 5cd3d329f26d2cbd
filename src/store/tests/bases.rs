//! Marks and jobs of several models in one domain.

use super::*;

const OURS: &str = "b";
const THEIRS: &str = "c";

fn mark_of(base: Option<&str>, number: usize) -> NewFeedback {
    NewFeedback { base: base.map(str::to_owned), ..mark(Mark::Good, number) }
}

fn job_of(base: &str) -> NewJob {
    let base = Some(JobBase { hash: base.to_owned(), model: serde_json::json!({"name": base}) });
    NewJob { base, ..job() }
}

fn new_in(f: &Fixture, job: &JobRow) -> Vec<i64> {
    f.store.job_examples(job.id, ExampleRole::New).unwrap().iter().map(|e| e.id).collect()
}

#[test]
fn a_model_learns_its_own_marks_and_those_of_none() {
    let f = fixture();
    for (base, number) in [(Some(OURS), 1), (Some(THEIRS), 2), (None, 3), (Some(OURS), 4)] {
        f.store.add_feedback(&mark_of(base, number)).unwrap();
    }
    let count = |base| f.store.buffer_status(DEFAULT_DOMAIN, base).unwrap().examples;
    assert_eq!((count(Some(OURS)), count(Some(THEIRS)), count(None)), (3, 2, 4));
    assert!(!f.store.should_train(DEFAULT_DOMAIN, Some(THEIRS), 3).unwrap());
    assert!(f.store.should_train(DEFAULT_DOMAIN, Some(OURS), 3).unwrap());
    let row = f.store.enqueue_job(&job_of(OURS)).unwrap();
    assert_eq!(new_in(&f, &row), [1, 3, 4]);
    assert_eq!(row.base.as_ref().map(|base| base.hash.as_str()), Some(OURS));
    assert_eq!(f.store.job(row.id).unwrap().base, job_of(OURS).base);
    assert_eq!(count(Some(THEIRS)), 1, "the mark of none is taken");
    assert!(f.store.enqueue_if_due(&job_of("d"), 1).unwrap().is_none());
}

#[test]
fn only_a_fresh_job_learns_what_another_model_learned() {
    let f = fixture();
    f.store.add_feedback(&mark_of(Some(OURS), 1)).unwrap();
    let learned = f.measured_job(&job_of(OURS));
    f.succeed(&learned);
    f.store.add_feedback(&mark_of(Some(THEIRS), 2)).unwrap();
    let replayed = |from| {
        let row = f.store.enqueue_job(&NewJob { from, ..job_of(THEIRS) }).unwrap();
        let replay = f.store.job_examples(row.id, ExampleRole::Replay).unwrap().len();
        assert_eq!(new_in(&f, &row), [2]);
        f.store.request_cancel(row.id).unwrap();
        replay
    };
    assert_eq!((replayed(StartFrom::Continue), replayed(StartFrom::Fresh)), (0, 1));
}

#[test]
fn what_is_held_out_is_decided_for_each_model_by_itself() {
    let f = fixture();
    let add = |base, numbers: std::ops::Range<usize>| {
        for number in numbers {
            f.store
                .add_feedback(&NewFeedback { base: Some(String::from(base)), ..alike(number) })
                .unwrap();
        }
    };
    add(OURS, 0..4);
    f.succeed(&f.measured_job(&job_of(OURS)));
    add(OURS, 4..44);
    add(THEIRS, 44..52);
    let held = |base| f.store.buffer_status(DEFAULT_DOMAIN, Some(base)).unwrap().heldout;
    assert!(held(OURS) > 0, "the second training measures");
    assert_eq!(held(THEIRS), 0, "the other model's first training waits for ten");
    let listed = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    let of = |base: &str| {
        listed.iter().filter(|row| row.heldout && row.base.as_deref() == Some(base)).count()
    };
    assert_eq!((of(OURS), of(THEIRS)), (held(OURS), 0), "a list says the same");
}

#[test]
fn an_import_finds_only_what_its_model_learns_already() {
    let f = fixture();
    let import = |mark: NewFeedback| {
        let done = f.store.import_feedback(&[mark], None).unwrap();
        (done.ids.len(), done.merged, done.raised)
    };
    f.store.add_feedback(&mark_of(Some(OURS), 1)).unwrap();
    assert_eq!(import(mark_of(Some(OURS), 1)), (0, 1, 0));
    assert_eq!(import(mark_of(Some(THEIRS), 1)), (1, 0, 0), "theirs does not learn ours");
    assert_eq!(import(mark_of(None, 1)), (1, 0, 0), "nor do others");
    assert_eq!(import(mark_of(None, 1)), (0, 1, 0));
    assert_eq!(import(mark_of(Some("d"), 1)), (0, 1, 0), "every model learns the mark of none");
    let heavy = NewFeedback { weight: 2.0, ..mark_of(Some(THEIRS), 1) };
    assert_eq!(import(heavy), (0, 1, 1));
    let rows = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    let weights: Vec<f64> = rows.iter().map(|row| row.weight).collect();
    assert_eq!(weights, [1.0, 2.0, 1.0], "its own is the one that got heavier");
    let new = mark_of(Some(OURS), 7);
    f.store.import_feedback(&[new], None).unwrap();
    let exported = [mark_of(None, 7)];
    assert_eq!(f.store.import_feedback(&exported, Some(OURS)).unwrap().merged, 1);
    assert_eq!(f.store.import_feedback(&exported, Some(THEIRS)).unwrap().ids.len(), 1);
}
