//! Several jobs with the same examples: the jobs of one runs file.

use rusqlite::Connection;

use super::*;

fn fresh() -> NewJob {
    NewJob { from: StartFrom::Fresh, ..job() }
}

fn of_domain() -> ExampleSet {
    ExampleSet { domain: DEFAULT_DOMAIN.to_owned(), marks: None }
}

fn of_marks(numbers: std::ops::Range<usize>) -> ExampleSet {
    let marks = numbers.map(|n| mark(Mark::Fix, n)).collect();
    ExampleSet { domain: DEFAULT_DOMAIN.to_owned(), marks: Some(marks) }
}

/// Takes the next job as far as the gate.
fn measured(f: &Fixture) -> JobRow {
    let job = f.store.claim_next().unwrap().unwrap();
    f.store.set_job_parent(job.id, None).unwrap();
    f.store.set_evaluating(job.id).unwrap()
}

#[test]
fn the_jobs_of_a_sweep_take_the_same_snapshot() {
    let f = fixture();
    for n in 0..40 {
        f.store.add_feedback(&alike(n)).unwrap();
    }
    let listed = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    let held: Vec<i64> = listed.iter().filter(|row| row.heldout).map(|row| row.id).collect();
    let jobs = f.store.enqueue_batch(&[of_domain()], &[(0, fresh()), (0, fresh())]).unwrap();
    let sweep: Vec<_> = jobs.iter().map(|job| job.sweep).collect();
    assert_eq!(sweep, [Some(jobs[0].id); 2], "named by the first");
    let learned = f.ids(jobs[0].id, ExampleRole::New);
    assert_eq!((learned.len(), jobs[0].examples), (40 - held.len(), 40 - held.len()));
    for job in &jobs {
        assert_eq!(f.ids(job.id, ExampleRole::New), learned);
        assert_eq!(f.ids(job.id, ExampleRole::Heldout), held, "held out of each of them");
    }
    let status = f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap();
    assert_eq!((status.in_training, status.heldout), (learned.len(), held.len()), "counted once");
    assert!(f.store.enqueue_job(&job()).is_err(), "they are taken");
}

#[test]
fn marks_are_consumed_by_the_first_job_that_succeeds_and_the_others_go_on() {
    let f = fixture();
    let ids = f.add(3);
    let three = [(0, fresh()), (0, fresh()), (0, fresh())];
    let jobs = f.store.enqueue_batch(&[of_domain()], &three).unwrap();
    let first = measured(&f);
    f.store.finish_rejected(first.id, &["worse".to_owned()], &metrics()).unwrap();
    let row = f.store.feedback(ids[0]).unwrap();
    assert_eq!((row.consumed_by, row.in_job), (None, Some(jobs[1].id)), "still in the sweep");
    f.succeed(&measured(&f));
    assert_eq!(f.store.feedback(ids[0]).unwrap().consumed_by, Some(jobs[1].id));
    assert_eq!(f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap(), BufferStatus::default());
    f.succeed(&measured(&f));
    assert_eq!(f.store.feedback(ids[0]).unwrap().consumed_by, Some(jobs[1].id));
    assert_eq!(f.live(), Some(f.store.job(jobs[2].id).unwrap().name), "the last to pass the gate");
    let parents: Vec<_> = f.store.adapters().unwrap().into_iter().map(|a| a.parent).collect();
    assert_eq!(parents, [None, None], "each a lineage of its own");
    assert_eq!(f.store.archive_over(0).unwrap(), 3, "each mark once");
}

#[test]
fn a_sweep_that_was_rejected_gives_its_marks_back() {
    let f = fixture();
    f.add(3);
    f.store.enqueue_batch(&[of_domain()], &[(0, fresh()), (0, fresh())]).unwrap();
    for _ in 0..2 {
        let job = measured(&f);
        f.store.finish_rejected(job.id, &["worse".to_owned()], &metrics()).unwrap();
    }
    let status = f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap();
    assert_eq!((status.trainable_unconsumed, status.in_training), (3, 0));
    assert!(!f.store.should_train(DEFAULT_DOMAIN, None, 3).unwrap(), "and waits for new ones");
    assert!(f.store.enqueue_job(&job()).is_ok(), "who asks gets it at once");
}

