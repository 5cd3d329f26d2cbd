//! `shammah train RUNS.toml` and `shammah jobs compare`: from a file to curves side by side.

mod support;

use serde_json::Value;
use support::Program;

fn marks(count: usize, domain: &str) -> String {
    let line = |i: usize| {
        let row = serde_json::json!({
            "messages": [{"role": "user", "content": format!("which server builds branch {i}?")}],
            "response": "I do not know.",
            "mark": "fix",
            "fix": "The build server is called Heron.",
            "domain": domain,
        });
        format!("{row}\n")
    };
    (0..count).map(line).collect()
}

fn ids(jobs: &[Value]) -> Vec<i64> {
    jobs.iter().filter_map(|job| job["id"].as_i64()).collect()
}

/// The widest line.
fn columns(text: &str) -> usize {
    text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

const SWEEP: &str = r#"
[[job]]
name = "gentle"
data = "marks.jsonl"
learning_rate = 5e-4

[[job]]
name = "bold"
data = "marks.jsonl"
learning_rate = 5e-3
"#;

#[test]
fn a_sweep_is_trained_compared_and_drawn() {
    let program = Program::new();
    program.write("marks.jsonl", &marks(4, "general"));
    let runs = program.write("runs.toml", SWEEP);
    let few = ["--set", "lora.training.min_steps=6", "--set", "lora.training.epochs=1"];
    let lenient = [
        "--set",
        "lora.gate.max_kl=100",
        "--set",
        "lora.rank=4",
        "--set",
        "worker.nice=0",
        "--set",
        "lora.gate.max_taken_over=1",
    ];
    let mut args = vec!["train", &runs, "--wait", "--json"];
    args.extend(few.iter().chain(&lenient));
    let run = program.run(&args);
    assert_eq!(run.code, 0, "{run:?}");
    let jobs = run.json_lines();
    assert_eq!(ids(&jobs), [1, 2]);
    for job in &jobs {
        assert_eq!((&job["state"], &job["from"]), (&"succeeded".into(), &"fresh".into()), "{job}");
        assert_eq!((&job["sweep"], &job["examples"]), (&1.into(), &4.into()), "{job}");
    }
    let stored = program.run(&["feedback", "list", "--json"]).done().json_lines();
    assert_eq!(stored.len(), 4, "the rows are stored once");
    assert!(stored.iter().all(|row| row["consumed_by"] == 1), "and learned");

    let compared = program.run(&["jobs", "compare", "gentle", "2", "--json"]).done().json();
    let [gentle, bold] = compared["jobs"].as_array().unwrap().as_slice() else { panic!() };
    assert_eq!(gentle["parameters"], serde_json::json!({"learning_rate": "0.0005"}));
    assert_eq!(bold["parameters"], serde_json::json!({"learning_rate": "0.005"}));
    for job in [gentle, bold] {
        let curve = job["curve"].as_array().unwrap();
        let steps: Vec<_> = curve.iter().filter_map(|point| point["step"].as_u64()).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5, 6], "every step is there");
        assert_eq!(curve[5]["loss"], job["loss"], "the last one is the final loss");
    }
    assert_eq!(compared["best"]["loss"], serde_json::json!([2]), "{compared}");
    assert_eq!(bold["trained"]["before"], gentle["trained"]["after"], "what was live then");
    shows(&program);
    draws(&program);
}

/// What people see, at two widths.
fn shows(program: &Program) {
    for width in [50, 80] {
        let env = [("COLUMNS", width.to_string())];
        let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let shown = program.run_with_env(&["jobs", "compare", "1", "2"], &env).done().stdout;
        for part in [
            "1 gentle",
            "2 bold",
            "learning_rate",
            "0.005",
            "✓",
            "loss, nats per token",
            "step",
            "o 2 bold",
        ] {
            assert!(shown.contains(part), "{part} is missing:\n{shown}");
        }
        assert!(!shown.contains("dropout"), "only what differs:\n{shown}");
        assert!(!shown.contains('\u{1b}'), "no escapes in a pipe");
        assert!(columns(&shown) <= width, "{width}:\n{shown}");
    }
    let shown = program.run(&["jobs", "show", "1"]).done().stdout;
    assert!(shown.contains("* 1 gentle") && shown.contains('┤'), "{shown}");
    let shown = program.run(&["jobs", "show", "1", "--json"]).done().json();
    assert_eq!(shown["curve"].as_array().unwrap().len(), 6);
}

