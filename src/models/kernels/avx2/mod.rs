//! Scalar products of rows with activations in AVX2, FMA and F16C.
//!
//! Weights of a few bits become integers of 16 bits; products of pairs with the activations' integers are added in
//! 32 bits, which a block of 32 cannot overflow: 32 · 128 · 32767 < 2³¹. Two bytes lie in a lane of 16 bits, so the even and
//! the odd weights of a block are taken apart by shifts, and the activations lie in that order.

mod blocks;
mod dense;
mod super_blocks;

use std::arch::x86_64::*;

use blocks::{q4_0, q5_0, q8_0};
use dense::{dense_bf16, dense_f16, dense_f32, four_bf16, four_f16, four_f32};
use super_blocks::{four_or_five_k, q6_k};

use super::Format;
use super::dot::{Activations, BLOCK};

/// Bytes of a row that is short.
const SHORT: usize = 1024;

/// Proof that the machine has these instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// Asks the processor.
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
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
        // Each row of a long matrix is a stream of its own to the memory; short ones share what a sum costs.
        let together =
            if format.block() == 1 && row_bytes <= SHORT { out.len() / 4 * 4 } else { 0 };
        let (short, alone) = out.split_at_mut(together);
        let (first, rest) = rows.split_at(together * row_bytes);
        for (rows, out) in first.chunks_exact(4 * row_bytes.max(1)).zip(short.chunks_exact_mut(4)) {
            // SAFETY: the machine has the instructions, or there were no `self`; the lengths were compared above.
            out.copy_from_slice(&unsafe { four(format, rows, x.wide) });
        }
        for (row, out) in rest.chunks_exact(row_bytes.max(1)).zip(alone) {
            // SAFETY: as above.
            *out = unsafe { dot(format, row, x) };
        }
    }
}

/// # Safety
/// The machine has AVX2, FMA and F16C; `row` holds as many weights, in whole blocks, as `x` has activations, and those
/// are prepared for the format.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot(format: Format, row: &[u8], x: &Activations<'_>) -> f32 {
    // SAFETY: as above.
    unsafe {
        match format {
            Format::F32 => dense_f32(row, x.wide),
            Format::Bf16 => dense_bf16(row, x.wide),
            Format::F16 => dense_f16(row, x.wide),
            Format::Q8_0 => q8_0(row, x),
            Format::Q4_0 => q4_0(row, x),
            Format::Q5_0 => q5_0(row, x),
            Format::Q4K => four_or_five_k::<false>(row, x),
            Format::Q5K => four_or_five_k::<true>(row, x),
            Format::Q6K => q6_k(row, x),
        }
    }
}

/// The same for four rows of numbers that are no blocks.
///
/// # Safety
/// As above; `rows` holds four times as many weights as `x` has numbers.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four(format: Format, rows: &[u8], x: &[f32]) -> [f32; 4] {
    // SAFETY: as above.
    unsafe {
        match format {
            Format::Bf16 => four_bf16(rows, x),
            Format::F16 => four_f16(rows, x),
            _ => four_f32(rows, x),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// The sums of four vectors.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn four_sums([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let v = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let mut sums = [0f32; 4];
    // SAFETY: there is room for four numbers.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), v) };
    sums
}

/// How far ahead the next weights are asked for: unpacking them hides less of the memory's latency than a plain read.
const AHEAD: usize = 2048;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn ahead(w: *const u8, bytes: usize) {
    let mut at = 0;
    while at < bytes {
        _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD + at).cast());
        at += 64;
    }
}

/// A block's scale in every lane.
///
/// # Safety
/// Two bytes can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale(at: *const u8) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(at.cast::<i16>().read_unaligned())) }
}

/// # Safety
/// Sixteen numbers can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn ints(x: *const i16) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_loadu_si256(x.cast()) }
}

/// Each second of 32 signed bytes, from the first on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn even_bytes(bytes: __m256i) -> __m256i {
    _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes))
}

/// The others.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn odd_bytes(bytes: __m256i) -> __m256i {
    _mm256_srai_epi16::<8>(bytes)
}
