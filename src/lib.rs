//! shammah: a local language-model assistant that learns from its user.

pub mod domain;
pub mod messages;
pub mod worker;
