//! The queue against a model of it that fits on a page: whatever is asked in whatever order, both answer the same.

use std::time::Duration;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::*;

/// Jobs that may wait.
const ROOM: usize = 3;
/// The pause after a worker's death, and a time at which it is over.
const PAUSE: Duration = Duration::from_secs(3600);
const LATER_HOURS: i64 = 2;

#[derive(Debug, Clone)]
enum Step {
    Mark,
    Enqueue {
        priority: i64,
    },
    /// The threshold was reached, perhaps while a job runs.
    Trigger {
        threshold: usize,
    },
    Claim {
        late: bool,
    },
    Evaluate(usize),
    Succeed(usize),
    Reject(usize),
    Fail(usize),
    Die {
        job: usize,
        pause: bool,
        max_attempts: usize,
    },
    /// The user's wish, and what the runner then does.
    Cancel(usize),
    Cancelled(usize),
    Release(usize),
    Retry(usize),
    /// The process died, and another took its place.
    Restart {
        max_attempts: usize,
    },
    /// The process ends in order.
    Leave,
}

/// What a step must come to.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Done,
    Refused,
    Full,
    NothingToTrain,
    Claimed(Option<usize>),
    Enqueued(Option<usize>),
}

#[derive(Debug, Clone)]
struct ModelJob {
    priority: i64,
    state: JobState,
    attempts: usize,
    /// Marks that are new in it.
    new: Vec<usize>,
    cancel: bool,
    later: bool,
}

#[derive(Debug, Clone)]
struct Model {
    marks: usize,
    jobs: Vec<ModelJob>,
    answer: Answer,
}

impl Model {
    fn active(&self) -> Option<usize> {
        self.jobs.iter().position(|job| job.state.is_active())
    }

    fn jobs_of(&self, mark: usize) -> impl Iterator<Item = &ModelJob> {
        self.jobs.iter().filter(move |job| job.new.contains(&mark))
    }

    fn consumed_by(&self, mark: usize) -> Option<usize> {
        self.jobs.iter().position(|j| j.state == JobState::Succeeded && j.new.contains(&mark))
    }

    fn in_job(&self, mark: usize) -> Option<usize> {
        self.jobs.iter().position(|job| !job.state.is_final() && job.new.contains(&mark))
    }

    fn free(&self) -> Vec<usize> {
        let free = |mark: &usize| self.consumed_by(*mark).is_none() && self.in_job(*mark).is_none();
        (0..self.marks).filter(free).collect()
    }

    fn is_due(&self, threshold: usize) -> bool {
        let ended =
            |mark: usize, as_: &[JobState]| self.jobs_of(mark).any(|j| as_.contains(&j.state));
        let mut counted = self.free();
        counted.retain(|mark| !ended(*mark, &[JobState::Rejected, JobState::Cancelled]));
        counted.len() >= threshold && counted.iter().any(|mark| !ended(*mark, &[JobState::Failed]))
    }

    fn enqueue(&mut self, priority: i64, new: Vec<usize>) -> Answer {
        if self.jobs.iter().filter(|job| job.state == JobState::Queued).count() >= ROOM {
            return Answer::Full;
        }
        if new.is_empty() {
            return Answer::NothingToTrain;
        }
        let state = JobState::Queued;
        self.jobs.push(ModelJob { priority, state, attempts: 0, new, cancel: false, later: false });
        Answer::Enqueued(Some(self.jobs.len() - 1))
    }

    fn claim(&mut self, late: bool) -> Answer {
        let due = |job: &ModelJob| job.state == JobState::Queued && (late || !job.later);
        let candidates = (0..self.jobs.len()).filter(|i| due(&self.jobs[*i]));
        let first = candidates.max_by_key(|i| (self.jobs[*i].priority, usize::MAX - i));
        let Some(first) = first.filter(|_| self.active().is_none()) else {
            return Answer::Claimed(None);
        };
        let job = &mut self.jobs[first];
        (job.state, job.later) = (JobState::Running, false);
        job.attempts += 1;
        Answer::Claimed(Some(first))
    }

    /// Moves a job if it is in one of these states.
    fn go(&mut self, job: usize, from: &[JobState], to: JobState) -> Answer {
        match self.jobs.get_mut(job) {
            Some(job) if from.contains(&job.state) => {
                job.state = to;
                Answer::Done
            }
            _ => Answer::Refused,
        }
    }

    fn die(&mut self, job: usize, pause: bool, max_attempts: usize) -> Answer {
        match self.jobs.get_mut(job) {
            Some(job) if job.state.is_active() => {
                let over = job.attempts >= max_attempts;
                job.state = if over { JobState::Failed } else { JobState::Queued };
                job.later = pause && !over;
                Answer::Done
            }
            _ => Answer::Refused,
        }
    }

    fn leave(&mut self, max_attempts: Option<usize>) {
        for job in self.jobs.iter_mut().filter(|job| job.state.is_active()) {
            job.state = match max_attempts {
                _ if job.cancel => JobState::Cancelled,
                Some(max) if job.attempts >= max => JobState::Failed,
                _ => JobState::Queued,
            };
            // An orderly end is no attempt.
            if max_attempts.is_none() && job.state == JobState::Queued {
                job.attempts -= 1;
            }
        }
    }

