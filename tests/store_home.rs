//! The data directory and its database against what real machines do: other processes, other users,
//! full disks, read-only directories, damaged files, sudden death.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use shammah::domain::{DEFAULT_DOMAIN, Mark, Message};
use shammah::store::{FeedbackFilter, Home, NewFeedback, SCHEMA_VERSION, Store, StoreError};

/// Tells the test `child` what to do; unset in an ordinary run.
const CASE: &str = "SHAMMAH_TEST_CASE";
/// Tells the test `child` where.
const AT: &str = "SHAMMAH_TEST_HOME";
/// Starts each line of the child that is meant for its parent.
const SAYS: &str = "child: ";
/// The user "nobody", who owns nothing.
const NOBODY: u32 = 65534;

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    (directory, home)
}

fn mark(text: &str) -> NewFeedback {
    NewFeedback {
        messages: vec![Message::user("question")],
        response: text.to_owned(),
        mark: Mark::Good,
        weight: 1.0,
        note: None,
        fix: None,
        domain: DEFAULT_DOMAIN.to_owned(),
        adapter: None,
        base: None,
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn error_of(home: &Path) -> String {
    let opened = Home::open_or_create(home).and_then(|home| Store::open(&home).map(drop));
    let error = opened.unwrap_err().to_string();
    assert!(!error.contains('\n'), "one line: {error}");
    error
}

/// This test program, told to run one case of `child`.
fn program(case: &str, home: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--ignored", "--nocapture"]).env(CASE, case).env(AT, home);
    command
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let said: Vec<&str> = text.lines().filter_map(|l| l.split_once(SAYS)).map(|l| l.1).collect();
    assert!(output.status.success() && !said.is_empty(), "{output:?}");
    said.join("\n")
}

fn next_line(child: &mut BufReader<std::process::ChildStdout>) -> String {
    loop {
        let mut line = String::new();
        assert!(child.read_line(&mut line).unwrap() > 0, "the child ended");
        if let Some((_, said)) = line.trim_end().split_once(SAYS) {
            return said.to_owned();
        }
    }
}

fn start(mut command: Command) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdout)
}

fn say(text: impl std::fmt::Display) {
    println!("{SAYS}{text}");
    std::io::stdout().flush().unwrap();
}

/// The other process of the tests below.
#[test]
#[ignore = "the tests below start it"]
fn child() {
    let (Ok(case), Ok(at)) = (std::env::var(CASE), std::env::var(AT)) else { return };
    let home = Path::new(&at);
    match case.as_str() {
        "open" => match Home::open_or_create(home).and_then(|home| Store::open(&home).map(drop)) {
            Ok(()) => say("opened"),
            Err(error) => say(error),
        },
        "hold" => {
            let lock = Home::open_or_create(home).unwrap().try_lock_queue().unwrap();
            say(if lock.is_some() { "locked" } else { "refused" });
            std::io::stdin().read_line(&mut String::new()).unwrap();
        }
        "fill" => fill(home),
        "acknowledge" => {
            let store = Store::open(&Home::open_or_create(home).unwrap()).unwrap();
            loop {
                say(store.add_feedback(&mark("acknowledged")).unwrap().id);
            }
        }
        other => panic!("no case {other}"),
    }
}

/// Stores marks until it cannot, then says how many were stored and why it stopped.
fn fill(home: &Path) {
    let store = Store::open(&Home::open_or_create(home).unwrap()).unwrap();
    let large = mark(&"x".repeat(20_000));
    for stored in 0..1000 {
        if let Err(error) = store.add_feedback(&large) {
            let after = store.list_feedback(&FeedbackFilter::default()).unwrap().len();
            assert_eq!(after, stored, "a failed write leaves nothing, and reading goes on");
            return say(format!("{stored} {error}"));
        }
    }
    say("no limit reached");
}

#[test]
fn a_new_directory_is_the_owners_alone() {
    let (_keep, path) = directory();
    let home = Home::open_or_create(path.join("nested")).unwrap();
    Store::open(&home).unwrap();
    assert!(home.try_lock_queue().unwrap().is_some());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for made in [home.root().to_owned(), home.adapters(), home.checkpoints(), home.logs()] {
        assert_eq!(mode(&made), 0o700, "{}", made.display());
    }
    assert_eq!((mode(&home.db()), mode(&home.lock())), (0o600, 0o600));
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let (_keep, path) = directory();
    Home::open_or_create(&path).unwrap();
    for mode in [0o770, 0o702] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = error_of(&path);
        assert!(
            error.contains(&format!("mode {mode:03o}")) && error.contains("chmod go-w"),
            "{error}"
        );
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Home::open_or_create(&path).unwrap();
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let (_keep, path) = directory();
    std::fs::create_dir(&path).unwrap();
    let foreign = if is_root() {
        chown(&path, Some(NOBODY), None).unwrap();
        path.as_path()
    } else {
        Path::new("/")
    };
    let error = error_of(foreign);
    assert!(error.contains("belongs to user") && error.contains("--home"), "{error}");
}

