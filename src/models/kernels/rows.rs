//! The rows of a frozen matrix in the format in which they are kept.

use std::ops::Range;

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::{BlockQ4_0, BlockQ4K, BlockQ8_0};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::math;

/// A row-major matrix `[rows, cols]` of a kind that can be widened to f32 piece by piece.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// As computed with.
    F32(&'a [f32]),
    /// The upper half of an f32.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// Blocks of 32 weights of 8 bits.
    Q8_0(&'a [BlockQ8_0]),
    /// Blocks of 32 weights of 4 bits.
    Q4_0(&'a [BlockQ4_0]),
    /// Blocks of 256 weights of 4 bits.
    Q4K(&'a [BlockQ4K]),
}

impl Rows<'_> {
    /// Returns how many columns belong together: pieces of rows begin and end at multiples of it.
    pub(super) fn block(&self) -> usize {
        match self {
            Self::F32(_) | Self::Bf16(_) | Self::F16(_) => 1,
            Self::Q8_0(_) => BlockQ8_0::BLCK_SIZE,
            Self::Q4_0(_) => BlockQ4_0::BLCK_SIZE,
            Self::Q4K(_) => BlockQ4K::BLCK_SIZE,
        }
    }

    /// Writes the columns `cols` of the rows `rows` to `out`, row by row; a whole row has `width` elements.
    #[inline(always)]
    pub(super) fn widen(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        width: usize,
        out: &mut [f32],
    ) {
        let piece = |row: usize| row * width + cols.start..row * width + cols.end;
        for (row, out) in rows.zip(out.chunks_mut(cols.len())) {
            match self {
                Self::F32(data) => out.copy_from_slice(&data[piece(row)]),
                Self::Bf16(data) => widen_bf16(&data[piece(row)], out),
                Self::F16(data) => data[piece(row)].convert_to_f32_slice(out),
                Self::Q8_0(data) => widen_blocks(data, piece(row), out),
                Self::Q4_0(data) => widen_blocks(data, piece(row), out),
                Self::Q4K(data) => widen_blocks(data, piece(row), out),
            }
        }
    }

    /// Returns the scalar product of a row with `x`, both of `x.len()` elements.
    #[inline(always)]
    pub(super) fn dot(&self, row: usize, x: &[f32], buffer: &mut [f32]) -> f32 {
        let piece = row * x.len()..(row + 1) * x.len();
        match self {
            Self::F32(data) => math::dot(&data[piece], x),
            Self::Bf16(data) => math::dot_bf16(&data[piece], x),
            _ => {
                let buffer = &mut buffer[..x.len()];
                self.widen(row..row + 1, 0..x.len(), x.len(), buffer);
                math::dot(buffer, x)
            }
        }
    }
}

/// A bf16 is the upper half of an f32: a shift widens it.
#[inline(always)]
fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

/// Widens the blocks that hold the elements of a range.
fn widen_blocks<B: GgmlType>(from: &[B], piece: Range<usize>, to: &mut [f32]) {
    B::to_float(&from[piece.start / B::BLCK_SIZE..piece.end / B::BLCK_SIZE], to);
}
