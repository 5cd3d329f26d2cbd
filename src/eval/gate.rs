//! The gate: no adapter goes live unmeasured.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::neighbours::NeighbourLoss;
use super::{ItemLoss, Measurements};

/// Losses closer than this, in nats per token, count as a tie.
const TIE: f64 = 1e-3;
/// A mean loss below this, in nats per token, leaves nothing to learn.
const KNOWN: f64 = 0.02;
/// What the loss of held-out examples is called.
const HELDOUT: &str = "held-out loss";
/// The bootstrap draws the same samples for the same numbers: a verdict can be repeated.
const BOOTSTRAP_SEED: u64 = 0x5EED;

/// When an adapter may pass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GateConfig {
    /// Ceiling of KL(base ‖ adapter) on general prompts, nats per token.
    pub max_kl: f64,
    /// Share of questions like the taught ones about something else that may get a taught answer.
    pub max_taken_over: f64,
    /// The ceiling of the KL for an adapter that holds a rule for every answer.
    pub rule_max_kl: f64,
    /// Confidence of the bootstrap interval.
    pub confidence: f64,
    /// Draws of the bootstrap.
    pub bootstrap_samples: usize,
}

impl GateConfig {
    /// Returns the ceiling of the KL for an adapter that holds a rule or does not.
    pub fn ceiling(&self, rule: bool) -> f64 {
        if rule { self.max_kl.max(self.rule_max_kl) } else { self.max_kl }
    }
}

/// Old against new on the same items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Items with a lower loss.
    pub better: usize,
    /// Items with a higher loss.
    pub worse: usize,
    /// Items without a difference.
    pub equal: usize,
    /// Mean loss before, nats per token.
    pub before: f64,
    /// Mean loss after.
    pub after: f64,
    /// Bootstrap interval of the mean change (after − before).
    pub interval: (f64, f64),
}

/// What the gate saw and why it decided so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    /// The new examples.
    pub trained: Comparison,
    /// The examples that training never saw, if there are any.
    pub heldout: Option<Comparison>,
    /// The general prompts.
    pub general: Option<Comparison>,
    /// The base with the note in its prompt (`before`) against the adapter without it (`after`), on the held-out items, or
    /// where there are none on the new ones.
    #[serde(default)]
    pub prompted: Option<Comparison>,
    /// KL(base ‖ adapter) on the general prompts, nats per token.
    pub kl: f64,
    /// Its ceiling.
    pub max_kl: f64,
    /// Questions like the taught ones about something else: how many get a taught answer, of how many.
    #[serde(default)]
    pub taken_over: Option<(usize, usize)>,
    /// How many of them may.
    #[serde(default)]
    pub may_be_taken_over: Option<usize>,
    /// Whether the adapter passed.
    pub promoted: bool,
    /// Why not, in words for the user; empty if it passed.
    pub reasons: Vec<String>,
}

/// Proof that the gate let an adapter pass; nothing else can make one.
///
/// ```
/// fn needs_proof(_: shammah::eval::Promotion) {}
/// ```
///
/// ```compile_fail
/// let forged = shammah::eval::Promotion { _private: () };
/// ```
///
/// It cannot be read from data either:
///
/// ```compile_fail
/// let forged: shammah::eval::Promotion = serde_json::from_str("{}").unwrap();
/// ```
#[derive(Debug)]
pub struct Promotion {
    _private: (),
}

impl Promotion {
    /// Makes the proof without a gate, for the tests of the store.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { _private: () }
    }
}

/// The gate's decision.
#[derive(Debug)]
pub enum Verdict {
    /// The adapter may go live.
    Promote(Promotion),
    /// It may not; the reasons are in words for the user.
    Reject {
        /// Why.
        reasons: Vec<String>,
    },
}

/// Judges measurements.
///
/// An adapter passes if the trained items improve, the held-out items are not worse beyond the
/// interval, the divergence from the base stays under its ceiling, questions like the taught ones about something else
/// keep their answers but for a share, and training did not explode.
pub fn gate(m: &Measurements, config: &GateConfig) -> (GateReport, Verdict) {
    let compare = |items: &[ItemLoss]| (!items.is_empty()).then(|| Comparison::of(items, config));
    let trained = Comparison::of(&m.trained, config);
    let heldout = compare(&m.heldout);
    let (general, prompted) = (compare(&m.general), compare(&m.prompted));
    let mut reasons = Vec::new();
    if !all_finite(m) {
        reasons.push(
            "a measured loss is no number: training broke down; lower lora.training.learning_rate, and look at the examples with `shammah feedback list`".to_owned(),
        );
    }
    if let Some(step) = m.exploded_at {
        reasons.push(format!(
            "training diverged and was stopped at step {step}: lower lora.training.learning_rate"
        ));
    }
    let improved = trained.after < trained.before - TIE && trained.better > trained.worse;
    if !improved && trained.before < KNOWN && !m.trained.is_empty() {
        reasons.push(format!(
            "it knew the new examples already: {}; mark answers that should be otherwise",
            trained.describe("loss")
        ));
    } else if !improved {
        reasons.push(format!(
            "it did not learn the new examples: {}; look for marks that contradict each other (`shammah feedback list`), or raise lora.training.epochs",
            trained.describe("loss")
        ));
    }
    if let Some(heldout) = heldout.filter(|h| h.interval.0 > TIE) {
        reasons.push(format!(
            "it got worse on examples it never saw: {}; mark more answers about the same, or see whether the marks agree with each other",
            heldout.describe(HELDOUT)
        ));
    }
    let max_kl = config.ceiling(m.rule);
    let under_ceiling = m.kl <= max_kl;
    if !under_ceiling {
        reasons.push(format!(
            "it changes answers to unrelated questions (KL {:.3} above {:.3}): mark some of those with /good so that they stay, raise lora.training.anchor, or lower lora.training.learning_rate",
            m.kl, max_kl
        ));
    }
    let taken_over = taken_over(&m.neighbours);
    let allowed = |asked: usize| (config.max_taken_over * asked as f64) as usize;
    if let Some((taken, asked)) = taken_over
        && taken > allowed(asked)
    {
        reasons.push(format!(
            "{taken} of {asked} questions like the taught ones about something else begin with a taught answer now, at most {} may: mark some such questions with their right answers, raise lora.training.anchor, or, if they are meant to, lora.gate.max_taken_over",
            allowed(asked)
        ));
    }
    let report = GateReport {
        trained,
        heldout,
        general,
        prompted,
        kl: m.kl,
        max_kl,
        taken_over,
        may_be_taken_over: taken_over.map(|(_, asked)| allowed(asked)),
        promoted: reasons.is_empty(),
        reasons: reasons.clone(),
    };
    let verdict = match reasons.is_empty() {
        true => Verdict::Promote(Promotion { _private: () }),
        false => Verdict::Reject { reasons },
    };
    (report, verdict)
}

