//! Order, retry and watching of jobs, and what the program says about itself, through the real binary.

mod support;

use support::Program;
use support::service::{job, marks};

/// A job that is over soon.
const SHORT: [&str; 4] = ["--set", "lora.training.min_steps=2", "--set", "lora.training.epochs=1"];

fn enqueue(program: &Program, word: &str, more: &[&str]) {
    let file = program.write(&format!("{word}.jsonl"), &marks(word, 2));
    let mut args = vec!["train", "--data", &file];
    args.extend(SHORT);
    args.extend(more);
    program.run(&args).done();
}

#[test]
fn jobs_run_in_the_order_of_their_priority() {
    let program = Program::new();
    enqueue(&program, "low", &["--priority", "-1"]);
    enqueue(&program, "usual", &[]);
    enqueue(&program, "high", &["--priority", "5"]);
    enqueue(&program, "second", &[]);
    let watched = program.run(&["jobs", "show", "1", "--json"]).json();
    assert_eq!(watched["priority"], -1);
    let run = program.run(&["train", "--wait"]);
    assert!([0, 3].contains(&run.code), "{run:?}");
    let started: Vec<&str> =
        run.stderr.lines().filter(|l| l.contains(" started:")).map(|l| &l[..5]).collect();
    assert_eq!(started, ["job 3", "job 2", "job 4", "job 1"], "{}", run.stderr);
}

#[test]
fn a_cancelled_job_is_retried_once_with_its_examples_and_settings() {
    let program = Program::new();
    enqueue(&program, "owl", &["--name", "wise", "--priority", "7", "--set", "lora.rank=3"]);
    let message = program.run(&["jobs", "retry", "wise"]).failed(1);
    assert!(message.contains("is queued: only one that was rejected"), "{message}");
    program.run(&["jobs", "cancel", "wise"]).done();
    let again = program.run(&["jobs", "retry", "wise", "--json"]).done().json();
    assert_eq!((&again["id"], &again["examples"]), (&2.into(), &2.into()), "{again}");
    assert_eq!((&again["name"], &again["priority"]), (&"wise".into(), &7.into()), "{again}");
    assert_eq!(again["params"]["rank"], 3, "{again}");
    let message = program.run(&["jobs", "retry", "1"]).failed(1);
    assert!(message.contains("no example left"), "{message}");
    assert!(job(&program, 2).unwrap()["notes"].to_string().contains("job 1 again"));

    let run = program.run(&["train", "--wait"]);
    if run.code == 0 {
        let message = program.run(&["jobs", "retry", "2"]).failed(1);
        assert!(message.contains("is succeeded"), "{message}");
    } else {
        assert_eq!(run.code, 3, "{run:?}");
    }
}

#[test]
fn watching_shows_the_position_then_progress_and_ends_as_the_job_does() {
    let program = Program::new();
    enqueue(&program, "owl", &["--priority", "1"]);
    let file = program.write("heron.jsonl", &marks("heron", 4));
    let slow = ["--set", "lora.training.min_steps=120"];
    program.run(&[&["train", "--data", &file][..], &slow].concat()).done();
    let watch = program
        .command(&["jobs", "watch", "2"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It has to see the job before it runs.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let run = program.run(&["train", "--wait"]);
    let watched = support::Run::of(watch.wait_with_output().unwrap());
    assert_eq!(watched.code, run.code, "{watched:?} {run:?}");
    assert!(watched.stderr.contains("nobody runs the queue"), "{watched:?}");
    let lines: Vec<&str> = watched.stdout.lines().collect();
    assert!(lines[0].contains("queued · position 2 of 2"), "{lines:?}");
    let running = |line: &&&str| line.contains("running · step") && line.contains(" left");
    let progress = lines.iter().find(running).unwrap_or_else(|| panic!("{lines:?}"));
    assert!(
        progress.contains('%') && progress.contains("loss ") && progress.contains('▁'),
        "{progress}"
    );
    let end = lines.last().unwrap();
    assert!(end.contains("succeeded") || end.contains("rejected"), "{lines:?}");
}

#[test]
fn names_that_are_numbers_are_refused() {
    let program = Program::new();
    program.write("data.jsonl", &marks("owl", 2));
    let runs = program.write("runs.toml", "[[job]]\nname = \"12\"\ndata = \"data.jsonl\"\n");
    let message = program.run(&["train", &runs]).failed(2);
    assert!(message.contains("runs.toml:2") && message.contains("not a number"), "{message}");
    let run = program.run(&["train", "--name", "12"]);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("jobs have numbers: add a letter"), "{run:?}");
}

#[test]
fn errors_name_the_users_files_and_lines_only() {
    let program = Program::new();
    let file = program.write("bad.jsonl", &format!("{}\n{{", marks("owl", 1)));
    let message = program.run(&["feedback", "import", &file]).failed(1);
    assert!(message.contains("bad.jsonl:2: ") && !message.contains("at line"), "{message}");
    let missing = program.path("missing/out.jsonl");
    let message = program.run(&["feedback", "export", missing.to_str().unwrap()]).failed(1);
    assert!(message.contains("its directory does not exist"), "{message}");
    assert!(!message.contains("missing/.tmp"), "{message}");
}

#[test]
fn completions_know_the_commands_of_each_shell() {
    let program = Program::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = program.run(&["completions", shell]).done().stdout;
        assert!(script.contains("shammah") && script.contains("doctor"), "{shell}: {script}");
    }
    assert_eq!(program.run(&["completions", "tcsh"]).code, 2);
    assert!(!program.home().exists(), "it needs no data directory");
}

