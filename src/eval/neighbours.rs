//! Questions like the taught ones about something else, and whether they get the taught answer too.
//!
//! What is taught of the build server shall not become the answer to every question of that form: "neighbourhood prompts"
//! (Meng et al. 2022, arXiv 2202.05262). They are made from the words of the taught questions: what a question is about is
//! replaced by something that nobody taught. Training may hold some of them still; the gate measures others.

use std::collections::HashSet;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::domain::{Message, Role, TrainExample};
use crate::lora::dataset::{Sequence, encode};
use crate::lora::{JobError, trainer};
use crate::models::{Adapt, LoadedModel, ModelError, NoAdapter};

/// What held questions are about, and what measured ones are: different things, for what is held measures nothing.
const HELD: [&str; 20] = [
    "printer",
    "canteen",
    "test database",
    "landlord",
    "newsletter",
    "mail server",
    "coffee machine",
    "dashboard",
    "calendar",
    "garage",
    "chat room",
    "phone number",
    "lawyer",
    "meeting room",
    "design tool",
    "second office",
    "payroll",
    "mascot",
    "favourite song",
    "parking space",
];
const MEASURED: [&str; 12] = [
    "cat",
    "proxy",
    "web shop",
    "accountant",
    "ticket system",
    "warehouse",
    "neighbour",
    "router",
    "lunch break",
    "bank",
    "mailing list",
    "summer party",
];

/// Words that say what is asked and not what about, beside those that are common in the general prompts.
const FORM_WORDS: [&str; 62] = [
    "a", "about", "again", "an", "and", "any", "are", "at", "be", "by", "call", "called", "can",
    "could", "day", "did", "do", "does", "every", "for", "give", "has", "have", "how", "i", "in",
    "is", "it", "keep", "kept", "know", "me", "my", "name", "named", "of", "on", "or", "our",
    "place", "please", "remind", "say", "should", "tell", "that", "the", "their", "there", "this",
    "time", "to", "use", "used", "we", "what", "when", "where", "which", "who", "why", "your",
];

/// Longest question that others are made of, in characters: a long text is no question of a form.
const MAX_CHARS: usize = 200;
/// More separate things than this in a question leave no form.
const MAX_THINGS: usize = 3;
/// Tokens of the base's own answers at most: their beginnings tell them from the taught ones.
const ANSWER_TOKENS: usize = 16;
/// Questions that the gate measures at most.
const MEASURED_MOST: usize = 24;

/// A question like a taught one about something else, with the answer that must not be given to it.
struct Neighbour {
    question: Vec<Message>,
    taught: String,
    id: i64,
}

/// One measured question: losses per answer token with the new adapter, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NeighbourLoss {
    /// Row id of the mark whose question it is like.
    pub id: i64,
    /// Of what the base answers.
    pub own: f64,
    /// Of the answer that was taught for the other question.
    pub taught: f64,
}

impl NeighbourLoss {
    /// Tells whether the taught answer has become the likelier one.
    pub fn is_taken_over(&self) -> bool {
        self.taught < self.own
    }
}

/// Measured questions as sequences: with the base's answer, and with the taught one.
pub(crate) struct Measured {
    pub own: Vec<Sequence>,
    pub taught: Vec<Sequence>,
}

/// Returns up to `count` questions like those of `taught` with the base's answers, for training to hold still.
///
/// # Errors
/// A template that refuses a question, a failed tensor operation.
pub(crate) fn held(
    taught: &[TrainExample],
    common: &HashSet<String>,
    count: usize,
    model: &LoadedModel,
    limit: usize,
) -> Result<Vec<Sequence>, JobError> {
    Ok(encoded(like(taught, common, &HELD, count), model, limit)?.own)
}

/// Returns the questions like those of `taught` that the gate measures.
///
/// # Errors
/// A template that refuses a question, a failed tensor operation.
pub(crate) fn measured(
    taught: &[TrainExample],
    common: &HashSet<String>,
    model: &LoadedModel,
    limit: usize,
) -> Result<Measured, JobError> {
    Ok(encoded(like(taught, common, &MEASURED, MEASURED_MOST), model, limit)?)
}

/// Measures which answer has become likelier.
///
/// # Errors
/// A failed tensor operation.
pub(crate) fn losses(
    model: &LoadedModel,
    measured: &Measured,
    adapter: &dyn Adapt,
) -> Result<Vec<NeighbourLoss>, JobError> {
    let own = trainer::evaluate(&model.decoder, &measured.own, adapter)?;
    let taught = trainer::evaluate(&model.decoder, &measured.taught, adapter)?;
    let all = measured.own.iter().zip(own).zip(taught);
    Ok(all.map(|((s, own), taught)| NeighbourLoss { id: s.id, own, taught }).collect())
}

