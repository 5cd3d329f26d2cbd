//! Generation: from a conversation to streamed text.
//!
//! [`Engine`] owns a loaded model and the prefix caches of the conversations it served. The layers
//! below it know no text that streams, the actors above it know no token.

mod error;
mod generation;
mod prefix_cache;
mod sampler;
mod sampling;
mod stream;

pub use error::EngineError;
pub use generation::{FinishReason, Generated, PREFILL_CHUNK};
pub use prefix_cache::{MAX_CACHED_TOKENS, MAX_SESSIONS};
pub use sampler::REPETITION_WINDOW;
pub use sampling::Sampling;
