//! What a worker may and may not reach, asked of a real one.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use libtest_mimic::Trial;
use shammah::domain::Confinement;
use shammah::worker::{JobRequest, WorkerEvent};

use crate::faulty::{Fault, Try};
use crate::trials::{Exit, drain, limits, spawn_job, test};

pub fn all() -> Vec<Trial> {
    vec![
        test("a_confined_worker_reaches_its_job_and_nothing_else", confined),
        test("an_open_worker_reaches_what_its_user_does", open),
        test("the_limits_in_force_are_told", told),
    ]
}

/// Runs a probe; returns what became of each try and what the worker says of its limits.
fn probe(
    root: &Path,
    confinement: Confinement,
    given: &[&str],
    tries: Vec<Try>,
) -> (Vec<String>, String) {
    let given = given.iter().map(|name| root.join(name)).collect();
    let job = JobRequest {
        checkpoint_dir: root.join("job"),
        out_dir: root.join("job/outcome"),
        input: Fault::Probe { given, tries },
    };
    let (_handle, mut events) = spawn_job(job, |config| config.limits.confinement = confinement);
    let (seen, exit) = drain(&mut events);
    let how = seen.iter().find_map(|event| match event {
        WorkerEvent::Isolated(how) => Some(how.clone()),
        _ => None,
    });
    let Exit::Finished(told) = exit else { panic!("{exit:?}") };
    (told.split(' ').map(str::to_owned).collect(), how.expect("the limits are told"))
}

fn files() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for name in ["model", "blobs", "elsewhere"] {
        fs::create_dir(root.path().join(name)).unwrap();
        fs::write(root.path().join(name).join("file"), "x").unwrap();
    }
    // As the hub's cache links a model's files.
    let link = root.path().join("model/link");
    std::os::unix::fs::symlink(root.path().join("blobs/file"), link).unwrap();
    root
}

fn confined() {
    let root = files();
    let at = |name: &str| root.path().join(name);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let parent = std::process::id();
    let allowed = [
        Try::Read(at("model/file")),
        Try::Read(at("model/link")),
        Try::List(at("model")),
        Try::Write(at("job/checkpoint")),
        Try::Remove(at("job/checkpoint")),
        Try::Publish(at("job/outcome")),
        Try::Read("/proc/self/status".into()),
        Try::Read("/proc/meminfo".into()),
    ];
    let denied = [
        Try::Read(at("elsewhere/file")),
        Try::Read(at("model/../elsewhere/file")),
        Try::List(at("elsewhere")),
        Try::List("/".into()),
        Try::Write(at("elsewhere/file")),
        Try::Write(at("model/file")),
        Try::Write(at("model/new")),
        Try::Remove(at("model/file")),
        Try::Read("/etc/passwd".into()),
        Try::Read(format!("/proc/{parent}/environ").into()),
        Try::Execute("/bin/sh".into()),
        Try::Connect(port),
        Try::Listen,
        Try::Signal(i32::try_from(parent).unwrap()),
    ];
    let tries = allowed.iter().chain(&denied).cloned().collect();
    let (told, how) = probe(root.path(), Confinement::Try, &["model", "model/link"], tries);
    if how.contains("open") {
        return println!("SKIPPED a_confined_worker_reaches_its_job_and_nothing_else: {how}");
    }
    let (open, closed) = told.split_at(allowed.len());
    for (one, told) in allowed.iter().zip(open) {
        assert_eq!(told, "done", "{one:?} ({how})");
    }
    for (one, told) in denied.iter().zip(closed) {
        let known = match one {
            Try::Connect(_) | Try::Listen => how.contains("TCP"),
            Try::Signal(_) => how.contains("signals"),
            _ => true,
        };
        match known {
            true => assert_eq!(told, "PermissionDenied", "{one:?} ({how})"),
            false => println!("SKIPPED {one:?}: this kernel cannot deny it ({how})"),
        }
    }
    assert_eq!(fs::read_to_string(at("model/file")).unwrap(), "x");
}

fn open() {
    let root = files();
    let tries = vec![Try::Read(root.path().join("elsewhere/file")), Try::Listen];
    let (told, how) = probe(root.path(), Confinement::Off, &[], tries);
    assert_eq!(told, ["done", "done"]);
    assert!(how.contains("worker.landlock = \"off\""), "{how}");
}

fn told() {
    let job =
        JobRequest { checkpoint_dir: "unused".into(), out_dir: "unused".into(), input: Fault::Oom };
    let (_handle, mut events) = spawn_job(job, |config| {
        config.limits = shammah::worker::protocol::Limits {
            nice: 7,
            memory_bytes: 1 << 30,
            oom_score_adj: 444,
            ..limits()
        };
    });
    let (seen, exit) = drain(&mut events);
    let how = seen.iter().find_map(|event| match event {
        WorkerEvent::Isolated(how) => Some(how.as_str()),
        _ => None,
    });
    let linux = cfg!(target_os = "linux");
    let score =
        if linux { "oom_score_adj 444" } else { "oom_score_adj is refused (this system has none)" };
    let expected = format!(
        "nice 7, no core dumps, {score}, at most 1.0 GiB of memory; files and network open (worker.landlock = \"off\")"
    );
    assert_eq!(how, Some(expected.as_str()));
    if linux {
        assert_eq!(exit, Exit::Finished(Box::new("444".to_owned())));
    }
}
