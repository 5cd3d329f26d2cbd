//! Which input is worked on when: texts and marks in order, commands past an answer that streams.
//!
//! Plain data; the actor asks it for what may start and tells it what ended.

use std::collections::VecDeque;

use super::commands::{Command, SystemCommand};
use super::frontend::Ticket;

/// Inputs that wait while an answer streams: a person types ahead a few lines, a paste of a file is refused.
pub const WAITING_INPUTS: usize = 8;

/// An understood input.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// A text for the model.
    Say(String),
    /// A command.
    Command(Command),
}

/// What the order of two inputs depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Needs the model.
    Text,
    /// Needs the answer before it.
    Mark,
    /// Needs the marks before it.
    Marks,
    /// Needs them too, and what a revision does with the last one.
    Undo,
    /// Depends on nothing.
    Free,
}

impl Work {
    fn kind(&self) -> Kind {
        match self {
            Work::Say(_) | Work::Command(Command::Compare(_)) => Kind::Text,
            Work::Command(
                Command::Mark { .. }
                | Command::Fix(_)
                | Command::FixOf { .. }
                | Command::Accept(_)
                | Command::Skip,
            ) => Kind::Mark,
            // What an answer was asked with must not change under it.
            Work::Command(Command::System(SystemCommand::Set(_) | SystemCommand::Off)) => {
                Kind::Mark
            }
            Work::Command(Command::Train { .. }) => Kind::Marks,
            Work::Command(Command::Undo) => Kind::Undo,
            Work::Command(_) => Kind::Free,
        }
    }

    /// Whether a revision that is being made ends for this: the user goes on, and it must not hold anything up. Only
    /// `/accept` waits for it.
    pub fn stops_revision(&self) -> bool {
        match self {
            Work::Command(Command::Accept(_)) => false,
            work => matches!(work.kind(), Kind::Text | Kind::Mark | Kind::Undo),
        }
    }
}

/// The inputs that wait, and what is being worked on.
#[derive(Debug, Default)]
pub struct Intake {
    waiting: VecDeque<(Work, Option<Ticket>)>,
    /// An answer streams.
    pub answering: bool,
    /// The answer is a revision: nothing waits for its end.
    pub revising: bool,
    /// A command waits for its reply.
    pub working: bool,
}

impl Intake {
    /// Queues an input; `false` when too many wait already (the input is dropped, and its ticket with it).
    pub fn push(&mut self, work: Work, ticket: Option<Ticket>) -> bool {
        if self.waiting.len() >= WAITING_INPUTS {
            return false;
        }
        self.waiting.push_back((work, ticket));
        true
    }

    /// Returns the first input that may start now.
    pub fn next(&mut self) -> Option<(Work, Option<Ticket>)> {
        if self.working {
            return None;
        }
        let kinds: Vec<Kind> = self.waiting.iter().map(|(work, _)| work.kind()).collect();
        let index = (0..kinds.len()).find(|&index| self.may_start(&kinds, index))?;
        self.waiting.remove(index)
    }

    /// Whether the input at `index` may start before those that came earlier.
    fn may_start(&self, kinds: &[Kind], index: usize) -> bool {
        let earlier = &kinds[..index];
        match kinds[index] {
            Kind::Free => true,
            Kind::Marks | Kind::Undo => {
                let waits = kinds[index] == Kind::Undo && self.revising;
                let changes = |kind: &Kind| matches!(kind, Kind::Mark | Kind::Marks | Kind::Undo);
                !waits && !earlier.iter().any(changes)
            }
            Kind::Text | Kind::Mark => {
                !self.answering && earlier.iter().all(|kind| *kind == Kind::Free)
            }
        }
    }

    /// Whether the next input that is no free command is a text for the model.
    pub fn text_is_next(&self) -> bool {
        let mut kinds = self.waiting.iter().map(|(work, _)| work.kind());
        kinds.find(|kind| *kind != Kind::Free) == Some(Kind::Text)
    }

    /// Whether something waits that would stop a revision.
    pub fn stops_revision(&self) -> bool {
        self.waiting.iter().any(|(work, _)| work.stops_revision())
    }

    /// Returns how many inputs wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Drops what waits, and returns how much that was.
    pub fn drop_waiting(&mut self) -> usize {
        let dropped = self.waiting.len();
        self.waiting.clear();
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::console::commands::{Input, parse};

    fn work(line: &str) -> Work {
        match parse(line) {
            Ok(Input::Text(text)) => Work::Say(text),
            Ok(Input::Command(command)) => Work::Command(command),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn next(intake: &mut Intake, line: &str) {
        assert_eq!(intake.next().map(|(work, _)| work), Some(work(line)));
    }

    fn filled(lines: &[&str]) -> Intake {
        let mut intake = Intake::default();
        for line in lines {
            assert!(intake.push(work(line), None), "{line}");
        }
        intake
    }

    #[test]
    fn commands_act_at_once_while_an_answer_streams_and_texts_wait() {
        let mut intake = filled(&["hello", "/good", "/jobs", "/set seed 7"]);
        intake.answering = true;
        next(&mut intake, "/jobs");
        next(&mut intake, "/set seed 7");
        assert!(intake.next().is_none());
        intake.answering = false;
        next(&mut intake, "hello");
        intake.answering = true;
        assert!(intake.next().is_none(), "the mark is for the answer to hello");
        intake.answering = false;
        next(&mut intake, "/good");
    }

    #[test]
    fn a_comparison_and_a_system_message_wait_for_their_turn() {
        let mut intake = filled(&["/system be brief", "/compare who?", "/system", "/model"]);
        intake.answering = true;
        next(&mut intake, "/system");
        next(&mut intake, "/model");
        assert!(intake.next().is_none());
        intake.answering = false;
        next(&mut intake, "/system be brief");
        next(&mut intake, "/compare who?");
    }

    #[test]
    fn a_training_never_overtakes_a_mark_that_waits() {
        let mut intake = filled(&["/fix better", "/train"]);
        intake.answering = true;
        assert!(intake.next().is_none());
        intake.answering = false;
        next(&mut intake, "/fix better");
        next(&mut intake, "/train");
    }

    #[test]
    fn a_revision_holds_nothing_up_but_an_accept() {
        for line in ["and now?", "/compare x", "/good", "/fix y", "/fix #3 y", "/skip", "/undo"] {
            assert!(work(line).stops_revision(), "{line}");
        }
        for line in ["/accept", "/accept 3", "/jobs", "/pending", "/train", "/set", "/system"] {
            assert!(!work(line).stops_revision(), "{line}");
        }
        let mut intake = filled(&["/accept", "/pending"]);
        assert!(!intake.stops_revision());
        (intake.answering, intake.revising) = (true, true);
        next(&mut intake, "/pending");
        assert!(intake.next().is_none(), "there is nothing to accept yet");
        (intake.answering, intake.revising) = (false, false);
        next(&mut intake, "/accept");
        assert!(filled(&["hello"]).stops_revision());
    }

    #[test]
    fn one_command_at_a_time() {
        let mut intake = filled(&["/good", "/undo"]);
        next(&mut intake, "/good");
        intake.working = true;
        assert!(intake.next().is_none());
        intake.working = false;
        next(&mut intake, "/undo");
    }

    #[test]
    fn what_waits_is_bounded_and_can_be_dropped() {
        let mut intake = filled(&["x"; WAITING_INPUTS]);
        assert!(!intake.push(work("y"), None));
        assert_eq!(intake.drop_waiting(), WAITING_INPUTS);
        assert!(intake.next().is_none());
    }
}
