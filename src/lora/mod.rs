//! LoRA: adapters, their training, and the losses and optimiser of it.

pub mod loss;
mod optimizer;

pub use optimizer::{AdamW, AdamWConfig, Moments, clip_gradients, warmup_cosine};
