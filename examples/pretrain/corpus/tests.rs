//! Checks of the corpus: counts, one answer a question, and a score key that was never trained.

use std::collections::{HashMap, HashSet};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const MAX_ANSWER_WORDS: usize = 40;

fn corpus() -> Corpus {
    Corpus::builtin().unwrap()
}

#[test]
fn there_is_enough_of_everything() {
    let corpus = corpus();
    assert!(corpus.facts.len() >= 60, "{} facts", corpus.facts.len());
    assert!(corpus.smalltalk.len() >= 25);
    for fact in &corpus.facts {
        assert!(fact.questions.len() >= 10, "{} has {} questions", fact.id, fact.questions.len());
    }
    assert!(corpus.private.expand().collect::<HashSet<_>>().len() > 10_000);
    assert!(corpus.world.expand().collect::<HashSet<_>>().len() > 5_000);
    assert_eq!(heldout().unwrap().len(), 100);
}

#[test]
fn no_heldout_phrasing_is_trained() {
    let trained: HashSet<String> =
        corpus().training_questions().map(|question| normalised(&question)).collect();
    let mut seen = HashSet::new();
    for item in heldout().unwrap() {
        let question = normalised(&item.question);
        assert!(!trained.contains(&question), "trained: {}", item.question);
        assert!(seen.insert(question), "twice: {}", item.question);
    }
}

#[test]
fn no_varied_question_is_a_heldout_phrasing() {
    let corpus = corpus();
    let held: HashSet<String> =
        heldout().unwrap().iter().map(|item| normalised(&item.question)).collect();
    let mut rng = StdRng::seed_from_u64(5);
    for turn in (0..20_000).flat_map(|_| corpus.dialogue(&mut rng)) {
        assert!(!held.contains(&normalised(&turn.user)), "{}", turn.user);
    }
}

#[test]
fn a_question_belongs_to_one_fact() {
    let corpus = corpus();
    let mut owners: HashMap<String, &str> = HashMap::new();
    for fact in corpus.facts.iter().chain(&corpus.smalltalk) {
        for question in &fact.questions {
            // A slash or dashes tell a console command from a flag, so they stay here.
            let key = question.to_lowercase().trim_end_matches(['?', '.', '!']).to_owned();
            if let Some(other) = owners.insert(key, &fact.id) {
                panic!("\"{question}\" is in {other} and in {}", fact.id);
            }
        }
    }
    for question in corpus.world.expand().chain(corpus.private.expand()) {
        assert!(!owners.contains_key(&question), "\"{question}\" is a fact");
    }
    let world: HashSet<String> = corpus.world.expand().collect();
    assert!(corpus.private.expand().all(|question| !world.contains(&question)));
}

#[test]
fn what_is_unknown_has_one_answer_of_each_kind() {
    let corpus = corpus();
    assert!(corpus.private.answers().all(|answer| answer == teach::NOT_TOLD));
    assert_eq!(corpus.world.answers().collect::<HashSet<_>>().len(), 1);
}

#[test]
fn ids_are_unique() {
    let corpus = corpus();
    let mut ids = HashSet::new();
    assert!(corpus.facts.iter().chain(&corpus.smalltalk).all(|fact| ids.insert(&fact.id)));
}

#[test]
fn canonical_answers_pass_the_score_key() {
    let corpus = corpus();
    let told = corpus
        .facts
        .iter()
        .chain(&corpus.smalltalk)
        .map(|fact| (fact.id.as_str(), fact.answer.as_str()));
    let unknown =
        [("world", corpus.world.answers().next()), ("private", corpus.private.answers().next())];
    let unknown = unknown.into_iter().map(|(kind, answer)| (kind, answer.unwrap()));
    let answers: HashMap<&str, &str> = told.chain(unknown).collect();
    for item in heldout().unwrap() {
        let answer = answers[item.fact.as_str()];
        assert!(
            !item.required.is_empty() && grade(&item, answer),
            "{item:?} does not fit \"{answer}\""
        );
    }
}

#[test]
fn a_wrong_answer_fails_the_score_key() {
    for item in heldout().unwrap() {
        assert!(!grade(&item, ""), "{}", item.question);
        assert!(!grade(&item, "I like trains."), "{}", item.question);
    }
}

#[test]
fn answers_are_short_ascii() {
    let corpus = corpus();
    let told = corpus.facts.iter().chain(&corpus.smalltalk).map(|fact| fact.answer.as_str());
    for answer in told.chain(corpus.world.answers()).chain(corpus.private.answers()) {
        assert!(answer.is_ascii(), "{answer}");
        assert!(answer.split_whitespace().count() <= MAX_ANSWER_WORDS, "{answer}");
    }
}

#[test]
fn dialogues_are_complete_and_repeatable() {
    let corpus = corpus();
    let draw = || {
        let mut rng = StdRng::seed_from_u64(7);
        (0..5_000).map(|_| corpus.dialogue(&mut rng)).collect::<Vec<_>>()
    };
    let dialogues = draw();
    for turn in dialogues.iter().flatten() {
        assert!(!turn.user.is_empty() && !turn.assistant.is_empty());
        assert!(turn.user.is_ascii() && turn.assistant.is_ascii(), "{turn:?}");
        assert!(!turn.user.contains(['{', '}']), "{turn:?}");
    }
    assert!(dialogues.iter().all(|dialogue| (1..=3).contains(&dialogue.len())));
    assert_eq!(dialogues, draw());
}

#[test]
fn shares_are_near_what_was_asked_for() {
    let corpus = corpus();
    let mut rng = StdRng::seed_from_u64(3);
    let facts: HashSet<&str> = corpus.facts.iter().map(|fact| fact.answer.as_str()).collect();
    let turns: Vec<Turn> = (0..10_000).flat_map(|_| corpus.dialogue(&mut rng)).collect();
    let about = turns.iter().filter(|turn| facts.contains(turn.assistant.as_str())).count() as f64
        / turns.len() as f64;
    assert!((0.50..0.62).contains(&about), "{about}");
}

/// Prints dialogues for reading: `cargo test --example pretrain sample -- --ignored --nocapture`.
#[test]
#[ignore = "prints a sample"]
fn sample() {
    let corpus = corpus();
    let mut rng = StdRng::seed_from_u64(11);
    for _ in 0..60 {
        for turn in corpus.dialogue(&mut rng) {
            eprintln!("> {}\n{}", turn.user, turn.assistant);
        }
        eprintln!();
    }
}
