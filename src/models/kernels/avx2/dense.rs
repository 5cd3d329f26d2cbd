//! Rows of numbers: f32, bf16 and f16.

use std::arch::x86_64::*;

use super::{four_sums, sum};

macro_rules! dense {
    ($name:ident, $four:ident, $bytes:expr, $load:expr) => {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) unsafe fn $four(rows: &[u8], x: &[f32]) -> [f32; 4] {
            let n = x.len();
            let (w, x) = (rows.as_ptr(), x.as_ptr());
            let mut acc = [_mm256_setzero_ps(); 4];
            let mut i = 0;
            // SAFETY: each of the four rows has as many weights as `x`, and each read ends before its row's end.
            unsafe {
                while i + 8 <= n {
                    let x = _mm256_loadu_ps(x.add(i));
                    for (row, acc) in acc.iter_mut().enumerate() {
                        *acc = _mm256_fmadd_ps($load(w.add((row * n + i) * $bytes)), x, *acc);
                    }
                    i += 8;
                }
                if i < n {
                    // The last few, behind zeros.
                    let mut xs = [0f32; 8];
                    std::ptr::copy_nonoverlapping(x.add(i), xs.as_mut_ptr(), n - i);
                    let xs = _mm256_loadu_ps(xs.as_ptr());
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let mut rest = [0u8; 8 * $bytes];
                        let from = w.add((row * n + i) * $bytes);
                        std::ptr::copy_nonoverlapping(from, rest.as_mut_ptr(), (n - i) * $bytes);
                        *acc = _mm256_fmadd_ps($load(rest.as_ptr()), xs, *acc);
                    }
                }
            }
            four_sums(acc)
        }

        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) unsafe fn $name(row: &[u8], x: &[f32]) -> f32 {
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
dense!(dense_f32, four_f32, 4, |p: *const u8| _mm256_loadu_ps(p.cast()));
dense!(dense_bf16, four_bf16, 2, |p: *const u8| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(
    _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))
)));
dense!(dense_f16, four_f16, 2, |p: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())));
