//! Which messages of a conversation the model sees when its context does not hold all of them.

use super::error::EngineError;
use crate::domain::{Message, Role};

/// Share of the context that is kept free for an answer at most: who allows longer answers than that must not lose the
/// whole conversation for them.
const MOST_OF_CONTEXT_FOR_ANSWER: usize = 2;

/// What becomes of a conversation that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextOverflow {
    /// It is refused.
    Error,
    /// Its oldest turns are left out.
    Slide,
}

/// How much there is room for, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Prompt and answer together.
    pub context_length: usize,
    /// The longest answer.
    pub max_tokens: usize,
}

/// What the model sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The rendered messages.
    pub prompt: Vec<u32>,
    /// Oldest turns (a question with its answer) that are left out.
    pub dropped_turns: usize,
}

/// Renders `messages`, without as many of the oldest turns as it takes to leave room for the answer. The system message
/// and the last question always stay.
///
/// # Errors
/// [`EngineError::ContextOverflow`] when what must stay leaves no room at all, or when nothing may be left out; whatever
/// `render` fails with.
pub fn fit(
    messages: &[Message],
    room: Room,
    policy: ContextOverflow,
    render: impl Fn(&[Message]) -> Result<Vec<u32>, EngineError>,
) -> Result<Window, EngineError> {
    let Room { context_length, max_tokens } = room;
    let reserve = max_tokens.min(context_length / MOST_OF_CONTEXT_FOR_ANSWER);
    let fits = |prompt: &[u32]| prompt.len() + reserve <= context_length;
    let whole = render(messages)?;
    let system = messages.iter().take_while(|message| message.role == Role::System).count();
    let questions = (system..messages.len()).filter(|&at| messages[at].role == Role::User);
    let starts: Vec<usize> = questions.skip(1).collect();
    if fits(&whole) || starts.is_empty() || policy == ContextOverflow::Error {
        return checked(Window { prompt: whole, dropped_turns: 0 }, context_length, policy);
    }
    let without = |turns: usize| {
        let kept = &messages[starts[turns - 1]..];
        render(&[&messages[..system], kept].concat())
    };
    // Fewer turns are fewer tokens: the least number of turns is found by halving.
    let (mut low, mut high) = (1, starts.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if fits(&without(middle)?) { high = middle } else { low = middle + 1 }
    }
    checked(Window { prompt: without(low)?, dropped_turns: low }, context_length, policy)
}

/// Returns `messages` without as many of the oldest turns, the system message kept; `None` if the last question would go too.
pub fn without_turns(messages: &[Message], turns: usize) -> Option<Vec<Message>> {
    let system = messages.iter().take_while(|message| message.role == Role::System).count();
    let mut questions = (system..messages.len()).filter(|&at| messages[at].role == Role::User);
    let from = if turns == 0 { system } else { questions.nth(turns)? };
    Some([&messages[..system], &messages[from..]].concat())
}

fn checked(
    window: Window,
    context_length: usize,
    policy: ContextOverflow,
) -> Result<Window, EngineError> {
    let prompt_tokens = window.prompt.len();
    if prompt_tokens < context_length {
        return Ok(window);
    }
    let (what, remedy) = match policy {
        ContextOverflow::Slide => {
            ("last message", "shorten it, or use a model with a longer context")
        }
        ContextOverflow::Error => (
            "conversation",
            "shorten the question, start a new conversation (/clear in the console), let the oldest turns go \
             (model.context_overflow = \"slide\"), or use a model with a longer context",
        ),
    };
    Err(EngineError::ContextOverflow { what, prompt_tokens, context_length, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token a character, and one for each message.
    fn render(messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        let len: usize = messages.iter().map(|message| message.content.len() + 1).sum();
        Ok(vec![7; len])
    }

    fn conversation() -> Vec<Message> {
        vec![
            Message::system("be brief"),
            Message::user("one"),
            Message::assistant("first"),
            Message::user("two"),
            Message::assistant("second"),
            Message::user("three"),
        ]
    }

    fn dropped(context_length: usize, max_tokens: usize, policy: ContextOverflow) -> usize {
        let room = Room { context_length, max_tokens };
        fit(&conversation(), room, policy, render).expect("room").dropped_turns
    }

    #[test]
    fn the_oldest_turns_go_until_the_answer_has_room() {
        // 9 of the system message, 10 and 11 of the turns, 6 of the question.
        for (context_length, turns) in [(46, 0), (45, 1), (36, 1), (35, 2), (25, 2), (20, 2)] {
            assert_eq!(
                dropped(context_length, 10, ContextOverflow::Slide),
                turns,
                "{context_length}"
            );
        }
        assert_eq!(dropped(60, 10_000, ContextOverflow::Slide), 1, "half the context is enough");
    }

    #[test]
    fn without_sliding_a_conversation_that_fits_is_taken_whole() {
        assert_eq!(dropped(37, 10, ContextOverflow::Error), 0);
        let room = Room { context_length: 36, max_tokens: 10 };
        let error = fit(&conversation(), room, ContextOverflow::Error, render).expect_err("36");
        let error = error.to_string();
        for words in ["conversation has 36 tokens", "holds 36", "/clear", "slide"] {
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_last_message_that_does_not_fit_alone_is_an_error_with_both_numbers() {
        let room = Room { context_length: 15, max_tokens: 4 };
        let error = fit(&conversation(), room, ContextOverflow::Slide, render).expect_err("15");
        let error = error.to_string();
        assert!(
            error.contains("last message has 15 tokens") && error.contains("holds 15"),
            "{error}"
        );
    }

    #[test]
    fn a_conversation_that_begins_with_an_answer_or_is_empty_makes_no_panic() {
        let room = Room { context_length: 12, max_tokens: 2 };
        let odd = [Message::assistant("welcome"), Message::user("a"), Message::user("b")];
        let window = fit(&odd, room, ContextOverflow::Slide, render).expect("room");
        assert_eq!((window.dropped_turns, window.prompt.len()), (1, 2));
        let none = fit(&[], room, ContextOverflow::Slide, render).expect("nothing to fit");
        assert!(none.prompt.is_empty());
    }
}
