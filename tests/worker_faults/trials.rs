//! The tests.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use rustix::process::{Pid, Signal, test_kill_process};
use shammah::domain::Confinement;
use shammah::worker::codec;
use shammah::worker::protocol::{Limits, Request};
use shammah::worker::{JobRequest, WorkerConfig, WorkerEvent, WorkerExit, WorkerHandle};
use tokio::sync::mpsc;

use crate::faulty::Fault;

/// No fault may keep the parent longer than this, on a busy machine; most take well under a second.
const BOUND: Duration = Duration::from_secs(20);

/// Events that the receiver's channel holds.
const EVENTS: usize = 8;

pub type Exit = WorkerExit<String>;
pub type Events = mpsc::Receiver<WorkerEvent<String>>;

pub fn all() -> Vec<Trial> {
    let mut trials = faults_of_the_job();
    trials.extend(faults_of_the_protocol());
    trials.extend(endings_by_the_parent());
    trials.push(test("a_worker_in_order_tells_its_turns", turns));
    trials.push(test("the_process_is_limited_before_it_works", limited));
    trials.push(test("the_log_keeps_stderr_for_its_owner_only", log));
    trials.push(test("the_worker_leaves_when_stdin_closes", stdin_closes));
    trials.push(test("the_worker_leaves_when_its_parent_is_killed", parent_killed));
    trials.push(test("the_worker_refuses_a_parent_that_is_another", other_parent));
    trials.extend(crate::isolation::all());
    trials
}

pub fn test(name: &'static str, body: fn()) -> Trial {
    Trial::test(name, move || {
        body();
        Ok::<(), Failed>(())
    })
}

/// A trial that one fault ends in exactly one way.
fn ends(
    name: &'static str,
    fault: Fault,
    change: impl FnOnce(&mut WorkerConfig) + Send + 'static,
    expected: Exit,
) -> Trial {
    Trial::test(name, move || {
        let (_, exit) = run(fault, change);
        assert_eq!(exit, expected);
        assert!(!exit.to_string().is_empty());
        Ok(())
    })
}

fn same(_: &mut WorkerConfig) {}

fn faults_of_the_job() -> Vec<Trial> {
    let signal = |signal: Signal| Fault::Signal(signal.as_raw());
    let hung_soon = |c: &mut WorkerConfig| c.heartbeat_timeout = Duration::from_secs(2);
    vec![
        Trial::test("a_panic_names_message_and_place", || {
            panics(Fault::Panic, "the loss is not finite")
        }),
        Trial::test("a_panic_of_another_thread_ends_the_job", || {
            panics(Fault::PanicElsewhere, "a helper thread fell")
        }),
        ends("an_abort_is_a_signal", Fault::Abort, same, Exit::Signal(6)),
        ends("a_segfault_is_a_signal", signal(Signal::SEGV), same, Exit::Signal(11)),
        ends("a_kill_is_a_signal", signal(Signal::KILL), same, Exit::Signal(9)),
        ends("a_stack_overflow_has_its_name", Fault::StackOverflow, same, Exit::StackOverflow),
        ends(
            "an_allocation_over_the_limit_is_out_of_memory",
            Fault::Allocate(2 << 30),
            |c| c.limits.memory_bytes = 1 << 30,
            Exit::OutOfMemory,
        ),
        ends(
            "a_job_that_reports_nothing_is_hung",
            Fault::Hang,
            |c| c.stall_timeout = Duration::from_millis(1500),
            Exit::Hung(2),
        ),
        ends("a_stopped_process_is_hung", Fault::FreezeProcess, hung_soon, Exit::Hung(2)),
        ends("an_early_exit_is_no_success", Fault::Exit(0), same, Exit::Exited(0)),
        ends("an_exit_code_is_told", Fault::Exit(3), same, Exit::Exited(3)),
        ends(
            "a_failure_keeps_its_words",
            Fault::Fail("no rows".into()),
            same,
            Exit::Failed("no rows".into()),
        ),
        ends("stray_prints_do_no_harm", Fault::Noise, same, done()),
        ends("a_large_job_arrives", Fault::Payload("x".repeat(8 << 20)), same, done()),
        Trial::test("a_job_over_the_cap_is_not_started", || {
            let (_, exit) = run(Fault::Payload("x".repeat(codec::MAX_FRAME_BYTES)), same);
            assert!(matches!(&exit, Exit::NotStarted(why) if why.contains("limit")), "{exit:?}");
            Ok(())
        }),
        Trial::test("a_result_over_the_cap_is_a_failure", || {
            let (_, exit) = run(Fault::HugeResult, same);
            assert!(matches!(&exit, Exit::Failed(why) if why.contains("limit")), "{exit:?}");
            Ok(())
        }),
    ]
}

