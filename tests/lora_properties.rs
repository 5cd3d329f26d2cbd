//! What must hold of every adapter and every training step, whatever the numbers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may fall"
)]

mod reference;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reference::adapters::{peft, trainable};
use reference::*;
use sha2::{Digest, Sha256};
use shammah::lora::Preference;
use shammah::lora::dataset::Sequence;
use shammah::lora::preference::Pairs;
use shammah::lora::trainer::{self, Batch, Gradients, MemoryPlan, TrainingData};
use shammah::lora::{
    AdamW, AdamWConfig, AdapterSet, JobError, LoraAdapter, TrainableLora, TrainingParams, Weighting,
};
use shammah::models::{Decoder, NoAdapter};

fn params() -> TrainingParams {
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    TrainingParams {
        rank: 4,
        alpha: 10.0,
        rslora: false,
        dora: false,
        dropout: 0.0,
        target_modules: all.map(str::to_owned).to_vec(),
        learning_rate: 5e-3,
        batch_size: 2,
        epochs: 2,
        min_steps: 4,
        weighting: Weighting::Loss,
        preference: Preference::OFF,
        warmup_ratio: 0.0,
        seed: 11,
        max_grad_norm: 1.0,
        weight_decay: 0.0,
        anchor: 0.7,
        anchor_prompts: 1,
        max_share: 0.3,
        checkpoint_every_steps: 100,
        paraphrase: false,
        neighbour_prompts: 0,
    }
}

fn sequence(id: i64, ids: &[u32], answer_start: usize, weight: f64) -> Sequence {
    Sequence { id, ids: ids.to_vec(), answer_start, weight }
}

fn training_set() -> Vec<Sequence> {
    vec![
        sequence(1, &[5, 9, 33, 8, 61, 2], 3, 1.0),
        sequence(2, &[7, 40, 41, 42, 43, 44, 45, 2], 4, 10.0),
        sequence(3, &[90, 12, 2], 1, 3.0),
    ]
}

fn anchors(decoder: &Decoder) -> Vec<trainer::Anchor> {
    let sequences = vec![sequence(1, &[4, 66, 67, 68, 2], 2, 1.0)];
    trainer::anchors(decoder, sequences, &NoAdapter).unwrap()
}

