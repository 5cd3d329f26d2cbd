//! The formats in which matrices are kept: whole and half floats, and the blocks of a few bits of GGUF files.
//!
//! The layouts are those of ggml (`ggml-common.h`), little-endian.

/// How the weights of a row lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4 bytes each.
    F32,
    /// IEEE half precision, 2 bytes each.
    F16,
    /// The upper half of an f32, 2 bytes each.
    Bf16,
    /// 32 weights: an f16 scale `d`, 32 signed bytes.
    Q8_0,
    /// 32 weights: `d`, 16 bytes of two nibbles, each less 8.
    Q4_0,
    /// 32 weights: `d`, a fifth bit of each, 16 bytes of two nibbles; each less 16.
    Q5_0,
    /// 256 weights: `d`, `dmin`, 8 scales and minima of 6 bits, 128 bytes of two nibbles.
    Q4K,
    /// The same with a fifth bit of each weight before the nibbles.
    Q5K,
    /// 256 weights: low nibbles, high pairs of bits, 16 signed scales, `d`; each less 32.
    Q6K,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 9] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q5_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Returns the weights of a block.
    pub const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q5_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Returns the bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q5_0 => 22,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Returns the bytes of so many weights, which are whole blocks.
    pub const fn bytes(self, weights: usize) -> usize {
        weights / self.block() * self.block_bytes()
    }

    /// Returns the name, as GGUF files and config files spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q5_0 => "q5_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// Widens whole blocks to f32.
    #[inline(always)]
    pub(super) fn widen(self, data: &[u8], out: &mut [f32]) {
        let blocks = data.chunks_exact(self.block_bytes());
        let mut each = |f: fn(&[u8], &mut [f32])| {
            blocks.clone().zip(out.chunks_exact_mut(self.block())).for_each(|(b, out)| f(b, out));
        };
        match self {
            Self::F32 => numbers(data, out, f32::from_le_bytes),
            Self::F16 => numbers(data, out, |b| widen_f16(u16::from_le_bytes(b))),
            Self::Bf16 => numbers(data, out, |b| widen_bf16(u16::from_le_bytes(b))),
            Self::Q8_0 => each(q8_0),
            Self::Q4_0 => each(q4_0),
            Self::Q5_0 => each(q5_0),
            Self::Q4K => each(|block, out| four_or_five_k(block, out, false)),
            Self::Q5K => each(|block, out| four_or_five_k(block, out, true)),
            Self::Q6K => each(q6_k),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A bf16 is the upper half of an f32.
#[inline(always)]
pub(super) fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Widens an IEEE half without a branch: a product moves the exponent, exactly for subnormal numbers as well.
#[inline(always)]
pub(super) fn widen_f16(bits: u16) -> f32 {
    const TWO_TO_112: f32 = f32::from_bits(0x7780_0000);
    let bits = u32::from(bits);
    let magnitude = (bits & 0x7fff) << 13;
    let value = f32::from_bits(magnitude) * TWO_TO_112;
    let special = f32::from_bits(magnitude | 0x7f80_0000);
    let value = if bits & 0x7c00 == 0x7c00 { special } else { value };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

#[inline(always)]
fn numbers<const N: usize>(data: &[u8], out: &mut [f32], widen: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = data.as_chunks::<N>();
    for (out, bytes) in out.iter_mut().zip(numbers) {
        *out = widen(*bytes);
    }
}

#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    widen_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..34]) {
        *out = d * f32::from(q.cast_signed());
    }
}

#[inline(always)]
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &q) in low.iter_mut().zip(high).zip(&block[2..18]) {
        *low = d * f32::from((q & 15).cast_signed() - 8);
        *high = d * f32::from((q >> 4).cast_signed() - 8);
    }
}

