//! Rows of blocks of 256 weights whose parts have scales of their own: Q4_K, Q5_K and Q6_K.

use std::arch::aarch64::*;

use super::super::dot::{Activations, BLOCK};
use super::super::format::scales_and_minima;
use super::{bytes, floats, part, products, scale, sixteen, store};

/// Small whole numbers as f32, four at a time.
#[inline]
#[target_feature(enable = "neon")]
fn wide(bytes: [u8; 8]) -> [float32x4_t; 2] {
    let v = vmovl_u8(vcreate_u8(u64::from_le_bytes(bytes)));
    [vmovl_u16(vget_low_u16(v)), vmovl_high_u16(v)].map(|v| vcvtq_f32_u32(v))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn q4_k(row: &[u8], x: &Activations<'_>) -> f32 {
    four_or_five_k::<144>(row, x, |packed, _, _| {
        [vandq_u8(packed, vdupq_n_u8(15)), vshrq_n_u8::<4>(packed)]
    })
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn q5_k(row: &[u8], x: &Activations<'_>) -> f32 {
    four_or_five_k::<176>(row, x, |packed, fifth, pair| {
        let with_fifth = |nibbles: uint8x16_t, bit: usize| {
            let there = vtstq_u8(fifth, vdupq_n_u8(1 << bit));
            vorrq_u8(nibbles, vandq_u8(there, vdupq_n_u8(16)))
        };
        let low = with_fifth(vandq_u8(packed, vdupq_n_u8(15)), 2 * pair);
        [low, with_fifth(vshrq_n_u8::<4>(packed), 2 * pair + 1)]
    })
}

/// The product of a row of blocks of `B` bytes, the last 128 of which are nibbles. `weights` makes sixteen weights of a
/// pair of parts, and sixteen of the next part, out of their nibbles, the bytes with their fifth bits, and the pair's number.
#[inline]
#[target_feature(enable = "neon")]
fn four_or_five_k<const B: usize>(
    row: &[u8],
    x: &Activations<'_>,
    weights: impl Fn(uint8x16_t, uint8x16_t, usize) -> [uint8x16_t; 2],
) -> f32 {
    let blocks =
        row.as_chunks::<B>().0.iter().zip(x.ints.as_chunks::<BLOCK>().0.as_chunks::<8>().0);
    let numbers = x.units.as_chunks::<8>().0.iter().zip(x.sums.as_chunks::<8>().0);
    let (mut acc, mut less) = ([vdupq_n_f32(0.0); 2], [vdupq_n_f32(0.0); 2]);
    for ((block, q), (units, sums)) in blocks.zip(numbers) {
        let (d, min) = (scale(block, 0), scale(block, 2));
        let (scales, minima) = scales_and_minima(part(block, 4));
        let (scales, minima) = (wide(scales), wide(minima));
        let mut factors = [0f32; 8];
        for k in 0..2 {
            let units = vmulq_n_f32(floats(units, 4 * k), d);
            store(&mut factors, 4 * k, vmulq_f32(units, scales[k]));
            less[k] = vfmaq_f32(less[k], vmulq_n_f32(floats(sums, 4 * k), min), minima[k]);
        }
        let fifth = [0, 16].map(|at| bytes(block, 16 + at));
        for pair in 0..4 {
            let at = B - 128 + 32 * pair;
            let [a, b] = [
                weights(bytes(block, at), fifth[0], pair),
                weights(bytes(block, at + 16), fifth[1], pair),
            ];
            for k in 0..2 {
                let part = 2 * pair + k;
                let weights = [a[k], b[k]].map(|w| vreinterpretq_s8_u8(w));
                acc[k] = vfmaq_n_f32(acc[k], products(weights, &q[part]), factors[part]);
            }
        }
    }
    let less = vaddq_f32(less[0], less[1]);
    vaddvq_f32(vsubq_f32(vaddq_f32(acc[0], acc[1]), less))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn q6_k(row: &[u8], x: &Activations<'_>) -> f32 {
    let blocks =
        row.as_chunks::<210>().0.iter().zip(x.ints.as_chunks::<BLOCK>().0.as_chunks::<8>().0);
    let mut acc = [vdupq_n_f32(0.0); 2];
    for ((block, q), units) in blocks.zip(x.units.as_chunks::<8>().0) {
        let factors = sixteen_factors(block, units);
        for half in 0..2 {
            // The low nibbles of four parts in two registers' halves, and the pairs of bits above them.
            let weights = |side: usize| {
                let at = 64 * half + 16 * side;
                let (a, b) = (bytes(block, at), bytes(block, at + 32));
                let high = bytes(block, 128 + 32 * half + 16 * side);
                let low = |v: uint8x16_t| vandq_u8(v, vdupq_n_u8(15));
                let joined = |low: uint8x16_t, high: uint8x16_t| {
                    let six = vorrq_u8(low, vandq_u8(high, vdupq_n_u8(48)));
                    vsubq_s8(vreinterpretq_s8_u8(six), vdupq_n_s8(32))
                };
                [
                    joined(low(a), vshlq_n_u8::<4>(high)),
                    joined(low(b), vshlq_n_u8::<2>(high)),
                    joined(vshrq_n_u8::<4>(a), high),
                    joined(vshrq_n_u8::<4>(b), vshrq_n_u8::<2>(high)),
                ]
            };
            for side in 0..2 {
                for (k, weights) in weights(side).into_iter().enumerate() {
                    let part = 4 * half + k;
                    let sums = vcvtq_f32_s32(sixteen(weights, &q[part], 16 * side));
                    acc[side] = vfmaq_n_f32(acc[side], sums, factors[2 * part + side]);
                }
            }
        }
    }
    vaddvq_f32(vaddq_f32(acc[0], acc[1]))
}

/// What each sixteen weights of a Q6_K block count: two parts share a unit.
#[inline]
#[target_feature(enable = "neon")]
fn sixteen_factors(block: &[u8; 210], units: &[f32; 8]) -> [f32; 16] {
    let d = scale(block, 208);
    let scales = vreinterpretq_s8_u8(bytes(block, 192));
    let mut factors = [0f32; 16];
    for (k, scales) in
        [vmovl_s8(vget_low_s8(scales)), vmovl_high_s8(scales)].into_iter().enumerate()
    {
        let units = vmulq_n_f32(floats(units, 4 * k), d);
        let (first, second) = (vmovl_s16(vget_low_s16(scales)), vmovl_high_s16(scales));
        store(&mut factors, 8 * k, vmulq_f32(vzip1q_f32(units, units), vcvtq_f32_s32(first)));
        store(&mut factors, 8 * k + 4, vmulq_f32(vzip2q_f32(units, units), vcvtq_f32_s32(second)));
    }
    factors
}
