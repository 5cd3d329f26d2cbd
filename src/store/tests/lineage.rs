use std::collections::BTreeSet;

use super::*;

#[test]
fn an_adapter_tells_what_it_saw_itself_and_through_those_it_grew_from() {
    let f = fixture();
    let (a, b, c) = (f.train("a"), f.train("b"), f.train("c"));
    let seen = f.store.seen(&a.id).unwrap();
    assert_eq!((seen.learned.clone(), seen.inherited), (vec![1], vec![]));
    let seen = f.store.seen(&c.id).unwrap();
    assert_eq!((&seen.learned[..], &seen.replayed[..]), (&[3][..], &[1, 2][..]));
    assert!(seen.inherited.is_empty() && seen.forgotten.is_empty());

    // Without replay the line still knows, also when an adapter of it is gone.
    f.add(1);
    let job = f.measured_job(&NewJob { name: Some(id("d")), replay_limit: 0, ..job() });
    f.store.set_job_parent(job.id, f.live().as_ref()).unwrap();
    let d = f.succeed(&job);
    f.store.rollback(BASE_HASH, DEFAULT_DOMAIN).unwrap();
    f.store.set_live(&d.id, BASE_HASH).unwrap();
    f.store.delete_adapter(&b.id).unwrap();
    f.store.remove_feedback(2).unwrap();
    let seen = f.store.seen(&d.id).unwrap();
    assert_eq!((&seen.learned[..], &seen.inherited[..]), (&[4][..], &[1, 2, 3][..]));
    assert_eq!(seen.forgotten, [2]);
    assert_eq!(f.store.seen(&id("never-made")).unwrap(), Default::default());
}

#[test]
fn a_fresh_adapter_inherits_nothing_and_does_not_see_what_was_forgotten() {
    let f = fixture();
    f.train("a");
    f.train("b");
    let forgotten = f.store.remove_feedback(1).unwrap();
    assert_eq!(forgotten.seen_by, [id("a"), id("b")]);
    let again = NewJob { name: Some(id("again")), from: StartFrom::Fresh, ..job() };
    let adapter = f.succeed(&f.measured_job(&again));
    let seen = f.store.seen(&adapter.id).unwrap();
    assert_eq!((&seen.replayed[..], &seen.inherited[..]), (&[2][..], &[][..]));
    assert!(seen.forgotten.is_empty());
}

#[test]
fn a_name_that_is_used_again_tells_what_its_newest_adapter_saw() {
    let f = fixture();
    f.train("a");
    f.store.unload(&id("a")).unwrap();
    f.store.delete_adapter(&id("a")).unwrap();
    f.train("a");
    let seen = f.store.seen(&id("a")).unwrap();
    assert_eq!((&seen.learned[..], &seen.replayed[..]), (&[2][..], &[1][..]));
}

#[test]
fn notes_of_a_jobs_examples_come_without_their_secrets() {
    let f = fixture();
    let noted =
        |note: Option<&str>, n| NewFeedback { note: note.map(Into::into), ..mark(Mark::Fix, n) };
    f.store.add_feedback(&noted(Some("name the server"), 1)).unwrap();
    f.store.add_feedback(&noted(Some(" "), 2)).unwrap();
    f.store.add_feedback(&noted(None, 3)).unwrap();
    let job = f.store.enqueue_job(&job()).unwrap().id;
    let notes = f.store.job_notes(job).unwrap();
    assert_eq!(notes.into_iter().collect::<Vec<_>>(), [(1, "name the server".to_owned())]);
}

/// Runs one job of the domain to its end; `passes` says whether the gate lets it pass.
fn judged(f: &Fixture, passes: bool) -> Option<i64> {
    let queued = f.store.enqueue_job(&job()).ok()?.id;
    let running = f.store.claim_next().unwrap().unwrap();
    let measured = f.store.set_evaluating(running.id).unwrap();
    match passes {
        true => drop(f.succeed(&measured)),
        false => drop(f.store.finish_rejected(queued, &["worse".to_owned()], &metrics()).unwrap()),
    }
    Some(queued)
}

#[test]
fn what_a_job_was_measured_on_is_never_trained_whatever_comes_after() {
    let f = fixture();
    let mut measured = BTreeSet::new();
    for round in 0..30usize {
        for n in 0..1 + round % 4 {
            // Three groups of marks that say the same, and some that stand alone.
            let group = (round * 5 + n * 3) % 4;
            let new = match group {
                3 => mark(Mark::Fix, 100 + round * 10 + n),
                _ => NewFeedback {
                    messages: vec![Message::user(format!(
                        "What is the host{group} of the thing{group} called?"
                    ))],
                    fix: Some(format!(
                        "The host{group} of the thing{group} is called name{group}."
                    )),
                    ..mark(Mark::Fix, n)
                },
            };
            f.store.add_feedback(&new).unwrap();
        }
        // The buffer is small, so that what was learned leaves it.
        f.store.archive_over(12).unwrap();
        let Some(job) = judged(&f, round % 3 != 1) else { continue };
        for role in [ExampleRole::New, ExampleRole::Replay] {
            let trained: BTreeSet<i64> = f.ids(job, role).into_iter().collect();
            let both: Vec<_> = trained.intersection(&measured).collect();
            assert!(
                both.is_empty(),
                "round {round}: {both:?} were measured on and are {role:?} now"
            );
        }
        measured.extend(f.ids(job, ExampleRole::Heldout));
    }
    assert!(measured.len() >= 5, "{measured:?}");
}
