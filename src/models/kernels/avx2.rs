//! Scalar products of rows with activations in AVX2, FMA and F16C.
//!
//! Weights of a few bits become integers of 16 bits; products of pairs with the activations' integers are added in
//! 32 bits, which a block of 32 cannot overflow: 32 · 128 · 32767 < 2³¹.

use std::arch::x86_64::*;

use super::Format;
use super::dot::{Activations, BLOCK};
use super::format::scales_and_minima;

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
        for (row, out) in rows.chunks_exact(row_bytes.max(1)).zip(out) {
            // SAFETY: the machine has the instructions, or there were no `self`; the lengths were compared above.
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

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

macro_rules! dense {
    ($name:ident, $bytes:expr, $load:expr) => {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn $name(row: &[u8], x: &[f32]) -> f32 {
            let n = x.len();
            let (w, x) = (row.as_ptr(), x.as_ptr());
            let mut acc = [_mm256_setzero_ps(); 4];
            let mut i = 0;
            // SAFETY: `row` has as many weights as `x`, and each read ends before the last one's end.
            unsafe {
                while i + 32 <= n {
                    for (k, acc) in acc.iter_mut().enumerate() {
                        let at = i + 8 * k;
                        *acc = _mm256_fmadd_ps(
                            $load(w.add(at * $bytes)),
                            _mm256_loadu_ps(x.add(at)),
                            *acc,
                        );
                    }
                    i += 32;
                }
                while i + 8 <= n {
                    acc[0] = _mm256_fmadd_ps(
                        $load(w.add(i * $bytes)),
                        _mm256_loadu_ps(x.add(i)),
                        acc[0],
                    );
                    i += 8;
                }
                if i < n {
                    // The last few, behind zeros.
                    let (mut rest, mut xs) = ([0u8; 8 * $bytes], [0f32; 8]);
                    std::ptr::copy_nonoverlapping(
                        w.add(i * $bytes),
                        rest.as_mut_ptr(),
                        (n - i) * $bytes,
                    );
                    std::ptr::copy_nonoverlapping(x.add(i), xs.as_mut_ptr(), n - i);
                    acc[0] =
                        _mm256_fmadd_ps($load(rest.as_ptr()), _mm256_loadu_ps(xs.as_ptr()), acc[0]);
                }
            }
            sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])))
        }
    };
}
dense!(dense_f32, 4, |p: *const u8| _mm256_loadu_ps(p.cast()));
dense!(dense_bf16, 2, |p: *const u8| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(
    _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))
)));
dense!(dense_f16, 2, |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())));

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

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8_0(row: &[u8], x: &Activations<'_>) -> f32 {
    let n = x.units.len();
    let (w, q, u) = (row.as_ptr(), x.ints.as_ptr(), x.units.as_ptr());
    let mut acc = [_mm256_setzero_ps(); 2];
    // SAFETY: each block is read within its bytes, and the activations of as many blocks are there.
    unsafe {
        let block = |i: usize, acc: __m256| {
            let w = w.add(i * 34);
            ahead(w, 34);
            let q = q.add(i * 32);
            let low = _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(2).cast()));
            let high = _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(18).cast()));
            let s = _mm256_add_epi32(
                _mm256_madd_epi16(low, ints(q)),
                _mm256_madd_epi16(high, ints(q.add(16))),
            );
            let d = _mm256_mul_ps(scale(w), _mm256_broadcast_ss(&*u.add(i)));
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), d, acc)
        };
        let mut i = 0;
        while i + 2 <= n {
            acc[0] = block(i, acc[0]);
            acc[1] = block(i + 1, acc[1]);
            i += 2;
        }
        if i < n {
            acc[0] = block(i, acc[0]);
        }
    }
    sum(_mm256_add_ps(acc[0], acc[1]))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_0(row: &[u8], x: &Activations<'_>) -> f32 {
    let n = x.units.len();
    let (w, q, u, t) = (row.as_ptr(), x.ints.as_ptr(), x.units.as_ptr(), x.sums.as_ptr());
    let mut acc = [_mm256_setzero_ps(); 4];
    let mask = _mm256_set1_epi16(15);
    // SAFETY: each block is read within its bytes, and the activations of as many blocks are there.
    unsafe {
        let block = |i: usize, acc: &mut [__m256]| {
            let w = w.add(i * 18);
            ahead(w, 18);
            let q = q.add(i * 32);
            let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(w.add(2).cast()));
            let low = _mm256_and_si256(bytes, mask);
            let high = _mm256_srli_epi16::<4>(bytes);
            let s = _mm256_add_epi32(
                _mm256_madd_epi16(low, ints(q)),
                _mm256_madd_epi16(high, ints(q.add(16))),
            );
            let d = scale(w);
            // Eight lanes take the sum away once each.
            acc[1] = _mm256_fnmadd_ps(d, _mm256_broadcast_ss(&*t.add(i)), acc[1]);
            acc[0] = _mm256_fmadd_ps(
                _mm256_cvtepi32_ps(s),
                _mm256_mul_ps(d, _mm256_broadcast_ss(&*u.add(i))),
                acc[0],
            );
        };
        let mut i = 0;
        while i + 2 <= n {
            block(i, &mut acc[..2]);
            block(i + 1, &mut acc[2..]);
            i += 2;
        }
        if i < n {
            block(i, &mut acc[..2]);
        }
    }
    sum(_mm256_add_ps(_mm256_add_ps(acc[0], acc[1]), _mm256_add_ps(acc[2], acc[3])))
}

