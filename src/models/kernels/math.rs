//! Element-wise functions that compilers can turn into vector instructions.

use pulp::Arch;

/// Computes an expression compiled for the best vector instructions that this machine has.
///
/// The expression itself is always inlined, a closure of its own would stay in plain instructions; so must be what it
/// calls.
macro_rules! vectorised {
    ($body:expr) => {
        $crate::models::kernels::math::dispatch(
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use vectorised;

/// Runs what [`vectorised`] makes.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

/// eˣ to about 2 units in the last place, without a branch; 0 below −87.3, large but finite above 88.3.
///
/// The classic reduction (Cody and Waite 1980): x = n ln 2 + r, with a polynomial for eʳ.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the two parts of ln 2 as they are")]
pub fn exp(x: f32) -> f32 {
    // Adding it and taking it away again rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_375;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let small = x < -87.3;
    let x = if small { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    // n stands in the low bits of the shifted number; a conversion would be no vector instruction.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let scale = f32::from_bits(exponent << 23);
    if small { 0.0 } else { value * scale }
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Independent sums, so that they can be kept in vector registers.
const LANES: usize = 32;

/// The sum of all lanes, by halves: one after the other each addition would wait for the last.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(&high[..width]).for_each(|(low, high)| *low += high);
        width /= 2;
    }
    lanes[0]
}

/// Σ f(i) for `i` in `0..n`.
#[inline(always)]
pub fn sum_map(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(i + lane);
        }
    }
    total(lanes) + (whole..n).map(f).sum::<f32>()
}

/// Scalar product of two slices of one length.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for (sum, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    total(lanes) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// The largest element; −∞ of none.
#[inline(always)]
pub fn max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (most, &x) in lanes.iter_mut().zip(chunk) {
            *most = if x > *most { x } else { *most };
        }
    }
    lanes.iter().copied().fold(rest, f32::max)
}

/// log Σ exp of a row of logits. NaN if one of them is no number.
pub fn log_sum_exp(row: &[f32]) -> f32 {
    let most = vectorised!(max(row));
    most + sum_exp(row, most, 1.0).ln() as f32
}

/// Σ exp(scale · (x − most)) over a row of logits, none of which is above `most`.
pub fn sum_exp(row: &[f32], most: f32, scale: f32) -> f64 {
    // Blocks in f32, their sums in f64: a vocabulary of 150,000 terms would cost one f32 sum five digits.
    vectorised!({
        let block =
            |block: &[f32]| f64::from(sum_map(block.len(), |i| exp(scale * (block[i] - most))));
        row.chunks(1024).map(block).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_a_few_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            worst = worst.max((ours / exact - 1.0).abs());
        }
        assert!(worst < 3e-7, "relative error {worst:e}");
        assert_eq!((exp(f32::NEG_INFINITY), exp(-1000.0), exp(0.0)), (0.0, 0.0, 1.0));
        assert!(exp(1000.0).is_finite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_take_every_element_whatever_the_length() {
        for n in [0, 1, 7, 31, 32, 33, 64, 97] {
            let a: Vec<f32> = (0..n).map(|i| i as f32 * 0.5 - 3.0).collect();
            let expected: f32 = a.iter().map(|x| x * x).sum();
            assert_eq!(dot(&a, &a), expected, "{n}");
            assert_eq!(sum_map(n, |i| a[i] * a[i]), expected, "{n}");
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max), "{n}");
        }
    }

    #[test]
    fn log_sum_exp_survives_large_and_many_logits() {
        let row = vec![500.0; 150_000];
        assert!((f64::from(log_sum_exp(&row)) - (500.0 + 150_000f64.ln())).abs() < 1e-4);
        assert!(log_sum_exp(&[1.0, f32::NAN]).is_nan());
    }
}
