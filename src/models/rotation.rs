//! Cosines and sines of the tokens' positions.

use candle_core::{Device, Result, Tensor};

use super::Rope;

/// What turns the heads of some tokens, `[tokens, rotated / 2]` each.
pub(super) struct Rotation {
    pub cos: Tensor,
    pub sin: Tensor,
}

impl Rotation {
    /// Computes that of the given positions.
    pub fn new(rope: &Rope, positions: &[u32], device: &Device) -> Result<Self> {
        let frequencies = rope.frequencies();
        let angles: Vec<f32> = positions
            .iter()
            .flat_map(|&position| frequencies.iter().map(move |f| position as f32 * f))
            .collect();
        let angles = Tensor::from_vec(angles, (positions.len(), frequencies.len()), device)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        match rope.attention_factor() {
            1.0 => Ok(Self { cos, sin }),
            factor => Ok(Self { cos: (cos * factor)?, sin: (sin * factor)? }),
        }
    }
}
