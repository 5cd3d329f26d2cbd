//! Models: configuration, weights, tokenizer, and one differentiable decoder.
//!
//! Nothing here knows adapters; [`Adapt`] is the seam where they act.

mod cache;
mod config;
mod decoder;
mod error;
mod files;
mod linear;
mod loader;
pub mod ops;
mod template;
mod tokenizer;

pub use cache::KvCache;
pub use config::{Family, ModelConfig};
pub use decoder::{Decoder, Weights};
pub use error::ModelError;
pub(crate) use files::hex;
pub use files::{ModelSource, base_hash};
pub use linear::{Adapt, Linear, Module, NoAdapter, Site};
pub use loader::{LoadedModel, load};
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
