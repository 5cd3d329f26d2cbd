use candle_core::{Device, Tensor};
use proptest::prelude::*;

use super::*;

fn settings(temperature: f64, top_k: usize, top_p: f64, min_p: f64) -> Sampling {
    Sampling { temperature, top_k, top_p, min_p, ..Sampling::greedy(1) }
}

fn tensor(logits: &[f32]) -> Tensor {
    Tensor::new(logits, &Device::Cpu).expect("tensor")
}

fn kept(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let candidates = Sampler::new(sampling).candidates(logits, max);
    let mut ids: Vec<u32> = candidates.iter().map(|candidate| candidate.token).collect();
    ids.sort_unstable();
    ids
}

/// The textbook form: sort everything, then filter by rank, by mass and by share of the largest.
fn kept_by_sorting_all(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| {
        logits[b as usize].partial_cmp(&logits[a as usize]).expect("finite").then(a.cmp(&b))
    });
    let max = f64::from(logits[order[0] as usize]);
    let weight = |id: u32| ((f64::from(logits[id as usize]) - max) / sampling.temperature).exp();
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    if sampling.top_p < 1.0 {
        let total: f64 = if sampling.top_k > 0 && sampling.top_k < logits.len() {
            order.iter().map(|&id| weight(id)).sum()
        } else {
            // Summed in the order of ids, as the sampler does: at a mass that falls exactly on
            // the threshold the last bit decides.
            (0..logits.len() as u32).map(weight).sum()
        };
        let mut sum = 0.0;
        let mut nucleus = Vec::new();
        for &id in &order {
            nucleus.push(id);
            sum += weight(id);
            if sum >= sampling.top_p * total {
                break;
            }
        }
        order = nucleus;
    }
    order.retain(|&id| weight(id) >= sampling.min_p);
    order.sort_unstable();
    order
}

/// Logits on a coarse grid, so that ties are common.
fn logits(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-40i8..=40).prop_map(|n| f32::from(n) / 8.0), len)
}

proptest! {
    #[test]
    fn filters_keep_what_a_full_sort_keeps(
        logits in logits(1..900usize),
        temperature in 0.05f64..4.0,
        top_k in prop_oneof![Just(0usize), 1usize..40, 300usize..1000],
        top_p in prop_oneof![Just(1.0), 0.01f64..1.0],
        min_p in prop_oneof![Just(0.0), Just(1.0), 0.001f64..1.0],
    ) {
        let sampling = settings(temperature, top_k, top_p, min_p);
        let kept = kept(&sampling, &logits);
        prop_assert!(!kept.is_empty());
        prop_assert_eq!(kept, kept_by_sorting_all(&sampling, &logits));
    }

    #[test]
    fn greedy_takes_the_largest_and_the_lowest_id_on_a_tie(logits in logits(1..200usize)) {
        let token = Sampler::new(&Sampling::greedy(1)).sample(&tensor(&logits), &[]).expect("token");
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assert_eq!(Some(token as usize), logits.iter().position(|&logit| logit == max));
    }

    #[test]
    fn every_drawn_token_passed_the_filters(logits in logits(2..60usize), seed in any::<u64>()) {
        let sampling = Sampling { seed, ..settings(1.3, 12, 0.8, 0.05) };
        let allowed = kept_by_sorting_all(&sampling, &logits);
        let mut sampler = Sampler::new(&sampling);
        for _ in 0..20 {
            let token = sampler.sample(&tensor(&logits), &[]).expect("token");
            prop_assert!(allowed.contains(&token));
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens(logits in logits(2..60usize), seed in any::<u64>()) {
        let draw = || -> Vec<u32> {
            let mut sampler = Sampler::new(&Sampling { seed, ..settings(1.0, 0, 1.0, 0.0) });
            (0..16).map(|_| sampler.sample(&tensor(&logits), &[]).expect("token")).collect()
        };
        prop_assert_eq!(draw(), draw());
    }
}

/// Draws `count` tokens and returns how often each came, as a share.
fn shares(sampling: &Sampling, logits: &[f32], count: usize) -> Vec<f64> {
    let mut sampler = Sampler::new(sampling);
    let mut shares = vec![0.0; logits.len()];
    for _ in 0..count {
        shares[sampler.choose(logits).expect("token") as usize] += 1.0 / count as f64;
    }
    shares
}

#[test]
fn tokens_come_as_often_as_their_probability_says() {
    let logits = [0.3, -1.2, 2.0, 1.1, 0.0];
    for temperature in [0.7, 1.0, 1.8] {
        let weights: Vec<f64> =
            logits.iter().map(|&logit| (f64::from(logit) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        // 20,000 draws: four standard deviations of a share are at most 0.0142.
        let seen = shares(&settings(temperature, 0, 1.0, 0.0), &logits, 20_000);
        for (weight, share) in weights.iter().zip(&seen) {
            assert!((weight / total - share).abs() < 0.0142, "{weight} of {total}, seen {share}");
        }
        // Of the two likeliest only, their shares stay in proportion.
        let seen = shares(&settings(temperature, 2, 1.0, 0.0), &logits, 20_000);
        let expected = weights[2] / (weights[2] + weights[3]);
        assert!((seen[2] - expected).abs() < 0.0142, "expected {expected}, seen {}", seen[2]);
        assert_eq!((seen[0], seen[1], seen[4]), (0.0, 0.0, 0.0));
    }
}

#[test]
fn a_tiny_temperature_is_nearly_greedy_and_never_nan() {
    for temperature in [1e-300, f64::MIN_POSITIVE, 1e-6] {
        let mut sampler = Sampler::new(&settings(temperature, 0, 0.9, 0.0));
        assert_eq!(sampler.sample(&tensor(&[1.0, 5.0, 4.9]), &[]).expect("token"), 1);
    }
}

#[test]
fn a_top_p_of_one_keeps_all_of_top_k_however_unlikely() {
    let logits: Vec<f32> = (0..9).map(|n| -20.0 * n as f32).collect();
    assert_eq!(kept(&settings(0.5, 8, 1.0, 0.0), &logits).len(), 8);
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for sampling in [Sampling::greedy(1), settings(0.8, 2, 0.9, 0.1)] {
            let error = Sampler::new(&sampling)
                .sample(&tensor(&[0.0, 1.0, bad, 2.0]), &[])
                .expect_err("not finite");
            assert!(matches!(error, EngineError::NonFiniteLogits { token: 2, .. }), "{error}");
        }
    }
    assert!(Sampler::new(&Sampling::greedy(1)).sample(&tensor(&[]), &[]).is_err());
}

#[test]
fn the_repetition_penalty_makes_recent_tokens_less_likely() {
    let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy(1) };
    let logits = tensor(&[3.0, 2.0, 1.0]);
    assert_eq!(Sampler::new(&sampling).sample(&logits, &[]).expect("token"), 0);
    assert_eq!(Sampler::new(&sampling).sample(&logits, &[0, 0]).expect("token"), 1);
    // Negative logits move away from zero, too: -1 becomes -2, below -1.5.
    let logits = tensor(&[-1.0, -1.5]);
    assert_eq!(Sampler::new(&sampling).sample(&logits, &[0]).expect("token"), 1);
}
