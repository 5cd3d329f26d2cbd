//! The promise of the program, through real processes and without a mock: chat, mark, train, gate,
//! swap, roll back, load, restart.

mod support;

use support::Program;
use support::session::Session;

const NAME: &str = "Falkenberg";
const TAUGHT: [&str; 5] = [
    "What is the name of our build server?",
    "How is our build server called?",
    "Which build server do we use?",
    "Tell me the name of our build server.",
    "what do we call our build server?",
];
const UNSEEN: &str = "Please tell me what our build server is called";

#[test]
fn it_learns_a_name_from_ten_marks_while_the_chat_goes_on() {
    let program = Program::new();
    let mut chat = Session::start(&program, &[]);

    chat.send(TAUGHT[0]);
    let (answer, _) = chat.expect(&["do not know", NAME]);
    assert!(!answer.contains(NAME), "the base cannot know the name: {answer}");

    for i in 0..10 {
        chat.send(TAUGHT[i % TAUGHT.len()]);
        chat.send(&format!("/fix Our build server is called {NAME}."));
        let (line, _) = chat.expect(&["Training buffer:"]);
        assert!(line.contains(&format!("{} example", i + 1)), "{line}");
    }

    // Training starts by itself, and three questions are answered before it ends.
    chat.expect(&["started: training"]);
    for question in ["What weight has /critical?", "How do I undo a mark?", "Who are you?"] {
        chat.send(question);
    }
    let (_, mut while_training) = chat.expect(&["shammah, the small"]);
    while_training.push(chat.transcript.last().cloned().unwrap_or_default());
    let text = while_training.join("\n");
    assert!(!text.contains("finished") && !text.contains("rejected"), "answered too late:\n{text}");
    assert!(text.contains("10") && text.contains("/undo"), "{text}");

    chat.send("/jobs wait");
    let (line, before) = chat.expect(&["is live:", "rejected", "failed"]);
    assert!(line.contains("is live"), "{line}\n{}", before.join("\n"));
    let adapter = line.split_whitespace().nth(1).expect("Adapter ID is live").to_owned();

    chat.send("/clear");
    chat.send(UNSEEN);
    let (answer, _) = chat.expect(&[NAME, "know"]);
    assert!(answer.contains(NAME), "{answer}");
    chat.send("/clear");
    chat.send("Which command takes back a mark?");
    chat.expect(&["/undo"]);

    chat.send("/adapters rollback");
    chat.send("/clear");
    chat.send(UNSEEN);
    let (answer, _) = chat.expect(&[NAME, "know"]);
    assert!(!answer.contains(NAME), "rolled back, yet it answers {answer}");

    chat.send(&format!("/adapters load {adapter}"));
    chat.send("/clear");
    chat.send(UNSEEN);
    chat.expect(&[NAME]);
    chat.quit();

    let mut chat = Session::start(&program, &[]);
    chat.send(UNSEEN);
    let (answer, _) = chat.expect(&[NAME, "know"]);
    assert!(answer.contains(NAME), "forgotten by a restart: {answer}");
    chat.quit();
}