#[inline(always)]
fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let (low, high) = out.split_at_mut(16);
    for (j, ((low, high), &q)) in low.iter_mut().zip(high).zip(&block[6..22]).enumerate() {
        let bit = |at: usize| ((fifth >> at & 1) << 4) as u8;
        *low = d * f32::from((q & 15 | bit(j)).cast_signed() - 16);
        *high = d * f32::from((q >> 4 | bit(j + 16)).cast_signed() - 16);
    }
}

/// Scales and minima of 6 bits, eight of each, out of 12 bytes.
#[inline(always)]
pub(super) fn scales_and_minima(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let [a, b, c] = [0, 4, 8]
        .map(|at| u32::from_le_bytes([packed[at], packed[at + 1], packed[at + 2], packed[at + 3]]));
    let six_bits = |word: u32| u64::from(word & 0x3f3f_3f3f);
    let joined = |low: u32, high: u32| {
        u64::from((low & 0x0f0f_0f0f) | ((high >> 6) & 0x0303_0303) << 4) << 32
    };
    let scales = six_bits(a) | joined(c, a);
    let minima = six_bits(b) | joined(c >> 4, b);
    (scales.to_le_bytes(), minima.to_le_bytes())
}

#[inline(always)]
fn four_or_five_k(block: &[u8], out: &mut [f32], five: bool) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let packed = std::array::from_fn(|i| block[4 + i]);
    let (scales, minima) = scales_and_minima(&packed);
    let (fifth, nibbles) = block[16..].split_at(if five { 32 } else { 0 });
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = (d * f32::from(scales[part]), dmin * f32::from(minima[part]));
        let quants = &nibbles[part / 2 * 32..][..32];
        let shift = part % 2 * 4;
        if five {
            for ((out, &q), &bits) in out.iter_mut().zip(quants).zip(fifth) {
                *out = scale * f32::from(q >> shift & 15 | (bits >> part & 1) << 4) - min;
            }
        } else {
            for (out, &q) in out.iter_mut().zip(quants) {
                *out = scale * f32::from(q >> shift & 15) - min;
            }
        }
    }
}

#[inline(always)]
fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 208);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&block[half * 64..][..64], &block[128 + half * 32..][..32]);
        let scales = &block[192 + half * 8..][..8];
        for (quarter, out) in out.chunks_exact_mut(32).enumerate() {
            let low = &low[quarter % 2 * 32..][..32];
            let (shift, pair) = (quarter / 2 * 4, quarter * 2);
            for (side, out) in out.chunks_exact_mut(16).enumerate() {
                let scale = d * f32::from(scales[quarter * 2 + side].cast_signed());
                let bits = low[side * 16..].iter().zip(&high[side * 16..]);
                for (out, (&low, &high)) in out.iter_mut().zip(bits) {
                    let q = low >> shift & 15 | (high >> pair & 3) << 4;
                    *out = scale * f32::from(q.cast_signed() - 32);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    use half::f16;

    use super::*;

    #[test]
    fn every_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, exact) = (widen_f16(bits), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == exact.to_bits() || ours.is_nan() && exact.is_nan(), "{bits}");
        }
    }

    #[test]
    fn blocks_hold_what_candle_reads_in_them() {
        let formats = [
            (Format::Q8_0, GgmlDType::Q8_0),
            (Format::Q4_0, GgmlDType::Q4_0),
            (Format::Q5_0, GgmlDType::Q5_0),
            (Format::Q4K, GgmlDType::Q4K),
            (Format::Q5K, GgmlDType::Q5K),
            (Format::Q6K, GgmlDType::Q6K),
        ];
        let weights = Tensor::randn(0f32, 1.0, (3, 512), &Device::Cpu).unwrap();
        for (format, theirs) in formats {
            let quantised = QTensor::quantize(&weights, theirs).unwrap();
            let data = quantised.data().unwrap();
            assert_eq!(data.len(), format.bytes(3 * 512), "{format:?}");
            let exact = quantised.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
            let mut ours = vec![f32::NAN; 3 * 512];
            format.widen(&data, &mut ours);
            assert_eq!(ours, exact.to_vec1::<f32>().unwrap(), "{format:?}");
        }
    }
}