/// Calls `f` with a batch that has everything in it: two examples of different weight, and the anchor's KL.
fn with_batch<R>(decoder: &Decoder, f: impl FnOnce(&TrainingData<'_>, &Batch) -> R) -> R {
    let (train, anchors) = (training_set(), anchors(decoder));
    let data = TrainingData {
        train: &train,
        weights: vec![0.4, 2.1, 0.5],
        anchors: &anchors,
        pairs: Pairs::NONE,
    };
    f(&data, &Batch { epoch: 1, items: vec![1, 0], anchors: vec![0] })
}

fn loss(decoder: &Decoder, lora: &TrainableLora) -> f64 {
    with_batch(decoder, |data, batch| trainer::loss(decoder, lora, data, batch, 0.7).unwrap())
}

fn gradients(decoder: &Decoder, lora: &TrainableLora, memory: MemoryPlan) -> Gradients {
    with_batch(decoder, |data, batch| {
        trainer::gradients(decoder, lora, data, batch, 0.7, memory).unwrap()
    })
}

fn hash(weights: &HashMap<String, Tensor>) -> Vec<u8> {
    let mut names: Vec<&String> = weights.keys().collect();
    names.sort_unstable();
    let mut hasher = Sha256::new();
    for name in names {
        values(&weights[name]).iter().for_each(|v| hasher.update(v.to_le_bytes()));
    }
    hasher.finalize().to_vec()
}

#[test]
fn invariant_3_a_fresh_adapter_changes_no_logit() {
    for family in FAMILIES {
        let (decoder, ids) = (decoder(family), reference_ids(family));
        let base = values(&logits(&decoder, &ids, &NoAdapter));
        for (dora, rslora) in [(false, false), (true, false), (false, true)] {
            let params = TrainingParams { dora, rslora, ..params() };
            let fresh = TrainableLora::fresh(&decoder, &params).unwrap();
            assert_eq!(values(&logits(&decoder, &ids, &fresh)), base);
            let published = fresh.publish().unwrap();
            assert_eq!(values(&logits(&decoder, &ids, &published)), base);
            assert_eq!((published.config().dora, published.config().rslora), (dora, rslora));
            for factors in published.sites().values() {
                assert_eq!(factors.magnitude.is_some(), dora);
                let bound = 1.0 / (factors.a.dim(1).unwrap() as f32).sqrt();
                let a = values(&factors.a);
                assert!(a.iter().all(|v| v.abs() <= bound));
                assert!(a.iter().any(|v| v.abs() > bound / 2.0));
            }
        }
    }
}

#[test]
fn invariant_3_base_weights_are_never_written() {
    for family in FAMILIES {
        let folder = fixture(family);
        let weights =
            candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu);
        let weights = weights.unwrap();
        let file = fs_err::read(folder.join("model.safetensors")).unwrap();
        // The decoder shares these tensors' storage, so a write in place would show.
        let decoder = decoder_of(decoder(family).config().clone(), &weights);
        let before = hash(&weights);
        let lora = TrainableLora::fresh(&decoder, &params()).unwrap();
        let (train, anchors) = (training_set(), anchors(&decoder));
        let data = TrainingData {
            train: &train,
            weights: vec![1.0; 3],
            anchors: &anchors,
            pairs: Pairs::NONE,
        };
        let vars = lora.vars().into_iter().map(|(_, var)| var).collect();
        let mut optimizer = AdamW::new(vars, AdamWConfig::default()).unwrap();
        let mut steps = 0;
        let mut count = |_: trainer::Progress, _: &AdamW| {
            steps += 1;
            Ok(())
        };
        trainer::train(
            &decoder,
            &lora,
            &data,
            &params(),
            MemoryPlan::default(),
            &mut optimizer,
            &mut count,
        )
        .unwrap();
        assert_eq!(steps, 4);
        let ids = reference_ids(family);
        let adapted = logits(&decoder, &ids, &lora.publish().unwrap());
        assert!(relative(&adapted, &logits(&decoder, &ids, &NoAdapter)) > 1e-3, "it has learned");
        assert_eq!(hash(&weights), before);
        assert_eq!(fs_err::read(folder.join("model.safetensors")).unwrap(), file);
    }
}

#[test]
fn swapping_adapters_leaves_the_base_as_it_was() {
    for family in FAMILIES {
        let (decoder, ids) = (decoder(family), reference_ids(family));
        let base = values(&logits(&decoder, &ids, &NoAdapter));
        let (all, qv) =
            (peft(family, "peft_all", decoder.config()), peft(family, "peft_qv", decoder.config()));
        let first = values(&logits(&decoder, &ids, &all));
        logits(&decoder, &ids, &qv);
        assert_eq!(values(&logits(&decoder, &ids, &AdapterSet::empty())), base);
        assert_eq!(values(&logits(&decoder, &ids, &all)), first);
        assert_ne!(first, base);
    }
}

/// The decoder with the deltas added into its weights: `W + Σ w · (α/r) · B A`, for DoRA each row at its length.
fn merged(family: &str, adapters: &[(&LoraAdapter, f64)]) -> Decoder {
    let mut weights = tensors(&format!("{family}/model.safetensors"));
    for (adapter, weight) in adapters {
        let config = adapter.config();
        let scale = weight * config.alpha / config.rank as f64;
        for (site, factors) in adapter.sites() {
            let name = format!("model.layers.{}.{}.weight", site.layer, site.module.path());
            let delta = (factors.b.matmul(&factors.a).unwrap() * scale).unwrap();
            let mut sum = (&weights[&name] + delta).unwrap();
            if let Some(magnitude) = &factors.magnitude {
                let length = sum.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
                let ratio = (magnitude / length).unwrap().unsqueeze(1).unwrap();
                sum = sum.broadcast_mul(&ratio).unwrap();
            }
            weights.insert(name, sum);
        }
    }
    decoder_of(decoder(family).config().clone(), &weights)
}

