//! A safetensors file, read tensor by tensor: a model is never in memory twice.

use std::borrow::Cow;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo, TensorView};

use super::ModelError;
use super::files::ModelSource;

/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;
/// The largest header that is read; that of the crate safetensors.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Where the bytes come from.
enum Bytes {
    Memory(Cow<'static, [u8]>),
    File(fs_err::File),
}

/// An open file whose header was checked against its length.
pub(super) struct WeightFile {
    path: PathBuf,
    bytes: Bytes,
    metadata: Metadata,
    data_start: u64,
}

impl WeightFile {
    /// Opens a weight file of a model and checks its header.
    ///
    /// # Errors
    /// A file that is missing, unreadable, truncated or no safetensors file.
    pub fn open(source: &ModelSource, name: &str) -> Result<Self, ModelError> {
        let path = source.path(name);
        let (bytes, size) = match source {
            ModelSource::Builtin => {
                let bytes = source.read(name)?;
                let size = bytes.len() as u64;
                (Bytes::Memory(bytes.into()), size)
            }
            _ => {
                let file = fs_err::File::open(&path)?;
                let size = file.metadata()?.len();
                (Bytes::File(file), size)
            }
        };
        let empty = Metadata::new(None, Vec::new()).map_err(|e| broken(&path, e))?;
        let mut file = Self { path, bytes, metadata: empty, data_start: 0 };
        file.read_header(size)?;
        Ok(file)
    }

    fn read_header(&mut self, size: u64) -> Result<(), ModelError> {
        if size < LENGTH_BYTES {
            return Err(broken(&self.path, "it has no header"));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        self.read_at(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES.min(size - LENGTH_BYTES) {
            return Err(broken(&self.path, format!("its header of {length} bytes is too long")));
        }
        let mut header = vec![0; length as usize];
        self.read_at(LENGTH_BYTES, &mut header)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| broken(&self.path, e))?;
        // Made anew, because that checks that the tensors lie behind each other and are as long as their shapes say.
        let tensors = metadata.offset_keys().into_iter();
        let tensors =
            tensors.filter_map(|name| Some((name.clone(), metadata.info(&name)?.clone())));
        let metadata = Metadata::new(None, tensors.collect()).map_err(|e| broken(&self.path, e))?;
        self.data_start = LENGTH_BYTES + length;
        let data = size - self.data_start;
        if metadata.data_len() as u64 != data {
            let problem = format!("{data} bytes of data, the header names {}", metadata.data_len());
            return Err(broken(&self.path, problem));
        }
        self.metadata = metadata;
        Ok(())
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

    /// Reads one tensor, in its own type.
    ///
    /// # Errors
    /// A file that is shorter than it was.
    pub fn read(&mut self, info: &TensorInfo) -> Result<Tensor, ModelError> {
        let (from, to) = info.data_offsets;
        let mut data = vec![0; to - from];
        self.read_at(self.data_start + from as u64, &mut data)?;
        let view = TensorView::new(info.dtype, info.shape.clone(), &data)
            .map_err(|e| broken(&self.path, e))?;
        Ok(view.load(&Device::Cpu)?)
    }

    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<(), ModelError> {
        match &mut self.bytes {
            Bytes::Memory(bytes) => {
                let piece = usize::try_from(at).ok().and_then(|at| bytes.get(at..at + out.len()));
                out.copy_from_slice(piece.ok_or_else(|| broken(&self.path, "it ends too early"))?);
            }
            Bytes::File(file) => {
                file.seek(SeekFrom::Start(at))?;
                file.read_exact(out)?;
            }
        }
        Ok(())
    }
}

fn broken(path: &Path, problem: impl std::fmt::Display) -> ModelError {
    ModelError::invalid(
        path,
        format!("not a whole safetensors file: {problem}"),
        "download it again",
    )
}
