//! A console whose database fails under it: it says so, chats on, and loses nothing that it acknowledged.

#![cfg(unix)]

mod support;

use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use support::Program;
use support::session::Session;

const SETTINGS: [&str; 2] = ["generation.temperature=0", "lora.training.auto_train=false"];
const NOBODY: u32 = 65534;

fn marks(program: &Program) -> usize {
    program.run(&["feedback", "list", "--json"]).done().json_lines().len()
}

/// Asks a question; the answer is whatever comes before the next acknowledgement.
fn chats(chat: &mut Session) {
    chat.send("Who are you?");
    chat.send("/clear");
    chat.expect(&["A new conversation."]);
}

/// Marks an answer that must be stored.
fn stores(chat: &mut Session) {
    chat.send("Who are you?");
    chat.send("/good");
    chat.expect(&["Training buffer:"]);
}

/// Marks an answer that cannot be stored, and returns the console's words, which are on stderr: it must go on.
fn cannot_store(chat: &mut Session) {
    chat.send("Who are you?");
    chat.send("/good");
    chats(chat);
    let told = chat.transcript.iter().rev().take(6).any(|line| line.contains("Training buffer:"));
    assert!(!told, "nothing is acknowledged:\n{}", chat.transcript.join("\n"));
}

/// Ends a console of which a command failed: that is its exit code.
fn leave(mut chat: Session) {
    chat.send("/quit");
    assert_eq!(chat.child.wait().unwrap().code(), Some(1), "a script hears that a line failed");
}

#[test]
fn a_database_that_is_removed_takes_no_mark_that_would_be_lost() {
    let program = Program::new();
    let mut chat = Session::start(&program, &SETTINGS);
    stores(&mut chat);
    for name in ["shammah.db", "shammah.db-wal", "shammah.db-shm"] {
        let path = program.home().join(name);
        fs_err::rename(&path, program.path(name)).unwrap();
    }
    cannot_store(&mut chat);
    for name in ["shammah.db", "shammah.db-wal", "shammah.db-shm"] {
        fs_err::rename(program.path(name), program.home().join(name)).unwrap();
    }
    stores(&mut chat);
    leave(chat);
    assert_eq!(marks(&program), 2, "both acknowledged marks are there, and no other");
}

