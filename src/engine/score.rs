//! How likely the model finds given answers: teacher forcing through the decoder and its cache.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;

use super::Engine;
use super::error::EngineError;
use super::generation::{PREFILL_CHUNK, TokenModel};
use super::model::AdaptedModel;
use super::prefix_cache::{CacheKey, PrefixCache, Session};
use crate::domain::Message;
use crate::lora::AdapterSet;
use crate::lora::loss::head_cross_entropy;
use crate::models::KvCache;

/// Mean log-probabilities per token, one for each answer; `None` for one that the context does not hold.
pub type Likelihoods = Vec<Option<f64>>;

impl Engine {
    /// Returns how likely each of `answers` is behind `messages`: its mean log-probability per token, end of turn
    /// included, in nats. The prompt is read once, from the cache as far as it is there. `None` if it was cancelled,
    /// which takes effect within one chunk of [`PREFILL_CHUNK`] tokens.
    ///
    /// # Errors
    /// A template that refuses the conversation, a failed tensor operation.
    pub fn log_likelihoods(
        &mut self,
        messages: &[Message],
        answers: &[&str],
        adapters: &AdapterSet,
        cancel: &AtomicBool,
    ) -> Result<Option<Likelihoods>, EngineError> {
        let tokenizer = &self.model.tokenizer;
        let mut encoded = Vec::with_capacity(answers.len());
        for answer in answers {
            encoded.push(tokenizer.encode_answer(messages, answer)?);
        }
        let Some((first, start)) = encoded.first() else { return Ok(Some(Vec::new())) };
        let prompt = first[..*start].to_vec();
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let limit = self.model.context_length;
        let longest = encoded.iter().map(|(ids, _)| ids.len()).filter(|len| *len <= limit).max();
        let Some(longest) = longest else { return Ok(Some(vec![None; encoded.len()])) };
        let key = CacheKey::new(&self.model.base_hash, adapters.parts());
        let model = AdaptedModel { base: &self.model, adapters };
        let forced = Forced { model: &model, cancel };
        let mut session = forced.prepare(key, &prompt, longest, &mut self.sessions)?;
        let mut found = Vec::with_capacity(encoded.len());
        for (ids, start) in &encoded {
            let fits = ids.len() <= limit && ids.len() > *start;
            let likelihood = match fits {
                true => forced.answer(&prompt, &ids[*start..], &mut session)?.map(Some),
                false => Some(None),
            };
            let Some(likelihood) = likelihood else { break };
            found.push(likelihood);
        }
        let complete = found.len() == encoded.len();
        session.cache.truncate(session.tokens.len());
        self.sessions.check_in(session);
        Ok(complete.then_some(found))
    }
}

/// Feeds given tokens.
struct Forced<'a> {
    model: &'a AdaptedModel<'a>,
    cancel: &'a AtomicBool,
}

impl Forced<'_> {
    /// Takes the prompt in, all but its last token; if it was cancelled, a part of it.
    fn prepare(
        &self,
        key: CacheKey,
        prompt: &[u32],
        longest: usize,
        sessions: &mut PrefixCache<KvCache>,
    ) -> Result<Session<KvCache>, EngineError> {
        let mut session = match sessions.check_out(&key, prompt) {
            Some(session) => session,
            None => {
                sessions.make_room(self.model.cache_bytes(longest));
                Session::new(key, self.model.new_cache(longest)?, prompt.len())
            }
        };
        if session.cache.capacity() < longest {
            sessions.make_room(session.cache.bytes() + self.model.cache_bytes(longest));
            session.cache.reserve(longest)?;
        }
        for chunk in prompt[session.tokens.len()..prompt.len() - 1].chunks(PREFILL_CHUNK) {
            if self.cancelled() {
                break;
            }
            self.model.advance(chunk, &mut session.cache)?;
            session.tokens.extend_from_slice(chunk);
        }
        Ok(session)
    }

    /// Returns the mean log-probability of an answer's tokens behind the prompt; `None` if it was cancelled.
    fn answer(
        &self,
        prompt: &[u32],
        answer: &[u32],
        session: &mut Session<KvCache>,
    ) -> Result<Option<f64>, EngineError> {
        let decoder = &self.model.base.decoder;
        session.cache.truncate(session.tokens.len());
        let inputs: Vec<u32> =
            prompt.last().into_iter().chain(&answer[..answer.len() - 1]).copied().collect();
        let mut lost = 0.0;
        for (inputs, targets) in inputs.chunks(PREFILL_CHUNK).zip(answer.chunks(PREFILL_CHUNK)) {
            if self.cancelled() {
                return Ok(None);
            }
            let ids = Tensor::new(inputs, decoder.device())?.unsqueeze(0)?;
            // On a thread of the pool, which saves waking one from outside at every operation.
            lost += rayon::scope(|_| {
                let cache = Some(&mut session.cache);
                let hidden = decoder.hidden(&ids, cache, self.model.adapters)?.squeeze(0)?;
                let weights = vec![1.0; targets.len()];
                let loss = head_cross_entropy(decoder.head(), &hidden, targets, &weights, false)?;
                Ok::<_, EngineError>(loss.value)
            })?;
        }
        Ok(Some(-lost / answer.len() as f64))
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}
