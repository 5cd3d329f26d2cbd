//! Whether a job teaches a rule for every answer, or what to answer to some questions.
//!
//! Both are marked answers. A fact must not spread to other questions, and the anchor keeps it from that; a rule is meant to
//! spread, and the same anchor keeps it from that too. What tells them apart is what the user said of the answers: an
//! instruction, the same again and again.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::adapter::read_capped;
use super::job::TRAINING_FILE;
use super::verified::MAX_RECORD_BYTES;
use crate::domain::TrainExample;

/// Different answers that a rule was said of, at least.
const LEAST: usize = 3;
/// An instruction has so many words at least: "use this" says nothing of other answers.
const LEAST_WORDS: usize = 3;

/// How an instruction for every answer begins, in English.
const MANNERS: [&str; 18] = [
    "always", "answer", "avoid", "be", "begin", "do", "don't", "format", "keep", "never", "please",
    "prefer", "reply", "respond", "speak", "start", "use", "write",
];
/// How an instruction begins that may be about one answer ("give the name"), unless one of [`EVERYWHERE`] is in it.
const ACTIONS: [&str; 17] = [
    "add", "ask", "check", "cite", "explain", "give", "handle", "include", "list", "make",
    "mention", "name", "put", "quote", "say", "show", "warn",
];
/// What makes an instruction one for every answer.
const EVERYWHERE: [&str; 6] = ["all", "always", "each", "every", "first", "never"];
/// What stands second in a judgement: "answer is wrong".
const COPULAS: [&str; 6] = ["are", "is", "isn't", "not", "was", "were"];
/// What judges an answer wherever it stands, unless the note begins with "always" or "never".
const JUDGEMENTS: [&str; 5] = ["false", "incorrect", "missing", "wrong", "wrongly"];

/// Rules for every answer, in a job and before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// The job teaches one.
    pub taught: bool,
    /// The adapter that it goes on from holds one.
    pub inherited: bool,
}

impl Rules {
    /// Tells whether the job's adapter holds a rule: its own or an earlier one.
    pub fn any(self) -> bool {
        self.taught || self.inherited
    }
}

/// Returns the row ids of the examples whose note is the same instruction, if that is at least half of them.
pub fn rule(taught: &[&TrainExample], notes: &BTreeMap<i64, String>) -> Option<BTreeSet<i64>> {
    let mut said: BTreeMap<String, (BTreeSet<i64>, HashSet<&str>)> = BTreeMap::new();
    for example in taught {
        let Some(key) = notes.get(&example.id).and_then(|note| instruction(note)) else { continue };
        let (examples, answers) = said.entry(key).or_default();
        examples.insert(example.id);
        answers.insert(&example.target);
    }
    let enough = |(examples, answers): &(BTreeSet<i64>, HashSet<&str>)| {
        answers.len() >= LEAST && 2 * examples.len() >= taught.len()
    };
    let found = said.into_values().filter(enough).max_by_key(|(examples, _)| examples.len())?;
    Some(found.0)
}

/// Returns what a rule is looked for in: what is new; with what is learned again, where there is no adapter before it or
/// nothing is new.
pub fn rule_examples<'a>(
    new: &'a [TrainExample],
    replay: &'a [TrainExample],
    goes_on: bool,
) -> Vec<&'a TrainExample> {
    let again = if goes_on && !new.is_empty() { &[] } else { replay };
    new.iter().chain(again).collect()
}

/// Tells whether the adapter in a directory holds a rule; what has no record of ours holds none.
pub fn holds_rule(adapter: &Path) -> bool {
    let record = read_capped(&adapter.join(TRAINING_FILE), MAX_RECORD_BYTES).ok();
    let record = record.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
    record.is_some_and(|record| record["measurements"]["rule"] == true)
}

