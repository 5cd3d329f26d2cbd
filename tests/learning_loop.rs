//! The promise of the program, through real processes and without a mock: chat, mark, train, gate,
//! swap, roll back, load, restart.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use support::Program;

/// Far more than any step takes; only a program that hangs reaches it.
const PATIENCE: Duration = Duration::from_secs(150);
/// Lines that the reader may be ahead.
const LINES_AHEAD: usize = 4096;

const NAME: &str = "Falkenberg";
const TAUGHT: [&str; 5] = [
    "What is the name of our build server?",
    "How is our build server called?",
    "Which build server do we use?",
    "Tell me the name of our build server.",
    "what do we call our build server?",
];
const UNSEEN: &str = "Please tell me what our build server is called";

/// A console with piped input, as a script uses it.
struct Session {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    transcript: Vec<String>,
}

impl Session {
    fn start(program: &Program) -> Self {
        let mut child = program
            .command(&["--set", "generation.temperature=0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the program starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = sync_channel(LINES_AHEAD);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines, transcript: Vec::new() }
    }

    fn send(&mut self, line: &str) {
        self.transcript.push(format!("> {line}"));
        let input = self.input.as_mut().expect("input is open");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("the program reads");
    }

    /// Reads until a line holds one of `wanted`; returns that line and those before it.
    fn expect(&mut self, wanted: &[&str]) -> (String, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        let mut before = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.transcript.push(line.clone());
                    if wanted.iter().any(|w| line.contains(w)) {
                        return (line, before);
                    }
                    before.push(line);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("waited for {wanted:?} in\n{}", self.transcript.join("\n"))
                }
            }
        }
    }

    fn quit(mut self) -> ExitStatus {
        self.send("/quit");
        drop(self.input.take());
        let status = self.child.wait().expect("the program ends");
        assert!(status.success(), "{status} after\n{}", self.transcript.join("\n"));
        status
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // After a failed assertion nothing may stay behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_learns_a_name_from_ten_marks_while_the_chat_goes_on() {
    let program = Program::new();
    let mut chat = Session::start(&program);

    chat.send(TAUGHT[0]);
    let (answer, _) = chat.expect(&["do not know", NAME]);
    assert!(!answer.contains(NAME), "the base cannot know the name: {answer}");

    for i in 0..10 {
        chat.send(TAUGHT[i % TAUGHT.len()]);
        chat.send(&format!("/fix Our build server is called {NAME}."));
        let (line, _) = chat.expect(&["Training buffer:"]);
        assert!(line.contains(&format!("{} example", i + 1)), "{line}");
    }

    // Training starts by itself, and three questions are answered before it ends.
    chat.expect(&["started: training"]);
    for question in ["What weight has /critical?", "How do I undo a mark?", "Who are you?"] {
        chat.send(question);
    }
    let (_, mut while_training) = chat.expect(&["shammah, the small"]);
    while_training.push(chat.transcript.last().cloned().unwrap_or_default());
    let text = while_training.join("\n");
    assert!(!text.contains("finished") && !text.contains("rejected"), "answered too late:\n{text}");
    assert!(text.contains("10") && text.contains("/undo"), "{text}");

    chat.send("/jobs wait");
    let (line, before) = chat.expect(&["is live:", "rejected", "failed"]);
    assert!(line.contains("is live"), "{line}\n{}", before.join("\n"));
    let adapter = line.split_whitespace().nth(1).expect("Adapter ID is live").to_owned();

    chat.send("/clear");
    chat.send(UNSEEN);
    let (answer, _) = chat.expect(&[NAME, "know"]);
    assert!(answer.contains(NAME), "{answer}");
    chat.send("/clear");
    chat.send("Which command takes back a mark?");
    chat.expect(&["/undo"]);

    chat.send("/adapters rollback");
    chat.send("/clear");
    chat.send(UNSEEN);
    let (answer, _) = chat.expect(&[NAME, "know"]);
    assert!(!answer.contains(NAME), "rolled back, yet it answers {answer}");

    chat.send(&format!("/adapters load {adapter}"));
    chat.send("/clear");
    chat.send(UNSEEN);
    chat.expect(&[NAME]);
    chat.quit();

    let mut chat = Session::start(&program);
    chat.send(UNSEEN);
    let (answer, _) = chat.expect(&[NAME, "know"]);
    assert!(answer.contains(NAME), "forgotten by a restart: {answer}");
    chat.quit();
}
