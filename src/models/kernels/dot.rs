//! Scalar products of kept rows with a vector of activations: decoding, which is bound by the reading of the weights.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2 as Own;
use super::math::{self, vectorised};
#[cfg(target_arch = "aarch64")]
use super::neon::Neon as Own;
use super::{Format, Rows};

/// Activations that share a unit.
pub(super) const BLOCK: usize = 32;
/// Whether a block's even activations lie before the odd ones: AVX2 takes weights apart by shifts, NEON widens them in order.
const EVEN_FIRST: bool = cfg!(target_arch = "x86_64");

/// A vector of activations, as the kernels read it.
///
/// Rows of a few bits are multiplied as integers where the machine has a form for that: activations become 16 bits and a
/// unit for each 32, which is wrong by less than 2⁻¹⁶ of the largest of them.
#[derive(Debug)]
pub(super) struct Activations<'a> {
    /// As they are.
    pub wide: &'a [f32],
    /// In units of their block, in the order that the machine's form takes; empty where `wide` is used.
    pub ints: Vec<i16>,
    /// The unit of each block.
    pub units: Vec<f32>,
    /// The sum of each block.
    pub sums: Vec<f32>,
}

impl<'a> Activations<'a> {
    /// Prepares activations for rows of a format.
    pub fn new(wide: &'a [f32], format: Format) -> Self {
        let mut activations = Self { wide, ints: Vec::new(), units: Vec::new(), sums: Vec::new() };
        if format.block() > 1 && has_integer_form() {
            vectorised!(activations.round());
        }
        activations
    }

    #[inline(always)]
    fn round(&mut self) {
        const LARGEST: f32 = i16::MAX as f32;
        // Adding it leaves the nearest whole number in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let blocks = self.wide.len() / BLOCK;
        self.ints = vec![0; blocks * BLOCK];
        (self.units, self.sums) = (vec![0.0; blocks], vec![0.0; blocks]);
        let targets = self.units.iter_mut().zip(&mut self.sums);
        let blocks = self.wide.chunks_exact(BLOCK).zip(self.ints.chunks_exact_mut(BLOCK));
        for ((wide, ints), (unit, sum)) in blocks.zip(targets) {
            let most =
                wide.iter().fold(0f32, |most, x| if x.abs() > most { x.abs() } else { most });
            let per_unit = if most > 0.0 { LARGEST / most } else { 0.0 };
            let mut whole = [0i32; BLOCK];
            for (whole, x) in whole.iter_mut().zip(wide) {
                let bits = (x * per_unit + ROUND).to_bits();
                *whole = bits.wrapping_sub(ROUND.to_bits()).cast_signed();
            }
            if EVEN_FIRST {
                let pairs = whole.as_chunks::<2>().0.iter();
                let (even, odd) = ints.split_at_mut(BLOCK / 2);
                for (pair, (even, odd)) in pairs.zip(even.iter_mut().zip(odd)) {
                    (*even, *odd) = (pair[0] as i16, pair[1] as i16);
                }
            } else {
                ints.iter_mut().zip(whole).for_each(|(int, whole)| *int = whole as i16);
            }
            // What is no number gives any bits: their sum counts for nothing, but must not panic.
            let total = whole.iter().fold(0i32, |total, &whole| total.wrapping_add(whole));
            // No number stays none: integers cannot hold it.
            *unit = if wide.iter().all(|x| x.is_finite()) { most / LARGEST } else { f32::NAN };
            *sum = total as f32 * *unit;
        }
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn has_integer_form() -> bool {
    Own::detect().is_some()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_integer_form() -> bool {
    false
}

/// Writes the products of consecutive rows from `first` on with the activations.
///
/// # Panics
/// If there are fewer rows than `out` asks for.
pub(super) fn dots(w: Rows<'_>, first: usize, x: &Activations<'_>, out: &mut [f32]) {
    let cols = x.wide.len();
    let bytes = w.bytes_of(first..first + out.len(), cols);
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if let Some(own) = Own::detect() {
        return own.dots(w.format(), bytes, x, out);
    }
    vectorised!(plain(w.format(), bytes, x.wide, out));
}

/// The form for machines that have none of their own; what the others are compared with.
#[inline(always)]
fn plain(format: Format, bytes: &[u8], x: &[f32], out: &mut [f32]) {
    /// Columns that are widened at a time.
    const PIECE: usize = 256;
    let mut wide = [0f32; PIECE];
    let row_bytes = format.bytes(x.len());
    for (row, out) in bytes.chunks_exact(row_bytes.max(1)).zip(out) {
        let pieces = row.chunks(format.bytes(PIECE)).zip(x.chunks(PIECE));
        *out = pieces
            .map(|(row, x)| {
                let wide = &mut wide[..x.len()];
                format.widen(row, wide);
                math::dot(wide, x)
            })
            .sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rows of a format whose blocks have finite scales.
    fn rows(format: Format, weights: usize, seed: u64) -> Vec<u8> {
        use rand::{RngCore, SeedableRng};
        let mut bytes = vec![0; format.bytes(weights)];
        rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        // Bytes of exponents: of f32, bf16 and the scales of blocks.
        let small = |byte: &mut u8| *byte = *byte & 0x80 | 0x3c;
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            match format {
                Format::F32 => small(&mut block[3]),
                Format::Q4K | Format::Q5K => {
                    [1, 3].map(|at| small(&mut block[at])).into_iter().collect()
                }
                Format::Q6K => small(&mut block[209]),
                _ => small(&mut block[1]),
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn the_machines_form_equals_the_plain_one(
            format in prop::sample::select(Format::ALL.to_vec()),
            blocks in 1usize..70,
            count in 1usize..5,
            first in 0usize..3,
            seed: u64,
        ) {
            // Blocks of one weight try every tail; the larger ones every count of blocks.
            let cols = format.block() * if format.block() == 256 { blocks % 6 + 1 } else { blocks };
            let bytes = rows(format, (first + count) * cols, seed);
            let x: Vec<f32> = (0..cols).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
            let w = Rows::new(format, &bytes);
            let (mut ours, mut exact) = (vec![f32::NAN; count], vec![f32::NAN; count]);
            dots(w, first, &Activations::new(&x, format), &mut ours);
            plain(format, w.bytes_of(first..first + count, cols), &x, &mut exact);
            let mut wide = vec![0.0; cols];
            for (row, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
                w.widen(first + row..first + row + 1, 0..cols, cols, &mut wide);
                let length = math::dot(&wide, &wide).sqrt() * math::dot(&x, &x).sqrt();
                prop_assert!((ours - exact).abs() <= 3e-5 * length, "{ours} {exact} {length}");
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let bytes = rows(Format::Q8_0, 64, 1);
        for (bad, count) in [(f32::NAN, 1), (f32::INFINITY, 1), (f32::NAN, 32)] {
            let mut x = vec![0.5; 64];
            x[32..32 + count].fill(bad);
            let mut out = [0.0];
            dots(Rows::new(Format::Q8_0, &bytes), 0, &Activations::new(&x, Format::Q8_0), &mut out);
            assert!(!out[0].is_finite(), "{bad} became {}", out[0]);
        }
    }
}
