//! What the console's actor and the thread that owns the screen say to each other.

use tokio::sync::{mpsc, oneshot};

use super::compare::Pair;
use super::prompt::JobStatus;

/// Outputs that wait for the screen: a few seconds of a fast answer. When it is full the answer waits, which makes the model wait.
pub const OUTPUT_CAPACITY: usize = 256;
/// Events that wait for the actor; it takes them in microseconds, so more than a handful means that it hangs.
pub const EVENT_CAPACITY: usize = 32;

/// Something came in.
#[derive(Debug)]
pub enum Event {
    /// A line.
    Line {
        /// The text, without its line break.
        text: String,
        /// Held until the line is dealt with, if the reader waits for that.
        ticket: Option<Ticket>,
    },
    /// A line that cannot be read (too long, not UTF-8).
    Unreadable {
        /// Why, with a remedy.
        problem: String,
        /// As in `Line`.
        ticket: Option<Ticket>,
    },
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D, or the end of the input.
    End,
    /// The terminal or pipe is gone.
    Broken(String),
}

/// Something to show.
#[derive(Debug)]
pub enum Output {
    /// A piece of an answer, printable.
    Piece(String),
    /// The answer is over.
    EndAnswer,
    /// Whole lines.
    Say(String),
    /// A line that is no result, as another process of the program wrote it to stderr.
    Complaint(String),
    /// Two answers to compare.
    Pair(Pair),
    /// An error, one line.
    Error(String),
    /// What the running job does.
    Status(JobStatus),
    /// Answer when everything before it is written.
    Flush(oneshot::Sender<()>),
    /// Restore the terminal, then answer and end.
    Close(oneshot::Sender<()>),
}

/// Says by being dropped that a line is dealt with: a reader of a pipe waits for it before the next line.
#[derive(Debug)]
pub struct Ticket(#[expect(dead_code, reason = "only its end matters")] oneshot::Sender<()>);

impl Ticket {
    /// Makes a ticket and the other end, which hears of its end.
    pub fn new() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }
}

/// The actor's ends of the channels to the screen.
#[derive(Debug)]
pub struct Frontend {
    /// What comes in.
    pub events: mpsc::Receiver<Event>,
    /// What goes out.
    pub outputs: mpsc::Sender<Output>,
    /// Whether a person sits at a terminal; otherwise input and output are files or pipes.
    pub interactive: bool,
}

/// The screen's ends.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) events: mpsc::Sender<Event>,
    pub(super) outputs: mpsc::Receiver<Output>,
}

impl Frontend {
    pub(super) fn channels(interactive: bool) -> (Self, Backend) {
        let (event_sender, events) = mpsc::channel(EVENT_CAPACITY);
        let (outputs, output_receiver) = mpsc::channel(OUTPUT_CAPACITY);
        let frontend = Self { events, outputs, interactive };
        (frontend, Backend { events: event_sender, outputs: output_receiver })
    }
}
