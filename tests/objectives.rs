//! What training is for: each objective's gradient and its effect, and what an example's weight counts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

mod reference;

use candle_core::{Device, Tensor, Var};
use reference::*;
use shammah::lora::dataset::Sequence;
use shammah::lora::preference::{self, Pair, Pairs};
use shammah::lora::trainer::{self, Anchor, Batch, MemoryPlan, TrainingData};
use shammah::lora::{
    AdamW, AdamWConfig, LoraAdapter, Preference, TrainableLora, TrainingParams, Weighting,
};
use shammah::models::{Adapt, Decoder, NoAdapter};

const FAMILY: &str = "qwen2";

fn params() -> TrainingParams {
    TrainingParams {
        paraphrase: false,
        neighbour_prompts: 0,
        rank: 4,
        alpha: 8.0,
        rslora: false,
        dora: false,
        dropout: 0.0,
        target_modules: ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec(),
        learning_rate: 1e-2,
        batch_size: 2,
        epochs: 1,
        min_steps: 30,
        weighting: Weighting::Loss,
        preference: Preference::OFF,
        warmup_ratio: 0.0,
        seed: 11,
        max_grad_norm: 1.0,
        weight_decay: 0.0,
        anchor: 0.0,
        anchor_prompts: 1,
        max_share: 1.0,
        checkpoint_every_steps: 100,
    }
}

fn sequence(id: i64, ids: &[u32], answer_start: usize, weight: f64) -> Sequence {
    Sequence { id, ids: ids.to_vec(), answer_start, weight }
}

fn training_set() -> Vec<Sequence> {
    vec![
        sequence(1, &[5, 9, 33, 8, 61, 2], 3, 1.0),
        sequence(2, &[7, 40, 41, 42, 43, 2], 3, 1.0),
        sequence(3, &[90, 12, 2], 1, 1.0),
    ]
}

/// The criticised answers of the first two examples, one of them longer than the better one.
fn rejected() -> Vec<Option<Sequence>> {
    let wrong = sequence(2, &[7, 40, 41, 50, 51, 52, 53, 2], 3, 1.0);
    vec![Some(sequence(1, &[5, 9, 33, 70, 2], 3, 1.0)), Some(wrong), None]
}

fn pairs(decoder: &Decoder) -> Vec<Option<Pair>> {
    preference::pairs(decoder, &training_set(), &rejected()).unwrap()
}

/// A trainable copy of an adapter whose A and B are all non-zero.
fn moved(decoder: &Decoder) -> TrainableLora {
    let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let shape = reference::adapters::config(4, 10.0, &modules);
    let file = format!("{FAMILY}/peft_all/adapter_model.safetensors");
    reference::adapters::trainable(&file, &shape, decoder.config())
}

fn log_prob(decoder: &Decoder, sequence: &Sequence, adapt: &dyn Adapt) -> f64 {
    let losses = trainer::evaluate(decoder, std::slice::from_ref(sequence), adapt).unwrap();
    -losses[0] * sequence.answer_tokens() as f64
}

#[test]
fn the_preference_loss_is_that_of_the_formula() {
    let decoder = decoder(FAMILY);
    let (train, pairs) = (training_set(), pairs(&decoder));
    let (weights, beta) = (vec![0.4, 2.1, 0.5], 0.3);
    let lora = moved(&decoder);
    let strength = Preference { weight: 0.7, beta };
    let loss = |strength| {
        let pairs = Pairs { of: &pairs, strength };
        let data = TrainingData { train: &train, weights: weights.clone(), anchors: &[], pairs };
        let batch = Batch { epoch: 1, items: vec![2, 1, 0], anchors: vec![] };
        trainer::loss(&decoder, &lora, &data, &batch, 0.0).unwrap()
    };
    let published = lora.publish().unwrap();
    let mut expected = 0.0;
    for (index, weight) in [(0, 0.4), (1, 2.1)] {
        let wrong = rejected()[index].clone().unwrap();
        let ahead = |adapt: &dyn Adapt| {
            log_prob(&decoder, &train[index], adapt) - log_prob(&decoder, &wrong, adapt)
        };
        let z = beta * (ahead(&published) - ahead(&NoAdapter));
        expected += 0.7 * weight * (1.0 + (-z).exp()).ln() / 2.0;
    }
    let got = loss(strength) - loss(Preference::OFF);
    assert!((got - expected).abs() < 1e-4 * expected, "{got} and {expected}");
}

