//! The queue as a service: `shammah jobs run`, its signals and its service manager, through real processes.

mod support;

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use support::Program;
use support::service::{Service, job, marks, wait_for, wait_for_state};
use support::session::Session;

/// What stops services waits so long before it kills.
const ORDERLY: Duration = Duration::from_secs(10);

/// A job that is not over before somebody looks at it, with a checkpoint soon.
const LONG: [&str; 4] =
    ["--set", "lora.training.min_steps=20000", "--set", "lora.training.checkpoint_every_steps=5"];
/// A job that is over soon.
const SHORT: [&str; 4] = ["--set", "lora.training.min_steps=2", "--set", "lora.training.epochs=1"];

fn import(program: &Program, word: &str, count: usize) {
    let file = program.write(&format!("{word}.jsonl"), &marks(word, count));
    program.run(&["feedback", "import", &file]).done();
}

fn checkpointed(program: &Program, id: i64) {
    let file = program.home().join(format!("checkpoints/job-{id}/checkpoint.safetensors"));
    wait_for("a checkpoint", || file.exists().then_some(()));
}

#[test]
fn the_service_manager_hears_of_readiness_life_and_the_end() {
    let program = Program::new();
    let service = Service::start(&program, &[]);
    for _ in 0..2 {
        let alive = service.told(|state| state.starts_with("WATCHDOG=1"));
        assert!(alive.contains("STATUS=no job runs; 0 waiting"), "{alive}");
    }
    let message = program.run(&["jobs", "run"]).failed(75);
    assert!(message.contains(&format!("pid {}", service.pid().as_raw_nonzero())), "{message}");
    service.signal(Signal::TERM);
    service.told(|state| state == "STOPPING=1");
    let (code, took) = service.end(Signal::TERM);
    assert_eq!(code, Some(0));
    assert!(took < ORDERLY, "{took:?}");
}

#[test]
fn marks_of_other_processes_start_a_job_which_sigterm_parks_and_the_next_start_takes_up() {
    let program = Program::new();
    let mut service = Service::start(&program, &LONG);
    import(&program, "falcon", 10);
    service.says("job 1 queued: 10 examples, domain general (the buffer reached its threshold)");
    service.says("job 1 started");
    checkpointed(&program, 1);
    let running = service.told(|state| state.contains("job 1 running: step"));
    assert!(running.ends_with("; 0 waiting"), "{running}");
    let (code, took) = service.end(Signal::TERM);
    assert_eq!(code, Some(0));
    assert!(took < ORDERLY, "{took:?}");
    let parked = job(&program, 1).unwrap();
    assert_eq!((&parked["state"], &parked["attempts"]), (&"queued".into(), &0.into()), "{parked}");

    let mut service = Service::start(&program, &[]);
    service.says("job 1 started");
    let resumed = || job(&program, 1)?["notes"].to_string().contains("goes on from").then_some(());
    wait_for("the job to go on from its checkpoint", resumed);
    program.run(&["jobs", "cancel", "1"]).done();
    service.says("job 1 was cancelled");
    assert_eq!(service.end(Signal::INT).0, Some(130));
    assert_eq!(job(&program, 1).unwrap()["state"], "cancelled");
}

#[test]
fn sighup_takes_up_what_can_change_says_what_cannot_and_refuses_what_is_wrong() {
    let program = Program::new();
    let file = program.write("service.toml", "[lora.training]\nauto_train_threshold = 50\n");
    let mut args = vec!["--config", &file];
    args.extend(SHORT);
    let mut service = Service::start(&program, &args);
    import(&program, "heron", 4);

    program.write("service.toml", "[lora.training]\nauto_train_threshold = \"many\"\n");
    service.signal(Signal::HUP);
    let refused = service.says("the configuration is refused and the old one stays");
    assert!(refused.contains("service.toml:2") && refused.contains("ERROR"), "{refused}");
    service.told(|state| state.starts_with("RELOADING=1\nMONOTONIC_USEC="));
    service.told(|state| state == "READY=1");

    let new =
        "[model]\nthreads = 1\n[lora.training]\nauto_train_threshold = 4\n[worker]\nnice = 5\n";
    program.write("service.toml", new);
    service.signal(Signal::HUP);
    let said = service.says("the configuration was read again");
    assert!(
        said.contains("in force now: lora.training.auto_train_threshold, worker.nice"),
        "{said}"
    );
    assert!(said.contains("in force at the next start: model.threads"), "{said}");
    service.says("job 1 queued: 4 examples");
    wait_for("its end", || job(&program, 1).filter(|job| !job["finished_at"].is_null()));
    assert_eq!(service.end(Signal::TERM).0, Some(0));
}

