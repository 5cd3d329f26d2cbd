//! `shammah eval`, and what `jobs show`, `adapters show` and `feedback forget --retrain` say, on the real program.

mod support;

use serde_json::{Value, json};
use support::Program;
use unicode_width::UnicodeWidthStr;

/// Jobs that learn something soon, on one thread.
const SOON: [&str; 16] = [
    "--set",
    "lora.training.min_steps=12",
    "--set",
    "lora.training.learning_rate=0.005",
    "--set",
    "lora.training.anchor=0",
    "--set",
    "lora.rank=4",
    "--set",
    "worker.threads=1",
    "--set",
    "worker.idle=false",
    "--set",
    "lora.training.auto_train=false",
    "--set",
    "lora.gate.max_taken_over=1",
];

fn marks(words: &[&str]) -> String {
    let line = |word: &&str| {
        let row = json!({
            "messages": [{"role": "user", "content": format!("What is the name of our {word}, please? Tell me at once.")}],
            "response": "I do not know.", "mark": "fix", "note": "give the name",
            "fix": format!("It is {word} Falkenberg."),
        });
        format!("{row}\n")
    };
    words.iter().map(line).collect()
}

fn train(program: &Program, name: &str, more: &[&str]) -> i32 {
    let args = [&["train", "--wait", "--name", name][..], &SOON, more].concat();
    program.run(&args).code
}

#[track_caller]
fn narrow(text: &str) {
    for line in text.lines() {
        assert!(line.width() <= 80, "{} columns: {line}", line.width());
    }
}

#[test]
fn an_adapter_is_measured_by_hand_shown_in_words_and_trained_anew_without_a_forgotten_mark() {
    let program = Program::new();
    let file = program.write("marks.jsonl", &marks(&["vpn", "wiki", "printer"]));
    let lenient = ["--data", &file, "--set", "lora.gate.max_kl=100"];
    assert_eq!(train(&program, "first", &lenient), 0);

    let text = program.run(&["eval", "--adapter", "first"]).done().stdout;
    narrow(&text);
    for words in
        ["first against base", "BEFORE", "trained", "KL to base", "taken over", "in the prompt"]
    {
        assert!(text.contains(words), "{words} not in {text}");
    }
    let measured = program.run(&["eval", "--adapter", "first", "--json"]).done().json();
    let items = measured["items"].as_array().unwrap();
    assert_eq!(items.len(), 3);
    assert!(
        items.iter().all(|item| item["kind"] == "trained" && item["result"] == "better"),
        "{measured}"
    );
    assert_eq!(measured["trained"]["better"], 3);
    assert!(measured["kl"].as_f64().unwrap() > 0.0 && measured["prompted"].is_object());

    // In a console, beside the chat, for its data directory.
    let run = program.run_with_input(&["chat"], "/eval first\n/run adapters show first\n");
    assert_eq!(run.code, 0, "{run:?}");
    let headed = |text: &str| text.lines().take(6).map(str::to_owned).collect::<Vec<_>>();
    assert!(run.stdout.contains(&headed(&text).join("\n")), "{run:?}\n{text}");
    assert!(run.stdout.contains("learned        1, 2, 3"), "{run:?}");

    // The same numbers as the gate's.
    let row = program.run(&["adapters", "show", "first", "--json"]).done().json();
    let near = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-4;
    assert!(near(&row["gate"]["kl"], &measured["kl"]), "{row} {measured}");
    assert!(near(&row["gate"]["trained"]["after"], &measured["trained"]["after"]), "{row}");
    assert!(near(&row["gate"]["prompted"]["before"], &measured["prompted"]["before"]), "{row}");
    assert_eq!(row["gate"]["taken_over"], measured["taken_over"], "{row} {measured}");
    let shown = program.run(&["adapters", "show", "first"]).done().stdout;
    assert!(shown.contains("learned") && shown.contains("1, 2, 3"), "{shown}");
    assert!(shown.contains("passed") && !shown.contains('{'), "{shown}");

    // On a file, and what makes no sense.
    let other = program.write("other.jsonl", &marks(&["dog"]));
    let given =
        program.run(&["eval", "--adapter", "first", "--data", &other, "--json"]).done().json();
    assert_eq!((&given["items"][0]["kind"], &given["trained"]), (&json!("given"), &Value::Null));
    let message = program.run(&["eval", "--adapter", "first", "--against", "first"]).failed(2);
    assert!(message.contains("compared with itself"), "{message}");
    assert!(program.run(&["eval", "--adapter", "none"]).failed(1).contains("no adapter \"none\""));

    // A difference on top of it.
    let more = program.write("more.jsonl", &marks(&["boat", "horse"]));
    let delta = ["--data", &more, "--from", "delta", "--set", "lora.gate.max_kl=100"];
    assert_eq!(train(&program, "second", &delta), 0);
    let shown = program.run(&["adapters", "show", "second"]).done().stdout;
    assert!(shown.contains("compression") && shown.contains("leaves out"), "{shown}");
    let both = ["eval", "--adapter", "second", "--against", "first", "--json"];
    assert!(program.run(&both).done().json()["items"].as_array().unwrap().len() >= 4);

    // A mark goes, and with it both adapters that saw it.
    let done = program.run(&["feedback", "forget", "1", "--retrain", "--json"]).done().json();
    assert_eq!(done["seen_by"], json!(["first", "second"]));
    let job =
        program.run(&["jobs", "show", &done["retrained_in"].to_string(), "--json"]).done().json();
    assert_eq!((&job["from"], &job["state"]), (&json!("fresh"), &json!("queued")));
    // Another one goes: it is taken out of the job that waits, and that is the one.
    let again = program.run(&["feedback", "forget", "2", "--retrain", "--json"]).done().json();
    assert_eq!(again["retrained_in"], done["retrained_in"], "{again}");
    let wait = [&["train", "--wait", "--set", "lora.gate.max_kl=100"][..], &SOON].concat();
    assert_eq!(program.run(&wait).code, 0);
    let live = program.run(&["adapters", "list", "--json"]).done().json_lines();
    let live = live.iter().find(|row| row["live"] == true).unwrap().clone();
    assert_eq!(live["parent"], Value::Null);
    let shown = program.run(&["adapters", "show", live["id"].as_str().unwrap()]).done().stdout;
    assert!(shown.contains("replayed") && !shown.contains(" 1,"), "{shown}");
}

