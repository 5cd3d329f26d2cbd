//! Revisions of the script: what the model makes of a note is what the note says it makes.

use shammah::messages::inference::{Candidate, Revise, Revised, RevisionPiece};

use super::*;

/// What comes of a note, and what is streamed of it.
fn made_of(note: &str, answers: usize) -> (Revised, String) {
    let first = format!("Again: {note}");
    let candidate = |index, text: &str, score| Candidate { text: text.to_owned(), score, index };
    let candidates = match note {
        // The model only repeats itself.
        "hopeless" => Vec::new(),
        "hardly" => vec![candidate(0, &first, 0.01)],
        "second" => vec![candidate(2, "The third try,\nin two lines.", 0.8)],
        _ => vec![candidate(0, &first, 0.9)],
    };
    (Revised { candidates, criticised: Some(0.0), answers, cancelled: false }, first)
}

impl Handler<Revise> for Others {
    type Result = Result<(), ActorError>;

    fn handle(&mut self, message: Revise, ctx: &mut Self::Context) -> Self::Result {
        let pause = self.script.pause;
        let Revise { request, out, cancel, .. } = message;
        let work = async move {
            if request.note == "broken" {
                let error = ActorError::Engine("the question is too long".into());
                let _ = out.send(RevisionPiece::Ended(Err(error))).await;
                return;
            }
            let (mut revised, first) = made_of(&request.note, request.candidates);
            for word in first.split_inclusive(' ') {
                let _ = out.send(RevisionPiece::Text(word.to_owned())).await;
                tokio::time::sleep(pause).await;
            }
            for n in 1..=request.candidates {
                let _ = out.send(RevisionPiece::Answered(n)).await;
            }
            while request.note == "for ever" && !cancel.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            revised.cancelled = cancel.load(Ordering::Relaxed);
            let _ = out.send(RevisionPiece::Ended(Ok(revised))).await;
        };
        ctx.spawn(work.into_actor(self));
        Ok(())
    }
}

impl Handler<SetTarget> for Others {
    type Result = Result<Marked, ActorError>;

    fn handle(&mut self, m: SetTarget, _: &mut Self::Context) -> Self::Result {
        let Some(row) = self.rows.get(&m.id).cloned() else {
            let error = format!("there is no feedback {}: `shammah feedback list` has all", m.id);
            return Err(ActorError::Refused(error));
        };
        Ok(self.put(Some(m.id), Row { fix: Some(m.text), revised: m.revised, ..row }))
    }
}

impl Handler<ListWaiting> for Others {
    type Result = Result<Waiting, ActorError>;

    fn handle(&mut self, m: ListWaiting, _: &mut Self::Context) -> Self::Result {
        let all: Vec<WaitingMark> = self
            .rows
            .iter()
            .rev()
            .filter(|(_, row)| !has_target(row))
            .map(|(id, row)| WaitingMark {
                id: *id,
                mark: row.mark,
                question: "a question".into(),
                note: row.note.clone(),
            })
            .collect();
        Ok(Waiting { total: all.len(), marks: all.into_iter().take(m.limit).collect() })
    }
}

/// A person at a terminal, as the console's actor sees one: events in, outputs out.
#[allow(dead_code, reason = "not every test that uses the fake types")]
pub struct Person {
    events: mpsc::Sender<Event>,
    outputs: mpsc::Receiver<Output>,
    console: std::thread::JoinHandle<u8>,
    /// All that was shown, a line each.
    pub seen: Vec<String>,
}

#[allow(dead_code, reason = "not every test that uses the fake types")]
impl Person {
    /// Sits down.
    pub fn sits(script: Script) -> Self {
        let (events, heard) = mpsc::channel(32);
        let (said, outputs) = mpsc::channel(256);
        let frontend = Frontend { events: heard, outputs: said, interactive: true };
        let console = std::thread::spawn(move || run(frontend, script));
        Self { events, outputs, console, seen: Vec::new() }
    }

    /// Types a line.
    pub fn types(&self, text: &str) {
        let line = Event::Line { text: text.to_owned(), ticket: None };
        self.events.blocking_send(line).expect("the console listens");
    }

    /// Presses Ctrl-C.
    pub fn interrupts(&self) {
        self.events.blocking_send(Event::Interrupt).expect("the console listens");
    }

    /// Reads until something with these words is shown, and returns it.
    pub fn reads(&mut self, words: &str) -> String {
        loop {
            let text = match self.outputs.blocking_recv() {
                Some(Output::Piece(text) | Output::Say(text) | Output::Complaint(text)) => text,
                Some(Output::Error(text)) => format!("error: {text}"),
                Some(_) => continue,
                None => panic!("never shown: {words}\n{}", self.seen.join("\n")),
            };
            self.seen.push(text.clone());
            if text.contains(words) {
                return text;
            }
        }
    }

    /// Leaves, and returns all that was shown.
    pub fn leaves(mut self) -> String {
        self.events.blocking_send(Event::End).expect("the console listens");
        while let Some(output) = self.outputs.blocking_recv() {
            match output {
                Output::Piece(text)
                | Output::Say(text)
                | Output::Complaint(text)
                | Output::Error(text) => {
                    self.seen.push(text);
                }
                Output::Close(done) => drop(done.send(())),
                _ => {}
            }
        }
        assert_eq!(self.console.join().expect("the console ended well"), 0);
        self.seen.join("\n")
    }
}
