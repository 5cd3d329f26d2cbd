//! Secrets in marks and marks that are forgotten, through the real program.

mod support;

use support::Program;

/// A key as OpenAI gives them; put together, so that none stands in this file.
fn key() -> String {
    let half = "q7Xw2mR9tZ4pL8vB3nJ6";
    format!("sk-{half}T3Blbk{}{half}", "FJ")
}

fn add(program: &Program, settings: &[&str], note: &str) -> support::Run {
    let mut args = vec!["feedback", "add", "--prompt", "which?", "--response", "that"];
    args.extend(["--mark", "medium", "--note", note]);
    args.extend(settings);
    program.run(&args)
}

/// Whether a text is in any file of the data directory.
fn on_disk(program: &Program, text: &str) -> bool {
    let has = |bytes: Vec<u8>| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let files = fs_err::read_dir(program.home()).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).any(|path| has(fs_err::read(path).unwrap()))
}

#[test]
fn a_secret_is_replaced_and_the_user_is_told_where() {
    let program = Program::new();
    let text = add(&program, &[], &format!("never say {}", key())).done().stdout;
    assert!(
        text.starts_with("replaced in mark 1 before it was stored: openai-api-key in note\n"),
        "{text}"
    );
    assert!(text.contains("note: never say [REDACTED:openai-api-key]"), "{text}");
    assert!(!on_disk(&program, &key()));

    let row = serde_json::json!({"messages": [{"role": "user", "content": "q"}], "mark": "good",
        "response": format!("it is {}", key())});
    let file = program.write("marks.jsonl", &row.to_string());
    let json = program.run(&["feedback", "import", &file, "--json"]).done().json();
    assert_eq!(json["redacted"][0]["rule"], "openai-api-key");
    assert_eq!(
        (&json["redacted"][0]["feedback"], &json["redacted"][0]["field"]),
        (&2.into(), &"response".into())
    );
    let scan = program.run(&["feedback", "scan"]).done();
    assert_eq!(scan.stdout, "no secrets in 2 marks\n");
}

#[test]
fn a_mark_with_a_secret_can_be_refused() {
    let program = Program::new();
    let refuse = ["--set", "feedback.secrets=refuse"];
    let message = add(&program, &refuse, &key()).failed(1);
    assert!(message.contains("openai-api-key in note") && !message.contains(&key()), "{message}");
    assert!(program.run(&["feedback", "list", "--json"]).done().stdout.is_empty());
}

#[test]
fn a_scan_finds_what_was_stored_unlooked_and_forgetting_removes_every_byte() {
    let program = Program::new();
    add(&program, &["--set", "feedback.secrets=off"], &key()).done();
    add(&program, &[], "harmless").done();
    assert!(on_disk(&program, &key()), "it was stored as it is");
    let run = program.run(&["feedback", "scan", "--json"]);
    let rows = run.json_lines();
    assert_eq!((run.code, rows.len()), (1, 1), "{run:?}");
    assert_eq!((&rows[0]["feedback"], &rows[0]["field"]), (&1.into(), &"note".into()));
    assert!(
        rows[0]["source"].as_str().unwrap().starts_with("https://github.com/gitleaks/"),
        "{rows:?}"
    );
    assert!(!run.stdout.contains(&key()), "a scan does not repeat it");
    let run = program.run(&["feedback", "scan"]);
    assert!(run.stdout.contains("mark 1 (general): openai-api-key in note"), "{run:?}");
    assert!(run.stdout.contains("1 of 2 marks hold secrets"), "{run:?}");

    fs_err::write(program.home().join("history"), format!("/medium {}\n", key())).unwrap();
    let text = program.run(&["feedback", "forget", "1"]).done().stdout;
    assert!(text.starts_with("mark 1 is forgotten"), "{text}");
    assert!(text.contains("history still has lines of it"), "{text}");
    fs_err::remove_file(program.home().join("history")).unwrap();
    assert!(!on_disk(&program, &key()), "no byte is left");
    assert_eq!(program.run(&["feedback", "scan"]).done().stdout, "no secrets in 1 marks\n");
    let message = program.run(&["feedback", "forget", "1"]).failed(1);
    assert!(message.contains("no feedback 1"), "{message}");
}

#[test]
fn the_console_forgets_a_mark() {
    let program = Program::new();
    add(&program, &[], "a wombat").done();
    let run =
        program.run_with_input(&["--set", "generation.max_tokens=4"], "/forget 1\n/forget 1\n");
    assert!(run.stdout.contains("Mark 1 is forgotten"), "{run:?}");
    assert!(
        run.stdout.contains("no feedback 1") || run.stderr.contains("no feedback 1"),
        "{run:?}"
    );
    assert!(!on_disk(&program, "a wombat"));
}

#[test]
fn a_scan_looks_at_what_jobs_said_and_at_typed_lines_and_redacts_all_where_it_stands() {
    let program = Program::new();
    add(&program, &["--set", "feedback.secrets=off"], &key()).done();
    let args = ["feedback", "add", "--prompt", "which?", "--response", "that", "--mark", "fix"];
    let better = format!("it is {}", key());
    let run =
        program.run(&[&args[..], &["--fix", &better, "--set", "feedback.secrets=off"]].concat());
    run.done();
    assert_eq!(program.run(&["train", "--set", "feedback.secrets=off"]).code, 0);
    program.run(&["jobs", "cancel", "1"]).done();
    let database = rusqlite::Connection::open(program.home().join("shammah.db")).unwrap();
    let said = format!("panicked at {}", key());
    database.execute("UPDATE jobs SET error = ?1", [&said]).unwrap();
    database.execute("UPDATE events SET detail = ?1 WHERE kind = 'cancelled'", [&said]).unwrap();
    drop(database);
    let history = program.home().join("history");
    fs_err::write(&history, format!("hello\n/medium {}\n", key())).unwrap();

    let run = program.run(&["feedback", "scan", "--json"]);
    let rows = run.json_lines();
    let places: Vec<_> = rows.iter().filter_map(|row| row["place"].as_str()).collect();
    let line = "line 2 of the console's history";
    assert_eq!((run.code, &places[..]), (1, &["example 2 of job 1", "job 1", line][..]), "{run:?}");
    assert!(!run.stdout.contains(&key()));
    let run = program.run(&["feedback", "scan"]);
    assert!(run.stdout.contains("2 of 2 marks hold secrets, and 3 are in other texts"), "{run:?}");

    let text = program.run(&["feedback", "scan", "--redact"]).done().stdout;
    assert!(text.contains("replaced in mark 1: openai-api-key in note\n"), "{text}");
    assert!(text.contains("replaced in job 1: openai-api-key\n"), "{text}");
    assert!(text.contains("replaced in 1 lines of the console's history"), "{text}");
    assert!(!on_disk(&program, &key()), "no byte is left");
    let marker = "[REDACTED:openai-api-key]";
    assert_eq!(fs_err::read_to_string(&history).unwrap(), format!("hello\n/medium {marker}\n"));
    let marks = program.run(&["feedback", "list", "--json"]).done().json_lines();
    assert!(marks.iter().any(|row| row["fix"] == format!("it is {marker}").as_str()), "{marks:?}");
    assert_eq!(program.run(&["feedback", "scan"]).done().stdout, "no secrets in 2 marks\n");
    let again = program.run(&["feedback", "scan", "--redact"]).done().stdout;
    assert_eq!(again, "no secrets: nothing was changed\n");
}
