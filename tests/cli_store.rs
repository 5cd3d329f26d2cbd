//! `shammah feedback | jobs | adapters` on the real program: what they print and how they end.

mod support;

use serde_json::{Value, json};
use support::{Program, mode};

fn mark(program: &Program, more: &[&str]) -> Value {
    let mut args = vec!["feedback", "add", "--prompt", "which?", "--response", "that", "--json"];
    args.extend(more);
    program.run(&args).done().json()
}

#[test]
fn marks_are_added_listed_and_counted() {
    let program = Program::new();
    assert_eq!(mark(&program, &["--mark", "good"])["weight"], 1.0);
    assert_eq!(mark(&program, &["--mark", "medium", "--note", "longer"])["weight"], 3.0);
    let fixed = mark(&program, &["--mark", "critical", "--fix", "this", "--domain", "rust"]);
    assert_eq!((&fixed["weight"], &fixed["domain"]), (&json!(10.0), &json!("rust")));
    let heavier = mark(&program, &["--mark", "good", "--set", "feedback.weight_good=2"]);
    assert_eq!(heavier["weight"], 2.0);

    let rows = program.run(&["feedback", "list", "--json"]).done().json_lines();
    let ids: Vec<i64> = rows.iter().filter_map(|row| row["id"].as_i64()).collect();
    assert_eq!(ids, [4, 3, 2, 1], "newest first");
    assert_eq!(rows[0]["messages"], json!([{"role": "user", "content": "which?"}]));
    let pending = program.run(&["feedback", "list", "--pending", "--json"]).done().json_lines();
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0]["note"], "longer");
    let rust = program.run(&["feedback", "list", "--domain", "rust", "--json"]).done();
    assert_eq!(rust.json_lines().len(), 1);
    let table = program.run(&["feedback", "list"]).done().stdout;
    assert!(table.contains("waiting for a correction"), "{table}");

    let stats = program.run(&["feedback", "stats", "--json"]).done().json_lines();
    let general = stats.iter().find(|row| row["domain"] == "general").unwrap();
    assert_eq!((&general["marks"], &general["good"]), (&json!(3), &json!(2)));
    assert_eq!(general["waiting_for_correction"], 1);
    assert_eq!(stats.len(), 2);
}

#[test]
fn an_added_mark_is_acknowledged_with_its_weight_its_note_and_the_buffer() {
    let program = Program::new();
    let args =
        ["feedback", "add", "--prompt", "q", "--response", "a", "--mark", "medium", "--note", "n"];
    let text = program.run(&args).done().stdout;
    assert_eq!(
        text,
        "stored mark 1: medium, weight 3, note: n, waiting for a correction\nTraining buffer: 1 example (3.0 weighted)\n"
    );
    let message = program
        .run(&["feedback", "add", "--prompt", "q", "--response", " ", "--mark", "good"])
        .failed(2);
    assert!(message.contains("must not be empty"), "{message}");
    let both =
        ["feedback", "add", "--prompt", "q", "--response", "a", "--mark", "good", "--fix", "b"];
    assert!(program.run(&both).failed(2).contains("leave out one"));
    let none =
        ["feedback", "add", "--prompt", "q", "--response", "a", "--mark", "critical", "--fix", ""];
    assert!(program.run(&none).failed(2).contains("better answer is empty"));
    program.run(&["feedback", "add", "--prompt", "q2", "--response", "a", "--mark", "good"]).done();
    let message = program.run(&["feedback", "edit", "2", "--fix", "b"]).failed(2);
    assert!(message.contains("--mark fix too"), "{message}");
}

#[test]
fn a_job_is_found_by_its_name_too() {
    let program = Program::new();
    mark(&program, &["--mark", "good"]);
    program.run(&["train", "--name", "style"]).done();
    let shown = program.run(&["jobs", "show", "style", "--json"]).done().json();
    assert_eq!(shown["id"], 1);
    let message = program.run(&["jobs", "show", "stile"]).failed(1);
    assert!(
        message.contains("no job is named \"stile\"") && message.contains("jobs list"),
        "{message}"
    );
    program.run(&["jobs", "cancel", "style"]).done();
    let message = program.run(&["jobs", "cancel", "style"]).failed(1);
    assert!(
        message.contains("has ended already (cancelled): there is nothing left to cancel"),
        "{message}"
    );
}