/// Compares the gradient of a batch with finite differences at a few places of each tensor.
fn compare_with_differences(pairs: Pairs<'_>, anchors: &[Anchor], anchor: f64, decoder: &Decoder) {
    let lora = moved(decoder);
    let train = training_set();
    let data = TrainingData { train: &train, weights: vec![0.4, 2.1, 0.5], anchors, pairs };
    let held = if anchors.is_empty() { vec![] } else { vec![0] };
    let batch = Batch { epoch: 1, items: vec![1, 2, 0], anchors: held };
    let loss = || trainer::loss(decoder, &lora, &data, &batch, anchor).unwrap();
    for micro_batch in [0, 1] {
        let memory = MemoryPlan { checkpointed_layers: 0, micro_batch };
        let found = trainer::gradients(decoder, &lora, &data, &batch, anchor, memory).unwrap();
        assert!((found.loss - loss()).abs() < 1e-5 * found.loss.abs(), "{}", found.loss);
        for ((name, var), gradient) in lora.vars().into_iter().zip(&found.tensors) {
            let gradient = values(gradient.as_ref().unwrap());
            let largest = (0..gradient.len())
                .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
                .unwrap();
            for at in [largest, gradient.len() / 3] {
                let difference = difference(&var, at, &loss);
                let error = (f64::from(gradient[at]) - difference).abs();
                let scale = f64::from(gradient[largest].abs());
                assert!(error < 0.02 * scale + 1e-3, "{name} {at}: {} {difference}", gradient[at]);
            }
        }
    }
}

fn difference(var: &Var, at: usize, loss: &dyn Fn() -> f64) -> f64 {
    const H: f32 = 5e-3;
    let original = values(var.as_tensor());
    let value_at = |step: f32| {
        let mut moved = original.clone();
        moved[at] += step;
        var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
        loss()
    };
    let difference = (value_at(H) - value_at(-H)) / f64::from(2.0 * H);
    value_at(0.0);
    difference
}

#[test]
fn the_gradient_of_the_preference_loss_equals_finite_differences() {
    let decoder = decoder(FAMILY);
    let pairs = pairs(&decoder);
    let strength = Preference { weight: 1.0, beta: 0.5 };
    compare_with_differences(Pairs { of: &pairs, strength }, &[], 0.0, &decoder);
}

#[test]
fn the_gradient_of_all_objectives_together_equals_finite_differences() {
    let decoder = decoder(FAMILY);
    let pairs = pairs(&decoder);
    let anchors =
        trainer::anchors(&decoder, vec![sequence(1, &[4, 66, 67, 68, 2], 2, 1.0)], &NoAdapter);
    let strength = Preference { weight: 1.0, beta: 0.5 };
    compare_with_differences(Pairs { of: &pairs, strength }, &anchors.unwrap(), 0.7, &decoder);
}

/// Trains on everything and returns the adapter.
fn trained(
    decoder: &Decoder,
    train: &[Sequence],
    anchors: &[Anchor],
    pairs: Pairs<'_>,
    params: &TrainingParams,
) -> LoraAdapter {
    let lora = TrainableLora::fresh(decoder, params).unwrap();
    let vars = lora.vars().into_iter().map(|(_, var)| var).collect();
    let mut optimizer = AdamW::new(vars, AdamWConfig::default()).unwrap();
    let weights = trainer::loss_weights(train, params);
    let data = TrainingData { train, weights, anchors, pairs };
    let memory = MemoryPlan::default();
    trainer::train(decoder, &lora, &data, params, memory, &mut optimizer, &mut |_, _| Ok(()))
        .unwrap();
    lora.publish().unwrap()
}

#[test]
fn preference_widens_the_margin_and_makes_the_criticised_answer_less_likely() {
    let decoder = decoder(FAMILY);
    let (train, pairs) = (training_set(), pairs(&decoder));
    let learned = |weight: f64| {
        let strength = Preference { weight, beta: 0.3 };
        let params = TrainingParams { preference: strength, ..params() };
        trained(&decoder, &train, &[], Pairs { of: &pairs, strength }, &params)
    };
    let (without, with) = (learned(0.0), learned(2.0));
    for (index, wrong) in rejected().iter().enumerate() {
        let Some(wrong) = wrong else { continue };
        let right = &train[index];
        let margin =
            |adapt: &dyn Adapt| log_prob(&decoder, right, adapt) - log_prob(&decoder, wrong, adapt);
        let (before, plain, preferred) = (margin(&NoAdapter), margin(&without), margin(&with));
        assert!(preferred > plain + 0.5 && plain > before, "{before} {plain} {preferred}");
        let wrong_with = log_prob(&decoder, wrong, &with);
        assert!(wrong_with < log_prob(&decoder, wrong, &without), "{wrong_with}");
        let gained = log_prob(&decoder, right, &with) - log_prob(&decoder, right, &NoAdapter);
        assert!(gained > 0.0, "the better answer is still learned: {gained}");
    }
}