#[test]
fn merged_equals_unmerged_at_alpha_other_than_rank() {
    for family in FAMILIES {
        let (decoder, ids) = (decoder(family), reference_ids(family));
        for name in ["peft_all", "peft_dora"] {
            let adapter = peft(family, name, decoder.config());
            assert_ne!(adapter.config().alpha, adapter.config().rank as f64);
            let expected = logits(&merged(family, &[(&adapter, 1.0)]), &ids, &NoAdapter);
            let what = format!("{family} {name} merged");
            assert_near(&what, &logits(&decoder, &ids, &adapter), &expected, 1e-5);
            let set = AdapterSet::single(Arc::new(adapter));
            assert_near(&what, &logits(&decoder, &ids, &set), &expected, 1e-5);
        }
    }
}

#[test]
fn a_weighted_set_is_the_sum_of_its_deltas() {
    for family in FAMILIES {
        let (decoder, ids) = (decoder(family), reference_ids(family));
        let all = Arc::new(peft(family, "peft_all", decoder.config()));
        let qv = Arc::new(peft(family, "peft_qv", decoder.config()));
        let expected = logits(&merged(family, &[(&all, 0.7), (&qv, -0.4)]), &ids, &NoAdapter);
        let set = AdapterSet::weighted(vec![(all.clone(), 0.7), (qv, -0.4)]).unwrap();
        assert_near(&format!("{family} set"), &logits(&decoder, &ids, &set), &expected, 1e-5);
        let none = AdapterSet::weighted(vec![(all, 0.0)]).unwrap();
        let base = logits(&decoder, &ids, &NoAdapter);
        assert_near("at weight 0", &logits(&decoder, &ids, &none), &base, 1e-7);
    }
}

#[test]
fn what_was_published_does_not_change_when_training_goes_on() {
    let decoder = decoder("qwen3");
    let lora = TrainableLora::fresh(&decoder, &params()).unwrap();
    let published = lora.publish().unwrap();
    let before: Vec<Vec<f32>> = published.sites().values().map(|f| values(&f.a)).collect();
    for (_, var) in lora.vars() {
        var.set(&var.ones_like().unwrap()).unwrap();
    }
    let after: Vec<Vec<f32>> = published.sites().values().map(|f| values(&f.a)).collect();
    assert_eq!(before, after);
}

/// A trainable copy of an adapter whose A and B are all non-zero.
fn moved(family: &str, decoder: &Decoder) -> TrainableLora {
    let modules = params().target_modules;
    let modules: Vec<&str> = modules.iter().map(String::as_str).collect();
    let shape = reference::adapters::config(4, 10.0, &modules);
    trainable(&format!("{family}/peft_all/adapter_model.safetensors"), &shape, decoder.config())
}

#[test]
fn every_trainable_tensor_gets_a_gradient() {
    for (family, dora) in FAMILIES.into_iter().flat_map(|family| [(family, false), (family, true)])
    {
        let decoder = decoder(family);
        let adapter = peft(family, "peft_dora", decoder.config());
        let lora = match dora {
            true => TrainableLora::from_adapter(&adapter, 0.0).unwrap(),
            false => moved(family, &decoder),
        };
        let got = gradients(&decoder, &lora, MemoryPlan::default());
        assert!((got.loss - loss(&decoder, &lora)).abs() < 1e-6);
        let vars = lora.vars();
        let of_site = if dora { 3 } else { 2 };
        assert_eq!(vars.len(), 3 * 7 * of_site, "of seven projections in three layers");
        for ((name, _), gradient) in vars.into_iter().zip(got.tensors) {
            let gradient = gradient.unwrap_or_else(|| panic!("{family}: {name} has none"));
            let largest = values(&gradient).into_iter().fold(0f32, |m, g| m.max(g.abs()));
            assert!(largest.is_finite() && largest > 0.0, "{family}: {name} has {largest}");
        }
    }
}