/// Returns the words of an instruction in lower case; none where it is none.
fn instruction(note: &str) -> Option<String> {
    let edge = |c: char| !c.is_alphanumeric();
    let words: Vec<String> = note
        .split_whitespace()
        .map(|word| word.trim_matches(edge).to_lowercase().replace('\u{2019}', "'"))
        .filter(|word| !word.is_empty())
        .collect();
    let at = |index: usize, of: &[&str]| {
        words.get(index).is_some_and(|word| of.contains(&word.as_str()))
    };
    let any = |of: &[&str]| words.iter().any(|word| of.contains(&word.as_str()));
    let instructs = at(0, &MANNERS) || (at(0, &ACTIONS) && any(&EVERYWHERE));
    let judges = at(1, &COPULAS) || (any(&JUDGEMENTS) && !at(0, &["always", "never"]));
    let not_to = at(0, &["do"]) && at(1, &["not"]);
    (instructs && (!judges || not_to) && words.len() >= LEAST_WORDS).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Message;

    fn found(marks: &[(&str, &str)]) -> Option<usize> {
        let example = |(id, (_, target)): (i64, &(&str, &str))| TrainExample {
            id,
            messages: vec![Message::user("How?")],
            target: (*target).to_owned(),
            weight: 3.0,
        };
        let taught: Vec<TrainExample> = (1..).zip(marks).map(example).collect();
        let notes = (1..).zip(marks).map(|(id, (note, _))| (id, (*note).to_owned()));
        let notes = notes.filter(|(_, note)| !note.is_empty()).collect();
        rule(&taught.iter().collect::<Vec<_>>(), &notes).map(|examples| examples.len())
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
        assert_eq!(found(&marks), Some(3));
        let more = [&marks[..], &[("", "g")]].concat();
        assert_eq!(found(&more), None, "three of seven");
    }

    #[test]
    fn what_judges_or_is_said_of_one_answer_is_no_rule() {
        let of = |note, answers: [&'static str; 4]| found(&answers.map(|answer| (note, answer)));
        assert_eq!(of("this is not true", ["a", "b", "c", "d"]), None);
        assert_eq!(of("use this", ["a", "b", "c", "d"]), None);
        assert_eq!(of("give the right name", ["a", "b", "c", "d"]), None);
        assert_eq!(of("give the name first", ["a", "b", "c", "d"]), Some(4));
        assert_eq!(
            of("answer with the name", ["a", "a", "b", "b"]),
            None,
            "two facts, asked twice"
        );
        assert_eq!(of("answer in one sentence", ["a", "a", "b", "c"]), Some(4));
        assert_eq!(found(&[]), None);
        for note in [
            "answer is wrong",
            "No, this is wrong",
            "format is wrong",
            "only partly right",
            "end is missing",
            "No source was given",
            "First sentence is wrong",
            "use of the name is wrong",
        ] {
            assert_eq!(of(note, ["a", "b", "c", "d"]), None, "{note}");
        }
        for note in [
            "Do not guess.",
            "Keep it short.",
            "Don\u{2019}t guess names",
            "never say what is wrong",
        ] {
            assert_eq!(of(note, ["a", "b", "c", "d"]), Some(4), "{note}");
        }
    }

    #[test]
    fn of_two_notes_the_one_that_is_a_rule_counts_whatever_their_order() {
        let one = ("answer with the name", "a");
        let marks =
            [one, one, one, ("Be very brief", "b"), ("Be very brief", "c"), ("Be very brief", "d")];
        assert_eq!(found(&marks), Some(3));
    }

    #[test]
    fn what_is_learned_again_counts_where_nothing_is_gone_on_from() {
        let example =
            |id| TrainExample { id, messages: Vec::new(), target: String::new(), weight: 1.0 };
        let (new, old) = ([example(1)], [example(2), example(3)]);
        let ids = |new, goes_on| {
            rule_examples(new, &old, goes_on).iter().map(|e| e.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&new[..], true), [1]);
        assert_eq!(ids(&new[..], false), [1, 2, 3]);
        assert_eq!(ids(&[], true), [2, 3]);
    }
}