#[test]
fn doctor_says_what_works_and_fails_with_what_does_not() {
    let program = Program::new();
    let run = program.run_with_env(&["doctor"], &[("HF_TOKEN", "hf_secret")]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.contains("made at the first start") && !program.home().exists(), "{run:?}");
    assert!(run.stdout.contains("a token is there") && !run.stdout.contains("hf_secret"));

    enqueue(&program, "owl", &[]);
    let checks = program.run(&["doctor", "--json"]).json_lines();
    let of = |name: &str| checks.iter().find(|check| check["check"] == name).cloned();
    for name in [
        "configuration",
        "data directory",
        "disk",
        "database",
        "adapters",
        "last jobs",
        "model",
        "device",
        "threads",
        "CPU",
        "memory",
        "hub",
    ] {
        let check = of(name).unwrap_or_else(|| panic!("no {name} in {checks:?}"));
        assert_ne!(check["verdict"], "failed", "{check}");
    }
    let queue = of("queue").unwrap();
    assert_eq!(queue["verdict"], "warning", "{queue}");
    assert!(queue["detail"].to_string().contains("1 waiting for a console"), "{queue}");

    let mixture = "domains.rust.adapters=[\"live\", \"nowhere\"]";
    let run = program.run(&["doctor", "--set", mixture]);
    assert!(
        run.stdout.contains("warning  mixture: domains.rust.adapters names \"nowhere\""),
        "{run:?}"
    );

    let database = program.home().join("shammah.db");
    let mut bytes = fs_err::read(&database).unwrap();
    let end = bytes.len() - 3000;
    bytes[4096..end].fill(0x5a);
    fs_err::write(&database, bytes).unwrap();
    let run = program.run(&["doctor"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stdout.contains("FAILED   database:"), "{run:?}");

    let inside_a_file = database.join("home");
    let run = program.run(&["--home", inside_a_file.to_str().unwrap(), "doctor"]);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stdout.contains("FAILED   data directory:"), "{run:?}");
    let empty = tempfile::tempdir().unwrap();
    program.run(&["--home", empty.path().to_str().unwrap(), "doctor"]);
    assert_eq!(fs_err::read_dir(empty.path()).unwrap().count(), 0, "it makes nothing");

    let run = program.run(&["doctor", "--set", "lora.rank=0", "--model", "/no/such/model"]);
    assert_eq!(run.code, 1);
    assert!(run.stdout.contains("FAILED   configuration:"), "{run:?}");
}

#[test]
fn the_log_has_spans_of_actors_turns_and_jobs_but_no_text_of_chats_or_notes() {
    let program = Program::new();
    let secrets = ["zanzibar", "quetzal", "xylophone", "mongoose"];
    let input = format!(
        "where is {}?\n/critical the {} is wrong\n/fix it is the {}.\n/train\n/jobs wait\nand the {}?\n",
        secrets[0], secrets[1], secrets[2], secrets[3]
    );
    let mut command = program.command(&["--set", "lora.training.min_steps=5"]);
    command.env("RUST_LOG", "debug");
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, input.as_bytes()).unwrap();
    drop(stdin);
    let run = support::Run::of(child.wait_with_output().unwrap());
    assert!(run.stdout.contains("Waited for 1 job"), "{run:?}");
    let mut log = String::new();
    for entry in fs_err::read_dir(program.home().join("logs")).unwrap() {
        log.push_str(&fs_err::read_to_string(entry.unwrap().path()).unwrap());
    }
    for wanted in [
        "actor{name=\"inference\"}:turn{number=1}",
        "actor{name=\"training\"}:job{id=1 attempt=1}",
        "answered",
    ] {
        assert!(log.contains(wanted), "no {wanted} in {log}");
    }
    for secret in secrets {
        let line = log.lines().find(|line| line.to_lowercase().contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
}
