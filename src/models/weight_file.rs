//! A safetensors file, mapped: its matrices stay where they are, and processes share their pages.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};

use super::files::ModelSource;
use super::kernels::{Format, Mapping};
use super::{Matrix, ModelError};

/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;
/// The largest header that is read; that of the crate safetensors.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open file whose header was checked against its length.
pub(super) struct WeightFile {
    path: PathBuf,
    mapping: Arc<Mapping>,
    metadata: Metadata,
    data_start: usize,
}

impl WeightFile {
    /// Opens a weight file of a model and checks its header.
    ///
    /// # Errors
    /// A file that is missing, unreadable, truncated or no safetensors file.
    pub fn open(source: &ModelSource, name: &str) -> Result<Self, ModelError> {
        let path = source.path(name);
        let mapping = Arc::new(source.map(name)?);
        let (metadata, data_start) = read_header(mapping.bytes(), &path)?;
        Ok(Self { path, mapping, metadata, data_start })
    }

    /// Returns the file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the bytes of all tensors.
    pub fn data_bytes(&self) -> u64 {
        self.metadata.data_len() as u64
    }

    /// Returns names and places of the tensors, in the order of their data.
    pub fn tensors(&self) -> Vec<(String, TensorInfo)> {
        let names = self.metadata.offset_keys().into_iter();
        names.filter_map(|name| Some((name.clone(), self.metadata.info(&name)?.clone()))).collect()
    }

    fn part(&self, info: &TensorInfo) -> Range<usize> {
        self.data_start + info.data_offsets.0..self.data_start + info.data_offsets.1
    }

    /// Reads one tensor, in its own type.
    ///
    /// # Errors
    /// No memory.
    pub fn read(&self, info: &TensorInfo) -> Result<Tensor, ModelError> {
        let data = self.mapping.bytes().get(self.part(info)).unwrap_or_default();
        let view = TensorView::new(info.dtype, info.shape.clone(), data)
            .map_err(|e| broken(&self.path, e))?;
        Ok(view.load(&Device::Cpu)?)
    }

    /// Returns one matrix of a float type as it lies in the file; nothing of it is read.
    pub fn matrix(&self, info: &TensorInfo) -> Result<Option<Matrix>, ModelError> {
        let format = match info.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::Bf16,
            _ => return Ok(None),
        };
        let &[rows, cols] = info.shape.as_slice() else { return Ok(None) };
        if rows == 0 || cols == 0 {
            return Ok(None);
        }
        let mapping = Arc::clone(&self.mapping);
        Ok(Some(Matrix::mapped(format, (rows, cols), mapping, self.part(info))?))
    }
}

/// Reads a header and checks it against the file; returns where the data begin.
fn read_header(bytes: &[u8], path: &Path) -> Result<(Metadata, usize), ModelError> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(broken(path, "it has no header"));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES.min(rest.len() as u64) {
        return Err(broken(path, format!("its header of {length} bytes is too long")));
    }
    let (header, data) = rest.split_at(length as usize);
    let metadata: Metadata = serde_json::from_slice(header).map_err(|e| broken(path, e))?;
    // Made anew, because that checks that the tensors lie behind each other and are as long as their shapes say.
    let tensors = metadata.offset_keys().into_iter();
    let tensors = tensors.filter_map(|name| Some((name.clone(), metadata.info(&name)?.clone())));
    let metadata = Metadata::new(None, tensors.collect()).map_err(|e| broken(path, e))?;
    if metadata.data_len() != data.len() {
        let problem =
            format!("{} bytes of data, the header names {}", data.len(), metadata.data_len());
        return Err(broken(path, problem));
    }
    Ok((metadata, LENGTH_BYTES + header.len()))
}

fn broken(path: &Path, problem: impl std::fmt::Display) -> ModelError {
    ModelError::invalid(
        path,
        format!("not a whole safetensors file: {problem}"),
        "download it again",
    )
}
