//! shammah: a local language-model assistant that learns from its user.

pub mod config;
pub mod domain;
pub mod engine;
pub mod messages;
pub mod text;
pub mod worker;
