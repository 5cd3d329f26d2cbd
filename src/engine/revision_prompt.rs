//! How the model is asked to answer again with a user's note in its context.
//!
//! - The criticised answer stays in the conversation, because notes point at it: "too long", "the second step is missing".
//! - The request is a turn of the user: every chat template has a place for one, many have none for a second system
//!   message, and being corrected by the user is what models were trained on.
//! - It asks for the answer alone, as if it were the first. What comes back is learned as the answer to the conversation
//!   *without* the note, where an apology or "as you said" would be nonsense.
//! - The request without the note is the same but for the note. What the note changes in a candidate's likelihood is then
//!   the note's alone: against the bare conversation every near-copy of the criticised answer would seem to be helped,
//!   because it stands there to be copied.

use crate::domain::Message;

/// Returns the conversation in which the model answers again: `messages` end with the user's question, `criticised` is the
/// answer to it. Without a `note` it is the request to compare with.
pub fn asked_again(messages: &[Message], criticised: &str, note: Option<&str>) -> Vec<Message> {
    let request = match note {
        Some(note) => format!(
            "That answer is not right yet. My note on it: {}\n\nAnswer my message before it again, so that the new \
             answer does what the note says. {ALONE}",
            note.trim()
        ),
        None => {
            format!("That answer is not right yet.\n\nAnswer my message before it again. {ALONE}")
        }
    };
    let answered = [Message::assistant(criticised), Message::user(request)];
    messages.iter().cloned().chain(answered).collect()
}

/// What both requests end with.
const ALONE: &str = "Write the new answer alone, as if it were your first one: no apology, and not a word about this \
                     request or the earlier answer.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Role;

    #[test]
    fn roles_alternate_and_the_note_is_all_that_differs() {
        let messages = [Message::system("be kind"), Message::user("name?")];
        let with = asked_again(&messages, "Kestrel", Some(" it is Falkenberg\n"));
        let without = asked_again(&messages, "Kestrel", None);
        let roles: Vec<Role> = with.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User]);
        assert_eq!(with[..3], without[..3]);
        assert!(with[3].content.contains("My note on it: it is Falkenberg\n\n"));
        assert!(!without[3].content.contains("note"), "{}", without[3].content);
        assert!(with[3].content.ends_with(ALONE) && without[3].content.ends_with(ALONE));
    }
}
