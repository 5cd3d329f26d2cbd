//! `kill -9` of worker and program in the middle of a training, through real processes.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::Program;
use support::processes::worker_of;
use support::service::Service;
use support::session::Session;

/// Small steps between checkpoints, so that there is one to go on from; more steps than a kill needs.
const SETTINGS: [&str; 3] = [
    "lora.training.checkpoint_every_steps=5",
    "lora.training.min_steps=40",
    "queue.backoff_base_ms=100",
];
/// Only a program that hangs reaches it.
const PATIENCE: Duration = Duration::from_secs(120);

const QUESTIONS: [&str; 3] = [
    "What is the name of our build server?",
    "How is our build server called?",
    "Which build server do we use?",
];

/// Ten corrected answers, as many as start a training.
fn store_ten_marks(program: &Program) {
    let row = |i: usize| {
        serde_json::json!({
            "messages": [{"role": "user", "content": QUESTIONS[i % QUESTIONS.len()]}],
            "response": "I do not know that yet.",
            "mark": "fix",
            "fix": "Our build server is called Falkenberg.",
        })
        .to_string()
    };
    let rows: Vec<String> = (0..10).map(row).collect();
    let file = program.write("marks.jsonl", &rows.join("\n"));
    let run = program.run(&["feedback", "import", &file]);
    assert_eq!(run.code, 0, "{run:?}");
}

fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn checkpoint(home: &Path) -> Option<()> {
    home.join("checkpoints/job-1/checkpoint.safetensors").exists().then_some(())
}

#[test]
fn a_killed_worker_leaves_the_chat_alone_and_its_job_goes_on_from_the_checkpoint() {
    let program = Program::new();
    store_ten_marks(&program);
    let mut chat = Session::start(&program, &SETTINGS);
    let worker = wait_for("a worker", || worker_of(chat.child.id()));
    wait_for("a checkpoint", || checkpoint(&program.home()));
    kill_process(worker, Signal::KILL).expect("the worker is ours");

    chat.send("What weight has /critical?");
    chat.expect(&["10"]);
    chat.send("/jobs wait");
    chat.expect(&["is live:"]);
    let transcript = chat.transcript.join("\n");
    assert!(transcript.contains("Attempt 2"), "{transcript}");
    assert!(transcript.contains("goes on from"), "{transcript}");
    chat.quit();

    let job = program.run(&["jobs", "show", "1", "--json"]).json();
    assert_eq!(
        (job["state"].as_str(), job["attempts"].as_u64()),
        (Some("succeeded"), Some(2)),
        "{job}"
    );
}

#[test]
fn invariant_6_a_killed_program_loses_no_mark_and_no_job() {
    let program = Program::new();
    store_ten_marks(&program);
    let mut chat = Session::start(&program, &SETTINGS);
    chat.send("Who are you?");
    chat.expect(&["shammah"]);
    chat.send("/good");
    chat.expect(&["Training buffer:"]);
    let worker = wait_for("a worker", || worker_of(chat.child.id()));
    wait_for("a checkpoint", || checkpoint(&program.home()));
    let parent = Pid::from_raw(chat.child.id() as i32).expect("a pid");
    kill_process(parent, Signal::KILL).expect("the program is ours");
    chat.child.wait().expect("it is dead");
    let gone = |pid: Pid| !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists();
    wait_for("the worker's death with its parent", || gone(worker).then_some(()));
    drop(chat);

    assert_eq!(program.run(&["feedback", "list", "--json"]).json_lines().len(), 11);
    let mut chat = Session::start(&program, &SETTINGS);
    chat.send("/jobs wait");
    chat.expect(&["is live:"]);
    chat.send(QUESTIONS[0]);
    chat.expect(&["Falkenberg"]);
    chat.quit();
    let jobs = program.run(&["jobs", "list", "--json"]).json_lines();
    assert_eq!(jobs[0]["state"], "succeeded", "{jobs:?}");
}

#[test]
fn a_console_beside_a_killed_service_runs_the_queue_and_its_job_goes_on() {
    let program = Program::new();
    store_ten_marks(&program);
    let settings = ["lora.training.min_steps=150", SETTINGS[0], SETTINGS[2], "worker.idle=false"];
    let args: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let mut service = Service::start(&program, &args);
    service.says("job 1 started");
    let mut chat = Session::start(&program, &settings);
    chat.expect(&["runs the queue"]);
    wait_for("a checkpoint", || checkpoint(&program.home()));
    service.end(Signal::KILL);
    chat.expect(&["is gone: this one runs it from now on"]);
    let late = program.run(&["jobs", "run"]);
    assert_eq!(late.code, 75, "{late:?}");
    chat.send("/jobs wait");
    chat.expect(&["is live:"]);
    let transcript = chat.transcript.join("\n");
    assert!(transcript.contains("goes on from the checkpoint"), "{transcript}");
    chat.quit();
    let job = program.run(&["jobs", "show", "1", "--json"]).json();
    assert_eq!(
        (job["state"].as_str(), job["attempts"].as_u64()),
        (Some("succeeded"), Some(2)),
        "{job}"
    );
}
