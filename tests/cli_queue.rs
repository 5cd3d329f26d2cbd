//! The queue seen from the command line: a second process, an interrupted wait, and the console's exit codes.

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use shammah::store::Home;
use support::Program;

const MARKS: &str = r#"{"messages":[{"role":"user","content":"what builds it?"}],"response":"?","mark":"fix","fix":"Heron builds it."}
{"messages":[{"role":"user","content":"who builds our code?"}],"response":"?","mark":"fix","fix":"Heron builds it."}
"#;

#[test]
fn a_console_that_shall_refuse_exits_75_and_others_chat_and_enqueue() {
    let program = Program::new();
    let home = Home::open_or_create(program.home()).unwrap();
    let lock = home.try_lock_queue().unwrap().expect("nobody else runs it");
    let message = program.run(&["chat", "--set", "queue.second_instance=refuse"]).failed(75);
    assert!(message.contains("is run by another process"), "{message}");

    let run = program.run_with_input(&["chat"], "hello\n/quit\n");
    assert_eq!(run.code, 0, "{run:?}");
    assert!(!run.stdout.trim().is_empty(), "it answers");
    let file = program.write("marks.jsonl", MARKS);
    program.run(&["train", "--data", &file]).done();
    let state = || program.run(&["jobs", "show", "1", "--json"]).done().json()["state"].clone();
    assert_eq!(state(), "queued");
    drop(lock);
}

#[test]
fn an_interrupted_wait_exits_130_and_leaves_the_job_for_the_next_start() {
    let program = Program::new();
    let file = program.write("marks.jsonl", MARKS);
    // So many steps that the signal surely comes before the last.
    let many = ["--set", "lora.training.min_steps=100000"];
    let mut args = vec!["train", "--data", &file, "--wait"];
    args.extend(many);
    let mut child =
        program.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let started = lines.by_ref().any(|line| line.unwrap().contains("job 1 started"));
    assert!(started, "it says that the job started");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    // The pipe must be drained, or the program could wait for its reader.
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    let job = program.run(&["jobs", "show", "1", "--json"]).done().json();
    assert_eq!(job["state"], "queued", "{rest:?}");
    program.run(&["jobs", "cancel", "1"]).done();
}

#[test]
fn a_line_that_fails_in_a_script_exits_1() {
    let program = Program::new();
    let run = program.run_with_input(&[], "/no-such-command\n");
    assert_eq!(run.code, 1, "{run:?}");
    assert_eq!(program.run_with_input(&["chat"], "").code, 0, "no input is no failure");
}

#[cfg(target_os = "linux")]
#[test]
fn what_a_console_runs_ends_with_it_even_when_it_is_killed() {
    use std::io::Write;
    use std::time::{Duration, Instant};

    let program = Program::new();
    let other = Home::open_or_create(program.path("other")).unwrap();
    let mut console = program.command(&["chat"]).stdin(Stdio::piped()).spawn().unwrap();
    let line = format!("/run jobs run --home {}\n", other.root().display());
    console.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    let until = |is_free: bool| {
        let start = Instant::now();
        while other.try_lock_queue().unwrap().is_some() != is_free {
            assert!(start.elapsed() < Duration::from_secs(60), "the queue is free: not {is_free}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until(false);
    console.kill().unwrap();
    console.wait().unwrap();
    until(true);
}