#[test]
fn stored_marks_are_the_examples_of_their_set_and_no_other() {
    let f = fixture();
    let earlier = f.add(2);
    let sets = [of_marks(10..13), of_domain()];
    let jobs = [(0, fresh()), (1, job()), (0, fresh())];
    let jobs = f.store.enqueue_batch(&sets, &jobs).unwrap();
    assert_eq!(f.store.list_feedback(&FeedbackFilter::default()).unwrap().len(), 5, "stored once");
    let new: Vec<_> = jobs.iter().map(|job| f.ids(job.id, ExampleRole::New)).collect();
    assert_eq!((new[0].len(), &new[0]), (3, &new[2]));
    assert_eq!(new[1], earlier);
    let sweeps: Vec<_> = jobs.iter().map(|job| job.sweep).collect();
    assert_eq!(sweeps, [Some(jobs[0].id), None, Some(jobs[0].id)]);
    assert_eq!(jobs[1].from, StartFrom::Continue, "one that shares nothing may continue");
}

#[test]
fn all_jobs_of_a_file_are_measured_on_the_same_marks() {
    let f = fixture();
    let sets = [0..30, 30..60].map(|numbers| ExampleSet {
        domain: DEFAULT_DOMAIN.to_owned(),
        marks: Some(numbers.map(alike).collect()),
    });
    let jobs = f.store.enqueue_batch(&sets, &[(0, fresh()), (1, fresh())]).unwrap();
    let held = f.ids(jobs[0].id, ExampleRole::Heldout);
    assert!(!held.is_empty());
    assert_eq!(f.ids(jobs[1].id, ExampleRole::Heldout), held);
    for job in &jobs {
        assert!(f.ids(job.id, ExampleRole::New).iter().all(|id| !held.contains(id)));
    }
}

#[test]
fn a_batch_is_enqueued_whole_or_not_at_all() {
    let f = fixture();
    let named = |name: &str| NewJob { name: Some(id(name)), ..fresh() };
    let few = NewJob { max_queued: 1, ..fresh() };
    let bad = NewFeedback { weight: -1.0, ..mark(Mark::Fix, 1) };
    let bad = ExampleSet { domain: DEFAULT_DOMAIN.to_owned(), marks: Some(vec![bad]) };
    let waiting = ExampleSet {
        domain: DEFAULT_DOMAIN.to_owned(),
        marks: Some(vec![mark(Mark::Critical, 1)]),
    };
    let cases = [
        (vec![of_marks(0..2)], vec![(0, named("a")), (0, named("a"))], 1, "\"a\" is taken"),
        (vec![of_marks(0..2)], vec![(0, few.clone()), (0, few)], 1, "the queue is full"),
        (vec![of_marks(0..2), bad], vec![(0, fresh()), (1, fresh())], 1, "weight -1"),
        (vec![of_marks(0..2), waiting], vec![(0, fresh()), (1, fresh())], 1, "1 waiting for a"),
        (vec![of_domain()], vec![(0, fresh())], 0, "nothing to train"),
    ];
    for (sets, jobs, job, part) in cases {
        let error = f.store.enqueue_batch(&sets, &jobs).unwrap_err();
        assert!(error.job == job && error.to_string().contains(part), "{error:?}");
        assert!(f.store.jobs().unwrap().is_empty(), "{part}");
        assert!(f.store.list_feedback(&FeedbackFilter::default()).unwrap().is_empty(), "{part}");
    }
}

#[test]
fn a_job_of_a_sweep_cannot_continue_an_adapter() {
    let f = fixture();
    f.train("first");
    f.add(2);
    let error = f.store.enqueue_batch(&[of_domain()], &[(0, job()), (0, job())]).unwrap_err();
    assert!(error.to_string().contains("CHECK constraint"), "{error}");
    let jobs = f.store.enqueue_batch(&[of_domain()], &[(0, fresh()), (0, fresh())]).unwrap();
    assert!(f.store.set_job_parent(jobs[0].id, Some(&id("first"))).is_err());
}

