//! Questions like the taught ones about something else, and whether they get the taught answer too.
//!
//! What is taught of the build server shall not become the answer to every question of that form: "neighbourhood prompts"
//! (Meng et al. 2022, arXiv 2202.05262). They are made from the words of the taught questions: what a question is about is
//! replaced by something that nobody taught. Training may hold some of them still; the gate measures others, at the token
//! where the base's answer and the taught one part: the likelier of the two there is the way that an answer goes.

use std::collections::HashSet;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::general::words;
use crate::domain::{Message, Role, TrainExample};
use crate::lora::dataset::Sequence;
use crate::lora::paraphrase::asks;
use crate::lora::{JobError, trainer};
use crate::models::{Adapt, LoadedModel, ModelError, NoAdapter};

/// What held questions are about, and what measured ones are: different things, for what is held measures nothing. No word of
/// theirs is in the general prompts of the other kind.
const HELD: [&str; 20] = [
    "printer",
    "canteen",
    "warranty",
    "landlord",
    "newsletter",
    "courier",
    "coffee machine",
    "lighthouse",
    "calendar",
    "garage",
    "chat room",
    "insurance",
    "lawyer",
    "meeting room",
    "design tool",
    "second office",
    "payroll",
    "mascot",
    "elevator",
    "parking space",
];
const MEASURED: [&str; 12] = [
    "cat",
    "proxy",
    "web shop",
    "accountant",
    "tax adviser",
    "warehouse",
    "neighbour",
    "bakery",
    "piano",
    "bank",
    "archive",
    "summer party",
];

/// Words that say what is asked and not what about, beside those that are common in the general prompts.
const FORM_WORDS: [&str; 64] = [
    "a", "about", "again", "an", "and", "any", "are", "at", "be", "by", "call", "called", "can",
    "could", "day", "did", "do", "does", "every", "for", "give", "has", "have", "how", "i", "in",
    "is", "it", "keep", "kept", "know", "me", "my", "name", "named", "of", "on", "or", "our",
    "place", "please", "remind", "say", "should", "tell", "that", "the", "their", "there", "this",
    "time", "to", "under", "use", "used", "we", "what", "when", "where", "which", "who", "whose",
    "why", "your",
];

/// Longest question that others are made of, in characters: a long text is no question of a form.
const MAX_CHARS: usize = 200;
/// More separate things than this in a question leave no form.
const MAX_THINGS: usize = 2;
/// Tokens of the base's answer that are held.
const HELD_TOKENS: usize = 16;
/// Tokens within which the base's answer and a taught one must part to be measured.
const MEASURED_TOKENS: usize = 8;
/// Questions that the gate measures at most.
const MEASURED_MOST: usize = 24;

/// One measured question with the new adapter: losses, in nats, of the token where the two answers part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NeighbourLoss {
    /// Row id of the mark whose question it is like.
    pub id: i64,
    /// Of what the base says there, its likeliest token.
    pub own: f64,
    /// Of what was taught for the other question.
    pub taught: f64,
}

impl NeighbourLoss {
    /// Tells whether the taught answer has become the likelier one.
    pub fn is_taken_over(&self) -> bool {
        self.taught < self.own
    }
}

/// Who is asked, and what is known.
pub(crate) struct Asking<'a> {
    pub model: &'a LoadedModel,
    /// The adapter that is gone on from: what it answers otherwise than the base was taught before.
    pub parent: Option<&'a dyn Adapt>,
    /// Every question that was taught or is held out, old ones too as far as the job has them: nothing of them is a new thing.
    pub known: &'a [TrainExample],
    /// Words of a form, beside [`FORM_WORDS`].
    pub common: &'a HashSet<String>,
    /// Tokens of a sequence at most.
    pub limit: usize,
    /// Asked before each answer of the base: whether to stop.
    pub cancelled: &'a dyn Fn() -> bool,
}

/// A measured question up to the token where its answers part: with the base's, and with a taught one.
#[derive(Debug)]
pub(crate) struct Parting {
    /// Which of the questions; of several taught answers the likeliest counts.
    question: usize,
    pub own: Sequence,
    pub taught: Sequence,
}