/// Bytes of ones where a bit is set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn spread_bits(bits: i32) -> __m256i {
    let shuffle =
        _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), shuffle);
    let select = _mm256_set1_epi64x(0x7fbf_dfef_f7fb_fdfe);
    _mm256_cmpeq_epi8(_mm256_or_si256(bytes, select), _mm256_set1_epi64x(-1))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn low_half(v: __m256i) -> __m256i {
    _mm256_cvtepu8_epi16(_mm256_castsi256_si128(v))
}
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn high_half(v: __m256i) -> __m256i {
    _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(v))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q5_0(row: &[u8], x: &Activations<'_>) -> f32 {
    let n = x.units.len();
    let (w, q, u, t) = (row.as_ptr(), x.ints.as_ptr(), x.units.as_ptr(), x.sums.as_ptr());
    let (mut acc, mut less) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    // SAFETY: each block is read within its bytes, and the activations of as many blocks are there.
    unsafe {
        for i in 0..n {
            let w = w.add(i * 22);
            ahead(w, 22);
            let q = q.add(i * 32);
            let packed = _mm_loadu_si128(w.add(6).cast());
            let nibbles = _mm256_and_si256(
                _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed),
                _mm256_set1_epi8(15),
            );
            let fifth = _mm256_and_si256(
                spread_bits(w.add(2).cast::<i32>().read_unaligned()),
                _mm256_set1_epi8(16),
            );
            let bytes = _mm256_or_si256(nibbles, fifth);
            let s = _mm256_add_epi32(
                _mm256_madd_epi16(low_half(bytes), ints(q)),
                _mm256_madd_epi16(high_half(bytes), ints(q.add(16))),
            );
            let d = scale(w);
            less = _mm256_fmadd_ps(d, _mm256_broadcast_ss(&*t.add(i)), less);
            acc = _mm256_fmadd_ps(
                _mm256_cvtepi32_ps(s),
                _mm256_mul_ps(d, _mm256_broadcast_ss(&*u.add(i))),
                acc,
            );
        }
    }
    sum(_mm256_fnmadd_ps(less, _mm256_set1_ps(2.0), acc))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn wide_bytes(bytes: [u8; 8]) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_set_epi64x(0, i64::from_le_bytes(bytes))))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four_or_five_k<const FIVE: bool>(row: &[u8], x: &Activations<'_>) -> f32 {
    let bytes = if FIVE { 176 } else { 144 };
    let n = x.units.len() / 8;
    let (w, q, u, t) = (row.as_ptr(), x.ints.as_ptr(), x.units.as_ptr(), x.sums.as_ptr());
    let mut acc = [_mm256_setzero_ps(); 2];
    let mut less = _mm256_setzero_ps();
    let nibble = _mm256_set1_epi8(15);
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
            let mut fifth =
                if FIVE { _mm256_loadu_si256(w.add(16).cast()) } else { _mm256_setzero_si256() };
            for pair in 0..4 {
                let q = q.add(pair * 64);
                let s = |low: __m256i, high: __m256i, q: *const i16| {
                    _mm256_add_epi32(
                        _mm256_madd_epi16(low, ints(q)),
                        _mm256_madd_epi16(high, ints(q.add(16))),
                    )
                };
                let (first, second) = if FIVE {
                    let packed = _mm256_loadu_si256(quants.add(pair * 32).cast());
                    let bit = _mm256_set1_epi8(16);
                    let one = _mm256_and_si256(_mm256_slli_epi16::<4>(fifth), bit);
                    let two = _mm256_and_si256(_mm256_slli_epi16::<3>(fifth), bit);
                    fifth = _mm256_srli_epi16::<2>(fifth);
                    let low = _mm256_or_si256(_mm256_and_si256(packed, nibble), one);
                    let high = _mm256_or_si256(
                        _mm256_and_si256(_mm256_srli_epi16::<4>(packed), nibble),
                        two,
                    );
                    (
                        s(low_half(low), high_half(low), q),
                        s(low_half(high), high_half(high), q.add(32)),
                    )
                } else {
                    let mask = _mm256_set1_epi16(15);
                    let a = _mm256_cvtepu8_epi16(_mm_loadu_si128(quants.add(pair * 32).cast()));
                    let b =
                        _mm256_cvtepu8_epi16(_mm_loadu_si128(quants.add(pair * 32 + 16).cast()));
                    (
                        s(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask), q),
                        s(_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b), q.add(32)),
                    )
                };
                acc[0] = _mm256_fmadd_ps(
                    _mm256_cvtepi32_ps(first),
                    _mm256_broadcast_ss(&factors[2 * pair]),
                    acc[0],
                );
                acc[1] = _mm256_fmadd_ps(
                    _mm256_cvtepi32_ps(second),
                    _mm256_broadcast_ss(&factors[2 * pair + 1]),
                    acc[1],
                );
            }
        }
    }
    sum(_mm256_sub_ps(_mm256_add_ps(acc[0], acc[1]), less))
}

