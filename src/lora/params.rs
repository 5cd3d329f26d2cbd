//! The hyper-parameters of a job, every one resolved, and what is decided by the model's size.

use serde::{Deserialize, Serialize};

/// How an example's weight enters training; it enters once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// It scales the example's loss.
    Loss,
    /// It makes the example be drawn more often.
    Sampling,
}

/// How much pairs of a better and a criticised answer count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preference {
    /// Factor of their loss beside the cross-entropy; 0 is off.
    pub weight: f64,
    /// How strongly it holds to the base (the β of DPO), above 0.
    pub beta: f64,
}

impl Preference {
    /// They do not count.
    pub const OFF: Self = Self { weight: 0.0, beta: 0.1 };
}

impl Default for Preference {
    fn default() -> Self {
        Self::OFF
    }
}

/// Everything that decides what a job computes, besides its data. Stored with the adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingParams {
    /// Rank of the factors.
    pub rank: usize,
    /// Scale: the output counts `alpha / rank` times.
    pub alpha: f64,
    /// The output counts `alpha / √rank` times instead (rsLoRA).
    pub rslora: bool,
    /// The rows' lengths are learned by themselves (DoRA).
    pub dora: bool,
    /// Probability that an adapter's input is zeroed.
    pub dropout: f64,
    /// Names of the adapted projections.
    pub target_modules: Vec<String>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Examples per step.
    pub batch_size: usize,
    /// Passes over the examples, if that is `min_steps` at least.
    pub epochs: usize,
    /// Steps at least.
    pub min_steps: usize,
    /// How weights enter.
    pub weighting: Weighting,
    /// How much preference pairs count; adapters of earlier versions were trained without.
    #[serde(default)]
    pub preference: Preference,
    /// Share of the steps that warm up.
    pub warmup_ratio: f64,
    /// Seed of first values, order and dropout.
    pub seed: u64,
    /// Norm to which gradients are clipped; 0 switches it off.
    pub max_grad_norm: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weight of the KL divergence from the base on anchor prompts.
    pub anchor: f64,
    /// Anchor prompts per step.
    pub anchor_prompts: usize,
    /// Largest share of an epoch's weight that one example may have, a fraction.
    pub max_share: f64,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: usize,
    /// Each epoch asks the questions in another form ([`FORMS`]).
    #[serde(default)]
    pub paraphrase: bool,
    /// Questions like the taught ones about something else among the anchor prompts, at most.
    #[serde(default)]
    pub neighbour_prompts: usize,
}

/// The forms of a question: as it was asked, without capital and punctuation, its rare words alone, and two that ask to be
/// told.
pub const FORMS: usize = 5;

impl TrainingParams {
    /// Returns how many forms of each example a training set holds, one form after the other.
    pub fn forms(&self) -> usize {
        if self.paraphrase { FORMS } else { 1 }
    }
}

/// Defaults that go by the model's size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SizeDefaults {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps at least.
    pub min_steps: usize,
    /// Steps at least for each example, replayed ones too.
    pub steps_per_example: usize,
    /// Weight of the anchor.
    pub anchor: f64,
    /// The same for a job that teaches a rule for every answer ([`super::rule()`]).
    pub rule_anchor: f64,
    /// Anchor prompts per step.
    pub anchor_prompts: usize,
    /// Questions like the taught ones about something else that the anchor holds.
    pub neighbour_prompts: usize,
    /// Whether each epoch asks the questions in another form.
    pub paraphrase: bool,
}

impl SizeDefaults {
    /// Returns the steps that a job with so many examples takes at least.
    pub fn steps(&self, examples: usize) -> usize {
        self.min_steps.max(self.steps_per_example.saturating_mul(examples).min(MOST_STEPS))
    }
}

/// Steps that examples ask for by their number at most: a hundred marks shall not train for an hour.
const MOST_STEPS: usize = 300;

/// Below this many parameters a model needs far larger steps (docs/LOG.md has the sweep).
const TINY: usize = 50_000_000;
/// From this many parameters on, learning.md's sweep on 0.5 B holds.
const SMALL: usize = 400_000_000;

/// Returns the defaults for a model of so many parameters.
pub fn size_defaults(parameters: usize) -> SizeDefaults {
    if parameters < TINY {
        SizeDefaults {
            learning_rate: 2e-3,
            min_steps: 60,
            steps_per_example: 6,
            anchor: 1.0,
            rule_anchor: 0.02,
            anchor_prompts: 8,
            neighbour_prompts: 100,
            paraphrase: true,
        }
    } else if parameters < SMALL {
        SizeDefaults {
            learning_rate: 5e-4,
            min_steps: 60,
            steps_per_example: 0,
            anchor: 0.5,
            rule_anchor: 0.5,
            anchor_prompts: 4,
            neighbour_prompts: 0,
            paraphrase: false,
        }
    } else {
        SizeDefaults {
            learning_rate: 2e-4,
            min_steps: 30,
            steps_per_example: 0,
            anchor: 0.1,
            rule_anchor: 0.1,
            anchor_prompts: 4,
            neighbour_prompts: 0,
            paraphrase: false,
        }
    }
}
