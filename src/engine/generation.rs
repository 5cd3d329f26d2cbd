//! The loop of one generation: prefill what is new, then one token after the other.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::error::EngineError;
use super::prefix_cache::{CacheKey, CacheStore, PrefixCache, Session};
use super::sampler::{REPETITION_WINDOW, Sampler};
use super::sampling::Sampling;
use super::stream::{Piece, TextStream};

/// Tokens that are prefilled between two looks at the cancel flag: enough rows to keep the matrix
/// products busy, about a second of work for a model of 0.5 B parameters on two cores.
pub const PREFILL_CHUNK: usize = 128;

/// The smallest cache that is allocated, in positions: a short chat never has to grow it.
const MIN_CACHE_CAPACITY: usize = 512;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, or a stop string came.
    Stop,
    /// `max_tokens` were sampled, or the context is full.
    Length,
    /// The caller cancelled it or does not listen any more.
    Cancelled,
}

/// One answer and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The whole answer: all pieces that were handed out, joined.
    pub text: String,
    /// Tokens of the rendered conversation.
    pub prompt_tokens: usize,
    /// How many of those came out of the prefix cache.
    pub cached_tokens: usize,
    /// Tokens that were sampled, the one that ends the answer included.
    pub new_tokens: usize,
    /// Time until the first logits, if the engine was given a clock.
    pub prefill: Option<Duration>,
    /// Time from there to the end, if the engine was given a clock.
    pub decode: Option<Duration>,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// Oldest turns of the conversation that were left out for want of room.
    pub dropped_turns: usize,
}

/// What the loop needs of a model.
pub trait TokenModel {
    /// The keys and values of one sequence.
    type Cache: CacheStore;

    /// Returns the most positions that a sequence may have.
    fn context_length(&self) -> usize;

    /// Allocates an empty cache for `capacity` positions.
    ///
    /// # Errors
    /// No memory on the device.
    fn new_cache(&self, capacity: usize) -> Result<Self::Cache, EngineError>;

    /// Returns the bytes that a cache for `capacity` positions takes.
    fn cache_bytes(&self, capacity: usize) -> u64;

    /// Takes `ids` in behind what `cache` holds and returns the logits `[vocab]` after the last.
    ///
    /// # Errors
    /// A failed tensor operation.
    fn advance(&self, ids: &[u32], cache: &mut Self::Cache) -> Result<Tensor, EngineError>;

    /// Returns the bytes of a token's text, none for a special token.
    fn token_bytes(&self, id: u32) -> &[u8];

    /// Tells whether a token ends the answer.
    fn is_stop(&self, id: u32) -> bool;
}

/// Everything that stays the same over one generation.
pub struct Generation<'a, M> {
    /// The model, adapters included.
    pub model: &'a M,
    /// How to choose tokens.
    pub sampling: &'a Sampling,
    /// Set by somebody else to end the answer.
    pub cancel: &'a AtomicBool,
    /// Time since any fixed moment.
    pub clock: Option<&'a dyn Fn() -> Duration>,
}

/// Takes text; breaks when nobody wants more.
pub type OnText<'a> = dyn FnMut(&str) -> ControlFlow<()> + 'a;

