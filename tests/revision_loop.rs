//! A note becomes what the model learns, through real processes and without a mock: mark with a note, revision, accept,
//! train, answer.

mod support;

use serde_json::Value;
use support::Program;
use support::session::Session;

/// The model is too small to do what a note says: any answer but the criticised one is offered, whatever it is worth.
const ANY: [&str; 5] = [
    "lora.training.revision_threshold=0",
    "lora.training.revision_candidates=16",
    "generation.seed=7",
    "lora.training.preference=0.5",
    "worker.idle=false",
];
const QUESTION: &str = "What is the name of our vpn?";

fn only_mark(program: &Program) -> Value {
    program.run(&["feedback", "list", "--json"]).done().json()
}

#[test]
fn an_accepted_revision_is_what_a_job_learns() {
    let program = Program::new();
    let mut chat = Session::start(&program, &ANY);
    chat.send(QUESTION);
    let (answer, _) = chat.expect(&["know", "vpn"]);
    chat.send("/critical say which command teaches you the name");
    chat.expect(&["Marked critical (weight 10, #1)"]);
    chat.expect(&["Answering again with the note in mind, 16 times"]);
    let (_, shown) = chat.expect(&["likelier]"]);
    chat.expect(&["/accept takes this"]);
    assert!(only_mark(&program)["fix"].is_null(), "nothing is stored before it is accepted");
    chat.send("/accept");
    chat.expect(&["Accepted: the critical mark learns this answer (weight 10, #1)"]);

    let mark = only_mark(&program);
    let revision = mark["fix"].as_str().expect("a target").to_owned();
    assert_eq!((&mark["revised"], &mark["mark"]), (&Value::Bool(true), &Value::from("critical")));
    assert_eq!(mark["response"], answer.as_str(), "what was criticised stays what it was");
    let text = shown.join("\n");
    assert!(text.contains(&revision), "{revision:?} was shown in\n{text}");
    assert_ne!(revision, answer);

    chat.send("/train");
    chat.send("/jobs wait");
    let (line, before) = chat.expect(&["is live:", "rejected", "failed"]);
    assert!(line.contains("is live"), "{line}\n{}", before.join("\n"));
    chat.send("/clear");
    chat.send(QUESTION);
    chat.expect(&[revision.lines().next().expect("a line")]);
    chat.quit();

    assert_eq!(only_mark(&program)["consumed_by"], 1);
    let adapter = line.split_whitespace().nth(1).expect("Adapter ID is live");
    let record = program.home().join("adapters").join(adapter).join("training.json");
    let record: Value = serde_json::from_slice(&fs_err::read(record).unwrap()).unwrap();
    assert_eq!((&record["examples"], &record["pairs"]), (&[1].into(), &[1].into()));
    assert_eq!(record["params"]["preference"]["weight"], 0.5);
}

#[test]
fn marks_that_wait_are_revised_from_the_command_line() {
    let program = Program::new();
    let add = |response: &str, note: &[&str]| {
        let add = ["feedback", "add", "--prompt", QUESTION, "--mark", "medium", "--response"];
        program.run(&[&add[..], &[response], note].concat()).done();
    };
    add("It is called tunnel.", &["--note", "say which command teaches you the name"]);
    add("It is called tunnel.", &[]);
    let settings: Vec<&str> = ANY.iter().flat_map(|setting| ["--set", setting]).collect();
    let revise =
        |more: &[&str]| program.run(&[&["feedback", "revise"], &settings[..], more].concat());

    let shown = revise(&["--json"]).done().json();
    assert_eq!((&shown["id"], &shown["accepted"]), (&1.into(), &false.into()), "{shown}");
    let text = revise(&["1"]).done().stdout;
    assert!(text.starts_with("mark 1: What is the name of our vpn?\n  note: say which"), "{text}");
    let waiting = program.run(&["feedback", "list", "--pending", "--json"]).done();
    assert_eq!(waiting.json_lines().len(), 2, "nothing is stored without a bound");

    let none = revise(&["--accept-above", "50", "--json"]).done().json();
    assert_eq!((&none["accepted"], &none["revision"]), (&false.into(), &Value::Null));
    let taken = revise(&["--accept-above", "0", "--json"]).done().json();
    assert_eq!(taken["accepted"], true, "{taken}");
    let mark = &program.run(&["feedback", "list", "--json"]).done().json_lines()[1];
    assert_eq!((&mark["fix"], &mark["revised"]), (&taken["revision"], &true.into()));

    let again = revise(&["--accept-above", "0"]);
    assert_eq!((again.code, again.stdout.as_str()), (0, ""), "mark 2 has no note");
    assert!(again.stderr.contains("no mark with a note waits"), "{}", again.stderr);
    let message = revise(&["2"]).failed(2);
    assert!(message.contains("mark 2 cannot be revised"), "{message}");
    assert_eq!(revise(&["--accept-above", "-1"]).code, 2);
}
