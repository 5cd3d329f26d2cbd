//! Any sequence of what can happen to marks and jobs keeps the invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Mark(bool),
    Enqueue,
    Sweep,
    Claim,
    Evaluate,
    Succeed,
    Reject,
    Die,
    Cancel,
    Restart,
    Rollback,
    Undo(usize),
    Forget(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(Step::Mark),
        3 => Just(Step::Enqueue),
        1 => Just(Step::Sweep),
        3 => Just(Step::Claim),
        3 => Just(Step::Evaluate),
        3 => Just(Step::Succeed),
        1 => Just(Step::Reject),
        1 => Just(Step::Die),
        1 => Just(Step::Cancel),
        1 => Just(Step::Restart),
        1 => Just(Step::Rollback),
        1 => (0..20usize).prop_map(Step::Undo),
        1 => (0..20usize).prop_map(Step::Forget),
    ]
}

/// Does a step on whatever there is; that some are refused is part of the test.
fn apply(f: &Fixture, step: &Step, number: usize) {
    let active = f.store.jobs().unwrap().into_iter().find(|j| j.state.is_active());
    let nth =
        |n: usize| f.store.list_feedback(&FeedbackFilter::default()).unwrap().get(n).map(|r| r.id);
    match (step, active) {
        (Step::Mark(true), _) => drop(f.store.add_feedback(&alike(number)).unwrap()),
        (Step::Mark(false), _) => drop(f.store.add_feedback(&mark(Mark::Fix, number)).unwrap()),
        (Step::Enqueue, _) => drop(f.store.enqueue_job(&job())),
        (Step::Sweep, _) => {
            let set = ExampleSet { domain: DEFAULT_DOMAIN.to_owned(), marks: None };
            let fresh = NewJob { from: StartFrom::Fresh, ..job() };
            drop(f.store.enqueue_batch(&[set], &[(0, fresh.clone()), (0, fresh)]));
        }
        (Step::Claim, _) => {
            if let Some(job) = f.store.claim_next().unwrap()
                && job.from == StartFrom::Continue
            {
                f.store.set_job_parent(job.id, f.live().as_ref()).unwrap();
            }
        }
        (Step::Evaluate, Some(job)) => drop(f.store.set_evaluating(job.id)),
        (Step::Succeed, Some(job)) => {
            let adapter = f.new_adapter(&job);
            let promotion = Promotion::for_tests();
            drop(f.store.finish_succeeded(job.id, &adapter, &metrics(), &promotion));
        }
        (Step::Reject, Some(job)) => drop(f.store.finish_rejected(job.id, &[], &metrics())),
        (Step::Die, Some(job)) => {
            drop(f.store.requeue_or_fail(job.id, 2, Duration::ZERO, "signal 9").unwrap());
        }
        (Step::Cancel, Some(job)) => drop(f.store.request_cancel(job.id).unwrap()),
        (Step::Restart, _) => {
            f.store.reconcile().unwrap();
            f.store.requeue_orphans(3).unwrap();
        }
        (Step::Rollback, _) => drop(f.store.rollback(BASE_HASH, DEFAULT_DOMAIN)),
        (Step::Undo(n), _) => drop(nth(*n).map(|id| f.store.undo_feedback(id))),
        (Step::Forget(n), _) => drop(nth(*n).map(|id| f.store.remove_feedback(id).unwrap())),
        (_, None) => {}
    }
}

fn check(f: &Fixture) {
    let jobs = f.store.jobs().unwrap();
    assert!(jobs.iter().filter(|j| j.state.is_active()).count() <= 1, "one active job");
    let mut learned: BTreeMap<i64, &JobRow> = BTreeMap::new();
    for job in jobs.iter().filter(|j| j.state == JobState::Succeeded) {
        for id in f.ids(job.id, ExampleRole::New) {
            let first = *learned.entry(id).or_insert(job);
            let again = first.id != job.id;
            let shared = first.sweep.is_some() && first.sweep == job.sweep;
            assert!(!again || shared, "example {id} learned twice");
        }
    }
    check_lineages(f, &jobs);
    let rows = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    for row in &rows {
        assert_eq!(row.consumed_by, learned.get(&row.id).map(|job| job.id));
        let in_sweep = |id: i64| jobs.iter().any(|job| job.id == id && job.sweep.is_some());
        assert!(row.consumed_by.is_none() || row.in_job.is_none_or(in_sweep));
        assert!(!row.heldout || (row.consumed_by.is_none() && row.in_job.is_none()));
    }
    let s = f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap();
    assert_eq!(s.examples, s.trainable_unconsumed + s.waiting_for_correction + s.heldout);
    assert_eq!(s.examples + s.in_training, rows.iter().filter(|r| r.consumed_by.is_none()).count());
    for adapter in f.store.adapters().unwrap() {
        assert!(f.home.adapter(&adapter.id).join("training.json").is_file());
    }
    assert!(f.store.adapters().unwrap().iter().filter(|a| a.live).count() <= 1, "one live adapter");
}

/// No example is new in two jobs of a chain of parents.
fn check_lineages(f: &Fixture, jobs: &[JobRow]) {
    let adapters = f.store.adapters().unwrap();
    for adapter in &adapters {
        let mut seen = BTreeSet::new();
        let mut next = Some(adapter.id.clone());
        while let Some(id) = next {
            let job = jobs.iter().find(|job| job.adapter.as_ref() == Some(&id)).unwrap();
            for example in f.ids(job.id, ExampleRole::New) {
                assert!(seen.insert(example), "example {example} twice above {}", adapter.id);
            }
            next = adapters.iter().find(|a| a.id == id).and_then(|a| a.parent.clone());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_keeps_the_invariants(steps in prop::collection::vec(step(), 1..40)) {
        let f = fixture();
        for (number, step) in steps.iter().enumerate() {
            apply(&f, step, number);
            check(&f);
        }
    }
}
