//! How much memory a tokenizer of Qwen's size takes while it is loaded. Alone in its process, whose peak is measured.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may fall"
)]

mod reference;

use std::time::Instant;

use reference::shared;
use shammah::models::Tokenizer;

/// Peak of this process's resident memory in MiB, since `reset`.
fn peak() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn qwens_tokenizer_loads_in_less_than_120_mib() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("tokenizers/qwen2.5");
    let before = peak();
    let start = Instant::now();
    let json = fs_err::read(folder.join("tokenizer.json")).unwrap();
    let config = fs_err::read(folder.join("tokenizer_config.json")).unwrap();
    let tokenizer = Tokenizer::new(&json, Some(&config), &[], &folder).unwrap();
    let (took, grown) = (start.elapsed(), peak() - before);
    println!("{took:?}, {grown} MiB");
    assert_eq!(tokenizer.vocab_size(), 151_665);
    assert!(grown < 120, "{grown} MiB");
}
