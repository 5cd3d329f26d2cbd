//! Whatever is stored, nothing that the real program prints steers a terminal.

mod support;

use support::Program;

/// Clears the screen, sets the title, C1's CSI, a reversed line, a bell, DEL.
const ESCAPES: &str = "a\u{1b}[2Jb\u{1b}]0;owned\u{7}c\u{9b}31md\u{202e}e\u{8}f\u{7f}g\rh";

fn steers(c: char) -> bool {
    (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[test]
fn marks_errors_notes_and_log_tails_are_printed_without_their_escapes() {
    let program = Program::new();
    let row = serde_json::json!({"messages": [{"role": "user", "content": ESCAPES}], "response": ESCAPES,
        "mark": "fix", "fix": ESCAPES, "note": ESCAPES});
    let file = program.write("marks.jsonl", &row.to_string());
    program.run(&["feedback", "import", &file]).done();
    program.run(&["train", "--name", "strange"]).done();
    let database = rusqlite::Connection::open(program.home().join("shammah.db")).unwrap();
    database
        .execute(
            "UPDATE jobs SET state = 'failed', error = ?1",
            [format!("{ESCAPES}\nstate  succeeded")],
        )
        .unwrap();
    for kind in ["note", "log_tail", "isolation"] {
        let sql = "INSERT INTO events (at, job_id, kind, detail) VALUES (0, 1, ?1, ?2)";
        database.execute(sql, [kind, &format!("first\n{ESCAPES}")]).unwrap();
    }
    for args in [
        &["feedback", "list"][..],
        &["feedback", "list", "--json"],
        &["feedback", "export", "-"],
        &["feedback", "stats"],
        &["jobs", "list"],
        &["jobs", "list", "--json"],
        &["jobs", "show", "1"],
        &["jobs", "show", "1", "--json"],
    ] {
        let run = program.run(args).done();
        assert!(!run.stdout.chars().any(steers), "{args:?}: {:?}", run.stdout);
        assert!(!run.stdout.is_empty());
    }
    let shown = program.run(&["jobs", "show", "1"]).done().stdout;
    assert!(shown.contains("the end of its log:\n  first\n  abcdefgh"), "{shown}");
    assert!(!shown.lines().any(|line| line.starts_with("state  succeeded")), "{shown}");
    let json = program.run(&["feedback", "list", "--json"]).done().json();
    assert_eq!(json["note"], ESCAPES, "JSON means the same");
    let message = program.run(&["jobs", "show", ESCAPES]).failed(1);
    assert!(!message.chars().any(steers), "{message:?}");
}
