//! Rows of blocks of 256 weights whose parts have scales of their own: Q4_K, Q5_K and Q6_K.

use std::arch::x86_64::*;

use super::super::dot::Activations;
use super::super::format::scales_and_minima;
use super::{ahead, even_bytes, ints, odd_bytes, scale, sum};

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn wide_bytes(bytes: [u8; 8]) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_set_epi64x(0, i64::from_le_bytes(bytes))))
}

/// Adds the products of the even and the odd weights of 32 with their activations.
///
/// # Safety
/// The activations of a block can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products(even: __m256i, odd: __m256i, q: *const i16) -> __m256i {
    // SAFETY: as above.
    unsafe {
        _mm256_add_epi32(_mm256_madd_epi16(even, ints(q)), _mm256_madd_epi16(odd, ints(q.add(16))))
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn four_or_five_k<const FIVE: bool>(row: &[u8], x: &Activations<'_>) -> f32 {
    let bytes = if FIVE { 176 } else { 144 };
    let n = x.units.len() / 8;
    let (w, q, u, t) = (row.as_ptr(), x.ints.as_ptr(), x.units.as_ptr(), x.sums.as_ptr());
    let mut acc = [_mm256_setzero_ps(); 2];
    let mut less = _mm256_setzero_ps();
    let nibble = _mm256_set1_epi16(0x000f);
    // SAFETY: each block is read within its bytes, and the activations of as many blocks are there.
    unsafe {
        for i in 0..n {
            let w = w.add(i * bytes);
            ahead(w, bytes);
            let q = q.add(i * 256);
            let (scales, minima) = scales_and_minima(&w.add(4).cast::<[u8; 12]>().read());
            let units = _mm256_mul_ps(scale(w), _mm256_loadu_ps(u.add(i * 8)));
            let mut factors = [0f32; 8];
            _mm256_storeu_ps(factors.as_mut_ptr(), _mm256_mul_ps(units, wide_bytes(scales)));
            let sums = _mm256_mul_ps(scale(w.add(2)), _mm256_loadu_ps(t.add(i * 8)));
            less = _mm256_fmadd_ps(sums, wide_bytes(minima), less);
            let quants = w.add(if FIVE { 48 } else { 16 });
            // A lane of 16 bits holds two bytes: four nibbles.
            let mut fifth =
                if FIVE { _mm256_loadu_si256(w.add(16).cast()) } else { _mm256_setzero_si256() };
            for pair in 0..4 {
                let q = q.add(pair * 64);
                let packed = _mm256_loadu_si256(quants.add(pair * 32).cast());
                let (even, odd) = (packed, _mm256_srli_epi16::<8>(packed));
                let mut low = [_mm256_and_si256(even, nibble), _mm256_and_si256(odd, nibble)];
                let mut high = [
                    _mm256_and_si256(_mm256_srli_epi16::<4>(packed), nibble),
                    _mm256_srli_epi16::<12>(packed),
                ];
                if FIVE {
                    let bit = _mm256_set1_epi16(0x0010);
                    let at = [_mm256_slli_epi16::<4>(fifth), _mm256_srli_epi16::<4>(fifth)];
                    let next = [_mm256_slli_epi16::<3>(fifth), _mm256_srli_epi16::<5>(fifth)];
                    for k in 0..2 {
                        low[k] = _mm256_or_si256(low[k], _mm256_and_si256(at[k], bit));
                        high[k] = _mm256_or_si256(high[k], _mm256_and_si256(next[k], bit));
                    }
                    fifth = _mm256_srli_epi16::<2>(fifth);
                }
                for (k, [even, odd]) in [low, high].into_iter().enumerate() {
                    let s = products(even, odd, q.add(32 * k));
                    let factor = _mm256_broadcast_ss(&factors[2 * pair + k]);
                    acc[k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), factor, acc[k]);
                }
            }
        }
    }
    sum(_mm256_sub_ps(_mm256_add_ps(acc[0], acc[1]), less))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn q6_k(row: &[u8], x: &Activations<'_>) -> f32 {
    let n = x.units.len() / 8;
    let (w, q, u) = (row.as_ptr(), x.ints.as_ptr(), x.units.as_ptr());
    let mut acc = [_mm256_setzero_ps(); 2];
    let (nibble, pair, offset) = (_mm256_set1_epi8(15), _mm256_set1_epi8(48), _mm256_set1_epi8(32));
    // SAFETY: each block is read within its bytes, and the activations of as many blocks are there.
    unsafe {
        for i in 0..n {
            let w = w.add(i * 210);
            ahead(w, 210);
            let q = q.add(i * 256);
            let units = _mm256_mul_ps(scale(w.add(208)), _mm256_loadu_ps(u.add(i * 8)));
            // Sixteen scales, two to a unit; the first of two belongs to the lower lanes of a block's sums.
            let scales = _mm_loadu_si128(w.add(192).cast());
            let of_lower = _mm256_cvtepi8_epi32(_mm_shuffle_epi8(
                scales,
                _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, -1, -1, -1, -1, -1, -1, -1, -1),
            ));
            let of_upper = _mm256_cvtepi8_epi32(_mm_shuffle_epi8(
                scales,
                _mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, -1, -1, -1, -1, -1, -1, -1, -1),
            ));
            let mut factors = [[0f32; 8]; 2];
            for (factors, scales) in factors.iter_mut().zip([of_lower, of_upper]) {
                let products = _mm256_mul_ps(units, _mm256_cvtepi32_ps(scales));
                _mm256_storeu_ps(factors.as_mut_ptr(), products);
            }
            for half in 0..2 {
                let (a, b) = (
                    _mm256_loadu_si256(w.add(half * 64).cast()),
                    _mm256_loadu_si256(w.add(half * 64 + 32).cast()),
                );
                let high = _mm256_loadu_si256(w.add(128 + half * 32).cast());
                let low = |v: __m256i| _mm256_and_si256(v, nibble);
                let above = |v: __m256i| _mm256_and_si256(v, pair);
                let quarters = [
                    _mm256_or_si256(low(a), above(_mm256_slli_epi16::<4>(high))),
                    _mm256_or_si256(low(b), above(_mm256_slli_epi16::<2>(high))),
                    _mm256_or_si256(low(_mm256_srli_epi16::<4>(a)), above(high)),
                    _mm256_or_si256(
                        low(_mm256_srli_epi16::<4>(b)),
                        above(_mm256_srli_epi16::<2>(high)),
                    ),
                ];
                for (k, bytes) in quarters.into_iter().enumerate() {
                    let bytes = _mm256_sub_epi8(bytes, offset);
                    let block = half * 4 + k;
                    let s = products(even_bytes(bytes), odd_bytes(bytes), q.add(block * 32));
                    let factor = _mm256_blend_ps::<0b1111_0000>(
                        _mm256_broadcast_ss(&factors[0][block]),
                        _mm256_broadcast_ss(&factors[1][block]),
                    );
                    acc[k % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), factor, acc[k % 2]);
                }
            }
        }
    }
    sum(_mm256_add_ps(acc[0], acc[1]))
}
