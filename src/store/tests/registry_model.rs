//! Adapters against a model of them: which is live, what a step back leads to, what may be deleted.

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// A job from the live adapter, or from zero, that passes the gate.
    Publish {
        fresh: bool,
    },
    Load(usize),
    Unload(usize),
    Rollback,
    Delete(usize),
    /// Its files vanish, or come back.
    Lose(usize),
    Return(usize),
    /// What a start does.
    Tidy,
    Prune {
        keep: usize,
    },
}

/// What a step must come to.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Done,
    Refused,
    BackTo(Option<usize>),
}

#[derive(Debug, Clone)]
struct ModelAdapter {
    parent: Option<usize>,
    state: AdapterState,
    live: bool,
    whole: bool,
}

/// Adapters by their number; `None` was deleted.
#[derive(Debug, Clone)]
struct Model {
    adapters: Vec<Option<ModelAdapter>>,
    answer: Answer,
}

impl Model {
    fn get(&self, number: usize) -> Option<&ModelAdapter> {
        self.adapters.get(number)?.as_ref()
    }

    fn there(&mut self) -> impl Iterator<Item = &mut ModelAdapter> {
        self.adapters.iter_mut().flatten()
    }

    fn live(&self) -> Option<usize> {
        (0..self.adapters.len()).find(|i| self.get(*i).is_some_and(|adapter| adapter.live))
    }

    fn may_live(&self, number: usize) -> bool {
        self.get(number).is_some_and(|a| a.whole && a.state != AdapterState::Quarantined)
    }

    fn make_live(&mut self, number: usize) {
        self.there().for_each(|adapter| adapter.live = false);
        if let Some(adapter) = &mut self.adapters[number] {
            (adapter.live, adapter.state) = (true, AdapterState::Ready);
        }
    }

    fn leave(&mut self, number: usize, state: AdapterState) -> Option<usize> {
        let adapter = self.adapters[number].as_mut().unwrap();
        (adapter.live, adapter.state) = (false, state);
        let mut next = adapter.parent;
        while let Some(number) = next {
            if self.may_live(number) {
                self.make_live(number);
                return Some(number);
            }
            next = self.get(number).unwrap().parent;
        }
        None
    }

    fn may_go(&self, number: usize) -> bool {
        let of_live = |a: &ModelAdapter| a.live && a.parent == Some(number);
        self.get(number).is_some_and(|a| !a.live) && !self.adapters.iter().flatten().any(of_live)
    }

    fn delete(&mut self, number: usize) {
        let parent = self.adapters[number].take().unwrap().parent;
        for child in self.there().filter(|a| a.parent == Some(number)) {
            child.parent = parent;
        }
    }

    fn tidy(&mut self) {
        for number in 0..self.adapters.len() {
            let Some(adapter) = self.adapters[number].as_mut() else { continue };
            match (adapter.whole, adapter.state) {
                (false, AdapterState::Ready | AdapterState::RolledBack) if adapter.live => {
                    self.leave(number, AdapterState::Quarantined);
                }
                (false, _) => adapter.state = AdapterState::Quarantined,
                (true, AdapterState::Quarantined) => adapter.state = AdapterState::Ready,
                (true, _) => {}
            }
        }
    }

    /// From the oldest on, what lies more than `keep` behind and nobody needs.
    fn prune(&mut self, keep: usize) {
        loop {
            let newest_first = (0..self.adapters.len()).rev().filter(|i| self.get(*i).is_some());
            let beyond: Vec<usize> = newest_first.skip(keep).collect();
            let needed = |number: usize| {
                let adapter = self.get(number).unwrap();
                let parent = self.adapters.iter().flatten().any(|a| a.parent == Some(number));
                adapter.live || adapter.state == AdapterState::Quarantined || parent
            };
            match beyond.into_iter().rev().find(|number| !needed(*number)) {
                Some(number) => self.delete(number),
                None => return,
            }
        }
    }

    fn take(&mut self, step: &Step) -> Answer {
        match *step {
            Step::Publish { fresh } => {
                let parent = self.live().filter(|_| !fresh);
                let state = AdapterState::Ready;
                self.adapters.push(Some(ModelAdapter { parent, state, live: true, whole: true }));
                self.make_live(self.adapters.len() - 1);
            }
            Step::Load(number) if self.may_live(number) => self.make_live(number),
            Step::Unload(number) if self.get(number).is_some_and(|adapter| adapter.live) => {
                self.there().for_each(|adapter| adapter.live = false);
            }
            Step::Rollback => {
                let Some(live) = self.live() else { return Answer::Refused };
                return Answer::BackTo(self.leave(live, AdapterState::RolledBack));
            }
            Step::Delete(number) if self.may_go(number) => self.delete(number),
            Step::Load(_) | Step::Unload(_) | Step::Delete(_) => return Answer::Refused,
            Step::Lose(number) | Step::Return(number) => {
                if let Some(Some(adapter)) = self.adapters.get_mut(number) {
                    adapter.whole = matches!(step, Step::Return(_));
                }
            }
            Step::Tidy => self.tidy(),
            Step::Prune { keep } => self.prune(keep),
        }
        Answer::Done
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self { adapters: Vec::new(), answer: Answer::Done }).boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Step> {
        let index = 0..state.adapters.len() + 1;
        prop_oneof![
            5 => any::<bool>().prop_map(|fresh| Step::Publish { fresh }),
            3 => index.clone().prop_map(Step::Load),
            2 => index.clone().prop_map(Step::Unload),
            4 => Just(Step::Rollback),
            3 => index.clone().prop_map(Step::Delete),
            2 => index.clone().prop_map(Step::Lose),
            1 => index.prop_map(Step::Return),
            2 => Just(Step::Tidy),
            1 => (1..4usize).prop_map(|keep| Step::Prune { keep }),
        ]
        .boxed()
    }

