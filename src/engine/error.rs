//! What can keep an answer from being generated.

use candle_core::Error as TensorError;

use crate::models::ModelError;

/// Why a generation failed. A cancelled one is no failure: it ends with
/// [`FinishReason::Cancelled`](super::FinishReason::Cancelled).
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The conversation, or the part of it that must stay, leaves no room for an answer in the model's context.
    #[error(
        "the {what} has {prompt_tokens} tokens, but the model's context holds {context_length} and the answer needs \
         room too: {remedy}"
    )]
    ContextOverflow {
        /// What was rendered.
        what: &'static str,
        /// Its tokens.
        prompt_tokens: usize,
        /// Tokens that the model can attend to, prompt and answer together.
        context_length: usize,
        /// What the user can do.
        remedy: &'static str,
    },
    /// The conversation has a system message, and the model's template has no place for one.
    #[error(
        "the chat template of model \"{model}\" takes no system message: put it into the question, and clear it \
         (/system off, generation.system = \"\")"
    )]
    NoSystemRole {
        /// The model's name.
        model: String,
    },
    /// The tokenizer made a token that the model does not know.
    #[error(
        "the tokenizer of model \"{model}\" made token {token}, but its embedding has {rows} rows only: take tokenizer \
         and weights of the same model"
    )]
    UnknownToken {
        /// The model's name.
        model: String,
        /// The first such token.
        token: u32,
        /// Rows of the embedding.
        rows: usize,
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
        "the model gave {value} as the logit of token {token}: its weights are damaged; load another model"
    )]
    NonFiniteLogits {
        /// The first token with such a logit.
        token: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The same, by the names of all that computed it.
    #[error("{who} gave {value} as the logit of token {token}: {remedy}")]
    Damaged {
        /// The model and its adapters.
        who: String,
        /// The first token with such a logit.
        token: usize,
        /// NaN or an infinity.
        value: f32,
        /// What the user can do.
        remedy: &'static str,
    },
    /// The conversation could not be rendered, or the model could not compute.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error("a tensor operation of the generation failed: {0}")]
    Tensor(#[from] TensorError),
}

impl EngineError {
    /// Names the model and the adapters that computed what is no number.
    pub(super) fn computed_by<'a>(
        self,
        model: &str,
        adapters: impl Iterator<Item = &'a str>,
    ) -> Self {
        let Self::NonFiniteLogits { token, value } = self else { return self };
        let names: Vec<String> = adapters.map(|name| format!("\"{name}\"")).collect();
        let (who, remedy) = match names.as_slice() {
            [] => (
                format!("model \"{model}\""),
                "its weights are damaged; download it again or load another model",
            ),
            names => (
                format!("model \"{model}\" with adapter {}", names.join(", ")),
                "the weights of one of them are damaged; unload the adapter (/adapters unload), and if that does not \
                 help, load another model",
            ),
        };
        Self::Damaged { who, token, value, remedy }
    }
}