impl Asking<'_> {
    /// Returns up to `count` questions like those of `taught` with the base's answers, for training to hold still.
    ///
    /// # Errors
    /// A failed tensor operation, or cancelled.
    pub fn held(&self, taught: &[TrainExample], count: usize) -> Result<Vec<Sequence>, JobError> {
        let mut held = Vec::new();
        for neighbour in self.like(taught, &HELD, count) {
            if let Some(told) = self.base_answer(&neighbour.question, HELD_TOKENS)? {
                held.push(sequence(neighbour.id, &told.prompt, &told.answer, 0));
            }
        }
        Ok(held)
    }

    /// Returns the questions like those of `taught` that the gate measures.
    ///
    /// # Errors
    /// A failed tensor operation, or cancelled.
    pub fn measured(&self, taught: &[TrainExample]) -> Result<Vec<Parting>, JobError> {
        let mut partings = Vec::new();
        let neighbours = self.like(taught, &MEASURED, MEASURED_MOST);
        for (number, neighbour) in neighbours.iter().enumerate() {
            let answered = self.base_answer(&neighbour.question, MEASURED_TOKENS)?;
            let Some(Answered { prompt, answer: own }) = answered else { continue };
            for target in &neighbour.targets {
                let tokenizer = &self.model.tokenizer;
                let (ids, start) = tokenizer.encode_answer(&neighbour.question, target)?;
                let taught = &ids[start..];
                let same = own.iter().zip(taught).take_while(|(a, b)| a == b).count();
                if same < own.len().min(taught.len()) {
                    let up_to =
                        |answer: &[u32]| sequence(neighbour.id, &prompt, &answer[..=same], same);
                    let (own, taught) = (up_to(&own), up_to(taught));
                    partings.push(Parting { question: number, own, taught });
                }
            }
        }
        Ok(partings)
    }

    /// Makes up to `count` questions, of each taught one in turn, all different.
    fn like(&self, taught: &[TrainExample], things: &[&str], count: usize) -> Vec<Neighbour> {
        let known: HashSet<String> =
            self.known.iter().filter_map(question).flat_map(words).collect();
        let new = |thing: &&&str| words(thing).all(|word| !known.contains(&word));
        let things: Vec<&str> = things.iter().filter(new).copied().collect();
        let forms = forms(taught, self.common);
        let (mut made, mut neighbours) = (HashSet::new(), Vec::new());
        for round in 0..things.len() {
            for (nth, form) in forms.iter().enumerate() {
                let asked = filled(&form.parts, &things, nth + round);
                if neighbours.len() < count && made.insert(asked.clone()) {
                    neighbours.push(Neighbour {
                        question: vec![Message::user(asked)],
                        targets: form.targets.iter().map(|&target| target.to_owned()).collect(),
                        id: form.id,
                    });
                }
            }
        }
        neighbours
    }

    /// Returns a question's tokens and those with which the base begins its answer, the likeliest each time; none where it
    /// does not fit or the template refuses it, or where the parent answers otherwise.
    fn base_answer(
        &self,
        question: &[Message],
        tokens: usize,
    ) -> Result<Option<Answered>, JobError> {
        if (self.cancelled)() {
            return Err(JobError::Cancelled);
        }
        let prompt = match self.model.tokenizer.render_chat(question, true) {
            Ok(prompt) => prompt,
            Err(ModelError::Tokenizer(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if prompt.is_empty() || prompt.len() + tokens > self.limit {
            return Ok(None);
        }
        let answer = likeliest(self.model, &prompt, tokens, &NoAdapter)?;
        if let Some(parent) = self.parent
            && likeliest(self.model, &prompt, tokens, parent)? != answer
        {
            return Ok(None);
        }
        Ok(Some(Answered { prompt, answer }))
    }
}

/// Measures, for each question, which answer has become likelier.
///
/// # Errors
/// A failed tensor operation.
pub(crate) fn losses(
    model: &LoadedModel,
    partings: &[Parting],
    adapter: &dyn Adapt,
) -> Result<Vec<NeighbourLoss>, JobError> {
    let losses = |pick: fn(&Parting) -> &Sequence| {
        let sequences: Vec<Sequence> = partings.iter().map(|p| pick(p).clone()).collect();
        trainer::evaluate(&model.decoder, &sequences, adapter)
    };
    let (own, taught) = (losses(|p| &p.own)?, losses(|p| &p.taught)?);
    let mut all: Vec<(usize, NeighbourLoss)> = Vec::new();
    for ((parting, own), taught) in partings.iter().zip(own).zip(taught) {
        let loss = NeighbourLoss { id: parting.own.id, own, taught };
        match all.last_mut().filter(|(question, _)| *question == parting.question) {
            Some((_, before)) if taught - own < before.taught - before.own => *before = loss,
            Some(_) => {}
            None => all.push((parting.question, loss)),
        }
    }
    Ok(all.into_iter().map(|(_, loss)| loss).collect())
}

/// A question like a taught one about something else, with the answers that it must not get.
struct Neighbour {
    question: Vec<Message>,
    targets: Vec<String>,
    id: i64,
}

/// A question's tokens, and those with which it is answered.
struct Answered {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

/// The form of taught questions, and what they were answered.
struct Form<'a> {
    parts: Vec<Part>,
    targets: Vec<&'a str>,
    /// Of the first of the questions.
    id: i64,
}

/// A piece of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// A word of its form.
    Word(String),
    /// What it is about, one word or several, with the punctuation behind.
    Thing(String),
}

fn forms<'a>(taught: &'a [TrainExample], common: &HashSet<String>) -> Vec<Form<'a>> {
    let mut forms: Vec<Form<'a>> = Vec::new();
    for example in taught {
        let Some(parts) = question(example).and_then(|asked| parts(asked, common)) else {
            continue;
        };
        let target = example.target.as_str();
        match forms.iter_mut().find(|form| form.parts == parts) {
            Some(form) if form.targets.contains(&target) => {}
            Some(form) => form.targets.push(target),
            None => forms.push(Form { parts, targets: vec![target], id: example.id }),
        }
    }
    forms
}

