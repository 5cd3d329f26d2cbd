//! Whether a job teaches a rule for every answer, or what to answer to some questions.
//!
//! Both are marked answers. A fact must not spread to other questions, and the anchor keeps it from that; a rule is meant to
//! spread, and the same anchor keeps it from that too. What tells them apart is what the user said of the answers: an
//! instruction, the same again and again.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::domain::TrainExample;

/// Different answers that a rule was said of, at least.
const LEAST: usize = 3;

/// How an instruction for every answer begins, in English. What begins otherwise ("wrong", "this is not true") judges an answer.
const MANNERS: [&str; 22] = [
    "always", "answer", "avoid", "be", "begin", "do", "don't", "end", "format", "keep", "never",
    "no", "only", "please", "prefer", "reply", "respond", "speak", "start", "stop", "use", "write",
];
/// How an instruction begins that may be about one answer ("give the name"), unless one of [`EVERYWHERE`] is in it.
const ACTIONS: [&str; 20] = [
    "add", "ask", "check", "cite", "explain", "first", "give", "handle", "include", "list", "make",
    "mention", "name", "put", "quote", "return", "say", "show", "test", "warn",
];
/// What makes an instruction one for every answer.
const EVERYWHERE: [&str; 6] = ["all", "always", "each", "every", "first", "never"];
/// An instruction has so many words at least: "use this" says nothing of other answers.
const LEAST_WORDS: usize = 3;

/// Returns the instruction that at least half of the examples have as their note, and on how many of them it stands.
pub fn rule<'a>(
    taught: &[TrainExample],
    notes: &'a BTreeMap<i64, String>,
) -> Option<(&'a str, usize)> {
    let mut said: HashMap<String, (&str, usize, HashSet<&str>)> = HashMap::new();
    for example in taught {
        let Some(note) = notes.get(&example.id) else { continue };
        let Some(key) = instruction(note) else { continue };
        let (_, examples, answers) = said.entry(key).or_insert((note, 0, HashSet::new()));
        *examples += 1;
        answers.insert(&example.target);
    }
    let (note, examples, answers) = said.into_values().max_by_key(|(_, examples, _)| *examples)?;
    (answers.len() >= LEAST && 2 * examples >= taught.len()).then_some((note, examples))
}

/// Returns the words of an instruction in lower case; none where it is none.
fn instruction(note: &str) -> Option<String> {
    let edge = |c: char| !c.is_alphanumeric();
    let words: Vec<String> = note
        .split_whitespace()
        .map(|word| word.trim_matches(edge).to_lowercase())
        .filter(|word| !word.is_empty())
        .collect();
    let begins = |with: &[&str]| words.first().is_some_and(|first| with.contains(&first.as_str()));
    let everywhere = || words.iter().any(|word| EVERYWHERE.contains(&word.as_str()));
    let found = begins(&MANNERS) || (begins(&ACTIONS) && everywhere());
    (found && words.len() >= LEAST_WORDS).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Message;

    fn found(marks: &[(&str, &str)]) -> Option<(String, usize)> {
        let example = |(id, (_, target)): (i64, &(&str, &str))| TrainExample {
            id,
            messages: vec![Message::user("How?")],
            target: (*target).to_owned(),
            weight: 3.0,
        };
        let taught: Vec<TrainExample> = (1..).zip(marks).map(example).collect();
        let notes = (1..).zip(marks).map(|(id, (note, _))| (id, (*note).to_owned()));
        let notes = notes.filter(|(_, note)| !note.is_empty()).collect();
        rule(&taught, &notes).map(|(note, count)| (note.to_owned(), count))
    }

    #[test]
    fn an_instruction_on_half_of_the_marks_is_a_rule_however_it_is_written() {
        let marks = [
            ("Always name the command.", "a"),
            ("always name the  command", "b"),
            ("Always name the command!", "c"),
            ("", "d"),
            ("other", "e"),
            ("wrong", "f"),
        ];
        let (note, count) = found(&marks).unwrap();
        assert!(note.to_lowercase().starts_with("always name"), "{note}");
        assert_eq!(count, 3);
        let more = [&marks[..], &[("", "g")]].concat();
        assert_eq!(found(&more), None, "three of seven");
    }

    #[test]
    fn what_judges_or_is_said_of_one_answer_is_no_rule() {
        let of = |note, answers: [&'static str; 4]| found(&answers.map(|answer| (note, answer)));
        assert_eq!(of("this is not true", ["a", "b", "c", "d"]), None);
        assert_eq!(of("use this", ["a", "b", "c", "d"]), None);
        assert_eq!(of("give the right name", ["a", "b", "c", "d"]), None);
        assert_eq!(of("give the name first", ["a", "b", "c", "d"]).unwrap().1, 4);
        assert_eq!(
            of("answer with the name", ["a", "a", "b", "b"]),
            None,
            "two facts, asked twice"
        );
        assert_eq!(of("answer in one sentence", ["a", "a", "b", "c"]).unwrap().1, 4);
        assert_eq!(found(&[]), None);
    }
}
