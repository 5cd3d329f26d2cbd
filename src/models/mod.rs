//! Models: configuration, weights, tokenizer, and one differentiable decoder.
//!
//! Nothing here knows adapters; [`Adapt`] is the seam where they act.

pub mod attention;
mod cache;
mod config;
mod decoder;
mod elements;
mod error;
mod files;
mod gated;
pub mod gguf;
mod inspect;
#[allow(unsafe_code, reason = "the kernels: raw parts of slices, each checked")]
pub mod kernels;
mod linear;
mod loader;
pub mod ops;
mod packing;
mod rotation;
mod step;
mod template;
#[cfg(test)]
pub(crate) mod test_kit;
mod tokenizer;
mod unfused;
mod vocabulary;
mod weight;
mod weight_file;

pub use cache::KvCache;
pub use config::{Family, ModelConfig, Rope, RopeScaling};
pub use decoder::{Decoder, Pass, Weights};
pub(crate) use elements::{elements, with_elements};
pub use error::ModelError;
pub(crate) use files::hex;
pub use files::{ModelSource, base_hash, shards};
pub use gated::{Activation, Gated};
pub(crate) use gated::{gated_grads, gated_of};
pub use inspect::{ModelInfo, inspect, model_type};
pub use kernels::{Format, Mapping};
pub use linear::{Adapt, Added, Linear, Module, NoAdapter, Site, Term};
pub use loader::{LoadedModel, check, load, load_as, name_of};
pub(crate) use ops::forget;
pub use packing::{Packing, Span};
pub use template::ChatTemplate;
pub use tokenizer::Tokenizer;
pub(crate) use unfused::Fused;
pub use weight::{Matrix, Quantize, Weight, WeightId};
