//! Tensors by which files divide rotary frequencies: numbers of the configuration that lie among the weights.

use std::io::{Read, Seek, SeekFrom};

use super::reader::Header;
use crate::models::Format;

/// Llama 3.1 and later.
pub(super) const OF_LLAMA: [&str; 1] = ["rope_freqs.weight"];
/// Phi-3: those within the context before stretching, and those beyond it, where no context goes.
pub(super) const OF_PHI3: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];
/// Frequencies that a head may have; real ones have 128 at most.
const MAX_DIVISORS: u64 = 1 << 12;

/// Reads the divisors of a name, if the file has them; `input` is the whole file.
pub(super) fn read(
    input: &mut (impl Read + Seek),
    header: &Header,
    name: &str,
) -> Result<Option<Vec<f32>>, String> {
    let Some(info) = header.tensors.get(name) else { return Ok(None) };
    let (count, format) = (info.elements(), info.kind);
    if info.shape.len() != 1 || format != Format::F32 || count > MAX_DIVISORS {
        let shape = &info.shape;
        return Err(format!("tensor {name} is {shape:?} of {format}, not some numbers in f32"));
    }
    let mut bytes = vec![0; info.bytes as usize];
    let read = input.seek(SeekFrom::Start(info.offset)).and_then(|_| input.read_exact(&mut bytes));
    read.map_err(|e| format!("tensor {name} cannot be read: {e}"))?;
    let (numbers, _) = bytes.as_chunks();
    let divisors: Vec<f32> = numbers.iter().map(|four| f32::from_le_bytes(*four)).collect();
    match divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
        Some(wrong) => Err(format!("tensor {name} holds {wrong}, not positive numbers alone")),
        None => Ok(Some(divisors)),
    }
}
