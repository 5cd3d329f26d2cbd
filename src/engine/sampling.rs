//! The settings of one generation, and the check that they make sense.

use serde::{Deserialize, Serialize};

use super::error::EngineError;

/// How tokens are chosen and when an answer ends.
///
/// The filters apply in this order: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits, from 0 up; 0 always takes the likeliest token (the lowest id on a tie).
    pub temperature: f64,
    /// Keeps the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens until their probabilities sum to `top_p`, in (0, 1]; 1 keeps all.
    pub top_p: f64,
    /// Drops tokens less likely than `min_p` times the likeliest, in [0, 1]; 0 keeps all.
    pub min_p: f64,
    /// Divides positive (multiplies negative) logits of recent tokens, above 0; 1 changes nothing.
    pub repetition_penalty: f32,
    /// The most tokens to sample, at least 1.
    pub max_tokens: usize,
    /// The same seed, model and prompt give the same text.
    pub seed: u64,
    /// Texts that end the answer; they are no part of it.
    pub stop: Vec<String>,
}

impl Sampling {
    /// Returns settings that take the likeliest token `max_tokens` times at most.
    pub fn greedy(max_tokens: usize) -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_tokens,
            seed: 0,
            stop: Vec::new(),
        }
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// Returns [`EngineError::InvalidSampling`] naming the first setting out of range.
    pub fn validate(&self) -> Result<(), EngineError> {
        let penalty = self.repetition_penalty;
        let checks: [(bool, &'static str, String, &'static str); 6] = [
            (
                self.temperature.is_finite() && self.temperature >= 0.0,
                "temperature",
                self.temperature.to_string(),
                "a number from 0 up (0 takes the likeliest token)",
            ),
            (
                self.top_p > 0.0 && self.top_p <= 1.0,
                "top_p",
                self.top_p.to_string(),
                "a number above 0 and up to 1 (1 keeps all tokens)",
            ),
            (
                (0.0..=1.0).contains(&self.min_p),
                "min_p",
                self.min_p.to_string(),
                "a number from 0 to 1 (0 keeps all tokens)",
            ),
            (
                penalty.is_finite() && penalty > 0.0,
                "repetition_penalty",
                penalty.to_string(),
                "a number above 0 (1 changes nothing)",
            ),
            (
                self.max_tokens > 0,
                "max_tokens",
                self.max_tokens.to_string(),
                "a whole number from 1 up",
            ),
            (
                self.stop.iter().all(|stop| !stop.is_empty()),
                "stop",
                format!("{:?}", self.stop),
                "texts of at least one character",
            ),
        ];
        for (valid, name, value, allowed) in checks {
            if !valid {
                return Err(EngineError::InvalidSampling { name, value, allowed });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named_with_what_would_be_right() {
        let good = Sampling::greedy(1);
        assert!(good.validate().is_ok());
        let bad = [
            ("temperature", Sampling { temperature: -0.1, ..good.clone() }),
            ("temperature", Sampling { temperature: f64::NAN, ..good.clone() }),
            ("top_p", Sampling { top_p: 0.0, ..good.clone() }),
            ("top_p", Sampling { top_p: f64::NAN, ..good.clone() }),
            ("min_p", Sampling { min_p: 1.5, ..good.clone() }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..good.clone() }),
            ("max_tokens", Sampling { max_tokens: 0, ..good.clone() }),
            ("stop", Sampling { stop: vec![String::new()], ..good.clone() }),
        ];
        for (setting, sampling) in bad {
            let error = sampling.validate().expect_err(setting);
            assert!(
                matches!(&error, EngineError::InvalidSampling { name, .. } if *name == setting),
                "{error}"
            );
        }
    }
}
