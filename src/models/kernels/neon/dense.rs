//! Rows of numbers: f32, bf16 and f16.

use std::arch::aarch64::*;

use super::{bytes, each, floats, store};

/// Eight numbers.
type Eight = [float32x4_t; 2];

/// Bytes of a row that is short.
const SHORT: usize = 1024;

/// Writes the products of rows with `x`; `load` widens eight weights of `B` bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn dense<const B: usize>(
    rows: &[u8],
    x: &[f32],
    out: &mut [f32],
    load: impl Fn(&[u8; B]) -> Eight + Copy,
) {
    let row_bytes = x.len() * B / 8;
    // Each row of a long matrix is a stream of its own to the memory; short ones share what a sum costs.
    let together = if row_bytes <= SHORT { out.len() / 4 * 4 } else { 0 };
    let (short, alone) = out.split_at_mut(together);
    let (first, rest) = rows.split_at(together * row_bytes);
    for (rows, out) in first.chunks_exact(4 * row_bytes.max(1)).zip(short.chunks_exact_mut(4)) {
        store(out, 0, four(rows, x, load));
    }
    each(rest, row_bytes, alone, |row| one(row, x, load));
}

#[inline]
#[target_feature(enable = "neon")]
fn one<const B: usize>(row: &[u8], x: &[f32], load: impl Fn(&[u8; B]) -> Eight) -> f32 {
    let (w, w_rest) = row.as_chunks::<B>();
    let (x, x_rest) = x.as_chunks::<8>();
    let ((w, w_few), (x, x_few)) = (w.as_chunks::<4>(), x.as_chunks::<4>());
    let mut acc = [[vdupq_n_f32(0.0); 2]; 4];
    for (w, x) in w.iter().zip(x) {
        for (acc, (w, x)) in acc.iter_mut().zip(w.iter().zip(x)) {
            *acc = add(*acc, load(w), eight(x));
        }
    }
    for (w, x) in w_few.iter().zip(x_few) {
        acc[0] = add(acc[0], load(w), eight(x));
    }
    if !x_rest.is_empty() {
        acc[1] = add(acc[1], load(&filled(w_rest)), eight(&filled(x_rest)));
    }
    let [a, b, c, d] = acc.map(|[low, high]| vaddq_f32(low, high));
    vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)))
}

/// The products of four rows.
#[inline]
#[target_feature(enable = "neon")]
fn four<const B: usize>(rows: &[u8], x: &[f32], load: impl Fn(&[u8; B]) -> Eight) -> float32x4_t {
    let row = |at: usize| rows[at * (rows.len() / 4)..][..rows.len() / 4].as_chunks::<B>();
    let [(a, a_rest), (b, b_rest), (c, c_rest), (d, d_rest)] = [0, 1, 2, 3].map(row);
    let (x, x_rest) = x.as_chunks::<8>();
    let mut acc = [[vdupq_n_f32(0.0); 2]; 4];
    for (x, (((a, b), c), d)) in x.iter().zip(a.iter().zip(b).zip(c).zip(d)) {
        let x = eight(x);
        for (acc, w) in acc.iter_mut().zip([a, b, c, d]) {
            *acc = add(*acc, load(w), x);
        }
    }
    if !x_rest.is_empty() {
        let x = eight(&filled(x_rest));
        for (acc, w) in acc.iter_mut().zip([a_rest, b_rest, c_rest, d_rest]) {
            *acc = add(*acc, load(&filled(w)), x);
        }
    }
    let [a, b, c, d] = acc.map(|[low, high]| vaddq_f32(low, high));
    vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))
}

#[inline]
#[target_feature(enable = "neon")]
fn add(acc: Eight, w: Eight, x: Eight) -> Eight {
    [vfmaq_f32(acc[0], w[0], x[0]), vfmaq_f32(acc[1], w[1], x[1])]
}

#[inline]
#[target_feature(enable = "neon")]
fn eight(x: &[f32; 8]) -> Eight {
    [floats(x, 0), floats(x, 4)]
}

/// The last few, before zeros.
#[inline(always)]
fn filled<T: Copy + Default, const N: usize>(rest: &[T]) -> [T; N] {
    let mut all = [T::default(); N];
    all[..rest.len()].copy_from_slice(rest);
    all
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_f32(w: &[u8; 32]) -> Eight {
    [0, 16].map(|at| vreinterpretq_f32_u8(bytes(w, at)))
}

/// A bf16 is the upper half of an f32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_bf16(w: &[u8; 16]) -> Eight {
    let (zeros, w) = (vdupq_n_u16(0), vreinterpretq_u16_u8(bytes(w, 0)));
    [vreinterpretq_f32_u16(vzip1q_u16(zeros, w)), vreinterpretq_f32_u16(vzip2q_u16(zeros, w))]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_f16(w: &[u8; 16]) -> Eight {
    let w = vreinterpretq_f16_u8(bytes(w, 0));
    [vcvt_f32_f16(vget_low_f16(w)), vcvt_high_f32_f16(w)]
}