    fn take(&mut self, step: &Step) -> Answer {
        use JobState::{Cancelled, Evaluating, Failed, Queued, Rejected, Running, Succeeded};
        match *step {
            Step::Mark => self.marks += 1,
            Step::Enqueue { priority } => return self.enqueue(priority, self.free()),
            Step::Trigger { threshold } if self.is_due(threshold) => {
                return self.enqueue(0, self.free());
            }
            Step::Trigger { .. } => return Answer::Enqueued(None),
            Step::Claim { late } => return self.claim(late),
            Step::Evaluate(job) => return self.go(job, &[Running], Evaluating),
            Step::Succeed(job) => {
                let asked = self.jobs.get(job).is_some_and(|job| job.cancel);
                let from: &[JobState] = if asked { &[] } else { &[Evaluating] };
                return self.go(job, from, Succeeded);
            }
            Step::Reject(job) => return self.go(job, &[Evaluating], Rejected),
            Step::Fail(job) => return self.go(job, &[Queued, Running, Evaluating], Failed),
            Step::Die { job, pause, max_attempts } => return self.die(job, pause, max_attempts),
            Step::Cancel(job) => match self.jobs.get_mut(job) {
                Some(job) if job.state.is_active() => job.cancel = true,
                _ => return self.go(job, &[Queued], Cancelled),
            },
            Step::Cancelled(job) => return self.go(job, &[Queued, Running, Evaluating], Cancelled),
            Step::Release(job) => {
                let answer = self.go(job, &[Running, Evaluating], Queued);
                if answer == Answer::Done {
                    self.jobs[job].attempts -= 1;
                }
                return answer;
            }
            Step::Retry(job) => {
                let Some(old) = self.jobs.get(job) else { return Answer::Refused };
                if !old.state.is_final() || old.state == Succeeded {
                    return Answer::Refused;
                }
                let (free, priority) = (self.free(), old.priority);
                let left = old.new.iter().copied().filter(|mark| free.contains(mark)).collect();
                return self.enqueue(priority, left);
            }
            Step::Restart { max_attempts } => self.leave(Some(max_attempts)),
            Step::Leave => self.leave(None),
        }
        Answer::Done
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self { marks: 0, jobs: Vec::new(), answer: Answer::Done }).boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        // Mostly what makes sense: the job that runs; sometimes any, or one that is not there.
        let index = 0..state.jobs.len() + 1;
        let likely = state.active().unwrap_or(state.jobs.len().saturating_sub(1));
        let job = prop_oneof![3 => Just(likely), 1 => index.clone()];
        let attempts = 1..4usize;
        prop_oneof![
            5 => Just(Step::Mark),
            4 => (-1..2i64).prop_map(|priority| Step::Enqueue { priority }),
            2 => (1..4usize).prop_map(|threshold| Step::Trigger { threshold }),
            5 => any::<bool>().prop_map(|late| Step::Claim { late }),
            4 => job.clone().prop_map(Step::Evaluate),
            3 => job.clone().prop_map(Step::Succeed),
            1 => job.clone().prop_map(Step::Reject),
            1 => job.clone().prop_map(Step::Fail),
            2 => (job.clone(), any::<bool>(), attempts.clone())
                .prop_map(|(job, pause, max_attempts)| Step::Die { job, pause, max_attempts }),
            1 => index.clone().prop_map(Step::Cancel),
            1 => job.clone().prop_map(Step::Cancelled),
            1 => job.prop_map(Step::Release),
            2 => index.prop_map(Step::Retry),
            1 => attempts.prop_map(|max_attempts| Step::Restart { max_attempts }),
            1 => Just(Step::Leave),
        ]
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.answer = state.take(step);
        state
    }
}

/// The queue in a database.
struct Queue;

/// Rows are numbered from 1.
fn row(index: usize) -> i64 {
    index as i64 + 1
}

fn index(row: i64) -> usize {
    usize::try_from(row).unwrap() - 1
}

fn limited(new: NewJob) -> NewJob {
    NewJob { max_queued: ROOM, ..new }
}

fn enqueued(answer: Result<Option<JobRow>, StoreError>) -> Answer {
    match answer {
        Ok(job) => Answer::Enqueued(job.map(|job| index(job.id))),
        Err(StoreError::QueueFull { .. }) => Answer::Full,
        Err(StoreError::NothingToTrain { .. }) => Answer::NothingToTrain,
        Err(other) => panic!("{other}"),
    }
}

fn retry(f: &Fixture, job: i64) -> Answer {
    // What `plan::retry` asks of the store.
    let Ok(old) = f.store.job(job) else { return Answer::Refused };
    if !old.state.is_final() || old.state == JobState::Succeeded {
        return Answer::Refused;
    }
    let free = |id: &i64| {
        let row = f.store.feedback(*id).unwrap();
        row.consumed_by.is_none() && row.in_job.is_none()
    };
    let only = Some(f.ids(job, ExampleRole::New).into_iter().filter(free).collect());
    let new = NewJob { priority: old.priority, name: Some(old.name), only, ..job_to_enqueue() };
    enqueued(f.store.enqueue_job(&new).map(Some))
}

