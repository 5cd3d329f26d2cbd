//! The weights of a linear layer: a tensor, or a matrix kept as its file has it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, TensorId, bail};
use parking_lot::RwLockReadGuard;
use serde::{Deserialize, Serialize};

use super::kernels::{Format, Mapping, Rows, product};

/// Rows that are quantised at a time, so that the f32 copy stays small.
const ROWS_AT_A_TIME: usize = 256;

/// The format that matrices are brought to while a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quantize {
    /// 8 bits and a scale for each 32 weights: 8.5 bits a weight.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits and a scale for each 32 weights: 4.5 bits a weight.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 4 bits, with scales and minima for each 32 of 256 weights: 4.5 bits a weight. Rows that are no multiple of 256
    /// take `q8_0`.
    #[serde(rename = "q4_k")]
    Q4K,
}

impl Quantize {
    /// Returns the format for rows of so many weights.
    ///
    /// # Errors
    /// Rows that do not divide into blocks.
    pub(super) fn format(self, cols: usize) -> Result<Format> {
        let format = match self {
            Self::Q4_0 => Format::Q4_0,
            Self::Q4K if cols.is_multiple_of(Format::Q4K.block()) => Format::Q4K,
            Self::Q8_0 | Self::Q4K => Format::Q8_0,
        };
        if !cols.is_multiple_of(format.block()) {
            bail!("rows of {cols} weights are no multiple of {}", format.block());
        }
        Ok(format)
    }
}

fn ggml(format: Format) -> GgmlDType {
    match format {
        Format::F32 => GgmlDType::F32,
        Format::F16 => GgmlDType::F16,
        Format::Bf16 => GgmlDType::BF16,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q5_0 => GgmlDType::Q5_0,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q5K => GgmlDType::Q5K,
        Format::Q6K => GgmlDType::Q6K,
    }
}

/// Where the bytes of a matrix are.
#[derive(Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Mapped(Arc<Mapping>, Range<usize>),
}

/// A frozen matrix `[rows, cols]` in the format of its file, on the CPU.
#[derive(Debug)]
pub struct Matrix {
    id: u64,
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Bytes,
}

impl Matrix {
    /// Takes bytes as a matrix.
    ///
    /// # Errors
    /// A length that does not fit.
    pub fn new(format: Format, (rows, cols): (usize, usize), bytes: Vec<u8>) -> Result<Self> {
        let length = bytes.len();
        Self::checked(format, (rows, cols), Bytes::Owned(bytes), length)
    }

    /// Takes part of a mapped file as a matrix, without reading it.
    ///
    /// # Errors
    /// A part that is not in the file, or whose length does not fit.
    pub fn mapped(
        format: Format,
        (rows, cols): (usize, usize),
        mapping: Arc<Mapping>,
        part: Range<usize>,
    ) -> Result<Self> {
        let Some(length) = mapping.bytes().get(part.clone()).map(<[u8]>::len) else {
            bail!("bytes {part:?} of a file of {}", mapping.bytes().len());
        };
        Self::checked(format, (rows, cols), Bytes::Mapped(mapping, part), length)
    }

