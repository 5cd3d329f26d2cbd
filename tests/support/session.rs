//! A session with the real program over pipes, as a script holds it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
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
        Self::of(&mut program.command(&args), Stdio::inherit())
    }

    /// Starts `command`, with its stderr where it is told.
    pub fn of(command: &mut Command, errors: Stdio) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
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

    /// Sends a line to a program that may be dead; returns whether it could.
    pub fn try_send(&mut self, line: &str) -> bool {
        let input = self.input.as_mut().expect("input is open");
        writeln!(input, "{line}").and_then(|()| input.flush()).is_ok()
    }

    /// Reads until a line holds one of `wanted`, and returns it with those before; all that is left if the program ends first.
    pub fn try_expect(&mut self, wanted: &[&str]) -> Result<Vec<String>, Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines: Vec<String> = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let found = wanted.iter().any(|w| line.contains(w));
                    lines.push(line);
                    if found {
                        return Ok(lines);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Err(lines),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("waited for {wanted:?} in\n{}", lines.join("\n"))
                }
            }
        }
    }

    pub fn quit(self) -> ExitStatus {
        self.leave(&[0])
    }

    /// Quits; a job that was rejected meanwhile, say, may be told by the exit code.
    pub fn leave(mut self, codes: &[i32]) -> ExitStatus {
        self.send("/quit");
        drop(self.input.take());
        let status = self.child.wait().expect("the program ends");
        let expected = status.code().is_some_and(|code| codes.contains(&code));
        assert!(expected, "{status} after\n{}", self.transcript.join("\n"));
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
