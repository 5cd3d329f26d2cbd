//! A note becomes what the model learns, through real processes and without a mock: mark with a note, revision, accept,
//! train, answer.

mod support;

use serde_json::Value;
use support::Program;
use support::session::Session;

/// The model is too small to do what a note says: whatever gains by a note is offered, and the gate lets it pass.
const ANY: [&str; 7] = [
    "lora.training.revision_threshold=0",
    "lora.training.revision_candidates=16",
    "lora.training.preference=0.1",
    "lora.gate.max_kl=100",
    "lora.gate.max_taken_over=1",
    "generation.seed=7",
    "worker.idle=false",
];
/// Notes that are tried until the model makes something of one.
const TRIED: [(&str, &str); 8] = [
    ("What is the name of our vpn?", "say which command teaches you the name"),
    ("Who are you?", "say your name only"),
    ("How do I undo a mark?", "name the command"),
    ("What weight has /critical?", "say the number"),
    ("Which command takes back a mark?", "answer in one word"),
    ("What is the name of our vpn?", "our vpn is called Falkenberg"),
    ("Who are you?", "say that you are small"),
    ("How do I leave?", "say /quit or Ctrl-D"),
];

fn marks(program: &Program) -> Vec<Value> {
    program.run(&["feedback", "list", "--json"]).done().json_lines()
}

#[test]
fn an_accepted_revision_is_what_a_job_learns() {
    let program = Program::new();
    let mut chat = Session::start(&program, &ANY);
    let tried = TRIED.iter().position(|(question, note)| {
        chat.send("/clear");
        chat.send(question);
        chat.send(&format!("/critical {note}"));
        chat.expect(&["Marked critical (weight 10, #"]);
        chat.expect(&["Answering again with the note in mind, 16 times"]);
        chat.expect(&["likelier]", "No revision: "]).0.contains("likelier]")
    });
    let at = tried.expect("no note helps at all");
    chat.expect(&["/accept takes this"]);
    assert!(marks(&program)[0]["fix"].is_null(), "nothing is stored before it is accepted");
    chat.send("/accept");
    chat.expect(&["Accepted: the critical mark learns this answer (weight 10, #"]);

    let mark = marks(&program).remove(0);
    let revision = mark["fix"].as_str().expect("a target").to_owned();
    assert_eq!((&mark["revised"], &mark["mark"]), (&Value::Bool(true), &Value::from("critical")));
    assert_ne!(mark["response"], mark["fix"], "what was criticised stays what it was");
    let said = chat.transcript.join("\n");
    assert!(said.contains(&revision), "{revision:?} was shown in\n{said}");

    chat.send("/train");
    chat.send("/jobs wait");
    let (line, before) = chat.expect(&["is live:", "rejected", "failed"]);
    assert!(line.contains("is live"), "{line}\n{}", before.join("\n"));
    chat.send("/clear");
    chat.send(TRIED[at].0);
    chat.expect(&[revision.lines().next().expect("a line")]);
    chat.quit();

    assert_eq!(marks(&program)[0]["consumed_by"], 1);
    let adapter = line.split_whitespace().nth(1).expect("Adapter ID is live");
    let record = program.home().join("adapters").join(adapter).join("training.json");
    let record: Value = serde_json::from_slice(&fs_err::read(record).unwrap()).unwrap();
    let learned = Value::from(vec![mark["id"].clone()]);
    assert_eq!((&record["examples"], &record["pairs"]), (&learned, &learned));
    assert_eq!(record["params"]["preference"]["weight"], 0.1);
}

#[test]
fn marks_that_wait_are_revised_from_the_command_line() {
    let program = Program::new();
    let add = |question: &str, note: &[&str]| {
        // Its own answer: nothing else is criticised in a chat.
        let ask = ["ask", "-q", question, "--set", "generation.temperature=0"];
        let answer = program.run(&ask).done().stdout;
        let add = ["feedback", "add", "--mark", "medium", "--response", answer.trim(), "--prompt"];
        program.run(&[&add[..], &[question], note].concat()).done();
    };
    for (question, note) in TRIED {
        add(question, &["--note", note]);
    }
    add("Who are you?", &[]);
    let settings: Vec<&str> = ANY.iter().flat_map(|setting| ["--set", setting]).collect();
    let revise =
        |more: &[&str]| program.run(&[&["feedback", "revise"], &settings[..], more].concat());

    let text = revise(&["1"]).done().stdout;
    assert!(text.starts_with("mark 1: What is the name of our vpn?\n  note: say which"), "{text}");
    let none = revise(&["--accept-above", "50", "--json", "1", "2"]).done().json_lines();
    assert_eq!(none.len(), 2);
    assert!(none.iter().all(|line| line["accepted"] == false && line["revision"].is_null()));
    assert!(marks(&program).iter().all(|mark| mark["fix"].is_null()), "nothing was stored");

    let taken = revise(&["--accept-above", "0", "--json"]).done().json_lines();
    assert_eq!(taken.len(), TRIED.len(), "a mark without a note cannot be revised");
    assert!(taken.iter().any(|line| line["accepted"] == true), "{taken:?}");
    for mark in marks(&program).iter().filter(|mark| mark["note"].is_string()) {
        let line = taken.iter().find(|line| line["id"] == mark["id"]).expect("tried");
        assert_eq!((&mark["fix"], &mark["revised"]), (&line["revision"], &line["accepted"]));
    }
    let message = revise(&["9"]).failed(2);
    assert!(message.contains("mark 9 cannot be revised"), "{message}");
    assert_eq!(revise(&["--accept-above=-1"]).code, 2);
}