fn faults_of_the_protocol() -> Vec<Trial> {
    let raw = |name: &'static str, fault: &'static str, says: &'static str| {
        Trial::test(name, move || {
            let (_, exit) =
                run(Fault::Hang, |c| c.args = vec!["--as-raw-worker".into(), fault.into()]);
            assert!(matches!(&exit, Exit::Protocol(why) if why.contains(says)), "{exit:?}");
            Ok(())
        })
    };
    let raw_with_patience = |name, fault: &'static str, seconds, expected| {
        let change = move |c: &mut WorkerConfig| {
            c.args = vec!["--as-raw-worker".into(), fault.into()];
            c.heartbeat_timeout = Duration::from_secs(seconds);
        };
        // Larger than a pipe holds: the parent must not wait in the writing of the job either.
        ends(name, Fault::Payload("x".repeat(1 << 20)), change, expected)
    };
    vec![
        raw("a_stranger_is_not_a_worker", "garbage", "does not begin as a shammah worker"),
        raw("garbage_after_the_hello_is_refused", "garbage-later", "no message of this protocol"),
        raw("an_oversized_frame_is_refused", "oversized", "4294967295 bytes is over the limit"),
        raw("another_version_is_told", "wrong-version", "restart it"),
        raw("a_cut_frame_is_told", "cut", "1 of 5 bytes"),
        raw("an_unasked_cancel_is_refused", "unasked-cancel", "nobody cancelled"),
        raw("a_closed_stream_and_a_process_that_stays", "close-and-stay", "ended its stream"),
        raw_with_patience("a_slow_drip_is_hung", "drip", 2, Exit::Hung(2)),
        raw_with_patience("a_mute_worker_is_hung", "mute", 2, Exit::Hung(2)),
        raw_with_patience("a_worker_that_just_leaves", "leave", 60, Exit::Exited(0)),
        Trial::test("a_missing_executable_is_told", || {
            let (_, exit) = run(Fault::Hang, |c| c.exe = "/nonexistent/shammah".into());
            assert!(
                matches!(&exit, Exit::NotStarted(why) if why.contains("/nonexistent/shammah")),
                "{exit:?}"
            );
            Ok(())
        }),
    ]
}

fn endings_by_the_parent() -> Vec<Trial> {
    vec![
        ends(
            "the_time_limit_ends_a_job",
            Fault::Hang,
            |c| c.timeout = Some(Duration::from_secs(1)),
            Exit::TimedOut,
        ),
        test("a_cancelled_job_writes_its_checkpoint", || {
            let (handle, mut events) = spawn(Fault::Obey, same);
            wait_for(&mut events, &WorkerEvent::Evaluating);
            handle.cancel();
            let (seen, exit) = drain(&mut events);
            assert_eq!(
                (&seen[..], exit),
                (&[WorkerEvent::Checkpointed { step: 7 }][..], Exit::Cancelled)
            );
        }),
        test("a_job_that_ignores_its_cancel_is_killed", || {
            let (handle, mut events) =
                spawn(Fault::Hang, |c| c.cancel_grace = Duration::from_millis(300));
            let pid = started(&mut events);
            handle.cancel();
            assert_eq!(drain(&mut events).1, Exit::Cancelled);
            assert_gone(pid);
        }),
        test("a_cancelled_job_stays_cancelled_though_it_finished", || {
            let (handle, mut events) = spawn(Fault::FinishAnyway, same);
            wait_for(&mut events, &WorkerEvent::Evaluating);
            handle.cancel();
            assert_eq!(drain(&mut events).1, Exit::Cancelled);
        }),
        test("a_kill_waits_for_nothing", || {
            let (handle, mut events) = spawn(Fault::Hang, same);
            let pid = started(&mut events);
            let start = Instant::now();
            handle.kill();
            assert_eq!(drain(&mut events).1, Exit::Cancelled);
            assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
            assert_gone(pid);
        }),
        test("a_dropped_handle_cancels", || {
            let (handle, mut events) = spawn(Fault::Obey, same);
            wait_for(&mut events, &WorkerEvent::Evaluating);
            drop(handle);
            assert_eq!(drain(&mut events).1, Exit::Cancelled);
        }),
        test("a_dropped_receiver_cancels", || {
            let (_handle, mut events) = spawn(Fault::Obey, same);
            let pid = started(&mut events);
            drop(events);
            assert_gone(pid);
        }),
        test("a_flood_of_notes_and_a_deaf_receiver_stop_nothing", || {
            let (handle, mut events) =
                spawn(Fault::Flood, |c| c.cancel_grace = Duration::from_millis(300));
            let pid = started(&mut events);
            thread::sleep(Duration::from_millis(500));
            handle.cancel();
            assert_gone(pid);
            assert_eq!(drain(&mut events).1, Exit::Cancelled);
        }),
    ]
}

