//! A session with the real program over pipes, as a script holds it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use super::Program;

/// Far more than any step takes; only a program that hangs reaches it.
const PATIENCE: Duration = Duration::from_secs(150);
/// Lines that the reader may be ahead.
const LINES_AHEAD: usize = 4096;

/// A console with piped input, as a script uses it.
pub struct Session {
    pub child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    pub transcript: Vec<String>,
}

impl Session {
    pub fn start(program: &Program, settings: &[&str]) -> Self {
        let mut args = vec!["--set", "generation.temperature=0"];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let mut child = program
            .command(&args)
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

    pub fn send(&mut self, line: &str) {
        self.transcript.push(format!("> {line}"));
        let input = self.input.as_mut().expect("input is open");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("the program reads");
    }

    /// Reads until a line holds one of `wanted`; returns that line and those before it.
    pub fn expect(&mut self, wanted: &[&str]) -> (String, Vec<String>) {
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

    pub fn quit(mut self) -> ExitStatus {
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