#[test]
fn what_lies_in_the_directory_is_checked_too() {
    let (_keep, path) = directory();
    drop(Store::open(&Home::open_or_create(&path).unwrap()).unwrap());
    std::fs::write(path.join("config.toml"), "").unwrap();
    for name in ["adapters", "checkpoints", "logs", "shammah.db", "config.toml"] {
        let inner = path.join(name);
        let mode = std::fs::metadata(&inner).unwrap().permissions().mode();
        set_mode(&inner, mode | 0o020);
        assert_eq!(
            Home::open_or_create(&path).err().map(|e| e.to_string()),
            None,
            "nobody gets to {name}"
        );
        set_mode(&path, 0o711);
        let error = error_of(&path);
        assert!(error.contains(&format!("{name} can be changed by other users")), "{error}");
        assert!(error.contains(&format!("chmod go-w {}", inner.display())), "{error}");
        set_mode(&path, 0o700);
        set_mode(&inner, mode);
    }
    if !is_root() {
        return eprintln!("SKIPPED: only root can give a file to another user");
    }
    chown(path.join("config.toml"), Some(NOBODY), None).unwrap();
    let error = error_of(&path);
    assert!(
        error.contains("config.toml belongs to user 65534") && error.contains("chown"),
        "{error}"
    );
}

#[test]
fn a_file_in_the_directorys_place_is_refused() {
    let (_keep, path) = directory();
    std::fs::write(&path, "x").unwrap();
    assert!(error_of(&path).contains("is not a directory"));
    let (_keep, path) = directory();
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("adapters"), "x").unwrap();
    assert!(error_of(&path).contains("adapters is not a directory"));
}

#[test]
fn the_database_is_migrated_from_version_0() {
    let (_keep, path) = directory();
    let home = Home::open_or_create(path).unwrap();
    let version = || -> i64 {
        let raw = rusqlite::Connection::open(home.db()).unwrap();
        raw.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    };
    assert_eq!(version(), 0);
    let id = Store::open(&home).unwrap().add_feedback(&mark("kept")).unwrap().id;
    assert_eq!(version(), SCHEMA_VERSION);
    let again = Store::open(&home).unwrap();
    assert_eq!(again.feedback(id).unwrap().response, "kept");
}

#[test]
fn many_may_create_the_database_at_once() {
    let (_keep, path) = directory();
    let home = Home::open_or_create(path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| Store::open(&home).unwrap().add_feedback(&mark("x")).unwrap());
        }
    });
    let rows = Store::open(&home).unwrap().list_feedback(&FeedbackFilter::default()).unwrap();
    assert_eq!(rows.len(), 8);
}

#[test]
fn the_database_of_a_newer_program_is_refused() {
    let (_keep, path) = directory();
    let home = Home::open_or_create(path).unwrap();
    drop(Store::open(&home).unwrap());
    let raw = rusqlite::Connection::open(home.db()).unwrap();
    raw.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    drop(raw);
    let error = Store::open(&home).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { .. }), "{error}");
    assert!(error.to_string().contains("use a newer shammah"), "{error}");
}

#[test]
fn a_damaged_database_is_refused_and_left_alone() {
    let (_keep, path) = directory();
    let home = Home::open_or_create(&path).unwrap();
    let garbage = "this is no database, but it is long enough to look like a page. ".repeat(100);
    std::fs::write(home.db(), &garbage).unwrap();
    let error = error_of(&path);
    assert!(error.contains("shammah.db is damaged") && error.contains("move it away"), "{error}");
    assert_eq!(std::fs::read_to_string(home.db()).unwrap(), garbage);
    std::fs::remove_file(home.db()).unwrap();
    std::fs::create_dir(home.db()).unwrap();
    assert!(error_of(&path).contains("shammah.db"));
}

#[test]
fn a_database_damaged_in_the_middle_is_an_error_and_no_crash() {
    let (_keep, path) = directory();
    let home = Home::open_or_create(&path).unwrap();
    let store = Store::open(&home).unwrap();
    store.add_all_feedback(&vec![mark(&"y".repeat(500)); 200]).unwrap();
    drop(store);
    let mut bytes = std::fs::read(home.db()).unwrap();
    bytes[4096..].fill(0xAA);
    std::fs::write(home.db(), &bytes).unwrap();
    let read = Store::open(&home).and_then(|s| s.list_feedback(&FeedbackFilter::default()));
    let error = read.unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
}