#[test]
fn the_anchor_holds_other_answers_where_they_were() {
    let decoder = decoder(FAMILY);
    let train = training_set();
    let held = vec![sequence(1, &[4, 66, 67, 68, 2], 2, 1.0), sequence(2, &[9, 3, 77, 2], 2, 1.0)];
    let anchors = trainer::anchors(&decoder, held, &NoAdapter).unwrap();
    let moved_by = |anchor: f64| {
        let params = TrainingParams { anchor, anchor_prompts: 2, min_steps: 60, ..params() };
        let adapter = trained(&decoder, &train, &anchors, Pairs::NONE, &params);
        let learned = trainer::evaluate(&decoder, &train, &adapter).unwrap();
        let mut kl = 0.0;
        for anchor in &anchors {
            let ids = Tensor::new(&anchor.sequence.ids[..], &Device::Cpu).unwrap();
            let ids = ids.unsqueeze(0).unwrap();
            let base = values(&logits(&decoder, &ids, &NoAdapter));
            let now = values(&logits(&decoder, &ids, &adapter));
            let vocab = base.len() / anchor.sequence.ids.len();
            for at in anchor.sequence.answer_start - 1..anchor.sequence.ids.len() - 1 {
                kl += row_kl(&base[at * vocab..][..vocab], &now[at * vocab..][..vocab]);
            }
        }
        (kl, learned.iter().sum::<f64>() / learned.len() as f64)
    };
    let before = trainer::evaluate(&decoder, &train, &NoAdapter).unwrap();
    let before = before.iter().sum::<f64>() / before.len() as f64;
    let ((free, _), (held, learned)) = (moved_by(0.0), moved_by(2.0));
    assert!(held < free / 3.0, "KL {held} with the anchor, {free} without");
    assert!(learned < before / 2.0, "and the lesson is learned: {before} → {learned}");
}

/// KL(p ‖ q) of two rows of logits, nats.
fn row_kl(p: &[f32], q: &[f32]) -> f64 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
        row.iter().map(|x| f64::from(x - most) - sum.ln()).collect()
    };
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// What each example counts in training: how often it comes, times its factor on the loss there.
fn shares(weights: &[f64], params: &TrainingParams) -> Vec<f64> {
    let one = |(id, &weight): (usize, &f64)| sequence(id as i64, &[1, 2, 3], 1, weight);
    let train: Vec<Sequence> = weights.iter().enumerate().map(one).collect();
    let factors = trainer::loss_weights(&train, params);
    let mut seen = vec![0.0; weights.len()];
    for batch in trainer::batches(&train, 0, params) {
        batch.items.iter().for_each(|&item| seen[item] += factors[item]);
    }
    let all: f64 = seen.iter().sum();
    seen.iter().map(|count| count / all).collect()
}

#[test]
fn weights_of_10_3_and_1_give_these_shares_in_both_modes() {
    // One of each, uncapped; and ten marks as a user makes them, in which the cap of 30 % holds.
    let ten = [10.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    let rest = |weight: f64| 0.7 * weight / 13.0;
    let capped: Vec<f64> =
        ten.iter().map(|&weight| if weight > 9.0 { 0.3 } else { rest(weight) }).collect();
    let cases = [
        (vec![10.0, 3.0, 1.0], 1.0, vec![10.0 / 14.0, 3.0 / 14.0, 1.0 / 14.0]),
        (ten.to_vec(), 0.3, capped),
    ];
    for (weighting, epochs, tolerance) in
        [(Weighting::Loss, 1, 1e-9), (Weighting::Sampling, 20_000, 0.03)]
    {
        for (weights, max_share, expected) in &cases {
            let params = TrainingParams {
                weighting,
                epochs,
                min_steps: 0,
                max_share: *max_share,
                ..params()
            };
            for (share, expected) in shares(weights, &params).iter().zip(expected) {
                let off = (share / expected - 1.0).abs();
                assert!(off < tolerance, "{weighting:?} {weights:?}: {share} and {expected}");
            }
        }
    }
}

#[test]
fn an_example_of_twice_the_weight_pulls_twice_as_hard() {
    let decoder = decoder(FAMILY);
    let train = training_set();
    let lora = moved(&decoder);
    // The part of example 1 in the gradient of a batch with example 0.
    let pull = |factor: f64| {
        let gradient = |weights: Vec<f64>| {
            let data = TrainingData { train: &train, weights, anchors: &[], pairs: Pairs::NONE };
            let batch = Batch { epoch: 1, items: vec![0, 1], anchors: vec![] };
            let memory = MemoryPlan::default();
            let found = trainer::gradients(&decoder, &lora, &data, &batch, 0.0, memory).unwrap();
            let tensors: Vec<f32> = found.tensors.iter().flatten().flat_map(values).collect();
            tensors
        };
        let (with, without) = (gradient(vec![1.0, factor, 1.0]), gradient(vec![1.0, 0.0, 1.0]));
        let squares = with.iter().zip(&without).map(|(a, b)| f64::from(a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let ratio = pull(2.0) / pull(1.0);
    assert!((ratio - 2.0).abs() < 1e-3, "{ratio}");
}
