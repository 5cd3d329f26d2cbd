//! The rows of a frozen matrix in the format in which they are kept.

use std::ops::Range;

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
}

impl Rows<'_> {
    /// Writes the columns `cols` of the rows `rows` to `out`, row by row; a whole row has `width` elements.
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
            Self::F16(data) => {
                data[piece].convert_to_f32_slice(&mut buffer[..x.len()]);
                math::dot(&buffer[..x.len()], x)
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
