//! From marked answers to token sequences with an answer-only mask and normalised weights.

use std::collections::HashMap;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, distr::weighted::WeightedIndex};

use super::params::Weighting;
use crate::domain::{Message, Role, TrainExample};
use crate::models::{ModelError, Tokenizer};

/// One example as the trainer sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Row id of the mark.
    pub id: i64,
    /// The conversation in the model's template, answer and end of turn included.
    pub ids: Vec<u32>,
    /// Index of the answer's first token; only tokens from here on are targets.
    pub answer_start: usize,
    /// The mark's weight as stored.
    pub weight: f64,
}

impl Sequence {
    /// Returns the number of tokens that are learned.
    pub fn answer_tokens(&self) -> usize {
        self.ids.len() - self.answer_start
    }
}

/// Sequences, and what is to be told of examples that could not be taken whole.
#[derive(Debug, Default)]
pub struct Dataset {
    /// The sequences, in the order of the examples.
    pub sequences: Vec<Sequence>,
    /// One line per example that was cut or skipped.
    pub notes: Vec<String>,
}

/// Encodes examples for a context of `context_length` tokens.
///
/// A conversation that is too long loses its oldest messages, but not its instructions (a first message
/// of the system) and not the last message; an answer that is too long even so, or empty, or without a
/// positive weight, is skipped, and so is what the chat template refuses. All are noted.
///
/// # Errors
/// A model that fails in another way.
pub fn encode(
    examples: &[TrainExample],
    tokenizer: &Tokenizer,
    context_length: usize,
) -> Result<Dataset, ModelError> {
    let mut dataset = Dataset::default();
    for example in examples {
        let id = example.id;
        if example.target.trim().is_empty() {
            dataset.notes.push(format!("example {id} has an empty answer and was skipped"));
            continue;
        }
        if !(example.weight.is_finite() && example.weight > 0.0) {
            let weight = example.weight;
            dataset.notes.push(format!("example {id} has the weight {weight} and was skipped"));
            continue;
        }
        match fit(example, tokenizer, context_length) {
            Ok(Some((cut, ids, answer_start))) => {
                if cut > 0 {
                    dataset.notes.push(format!(
                        "example {id} is longer than {context_length} tokens: its oldest {cut} messages were cut"
                    ));
                }
                dataset.sequences.push(Sequence { id, ids, answer_start, weight: example.weight });
            }
            Ok(None) => dataset.notes.push(format!(
                "example {id} was skipped: its answer does not fit in {context_length} tokens"
            )),
            // One conversation that a template refuses says nothing of the others.
            Err(ModelError::Tokenizer(reason)) => {
                dataset.notes.push(format!("example {id} was skipped: {reason}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(dataset)
}

/// Cuts the oldest messages until the sequence fits; returns how many, the ids, and the answer's start.
fn fit(
    example: &TrainExample,
    tokenizer: &Tokenizer,
    context_length: usize,
) -> Result<Option<(usize, Vec<u32>, usize)>, ModelError> {
    let messages = &example.messages;
    let kept = usize::from(messages.first().is_some_and(|m| m.role == Role::System));
    for from in kept..messages.len().max(kept + 1) {
        // What is left begins with the user: some templates refuse anything else.
        if from > kept && messages[from].role == Role::Assistant {
            continue;
        }
        let left: Vec<Message> =
            messages[..kept].iter().chain(&messages[from.min(messages.len())..]).cloned().collect();
        let (ids, start) = tokenizer.encode_answer(&left, &example.target)?;
        // Nothing predicts the first token of all, so it is no target.
        let start = start.max(1);
        if ids.len() <= context_length && start < ids.len() {
            return Ok(Some((from - kept, ids, start)));
        }
    }
    Ok(None)
}

/// Joins sequences that teach the same answer in the same conversation: the first stays, with the sum of the weights.
pub fn merge(sequences: Vec<Sequence>) -> Dataset {
    let mut merged: Vec<Sequence> = Vec::with_capacity(sequences.len());
    let mut places: HashMap<(Vec<u32>, usize), usize> = HashMap::new();
    let mut notes = Vec::new();
    for sequence in sequences {
        let place =
            *places.entry((sequence.ids.clone(), sequence.answer_start)).or_insert(merged.len());
        match merged.get_mut(place) {
            Some(first) => {
                first.weight += sequence.weight;
                notes.push(format!(
                    "example {} repeats example {}: learned as one, with their weights added to {}",
                    sequence.id, first.id, first.weight
                ));
            }
            None => merged.push(sequence),
        }
    }
    Dataset { sequences: merged, notes }
}

/// Returns weights with mean 1 in which no example has more than a share of `max_share` (at least 2/n).
///
/// What a capped example loses, the others share in proportion to their weights.
pub fn normalised_weights(weights: &[f64], max_share: f64) -> Vec<f64> {
    let n = weights.len() as f64;
    let cap = max_share.max(2.0 / n).min(1.0);
    let mut capped = vec![false; weights.len()];
    loop {
        let free: f64 = weights.iter().zip(&capped).filter(|(_, c)| !**c).map(|(w, _)| w).sum();
        let left = 1.0 - cap * capped.iter().filter(|c| **c).count() as f64;
        let share = |w: f64| if free > 0.0 { w / free * left } else { 0.0 };
        let over = (0..weights.len()).find(|&i| !capped[i] && share(weights[i]) > cap + 1e-12);
        match over {
            Some(i) => capped[i] = true,
            None => {
                let result = weights.iter().zip(&capped);
                return result.map(|(&w, &c)| n * if c { cap } else { share(w) }).collect();
            }
        }
    }
}

/// Returns which examples the epoch shows, in order.
///
/// `Loss` shows each once; `Sampling` draws as many with replacement, in proportion to `weights`.
pub fn epoch_order(weights: &[f64], weighting: Weighting, seed: u64, epoch: usize) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(epoch as u64).wrapping_mul(0x9E37_79B9));
    match (weighting, WeightedIndex::new(weights)) {
        (Weighting::Sampling, Ok(draw)) => (0..weights.len()).map(|_| rng.sample(&draw)).collect(),
        _ => {
            let mut order: Vec<usize> = (0..weights.len()).collect();
            order.shuffle(&mut rng);
            order
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Refuses a conversation that begins with "no".
    const TEMPLATE: &str = "{% if messages[0].content == 'no' %}{{ raise_exception('never') }}{% endif %}\
                            {% for m in messages %}{{ m.content }}{% endfor %}";

    #[test]
    fn what_the_template_refuses_is_noted_and_the_rest_is_taken() {
        let json = include_bytes!("../../assets/tiny/tokenizer.json");
        let config = serde_json::json!({"chat_template": TEMPLATE}).to_string();
        let tokenizer =
            Tokenizer::new(json, Some(config.as_bytes()), &[], Path::new("tokenizer.json"))
                .unwrap();
        let example = |id: i64, question: &str| TrainExample {
            id,
            messages: vec![Message::user(question)],
            target: "yes".to_owned(),
            weight: 1.0,
        };
        let dataset = encode(&[example(1, "no"), example(2, "hello")], &tokenizer, 64).unwrap();
        let taken: Vec<i64> = dataset.sequences.iter().map(|sequence| sequence.id).collect();
        assert_eq!((taken, dataset.notes.len()), (vec![2], 1));
        let note = &dataset.notes[0];
        assert!(note.starts_with("example 1 was skipped: ") && note.contains("never"), "{note}");
    }
}
