//! What is taught and asked, and the checkers.

use anyhow::{Context, Result};
use serde::Deserialize;
use shammah::domain::{Message, TrainExample};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    #[serde(rename = "fact")]
    pub facts: Vec<Fact>,
    #[serde(rename = "style")]
    pub styles: Vec<Style>,
    /// Questions about what nobody taught, in the forms of those about what was.
    pub strangers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    #[serde(rename = "id")]
    _id: String,
    pub answer: String,
    pub must: Vec<String>,
    pub weight: f64,
    pub marked: Vec<String>,
    pub asked: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Style {
    pub id: String,
    pub note: String,
    /// Questions, each with the command that its answer has to name.
    pub asked: Vec<(String, String)>,
    pub marked: Vec<Corrected>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corrected {
    pub question: String,
    pub answer: String,
}

/// A question of the score of the built-in model.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scored {
    #[serde(rename = "fact")]
    _fact: String,
    pub question: String,
    pub required: Vec<String>,
}

#[derive(Deserialize)]
struct ScoredFile {
    item: Vec<Scored>,
}

/// Reads what is taught and asked.
pub fn read() -> Result<Data> {
    toml::from_str(include_str!("data.toml")).context("examples/learning/data.toml")
}

/// Reads the 100 questions of the score.
pub fn scored() -> Result<Vec<Scored>> {
    let file: ScoredFile =
        toml::from_str(include_str!("../pretrain/heldout.toml")).context("heldout.toml")?;
    Ok(file.item)
}

/// The marks of facts, two phrasings each; ids count from `first`.
pub fn examples(facts: &[Fact], first: i64) -> Vec<TrainExample> {
    let pairs = facts.iter().flat_map(|f| f.marked.iter().map(move |q| (f, q)));
    pairs.zip(first..).map(|((f, q), id)| example(id, q, &f.answer, f.weight)).collect()
}

/// A corrected answer.
pub fn example(id: i64, question: &str, target: &str, weight: f64) -> TrainExample {
    TrainExample { id, messages: vec![Message::user(question)], target: target.to_owned(), weight }
}

/// Whether an answer has every word.
pub fn has_all(answer: &str, words: &[String]) -> bool {
    let answer = answer.to_lowercase();
    words.iter().all(|word| answer.contains(&word.to_lowercase()))
}

impl Style {
    /// Whether an answer keeps the rule.
    pub fn kept(&self, answer: &str) -> bool {
        match self.id.as_str() {
            "one_sentence" => sentences(answer).len() == 1,
            _ => answer.starts_with("Type /") || answer.starts_with("Type shammah "),
        }
    }

    /// Whether an answer says besides what the base would: its first sentence, or the right command.
    pub fn content(&self, answer: &str, base: &str, command: &str) -> bool {
        match self.id.as_str() {
            "one_sentence" => sentences(answer).first() == sentences(base).first(),
            _ => answer.starts_with(&format!("Type {command}")),
        }
    }
}

/// Splits where a full stop, question or exclamation mark is followed by a space or the end.
fn sentences(text: &str) -> Vec<&str> {
    let pieces = text.trim().split_inclusive(['.', '!', '?']);
    let mut found: Vec<&str> = Vec::new();
    let (mut from, mut at, text) = (0, 0, text.trim());
    for piece in pieces {
        at += piece.len();
        if text[at..].starts_with(' ') || at == text.len() {
            found.push(text[from..at].trim());
            from = at;
        }
    }
    found
}
