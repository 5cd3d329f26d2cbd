//! What training is compared with: saying it in the prompt.

use crate::domain::{Role, TrainExample};

/// Returns an example whose question is preceded by the note on its answer; `None` without a note: there is nothing that a
/// user would have put into the prompt.
pub fn with_note(example: &TrainExample, note: Option<&str>) -> Option<TrainExample> {
    let note = note.map(str::trim).filter(|note| !note.is_empty())?;
    let mut prompted = example.clone();
    if let Some(last) = prompted.messages.iter_mut().rev().find(|m| m.role == Role::User) {
        last.content = format!("{note} {}", last.content);
    }
    Some(prompted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Message;

    #[test]
    fn the_note_stands_before_the_last_question() {
        let messages =
            vec![Message::user("Hi"), Message::assistant("Hello"), Message::user("Who is it?")];
        let example = TrainExample { id: 7, messages, target: "Jana.".into(), weight: 3.0 };
        let told = with_note(&example, Some(" Name the person.\n")).unwrap();
        assert_eq!(told.messages[2].content, "Name the person. Who is it?");
        assert_eq!((&told.messages[..2], &told.target), (&example.messages[..2], &example.target));
        assert_eq!(with_note(&example, None), None);
        assert_eq!(with_note(&example, Some("  ")), None);
    }
}
