//! The rows of a frozen matrix in the format in which they are kept.

use std::ops::Range;

use half::{bf16, f16};
use zerocopy::{FromBytes, IntoBytes};

use super::Format;

/// A row-major matrix `[rows, cols]` that can be widened to f32 piece by piece.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    format: Format,
    bytes: &'a [u8],
}

impl<'a> Rows<'a> {
    /// Takes bytes as rows of a format.
    pub fn new(format: Format, bytes: &'a [u8]) -> Self {
        Self { format, bytes }
    }

    /// Returns the bytes of some rows of `cols` columns.
    ///
    /// # Panics
    /// If there are fewer rows.
    pub(super) fn bytes_of(&self, rows: Range<usize>, cols: usize) -> &'a [u8] {
        &self.bytes[self.format.bytes(rows.start * cols)..self.format.bytes(rows.end * cols)]
    }

    /// Returns all bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns the numbers, if they are what is computed with.
    pub(super) fn as_f32(&self) -> Option<&'a [f32]> {
        match self.format {
            Format::F32 => <[f32]>::ref_from_bytes(self.bytes).ok(),
            _ => None,
        }
    }

    /// Writes the columns `cols` of the rows `rows` to `out`, row by row; a whole row has `width` elements. Pieces
    /// begin and end at blocks.
    #[inline(always)]
    pub(super) fn widen(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
        width: usize,
        out: &mut [f32],
    ) {
        for (row, out) in rows.zip(out.chunks_mut(cols.len())) {
            let row = self.bytes_of(row..row + 1, width);
            let piece = &row[self.format.bytes(cols.start)..self.format.bytes(cols.end)];
            self.format.widen(piece, out);
        }
    }
}

impl<'a> From<&'a [f32]> for Rows<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self::new(Format::F32, numbers.as_bytes())
    }
}

impl<'a> From<&'a [f16]> for Rows<'a> {
    fn from(numbers: &'a [f16]) -> Self {
        Self::new(Format::F16, numbers.as_bytes())
    }
}

impl<'a> From<&'a [bf16]> for Rows<'a> {
    fn from(numbers: &'a [bf16]) -> Self {
        Self::new(Format::Bf16, numbers.as_bytes())
    }
}
