//! Rotary frequencies and what stretches them, as transformers computes them.

use std::f64::consts::PI;
use std::path::Path;

use serde::Deserialize;

use super::super::ModelError;
use super::unsupported;

/// Rotary position embedding of a layer (Su et al. 2021).
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// So many numbers of a head, the first ones, are rotated; an even count.
    pub dims: usize,
    /// What stretches the frequencies.
    pub scaling: RopeScaling,
}

/// What brings positions of a longer context into the range that a model was trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// All frequencies divided by one factor (Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones left, those between blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Waves longer than `original_context / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Waves shorter than `original_context / high_freq_factor` are high.
        high_freq_factor: f64,
        /// Tokens of the context before stretching.
        original_context: f64,
    },
    /// YaRN (Peng et al. 2023): as Llama 3, blended along the frequencies' indices, with sharper attention.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Tokens of the context before stretching.
        original_context: f64,
        /// Frequencies of more rotations in that context are left.
        beta_fast: f64,
        /// Frequencies of fewer rotations are divided.
        beta_slow: f64,
        /// Whether the bounds of the blend are whole indices.
        truncate: bool,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// Each frequency divided by a number of its own (LongRoPE, Ding et al. 2024).
    Divided {
        /// The divisors, one a frequency.
        divisors: Vec<f32>,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
}