#[test]
fn what_is_exported_can_be_imported() {
    let program = Program::new();
    mark(&program, &["--mark", "good"]);
    mark(&program, &["--mark", "fix", "--fix", "better \"quoted\"\nüñ", "--note", "n"]);
    let file = program.path("marks.jsonl");
    let path = file.to_str().unwrap();
    let wrote = program.run(&["feedback", "export", path, "--json"]).done().json();
    assert_eq!(wrote["exported"], 2);
    assert_eq!(mode(&file), 0o600);
    let message = program.run(&["feedback", "export", path]).failed(2);
    assert!(message.contains("exists already") && message.contains("--force"), "{message}");
    program.run(&["feedback", "export", path, "--force"]).done();
    let streamed = program.run(&["feedback", "export", "-"]).done();
    assert_eq!(streamed.stdout, fs_err::read_to_string(&file).unwrap());
    let keys: Vec<String> = streamed.json_lines()[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys,
        [
            "id",
            "messages",
            "response",
            "mark",
            "weight",
            "note",
            "fix",
            "domain",
            "adapter",
            "created_at",
            "consumed_by"
        ]
    );

    let other = Program::new();
    let got = other.run(&["feedback", "import", path, "--json"]).done().json();
    assert_eq!(got["imported"], 2);
    let back = other.run(&["feedback", "export", "-"]).done().json_lines();
    let text = |rows: &[Value]| {
        rows.iter()
            .map(|row| {
                let mut row = row.clone();
                row["created_at"] = Value::Null;
                row
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(text(&back), text(&streamed.json_lines()));
    let piped =
        other.run_with_input(&["feedback", "import", "-", "--domain", "rust"], &streamed.stdout);
    assert_eq!(piped.done().stdout, "stored 2 marks from -\n");
}

#[test]
fn a_wrong_line_imports_nothing() {
    let program = Program::new();
    let good = r#"{"messages":[{"role":"user","content":"q"}],"response":"a","mark":"good"}"#;
    let file = program.write("bad.jsonl", &format!("{good}\n{{\"mark\":\"good\"}}\n"));
    let message = program.run(&["feedback", "import", &file]).failed(1);
    assert!(message.starts_with(&format!("{file}:2: missing field `messages`")), "{message}");
    assert_eq!(program.run(&["feedback", "list", "--json"]).done().stdout, "");
    let message = program.run(&["feedback", "import", "/no/such.jsonl"]).failed(1);
    assert!(message.contains("/no/such.jsonl"), "{message}");
    let folder = program.path("no/such/out.jsonl");
    let message = program.run(&["feedback", "export", folder.to_str().unwrap()]).failed(1);
    assert!(message.contains("nothing was exported"), "{message}");
}

#[test]
fn empty_lists_are_headings_and_no_json() {
    let program = Program::new();
    for command in ["jobs", "adapters", "feedback"] {
        assert_eq!(program.run(&[command, "list"]).done().stdout.lines().count(), 1);
        assert_eq!(program.run(&[command, "list", "--json"]).done().stdout, "");
    }
    let stats = program.run(&["feedback", "stats", "--json"]).done().json();
    assert_eq!((&stats["domain"], &stats["marks"]), (&json!("general"), &json!(0)));
}

#[test]
fn what_does_not_exist_exits_1_and_names_the_list() {
    let program = Program::new();
    for (args, part) in [
        (&["jobs", "show", "7"][..], "no job 7: see `shammah jobs list`"),
        (&["jobs", "cancel", "7"], "no job 7: see `shammah jobs list`"),
        (&["adapters", "show", "x"], "no adapter \"x\": see `shammah adapters list`"),
        (&["adapters", "unload", "x"], "no adapter \"x\": see `shammah adapters list`"),
        (&["adapters", "delete", "x"], "no adapter \"x\": see `shammah adapters list`"),
    ] {
        assert_eq!(program.run(args).failed(1), part);
    }
}

#[test]
fn a_data_directory_that_cannot_be_used_says_why() {
    let program = Program::new();
    let file = program.write("file", "");
    let message = program.run(&["feedback", "list", "--home", &file]).failed(1);
    assert!(message.contains("is not a directory"), "{message}");
    fs_err::create_dir(program.home()).unwrap();
    fs_err::write(
        program.home().join("shammah.db"),
        "this is no database, but long enough for one".repeat(9),
    )
    .unwrap();
    let message = program.run(&["feedback", "list"]).failed(1);
    assert!(message.contains("is damaged or is no database"), "{message}");
}