fn panics(fault: Fault, message: &str) -> Result<(), Failed> {
    let (_, exit) = run(fault, same);
    let Exit::Panicked(told) = &exit else { return Err(format!("{exit:?}").into()) };
    assert!(told.starts_with(message) && told.contains("faulty.rs:"), "{told}");
    Ok(())
}

fn turns() {
    let (seen, exit) = run(Fault::Work(30), same);
    assert_eq!(exit, done());
    assert!(matches!(seen[0], WorkerEvent::Started { .. }), "{seen:?}");
    let steps: Vec<_> = seen
        .iter()
        .filter_map(|event| match event {
            WorkerEvent::Progress { step, eta_ms, elapsed_ms, .. } => {
                Some((*step, *eta_ms, *elapsed_ms))
            }
            _ => None,
        })
        .collect();
    assert!(
        steps.is_sorted() && (2..=12).contains(&steps.len()),
        "ten a second at most: {steps:?}"
    );
    let (last, eta_ms, elapsed_ms) = steps[steps.len() - 1];
    assert!(
        last == 30 && eta_ms == Some(0) && elapsed_ms >= 30 * 20,
        "the last step is told: {steps:?}"
    );
    assert!(
        steps[0].1.is_none() && steps[1].1.is_some(),
        "no time left before a second step: {steps:?}"
    );
    let note = WorkerEvent::Note("one row was too long".to_owned());
    let after = [WorkerEvent::Checkpointed { step: 30 }, WorkerEvent::Evaluating, note];
    assert_eq!(seen[seen.len() - 3..], after);
}

fn limited() {
    let (_, exit) = run(Fault::Describe, |c| {
        c.limits = Limits { nice: 19, idle: true, threads: 3, memory_bytes: 3 << 30, ..limits() };
    });
    let session = crate::faulty::session();
    let linux = cfg!(target_os = "linux");
    let expected = format!(
        "nice 19 19, idle {linux} {linux}, session {session}, own group true, core Some(0), data Some({}), threads 3 3",
        3_u64 << 30
    );
    assert_eq!(exit, Exit::Finished(Box::new(expected)));
}

fn log() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("job-1.log");
    let kept = path.clone();
    let (seen, exit) = run(Fault::Abort, move |c| c.log_path = Some(kept));
    assert_eq!(exit, Exit::Signal(6));
    assert!(
        !seen.iter().any(|e| matches!(e, WorkerEvent::Note(_))),
        "an abort says nothing: {seen:?}"
    );
    let kept = path.clone();
    let (_, exit) = run(Fault::Noise, move |c| c.log_path = Some(kept));
    assert_eq!(exit, done());
    let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
    assert!(text.contains("a stray print of some library") && text.contains("a stray child"));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Plays the parent by hand, so that only the closing of stdin, and no signal, tells the worker.
