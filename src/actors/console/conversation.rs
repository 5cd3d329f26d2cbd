//! The conversation and the marks on it: plain data, no actor.

use crate::domain::{AdapterId, Mark, Message, Role};
use crate::engine::FinishReason;
use crate::messages::feedback::{AddFix, AddMark, Marked, Turn, UndoMark};
use crate::messages::inference::Answer;
use crate::store::MarkState;

/// Steps of this session that `/undo` can take back, one after the other.
const UNDO_DEPTH: usize = 100;

/// What was said, and what can be marked.
#[derive(Debug, Default)]
pub struct Conversation {
    messages: Vec<Message>,
    last: Option<LastAnswer>,
    /// What was marked and corrected in this session, the newest last.
    steps: Vec<Step>,
}

/// A mark that was made or changed.
#[derive(Debug, Clone)]
struct Step {
    id: i64,
    /// What it was before; `None` if it was made.
    before: Option<MarkState>,
}

/// The answer that marks are about.
#[derive(Debug)]
struct LastAnswer {
    turn: Turn,
    finish_reason: FinishReason,
    mark: Option<i64>,
}

impl Conversation {
    /// Starts with a system message unless it is empty.
    pub fn new(system: &str) -> Self {
        let mut conversation = Self::default();
        conversation.clear(system);
        conversation
    }

    /// Forgets what was said; marks can still be taken back.
    pub fn clear(&mut self, system: &str) {
        self.messages.clear();
        self.last = None;
        if !system.is_empty() {
            self.messages.push(Message::system(system));
        }
    }

    /// Returns the system message, if there is one.
    pub fn system(&self) -> Option<&str> {
        let first = self.messages.first().filter(|message| message.role == Role::System);
        first.map(|message| message.content.as_str())
    }

    /// Changes the system message of what is said from now on; an empty one takes it away.
    pub fn set_system(&mut self, text: &str) {
        self.messages.retain(|message| message.role != Role::System);
        if !text.is_empty() {
            self.messages.insert(0, Message::system(text));
        }
    }

    /// Returns what to ask for an answer that is no part of the conversation: its system message and the text.
    pub fn aside(&self, text: String) -> Vec<Message> {
        let system = self.messages.iter().filter(|message| message.role == Role::System);
        system.cloned().chain([Message::user(text)]).collect()
    }

    /// Whether the model has answered in this conversation.
    pub fn has_answers(&self) -> bool {
        self.messages.iter().any(|message| message.role == Role::Assistant)
    }

    /// Takes in the user's text and returns the conversation that the model must answer: the system
    /// message, the last `history_turns` questions with their answers, and the text. What is older is
    /// forgotten, so that a mark is about what the model saw.
    pub fn ask(&mut self, text: String, history_turns: usize) -> Vec<Message> {
        let turns = (self.messages.len() - self.system_messages()) / 2;
        self.forget(turns.saturating_sub(history_turns));
        self.messages.push(Message::user(text));
        self.messages.clone()
    }

    /// Forgets the oldest turns.
    fn forget(&mut self, turns: usize) {
        let system = self.system_messages();
        let end = (system + 2 * turns).min(self.messages.len());
        self.messages.drain(system..end);
    }

    fn system_messages(&self) -> usize {
        self.messages.iter().take_while(|message| message.role == Role::System).count()
    }

    /// Takes in the answer; one without any text counts as none. What the model did not see any more is forgotten.
    pub fn answered(&mut self, answer: &Answer) {
        self.forget(answer.dropped_turns);
        if answer.text.is_empty() {
            return self.unanswered();
        }
        self.last = Some(LastAnswer {
            turn: Turn {
                messages: self.messages.clone(),
                response: answer.text.clone(),
                domain: answer.route.domain.clone(),
                adapter: strongest(&answer.adapters),
                base: Some(answer.base.clone()),
            },
            finish_reason: answer.finish_reason,
            mark: None,
        });
        self.messages.push(Message::assistant(answer.text.clone()));
    }

