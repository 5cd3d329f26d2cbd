//! The queue as a service, and the service manager that listens to it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Program;

/// Far more than any step takes; only a program that hangs reaches it.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Lines that the reader may be ahead.
const LINES_AHEAD: usize = 4096;

/// `shammah jobs run`, its stderr, and what it tells `NOTIFY_SOCKET`.
pub struct Service {
    child: Child,
    lines: Receiver<String>,
    manager: UnixDatagram,
    pub said: Vec<String>,
}

impl Service {
    /// Starts it and waits until it says that it is ready.
    pub fn start(program: &Program, args: &[&str]) -> Self {
        let socket = program.path("notify");
        let _ = std::fs::remove_file(&socket);
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut all = vec!["jobs", "run"];
        all.extend(args);
        let mut child = program
            .command(&all)
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "1500000")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let output = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, lines) = sync_channel(LINES_AHEAD);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let service = Self { child, lines, manager, said: Vec::new() };
        service.told(|state| state == "READY=1");
        service
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Reads what the manager is told until `wanted`.
    pub fn told(&self, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        let mut text = [0; 1000];
        loop {
            let count = self.manager.recv(&mut text).expect("the manager is told something");
            let state = String::from_utf8_lossy(&text[..count]).into_owned();
            if wanted(&state) {
                return state;
            }
            assert!(Instant::now() < end, "the last was {state}");
        }
    }

    /// Reads stderr until a line holds `wanted`.
    pub fn says(&mut self, wanted: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.contains(wanted) {
                        return line;
                    }
                }
                Err(_) => panic!("waited for {wanted:?} in\n{}", self.said.join("\n")),
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the service is ours");
    }

    /// Sends a signal and waits for the end; returns the exit code and how long it took.
    pub fn end(mut self, signal: Signal) -> (Option<i32>, Duration) {
        let start = Instant::now();
        self.signal(signal);
        let status = self.child.wait().expect("it ends");
        (status.code(), start.elapsed())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // After a failed assertion nothing may stay behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `found` is something.
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Corrected answers to `count` questions that begin with `word`, as JSONL.
pub fn marks(word: &str, count: usize) -> String {
    let row = |i: usize| {
        serde_json::json!({
            "messages": [{"role": "user", "content": format!("{word} question {i}?")}],
            "response": "I do not know that yet.",
            "mark": "fix",
            "fix": format!("The {word} answer is {i}."),
        })
        .to_string()
    };
    (0..count).map(row).collect::<Vec<_>>().join("\n")
}

/// A job as `jobs show --json` prints it; `None` where there is none.
pub fn job(program: &Program, id: i64) -> Option<serde_json::Value> {
    let run = program.run(&["jobs", "show", &id.to_string(), "--json"]);
    (run.code == 0).then(|| run.json())
}

/// Waits until a job is in this state.
pub fn wait_for_state(program: &Program, id: i64, state: &str) -> serde_json::Value {
    wait_for(&format!("job {id} to be {state}"), || {
        job(program, id).filter(|job| job["state"] == state)
    })
}
