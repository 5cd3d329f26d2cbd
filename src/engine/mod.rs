//! Generation: from a conversation to streamed text.
//!
//! [`Engine`] owns a loaded model and the prefix caches of the conversations it served. The layers
//! below it know no text that streams, the actors above it know no token. It reads no clock: who
//! wants timings hands one in.

mod error;
mod generation;
mod model;
mod prefix_cache;
mod sampler;
mod sampling;
mod stream;

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use generation::Generation;
use model::AdaptedModel;
use prefix_cache::{CacheKey, PrefixCache};

use crate::domain::Message;
use crate::lora::AdapterSet;
use crate::models::{KvCache, LoadedModel};

pub use error::EngineError;
pub use generation::{FinishReason, Generated, PREFILL_CHUNK};
pub use prefix_cache::{MAX_CACHED_TOKENS, MAX_SESSIONS};
pub use sampler::REPETITION_WINDOW;
pub use sampling::Sampling;

/// Time since a moment that stays the same.
type Clock = Box<dyn Fn() -> Duration + Send>;

/// Answers conversations with one model, one at a time.
pub struct Engine {
    model: LoadedModel,
    sessions: PrefixCache<KvCache>,
    clock: Option<Clock>,
}

impl Engine {
    /// Makes an engine without a clock: its answers carry no timings.
    pub fn new(model: LoadedModel) -> Self {
        Self { model, sessions: PrefixCache::default(), clock: None }
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
    /// the conversation, logits that are not finite, a failed tensor operation. The engine stays
    /// usable after each.
    pub fn generate(
        &mut self,
        messages: &[Message],
        sampling: &Sampling,
        adapters: &AdapterSet,
        cancel: &AtomicBool,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, EngineError> {
        let prompt = self.model.tokenizer.render_chat(messages, true)?;
        let key = CacheKey::new(&self.model.base_hash, adapters.parts());
        let model = AdaptedModel { base: &self.model, adapters };
        let clock = self.clock.as_ref().map(|clock| &**clock as &dyn Fn() -> Duration);
        let generation = Generation { model: &model, sampling, cancel, clock };
        generation.run(key, &prompt, &mut self.sessions, on_text)
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
