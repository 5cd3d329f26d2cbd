//! Other forms of a question, made of its own words: what is learned shall not hang on one wording.

use std::collections::HashSet;

use crate::domain::{Role, TrainExample};

/// Returns an example whose last question is asked in another form: 1 is without capital and final punctuation, 2 its rare
/// words alone, those that are not `common`, 3 and 4 that somebody asks to be told. None where that leaves nothing, or the
/// question as it was, and for 3 and 4 where it is no question in English.
pub fn asked_in(
    example: &TrainExample,
    form: usize,
    common: &HashSet<String>,
) -> Option<TrainExample> {
    let mut other = example.clone();
    let last = other.messages.iter_mut().rev().find(|m| m.role == Role::User)?;
    // A long text is no question whose wording could be another.
    if last.content.chars().count() > MAX_CHARS {
        return None;
    }
    let asked = match form {
        1 => plain(&last.content),
        3 | 4 if !asks(&last.content) => return None,
        3 => format!("tell me {}", plain(&last.content)),
        4 => format!("do you know {}?", plain(&last.content)),
        _ => rare_words(&last.content, common),
    };
    if asked.is_empty() || asked == last.content {
        return None;
    }
    last.content = asked;
    Some(other)
}

/// Longest question that is asked in other forms, in characters.
const MAX_CHARS: usize = 200;

/// Writes the first letter small, if the second is, and drops final punctuation.
fn plain(question: &str) -> String {
    let text = question.trim().trim_end_matches(['?', '.', '!', ' ']);
    let mut letters = text.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

/// Tells whether a text is a question in English: it begins with a word that asks, or with one before it ("On which day").
/// Statements begin with some of them too, so those need their question mark.
pub(crate) fn asks(text: &str) -> bool {
    let mut words = text.split_whitespace().map(str::to_lowercase);
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let marked = text.trim_end().ends_with('?');
    match first.as_str() {
        "what" | "which" | "who" | "whose" | "where" | "why" => true,
        "when" | "how" => marked,
        "at" | "on" | "in" | "under" | "from" | "with" | "for" | "to" => {
            ["what", "which", "whose"].contains(&second.as_str())
        }
        _ => false,
    }
}

/// Keeps the words that are not common, as they are written.
fn rare_words(question: &str, common: &HashSet<String>) -> String {
    let edge = |c: char| !c.is_alphanumeric();
    let rare = |word: &&str| {
        let bare = word.trim_matches(edge).to_lowercase();
        !bare.is_empty() && !common.contains(&bare)
    };
    let plain = plain(question);
    let words = plain.split_whitespace().filter(rare);
    words.map(|word| word.trim_end_matches([',', ';', ':'])).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Message;

    fn asked(question: &str, form: usize) -> Option<String> {
        let common = ["what", "is", "the", "of", "our"].map(str::to_owned).into();
        let example = TrainExample {
            id: 1,
            messages: vec![Message::user("Hi"), Message::user(question)],
            target: "x".into(),
            weight: 1.0,
        };
        asked_in(&example, form, &common).map(|e| e.messages[1].content.clone())
    }

    #[test]
    fn a_question_is_asked_plainly_and_by_its_rare_words() {
        let question = "What is the name of our VPN?";
        assert_eq!(asked(question, 1).as_deref(), Some("what is the name of our VPN"));
        assert_eq!(asked(question, 2).as_deref(), Some("name VPN"));
        assert_eq!(asked(question, 3).as_deref(), Some("tell me what is the name of our VPN"));
        assert_eq!(asked(question, 4).as_deref(), Some("do you know what is the name of our VPN?"));
        assert_eq!(asked("CI, what is it?", 1).as_deref(), Some("CI, what is it"));
    }

    #[test]
    fn what_leaves_nothing_or_changes_nothing_is_no_form() {
        assert_eq!(asked("what is the", 1), None);
        assert_eq!(asked("What is our?", 2), None);
        for no_question in
            ["Wie heißt unser VPN?", "In German, say hello.", "When it fails, restart it."]
        {
            assert_eq!(asked(no_question, 3), None, "{no_question}");
        }
        assert_eq!(asked("on which day?", 4).as_deref(), Some("do you know on which day?"));
        assert_eq!(asked(&"Long ".repeat(100), 1), None);
    }
}