fn stdin_closes() {
    let mut worker = by_hand(std::process::id());
    let mut stdout = worker.stdout.take().unwrap();
    codec::read_hello(&mut stdout).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(worker.try_wait().unwrap().is_none(), "it works while stdin is open");
    drop(worker.stdin.take());
    let start = Instant::now();
    while worker.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(5), "the worker stays without a parent");
        thread::sleep(Duration::from_millis(10));
    }
}

fn other_parent() {
    let mut worker = by_hand(1);
    assert_eq!(worker.wait().unwrap().code(), Some(2));
}

fn by_hand(parent_pid: u32) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--as-worker").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut worker = command.spawn().unwrap();
    let stdin = worker.stdin.as_mut().unwrap();
    codec::write_hello(stdin).unwrap();
    let request = Request { parent_pid, limits: limits(), job: job(Fault::Hang) };
    codec::write_frame(stdin, &request).unwrap();
    worker
}

fn parent_killed() {
    let exe = std::env::current_exe().unwrap();
    let mut owner = Command::new(exe).arg("--as-owner").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(owner.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = line.trim().parse().unwrap();
    assert!(lives(pid), "the worker runs");
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_gone(pid);
}

/// The body of a process that starts a worker, tells its id and waits to be killed.
pub fn own_a_hanging_worker() -> ExitCode {
    let (_handle, mut events) = spawn(Fault::Hang, same);
    let pid = started(&mut events);
    let mut out = std::io::stdout();
    writeln!(out, "{pid}").and_then(|()| out.flush()).unwrap();
    thread::sleep(BOUND);
    ExitCode::FAILURE
}

fn done() -> Exit {
    Exit::Finished(Box::new("done".to_owned()))
}

pub fn limits() -> Limits {
    Limits {
        nice: 5,
        idle: false,
        threads: 1,
        memory_bytes: 0,
        oom_score_adj: 0,
        core_dumps: false,
        confinement: Confinement::Off,
    }
}

fn job(input: Fault) -> JobRequest<Fault> {
    JobRequest { checkpoint_dir: PathBuf::from("unused"), out_dir: PathBuf::from("unused"), input }
}

fn spawn(fault: Fault, change: impl FnOnce(&mut WorkerConfig)) -> (WorkerHandle, Events) {
    spawn_job(job(fault), change)
}

pub fn spawn_job(
    job: JobRequest<Fault>,
    change: impl FnOnce(&mut WorkerConfig),
) -> (WorkerHandle, Events) {
    let mut config = WorkerConfig::new(std::env::current_exe().unwrap(), limits());
    config.args = vec!["--as-worker".into()];
    change(&mut config);
    let (to, events) = mpsc::channel(EVENTS);
    (WorkerHandle::spawn(config, job, to), events)
}

fn run(fault: Fault, change: impl FnOnce(&mut WorkerConfig)) -> (Vec<WorkerEvent<String>>, Exit) {
    let (_handle, mut events) = spawn(fault, change);
    drain(&mut events)
}

/// Takes all events up to the end, within the bound; nothing comes after the end.
pub fn drain(events: &mut Events) -> (Vec<WorkerEvent<String>>, Exit) {
    let mut seen = Vec::new();
    loop {
        match next(events).expect("an end before the channel closes") {
            WorkerEvent::Ended(exit) => {
                assert_eq!(next(events), None, "the end is the last event");
                return (seen, exit);
            }
            event => seen.push(event),
        }
    }
}

fn next(events: &mut Events) -> Option<WorkerEvent<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(BOUND, events.recv()).await })
        .expect("an event within the bound")
}

fn started(events: &mut Events) -> i32 {
    match next(events) {
        Some(WorkerEvent::Started { pid }) => pid as i32,
        other => panic!("{other:?} instead of a start"),
    }
}

fn wait_for(events: &mut Events, wanted: &WorkerEvent<String>) {
    while next(events).expect("the event before the end") != *wanted {}
}

fn lives(pid: i32) -> bool {
    // A zombie of a process that nobody waits for yet is gone as well.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let zombie = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    test_kill_process(Pid::from_raw(pid).unwrap()).is_ok() && !zombie
}

fn assert_gone(pid: i32) {
    let start = Instant::now();
    while lives(pid) {
        assert!(start.elapsed() < BOUND, "process {pid} still lives");
        thread::sleep(Duration::from_millis(10));
    }
}
