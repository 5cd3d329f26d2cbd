//! The weights of a GGUF file, brought to where the decoder asks for them.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::quantized::{GgmlDType, ggml_file};
use candle_core::{DType, Device, Tensor};

use super::config::architecture;
use super::names::{Place, place, unpaired_rows};
use super::{GgufFile, TensorInfo, TensorType};
use crate::models::{Decoder, ModelError, Tokenizer};

/// Loads a file's model; returns the number of parameters as well.
///
/// # Errors
/// As [`GgufFile::open`]; tensors that are missing, surplus or of another shape than the metadata say.
pub fn load(path: &Path, device: &Device) -> Result<(Decoder, Tokenizer, usize), ModelError> {
    let file = GgufFile::open(path)?;
    let config = file.config()?;
    let tokenizer = file.tokenizer()?;
    if tokenizer.vocab_size() > config.vocab_size {
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
        return Err(file.invalid(format!("{tokens} tokens, token_embd.weight has {rows} rows")));
    }
    let architecture = architecture(&file.header, path)?;
    let mut data = fs_err::File::open(path)?;
    let mut unused: BTreeSet<&str> = file.header.tensors.keys().map(String::as_str).collect();
    let mut parameters = 0;
    let shape = config.clone();
    let decoder = Decoder::new(config, device, &mut |name, dims| {
        let place = place(name, architecture, &shape)
            .ok_or_else(|| file.invalid(format!("GGUF has no tensor for {name}")))?;
        let info = file.tensor(&place, dims)?;
        unused.remove(info.name.as_str());
        parameters += info.elements() as usize;
        read(&mut data, info, &place, dims, device)
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

fn read(
    data: &mut (impl Read + Seek),
    info: &TensorInfo,
    place: &Place,
    dims: &[usize],
    device: &Device,
) -> Result<Tensor, ModelError> {
    let mut bytes = vec![0; info.bytes as usize];
    data.seek(SeekFrom::Start(info.offset))?;
    data.read_exact(&mut bytes)?;
    if let Some(heads) = place.paired_heads {
        let row = bytes.len() / dims[0];
        let rows = unpaired_rows(dims[0], heads);
        bytes = rows.flat_map(|at| &bytes[at * row..(at + 1) * row]).copied().collect();
    }
    let dense = |dtype| Tensor::from_raw_buffer(&bytes, dtype, dims, device);
    let tensor = match info.kind {
        TensorType::F32 => dense(DType::F32)?,
        TensorType::F16 => dense(DType::F16)?,
        TensorType::Bf16 => dense(DType::BF16)?,
        TensorType::Q8_0 => widened(&bytes, GgmlDType::Q8_0, dims, device)?,
        TensorType::Q4_0 => widened(&bytes, GgmlDType::Q4_0, dims, device)?,
        TensorType::Q5_0 => widened(&bytes, GgmlDType::Q5_0, dims, device)?,
        TensorType::Q4K => widened(&bytes, GgmlDType::Q4K, dims, device)?,
        TensorType::Q5K => widened(&bytes, GgmlDType::Q5K, dims, device)?,
        TensorType::Q6K => widened(&bytes, GgmlDType::Q6K, dims, device)?,
    };
    Ok(if dims.len() == 1 { tensor.to_dtype(DType::F32)? } else { tensor })
}

fn widened(
    bytes: &[u8],
    kind: GgmlDType,
    dims: &[usize],
    device: &Device,
) -> candle_core::Result<Tensor> {
    ggml_file::qtensor_from_ggml(kind, bytes, dims.to_vec(), &Device::Cpu)?
        .dequantize(&Device::Cpu)?
        .to_device(device)
}
