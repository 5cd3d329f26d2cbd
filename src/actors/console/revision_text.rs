//! What the console says of revisions: pure functions, as in [`render`](super::render).

use super::render::{quoted, stored};
use crate::messages::ActorError;
use crate::messages::feedback::Marked;
use crate::messages::inference::{Candidate, Revised};
use crate::text::printable;

/// Says that the model answers again.
pub fn revising(candidates: usize) -> String {
    match candidates {
        1 => "Answering again with the note in mind (going on stops it):".to_owned(),
        n => format!("Answering again with the note in mind, {n} times (going on stops it):"),
    }
}

/// Says which revision is the best; its text too unless it is the one that was streamed.
pub fn revision(best: &Candidate, answers: usize) -> String {
    let helps = format!("the note makes it {:.2} nats per token likelier", best.score);
    match (best.index, answers) {
        (0, 1) => format!("[{helps}]"),
        (0, n) => format!("[the best of {n}: {helps}]"),
        (_, n) => format!("Better, of {n}:\n{}\n[{helps}]", printable(&best.text)),
    }
}

/// Asks what is to become of a revision; one of a model that is too weak is not taken by the way.
pub fn offer(interactive: bool, too_weak: bool) -> String {
    if too_weak {
        return "This model is too weak to revise well: /fix TEXT says what the answer should have been.\n\
                /accept takes this all the same, /skip leaves the mark waiting."
            .to_owned();
    }
    let yes = if interactive { "Enter or /accept takes" } else { "/accept takes" };
    format!(
        "{yes} this as the answer to learn, /fix TEXT gives another, /skip leaves the mark waiting."
    )
}

/// Says that the model found no revision worth offering, and why.
pub fn no_revision(mark: i64, revised: &Revised, threshold: f64) -> String {
    let why = match revised.candidates.first() {
        None => "it gave only the same answer again, or none that was complete".to_owned(),
        Some(best) if best.score <= threshold => format!(
            "the note hardly changes what it says ({:.2} nats per token, {threshold} are asked for)",
            best.score
        ),
        Some(_) => "the note speaks for the old answer as much as for a new one".to_owned(),
    };
    format!(
        "No revision: {why}.\nMark {mark} waits for a correction: /fix TEXT says what the answer should have been."
    )
}

/// Says that a revision was stopped.
pub fn revision_stopped(mark: i64) -> String {
    format!("[stopped; mark {mark} waits for a correction: /pending]")
}

/// Says why there is no revision; the mark is stored all the same.
pub fn revision_failed(mark: i64, error: &ActorError) -> String {
    format!(
        "No revision: {}.\nMark {mark} waits for a correction: /fix TEXT gives it.",
        quoted(&error.to_string())
    )
}

/// Says that a revision was left.
pub fn skipped(mark: i64) -> String {
    format!("Mark {mark} waits for a correction: /accept {mark} still takes the revision.")
}

/// Acknowledges a revision that was taken.
pub fn accepted(marked: &Marked) -> String {
    let text = format!(
        "Accepted: the {} mark learns this answer (weight {}, #{})",
        marked.mark, marked.weight, marked.id
    );
    text + &stored(marked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_says_what_the_note_does_and_why_there_is_none() {
        let candidate = |index, score| Candidate { text: "one\u{1b}[2J\ntwo".into(), score, index };
        assert_eq!(
            revision(&candidate(0, 0.5), 4),
            "[the best of 4: the note makes it 0.50 nats per token likelier]"
        );
        let other = revision(&candidate(2, 1.234), 4);
        assert!(other.starts_with("Better, of 4:\none") && !other.contains('\u{1b}'), "{other}");
        assert!(
            other.ends_with("two\n[the note makes it 1.23 nats per token likelier]"),
            "{other}"
        );
        let made = |candidates, criticised| Revised {
            candidates,
            criticised,
            answers: 4,
            cancelled: false,
        };
        for (revised, words) in [
            (made(vec![], None), "only the same answer again"),
            (made(vec![candidate(0, 0.05)], Some(0.0)), "0.05 nats per token, 0.1 are asked for"),
            (made(vec![candidate(0, 0.5)], Some(0.7)), "for the old answer as much"),
        ] {
            let text = no_revision(3, &revised, 0.1);
            assert!(text.contains(words) && text.contains("Mark 3 waits"), "{text}");
            assert!(text.ends_with("/fix TEXT says what the answer should have been."), "{text}");
        }
    }
}
