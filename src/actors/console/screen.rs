//! The console at a terminal: one thread owns the screen, the line being typed and the history.
//!
//! rustyline-async 0.4.9 draws the prompt below what is printed. What it needs, and gets here: output is queued only when
//! the earlier output is drawn (its queue is bounded, and it is drained by polling `readline`), lines never reach the last
//! column, and the prompt is changed between two polls. What it gets wrong is worked around by [`paint`](super::paint).

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use rustyline_async::{Readline, ReadlineError, ReadlineEvent, SharedWriter};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::flow::{Flow, Wrap};
use super::frontend::{Event, Frontend, Output};
use super::history::History;
use super::paint::Painter;
use super::prompt::{JobStatus, PROMPT};
use crate::text::printable_line;

/// How often the size of the terminal is looked at; the crate keeps its own view of it to itself.
const SIZE_POLL: Duration = Duration::from_millis(200);
/// What a terminal has that does not tell.
const USUAL_COLUMNS: usize = 80;
/// The screen tells once whether it could be opened.
const OPENINGS: usize = 1;

impl Frontend {
    /// Takes over the terminal, on a thread of its own; it is restored when the console closes or its actor is gone.
    ///
    /// # Errors
    /// The terminal cannot be taken over, or no thread can be started.
    pub fn terminal(history: History, wrap_words: bool) -> io::Result<Self> {
        let (frontend, backend) = Self::channels(true);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (ready, opened) = std::sync::mpsc::sync_channel(OPENINGS);
        thread::Builder::new().name("console".to_owned()).spawn(move || {
            runtime.block_on(async {
                let (screen, problem) = match Screen::open(history, wrap_words, backend.events) {
                    Ok(screen) => (Some(screen), Ok(())),
                    Err(error) => (None, Err(io::Error::other(error))),
                };
                let _ = ready.send(problem);
                if let Some(screen) = screen {
                    screen.run(backend.outputs).await;
                }
            });
        })?;
        opened.recv().unwrap_or_else(|_| Err(io::Error::other("the console's thread died")))?;
        Ok(frontend)
    }
}

struct Screen {
    readline: Readline,
    writer: SharedWriter,
    history: History,
    events: mpsc::Sender<Event>,
    flow: Flow,
    painter: Painter,
    /// Whether the writer has bytes that found no room.
    held: bool,
    wrap_words: bool,
    status: JobStatus,
    prompt: String,
    /// The input is over; what is said until the console closes needs no prompt.
    ended: bool,
}