#[test]
fn another_sweep_cannot_learn_what_one_learned() {
    let f = fixture();
    let ids = f.add(1);
    f.store.enqueue_batch(&[of_domain()], &[(0, fresh()), (0, fresh())]).unwrap();
    f.add(1);
    let other = f.store.enqueue_batch(&[of_domain()], &[(0, fresh()), (0, fresh())]).unwrap();
    let sql = "INSERT INTO job_feedback VALUES (?1, ?2, 'new', 'x', 1.0)";
    f.store.connection.execute(sql, (other[0].id, ids[0])).unwrap();
    f.succeed(&measured(&f));
    f.succeed(&measured(&f));
    let third = measured(&f);
    let adapter = f.new_adapter(&third);
    let promotion = Promotion::for_tests();
    let error = f.store.finish_succeeded(third.id, &adapter, &metrics(), &promotion).unwrap_err();
    assert!(matches!(error, StoreError::AlreadyLearned { feedback, .. } if feedback == ids[0]));
    let sql = "UPDATE jobs SET state = 'succeeded' WHERE id = ?1";
    let forced = f.store.connection.execute(sql, [third.id]).unwrap_err();
    assert!(forced.to_string().contains("already learned"), "the schema refuses too: {forced}");
}

#[test]
fn a_loss_curve_moves_from_the_workers_file_into_the_database() {
    let f = fixture();
    f.add(1);
    let job = f.measured_job(&job());
    assert_eq!(f.store.curve(job.id).unwrap(), [], "none yet");
    f.store.keep_curve(job.id).unwrap();
    let line = |step: usize| {
        format!("{{\"step\":{step},\"loss\":{}.5,\"learning_rate\":0.001}}\n", 9 - step)
    };
    let path = f.home.curve(job.id);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, line(1) + &line(2) + &line(3)).unwrap();
    let running = f.store.curve(job.id).unwrap();
    f.store.finish_failed(job.id, "no memory").unwrap();
    f.store.keep_curve(job.id).unwrap();
    f.home.remove_checkpoint(job.id).unwrap();
    let kept = f.store.curve(job.id).unwrap();
    assert_eq!(kept, running, "a failed job keeps its steps");
    let losses: Vec<_> = kept.iter().map(|p| (p.step, p.loss, p.learning_rate)).collect();
    assert_eq!(losses, [(1, 8.5, 0.001), (2, 7.5, 0.001), (3, 6.5, 0.001)]);
    assert!(matches!(f.store.curve(99), Err(StoreError::UnknownJob(99))));
}

/// A database as the first version of the schema had it, with a job that learned a mark and one that waits.
pub(super) fn first_schema(path: &std::path::Path) {
    let old = Connection::open(path).unwrap();
    old.execute_batch(include_str!("../migrations/0001_initial.sql")).unwrap();
    old.execute_batch(
        r#"INSERT INTO feedback (messages, response, mark, weight, fix, domain, created_at) VALUES
             ('[{"role":"user","content":"q1"}]', 'a', 'fix', 3, 'b', 'general', 1),
             ('[{"role":"user","content":"q2"}]', 'a', 'fix', 3, 'b', 'general', 2);
           INSERT INTO jobs (name, domain, start, state, examples, params, created_at) VALUES
             ('first', 'general', 'continue', 'succeeded', 1, '{}', 3),
             ('second', 'general', 'fresh', 'queued', 1, '{}', 4);
           INSERT INTO job_feedback VALUES (1, 1, 'new', 'b', 3), (2, 2, 'new', 'b', 3);
           PRAGMA user_version = 1;"#,
    )
    .unwrap();
}

#[test]
fn a_database_of_the_first_schema_is_brought_up_to_date() {
    let directory = tempfile::tempdir().unwrap();
    let home = Home::open_or_create(directory.path().join("home")).unwrap();
    first_schema(&home.db());
    let store = Store::open(&home).unwrap();
    let version: i64 =
        store.connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, SCHEMA_VERSION);
    let jobs = store.jobs().unwrap();
    assert!(jobs.len() == 2 && jobs.iter().all(|job| job.sweep.is_none()), "{jobs:?}");
    assert_eq!(store.feedback(1).unwrap().consumed_by, Some(1));
    assert_eq!(store.feedback(2).unwrap().in_job, Some(2));
    assert_eq!(store.curve(1).unwrap(), []);
    // What was learned before the step stays learned once.
    let sql = "INSERT INTO job_feedback VALUES (2, 1, 'new', 'b', 3)";
    store.connection.execute(sql, []).unwrap();
    let sql = "UPDATE jobs SET state = 'succeeded' WHERE id = 2";
    let error = store.connection.execute(sql, []).unwrap_err().to_string();
    assert!(error.contains("already learned"), "{error}");
    drop(store);
    assert_eq!(Store::open(&home).unwrap().jobs().unwrap().len(), 2, "and opens again");
}
