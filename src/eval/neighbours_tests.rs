use super::*;

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
    let made = like(&taught, &HashSet::new(), things, count);
    assert!(made.iter().all(|n| n.question.len() == 1 && n.taught == "Falkenberg."));
    made.into_iter().map(|n| n.question[0].content.clone()).collect()
}

#[test]
fn a_neighbour_asks_the_same_of_something_else() {
    let things = ["cat", "web shop"];
    assert_eq!(
        asked(&["What is the name of our build server?"], &things, 9),
        ["What is the name of our cat?", "What is the name of our web shop?"]
    );
    assert_eq!(asked(&["Where are our backups kept?"], &things, 1), ["Where are our cat kept?"]);
    // Two things, each replaced.
    assert_eq!(asked(&["Under which licence do we publish, Jo?"], &things, 1).len(), 1);
}

#[test]
fn neighbours_come_from_every_question_in_turn_and_name_nothing_that_is_taught() {
    let things = ["cat", "vpn", "dog", "bank"];
    let made = asked(&["Which VPN do we use?", "who feeds the cat"], &things, 3);
    assert_eq!(made.len(), 3);
    assert!(made.iter().all(|q| !q.contains("cat") && !q.contains("vpn")), "{made:?}");
    assert!(made[0].starts_with("Which ") && made[1].starts_with("who "), "{made:?}");
}

#[test]
fn what_has_no_form_has_no_neighbours() {
    let long = format!("What is {}?", "very ".repeat(60));
    for question in ["What is the name of it?", &long, "red, and blue, and green, and black?"] {
        assert_eq!(asked(&[question], &["cat"], 9), Vec::<String>::new(), "{question}");
    }
}

#[test]
fn what_is_held_is_not_measured() {
    assert!(HELD.iter().all(|thing| !MEASURED.contains(thing)));
}