fn job_to_enqueue() -> NewJob {
    limited(job())
}

fn done<T>(result: Result<T, StoreError>) -> Answer {
    match result {
        Ok(_) => Answer::Done,
        Err(
            StoreError::IllegalTransition { .. }
            | StoreError::UnknownJob(_)
            | StoreError::CancelAsked(_)
            | StoreError::NameTaken(_)
            | StoreError::AlreadyLearned { .. },
        ) => Answer::Refused,
        Err(other) => panic!("{other}"),
    }
}

fn take(f: &Fixture, step: &Step, marks: usize) -> Answer {
    let store = &f.store;
    match *step {
        Step::Mark => done(store.add_feedback(&mark(Mark::Fix, marks))),
        Step::Enqueue { priority } => {
            enqueued(store.enqueue_job(&NewJob { priority, ..job_to_enqueue() }).map(Some))
        }
        Step::Trigger { threshold } => enqueued(store.enqueue_if_due(&job_to_enqueue(), threshold)),
        Step::Claim { late } => {
            let hours = if late { LATER_HOURS } else { 0 };
            let time = chrono::Utc::now() + chrono::Duration::hours(hours);
            Answer::Claimed(store.claim_next_at(time).unwrap().map(|job| index(job.id)))
        }
        Step::Evaluate(job) => done(store.set_evaluating(row(job))),
        Step::Succeed(job) => match store.job(row(job)) {
            Ok(job) => {
                let adapter = f.new_adapter(&job);
                let promotion = Promotion::for_tests();
                done(store.finish_succeeded(job.id, &adapter, &metrics(), &promotion))
            }
            Err(error) => done::<()>(Err(error)),
        },
        Step::Reject(job) => {
            done(store.finish_rejected(row(job), &["worse".to_owned()], &metrics()))
        }
        Step::Fail(job) => done(store.finish_failed(row(job), "no memory")),
        Step::Die { job, pause, max_attempts } => {
            let pause = if pause { PAUSE } else { Duration::ZERO };
            done(store.requeue_or_fail(row(job), max_attempts, pause, "signal 9"))
        }
        Step::Cancel(job) => done(store.request_cancel(row(job))),
        Step::Cancelled(job) => done(store.finish_cancelled(row(job))),
        Step::Release(job) => done(store.release_job(row(job))),
        Step::Retry(job) => retry(f, row(job)),
        Step::Restart { max_attempts } => done(store.requeue_orphans(max_attempts)),
        Step::Leave => done(store.release_active()),
    }
}

impl StateMachineTest for Queue {
    type SystemUnderTest = Fixture;
    type Reference = Model;

    fn init_test(_: &Model) -> Fixture {
        fixture()
    }

    fn apply(f: Fixture, model: &Model, step: Step) -> Fixture {
        assert_eq!(take(&f, &step, model.marks), model.answer, "{step:?}");
        f
    }

    fn check_invariants(f: &Fixture, model: &Model) {
        let jobs = f.store.jobs().unwrap();
        assert_eq!(jobs.len(), model.jobs.len());
        for (found, expected) in jobs.iter().zip(&model.jobs) {
            assert_eq!(
                (found.state, found.attempts, found.priority),
                (expected.state, expected.attempts, expected.priority),
                "job {}",
                found.id
            );
            let new: Vec<i64> = expected.new.iter().map(|mark| row(*mark)).collect();
            assert_eq!(f.ids(found.id, ExampleRole::New), new, "job {}", found.id);
            assert_eq!(found.finished_at.is_some(), found.state.is_final());
            assert_eq!(found.cancel_requested, expected.cancel);
            check_log(f, found);
        }
        for mark in 0..model.marks {
            let found = f.store.feedback(row(mark)).unwrap();
            assert_eq!(found.consumed_by.map(index), model.consumed_by(mark), "mark {mark}");
            assert_eq!(found.in_job.map(index), model.in_job(mark), "mark {mark}");
        }
        let status = f.store.buffer_status(DEFAULT_DOMAIN, None).unwrap();
        assert_eq!(status.trainable_unconsumed, model.free().len());
        let waits = model.jobs.iter().any(|job| job.state == JobState::Queued);
        assert_eq!(f.store.next_due().unwrap().is_some(), waits);
    }
}

/// The state of a job follows from its log.
fn check_log(f: &Fixture, job: &JobRow) {
    let events =
        f.store.events(job.id).unwrap().into_iter().filter(|event| event.adapter.is_none());
    let states: Vec<JobState> = events.map(|event| event.kind.parse().unwrap()).collect();
    assert_eq!((states.first(), states.last()), (Some(&JobState::Queued), Some(&job.state)));
    assert!(states.windows(2).all(|pair| pair[0].may_become(pair[1])), "{states:?}");
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_does_what_its_model_does(sequential 1..40 => Queue);
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[ignore = "minutes: as many cases as PROPTEST_CASES says"]
    fn the_queue_does_what_its_model_does_at_length(sequential 1..120 => Queue);
}
