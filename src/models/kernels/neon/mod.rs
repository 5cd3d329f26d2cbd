//! Scalar products of rows with activations in NEON, which belongs to every aarch64 machine that runs programs.
//!
//! Weights of a few bits become signed bytes in their own order, then integers of 16 bits; their products with the
//! activations' integers are added in 32 bits, which a block of 32 cannot overflow: 32 · 128 · 32767 < 2³¹. What is loaded
//! is always a whole array, so that none of the loads and stores, which alone are unsafe, goes beyond its slice.

mod blocks;
mod dense;
mod super_blocks;

use std::arch::aarch64::*;

use blocks::{blocks, q4_0, q5_0, q8_0};
use dense::{dense, load_bf16, load_f16, load_f32};
use super_blocks::{q4_k, q5_k, q6_k};

use super::Format;
use super::dot::{Activations, BLOCK};

/// Thirty-two weights of one byte.
type Weights = [int8x16_t; 2];

/// That the machine has these instructions, which the compiler's target says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    /// Returns it always: the compiler takes these instructions for granted.
    pub fn detect() -> Option<Self> {
        Some(Self(()))
    }

    /// Writes the products of consecutive rows with the activations.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn dots(self, format: Format, rows: &[u8], x: &Activations<'_>, out: &mut [f32]) {
        let row_bytes = format.bytes(x.wide.len());
        assert_eq!(rows.len(), row_bytes * out.len(), "rows do not fit the activations");
        assert!(x.wide.len().is_multiple_of(format.block()), "a row ends within a block");
        if format.block() > 1 {
            let blocks = x.wide.len() / BLOCK;
            let lengths = [x.ints.len() / BLOCK, x.units.len(), x.sums.len()];
            assert_eq!(lengths, [blocks; 3], "activations are not prepared");
        }
        // SAFETY: the machine has the instructions, or there were no `self`.
        unsafe { products_of(format, rows, row_bytes, x, out) }
    }
}

/// Writes the products; the lengths fit.
#[target_feature(enable = "neon")]
fn products_of(
    format: Format,
    rows: &[u8],
    row_bytes: usize,
    x: &Activations<'_>,
    out: &mut [f32],
) {
    match format {
        Format::F32 => dense(rows, x.wide, out, |w| load_f32(w)),
        Format::F16 => dense(rows, x.wide, out, |w| load_f16(w)),
        Format::Bf16 => dense(rows, x.wide, out, |w| load_bf16(w)),
        Format::Q8_0 => each(rows, row_bytes, out, |row| blocks(row, x, |block| q8_0(block))),
        Format::Q4_0 => each(rows, row_bytes, out, |row| blocks(row, x, |block| q4_0(block))),
        Format::Q5_0 => each(rows, row_bytes, out, |row| blocks(row, x, |block| q5_0(block))),
        Format::Q4K => each(rows, row_bytes, out, |row| q4_k(row, x)),
        Format::Q5K => each(rows, row_bytes, out, |row| q5_k(row, x)),
        Format::Q6K => each(rows, row_bytes, out, |row| q6_k(row, x)),
    }
}

/// Writes the product of each row.
#[inline(always)]
fn each(rows: &[u8], row_bytes: usize, out: &mut [f32], product: impl Fn(&[u8]) -> f32) {
    for (row, out) in rows.chunks_exact(row_bytes.max(1)).zip(out) {
        *out = product(row);
    }
}

/// `N` elements from `at` on.
///
/// # Panics
/// If there are fewer.
#[inline(always)]
fn part<T, const N: usize>(all: &[T], at: usize) -> &[T; N] {
    &all[at..].as_chunks().0[0]
}

/// # Panics
/// If there are no sixteen bytes from `at` on; so do the next three.
#[inline]
#[target_feature(enable = "neon")]
fn bytes(all: &[u8], at: usize) -> uint8x16_t {
    let array: &[u8; 16] = part(all, at);
    // SAFETY: an array of sixteen bytes.
    unsafe { vld1q_u8(array.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn ints(all: &[i16], at: usize) -> int16x8_t {
    let array: &[i16; 8] = part(all, at);
    // SAFETY: an array of eight integers of 16 bits.
    unsafe { vld1q_s16(array.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn floats(all: &[f32], at: usize) -> float32x4_t {
    let array: &[f32; 4] = part(all, at);
    // SAFETY: an array of four numbers.
    unsafe { vld1q_f32(array.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(all: &mut [f32], at: usize, v: float32x4_t) {
    let array: &mut [f32; 4] = &mut all[at..].as_chunks_mut().0[0];
    // SAFETY: an array of four numbers.
    unsafe { vst1q_f32(array.as_mut_ptr(), v) }
}

/// A scale of half precision at `at`.
#[inline]
#[target_feature(enable = "neon")]
fn scale(block: &[u8], at: usize) -> f32 {
    let half = vdup_n_u16(u16::from_le_bytes(*part(block, at)));
    vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(half)))
}

/// The products of sixteen weights with the activations from `at` on, in four sums.
#[inline]
#[target_feature(enable = "neon")]
fn sixteen(weights: int8x16_t, x: &[i16; BLOCK], at: usize) -> int32x4_t {
    let (w, next_w) = (vmovl_s8(vget_low_s8(weights)), vmovl_high_s8(weights));
    let (x, next_x) = (ints(x, at), ints(x, at + 8));
    let sums = vmull_s16(vget_low_s16(w), vget_low_s16(x));
    let sums = vmlal_high_s16(sums, w, x);
    let sums = vmlal_s16(sums, vget_low_s16(next_w), vget_low_s16(next_x));
    vmlal_high_s16(sums, next_w, next_x)
}

/// The products of a block's weights with its activations, in four sums.
#[inline]
#[target_feature(enable = "neon")]
fn products([first, second]: Weights, x: &[i16; BLOCK]) -> float32x4_t {
    vcvtq_f32_s32(vaddq_s32(sixteen(first, x, 0), sixteen(second, x, 16)))
}
