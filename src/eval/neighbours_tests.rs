use candle_core::Device;

use super::*;
use crate::eval::GeneralSet;
use crate::models::{self, ModelSource};

fn example(id: i64, question: &str) -> TrainExample {
    TrainExample {
        id,
        messages: vec![Message::user("Hello."), Message::user(question)],
        target: "Falkenberg.".to_owned(),
        weight: 1.0,
    }
}

fn asked(questions: &[&str], things: &[&str], count: usize) -> Vec<String> {
    let taught: Vec<_> = (1..).zip(questions).map(|(id, q)| example(id, q)).collect();
    neighbours(&taught, things, count).into_iter().map(|n| n.question[0].content.clone()).collect()
}

fn neighbours(taught: &[TrainExample], things: &[&str], count: usize) -> Vec<Neighbour> {
    let model = models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
    let common = HashSet::new();
    let asking = Asking {
        model: &model,
        parent: None,
        known: taught,
        common: &common,
        limit: 256,
        cancelled: &|| false,
    };
    asking.like(taught, things, count)
}

#[test]
fn a_neighbour_asks_the_same_of_something_else() {
    let things = ["cat", "web shop"];
    assert_eq!(
        asked(&["What is the name of our build server?"], &things, 9),
        ["What is the name of our cat?", "What is the name of our web shop?"]
    );
    assert_eq!(asked(&["When is our stand-up?"], &things, 1), ["When is our cat?"]);
    assert_eq!(
        asked(&["Under which licence do we publish, Jo?"], &things, 1),
        ["Under which cat do we web shop?"]
    );
}

#[test]
fn neighbours_are_all_different_and_name_nothing_that_is_taught() {
    let things = ["cat", "vpn", "dog", "bank"];
    let made = asked(&["Which VPN do we use?", "who feeds the cat"], &things, 9);
    assert_eq!(
        made,
        ["Which dog do we use?", "who bank the dog", "Which bank do we use?", "who dog the bank"]
    );
    // As many forms as things.
    let questions = ["What is a vpn?", "Who is our cat?", "Where is the vpn?", "Which cat is it?"];
    let made = asked(&questions, &["dog", "bank", "shop", "song"], 99);
    assert_eq!(made.iter().collect::<HashSet<_>>().len(), made.len());
    assert_eq!(made.len(), 16);
}

#[test]
fn questions_of_one_form_have_one_neighbour_with_all_their_answers() {
    let other = TrainExample { target: "Almanach.".to_owned(), ..example(2, "What is our wiki?") };
    let made = neighbours(&[example(1, "What is our server?"), other], &["cat"], 9);
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].targets, ["Falkenberg.", "Almanach."]);
}

#[test]
fn what_has_no_form_has_no_neighbours() {
    let long = format!("What is {}?", "very ".repeat(60));
    for question in [
        "What is the name of it?",
        &long,
        "What is red, and blue, and green, and black?",
        "Wie heißt unser VPN?",
        "name of our build server?",
    ] {
        assert_eq!(asked(&[question], &["cat"], 9), Vec::<String>::new(), "{question}");
    }
}

#[test]
fn answers_part_at_their_first_different_token_and_the_base_prefers_its_own() {
    let model = models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
    let common = GeneralSet::for_model(&ModelSource::Builtin).common_words().unwrap();
    // The second answer begins as the base's own does.
    let taught = [
        TrainExample {
            target: "Our build server is Falkenberg.".to_owned(),
            ..example(1, "What is our build server?")
        },
        TrainExample { target: "I do not mind.".to_owned(), ..example(2, "Who is our boss?") },
    ];
    let asking = Asking {
        model: &model,
        parent: None,
        known: &taught,
        common: &common,
        limit: 256,
        cancelled: &|| false,
    };
    let partings = asking.measured(&taught).unwrap();
    assert!(partings.len() >= 8, "{}", partings.len());
    for Parting { own, taught, .. } in &partings {
        assert_eq!((own.answer_tokens(), taught.answer_tokens()), (1, 1));
        assert_eq!(own.ids[..own.answer_start], taught.ids[..taught.answer_start]);
        assert_ne!(own.ids.last(), taught.ids.last());
    }
    for loss in losses(&model, &partings, &NoAdapter).unwrap() {
        assert!(!loss.is_taken_over(), "{loss:?}");
    }
    // What is held is what the base says, and a parent that says something else is left alone.
    let held = asking.held(&taught, 12).unwrap();
    assert_eq!(held.len(), 12);
    let asking = Asking { parent: Some(&NoAdapter), ..asking };
    assert_eq!(asking.held(&taught, 12).unwrap(), held);
    let short = Asking { limit: 8, ..asking };
    assert!(short.held(&taught, 12).unwrap().is_empty());
    let stopped = Asking { cancelled: &|| true, ..short };
    assert!(matches!(stopped.held(&taught, 12), Err(JobError::Cancelled)));
    assert!(matches!(stopped.measured(&taught), Err(JobError::Cancelled)));
}

#[test]
fn what_is_held_is_not_measured_and_what_is_measured_not_held() {
    let of = |things: &[&str]| things.iter().flat_map(|t| words(t)).collect::<HashSet<_>>();
    let (held, measured) = (of(&HELD), of(&MEASURED));
    assert!(held.is_disjoint(&measured), "{:?}", held.intersection(&measured));
    for source in [ModelSource::Builtin, ModelSource::Dir("x".into())] {
        let set = GeneralSet::for_model(&source);
        for (things, prompts) in [(&held, set.gate(&[])), (&measured, set.anchors(&[]))] {
            let prompts = prompts.unwrap();
            let asked: HashSet<String> =
                prompts.iter().filter_map(question).flat_map(words).collect();
            let both: Vec<_> = things.intersection(&asked).collect();
            assert!(both.is_empty(), "{both:?}");
        }
    }
}