#[test]
fn checkpointing_changes_no_bit_of_a_gradient() {
    for (family, name) in FAMILIES.into_iter().flat_map(|f| [(f, "peft_all"), (f, "peft_dora")]) {
        let decoder = decoder(family);
        let adapter = peft(family, name, decoder.config());
        let lora = TrainableLora::from_adapter(&adapter, 0.3).unwrap();
        lora.seed_step(5, 1);
        let bits = |checkpointed_layers| -> Vec<Vec<f32>> {
            let plan = MemoryPlan { checkpointed_layers, micro_batch: 0 };
            let got = gradients(&decoder, &lora, plan).tensors;
            got.iter().map(|g| values(g.as_ref().unwrap())).collect()
        };
        let whole = bits(0);
        assert!(bits(3) == whole && bits(2) == whole, "{family}");
    }
}

#[test]
fn a_shared_beginning_changes_neither_loss_nor_gradient() {
    let decoder = decoder("qwen3");
    let lora = moved("qwen3", &decoder);
    let train = vec![
        sequence(1, &[5, 9, 33, 8, 61, 2], 3, 1.0),
        sequence(2, &[5, 9, 33, 8, 44, 45, 2], 4, 1.0),
        sequence(3, &[5, 9, 2], 2, 1.0),
    ];
    let data =
        TrainingData { train: &train, weights: vec![1.0; 3], anchors: &[], pairs: Pairs::NONE };
    let batch = |items: Vec<usize>| Batch { epoch: 1, items, anchors: Vec::new() };
    let get = |items, micro_batch| {
        let plan = MemoryPlan { checkpointed_layers: 0, micro_batch };
        trainer::gradients(&decoder, &lora, &data, &batch(items), 0.0, plan).unwrap()
    };
    // One at a time nothing can be shared.
    let (together, alone) = (get(vec![0, 1, 2], 0), get(vec![0, 1, 2], 1));
    assert!((together.loss - alone.loss).abs() < 1e-5 * alone.loss);
    for (x, y) in together.tensors.iter().zip(&alone.tensors) {
        assert!(relative(x.as_ref().unwrap(), y.as_ref().unwrap()) < 1e-5);
    }
}

/// The largest gradient and three others of every tensor, against (L(θ + h) − L(θ − h)) / 2h.
#[test]
fn gradients_equal_finite_differences_with_the_anchor_on() {
    const H: f32 = 5e-3;
    for family in FAMILIES {
        let decoder = decoder(family);
        compare_with_differences(family, &decoder, &moved(family, &decoder), H);
    }
}

/// A step draws the same dropout however often it is computed, so its loss has differences too. (That of a DoRA adapter
/// has others than its gradient, which takes the rows' lengths for constants.)
#[test]
fn gradients_under_dropout_equal_finite_differences() {
    for (family, adapter) in [("qwen3", "peft_all"), ("qwen2", "peft_rslora")] {
        let decoder = decoder(family);
        let adapter = peft(family, adapter, decoder.config());
        let lora = TrainableLora::from_adapter(&adapter, 0.3).unwrap();
        lora.seed_step(9, 4);
        compare_with_differences(family, &decoder, &lora, 5e-3);
    }
}

fn compare_with_differences(family: &str, decoder: &Decoder, lora: &TrainableLora, h: f32) {
    let got = gradients(decoder, lora, MemoryPlan::default()).tensors;
    let mut rng = StdRng::seed_from_u64(3);
    let mut worst = 0f64;
    for ((name, var), gradient) in lora.vars().into_iter().zip(got) {
        let gradient = values(&gradient.unwrap());
        let largest = (0..gradient.len())
            .max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()))
            .unwrap();
        let scale = f64::from(gradient[largest].abs());
        for at in [largest].into_iter().chain((0..3).map(|_| rng.random_range(0..gradient.len()))) {
            let difference = difference(decoder, lora, &var, at, h);
            let error = (difference - f64::from(gradient[at])).abs();
            // What f32 losses of about 5 leave of a difference, and h² of the third derivative.
            let allowed = 1e-3 + 0.02 * scale;
            worst = worst.max(error / allowed);
            assert!(
                error <= allowed,
                "{family}: {name}[{at}]: {} by backward, {difference} by differences",
                gradient[at]
            );
        }
    }
    println!("{family}: largest error is {worst:.2} of what is allowed");
}

