//! What training is compared with: saying it in the prompt.

use crate::domain::{Role, TrainExample};

/// Returns an example whose question is preceded by what was said about its answer, or, where nothing was said, by the
/// right answer itself: the most that a prompt can tell.
pub fn with_note(example: &TrainExample, note: Option<&str>) -> TrainExample {
    let told = note.map(str::trim).filter(|note| !note.is_empty());
    let told = told.unwrap_or_else(|| example.target.trim());
    let mut prompted = example.clone();
    if let Some(last) = prompted.messages.iter_mut().rev().find(|m| m.role == Role::User) {
        last.content = format!("{told} {}", last.content);
    }
    prompted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Message;

    #[test]
    fn the_note_or_else_the_answer_stands_before_the_last_question() {
        let messages =
            vec![Message::user("Hi"), Message::assistant("Hello"), Message::user("Who is it?")];
        let example = TrainExample { id: 7, messages, target: "Jana.".into(), weight: 3.0 };
        let asked = |note| with_note(&example, note).messages[2].content.clone();
        assert_eq!(asked(Some("Name the person.")), "Name the person. Who is it?");
        assert_eq!(asked(None), "Jana. Who is it?");
        assert_eq!(asked(Some("  ")), "Jana. Who is it?");
        let same = with_note(&example, None);
        assert_eq!((&same.messages[..2], &same.target), (&example.messages[..2], &example.target));
    }
}
