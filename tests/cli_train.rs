//! `shammah train`: what is enqueued, how it ends, and what `--wait` waits for.

mod support;

use serde_json::Value;
use support::Program;

/// One mark per line, each with a target of its own.
fn marks(count: usize, mark: &str, domain: &str) -> String {
    let line = |i: usize| {
        let row = serde_json::json!({
            "messages": [{"role": "user", "content": format!("which server builds branch {i}?")}],
            "response": "I do not know.",
            "mark": mark,
            "fix": (mark == "fix").then(|| "The build server is called Heron.".to_owned()),
            "domain": domain,
        });
        format!("{row}\n")
    };
    (0..count).map(line).collect()
}

fn train(program: &Program, more: &[&str]) -> Value {
    let mut args = vec!["train", "--json"];
    args.extend(more);
    program.run(&args).done().json()
}

#[test]
fn data_is_stored_and_the_job_learns_that_and_nothing_else() {
    let program = Program::new();
    let earlier = program.write("earlier.jsonl", &marks(2, "fix", "general"));
    program.run(&["feedback", "import", &earlier]).done();
    let file = program.write("marks.jsonl", &marks(3, "fix", "general"));
    let job = train(&program, &["--data", &file, "--name", "heron", "--priority", "-2"]);
    assert_eq!(job["state"], "queued");
    assert_eq!((&job["name"], &job["examples"]), (&"heron".into(), &3.into()));
    assert_eq!((&job["from"], &job["priority"]), (&"continue".into(), &(-2).into()));
    for key in [
        "id",
        "name",
        "state",
        "attempts",
        "examples",
        "step",
        "total_steps",
        "loss",
        "heldout_before",
        "heldout_after",
        "adapter",
        "error",
        "created_at",
        "finished_at",
    ] {
        assert!(job.get(key).is_some(), "{key} is missing");
    }
    let stats = program.run(&["feedback", "stats", "--json"]).done().json();
    assert_eq!((&stats["marks"], &stats["in_training"]), (&5.into(), &3.into()));

    let message = program.run(&["train", "--name", "heron"]).failed(1);
    assert!(message.contains("\"heron\" is taken"), "{message}");
    let rest = train(&program, &["--from", "fresh"]);
    assert_eq!((&rest["examples"], &rest["from"]), (&2.into(), &"fresh".into()));

    let listed = program.run(&["jobs", "list", "--json"]).done().json_lines();
    let ids: Vec<i64> = listed.iter().filter_map(|job| job["id"].as_i64()).collect();
    assert_eq!(ids, [2, 1], "newest first");
    program.run(&["jobs", "cancel", "1"]).done();
    assert_eq!(program.run(&["jobs", "show", "1", "--json"]).done().json()["state"], "cancelled");
    let message = program.run(&["jobs", "cancel", "1"]).failed(1);
    assert!(message.contains("job 1 has ended already (cancelled)"), "{message}");
}

#[test]
fn a_job_keeps_the_hyper_parameters_it_was_enqueued_with() {
    let program = Program::new();
    let file = program.write("marks.jsonl", &marks(1, "fix", "rust"));
    let set = ["--set", "lora.rank=4", "--set", "lora.training.epochs=7"];
    let mut args = vec!["--data", &file];
    args.extend(set);
    let job = train(&program, &args);
    assert_eq!(
        (&job["params"]["rank"], &job["params"]["training"]["epochs"]),
        (&4.into(), &7.into())
    );
    assert_eq!(job["domain"], "rust", "the domain of the marks");
}

#[test]
fn there_is_nothing_to_train_without_a_target() {
    let program = Program::new();
    let message = program.run(&["train"]).failed(1);
    assert!(message.starts_with("nothing to train in domain \"general\""), "{message}");
    let message = program.run(&["train", "--wait"]).failed(1);
    assert!(message.starts_with("nothing to train in domain \"general\""), "{message}");
    let file = program.write("marks.jsonl", &marks(2, "critical", "general"));
    let message = program.run(&["train", "--data", &file]).failed(1);
    assert!(message.contains("2 waiting for a correction"), "{message}");
}

#[test]
fn marks_of_several_domains_need_a_domain() {
    let program = Program::new();
    let text = marks(1, "fix", "rust") + &marks(1, "fix", "python");
    let file = program.write("marks.jsonl", &text);
    let message = program.run(&["train", "--data", &file]).failed(2);
    assert!(
        message.contains("\"rust\" and \"python\"") && message.contains("--domain"),
        "{message}"
    );
    assert_eq!(program.run(&["feedback", "list", "--json"]).done().stdout, "", "nothing is stored");
    assert_eq!(train(&program, &["--data", &file, "--domain", "both"])["examples"], 2);
}

#[test]
fn a_full_queue_is_said_and_keeps_the_marks() {
    let program = Program::new();
    let file = program.write("marks.jsonl", &marks(1, "fix", "general"));
    let args = ["train", "--data", &file, "--set", "queue.max_queued=1"];
    program.run(&args).done();
    let message = program.run(&args).failed(1);
    assert!(message.contains("the queue is full: 1 jobs wait (queue.max_queued)"), "{message}");
    assert_eq!(program.run(&["feedback", "list", "--json"]).done().json_lines().len(), 2);
}

#[test]
fn waiting_runs_the_queue_and_the_exit_code_is_the_gates() {
    let program = Program::new();
    let file = program.write("marks.jsonl", &marks(4, "fix", "general"));
    // A ceiling that nothing that learned anything stays under.
    let reject = ["--set", "lora.gate.max_kl=0.0001"];
    let few = ["--set", "lora.training.min_steps=4", "--set", "lora.training.epochs=1"];
    let mut args = vec!["train", "--data", &file, "--wait", "--json"];
    args.extend(few);
    args.extend(["--set", "lora.training.learning_rate=0.01"]);
    args.extend(reject);
    let run = program.run(&args);
    assert_eq!(run.code, 3, "{run:?}");
    let job = run.json();
    assert_eq!(job["state"], "rejected");
    assert!(job["error"].as_str().is_some_and(|why| why.contains("KL")), "{job}");
    assert!(
        run.stderr.contains("job 1 (") && run.stderr.contains("was rejected"),
        "{}",
        run.stderr
    );
    let again = program.run(&["feedback", "stats", "--json"]).done().json();
    assert_eq!(again["in_training"], 0, "the marks are back");
}
