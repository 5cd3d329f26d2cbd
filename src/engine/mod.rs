//! Generation: from a conversation to streamed text.
//!
//! [`Engine`] owns a loaded model and the prefix caches of the conversations it served. The layers
//! below it know no text that streams, the actors above it know no token. It reads no clock: who
//! wants timings hands one in.

mod context;
mod error;
mod generation;
mod model;
mod prefix_cache;
mod revision;
mod revision_prompt;
mod router;
mod sampler;
mod sampling;
mod score;
mod stream;

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use context::{Room, Window};
use generation::Generation;
use model::AdaptedModel;
use prefix_cache::{CacheKey, PrefixCache};

use crate::domain::{Message, Role};
use crate::lora::AdapterSet;
use crate::models::{KvCache, LoadedModel};

pub use context::ContextOverflow;
pub use error::EngineError;
pub use generation::{FinishReason, Generated, PREFILL_CHUNK};
pub use prefix_cache::MAX_SESSIONS;
pub use revision::{Candidate, Revised, RevisionEvent, RevisionRequest};
pub use revision_prompt::asked_again;
pub use router::Router;
pub use sampler::REPETITION_WINDOW;
pub use sampling::Sampling;
pub use score::Likelihoods;

/// Time since a moment that stays the same.
type Clock = Box<dyn Fn() -> Duration + Send>;

/// What an engine goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What becomes of a conversation that the context does not hold.
    pub context_overflow: ContextOverflow,
    /// Bytes of keys and values that are kept between answers.
    pub cache_bytes: u64,
}

/// Answers conversations with one model, one at a time.
pub struct Engine {
    model: LoadedModel,
    context_overflow: ContextOverflow,
    sessions: PrefixCache<KvCache>,
    takes_system: bool,
    clock: Option<Clock>,
}

impl Engine {
    /// Makes an engine without a clock: its answers carry no timings.
    pub fn new(model: LoadedModel, limits: Limits) -> Self {
        Self {
            takes_system: model.tokenizer.takes_system(),
            model,
            context_overflow: limits.context_overflow,
            sessions: PrefixCache::new(limits.cache_bytes),
            clock: None,
        }
    }

    /// Gives the engine a clock: the time since any moment that stays the same.
    pub fn with_clock(mut self, clock: impl Fn() -> Duration + Send + 'static) -> Self {
        self.clock = Some(Box::new(clock));
        self
    }

    /// Returns the model that answers.
    pub fn model(&self) -> &LoadedModel {
        &self.model
    }

    /// Answers a conversation that ends with the user's message.
    ///
    /// `on_text` gets the answer in pieces of whole characters, none of them empty; when it breaks,
    /// or when `cancel` is set, the generation ends within one token (or one prefill chunk of
    /// [`PREFILL_CHUNK`] tokens) with [`FinishReason::Cancelled`].
    ///
    /// # Errors
    /// [`EngineError::InvalidSampling`], [`EngineError::ContextOverflow`], a template that refuses
    /// the conversation or its system message, a token that the model does not know, logits that are not finite, a failed
    /// tensor operation. The engine stays usable after each.
    pub fn generate(
        &mut self,
        messages: &[Message],
        sampling: &Sampling,
        adapters: &AdapterSet,
        cancel: &AtomicBool,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, EngineError> {
        let Window { prompt, dropped_turns } = self.window(messages, sampling.max_tokens)?;
        let key = CacheKey::new(&self.model.base_hash, adapters.parts());
        let model = AdaptedModel { base: &self.model, adapters };
        let clock = self.clock.as_ref().map(|clock| &**clock as &dyn Fn() -> Duration);
        let generation = Generation { model: &model, sampling, cancel, clock };
        let generated = generation
            .run(key, &prompt, &mut self.sessions, on_text)
            .map_err(|error| error.computed_by(&self.model.name, adapters.names()))?;
        Ok(Generated { dropped_turns, ..generated })
    }

    /// Renders what the model sees of a conversation.
    fn window(&self, messages: &[Message], max_tokens: usize) -> Result<Window, EngineError> {
        let LoadedModel { name, tokenizer, decoder, context_length, .. } = &self.model;
        let system = messages.first().is_some_and(|message| message.role == Role::System);
        if system && !self.takes_system {
            return Err(EngineError::NoSystemRole { model: name.clone() });
        }
        let room = Room { context_length: *context_length, max_tokens };
        let render = |messages: &[Message]| Ok(tokenizer.render_chat(messages, true)?);
        let window = context::fit(messages, room, self.context_overflow, render)?;
        let rows = decoder.config().vocab_size;
        match window.prompt.iter().find(|id| **id as usize >= rows) {
            Some(&token) => Err(EngineError::UnknownToken { model: name.clone(), token, rows }),
            None => Ok(window),
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
