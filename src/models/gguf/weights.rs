//! The weights of a GGUF file, brought to where the decoder asks for them: mapped, as they lie in the file.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::config::architecture;
use super::names::{Place, place, unpaired_rows};
use super::{GgufFile, TensorInfo};
use crate::models::{Decoder, Mapping, Matrix, ModelError, Tokenizer, Weight, ops};

/// What becomes of rows that are stored in pairs of neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// They are copied into halves, as the decoder turns them.
    AsNeeded,
    /// Nothing is read: for a model that is to be checked and not to compute.
    AsTheyLie,
}

/// Loads a file's model; returns the number of parameters as well.
///
/// # Errors
/// As [`GgufFile::open`]; tensors that are missing, surplus or of another shape than the metadata say.
pub fn load(
    path: &Path,
    device: &Device,
    rows: Rows,
) -> Result<(Decoder, Tokenizer, usize), ModelError> {
    let file = GgufFile::open(path)?;
    let config = file.config()?;
    let tokenizer = file.tokenizer()?;
    if tokenizer.vocab_size() > config.vocab_size {
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
        return Err(file.invalid(format!("{tokens} tokens, token_embd.weight has {rows} rows")));
    }
    let architecture = architecture(&file.header, path)?;
    let mapping = Arc::new(Mapping::of_file(fs_err::File::open(path)?.file())?);
    let mut unused: BTreeSet<&str> = file.header.tensors.keys().map(String::as_str).collect();
    for part_of_the_config in architecture.divisors {
        unused.remove(part_of_the_config);
    }
    let mut parameters = 0;
    let shape = config.clone();
    let decoder = Decoder::new(config, device, &mut |name, dims| {
        let place = place(name, architecture, &shape)
            .ok_or_else(|| file.invalid(format!("GGUF has no tensor for {name}")))?;
        let info = file.tensor(&place, dims)?;
        unused.remove(info.name.as_str());
        parameters += info.elements() as usize;
        let paired_heads = place.paired_heads.filter(|_| rows == Rows::AsNeeded);
        Ok(weight(&mapping, info, paired_heads, device)?)
    })?;
    match unused.first() {
        // A weight that the decoder has no use for would change what the model computes.
        Some(name) => Err(file.invalid(format!("tensor {name} has no place in the model"))),
        None => Ok((decoder, tokenizer, parameters)),
    }
}

impl GgufFile {
    fn tensor(&self, place: &Place, dims: &[usize]) -> Result<&TensorInfo, ModelError> {
        let info = self.header.tensors.get(&place.name);
        let info = info.ok_or_else(|| self.invalid(format!("tensor {} is missing", place.name)))?;
        if info.shape != dims {
            let (name, shape) = (&info.name, &info.shape);
            let problem = format!("tensor {name} has shape {shape:?}, the metadata say {dims:?}");
            return Err(self.invalid(problem));
        }
        Ok(info)
    }
}

/// Takes a tensor; a matrix stays as it lies in the file, but for rows that are stored in pairs, and on other devices than
/// the CPU.
fn weight(
    mapping: &Arc<Mapping>,
    info: &TensorInfo,
    paired_heads: Option<usize>,
    device: &Device,
) -> candle_core::Result<Weight> {
    let part = info.offset as usize..(info.offset + info.bytes) as usize;
    let (rows, cols) = match *info.shape.as_slice() {
        [rows, cols] => (rows, cols),
        // A vector is a column: so are the biases of rows that are stored in pairs.
        _ => (info.elements() as usize, 1),
    };
    let matrix = match paired_heads {
        None => Matrix::mapped(info.kind, (rows, cols), Arc::clone(mapping), part)?,
        Some(heads) => {
            let bytes = mapping.bytes().get(part).unwrap_or_default();
            let row = bytes.len() / rows.max(1);
            let sorted = unpaired_rows(rows, heads).flat_map(|at| &bytes[at * row..][..row]);
            Matrix::new(info.kind, (rows, cols), sorted.copied().collect())?
        }
    };
    let weight = Weight::from(matrix);
    if info.shape.len() == 2 && ops::fused(device) {
        return Ok(weight);
    }
    let tensor = weight.into_tensor()?.reshape(info.shape.as_slice())?;
    Ok(Weight::Dense(tensor.to_device(device)?))
}
