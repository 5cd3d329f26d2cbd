//! Chooses the next token from the model's logits.
//!
//! The order is that of transformers' logits processors: repetition penalty (Keskar et al. 2019,
//! arXiv 1909.05858), temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020, arXiv
//! 1904.09751), min-p (Nguyen et al. 2024, arXiv 2407.01082). No filter sorts the whole
//! vocabulary: on 150,000 tokens that costs more than a layer of a small model.

use std::cmp::Ordering;

use candle_core::{DType, Tensor};
use candle_transformers::utils::apply_repeat_penalty;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::error::EngineError;
use super::sampling::Sampling;
use crate::models::kernels::math::sum_exp;

/// Tokens before the next one that the repetition penalty looks at: long enough to break loops of
/// a sentence, short enough that a long answer may still use common words.
pub const REPETITION_WINDOW: usize = 64;

/// Candidates that top-p sorts at first. Nearly always their mass is enough.
const TOP_P_HEAD: usize = 256;

/// How much the candidates grow when the mass of those sorted is below `top_p`.
const TOP_P_GROWTH: usize = 8;

/// Draws tokens with one seeded generator of random numbers.
pub struct Sampler {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    repetition_penalty: f32,
    rng: StdRng,
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    token: u32,
    /// Its probability relative to the likeliest token, in [0, 1].
    weight: f64,
}

impl Sampler {
    /// Makes a sampler that starts from the settings' seed.
    pub fn new(sampling: &Sampling) -> Self {
        Self {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            rng: StdRng::seed_from_u64(sampling.seed),
        }
    }

    /// Chooses the next token from `logits` `[vocab]`; `recent` are the tokens that the repetition
    /// penalty applies to.
    ///
    /// # Errors
    /// Returns [`EngineError::NonFiniteLogits`] when a logit is NaN or infinite.
    pub fn sample(&mut self, logits: &Tensor, recent: &[u32]) -> Result<u32, EngineError> {
        let penalised = self.repetition_penalty != 1.0 && !recent.is_empty();
        let logits = if penalised {
            apply_repeat_penalty(logits, self.repetition_penalty, recent)?
        } else {
            logits.to_dtype(DType::F32)?
        };
        self.choose(&logits.to_vec1::<f32>()?)
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, EngineError> {
        let likeliest = argmax(logits)?;
        if self.temperature == 0.0 {
            return Ok(likeliest);
        }
        let candidates = self.candidates(logits, logits[likeliest as usize]);
        let mass: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        let mut left = self.rng.random::<f64>() * mass;
        for candidate in &candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return Ok(candidate.token);
            }
        }
        // Rounding of the sum can leave a last hair of mass to nobody.
        Ok(likeliest)
    }

    /// Returns the tokens that pass all filters. With a filter on ranks they come likeliest first,
    /// otherwise by id.
    fn candidates(&self, logits: &[f32], max: f32) -> Vec<Candidate> {
        let weight = |logit: f32| ((f64::from(logit) - f64::from(max)) / self.temperature).exp();
        let weigh = |ids: Vec<u32>| -> Vec<Candidate> {
            let candidate = |token| Candidate { token, weight: weight(logits[token as usize]) };
            ids.into_iter().map(candidate).collect()
        };
        let mut kept = if (1..logits.len()).contains(&self.top_k) {
            let mut kept = weigh(likeliest(logits, self.top_k));
            // At 1 nothing goes, not even weights too small to move the sum.
            if self.top_p < 1.0 {
                let mass: f64 = kept.iter().map(|candidate| candidate.weight).sum();
                kept.truncate(nucleus(&kept, self.top_p * mass).unwrap_or(kept.len()));
            }
            kept
        } else if self.top_p < 1.0 {
            let mass = sum_exp(logits, max, (1.0 / self.temperature) as f32);
            let mut head = TOP_P_HEAD;
            loop {
                let mut kept = weigh(likeliest(logits, head));
                match nucleus(&kept, self.top_p * mass) {
                    Some(len) => kept.truncate(len),
                    None if head < logits.len() => {
                        head *= TOP_P_GROWTH;
                        continue;
                    }
                    None => {}
                }
                break kept;
            }
        } else {
            weigh((0..logits.len() as u32).collect())
        };
        kept.retain(|candidate| candidate.weight >= self.min_p);
        kept
    }
}

/// Returns the id of the largest logit, the lowest id on a tie.
fn argmax(logits: &[f32]) -> Result<u32, EngineError> {
    let mut best = 0;
    for (token, &value) in logits.iter().enumerate() {
        if !value.is_finite() {
            return Err(EngineError::NonFiniteLogits { token, value });
        }
        if value > logits[best] {
            best = token;
        }
    }
    if logits.is_empty() {
        return Err(candle_core::Error::Msg("the model gave no logits".into()).into());
    }
    Ok(best as u32)
}

/// Orders tokens likeliest first, the lower id first on a tie.
fn by_rank(logits: &[f32]) -> impl Fn(&u32, &u32) -> Ordering + '_ {
    |&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// Returns the ids of the `count` largest logits, largest first.
///
/// One pass that keeps at most twice `count` ids: whenever that many are in, a partial selection
/// halves them and raises the bar for the rest.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let rank = by_rank(logits);
    let mut kept: Vec<u32> = Vec::with_capacity((2 * count).min(logits.len()));
    let mut bar = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        // An equal logit with a higher id ranks below those that set the bar.
        if logit > bar {
            kept.push(token as u32);
            if kept.len() == 2 * count {
                let (_, last, _) = kept.select_nth_unstable_by(count - 1, &rank);
                bar = logits[*last as usize];
                kept.truncate(count);
            }
        }
    }
    kept.sort_unstable_by(&rank);
    kept.truncate(count);
    kept
}

/// Returns how many of `sorted` (likeliest first) it takes to reach `mass`, none if all are less.
fn nucleus(sorted: &[Candidate], mass: f64) -> Option<usize> {
    let mut sum = 0.0;
    let reached = sorted.iter().position(|candidate| {
        sum += candidate.weight;
        sum >= mass
    });
    reached.map(|index| index + 1)
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