/// Makes up to `count` questions, of each taught one in turn.
fn like(
    taught: &[TrainExample],
    common: &HashSet<String>,
    things: &[&str],
    count: usize,
) -> Vec<Neighbour> {
    let words: HashSet<String> =
        taught.iter().filter_map(question).flat_map(|q| words_of(&q.content)).collect();
    let new = |thing: &&&str| words_of(thing).all(|word| !words.contains(&word));
    let things: Vec<&str> = things.iter().filter(new).copied().collect();
    let mut seen = HashSet::new();
    let forms: Vec<(&TrainExample, Vec<Part>)> = taught
        .iter()
        .filter_map(|example| Some((example, parts(&question(example)?.content, common)?)))
        .filter(|(_, parts)| seen.insert(parts.clone()))
        .collect();
    let mut neighbours = Vec::new();
    for round in 0..things.len() {
        for (nth, (example, parts)) in forms.iter().enumerate() {
            if neighbours.len() == count {
                return neighbours;
            }
            let from = nth + round * forms.len();
            let system = example.messages.first().filter(|m| m.role == Role::System);
            let asked = Message::user(filled(parts, &things, from));
            neighbours.push(Neighbour {
                question: system.cloned().into_iter().chain([asked]).collect(),
                taught: example.target.clone(),
                id: example.id,
            });
        }
    }
    neighbours
}

fn question(example: &TrainExample) -> Option<&Message> {
    let last = example.messages.iter().rev().find(|m| m.role == Role::User)?;
    (last.content.chars().count() <= MAX_CHARS).then_some(last)
}

fn words_of(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase)
}

/// A piece of a question.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Part {
    /// A word of its form.
    Word(String),
    /// What it is about, one word or several, with the punctuation behind.
    Thing(String),
}

/// Takes a question apart; none where it is about nothing, or about too much.
fn parts(question: &str, common: &HashSet<String>) -> Option<Vec<Part>> {
    let edge = |c: char| !c.is_alphanumeric();
    let mut parts: Vec<Part> = Vec::new();
    for word in question.split_whitespace() {
        let bare = word.trim_matches(edge).to_lowercase();
        if bare.is_empty() || common.contains(&bare) || FORM_WORDS.contains(&bare.as_str()) {
            parts.push(Part::Word(word.to_owned()));
            continue;
        }
        let behind = word.trim_start_matches(edge).trim_start_matches(|c| !edge(c)).to_owned();
        match parts.last_mut() {
            Some(Part::Thing(punctuation)) => *punctuation = behind,
            _ => parts.push(Part::Thing(behind)),
        }
    }
    let things = parts.iter().filter(|part| matches!(part, Part::Thing(_))).count();
    (1..=MAX_THINGS).contains(&things).then_some(parts)
}

fn filled(parts: &[Part], things: &[&str], from: usize) -> String {
    let mut next = from;
    let mut word = |part: &Part| match part {
        Part::Word(word) => word.clone(),
        Part::Thing(behind) => {
            next += 1;
            format!("{}{behind}", things[(next - 1) % things.len()])
        }
    };
    parts.iter().map(&mut word).collect::<Vec<_>>().join(" ")
}

/// Encodes questions with the base's answers and with the taught ones; what does not fit is left out.
fn encoded(
    neighbours: Vec<Neighbour>,
    model: &LoadedModel,
    limit: usize,
) -> Result<Measured, ModelError> {
    let mut measured = Measured { own: Vec::new(), taught: Vec::new() };
    for neighbour in neighbours {
        let answer = base_answer(model, &neighbour.question, limit)?;
        let example = |target: String| TrainExample {
            id: neighbour.id,
            messages: neighbour.question.clone(),
            target,
            weight: 1.0,
        };
        if answer.trim() == neighbour.taught.trim() {
            continue;
        }
        let both = [example(answer), example(neighbour.taught.clone())];
        if let [own, taught] = &encode(&both, &model.tokenizer, limit)?.sequences[..] {
            measured.own.push(own.clone());
            measured.taught.push(taught.clone());
        }
    }
    Ok(measured)
}

/// Returns how the base begins its answer, the likeliest token each time.
fn base_answer(
    model: &LoadedModel,
    question: &[Message],
    limit: usize,
) -> Result<String, ModelError> {
    let (decoder, tokenizer) = (&model.decoder, &model.tokenizer);
    let mut next = tokenizer.render_chat(question, true)?;
    if next.is_empty() || next.len() + ANSWER_TOKENS > limit {
        return Ok(String::new());
    }
    let mut cache = decoder.new_cache(next.len() + ANSWER_TOKENS)?;
    let mut answer = Vec::new();
    while answer.len() < ANSWER_TOKENS {
        let ids = Tensor::new(&next[..], decoder.device())?.unsqueeze(0)?;
        let hidden = decoder.hidden(&ids, Some(&mut cache), &NoAdapter)?;
        let last = hidden.narrow(1, next.len() - 1, 1)?;
        let token = decoder.logits(&last)?.flatten_all()?.argmax(0)?.to_scalar::<u32>()?;
        if tokenizer.stop_ids().contains(&token) {
            break;
        }
        answer.push(token);
        next = vec![token];
    }
    tokenizer.decode(&answer)
}

#[cfg(test)]
#[path = "neighbours_tests.rs"]
mod tests;