impl<M: TokenModel> Generation<'_, M> {
    /// Answers `prompt`, going on from the best session of `sessions` with the same key, and
    /// returns the session there, whether the answer came to its end or was cancelled.
    ///
    /// # Errors
    /// Invalid settings, a prompt that leaves no room for an answer, a failed tensor operation,
    /// logits that are not finite. After an error the session that was used is dropped.
    pub fn run(
        &self,
        key: CacheKey,
        prompt: &[u32],
        sessions: &mut PrefixCache<M::Cache>,
        on_text: &mut OnText<'_>,
    ) -> Result<Generated, EngineError> {
        self.sampling.validate()?;
        let context_length = self.model.context_length();
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt.len() >= context_length {
            return Err(EngineError::ContextOverflow {
                what: "prompt",
                prompt_tokens: prompt.len(),
                context_length,
                remedy: "shorten it, or use a model with a longer context",
            });
        }
        let mut session = match sessions.check_out(&key, prompt) {
            Some(session) => session,
            None => {
                let capacity = self.capacity_for(prompt.len());
                sessions.make_room(self.model.cache_bytes(capacity));
                Session::new(key, self.model.new_cache(capacity)?, prompt.len())
            }
        };
        let generated = self.answer(prompt, &mut session, sessions, on_text)?;
        sessions.check_in(session);
        Ok(generated)
    }

    fn answer(
        &self,
        prompt: &[u32],
        session: &mut Session<M::Cache>,
        others: &mut PrefixCache<M::Cache>,
        on_text: &mut OnText<'_>,
    ) -> Result<Generated, EngineError> {
        let mut generated = Generated {
            text: String::new(),
            prompt_tokens: prompt.len(),
            cached_tokens: session.tokens.len(),
            new_tokens: 0,
            prefill: None,
            decode: None,
            finish_reason: FinishReason::Cancelled,
            dropped_turns: 0,
        };
        let start = self.now();
        let logits = self.prefill(prompt, session, others)?;
        let prefilled = self.now();
        generated.prefill = elapsed(start, prefilled);
        if let Some(logits) = logits {
            generated.finish_reason =
                self.decode(logits, session, others, &mut generated, on_text)?;
        }
        generated.decode = elapsed(prefilled, self.now());
        Ok(generated)
    }

    /// Takes in what `session` does not hold of `prompt`. Returns no logits if it was cancelled.
    fn prefill(
        &self,
        prompt: &[u32],
        session: &mut Session<M::Cache>,
        others: &mut PrefixCache<M::Cache>,
    ) -> Result<Option<Tensor>, EngineError> {
        let mut logits = None;
        for chunk in prompt[session.tokens.len()..].chunks(PREFILL_CHUNK) {
            if self.cancelled() {
                return Ok(None);
            }
            logits = Some(self.feed(chunk, session, others)?);
        }
        Ok(logits)
    }

    /// Samples tokens and hands out their text until something ends the answer.
    fn decode(
        &self,
        mut logits: Tensor,
        session: &mut Session<M::Cache>,
        others: &mut PrefixCache<M::Cache>,
        generated: &mut Generated,
        on_text: &mut OnText<'_>,
    ) -> Result<FinishReason, EngineError> {
        let room = self.model.context_length() - generated.prompt_tokens;
        let limit = self.sampling.max_tokens.min(room);
        let mut sampler = Sampler::new(self.sampling);
        let mut stream = TextStream::new(&self.sampling.stop);
        let mut hand_out = |piece: Piece, generated: &mut Generated| {
            generated.text.push_str(&piece.text);
            let flow = match piece.text.as_str() {
                "" => ControlFlow::Continue(()),
                text => on_text(text),
            };
            (piece.stopped, flow)
        };
        let reason = loop {
            if self.cancelled() {
                break FinishReason::Cancelled;
            }
            let token = sampler.sample(&logits, &self.repeatable(&session.tokens))?;
            generated.new_tokens += 1;
            if self.model.is_stop(token) {
                break FinishReason::Stop;
            }
            match hand_out(stream.push(self.model.token_bytes(token)), generated) {
                (true, _) => return Ok(FinishReason::Stop),
                (_, ControlFlow::Break(())) => return Ok(FinishReason::Cancelled),
                _ => {}
            }
            if generated.new_tokens == limit {
                break FinishReason::Length;
            }
            if self.cancelled() {
                break FinishReason::Cancelled;
            }
            logits = self.feed(&[token], session, others)?;
        };
        let (stopped, _) = hand_out(stream.finish(), generated);
        Ok(if stopped { FinishReason::Stop } else { reason })
    }

    /// Takes tokens in; the sessions of other conversations make room where the cache must grow.
    fn feed(
        &self,
        ids: &[u32],
        session: &mut Session<M::Cache>,
        others: &mut PrefixCache<M::Cache>,
    ) -> Result<Tensor, EngineError> {
        let len = session.tokens.len() + ids.len();
        if session.cache.capacity() < len {
            let capacity = self.capacity_for(len);
            // While it grows, both buffers are there.
            others.make_room(session.cache.bytes() + self.model.cache_bytes(capacity));
            session.cache.reserve(capacity)?;
        }
        let logits = self.model.advance(ids, &mut session.cache)?;
        session.tokens.extend_from_slice(ids);
        Ok(logits)
    }

    /// Returns the positions to allocate for `len` tokens. Powers of two, so that a growing
    /// conversation is copied a few times only.
    fn capacity_for(&self, len: usize) -> usize {
        let capacity = len.next_power_of_two().max(MIN_CACHE_CAPACITY);
        capacity.min(self.model.context_length())
    }

    /// Returns the recent tokens that the repetition penalty applies to. Those that end a turn are
    /// none of them: they are in every prompt, and penalised they would keep an answer going.
    fn repeatable(&self, tokens: &[u32]) -> Vec<u32> {
        let recent = &tokens[tokens.len().saturating_sub(REPETITION_WINDOW)..];
        recent.iter().copied().filter(|&token| !self.model.is_stop(token)).collect()
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    fn now(&self) -> Option<Duration> {
        self.clock.map(|clock| clock())
    }
}

/// Returns the time between two readings of the clock.
fn elapsed(start: Option<Duration>, end: Option<Duration>) -> Option<Duration> {
    Some(end?.saturating_sub(start?))
}

#[cfg(test)]
#[path = "generation_tests.rs"]
mod tests;