fn difference(decoder: &Decoder, lora: &TrainableLora, var: &Var, at: usize, h: f32) -> f64 {
    let original = values(var.as_tensor());
    let value_at = |step: f32| {
        let mut moved = original.clone();
        moved[at] += step;
        var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
        loss(decoder, lora)
    };
    let difference = (value_at(h) - value_at(-h)) / f64::from(2.0 * h);
    value_at(0.0);
    difference
}

#[test]
fn the_anchor_is_zero_at_the_base_and_grows_away_from_it() {
    let decoder = decoder("qwen3");
    let train = training_set();
    let anchors = anchors(&decoder);
    let data = TrainingData {
        train: &train,
        weights: vec![1.0; 3],
        anchors: &anchors,
        pairs: Pairs::NONE,
    };
    let value = |lora: &TrainableLora, anchor: f64| {
        let batch = Batch { epoch: 1, items: vec![0], anchors: vec![0] };
        trainer::loss(&decoder, lora, &data, &batch, anchor).unwrap()
    };
    let fresh = TrainableLora::fresh(&decoder, &params()).unwrap();
    assert!((value(&fresh, 5.0) - value(&fresh, 0.0)).abs() < 1e-6);
    let moved = moved("qwen3", &decoder);
    assert!(value(&moved, 1.0) - value(&moved, 0.0) > 0.1);
}

/// With one visible key, attention passes no gradient to q and k: the step must say so, not go on.
#[test]
fn a_tensor_without_gradient_fails_the_step_by_name() {
    let decoder = decoder("qwen3");
    let lora = moved("qwen3", &decoder);
    let train = [sequence(1, &[5, 9], 1, 1.0)];
    let data = TrainingData { train: &train, weights: vec![1.0], anchors: &[], pairs: Pairs::NONE };
    let batch = Batch { epoch: 1, items: vec![0], anchors: vec![] };
    let none = MemoryPlan::default();
    let gradients = trainer::gradients(&decoder, &lora, &data, &batch, 0.0, none).unwrap();
    let vars = lora.vars().into_iter().map(|(_, var)| var).collect();
    let mut optimizer = AdamW::new(vars, AdamWConfig::default()).unwrap();
    let error = trainer::step(gradients, &lora, &mut optimizer, 1e-3, 1.0, true).unwrap_err();
    assert!(
        matches!(&error, JobError::NoGradient(name) if name == "layer 0 q_proj lora_A"),
        "{error}"
    );
}

#[test]
fn dropout_acts_in_training_alone_and_repeats_with_its_seed() {
    let decoder = decoder("qwen3");
    let adapter = peft("qwen3", "peft_all", decoder.config());
    let lora = TrainableLora::from_adapter(&adapter, 0.5).unwrap();
    let ids = reference_ids("qwen3");
    let drawn = |seed| {
        lora.seed_step(seed, 3);
        values(&logits(&decoder, &ids, &lora))
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    let published = values(&logits(&decoder, &ids, &lora.publish().unwrap()));
    assert_eq!(published, values(&logits(&decoder, &ids, &adapter)));
}

#[test]
fn a_fresh_adapter_without_modules_is_refused() {
    let decoder = decoder("qwen3");
    for (modules, message) in [
        (vec![], "lora.target_modules is empty"),
        (vec!["q_porj".to_owned()], "unknown target module \"q_porj\""),
    ] {
        let params = TrainingParams { target_modules: modules, ..params() };
        let error = TrainableLora::fresh(&decoder, &params).err().unwrap();
        assert!(error.to_string().contains(message), "{error}");
    }
}
