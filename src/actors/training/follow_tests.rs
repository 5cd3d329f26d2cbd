use super::*;
use crate::actors::test_kit::temp_home;
use crate::store::{NewFeedback, NewJob, Progress as StoredProgress, StartFrom, Store};
use crate::{domain::Mark, domain::Message};

struct Stage {
    _dir: tempfile::TempDir,
    home: Home,
    store: Store,
    followed: Followed,
}

fn stage() -> Stage {
    let (dir, home) = temp_home();
    let store = Store::open(&home).unwrap();
    for question in ["one", "two"] {
        let mark = NewFeedback {
            messages: vec![Message::user(question)],
            response: "?".to_owned(),
            mark: Mark::Fix,
            weight: 3.0,
            note: None,
            fix: Some("better".to_owned()),
            domain: question.to_owned(),
            adapter: None,
            base: None,
        };
        store.add_feedback(&mark).unwrap();
    }
    Stage { _dir: dir, home, store, followed: Followed::default() }
}

impl Stage {
    fn enqueue(&self, domain: &str) -> i64 {
        let new = NewJob {
            name: None,
            domain: domain.to_owned(),
            from: StartFrom::Continue,
            priority: 0,
            params: serde_json::json!({}),
            replay_limit: 0,
            only: None,
            base: None,
            max_queued: 9,
        };
        self.store.enqueue_job(&new).unwrap().id
    }

    fn news(&mut self, held: bool) -> Vec<JobNotice> {
        let look = Look { rows: self.store.jobs().unwrap(), held, max_attempts: 3 };
        self.followed.news(&self.home, &look)
    }
}

#[test]
fn a_job_of_another_process_is_told_from_its_start_to_its_end_and_nothing_twice() {
    let mut stage = stage();
    let job = stage.enqueue("one");
    assert_eq!(stage.news(true), []);
    assert!(!stage.followed.is_settled());
    stage.store.claim_next().unwrap();
    assert_eq!(stage.news(true), [JobNotice::Started { job, examples: 1, attempt: 1 }]);
    assert_eq!(stage.news(true), []);
    let progress = StoredProgress { step: 5, total_steps: 10, loss: Some(1.5) };
    stage.store.set_progress(job, &progress).unwrap();
    match stage.news(true).as_slice() {
        [JobNotice::Progressed(told)] => assert_eq!((told.step, told.loss), (5, 1.5)),
        other => panic!("{other:?}"),
    }
    stage.store.set_evaluating(job).unwrap();
    assert_eq!(stage.news(true), [JobNotice::Evaluating { job }]);
    stage.store.finish_failed(job, "no").unwrap();
    let error = "no".to_owned();
    assert_eq!(stage.news(true), [JobNotice::Failed { job, error, attempts: 1 }]);
    assert!(stage.followed.is_settled());
    assert_eq!(stage.news(true), []);
}

#[test]
fn a_job_that_came_and_ended_between_two_looks_is_told() {
    let mut stage = stage();
    assert_eq!(stage.news(true), []);
    let job = stage.enqueue("one");
    stage.store.claim_next().unwrap();
    stage.store.finish_failed(job, "no").unwrap();
    let failed = JobNotice::Failed { job, error: "no".to_owned(), attempts: 1 };
    assert!(stage.news(true).contains(&failed));
    assert_eq!(stage.news(true), []);
}

#[test]
fn what_was_over_or_begun_before_the_first_look_is_history() {
    let mut stage = stage();
    let (done, runs) = (stage.enqueue("one"), stage.enqueue("two"));
    stage.store.request_cancel(done).unwrap();
    stage.store.claim_next().unwrap();
    assert_eq!(stage.news(true), []);
    stage.store.finish_cancelled(runs).unwrap();
    assert_eq!(stage.news(true), [JobNotice::Cancelled { job: runs }]);
}

#[test]
fn a_job_whose_process_died_is_told_once_and_again_when_it_goes_on() {
    let mut stage = stage();
    let job = stage.enqueue("one");
    stage.news(true);
    stage.store.claim_next().unwrap();
    stage.news(true);
    match stage.news(false).as_slice() {
        [JobNotice::Noted { text, .. }] => assert!(text.contains("is gone"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(stage.news(false), []);
    stage.store.requeue_orphans(3).unwrap();
    assert_eq!(stage.news(true), [JobNotice::Parked { job, step: 0 }]);
    stage.store.claim_next().unwrap();
    assert_eq!(stage.news(true), [JobNotice::Started { job, examples: 1, attempt: 2 }]);
}
