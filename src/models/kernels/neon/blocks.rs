//! Rows of blocks of 32 weights and a scale: Q8_0, Q5_0 and Q4_0.

use std::arch::aarch64::*;

use super::super::dot::{Activations, BLOCK};
use super::{Weights, bytes, floats, part, products, store};

/// The product of a row of blocks of `B` bytes, which begin with their scale; `weights` are those of a block.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn blocks<const B: usize>(
    row: &[u8],
    x: &Activations<'_>,
    weights: impl Fn(&[u8; B]) -> Weights + Copy,
) -> f32 {
    let (w, w_rest) = row.as_chunks::<B>().0.as_chunks::<4>();
    let (q, q_rest) = x.ints.as_chunks::<BLOCK>().0.as_chunks::<4>();
    let (u, u_rest) = x.units.as_chunks::<4>();
    let mut acc = [vdupq_n_f32(0.0); 2];
    for (w, (q, u)) in w.iter().zip(q.iter().zip(u)) {
        add(&mut acc, w, q, u, weights);
    }
    for (w, (q, u)) in w_rest.iter().zip(q_rest.iter().zip(u_rest)) {
        add(&mut acc, &[*w], &[*q], &[*u], weights);
    }
    vaddvq_f32(vaddq_f32(acc[0], acc[1]))
}

/// Adds the products of `N` blocks, at most four, whose scales are widened together.
#[inline]
#[target_feature(enable = "neon")]
fn add<const B: usize, const N: usize>(
    acc: &mut [float32x4_t; 2],
    blocks: &[[u8; B]; N],
    x: &[[i16; BLOCK]; N],
    units: &[f32; N],
    weights: impl Fn(&[u8; B]) -> Weights,
) {
    let (mut halves, mut factors) = (0u64, [0f32; 4]);
    for (k, block) in blocks.iter().enumerate() {
        halves |= u64::from(u16::from_le_bytes(*part(block, 0))) << (16 * k);
        factors[k] = units[k];
    }
    let scales = vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64(halves)));
    let both = vmulq_f32(scales, floats(&factors, 0));
    store(&mut factors, 0, both);
    for (k, block) in blocks.iter().enumerate() {
        acc[k % 2] = vfmaq_n_f32(acc[k % 2], products(weights(block), &x[k]), factors[k]);
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn q8_0(block: &[u8; 34]) -> Weights {
    [2, 18].map(|at| vreinterpretq_s8_u8(bytes(block, at)))
}

/// The low and the high nibbles of sixteen bytes.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles(packed: uint8x16_t) -> [uint8x16_t; 2] {
    [vandq_u8(packed, vdupq_n_u8(15)), vshrq_n_u8::<4>(packed)]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn q4_0(block: &[u8; 18]) -> Weights {
    nibbles(bytes(block, 2)).map(|w| vsubq_s8(vreinterpretq_s8_u8(w), vdupq_n_s8(8)))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn q5_0(block: &[u8; 22]) -> Weights {
    // Each lane's own bit among the eight of its byte.
    let own = vcreate_u8(0x8040_2010_0804_0201);
    let own = vcombine_u8(own, own);
    let [low, high] = nibbles(bytes(block, 6));
    let signed = |nibbles: uint8x16_t, at: usize| {
        let fifth = vcombine_u8(vdup_n_u8(block[at]), vdup_n_u8(block[at + 1]));
        // What is stored is 16 too large: without its fifth bit a weight gets the ones above that make it negative.
        let ones = vbicq_u8(vdupq_n_u8(0xf0), vtstq_u8(fifth, own));
        vreinterpretq_s8_u8(vorrq_u8(nibbles, ones))
    };
    [signed(low, 2), signed(high, 4)]
}