#[test]
fn the_queue_is_locked_against_another_handle() {
    let (_keep, path) = directory();
    let home = Home::open_or_create(&path).unwrap();
    let lock = home.try_lock_queue().unwrap().unwrap();
    assert!(Home::open_or_create(&path).unwrap().try_lock_queue().unwrap().is_none());
    assert_eq!(home.queue_holder(), Some(std::process::id()));
    drop(lock);
    assert!(home.try_lock_queue().unwrap().is_some());
}

#[test]
fn the_queue_is_locked_against_another_process_until_that_dies() {
    let (_keep, path) = directory();
    let home = Home::open_or_create(&path).unwrap();
    let (mut child, mut stdout) = start(program("hold", &path));
    assert_eq!(next_line(&mut stdout), "locked");
    assert!(home.try_lock_queue().unwrap().is_none());
    assert_eq!(home.queue_holder(), Some(child.id()));
    let store = Store::open(&home).unwrap();
    store.add_feedback(&mark("reading and marking go on")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(home.try_lock_queue().unwrap().is_some());
}

#[test]
fn a_killed_process_loses_no_acknowledged_mark() {
    let (_keep, path) = directory();
    let (mut child, mut stdout) = start(program("acknowledge", &path));
    let mut acknowledged = 0;
    for _ in 0..20 {
        acknowledged = next_line(&mut stdout).parse::<i64>().unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let store = Store::open(&Home::open_or_create(&path).unwrap()).unwrap();
    for id in 1..=acknowledged {
        assert_eq!(store.feedback(id).unwrap().response, "acknowledged");
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing_half_done() {
    let (_keep, path) = directory();
    // A limit on the size of files stands for the full disk: 512 KiB. The signal that would end
    // the process is ignored, so the write fails as on a full disk.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("trap '' XFSZ; ulimit -f 1024; exec \"$0\" \"$@\"");
    let inner = program("fill", &path);
    shell.arg(inner.get_program()).args(inner.get_args()).env(CASE, "fill").env(AT, &path);
    let said = said(&shell.output().unwrap());
    let (stored, error) = said.split_once(' ').unwrap();
    assert!(error.contains("shammah.db") && error.contains("full"), "{error}");
    assert!(error.contains("free some space") && !error.contains('\n'), "{error}");
    let store = Store::open(&Home::open_or_create(&path).unwrap()).unwrap();
    let rows = store.list_feedback(&FeedbackFilter::default()).unwrap();
    assert_eq!(rows.len().to_string(), stored, "what was stored is there");
    store.add_feedback(&mark("with space again, it goes on")).unwrap();
}

/// Opens a data directory in a process without root's rights; `None` when that cannot be had.
fn open_as_nobody(home: &Path) -> Option<String> {
    let mut command = program("open", home);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
    }
    match command.output() {
        Ok(output) => Some(said(&output)),
        Err(error) => {
            eprintln!("SKIPPED: this test program cannot run as another user: {error}");
            None
        }
    }
}

/// Gives a directory and all in it to the user that [`open_as_nobody`] opens it as.
fn give_to_nobody(path: &Path) {
    if !is_root() {
        return;
    }
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() {
        path.read_dir().unwrap().for_each(|entry| give_to_nobody(&entry.unwrap().path()));
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_read_only_directory_is_an_error_with_its_path() {
    let (keep, path) = directory();
    std::fs::create_dir(&path).unwrap();
    give_to_nobody(keep.path());
    set_mode(&path, 0o500);
    let Some(said) = open_as_nobody(&path) else { return };
    assert!(said.contains("adapters") && said.contains("Permission denied"), "{said}");
    assert!(said.contains("--home") && !said.contains('\n'), "{said}");
    set_mode(&path, 0o700);
}

#[test]
fn a_directory_that_became_read_only_is_an_error_with_its_path() {
    let (keep, path) = directory();
    Store::open(&Home::open_or_create(&path).unwrap()).unwrap();
    give_to_nobody(keep.path());
    set_mode(&path, 0o500);
    let Some(said) = open_as_nobody(&path) else { return };
    assert!(said.contains("shammah.db") && said.contains("writable"), "{said}");
    assert!(said.contains("--home") && !said.contains('\n'), "{said}");
    set_mode(&path, 0o700);
    set_mode(&path.join("shammah.db"), 0o400);
    let said = open_as_nobody(&path).unwrap();
    assert!(said.contains("shammah.db") && said.contains("writable"), "{said}");
}

#[test]
fn an_unreadable_directory_is_an_error_with_its_path() {
    let (keep, path) = directory();
    Store::open(&Home::open_or_create(&path).unwrap()).unwrap();
    give_to_nobody(keep.path());
    set_mode(&path, 0o000);
    let Some(said) = open_as_nobody(&path) else { return };
    assert!(said.contains(path.to_str().unwrap()) && said.contains("Permission denied"), "{said}");
    assert!(said.contains("readable") && !said.contains('\n'), "{said}");
    set_mode(&path, 0o700);
}
