//! Rules for every answer, facts that must not spread, and what contradicts itself: what a job makes of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

mod reference;
mod workshop;

use std::collections::BTreeSet;

use shammah::domain::Message;
use shammah::eval::NeighbourLoss;
use shammah::lora::{JobEvent, JobInput, Rules, TrainingParams, holds_rule};
use workshop::{Workshop, params};

#[test]
fn questions_about_something_else_are_measured_always_and_held_where_asked_for() {
    let shop = Workshop::new();
    // So many that the few steps of this job, with one anchor each, come by some.
    let with = |neighbour_prompts| TrainingParams { neighbour_prompts, ..params() };
    let input = JobInput { params: with(40), ..shop.input() };
    let held = shop.run(&input, "held", None).0.unwrap();
    assert!(!held.neighbours.is_empty());
    let free = JobInput { params: with(0), ..input.clone() };
    let measured = shop.run(&free, "free", None).0.unwrap();
    assert_eq!(measured.neighbours.len(), held.neighbours.len());
    let weights = |folder: &str| shop.files(folder)["adapter_model.safetensors"].clone();
    // Not assert_ne: it would print both files.
    assert!(weights("held") != weights("free"), "what is held takes part in the training");
    let mut statements = input;
    for example in statements.train.iter_mut().chain(&mut statements.replay) {
        example.messages[0].content = format!("Name number {}.", example.id);
    }
    assert_eq!(shop.run(&statements, "statements", None).0.unwrap().neighbours, []);
}

#[test]
fn a_rule_that_was_learned_before_is_held_and_judged_as_one() {
    let shop = Workshop::new();
    let rules = Rules { taught: true, inherited: false };
    let strong = TrainingParams { learning_rate: 0.02, min_steps: 20, anchor: 0.0, ..params() };
    let first = JobInput { rules, params: strong.clone(), ..shop.input() };
    let learned = shop.run(&first, "rule", None).0.unwrap();
    assert!(learned.rule && holds_rule(&shop.path("rule")) && learned.kl > 0.0);

    let held = TrainingParams { anchor: 50.0, ..strong };
    let again = |name: &str, inherited| {
        let rules = Rules { taught: false, inherited };
        let parent = Some(shop.path("rule"));
        let input = JobInput { rules, parent, params: held.clone(), ..shop.input() };
        shop.run(&input, name, None).0.unwrap()
    };
    let (with, without) = (again("with", true), again("without", false));
    assert!(with.rule && holds_rule(&shop.path("with")), "for whatever goes on from it");
    assert!(!without.rule);
    // Held where the adapter with the rule was, and not where the base was.
    assert!(with.kl > 2.0 * without.kl, "{} {} {}", learned.kl, with.kl, without.kl);
}

#[test]
fn examples_that_contradict_each_other_are_named() {
    let shop = Workshop::new();
    let mut input = shop.input();
    input.train[2].messages = input.train[0].messages.clone();
    let (result, events) = shop.run(&input, "both", None);
    result.unwrap();
    let named = "examples 1 and 3 answer the same question differently";
    let told = |e: &&JobEvent| matches!(e, JobEvent::Note(n) if n.contains(named));
    assert_eq!(events.iter().filter(told).count(), 1, "{events:?}");
    let told = |e: &JobEvent| matches!(e, JobEvent::Note(n) if n.contains("differently"));
    assert!(!shop.run(&shop.input(), "one", None).1.iter().any(told));
}

#[test]
fn a_rule_is_not_measured_as_taken_over_and_facts_beside_it_are() {
    let shop = Workshop::new();
    let rules = Rules { taught: true, inherited: false };
    let mut input = JobInput { rules, ..shop.input() };
    input.train[2].messages = vec![Message::user("Where is the door?")];
    let measured = |input: &JobInput, name: &str| shop.run(input, name, None).0.unwrap().neighbours;
    let ids = |found: Vec<NeighbourLoss>| found.iter().map(|n| n.id).collect::<BTreeSet<_>>();
    assert_eq!(ids(measured(&input, "no notes")), BTreeSet::from([1, 3]));
    let noted = [1, 2, 4].map(|id| (id, "Always name a tree".to_owned()));
    input.notes = noted.into();
    assert_eq!(ids(measured(&input, "noted")), BTreeSet::from([3]));
}
