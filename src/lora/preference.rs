//! The preference loss: the better answer of a pair shall gain on the criticised one, measured against the base.
//!
//! L = −log σ(β · m), m = (log π(y₊) − log π(y₋)) − (log π₀(y₊) − log π₀(y₋)), with log-probabilities summed over the answers'
//! tokens, π₀ the base with the adapter off (Rafailov et al. 2023, arXiv 2305.18290).

use super::dataset::{self, Sequence};
use super::params::Preference;
use super::trainer;
use crate::domain::TrainExample;
use crate::models::{Decoder, ModelError, NoAdapter, Tokenizer};

/// The criticised answer beside an example.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The same conversation with the criticised answer.
    pub rejected: Sequence,
    /// What the base prefers by itself: log π₀(y₊) − log π₀(y₋), nats.
    pub reference: f64,
}

/// The pairs of a training set.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// By the index of the example; shorter where the rest has none.
    pub of: &'a [Option<Pair>],
    /// How much they count.
    pub strength: Preference,
}

impl<'a> Pairs<'a> {
    /// No example has one.
    pub const NONE: Self = Pairs { of: &[], strength: Preference::OFF };

    /// Returns the pair of an example, if it has one that counts.
    pub fn get(&self, index: usize) -> Option<&'a Pair> {
        let of = if self.strength.weight > 0.0 { self.of } else { &[] };
        of.get(index)?.as_ref()
    }
}

/// Returns the loss of a pair at a margin m, and its slope there.
pub fn pair_loss(margin: f64, beta: f64) -> (f64, f64) {
    let z = beta * margin;
    // log(1 + e⁻ᶻ) without overflow on either side.
    let value = (-z).max(0.0) + (-z.abs()).exp().ln_1p();
    (value, -beta / (1.0 + z.exp()))
}

/// Encodes the criticised answers of examples: by the index in `train`, those that have the same prompt there. What was left
/// out is noted.
///
/// # Errors
/// A tensor operation that fails; what the chat template refuses is noted.
pub fn encode(
    rejected: &[(i64, String)],
    examples: &[&TrainExample],
    train: &[Sequence],
    tokenizer: &Tokenizer,
    context_length: usize,
) -> Result<(Vec<Option<Sequence>>, Vec<String>), ModelError> {
    let (mut found, mut notes) = (vec![None; train.len()], Vec::new());
    for (index, taught) in train.iter().enumerate() {
        let answer = rejected.iter().find(|(id, _)| *id == taught.id);
        let example = examples.iter().find(|example| example.id == taught.id);
        let (Some((id, answer)), Some(example)) = (answer, example) else { continue };
        let wrong = TrainExample { target: answer.clone(), ..(*example).clone() };
        let encoded = dataset::encode(&[wrong], tokenizer, context_length)?.sequences;
        let prompt = |s: &Sequence| s.ids[..s.answer_start].to_vec();
        match encoded.into_iter().next().filter(|s| prompt(s) == prompt(taught)) {
            Some(sequence) => found[index] = Some(sequence),
            None => notes.push(format!(
                "example {id} makes no preference pair: its criticised answer does not fit beside the better one"
            )),
        }
    }
    Ok((found, notes))
}

/// Makes pairs: measures what the base prefers.
///
/// # Errors
/// A failed tensor operation.
pub fn pairs(
    decoder: &Decoder,
    train: &[Sequence],
    rejected: &[Option<Sequence>],
) -> Result<Vec<Option<Pair>>, ModelError> {
    let mut pairs = Vec::with_capacity(rejected.len());
    for (taught, rejected) in train.iter().zip(rejected) {
        let Some(rejected) = rejected else {
            pairs.push(None);
            continue;
        };
        let both = [taught.clone(), rejected.clone()];
        let losses = trainer::evaluate(decoder, &both, &NoAdapter)?;
        let sum = |at: usize| -losses[at] * both[at].answer_tokens() as f64;
        pairs.push(Some(Pair { rejected: rejected.clone(), reference: sum(0) - sum(1) }));
    }
    Ok(pairs)
}

/// The pairs among sequences that are computed together.
#[derive(Debug, Default)]
pub(super) struct Terms<'a> {
    terms: Vec<Term<'a>>,
    beta: f64,
}

#[derive(Debug)]
struct Term<'a> {
    /// Which of the learned sequences is the better answer.
    chosen: usize,
    pair: &'a Pair,
    /// What its loss counts.
    factor: f64,
}

impl<'a> Terms<'a> {
    /// Takes the pairs of some items; `weights` are those of all examples, `total` the pairs of the whole batch.
    pub(super) fn of(pairs: Pairs<'a>, items: &[usize], weights: &[f64], total: usize) -> Self {
        let strength = pairs.strength;
        let term = |(chosen, &item): (usize, &usize)| {
            let factor = strength.weight * weights[item] / total.max(1) as f64;
            Some(Term { chosen, pair: pairs.get(item)?, factor })
        };
        let terms = items.iter().enumerate().filter_map(term).collect();
        Self { terms, beta: strength.beta }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Returns the criticised answers, which follow the learned sequences.
    pub(super) fn sequences(&self) -> impl Iterator<Item = &'a Sequence> {
        self.terms.iter().map(|term| &term.pair.rejected)
    }

    /// Returns the tokens of the criticised answers.
    pub(super) fn tokens(&self) -> usize {
        self.sequences().map(Sequence::answer_tokens).sum()
    }

    /// Returns the sum of the losses, given the cross-entropy of every token of the learned answers (`learned` has their
    /// lengths) and of the criticised ones; `weights`, one a token, get what each cross-entropy counts in it.
    pub(super) fn add_to(&self, weights: &mut [f32], losses: &[f64], learned: &[usize]) -> f64 {
        let mut from: usize = learned.iter().sum();
        let mut sum = 0.0;
        for Term { chosen, pair, factor } in &self.terms {
            let start: usize = learned[..*chosen].iter().sum();
            let better = start..start + learned[*chosen];
            let worse = from..from + pair.rejected.answer_tokens();
            from = worse.end;
            let lost = |range: &std::ops::Range<usize>| losses[range.clone()].iter().sum::<f64>();
            let margin = lost(&worse) - lost(&better) - pair.reference;
            let (value, slope) = pair_loss(margin, self.beta);
            sum += factor * value;
            // The margin falls with the better answer's cross-entropy and rises with the other's.
            let slope = (factor * slope) as f32;
            weights[better].iter_mut().for_each(|weight| *weight -= slope);
            weights[worse].iter_mut().for_each(|weight| *weight += slope);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_of_a_pair_falls_with_its_margin_and_never_overflows() {
        let (value, slope) = pair_loss(0.0, 0.1);
        assert!((value - std::f64::consts::LN_2).abs() < 1e-12 && (slope + 0.05).abs() < 1e-12);
        for margin in [-1e6, -30.0, -1.0, 0.5, 30.0, 1e6] {
            let (value, slope) = pair_loss(margin, 0.5);
            let h = 1e-4;
            let (above, below) = (pair_loss(margin + h, 0.5).0, pair_loss(margin - h, 0.5).0);
            assert!(value.is_finite() && value >= 0.0 && slope <= 0.0, "{margin}: {value} {slope}");
            assert!((slope - (above - below) / (2.0 * h)).abs() < 1e-5, "{margin}: {slope}");
        }
    }
}
