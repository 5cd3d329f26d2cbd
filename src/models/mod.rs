//! Models: configuration, weights, tokenizer, and one differentiable decoder.
//!
//! Nothing here knows adapters; [`Adapt`] is the seam where they act.

pub mod attention;
mod cache;
mod config;
mod decoder;
mod error;
mod files;
mod inspect;
#[allow(unsafe_code, reason = "the kernels: raw parts of slices, each checked")]
pub mod kernels;
mod linear;
mod loader;
pub mod ops;
mod packing;
mod quantised;
mod template;
#[cfg(test)]
pub(crate) mod test_kit;
mod tokenizer;
mod weight_file;

pub use cache::KvCache;
pub use config::{Family, ModelConfig};
pub use decoder::{Decoder, Pass, Weights};
pub use error::ModelError;
pub(crate) use files::hex;
pub use files::{ModelSource, base_hash, shards};
pub use inspect::{ModelInfo, inspect, model_type};
pub(crate) use linear::with_rows;
pub use linear::{Adapt, Linear, Module, NoAdapter, Site, WeightId};
pub use loader::{LoadedModel, load, load_as};
pub(crate) use ops::{elements, forget, swiglu_grads, swiglu_of, with_elements};
pub use packing::{Packing, Span};
pub use quantised::{QuantisedMatrix, Quantize};
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
