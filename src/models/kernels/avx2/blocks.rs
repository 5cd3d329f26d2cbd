//! Rows of blocks of 32 weights and a scale: Q8_0, Q5_0 and Q4_0.

use std::arch::x86_64::*;

use super::super::dot::Activations;
use super::{ahead, even_bytes, ints, odd_bytes, sum};

/// The scales of `N` blocks of `bytes` bytes, at most four.
///
/// # Safety
/// Two bytes of each block can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales<const N: usize>(w: *const u8, bytes: usize) -> __m128 {
    let mut halves = 0u64;
    for k in 0..N {
        // SAFETY: as above.
        let half = unsafe { w.add(k * bytes).cast::<u16>().read_unaligned() };
        halves |= u64::from(half) << (16 * k);
    }
    _mm_cvtph_ps(_mm_cvtsi64_si128(halves.cast_signed()))
}

/// Reads `N` of the activations' units or sums, and zeros behind them.
///
/// # Safety
/// `N` numbers can be read, at most four.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn numbers<const N: usize>(at: *const f32) -> __m128 {
    // SAFETY: as above.
    unsafe { if N == 4 { _mm_loadu_ps(at) } else { _mm_load_ss(at) } }
}

/// A scalar product of blocks; `$sums` adds a block's products with its activations in eight lanes of 32 bits, the upper
/// four of which are `$upper` times too large, for weights that are stored `$less` too large.
macro_rules! blocks {
    ($name:ident, $bytes:expr, $upper:expr, $less:expr, $sums:ident) => {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) unsafe fn $name(row: &[u8], x: &Activations<'_>) -> f32 {
            let n = x.units.len();
            let (w, q, u, t) = (row.as_ptr(), x.ints.as_ptr(), x.units.as_ptr(), x.sums.as_ptr());
            let mut acc = [_mm256_setzero_ps(); 2];
            let mut less = _mm_setzero_ps();
            // SAFETY: each block is read within its bytes, and the activations of as many blocks are there.
            unsafe {
                macro_rules! several {
                    ($count:literal, $first:expr) => {
                        let (i, w) = ($first, w.add($first * $bytes));
                        ahead(w, $count * $bytes);
                        let scales = scales::<$count>(w, $bytes);
                        if $less > 0.0 {
                            less = _mm_fmadd_ps(scales, numbers::<$count>(t.add(i)), less);
                        }
                        let mut factors = [0f32; 4];
                        let products = _mm_mul_ps(scales, numbers::<$count>(u.add(i)));
                        _mm_storeu_ps(factors.as_mut_ptr(), products);
                        for k in 0..$count {
                            let s = $sums(w.add(k * $bytes), q.add((i + k) * 32));
                            let factor = _mm256_broadcast_ss(&factors[k]);
                            acc[k % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), factor, acc[k % 2]);
                        }
                    };
                }
                let mut i = 0;
                while i + 4 <= n {
                    several!(4, i);
                    i += 4;
                }
                while i < n {
                    several!(1, i);
                    i += 1;
                }
            }
            let upper = 1.0 / $upper;
            let lanes = _mm256_setr_ps(1.0, 1.0, 1.0, 1.0, upper, upper, upper, upper);
            let less = _mm256_castps128_ps256(_mm_mul_ps(less, _mm_set1_ps($less)));
            // Above the four lanes of a cast there may be anything.
            let less = _mm256_blend_ps::<0b1111_0000>(less, _mm256_setzero_ps());
            sum(_mm256_fmsub_ps(_mm256_add_ps(acc[0], acc[1]), lanes, less))
        }
    };
}
blocks!(q8_0, 34, 1.0, 0.0, sums_of_eight);
blocks!(q5_0, 22, 16.0, 0.0, sums_of_five);
blocks!(q4_0, 18, 16.0, 8.0, sums_of_four);

/// # Safety
/// A block and its activations can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sums_of_eight(w: *const u8, q: *const i16) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let bytes = _mm256_loadu_si256(w.add(2).cast());
        _mm256_add_epi32(
            _mm256_madd_epi16(even_bytes(bytes), ints(q)),
            _mm256_madd_epi16(odd_bytes(bytes), ints(q.add(16))),
        )
    }
}

/// The nibbles of 16 bytes, two bytes to a lane: those of even weights and those of odd ones. The first 16 weights are
/// the low nibbles; the others, in the upper lanes, stay 16 times too large where they are.
///
/// # Safety
/// Sixteen bytes can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(at: *const u8) -> (__m256i, __m256i) {
    // SAFETY: as above.
    let both = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(at.cast()) });
    let mask = _mm256_set_m128i(_mm_set1_epi16(0xf0), _mm_set1_epi16(0x0f));
    (_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16::<8>(both), mask))
}

/// # Safety
/// A block and its activations can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sums_of_four(w: *const u8, q: *const i16) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let (even, odd) = nibbles(w.add(2));
        _mm256_add_epi32(_mm256_madd_epi16(even, ints(q)), _mm256_madd_epi16(odd, ints(q.add(16))))
    }
}

/// # Safety
/// A block and its activations can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sums_of_five(w: *const u8, q: *const i16) -> __m256i {
    // SAFETY: as above.
    unsafe {
        let (even, odd) = nibbles(w.add(6));
        // Each lane holds the fifth bits of its sixteen weights.
        let words = _mm256_set_m128i(_mm_set1_epi16(0x0302), _mm_set1_epi16(0x0100));
        let bits = _mm256_set1_epi32(w.add(2).cast::<i32>().read_unaligned());
        let bits = _mm256_shuffle_epi8(bits, words);
        let own = _mm_setr_epi16(1, 1 << 2, 1 << 4, 1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14);
        let own = _mm256_set_m128i(own, own);
        // What is stored is 16 too large: without its fifth bit a weight gets the ones above that make it negative.
        let ones = _mm256_set_m128i(_mm_set1_epi16(-256), _mm_set1_epi16(-16));
        let with_ones = |nibbles: __m256i, own: __m256i| {
            let missing = _mm256_cmpeq_epi16(_mm256_and_si256(bits, own), _mm256_setzero_si256());
            _mm256_or_si256(nibbles, _mm256_and_si256(missing, ones))
        };
        let (even, odd) = (with_ones(even, own), with_ones(odd, _mm256_slli_epi16::<1>(own)));
        _mm256_add_epi32(_mm256_madd_epi16(even, ints(q)), _mm256_madd_epi16(odd, ints(q.add(16))))
    }
}
