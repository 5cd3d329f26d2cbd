//! Stand-ins for types of `engine`, `lora` and `eval` until those land; to be deleted within the hour. Use them through
//! `messages::inference::{Sampling, FinishReason}`, which will re-export the real ones with the same fields.
#![allow(missing_docs)]

#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    pub temperature: f64,
    pub top_k: usize,
    pub top_p: f64,
    pub min_p: f64,
    pub repetition_penalty: f32,
    pub max_tokens: usize,
    pub seed: u64,
    pub stop: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    Length,
    Cancelled,
}

#[derive(Clone, Default)]
pub struct AdapterSet;
#[derive(Debug)]
pub struct GateReport;
#[derive(Debug)]
pub struct Measurements;
#[derive(Debug)]
pub struct Promotion;
