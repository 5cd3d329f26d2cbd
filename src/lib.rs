//! shammah: a local language-model assistant that learns from its user.

// Tests may fail loudly; the program may not. Printing is for the command line alone.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)
)]

pub mod actors;
pub mod app;
pub mod cli;
pub mod config;
mod crash;
pub mod device;
pub mod domain;
pub mod engine;
pub mod eval;
pub mod hub;
pub mod logging;
pub mod lora;
pub mod messages;
pub mod models;
pub mod plan;
pub mod plot;
pub mod secrets;
pub mod store;
pub mod text;
pub mod worker;
