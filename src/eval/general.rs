//! Two small fixed sets of general prompts: one anchors training, the other measures it.
//!
//! They are disjoint: a set that is trained on measures nothing. The built-in model has sets of its
//! own, because it knows nothing of the world; `examples/pretrain` draws them from its corpus.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use crate::domain::{Message, TrainExample};
use crate::lora::JobError;
use crate::models::ModelSource;

/// The sets that fit a model.
#[derive(Debug, Clone, Copy)]
pub struct GeneralSet {
    anchors: &'static str,
    gate: &'static str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    prompt: String,
    response: String,
}

impl GeneralSet {
    /// Chooses the sets for a model.
    pub fn for_model(source: &ModelSource) -> Self {
        match source {
            ModelSource::Builtin => Self {
                anchors: include_str!("../../assets/general/builtin_anchors.jsonl"),
                gate: include_str!("../../assets/general/builtin_gate.jsonl"),
            },
            ModelSource::Dir(_) | ModelSource::Gguf(_) => Self {
                anchors: include_str!("../../assets/general/anchors.jsonl"),
                gate: include_str!("../../assets/general/gate.jsonl"),
            },
        }
    }

    /// Returns the prompts that training holds still, without those about what is `taught`.
    ///
    /// # Errors
    /// A malformed row, by line.
    pub fn anchors(&self, taught: &[TrainExample]) -> Result<Vec<TrainExample>, JobError> {
        Ok(unrelated(parse(self.anchors)?, taught))
    }

    /// Returns the prompts that the gate measures on, without those about what is `taught`.
    ///
    /// # Errors
    /// A malformed row, by line.
    pub fn gate(&self, taught: &[TrainExample]) -> Result<Vec<TrainExample>, JobError> {
        Ok(unrelated(parse(self.gate)?, taught))
    }
}

/// Of each set so many, those that the margin of the routing was chosen with: more of the built-in model's would tell only that
/// its own subjects are no domain's.
const ROUTING_PROMPTS: usize = 80;

/// What people ask and say about everything: without it, a question about the world is close to no general prompt.
const EVERYDAY: &str = include_str!("../../assets/general/everyday.txt");

/// Returns prompts that belong to no domain, for the routing of questions: those about the world, those about this program
/// and everyday ones.
pub fn routing_prompts() -> Vec<String> {
    let sets = [ModelSource::Dir(Default::default()), ModelSource::Builtin];
    let rows = sets.iter().filter_map(|source| GeneralSet::for_model(source).anchors(&[]).ok());
    rows.flat_map(|rows| rows.into_iter().take(ROUTING_PROMPTS))
        .filter_map(|row| row.messages.into_iter().next())
        .map(|m| m.content)
        .chain(EVERYDAY.lines().map(str::to_owned))
        .collect()
}

impl GeneralSet {
    /// Returns the words that are common in questions, in lower case: they say what is asked, not what about.
    ///
    /// # Errors
    /// A malformed row, by line.
    pub fn common_words(&self) -> Result<HashSet<String>, JobError> {
        let mut rows = parse(self.anchors)?;
        rows.extend(parse(self.gate)?);
        let mut counts: HashMap<String, usize> = HashMap::new();
        for word in rows.iter().flat_map(question_words) {
            *counts.entry(word).or_default() += 1;
        }
        let least = rows.len().div_ceil(COMMON_ONE_IN);
        Ok(counts.into_iter().filter(|(_, n)| *n >= least).map(|(word, _)| word).collect())
    }
}

/// A word is common when one question in so many has it.
const COMMON_ONE_IN: usize = 15;

/// Fewer prompts than this measure nothing: marks about nearly everything get the whole set, and the
/// stricter judgement that comes with it.
const MIN_UNRELATED: usize = 8;

/// Drops prompts that ask about something that is being taught: to hold those still would be to
/// forbid the lesson. What a prompt is about are its rarest words among all prompts of the set.
fn unrelated(prompts: Vec<TrainExample>, taught: &[TrainExample]) -> Vec<TrainExample> {
    let all_words: Vec<HashSet<String>> = prompts.iter().map(question_words).collect();
    let taught: HashSet<String> = taught.iter().flat_map(question_words).collect();
    let frequency = |word: &String| all_words.iter().filter(|w| w.contains(word)).count();
    let is_about_taught = |words: &HashSet<String>| {
        let rarest = words.iter().map(frequency).min().unwrap_or(0);
        words.iter().any(|word| frequency(word) == rarest && taught.contains(word))
    };
    let keep: Vec<bool> = all_words.iter().map(|words| !is_about_taught(words)).collect();
    if keep.iter().filter(|keep| **keep).count() < MIN_UNRELATED {
        return prompts;
    }
    prompts.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(prompt, _)| prompt).collect()
}

/// Returns the words of the last question, in lower case.
fn question_words(example: &TrainExample) -> HashSet<String> {
    words(example.messages.last().map_or("", |m| m.content.as_str())).collect()
}

/// Returns the words of a text, in lower case.
pub(super) fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase)
}

fn parse(text: &str) -> Result<Vec<TrainExample>, JobError> {
    let row = |(index, line): (usize, &str)| {
        let row: Row = serde_json::from_str(line)
            .map_err(|e| JobError::Input(format!("general prompt {}: {e}", index + 1)))?;
        Ok(TrainExample {
            id: index as i64 + 1,
            messages: vec![Message::user(row.prompt)],
            target: row.response,
            weight: 1.0,
        })
    };
    text.lines().filter(|line| !line.is_empty()).enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(question: &str) -> TrainExample {
        TrainExample {
            id: 1,
            messages: vec![Message::user(question)],
            target: "x".into(),
            weight: 1.0,
        }
    }

    #[test]
    fn both_sets_of_both_kinds_are_disjoint_and_not_empty() {
        for source in [ModelSource::Builtin, ModelSource::Dir("x".into())] {
            let set = GeneralSet::for_model(&source);
            let (anchors, gate) = (set.anchors(&[]).unwrap(), set.gate(&[]).unwrap());
            assert!(anchors.len() >= 20 && gate.len() >= 20);
            for row in &gate {
                assert!(anchors.iter().all(|a| a.messages != row.messages), "{:?}", row.messages);
            }
        }
    }

    #[test]
    fn common_words_are_those_that_ask_and_not_what_is_asked_about() {
        for source in [ModelSource::Builtin, ModelSource::Dir("x".into())] {
            let common = GeneralSet::for_model(&source).common_words().unwrap();
            assert!(common.contains("what") && common.contains("the"), "{common:?}");
            assert!(!common.contains("adapter_config") && common.len() < 40, "{common:?}");
        }
    }

    #[test]
    fn what_is_taught_is_not_held_still_but_its_neighbours_are() {
        let things = ["vpn", "wiki", "dog", "router", "office", "printer", "mirror", "bot", "cat"];
        let prompts: Vec<_> =
            things.iter().map(|thing| asked(&format!("what is the name of our {thing}"))).collect();
        let kept = unrelated(prompts.clone(), &[asked("What is the name of our VPN?")]);
        assert_eq!(kept, prompts[1..]);
    }

    #[test]
    fn marks_about_everything_leave_the_whole_set_to_measure_with() {
        let prompts: Vec<_> = ["our vpn", "our wiki", "our dog"].into_iter().map(asked).collect();
        assert_eq!(unrelated(prompts.clone(), &prompts), prompts);
    }
}