/// Returns how many questions about something else got a taught answer, and of how many; none where none was asked.
pub(super) fn taken_over(neighbours: &[NeighbourLoss]) -> Option<(usize, usize)> {
    let taken = neighbours.iter().filter(|n| n.is_taken_over()).count();
    (!neighbours.is_empty()).then_some((taken, neighbours.len()))
}

fn all_finite(m: &Measurements) -> bool {
    // What a prompt gives decides nothing.
    let items = m.trained.iter().chain(&m.heldout).chain(&m.general);
    let neighbours = m.neighbours.iter().flat_map(|n| [n.own, n.taught]);
    items.flat_map(|i| [i.before, i.after]).chain(neighbours).chain([m.kl]).all(f64::is_finite)
}

impl Comparison {
    /// Returns `5 better, 1 worse (held-out loss 1.92 → 1.41)`, with `loss` for what was compared.
    pub fn describe(&self, loss: &str) -> String {
        let equal = if self.equal > 0 { format!(", {} equal", self.equal) } else { String::new() };
        let Self { better, worse, before, after, .. } = self;
        format!("{better} better, {worse} worse{equal} ({loss} {before:.2} → {after:.2})")
    }

    /// Says of a comparison with a prompt (`before`) which does better.
    pub fn against_prompt(&self) -> &'static str {
        match self.interval {
            (_, high) if high < -TIE => "training does better",
            (low, _) if low > TIE => "the prompt does better: a note there may be all you need",
            _ => "no clear difference",
        }
    }

    /// Compares pairs of losses; of no pairs, everything is 0.
    pub fn of(items: &[ItemLoss], config: &GateConfig) -> Self {
        let n = items.len().max(1) as f64;
        let change = |i: &ItemLoss| i.after - i.before;
        let better = items.iter().filter(|i| change(i) < -TIE).count();
        let worse = items.iter().filter(|i| change(i) > TIE).count();
        let changes: Vec<f64> = items.iter().map(change).collect();
        Self {
            better,
            worse,
            equal: items.len() - better - worse,
            before: items.iter().map(|i| i.before).sum::<f64>() / n,
            after: items.iter().map(|i| i.after).sum::<f64>() / n,
            interval: bootstrap(&changes, config),
        }
    }
}

/// Percentile bootstrap interval of the mean (Efron 1979).
fn bootstrap(values: &[f64], config: &GateConfig) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let mut rng = StdRng::seed_from_u64(BOOTSTRAP_SEED);
    let samples = config.bootstrap_samples.max(1);
    let mut means: Vec<f64> = (0..samples)
        .map(|_| {
            let sum: f64 = values.iter().map(|_| values[rng.random_range(0..values.len())]).sum();
            sum / values.len() as f64
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    // Out of range, the widest interval there is.
    let confidence = if (0.0..=1.0).contains(&config.confidence) { config.confidence } else { 1.0 };
    let tail = (1.0 - confidence) / 2.0;
    let at = |share: f64| means[((samples - 1) as f64 * share).round() as usize];
    (at(tail), at(1.0 - tail))
}

impl std::fmt::Display for GateReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; ", self.trained.describe("trained loss"))?;
        match &self.heldout {
            Some(heldout) => write!(f, "{}; ", heldout.describe(HELDOUT))?,
            None => write!(f, "nothing held out yet; ")?,
        }
        write!(f, "KL to the base {:.3} (at most {:.3})", self.kl, self.max_kl)?;
        if let Some((taken, asked)) = self.taken_over {
            write!(
                f,
                "; {taken} of {asked} questions about something else begin with a taught answer"
            )?;
            if let Some(most) = self.may_be_taken_over {
                write!(f, " (at most {most})")?;
            }
        }
        match self.against_prompt() {
            Some(line) => write!(f, "; {line}"),
            None => Ok(()),
        }
    }
}

impl GateReport {
    /// Says how training compares with saying it in the prompt.
    pub fn against_prompt(&self) -> Option<String> {
        let prompted = self.prompted?;
        let Comparison { better, worse, before, after, .. } = prompted;
        let verdict = prompted.against_prompt();
        Some(format!(
            "with the note in the prompt instead: loss {before:.2}, trained {after:.2} ({better} better, {worse} worse), {verdict}"
        ))
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
