//! Matrices kept in blocks of a few bits, as GGUF files hold them; widened piece by piece where they are used.

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ4K, BlockQ8_0};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::kernels::Rows;

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

/// A quantised matrix `[rows, cols]`.
#[derive(Debug)]
pub struct QuantisedMatrix {
    rows: usize,
    cols: usize,
    blocks: Blocks,
}

#[derive(Debug)]
enum Blocks {
    Q8_0(Vec<BlockQ8_0>),
    Q4_0(Vec<BlockQ4_0>),
    Q4K(Vec<BlockQ4K>),
}

impl QuantisedMatrix {
    /// Quantises a matrix on the CPU, of any float type.
    ///
    /// # Errors
    /// A width that is no multiple of 32.
    pub fn new(matrix: &Tensor, format: Quantize) -> Result<Self> {
        let (rows, cols) = matrix.dims2()?;
        if !cols.is_multiple_of(BlockQ8_0::BLCK_SIZE) {
            bail!("rows of {cols} weights are no multiple of {}", BlockQ8_0::BLCK_SIZE);
        }
        let format = match format {
            Quantize::Q4K if !cols.is_multiple_of(BlockQ4K::BLCK_SIZE) => Quantize::Q8_0,
            format => format,
        };
        let blocks = match format {
            Quantize::Q8_0 => Blocks::Q8_0(blocks_of(matrix)?),
            Quantize::Q4_0 => Blocks::Q4_0(blocks_of(matrix)?),
            Quantize::Q4K => Blocks::Q4K(blocks_of(matrix)?),
        };
        Ok(Self { rows, cols, blocks })
    }

    /// Returns rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Returns the name of the format, as GGUF files spell it.
    pub fn format(&self) -> &'static str {
        match self.blocks {
            Blocks::Q8_0(_) => "q8_0",
            Blocks::Q4_0(_) => "q4_0",
            Blocks::Q4K(_) => "q4_k",
        }
    }

    /// Returns the bytes of all blocks.
    pub fn bytes(&self) -> u64 {
        let bytes = match &self.blocks {
            Blocks::Q8_0(blocks) => size_of_val(blocks.as_slice()),
            Blocks::Q4_0(blocks) => size_of_val(blocks.as_slice()),
            Blocks::Q4K(blocks) => size_of_val(blocks.as_slice()),
        };
        bytes as u64
    }

    pub(super) fn as_rows(&self) -> Rows<'_> {
        match &self.blocks {
            Blocks::Q8_0(blocks) => Rows::Q8_0(blocks),
            Blocks::Q4_0(blocks) => Rows::Q4_0(blocks),
            Blocks::Q4K(blocks) => Rows::Q4K(blocks),
        }
    }
}

fn blocks_of<B: GgmlType>(matrix: &Tensor) -> Result<Vec<B>> {
    let (rows, cols) = matrix.dims2()?;
    let mut blocks = vec![B::zeros(); rows * cols / B::BLCK_SIZE];
    let per_row = cols / B::BLCK_SIZE;
    for from in (0..rows).step_by(ROWS_AT_A_TIME) {
        let part = matrix.narrow(0, from, ROWS_AT_A_TIME.min(rows - from))?;
        let wide = part.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let target = blocks[from * per_row..].par_chunks_mut(per_row);
        wide.par_chunks(cols).zip(target).for_each(|(row, blocks)| B::from_float(row, blocks));
    }
    Ok(blocks)
}