fn draws(program: &Program) {
    let path = |name: &str| program.path(name).to_str().unwrap().to_owned();
    let compare = |file: &str| program.run(&["jobs", "compare", "1", "2", "--plot", file]);
    compare(&path("curves.svg")).done();
    let svg = fs_err::read_to_string(path("curves.svg")).unwrap();
    assert!(svg.contains("1 gentle") && svg.contains("nats per token"), "{svg}");
    program.run(&["jobs", "show", "2", "--json", "--plot", &path("one.png")]).done();
    assert!(fs_err::read(path("one.png")).unwrap().starts_with(b"\x89PNG\r\n"));

    let message = compare(&path("curves.svg")).failed(1);
    assert!(message.contains("curves.svg exists already"), "{message}");
    assert_eq!(fs_err::read_to_string(path("curves.svg")).unwrap(), svg, "untouched");
    let message = compare(&path("curves.jpg")).failed(2);
    assert!(message.ends_with("the name must end in .svg or .png"), "{message}");
    let message = compare(&path("no/curves.png")).failed(1);
    assert!(message.contains("cannot write") && message.contains("no/curves.png"), "{message}");
    let message = program.run(&["jobs", "compare", "1", "nobody"]).failed(1);
    assert!(message.contains("no job is named \"nobody\""), "{message}");
    let message = program.run(&["jobs", "compare", "1", "gentle"]).failed(2);
    assert!(message.contains("job 1 is given twice"), "{message}");
}

#[test]
fn jobs_without_data_share_the_marks_of_their_domain() {
    let program = Program::new();
    let file = program.write("rust.jsonl", &marks(3, "rust"));
    program.run(&["feedback", "import", &file]).done();
    let text = "[[job]]\ndomain = \"rust\"\nrank = 4\n[[job]]\ndomain = \"rust\"\nrank = 8\n";
    let runs = program.write("runs.toml", text);
    let jobs = program.run(&["train", &runs, "--priority", "2", "--json"]).done().json_lines();
    assert_eq!(ids(&jobs), [1, 2]);
    for (job, rank) in jobs.iter().zip([4, 8]) {
        assert_eq!((&job["examples"], &job["from"]), (&3.into(), &"fresh".into()), "{job}");
        assert_eq!((&job["params"]["rank"], &job["priority"]), (&rank.into(), &2.into()), "{job}");
    }
    let shown = program.run(&["jobs", "compare", "1", "2"]).done().stdout;
    assert!(shown.contains("queued") && !shown.contains('┤'), "no steps, no plot:\n{shown}");
    let svg = program.path("none.svg");
    let message = program.run(&["jobs", "show", "1", "--plot", svg.to_str().unwrap()]).failed(1);
    assert!(message.contains("no step was done yet") && !svg.exists(), "{message}");
}

#[test]
fn a_job_that_shares_nothing_starts_as_configured() {
    let program = Program::new();
    program.write("a.jsonl", &marks(2, "a"));
    program.write("b.jsonl", &marks(3, "b"));
    let text = "[[job]]\ndata = \"a.jsonl\"\n[[job]]\ndata = \"b.jsonl\"\nfrom = \"fresh\"\n";
    let runs = program.write("runs.toml", text);
    let jobs = program.run(&["train", &runs, "--json"]).done().json_lines();
    let seen: Vec<_> =
        jobs.iter().map(|job| (&job["domain"], &job["from"], &job["sweep"])).collect();
    let (a, b) = (("a".into(), "continue".into()), ("b".into(), "fresh".into()));
    assert_eq!(seen, [(&a.0, &a.1, &Value::Null), (&b.0, &b.1, &Value::Null)]);
}

#[test]
fn a_wrong_file_enqueues_and_stores_nothing() {
    let program = Program::new();
    program.write("marks.jsonl", &marks(2, "general"));
    program.write("two.jsonl", &(marks(1, "a") + &marks(1, "b")));
    program.write("bad.jsonl", "{}\n");
    let shared = "[[job]]\ndata = \"marks.jsonl\"\n[[job]]\ndata = \"./marks.jsonl\"\n";
    for (text, code, part) in [
        (
            "[[job]]\ndata = \"marks.jsonl\"\n[[job]]\nrank = 0\n".to_owned(),
            2,
            "job 2: lora.rank = 0 is not allowed",
        ),
        (
            format!("{shared}from = \"continue\"\n"),
            2,
            "job 2: from is \"continue\", and job 1 learns the same examples",
        ),
        ("[[job]]\ndata = \"gone.jsonl\"\n".to_owned(), 2, "job 1: data cannot be read"),
        ("[[job]]\ndata = \"bad.jsonl\"\n".to_owned(), 2, "bad.jsonl:1: missing field"),
        (
            "[[job]]\ndata = \"two.jsonl\"\n".to_owned(),
            2,
            "job 1: data has marks of the domains \"a\" and \"b\"",
        ),
        (
            format!("{shared}[[job]]\ndomain = \"rust\"\n"),
            1,
            "job 3: nothing is enqueued: nothing to train in domain \"rust\"",
        ),
    ] {
        let runs = program.write("runs.toml", &text);
        let message = program.run(&["train", &runs]).failed(code);
        assert!(message.contains(part) && message.contains("runs.toml"), "{message}");
    }
    assert_eq!(program.run(&["jobs", "list", "--json"]).done().stdout, "");
    assert_eq!(program.run(&["feedback", "list", "--json"]).done().stdout, "");

    let file = program.path("marks.jsonl");
    let message = program.run(&["train", file.to_str().unwrap()]).failed(2);
    assert!(message.contains("write --data"), "{message}");
    let run = program.run(&["train", "runs.toml", "--data", "marks.jsonl"]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("cannot be used with"), "{}", run.stderr);
}