    fn checked(
        format: Format,
        (rows, cols): (usize, usize),
        bytes: Bytes,
        length: usize,
    ) -> Result<Self> {
        // Ids are never used again, unlike addresses.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let whole = cols > 0 && cols.is_multiple_of(format.block());
        let expected = rows.checked_mul(cols).map(|weights| format.bytes(weights));
        if !whole || expected != Some(length) {
            bail!("{length} bytes are no [{rows}, {cols}] of {}", format.name());
        }
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), format, rows, cols, bytes })
    }

    /// Returns some of its rows; a mapped matrix shares its pages with them.
    ///
    /// # Errors
    /// Rows beyond the last.
    pub fn part(&self, rows: Range<usize>) -> Result<Self> {
        if rows.start > rows.end || rows.end > self.rows {
            bail!("rows {rows:?} of {}", self.rows);
        }
        let (from, to) = (rows.start * self.cols, rows.end * self.cols);
        let part = self.format.bytes(from)..self.format.bytes(to);
        let shape = (rows.len(), self.cols);
        match &self.bytes {
            Bytes::Owned(bytes) => Self::new(self.format, shape, bytes[part].to_vec()),
            Bytes::Mapped(mapping, whole) => {
                let part = whole.start + part.start..whole.start + part.end;
                Self::mapped(self.format, shape, Arc::clone(mapping), part)
            }
        }
    }

    /// Returns rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Returns the format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns all bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped(mapping, part) => &mapping.bytes()[part.clone()],
        }
    }

    pub(super) fn as_rows(&self) -> Rows<'_> {
        Rows::new(self.format, self.bytes())
    }

    /// Returns some rows in f32, `[rows, cols]`.
    fn wide_rows(&self, rows: Range<usize>) -> Result<Tensor> {
        if rows.end > self.rows {
            bail!("row {} of {}", rows.end, self.rows);
        }
        let shape = (rows.len(), self.cols);
        let mut wide = vec![0f32; rows.len() * self.cols];
        product::widen(self.as_rows(), rows, self.cols, &mut wide);
        Tensor::from_vec(wide, shape, &Device::Cpu)
    }
}

/// The weights of a layer `[out, in]`.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32, f16 or bf16, on any device; a variable where they are trained.
    Dense(Tensor),
    /// As they lie in their file, or quantised.
    Kept(Arc<Matrix>),
}

impl From<Tensor> for Weight {
    fn from(weight: Tensor) -> Self {
        Self::Dense(weight)
    }
}

impl From<Matrix> for Weight {
    fn from(weight: Matrix) -> Self {
        Self::Kept(Arc::new(weight))
    }
}

/// Tells weights apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightId(Identity);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    Tensor(TensorId),
    Matrix(u64),
}