#[test]
fn a_database_that_another_process_locks_is_busy_and_then_goes_on() {
    let program = Program::new();
    let mut chat = Session::start(&program, &SETTINGS);
    stores(&mut chat);
    let other = rusqlite::Connection::open(program.home().join("shammah.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let args = ["feedback", "add", "--prompt", "q", "--response", "a", "--mark", "good"];
    let message = program.run(&args).failed(1);
    assert!(message.contains("is busy: another process holds it"), "{message}");
    cannot_store(&mut chat);
    other.execute_batch("ROLLBACK").unwrap();
    stores(&mut chat);
    leave(chat);
    assert_eq!(marks(&program), 2);
}

#[test]
fn a_full_disk_refuses_marks_and_the_chat_goes_on() {
    let program = Program::new();
    program.run(&["feedback", "list"]).done();
    // A limit on the size of files stands for the disk; the signal that would end the process is ignored.
    let inner =
        program.command(&["--set", SETTINGS[0], "--set", SETTINGS[1], "--set", "log.file=false"]);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("trap '' XFSZ; ulimit -f 400; exec \"$0\" \"$@\"");
    shell.arg(inner.get_program()).args(inner.get_args());
    shell.env("SHAMMAH_HOME", program.home()).env("HOME", program.path(""));
    let big = "a long note ".repeat(3000);
    let lines: String = (0..20).map(|_| format!("Who are you?\n/medium {big}\n")).collect();
    let input = program.write("input", &format!("{lines}Who are you?\n"));
    let run = support::Run::of(
        shell.stdin(fs_err::File::open(input).unwrap().into_file()).output().unwrap(),
    );
    let acknowledged = run.stdout.matches("Training buffer:").count();
    assert!((1..20).contains(&acknowledged), "some fit: {acknowledged}");
    assert!(run.stderr.contains("full; nothing was stored"), "{}", run.stderr);
    assert!(
        run.stdout.trim_end().lines().last().is_some_and(|line| !line.contains("buffer")),
        "it answered to the end"
    );
    assert_eq!((run.code, marks(&program)), (1, acknowledged));
}

#[test]
fn a_damaged_page_is_told_with_what_to_do_and_nothing_is_overwritten() {
    let program = Program::new();
    let row = |n: usize| {
        serde_json::json!({"messages": [{"role": "user", "content": format!("q{n}")}],
            "response": "x".repeat(500), "mark": "good"})
        .to_string()
    };
    let file = program.write("marks.jsonl", &(0..300).map(row).collect::<Vec<_>>().join("\n"));
    program.run(&["feedback", "import", &file]).done();
    let path = program.home().join("shammah.db");
    let mut bytes = fs_err::read(&path).unwrap();
    // The schema stays readable, the tables do not.
    let from = 40 * 4096;
    bytes[from..].fill(0xAA);
    fs_err::write(&path, &bytes).unwrap();
    let message = program.run(&["feedback", "list"]).failed(1);
    assert!(
        message.contains("is damaged") && message.contains("restore it from a copy"),
        "{message}"
    );
    let run = program.run_with_input(
        &["--set", SETTINGS[0], "--set", SETTINGS[1]],
        "Who are you?\n/good\nWho are you?\n",
    );
    assert!(run.stderr.contains("is damaged"), "{run:?}");
    assert_eq!(fs_err::read(&path).unwrap()[from..], bytes[from..], "it is left for a repair");
}

#[test]
fn a_page_that_is_damaged_under_a_running_chat_is_told_and_the_chat_goes_on() {
    let program = Program::new();
    // More than SQLite keeps in memory, so that it must read; marks without a target, which cost no time.
    let row = |n: usize| {
        serde_json::json!({"messages": [{"role": "user", "content": format!("q{n}")}],
            "response": "x".repeat(20_000), "mark": "medium"})
        .to_string()
    };
    let file = program.write("marks.jsonl", &(0..300).map(row).collect::<Vec<_>>().join("\n"));
    program.run(&["feedback", "import", &file]).done();
    let errors = program.path("errors");
    let args = ["--set", SETTINGS[0], "--set", SETTINGS[1]];
    let to = std::process::Stdio::from(fs_err::File::create(&errors).unwrap().into_file());
    let mut chat = Session::of(&mut program.command(&args), to);
    stores(&mut chat);
    let path = program.home().join("shammah.db");
    let pages = fs_err::metadata(&path).unwrap().len() / 4096;
    let mut database = fs_err::OpenOptions::new().write(true).open(&path).unwrap();
    for page in 40..pages {
        database.seek(SeekFrom::Start(page * 4096)).unwrap();
        database.write_all(&[0xAA; 4096]).unwrap();
    }
    drop(database);
    cannot_store(&mut chat);
    chats(&mut chat);
    leave(chat);
    let said = fs_err::read_to_string(&errors).unwrap();
    assert!(said.contains("is damaged") && said.contains("restore it from a copy"), "{said}");
}

/// Trains on ten marks while the disk of its checkpoints is full, and once more when there is room.
fn trains_when_there_is_room(
    program: &Program,
    mut chat: Session,
    wanted: &str,
    make_room: impl FnOnce(),
) {
    for n in 0..10 {
        chat.send("Who are you?");
        chat.send(&format!("/fix n{n}a m{n}b k{n}c."));
        chat.expect(&["Training buffer:"]);
    }
    chat.send("/train");
    let (line, _) = chat.expect(&["failed", "is live:", "rejected"]);
    assert!(line.contains(wanted) && line.contains("make room"), "{line}");
    chats(&mut chat);
    let job = program.run(&["jobs", "show", "1", "--json"]).json();
    assert_eq!((&job["state"], &job["attempts"]), (&"failed".into(), &1.into()), "{job}");
    assert!(job["error"].as_str().unwrap().contains(wanted), "{job}");
    make_room();
    chat.send("/train");
    chat.expect(&["Job 2 queued: 10 examples"]);
    chat.expect(&["is live:"]);
    // 1 tells that a job failed.
    chat.leave(&[0, 1]);
    let left: Vec<_> = fs_err::read_dir(program.home().join("checkpoints")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

const SMALL_JOBS: [&str; 8] = [
    "generation.temperature=0",
    "lora.training.auto_train=false",
    "lora.training.min_steps=4",
    "lora.training.epochs=1",
    "lora.training.checkpoint_every_steps=2",
    "lora.gate.max_kl=100",
    "lora.gate.max_taken_over=1",
    "worker.idle=false",
];

#[test]
fn a_full_disk_under_the_checkpoints_fails_the_job_with_its_reason_and_the_queue_goes_on() {
    let program = Program::new();
    program.run(&["jobs", "list"]).done();
    let place = program.home().join("checkpoints");
    let small = ["-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs"];
    let mounted = Command::new("mount").args(small).arg(&place).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return eprintln!("SKIPPED: nothing can be mounted here");
    }
    let mount = Mounted(place);
    let chat = Session::start(&program, &SMALL_JOBS);
    // An adapter cannot be published from one file system to another: the small one goes altogether.
    trains_when_there_is_room(&program, chat, "No space left on device", || drop(mount));
}

/// A file system that goes with the test.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_limit_on_the_size_of_files_fails_the_job_with_its_reason_and_the_chat_goes_on() {
    let program = Program::new();
    program.run(&["jobs", "list"]).done();
    let args: Vec<&str> = SMALL_JOBS.iter().flat_map(|setting| ["--set", setting]).collect();
    let inner = program.command(&args);
    let mut shell = Command::new("sh");
    // 512 KiB: the database is below it, a checkpoint above.
    shell.arg("-c").arg("trap '' XFSZ; ulimit -f 1024; exec \"$0\" \"$@\"");
    shell.arg(inner.get_program()).args(inner.get_args());
    shell.env("SHAMMAH_HOME", program.home()).env("HOME", program.path(""));
    let mut chat = Session::of(&mut shell, std::process::Stdio::inherit());
    chat.send("Who are you?");
    chat.send("/fix It is a wombat.");
    chat.expect(&["Training buffer:"]);
    chat.send("/train");
    let (line, _) = chat.expect(&["failed", "is live:", "rejected"]);
    assert!(line.contains("File too large") && line.contains("make room"), "{line}");
    stores(&mut chat);
    chat.leave(&[0, 1]);
}

#[test]
fn a_database_that_may_not_be_written_is_told_and_kept() {
    let program = Program::new();
    let args = ["feedback", "add", "--prompt", "q", "--response", "a", "--mark", "good"];
    program.run(&args).done();
    let root = rustix::process::geteuid().is_root();
    let as_nobody = |args: &[&str]| {
        let mut command = program.command(args);
        if root {
            command.uid(NOBODY).gid(NOBODY).current_dir("/");
        }
        command.output().map(support::Run::of)
    };
    if root {
        give_away(&program.path(""));
    }
    set_mode(&program.home().join("shammah.db"), 0o400);
    match as_nobody(&args) {
        Err(error) => eprintln!("SKIPPED: the program cannot run as another user: {error}"),
        Ok(run) => {
            let message = run.failed(1);
            assert!(message.contains("shammah.db") && message.contains("writable"), "{message}");
        }
    }
    set_mode(&program.home().join("shammah.db"), 0o600);
    if let Ok(run) = as_nobody(&["feedback", "list", "--json"]) {
        assert_eq!(run.done().json_lines().len(), 1, "what was stored is there");
    }
}

fn give_away(path: &Path) {
    std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() {
        fs_err::read_dir(path).unwrap().for_each(|entry| give_away(&entry.unwrap().path()));
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
