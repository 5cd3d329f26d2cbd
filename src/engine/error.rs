//! What can keep an answer from being generated.

use candle_core::Error as TensorError;

use crate::models::ModelError;

/// Why a generation failed. A cancelled one is no failure: it ends with
/// [`FinishReason::Cancelled`](super::FinishReason::Cancelled).
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The conversation leaves no room for an answer in the model's context.
    #[error(
        "the conversation has {prompt_tokens} tokens, but the model's context holds \
         {context_length} and the answer needs room too: shorten the question, start a new \
         conversation (/clear in the console), or use a model with a longer context"
    )]
    ContextOverflow {
        /// Tokens of the rendered conversation.
        prompt_tokens: usize,
        /// Tokens that the model can attend to, prompt and answer together.
        context_length: usize,
    },
    /// The conversation rendered to no token at all.
    #[error("the conversation is empty: add at least one message")]
    EmptyPrompt,
    /// A sampling setting is out of its range.
    #[error("invalid sampling setting {name} = {value}: use {allowed}")]
    InvalidSampling {
        /// The setting's name, as in `[generation]` of the configuration.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// The values that are allowed.
        allowed: &'static str,
    },
    /// The model computed a logit that is no finite number.
    #[error(
        "the model gave {value} as the logit of token {token}: the weights or the adapter are \
         damaged; unload the adapter (/adapters unload) or load another model"
    )]
    NonFiniteLogits {
        /// The first token with such a logit.
        token: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The conversation could not be rendered, or the model could not compute.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error("a tensor operation of the generation failed: {0}")]
    Tensor(#[from] TensorError),
}