impl Weight {
    /// Returns the tensor that they are; a matrix as its file has it is widened.
    ///
    /// # Errors
    /// No memory.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => Ok(weight),
            Self::Kept(matrix) => matrix.wide_rows(0..matrix.rows),
        }
    }

    /// Returns `out` and `in`.
    ///
    /// # Errors
    /// Weights that are no matrix.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(weight) => weight.dims2(),
            Self::Kept(matrix) => Ok(matrix.dims()),
        }
    }

    /// Returns the lengths of the dimensions.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Dense(weight) => weight.dims().to_vec(),
            Self::Kept(matrix) => vec![matrix.rows, matrix.cols],
        }
    }

    /// Returns what tells these weights from others.
    pub fn id(&self) -> WeightId {
        WeightId(match self {
            Self::Dense(weight) => Identity::Tensor(weight.id()),
            Self::Kept(matrix) => Identity::Matrix(matrix.id),
        })
    }

    /// Returns the name of the format.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Dense(weight) => weight.dtype().as_str(),
            Self::Kept(matrix) => matrix.format().name(),
        }
    }

    /// Tells whether they are kept in blocks of a few bits.
    pub(super) fn is_of_blocks(&self) -> bool {
        matches!(self, Self::Kept(matrix) if matrix.format().block() > 1)
    }

    /// Returns the bytes that they take.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Dense(weight) => (weight.elem_count() * weight.dtype().size_in_bytes()) as u64,
            Self::Kept(matrix) => matrix.bytes().len() as u64,
        }
    }

    /// Tells whether they are a variable.
    pub fn is_trained(&self) -> bool {
        matches!(self, Self::Dense(weight) if weight.track_op())
    }

    /// Returns some of the rows.
    ///
    /// # Errors
    /// Rows beyond the last.
    pub fn part(&self, rows: Range<usize>) -> Result<Self> {
        Ok(match self {
            Self::Dense(weight) => weight.narrow(0, rows.start, rows.len())?.contiguous()?.into(),
            Self::Kept(matrix) => matrix.part(rows)?.into(),
        })
    }

    /// Returns some rows in f32, `[rows, in]`, without a gradient.
    ///
    /// # Errors
    /// Rows beyond the last.
    pub fn wide_rows(&self, rows: Range<usize>) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => {
                weight.detach().narrow(0, rows.start, rows.len())?.to_dtype(DType::F32)
            }
            Self::Kept(matrix) => matrix.wide_rows(rows),
        }
    }

    /// Returns the rows of the given indices in f32, `[indices, in]`: what an embedding does.
    ///
    /// # Errors
    /// An index beyond the rows.
    pub fn select(&self, indices: &Tensor) -> Result<Tensor> {
        let matrix = match self {
            Self::Dense(weight) => return weight.index_select(indices, 0)?.to_dtype(DType::F32),
            Self::Kept(matrix) => matrix,
        };
        let indices = indices.to_vec1::<u32>()?;
        let cols = matrix.cols;
        let mut wide = vec![0f32; indices.len() * cols];
        for (&index, wide) in indices.iter().zip(wide.chunks_mut(cols)) {
            let row = index as usize;
            if row >= matrix.rows {
                bail!("id {row} is beyond the {} rows of the embedding", matrix.rows);
            }
            product::widen(matrix.as_rows(), row..row + 1, cols, wide);
        }
        Tensor::from_vec(wide, (indices.len(), cols), &Device::Cpu)
    }

    /// Brings floats on the CPU to a format of a few bits; what is in one already stays as it is.
    ///
    /// # Errors
    /// Rows that do not divide into blocks.
    pub fn quantised(&self, format: Quantize) -> Result<Self> {
        if matches!(self, Self::Kept(matrix) if matrix.format.block() > 1) {
            return Ok(self.clone());
        }
        let (rows, cols) = self.dims()?;
        let format = format.format(cols)?;
        let mut bytes = Vec::with_capacity(format.bytes(rows * cols));
        for from in (0..rows).step_by(ROWS_AT_A_TIME) {
            let wide = self.wide_rows(from..(from + ROWS_AT_A_TIME).min(rows))?;
            // Made anew, because candle quantises the whole storage that a tensor is part of.
            let wide = wide.flatten_all()?.to_vec1::<f32>()?;
            let wide = Tensor::from_vec(wide, ((), cols), &Device::Cpu)?;
            bytes.extend_from_slice(&QTensor::quantize(&wide, ggml(format))?.data()?);
        }
        Ok(Matrix::new(format, (rows, cols), bytes)?.into())
    }

    /// Calls `f` with the weights as they are kept.
    pub(crate) fn with_rows<R>(&self, f: impl FnOnce(Rows<'_>) -> R) -> Result<R> {
        let locked = self.lock()?;
        Ok(f(locked.rows()))
    }

    /// Holds the weights for reading.
    pub(super) fn lock(&self) -> Result<Locked<'_>> {
        let weight = match self {
            Self::Dense(weight) => weight,
            Self::Kept(matrix) => return Ok(Locked::Matrix(matrix)),
        };
        let (rows, cols) = weight.dims2()?;
        let (storage, layout) = weight.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("weights are not contiguous");
        };
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_) | CpuStorage::BF16(_) | CpuStorage::F16(_)) => {}
            Storage::Cpu(_) => bail!("weights are neither f32 nor f16 nor bf16"),
            _ => bail!("weights are not on the CPU"),
        }
        Ok(Locked::Tensor { storage, part: start..end, dims: (rows, cols) })
    }
}

/// Weights on the CPU that are held for reading.
pub(super) enum Locked<'a> {
    Matrix(&'a Matrix),
    Tensor { storage: RwLockReadGuard<'a, Storage>, part: Range<usize>, dims: (usize, usize) },
}

impl Locked<'_> {
    pub fn dims(&self) -> (usize, usize) {
        match self {
            Self::Matrix(matrix) => matrix.dims(),
            Self::Tensor { dims, .. } => *dims,
        }
    }

    pub fn rows(&self) -> Rows<'_> {
        match self {
            Self::Matrix(matrix) => matrix.as_rows(),
            Self::Tensor { storage, part, .. } => match &**storage {
                Storage::Cpu(CpuStorage::F32(data)) => Rows::from(&data[part.clone()]),
                Storage::Cpu(CpuStorage::BF16(data)) => Rows::from(&data[part.clone()]),
                Storage::Cpu(CpuStorage::F16(data)) => Rows::from(&data[part.clone()]),
                // Refused before it was locked.
                _ => Rows::from(&[] as &[f32]),
            },
        }
    }
}