impl Rope {
    /// Returns the `dims / 2` frequencies, radians a position. In f32, as transformers computes them.
    pub fn frequencies(&self) -> Vec<f32> {
        let half = self.dims / 2;
        let plain = |i: usize| 1.0 / (self.theta as f32).powf(i as f32 / half as f32);
        let each = |f: &dyn Fn(usize, f32) -> f32| (0..half).map(|i| f(i, plain(i))).collect();
        match &self.scaling {
            RopeScaling::None => each(&|_, f| f),
            RopeScaling::Linear { factor } => each(&|_, f| f / *factor as f32),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let (low, high) = (*low_freq_factor as f32, *high_freq_factor as f32);
                let (factor, context) = (*factor as f32, *original_context as f32);
                each(&|_, f| {
                    let wave = 2.0 * PI as f32 / f;
                    if wave > context / low {
                        f / factor
                    } else if wave < context / high {
                        f
                    } else {
                        let kept = (context / wave - low) / (high - low);
                        (1.0 - kept) * f / factor + kept * f
                    }
                })
            }
            RopeScaling::Yarn { factor, .. } => {
                let (low, high) = self.yarn_blend();
                each(&|i, f| {
                    let divided = ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    f / *factor as f32 * divided + f * (1.0 - divided)
                })
            }
            RopeScaling::Divided { divisors, .. } => {
                each(&|i, f| f / divisors.get(i).copied().unwrap_or(1.0))
            }
        }
    }

    /// Returns the indices between which YaRN blends.
    fn yarn_blend(&self) -> (f32, f32) {
        let RopeScaling::Yarn { original_context, beta_fast, beta_slow, truncate, .. } =
            self.scaling
        else {
            return (0.0, 1.0);
        };
        let dims = self.dims as f64;
        let index = |rotations: f64| {
            dims * (original_context / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (index(beta_fast), index(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        (low as f32, high as f32)
    }

    /// Returns the factor on cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. }
            | RopeScaling::Divided { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }
}

/// `rope_scaling` of transformers 4 or `rope_parameters` of transformers 5.
#[derive(Deserialize, Default)]
pub(super) struct RawRope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f32>>,
}

/// What a model's config says beside the parameters.
pub(super) struct RopeReader<'a> {
    pub path: &'a Path,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    /// `rope_theta` at the top level, or what transformers takes without one.
    pub theta: f64,
    /// `partial_rotary_factor` at the top level.
    pub partial: Option<f64>,
    /// `original_max_position_embeddings` at the top level, which goes before that of the parameters.
    pub original: Option<f64>,
    /// Phi-3: the one family that rotates a part of each head, and whose old files say `su` and `yarn` for longrope.
    pub phi3: bool,
}

impl RopeReader<'_> {
    /// Returns what the parameters say, and the longest context, in tokens, for which it holds.
    pub fn read(&self, raw: &RawRope) -> Result<(Rope, usize), ModelError> {
        let theta = raw.rope_theta.unwrap_or(self.theta);
        let part = raw.partial_rotary_factor.or(self.partial).unwrap_or(1.0);
        if !self.phi3 && part != 1.0 {
            let what = format!("partial_rotary_factor {part} in this family");
            return Err(unsupported(self.path, what, "choose a model that rotates whole heads"));
        }
        let dims = (self.head_dim as f64 * part) as usize;
        if dims == 0 || !dims.is_multiple_of(2) || dims > self.head_dim {
            let problem = format!("{dims} of {} numbers of a head are rotated", self.head_dim);
            return Err(self.invalid(format!("{problem}, rotary embedding needs pairs")));
        }
        if !(theta.is_finite() && theta > 0.0) {
            return Err(self.invalid(format!("rope_theta is {theta}, not a positive number")));
        }
        let kind = raw.rope_type.as_deref().or(raw.old_type.as_deref()).unwrap_or("default");
        let mut context = self.max_position_embeddings;
        let scaling = match kind {
            // Dynamic scaling begins beyond the context that a model has.
            "default" | "dynamic" => RopeScaling::None,
            "longrope" | "su" | "yarn" if self.phi3 || kind == "longrope" => {
                let original = self.original(raw)?;
                // Beyond it other divisors would hold, for keys in the cache as well.
                context = context.min(original as usize);
                self.longrope(raw, dims, original)?
            }
            "linear" => RopeScaling::Linear { factor: self.positive("factor", raw.factor)? },
            "llama3" => self.llama3(raw)?,
            "yarn" => self.yarn(raw, theta)?,
            other => {
                return Err(unsupported(
                    self.path,
                    format!("rope scaling \"{other}\""),
                    "choose a model with rope scaling of the types default, linear, dynamic, llama3, yarn or longrope",
                ));
            }
        };
        Ok((Rope { theta, dims, scaling }, context))
    }

    fn llama3(&self, raw: &RawRope) -> Result<RopeScaling, ModelError> {
        let low_freq_factor = self.positive("low_freq_factor", raw.low_freq_factor)?;
        let high_freq_factor = self.positive("high_freq_factor", raw.high_freq_factor)?;
        if low_freq_factor >= high_freq_factor {
            let problem =
                format!("low_freq_factor {low_freq_factor} is not below {high_freq_factor}");
            return Err(self.invalid(format!("{problem}, its high_freq_factor")));
        }
        Ok(RopeScaling::Llama3 {
            factor: self.positive("factor", raw.factor)?,
            low_freq_factor,
            high_freq_factor,
            original_context: self.original(raw)?,
        })
    }

    fn yarn(&self, raw: &RawRope, theta: f64) -> Result<RopeScaling, ModelError> {
        let original_context = self.original(raw)?;
        if theta <= 1.0 {
            return Err(self.invalid(format!("rope_theta is {theta}, yarn needs more than 1")));
        }
        let implied = self.max_position_embeddings as f64 / original_context;
        let factor = self.positive("factor", raw.factor.or(Some(implied)))?;
        let scale =
            |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let given = |value: Option<f64>| value.filter(|v| *v != 0.0);
        let suggested = match (given(raw.mscale), given(raw.mscale_all_dim)) {
            (Some(one), Some(all)) => scale(one) / scale(all),
            _ => scale(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast: self.positive("beta_fast", given(raw.beta_fast).or(Some(32.0)))?,
            beta_slow: self.positive("beta_slow", given(raw.beta_slow).or(Some(1.0)))?,
            truncate: raw.truncate.unwrap_or(true),
            attention_factor: self
                .positive("attention_factor", raw.attention_factor.or(Some(suggested)))?,
        })
    }

    fn longrope(
        &self,
        raw: &RawRope,
        dims: usize,
        original: f64,
    ) -> Result<RopeScaling, ModelError> {
        let Some(divisors) = raw.short_factor.clone() else {
            return Err(self.invalid("its rope scaling has no short_factor".into()));
        };
        if divisors.len() != dims / 2 || !divisors.iter().all(|d| d.is_finite() && *d > 0.0) {
            let problem = format!("short_factor holds {} numbers", divisors.len());
            return Err(self.invalid(format!("{problem}, not {} positive ones", dims / 2)));
        }
        let implied = self.max_position_embeddings as f64 / original;
        let factor = self.positive("factor", raw.factor.or(Some(implied)))?;
        let suggested = match factor {
            f if f <= 1.0 => 1.0,
            f => (1.0 + f.ln() / original.ln()).sqrt(),
        };
        let given = raw.attention_factor.or(Some(suggested));
        let attention_factor = self.positive("attention_factor", given)?;
        Ok(RopeScaling::Divided { divisors, attention_factor })
    }

    /// Returns the tokens of the context before stretching.
    fn original(&self, raw: &RawRope) -> Result<f64, ModelError> {
        let given = self.original.or(raw.original_max_position_embeddings);
        let given = given.unwrap_or(self.max_position_embeddings as f64);
        if given >= 2.0 {
            return self.positive("original_max_position_embeddings", Some(given));
        }
        Err(self.invalid(format!("original_max_position_embeddings is {given}, less than 2")))
    }

    fn positive(&self, key: &str, value: Option<f64>) -> Result<f64, ModelError> {
        match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            Some(value) => Err(self.invalid(format!("{key} is {value}, not a positive number"))),
            None => Err(self.invalid(format!("its rope scaling has no {key}"))),
        }
    }

    fn invalid(&self, problem: String) -> ModelError {
        ModelError::invalid(self.path, problem, "check the file's origin")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Vec<f32> {
        Rope { theta: 10_000.0, dims: 8, scaling }.frequencies()
    }

    #[test]
    fn llama3_leaves_high_frequencies_divides_low_ones_and_blends_between() {
        let plain = rope(RopeScaling::None);
        let scaled = rope(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 128.0,
        });
        // Waves of 6, 63, 628 and 6283 positions: high up to 32, low from 128 on.
        assert_eq!((scaled[0], scaled[2], scaled[3]), (plain[0], plain[2] / 8.0, plain[3] / 8.0));
        assert!(scaled[1] < plain[1] && scaled[1] > plain[1] / 8.0);
    }

    #[test]
    fn each_frequency_has_its_own_divisor() {
        let plain = rope(RopeScaling::None);
        let divisors = vec![1.0, 2.0, 4.0, 8.0];
        let scaled = rope(RopeScaling::Divided { divisors, attention_factor: 1.2 });
        let expected: Vec<f32> = (0..4).map(|i| plain[i] / (1 << i) as f32).collect();
        assert_eq!(scaled, expected);
    }
}