    fn apply(mut state: Self, step: &Step) -> Self {
        state.answer = state.take(step);
        state
    }
}

/// The adapters of a data directory.
struct Registry;

fn name(number: usize) -> AdapterId {
    id(&format!("a{number}"))
}

fn number(id: &AdapterId) -> usize {
    id.as_str()[1..].parse().unwrap()
}

fn done<T>(result: Result<T, StoreError>) -> Answer {
    match result {
        Ok(_) => Answer::Done,
        Err(
            StoreError::UnknownAdapter(_)
            | StoreError::AdapterQuarantined(_)
            | StoreError::AdapterNotLive(_)
            | StoreError::AdapterIsLive(_)
            | StoreError::AdapterIsParentOfLive { .. },
        ) => Answer::Refused,
        Err(other) => panic!("{other}"),
    }
}

fn publish(f: &Fixture, name: AdapterId, fresh: bool) -> Answer {
    f.add(1);
    let job = f.measured_job(&NewJob { name: Some(name), ..job() });
    let parent = f.live().filter(|_| !fresh);
    f.store.set_job_parent(job.id, parent.as_ref()).unwrap();
    f.succeed(&job);
    Answer::Done
}

/// Moves an adapter's files away, or back.
fn carry(f: &Fixture, number: usize, back: bool) {
    let (place, elsewhere) =
        (f.home.adapter(&name(number)), f.home.root().join(format!("lost-{number}")));
    let (from, to) = if back { (elsewhere, place) } else { (place, elsewhere) };
    // Those of a deleted adapter stay where they are.
    let known = f.store.adapter(&name(number)).is_ok();
    if from.exists() && known {
        std::fs::rename(from, to).unwrap();
    }
}

fn take(f: &Fixture, model: &Model, step: &Step) -> Answer {
    let store = &f.store;
    match *step {
        Step::Publish { fresh } => return publish(f, name(model.adapters.len() - 1), fresh),
        Step::Load(number) => return done(store.set_live(&name(number), BASE_HASH)),
        Step::Unload(number) => return done(store.unload(&name(number))),
        Step::Rollback => {
            return match store.rollback(BASE_HASH, DEFAULT_DOMAIN) {
                Ok(to) => Answer::BackTo(to.as_ref().map(number)),
                Err(StoreError::NothingLive(_)) => Answer::Refused,
                Err(other) => panic!("{other}"),
            };
        }
        Step::Delete(number) => return done(store.delete_adapter(&name(number))),
        Step::Lose(number) => carry(f, number, false),
        Step::Return(number) => carry(f, number, true),
        Step::Tidy => drop(store.reconcile().unwrap()),
        Step::Prune { keep } => drop(store.prune(&Keep { jobs: 0, adapters: keep }).unwrap()),
    }
    Answer::Done
}

impl StateMachineTest for Registry {
    type SystemUnderTest = Fixture;
    type Reference = Model;

    fn init_test(_: &Model) -> Fixture {
        fixture()
    }

    fn apply(f: Fixture, model: &Model, step: Step) -> Fixture {
        assert_eq!(take(&f, model, &step), model.answer, "{step:?}");
        f
    }

    fn check_invariants(f: &Fixture, model: &Model) {
        let rows = f.store.adapters().unwrap();
        let numbers = (0..model.adapters.len()).filter(|i| model.get(*i).is_some());
        let expected: Vec<(usize, &ModelAdapter)> =
            numbers.map(|i| (i, model.get(i).unwrap())).collect();
        let mut found: Vec<&AdapterRow> = rows.iter().collect();
        found.sort_by_key(|row| number(&row.id));
        assert_eq!(found.len(), expected.len());
        for (row, (i, adapter)) in found.into_iter().zip(expected) {
            assert_eq!(number(&row.id), i);
            assert_eq!(
                (row.parent.as_ref().map(number), row.state, row.live),
                (adapter.parent, adapter.state, adapter.live),
                "{}",
                row.id
            );
            assert_eq!(f.home.adapter(&row.id).exists(), adapter.whole, "{}", row.id);
        }
        assert_eq!(f.live().as_ref().map(number), model.live());
        let directories = f.home.adapters().read_dir().unwrap().count();
        let whole = model.adapters.iter().flatten().filter(|adapter| adapter.whole).count();
        // The trash, once something was deleted.
        let trash = usize::from(f.home.trash().exists());
        assert_eq!(directories - trash, whole, "no files without a row");
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn adapters_do_what_their_model_does(sequential 1..40 => Registry);
}

prop_state_machine! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    #[ignore = "minutes: as many cases as PROPTEST_CASES says"]
    fn adapters_do_what_their_model_does_at_length(sequential 1..120 => Registry);
}