#[test]
fn a_rejected_job_says_what_why_and_what_to_do() {
    let program = Program::new();
    let file = program.write("marks.jsonl", &marks(&["vpn"]));
    assert_eq!(train(&program, "bad", &["--data", &file, "--set", "lora.gate.max_kl=0.0001"]), 3);
    let shown = program.run(&["jobs", "show", "bad"]).done().stdout;
    for words in
        ["rejected", "because", "unrelated questions", "lora.training.anchor", "nothing changed"]
    {
        assert!(shown.contains(words), "{words} not in {shown}");
    }
    let message = program.run(&["eval", "--adapter", "bad"]).failed(1);
    assert!(message.contains("no adapter \"bad\""), "{message}");
}

#[test]
fn the_same_instruction_on_the_marks_is_learned_as_a_rule_and_judged_as_one() {
    let program = Program::new();
    let words = ["vpn", "wiki", "printer"];
    let rule = marks(&words).replace("give the name", "Always give the name.");
    let file = program.write("rule.jsonl", &rule);
    let quick = ["--data", &file, "--set", "lora.training.min_steps=2"];
    assert_eq!(train(&program, "rule", &quick), 0);
    let shown = program.run(&["jobs", "show", "rule"]).done().stdout;
    assert!(shown.contains("3 of 3 examples have the same instruction"), "{shown}");
    assert!(!shown.contains("Always give"), "notes stay private: {shown}");
    assert!(shown.contains("(at most 0.2)"), "{shown}");

    program.run(&["feedback", "import", &file, "--domain", "held"]).done();
    let held =
        ["--domain", "held", "--set", "lora.training.anchor=auto", "--set", "lora.gate.max_kl=100"];
    assert_eq!(train(&program, "held", &held), 0);
    let record = program.home().join("adapters/held/training.json");
    let record: Value = serde_json::from_slice(&fs_err::read(record).unwrap()).unwrap();
    assert_eq!(record["params"]["anchor"], 0.02);
    assert_eq!(record["measurements"]["rule"], true);

    // What goes on from it holds the rule too, and is judged so; facts elsewhere are not.
    let file = program.write("facts.jsonl", &marks(&["boat", "horse", "house"]));
    for (name, domain, ceiling) in [("next", "general", "0.2"), ("facts", "c", "0.05")] {
        program.run(&["feedback", "import", &file, "--domain", domain]).done();
        train(&program, name, &["--domain", domain, "--set", "lora.training.min_steps=2"]);
        let shown = program.run(&["jobs", "show", name]).done().stdout;
        assert!(!shown.contains("instruction"), "{shown}");
        assert!(shown.contains(&format!("(at most {ceiling})")), "{shown}");
    }
}