impl Screen {
    fn open(
        history: History,
        wrap_words: bool,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, ReadlineError> {
        let (mut readline, writer) = Readline::new(PROMPT.to_owned())?;
        // The echo of a line is replaced by ours; see the painter. What Ctrl-C abandons is not repeated.
        readline.should_print_line_on(true, false);
        match history.load() {
            Ok(lines) => {
                readline.set_max_history(history.limit());
                readline.set_history_entries(lines);
            }
            Err(error) => tracing::warn!(%error, "the history cannot be read"),
        }
        Ok(Self {
            readline,
            writer,
            history,
            events,
            flow: Flow::new(Wrap::for_terminal(columns(), wrap_words)),
            painter: Painter::default(),
            held: false,
            wrap_words,
            status: JobStatus::Idle,
            prompt: PROMPT.to_owned(),
            ended: false,
        })
    }

    async fn run(mut self, mut outputs: mpsc::Receiver<Output>) {
        let mut size_poll = ticker();
        let mut closed: Option<oneshot::Sender<()>> = None;
        while closed.is_none() {
            // In this order: polling `readline` first draws what is queued, so that the next output finds room.
            let result = tokio::select! {
                biased;
                event = self.readline.readline() => self.heard(event),
                output = outputs.recv() => match output {
                    Some(Output::Close(done)) => { closed = Some(done); Ok(()) }
                    Some(output) => self.show(output),
                    None => break,
                },
                _ = size_poll.tick() => self.fit(),
            };
            if let Err(error) = result {
                tracing::error!(%error, "the terminal is lost");
                let _ = self.events.try_send(Event::Broken(error.to_string()));
                break;
            }
        }
        let rest = self.flow.end();
        let _ = self.put(rest);
        let _ = self.readline.flush();
        // Leaves the raw mode; only then may others write.
        drop(self.readline);
        if let Some(closed) = closed {
            let _ = closed.send(());
        }
    }

    /// Passes on what the user did.
    fn heard(&mut self, event: Result<ReadlineEvent, ReadlineError>) -> Result<(), ReadlineError> {
        let event = event?;
        // Whatever came, the prompt is not where it was: an answer goes on below it.
        let rest = self.flow.interrupt();
        self.put(rest)?;
        if self.ended {
            return Ok(());
        }
        let event = match event {
            ReadlineEvent::Line(text) => {
                self.echo(&text)?;
                self.readline.add_history_entry(text.clone());
                if let Err(error) = self.history.append(&text) {
                    tracing::warn!(%error, "the history cannot be written");
                }
                Event::Line { text, ticket: None }
            }
            ReadlineEvent::Interrupted => Event::Interrupt,
            ReadlineEvent::Eof => {
                self.set_prompt(String::new())?;
                self.ended = true;
                Event::End
            }
        };
        if self.events.try_send(event).is_err() {
            let problem = "busy: this input is lost, there are too many at once".to_owned();
            return self.show(Output::Error(problem));
        }
        Ok(())
    }

    /// Shows a line that was entered, in the place of what the crate shows.
    fn echo(&mut self, text: &str) -> Result<(), ReadlineError> {
        let lines = if text.trim().is_empty() {
            String::new()
        } else {
            self.flow.lines(&format!("{PROMPT}{}", printable_line(text))).concat()
        };
        let data = self.painter.echo(&format!("{}{text}", self.prompt), columns(), &lines);
        self.send(&data)
    }

    fn show(&mut self, output: Output) -> Result<(), ReadlineError> {
        self.fit()?;
        let chunks = match output {
            Output::Piece(text) => self.flow.piece(&text),
            Output::EndAnswer => self.flow.end(),
            Output::Say(text) | Output::Complaint(text) => self.flow.lines(&text),
            Output::Pair(pair) => self.flow.lines(&pair.lines(Some(columns()))),
            Output::Error(text) => self.flow.lines(&format!("error: {text}")),
            Output::Status(status) => {
                self.status = status;
                return self.fit();
            }
            Output::Flush(done) => {
                let _ = done.send(());
                Vec::new()
            }
            Output::Close(_) => Vec::new(),
        };
        self.put(chunks)
    }

    /// Fits wrapping and prompt to the terminal as it is now.
    fn fit(&mut self) -> Result<(), ReadlineError> {
        if self.held {
            self.send("")?;
        }
        let columns = columns();
        let closing = self.flow.rewrap(Wrap::for_terminal(columns, self.wrap_words));
        self.put(closing)?;
        self.set_prompt(self.status.prompt(columns))
    }

    fn set_prompt(&mut self, prompt: String) -> Result<(), ReadlineError> {
        if prompt != self.prompt && !self.ended {
            self.readline.update_prompt(&prompt)?;
            self.prompt = prompt;
        }
        Ok(())
    }

    /// Queues chunks for drawing.
    fn put(&mut self, chunks: Vec<String>) -> Result<(), ReadlineError> {
        let data = self.painter.chunks(&chunks);
        if data.is_empty() { Ok(()) } else { self.send(&data) }
    }

    /// Queues whole lines; their last line break sends them.
    fn send(&mut self, data: &str) -> Result<(), ReadlineError> {
        self.held = false;
        match self.writer.write(data.as_bytes()) {
            // The queue is full (a paste of hundreds of lines): the writer keeps the bytes and sends them with the next.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.held = true,
            result => {
                result?;
            }
        }
        Ok(())
    }
}

fn ticker() -> Interval {
    let mut ticker = interval(SIZE_POLL);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticker
}

/// Returns the width of the terminal.
fn columns() -> usize {
    match rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => USUAL_COLUMNS,
    }
}