/// The units of eight blocks of activations, each times the two scales of its weights.
///
/// # Safety
/// Sixteen scales can be read.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn factors_of_q6(scales: *const u8, units: __m256) -> [f32; 16] {
    let mut factors = [0f32; 16];
    let twice = _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0);
    for half in 0..2 {
        // SAFETY: as above; there is room for twice eight factors.
        unsafe {
            let scales = _mm_loadl_epi64(scales.add(8 * half).cast());
            let scales = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(scales));
            let own = _mm256_add_epi32(twice, _mm256_set1_epi32(4 * half as i32));
            let own = _mm256_permutevar8x32_ps(units, own);
            _mm256_storeu_ps(factors.as_mut_ptr().add(8 * half), _mm256_mul_ps(scales, own));
        }
    }
    factors
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_k(row: &[u8], x: &Activations<'_>) -> f32 {
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
            let factors = factors_of_q6(w.add(192), units);
            for half in 0..2 {
                let (a, b) = (
                    _mm256_loadu_si256(w.add(half * 64).cast()),
                    _mm256_loadu_si256(w.add(half * 64 + 32).cast()),
                );
                let high = _mm256_loadu_si256(w.add(128 + half * 32).cast());
                let quarters = [
                    _mm256_or_si256(
                        _mm256_and_si256(a, nibble),
                        _mm256_and_si256(_mm256_slli_epi16::<4>(high), pair),
                    ),
                    _mm256_or_si256(
                        _mm256_and_si256(b, nibble),
                        _mm256_and_si256(_mm256_slli_epi16::<2>(high), pair),
                    ),
                    _mm256_or_si256(
                        _mm256_and_si256(_mm256_srli_epi16::<4>(a), nibble),
                        _mm256_and_si256(high, pair),
                    ),
                    _mm256_or_si256(
                        _mm256_and_si256(_mm256_srli_epi16::<4>(b), nibble),
                        _mm256_and_si256(_mm256_srli_epi16::<2>(high), pair),
                    ),
                ];
                for (k, bytes) in quarters.into_iter().enumerate() {
                    let bytes = _mm256_sub_epi8(bytes, offset);
                    let at = half * 128 + k * 32;
                    let one = _mm256_madd_epi16(
                        _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes)),
                        ints(q.add(at)),
                    );
                    let two = _mm256_madd_epi16(
                        _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(bytes)),
                        ints(q.add(at + 16)),
                    );
                    let f = half * 8 + k * 2;
                    acc[0] = _mm256_fmadd_ps(
                        _mm256_cvtepi32_ps(one),
                        _mm256_broadcast_ss(&factors[f]),
                        acc[0],
                    );
                    acc[1] = _mm256_fmadd_ps(
                        _mm256_cvtepi32_ps(two),
                        _mm256_broadcast_ss(&factors[f + 1]),
                        acc[1],
                    );
                }
            }
        }
    }
    sum(_mm256_add_ps(acc[0], acc[1]))
}