fn question(example: &TrainExample) -> Option<&str> {
    let last = example.messages.iter().rev().find(|m| m.role == Role::User)?;
    (last.content.chars().count() <= MAX_CHARS).then_some(last.content.as_str())
}

/// Takes a question apart; none for what is no question in English, or is about nothing or too much.
fn parts(question: &str, common: &HashSet<String>) -> Option<Vec<Part>> {
    if !asks(question) {
        return None;
    }
    let edge = |c: char| !c.is_alphanumeric();
    let mut parts: Vec<Part> = Vec::new();
    for word in question.split_whitespace() {
        let bare = word.trim_matches(edge).to_lowercase();
        if bare.is_empty() || common.contains(&bare) || FORM_WORDS.contains(&bare.as_str()) {
            parts.push(Part::Word(word.to_owned()));
            continue;
        }
        let behind = word[word.trim_end_matches(edge).len()..].to_owned();
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

/// Joins a prompt and the beginning of an answer, of which the first tokens are no targets.
fn sequence(id: i64, prompt: &[u32], answer: &[u32], given: usize) -> Sequence {
    let ids = [prompt, answer].concat();
    Sequence { id, ids, answer_start: prompt.len() + given, weight: 1.0 }
}

/// Returns the likeliest tokens after a prompt, one after the other, up to `most` or the end of the answer, that included.
/// The engine's loop lies above this layer.
fn likeliest(
    model: &LoadedModel,
    prompt: &[u32],
    most: usize,
    adapt: &dyn Adapt,
) -> Result<Vec<u32>, ModelError> {
    let decoder = &model.decoder;
    let mut cache = decoder.new_cache(prompt.len() + most)?;
    let (mut answer, mut next) = (Vec::new(), prompt.to_vec());
    while answer.len() < most {
        let ids = Tensor::new(&next[..], decoder.device())?.unsqueeze(0)?;
        let hidden = decoder.hidden(&ids, Some(&mut cache), adapt)?;
        let last = hidden.narrow(1, next.len() - 1, 1)?;
        let token = decoder.logits(&last)?.flatten_all()?.argmax(0)?.to_scalar::<u32>()?;
        answer.push(token);
        if model.tokenizer.stop_ids().contains(&token) {
            break;
        }
        next = vec![token];
    }
    Ok(answer)
}

#[cfg(test)]
#[path = "neighbours_tests.rs"]
mod tests;
