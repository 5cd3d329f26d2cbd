//! Revisions: from a user's note to the answer that should have been given.
//!
//! A note is no target. With it in the context the model answers the same conversation again, a few times; each candidate
//! is scored by how much the note makes it likelier, and the best can become the target of the conversation *without* the
//! note (context distillation: Scheurer et al. 2023, arXiv 2303.16755). Pure: who decides, and what is stored, is for
//! the layers above.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::EngineError;
use super::generation::{FinishReason, Generated};
use super::revision_prompt::asked_again;
use super::sampling::Sampling;
use super::{Engine, context};
use crate::domain::Message;
use crate::lora::AdapterSet;

/// Least temperature of all candidates but the first: at that of a chat (0.3 by default) they would be copies of it.
const CANDIDATE_TEMPERATURE: f64 = 0.8;

/// What is to be revised.
#[derive(Debug, Clone)]
pub struct RevisionRequest {
    /// The conversation up to and including the user's question.
    pub messages: Vec<Message>,
    /// The answer that was given.
    pub criticised: String,
    /// What the user said about it.
    pub note: String,
    /// How often the model answers again, at least once.
    pub candidates: usize,
    /// How tokens are chosen; the first candidate always takes the likeliest.
    pub sampling: Sampling,
}

/// What happens while a revision is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevisionEvent<'a> {
    /// More text of a candidate.
    Text {
        /// The candidate, from 0.
        candidate: usize,
        /// The text.
        text: &'a str,
    },
    /// A candidate is complete.
    Answered {
        /// The candidate, from 0.
        candidate: usize,
    },
}

/// An answer with the note in the context.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The answer.
    pub text: String,
    /// How much the note raises its mean log-probability, nats per token.
    pub score: f64,
    /// Which of the candidates it was, from 0; the text of the first was handed out first.
    pub index: usize,
}

/// The candidates of a revision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Revised {
    /// What may be offered, the best first: complete, not empty, and not the criticised answer again.
    pub candidates: Vec<Candidate>,
    /// The score of the criticised answer itself; `None` where nothing is to be compared with it.
    pub criticised: Option<f64>,
    /// How often the model answered.
    pub answers: usize,
    /// It was stopped before the end.
    pub cancelled: bool,
}

impl Revised {
    /// Returns the best candidate if the note really helps it: its score is above `threshold` and above that of the
    /// criticised answer.
    pub fn best(&self, threshold: f64) -> Option<&Candidate> {
        let least = self.criticised.unwrap_or(f64::NEG_INFINITY).max(threshold);
        self.candidates.first().filter(|best| best.score > least)
    }
}

impl Engine {
    /// Answers a conversation again with a note on its answer, a few times, and scores what came.
    ///
    /// `on_event` gets the text as it comes; when it breaks, or when `cancel` is set, the revision ends as
    /// [`Engine::generate`] does, with [`Revised::cancelled`].
    ///
    /// # Errors
    /// As [`Engine::generate`]; [`EngineError::ContextOverflow`] where the context does not hold the question, its answer
    /// and the note together.
    pub fn revise(
        &mut self,
        request: &RevisionRequest,
        adapters: &AdapterSet,
        cancel: &AtomicBool,
        on_event: &mut dyn FnMut(RevisionEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Revised, EngineError> {
        let RevisionRequest { messages, criticised, note, .. } = request;
        let whole = asked_again(messages, criticised, Some(note));
        let dropped = self.window(&whole, request.sampling.max_tokens)?.dropped_turns;
        let seen = context::without_turns(messages, dropped).ok_or_else(|| self.no_room(&whole))?;
        let asked = asked_again(&seen, criticised, Some(note));
        let mut revised = Revised::default();
        let mut known = vec![normalised(criticised)];
        for index in 0..request.candidates.max(1) {
            let sampling = of_candidate(&request.sampling, index);
            let mut on_text = |text: &str| on_event(RevisionEvent::Text { candidate: index, text });
            let generated = self.generate(&asked, &sampling, adapters, cancel, &mut on_text)?;
            revised.answers += 1;
            let ended = on_event(RevisionEvent::Answered { candidate: index });
            if generated.finish_reason == FinishReason::Cancelled || ended.is_break() {
                return Ok(Revised { cancelled: true, ..revised });
            }
            if let Some(text) = new_answer(&generated, &mut known) {
                revised.candidates.push(Candidate { text, score: f64::NAN, index });
            }
        }
        self.score(&seen, request, revised, adapters, cancel)
    }

    /// Gives the candidates their scores and puts them in order; one without a score is dropped.
    fn score(
        &mut self,
        messages: &[Message],
        request: &RevisionRequest,
        mut revised: Revised,
        adapters: &AdapterSet,
        cancel: &AtomicBool,
    ) -> Result<Revised, EngineError> {
        if revised.candidates.is_empty() {
            return Ok(revised);
        }
        let RevisionRequest { criticised, note, .. } = request;
        let all = std::mem::take(&mut revised.candidates);
        let texts: Vec<&str> = all.iter().map(|candidate| candidate.text.as_str()).collect();
        let texts = [&[criticised.as_str()], texts.as_slice()].concat();
        let mut likely = Vec::new();
        for note in [Some(note.as_str()), None] {
            let behind = asked_again(messages, criticised, note);
            match self.log_likelihoods(&behind, &texts, adapters, cancel)? {
                Some(found) => likely.push(found),
                None => return Ok(Revised { cancelled: true, ..revised }),
            }
        }
        let score = |at: usize| {
            let score = likely[0][at]? - likely[1][at]?;
            score.is_finite().then_some(score)
        };
        revised.criticised = score(0);
        let scored = all.iter().enumerate().filter_map(|(at, candidate)| {
            Some(Candidate { score: score(at + 1)?, ..candidate.clone() })
        });
        revised.candidates = scored.collect();
        revised.candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        revised.cancelled = cancel.load(Ordering::Relaxed);
        Ok(revised)
    }

    fn no_room(&self, asked: &[Message]) -> EngineError {
        let rendered = self.model.tokenizer.render_chat(asked, true);
        EngineError::ContextOverflow {
            what: "question with its answer and the note",
            prompt_tokens: rendered.map_or(0, |prompt| prompt.len()),
            context_length: self.model.context_length,
            remedy: "/fix TEXT gives the better answer",
        }
    }
}

/// The first candidate takes the likeliest tokens; the others are drawn, each with a seed of its own.
fn of_candidate(sampling: &Sampling, index: usize) -> Sampling {
    let temperature = match index {
        0 => 0.0,
        _ => sampling.temperature.max(CANDIDATE_TEMPERATURE),
    };
    Sampling { temperature, seed: sampling.seed.wrapping_add(index as u64), ..sampling.clone() }
}

/// Returns an answer that nobody gave yet. One that is cut would teach to stop there.
fn new_answer(generated: &Generated, known: &mut Vec<String>) -> Option<String> {
    let text = generated.text.trim();
    let normal = normalised(text);
    if generated.finish_reason != FinishReason::Stop || normal.is_empty() || known.contains(&normal)
    {
        return None;
    }
    known.push(normal);
    Some(text.to_owned())
}

/// Returns what makes two answers the same: case, space and the punctuation around them do not count. Signs inside do,
/// as one of them may be all that was wrong with a line of code.
fn normalised(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let joined = words.join(" ").to_lowercase();
    joined.trim_matches(|c: char| c.is_ascii_punctuation() && !"()[]{}<>".contains(c)).to_owned()
}

#[cfg(test)]
#[path = "revision_tests.rs"]
mod tests;