#[test]
fn triggers_during_a_job_make_one_job_after_it_and_no_example_is_new_in_two() {
    let program = Program::new();
    let file = program.write("service.toml", "[lora.training]\nmin_steps = 300\n");
    let mut service = Service::start(&program, &["--config", &file]);
    import(&program, "first", 10);
    service.says("job 1 started");
    // The follow-up shall be short.
    program.write("service.toml", "[lora.training]\nmin_steps = 2\nepochs = 1\n");
    service.signal(Signal::HUP);
    service.says("in force now: lora.training.epochs, lora.training.min_steps");
    for word in ["second", "third"] {
        import(&program, word, 10);
        // Longer than the threshold is looked at: each of them is a trigger of its own.
        std::thread::sleep(Duration::from_millis(5500));
    }
    let state = job(&program, 1).unwrap()["state"].clone();
    assert!(state == "running" || state == "evaluating", "too short for this test: {state}");
    assert!(job(&program, 2).is_none(), "nothing is enqueued while a job runs");
    service.says("job 2 queued");
    service.says("job 2 started");
    wait_for("the second job's end", || job(&program, 2).filter(|j| !j["finished_at"].is_null()));
    assert_eq!(service.end(Signal::TERM).0, Some(0));

    let jobs = program.run(&["jobs", "list", "--json"]).json_lines();
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    let home = shammah::store::Home::open_or_create(program.home()).unwrap();
    let store = shammah::store::Store::open(&home).unwrap();
    let new = |id| store.job_examples(id, shammah::store::ExampleRole::New).unwrap();
    let (first, second) = (new(1), new(2));
    assert_eq!(first.len(), 10);
    assert!(second.len() > 10, "all that came meanwhile, but what is held out: {}", second.len());
    assert!(second.iter().all(|s| first.iter().all(|f| f.id != s.id)), "an example is new twice");
}

#[test]
fn a_console_beside_the_service_enqueues_into_it_and_shows_the_job() {
    let program = Program::new();
    let mut service = Service::start(&program, &["--set", "lora.training.auto_train=false"]);
    let mut chat = Session::start(&program, &["lora.training.min_steps=40"]);
    chat.expect(&["runs the queue"]);
    for question in ["Which bird builds it?", "What builds it?"] {
        chat.send(question);
        chat.send("/fix Heron builds it.");
        chat.expect(&["Training buffer:"]);
    }
    chat.send("/train");
    chat.expect(&["Job 1 queued: 2 examples"]);
    chat.send("/jobs wait");
    chat.expect(&["Job 1: step"]);
    chat.expect(&["Job 1 finished: 2 examples", "Job 1 rejected: 2 examples"]);
    chat.expect(&["Waited for 1 job."]);
    chat.quit();
    service.says("job 1 started");
    assert_eq!(service.end(Signal::TERM).0, Some(0));
}

#[test]
fn after_kill_9_of_the_holder_its_job_is_listed_as_interrupted_and_can_be_cancelled() {
    let program = Program::new();
    import(&program, "owl", 10);
    let service = Service::start(&program, &LONG);
    wait_for_state(&program, 1, "running");
    let listed = program.run(&["jobs", "list"]).done().stdout;
    assert!(listed.contains("running") && !listed.contains("interrupted"), "{listed}");
    let checkpoints = program.home().join("checkpoints/job-1");
    wait_for("its first file", || checkpoints.exists().then_some(()));
    service.end(Signal::KILL);
    let listed = program.run(&["jobs", "list"]).done().stdout;
    assert!(!listed.contains("running"), "{listed}");
    assert!(listed.contains("interrupted") && listed.contains("waits for the next"), "{listed}");
    let shown = job(&program, 1).unwrap();
    assert_eq!(shown["interrupted"], true, "{shown}");
    let doctor = program.run(&["doctor"]);
    assert!(doctor.stdout.contains("job 1 was interrupted"), "{doctor:?}");

    program.run(&["jobs", "cancel", "1"]).done();
    assert_eq!(job(&program, 1).unwrap()["state"], "cancelled", "nobody had to be asked");
    assert!(Path::new(&program.home().join("checkpoints/job-1")).exists());
    let service = Service::start(&program, &[]);
    let gone = || (!program.home().join("checkpoints/job-1").exists()).then_some(());
    wait_for("the next holder to remove its checkpoints", gone);
    service.end(Signal::TERM);
}

/// A minute is the least that a time-out can be.
#[test]
#[ignore = "takes more than a minute"]
fn a_job_of_a_runs_file_has_its_own_time_out() {
    let program = Program::new();
    program.write("data.jsonl", &marks("late", 4));
    let runs = "[[job]]\ndata = \"data.jsonl\"\nmin_steps = 100000\ntimeout_minutes = 1\n";
    let file = program.write("runs.toml", runs);
    let run = program.run(&["train", &file, "--wait"]);
    assert_eq!(run.code, 1, "{run:?}");
    let job = job(&program, 1).unwrap();
    assert_eq!(job["state"], "failed");
    assert!(job["error"].to_string().contains("longer than it may"), "{job}");
}
