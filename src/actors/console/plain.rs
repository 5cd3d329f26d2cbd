//! The console without a terminal: one line is one input, answers and replies on stdout, errors on stderr, no prompt.
//!
//! Two threads, because reading and writing a pipe block: the reader waits for each line to be dealt with, and for what
//! was said about it to be written, before it reads the next. So a script's commands act in their order, and a slow reader
//! of stdout slows the script down and loses nothing.

use std::io::{self, BufRead, Write};
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::flow::{Flow, Wrap};
use super::frontend::{Event, Frontend, Output, Ticket};

/// Longest line of input, in bytes: far beyond any context, and a bound on what a pipe without line breaks may take.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// Notices that wait for the end of an answer; a job tells fewer in a minute.
const HELD_NOTICES: usize = 64;

/// What some editors write at the start of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

impl Frontend {
    /// Reads lines from `input`, writes answers and replies to `output` and errors to `errors`, on two threads.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn plain(
        input: impl BufRead + Send + 'static,
        output: impl Write + Send + 'static,
        errors: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let (frontend, backend) = Self::channels(false);
        let events = backend.events.clone();
        // Weak: the writer ends with the actor, not with an input that never ends.
        let outputs = frontend.outputs.downgrade();
        thread::Builder::new()
            .name("console-in".to_owned())
            .spawn(move || read(input, &events, &outputs))?;
        thread::Builder::new().name("console-out".to_owned()).spawn(move || {
            if let Err(error) = write(backend.outputs, output, errors) {
                // Without a reader of what we say there is nothing to go on for.
                let broken = Event::Broken(format!("cannot write to stdout: {error}"));
                let _ = backend.events.blocking_send(broken);
            }
        })?;
        Ok(frontend)
    }
}

/// Sends every line of the input, one at a time.
fn read(mut input: impl BufRead, events: &mpsc::Sender<Event>, outputs: &mpsc::WeakSender<Output>) {
    for number in 1.. {
        let event = match read_line(&mut input, number) {
            Ok(Some(event)) => event,
            Ok(None) => Event::End,
            Err(error) => Event::Broken(format!("cannot read the input: {error}")),
        };
        let over = matches!(event, Event::End | Event::Broken(_));
        if !deliver(events, event) || over || !flushed(outputs) {
            return;
        }
    }
}

/// Waits until all that was said is written; `false` when nothing will be written any more.
fn flushed(outputs: &mpsc::WeakSender<Output>) -> bool {
    let Some(outputs) = outputs.upgrade() else { return false };
    let (done, written) = oneshot::channel();
    let sent = outputs.blocking_send(Output::Flush(done)).is_ok();
    // Held on, it would keep the writer alive.
    drop(outputs);
    sent && written.blocking_recv().is_ok()
}

/// Sends an event with a ticket and waits for its end; `false` when nobody listens any more.
fn deliver(events: &mpsc::Sender<Event>, event: Event) -> bool {
    let (mine, ended) = Ticket::new();
    let event = match event {
        Event::Line { text, .. } => Event::Line { text, ticket: Some(mine) },
        Event::Unreadable { problem, .. } => Event::Unreadable { problem, ticket: Some(mine) },
        other => other,
    };
    let sent = events.blocking_send(event).is_ok();
    // The ticket ends by being dropped, which is no error.
    let _ = ended.blocking_recv();
    sent
}

fn read_line(input: &mut impl BufRead, number: usize) -> io::Result<Option<Event>> {
    let mut bytes = Vec::new();
    let limit = MAX_LINE_BYTES as u64 + 1;
    io::Read::take(&mut *input, limit).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let unreadable = |problem| Ok(Some(Event::Unreadable { problem, ticket: None }));
    if bytes.len() > MAX_LINE_BYTES && !bytes.ends_with(b"\n") {
        skip_line(input)?;
        return unreadable(format!(
            "line {number} of the input has more than {MAX_LINE_BYTES} bytes and was skipped: shorten it"
        ));
    }
    match String::from_utf8(bytes) {
        Ok(text) => {
            let text = text.trim_end_matches(['\n', '\r']);
            let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).to_owned();
            Ok(Some(Event::Line { text, ticket: None }))
        }
        Err(error) => unreadable(format!(
            "line {number} of the input is not UTF-8 (byte {}) and was skipped: convert it",
            error.utf8_error().valid_up_to() + 1
        )),
    }
}

/// Reads to the end of the line and keeps nothing of it.
fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        let (used, done) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        input.consume(used);
        if done {
            return Ok(());
        }
    }
}

/// Writes outputs until the console closes; every output is flushed, as a reader may wait for it.
fn write(
    mut outputs: mpsc::Receiver<Output>,
    mut output: impl Write,
    mut errors: impl Write,
) -> io::Result<()> {
    let mut flow = Flow::new(Wrap::Never);
    // What was said in the middle of an answer follows it: in a file nobody sees it happen, and a
    // torn sentence is hard to read.
    let mut answering = false;
    let mut held: Vec<String> = Vec::new();
    while let Some(next) = outputs.blocking_recv() {
        match next {
            Output::Piece(text) => {
                answering = true;
                put(&mut output, &flow.piece(&text))?;
            }
            Output::EndAnswer => {
                answering = false;
                put(&mut output, &flow.end())?;
                for text in held.drain(..) {
                    put(&mut output, &flow.lines(&text))?;
                }
            }
            Output::Say(text) if answering && held.len() < HELD_NOTICES => held.push(text),
            Output::Say(text) => put(&mut output, &flow.lines(&text))?,
            Output::Pair(pair) => put(&mut output, &flow.lines(&pair.lines(None)))?,
            Output::Error(text) => {
                put(&mut output, &flow.interrupt())?;
                put(&mut errors, &flow.lines(&format!("error: {text}")))?;
            }
            Output::Complaint(text) => {
                put(&mut output, &flow.interrupt())?;
                put(&mut errors, &flow.lines(&text))?;
            }
            Output::Status(_) => {}
            Output::Flush(done) => {
                let _ = done.send(());
            }
            Output::Close(done) => {
                put(&mut output, &flow.end())?;
                for text in held.drain(..) {
                    put(&mut output, &flow.lines(&text))?;
                }
                let _ = done.send(());
                return Ok(());
            }
        }
    }
    put(&mut output, &flow.end())
}

fn put(output: &mut impl Write, chunks: &[String]) -> io::Result<()> {
    if chunks.is_empty() {
        return Ok(());
    }
    output.write_all(chunks.concat().as_bytes())?;
    output.flush()
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;