    /// Takes the user's last text back: there is no answer to it.
    pub fn unanswered(&mut self) {
        self.messages.pop();
    }

    /// Makes the message that marks the last answer.
    ///
    /// # Errors
    /// There is no answer, or it is cut and cannot be an example as it stands.
    pub fn mark(&self, mark: Mark, note: Option<String>) -> Result<AddMark, String> {
        let last = self.last_answer("mark")?;
        if mark == Mark::Good && last.finish_reason != FinishReason::Stop {
            return Err(
                "the last answer is cut short, and to learn it would teach to stop there: \
                        /fix TEXT gives the whole one"
                    .to_owned(),
            );
        }
        Ok(AddMark { turn: last.turn.clone(), mark, note, replaces: last.mark })
    }

    /// Makes the message that corrects the last answer.
    ///
    /// # Errors
    /// There is no answer.
    pub fn fix(&self, fix: String) -> Result<AddFix, String> {
        let last = self.last_answer("correct")?;
        Ok(AddFix { turn: last.turn.clone(), fix, mark: last.mark })
    }

    fn last_answer(&self, what: &str) -> Result<&LastAnswer, String> {
        self.last
            .as_ref()
            .ok_or_else(|| format!("there is no answer to {what} yet: say something first"))
    }

    /// Remembers a stored mark of the last answer.
    pub fn marked(&mut self, marked: &Marked) {
        if let Some(last) = &mut self.last {
            last.mark = Some(marked.id);
        }
        self.step(marked);
    }

    /// Remembers a change of a mark, of whichever answer.
    pub fn step(&mut self, marked: &Marked) {
        if self.steps.len() == UNDO_DEPTH {
            self.steps.remove(0);
        }
        self.steps.push(Step { id: marked.id, before: marked.before.clone() });
    }

    /// Goes on with a better answer, if the mark is that of the last one.
    pub fn corrected(&mut self, id: i64, text: &str) {
        if self.last.as_ref().is_some_and(|last| last.mark == Some(id)) {
            self.say_instead(text.to_owned());
        }
    }

    /// Returns what stands as the last answer: what was accepted instead, if something was.
    pub fn shown(&self) -> Option<&str> {
        let last = self.messages.last().filter(|message| message.role == Role::Assistant);
        last.map(|message| message.content.as_str())
    }

    /// Puts another text in the place of the last answer; what was marked stays as it was given.
    fn say_instead(&mut self, text: String) {
        if let Some(message) = self.messages.last_mut().filter(|m| m.role == Role::Assistant) {
            message.content = text;
        }
    }

    /// Makes the message that takes the last step back.
    ///
    /// # Errors
    /// No mark was made in this session.
    pub fn undo(&self) -> Result<UndoMark, String> {
        match self.steps.last() {
            Some(step) => Ok(UndoMark { id: step.id, to: step.before.clone() }),
            None => Err("there is no mark of this session to take back: `shammah feedback list` \
                         shows the others"
                .to_owned()),
        }
    }

    /// Forgets a step that was taken back.
    pub fn undone(&mut self, id: i64, to: Option<&MarkState>) {
        let Some(to) = to else { return self.forgotten(id) };
        if let Some(at) = self.steps.iter().rposition(|step| step.id == id) {
            self.steps.remove(at);
        }
        if let Some(last) = self.last.as_ref().filter(|last| last.mark == Some(id)) {
            let said = to.fix.clone().unwrap_or_else(|| last.turn.response.clone());
            self.say_instead(said);
        }
    }

    /// Forgets a mark that is gone.
    pub fn forgotten(&mut self, id: i64) {
        self.steps.retain(|step| step.id != id);
        if let Some(last) = self.last.as_mut().filter(|last| last.mark == Some(id)) {
            last.mark = None;
            let response = last.turn.response.clone();
            self.say_instead(response);
        }
    }
}

/// Returns the adapter with the most weight.
fn strongest(adapters: &[(AdapterId, f64)]) -> Option<AdapterId> {
    adapters.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(id, _)| id.clone())
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;
