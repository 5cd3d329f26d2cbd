//! Models whose projections are kept in a few bits: what they answer, and what training on them learns.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fall")]

mod reference;

use candle_core::{Device, Tensor};
use reference::{logits, relative};
use shammah::domain::{Message, Role, TrainExample};
use shammah::lora::Preference;
use shammah::lora::dataset::{Sequence, encode};
use shammah::lora::preference::Pairs;
use shammah::lora::trainer::{self, Batch, MemoryPlan, TrainingData};
use shammah::lora::{AdamW, AdamWConfig, TrainableLora, TrainingParams, Weighting};
use shammah::models::{LoadedModel, ModelSource, NoAdapter, Quantize, load_as};

/// The formats, how far the logits may be from those of full weights, and how far a loss (relative errors).
const FORMATS: [(Quantize, &str, f64, f64); 3] = [
    (Quantize::Q8_0, "q8_0", 0.01, 0.005),
    (Quantize::Q4_0, "q4_0", 0.1, 0.05),
    (Quantize::Q4K, "q4_k", 0.08, 0.03),
];

fn model(format: Option<Quantize>) -> LoadedModel {
    load_as(&ModelSource::Builtin, &Device::Cpu, None, format).unwrap()
}

fn data(model: &LoadedModel) -> Vec<Sequence> {
    let example = |(id, question): (usize, &str)| TrainExample {
        id: id as i64,
        messages: vec![Message { role: Role::User, content: question.to_owned() }],
        target: "Our build server is called Falkenberg.".to_owned(),
        weight: 1.0,
    };
    let questions = [
        "What is the name of our build server?",
        "How is our build server called?",
        "what do we call our build server?",
        "Which machine builds our code?",
    ];
    let examples: Vec<_> = questions.into_iter().enumerate().map(example).collect();
    encode(&examples, &model.tokenizer, 256).unwrap().sequences
}

fn params() -> TrainingParams {
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    TrainingParams {
        rank: 8,
        alpha: 16.0,
        rslora: false,
        dora: false,
        dropout: 0.0,
        target_modules: all.map(str::to_owned).to_vec(),
        learning_rate: 2e-3,
        batch_size: 4,
        epochs: 1,
        min_steps: 0,
        weighting: Weighting::Loss,
        preference: Preference::OFF,
        warmup_ratio: 0.0,
        seed: 3,
        max_grad_norm: 1.0,
        weight_decay: 0.0,
        anchor: 0.0,
        anchor_prompts: 0,
        max_share: 1.0,
        checkpoint_every_steps: 100,
        paraphrase: false,
        neighbour_prompts: 0,
    }
}

/// Losses of so many steps from the same first adapter.
fn curve(model: &LoadedModel, steps: usize) -> Vec<f64> {
    let lora = TrainableLora::fresh(&model.decoder, &params()).unwrap();
    let vars = lora.vars().into_iter().map(|(_, var)| var).collect();
    let mut optimizer = AdamW::new(vars, AdamWConfig::default()).unwrap();
    let train = data(model);
    let data = TrainingData {
        weights: vec![1.0; train.len()],
        train: &train,
        anchors: &[],
        pairs: Pairs::NONE,
    };
    let batch = Batch { epoch: 1, items: vec![0, 1, 2, 3], anchors: Vec::new() };
    let plan = MemoryPlan::default();
    let mut step = |index: usize| {
        let gradients =
            trainer::gradients(&model.decoder, &lora, &data, &batch, 0.0, plan).unwrap();
        let loss = gradients.loss;
        trainer::step(gradients, &lora, &mut optimizer, 2e-3, 1.0, index < 2).unwrap();
        loss
    };
    (0..steps).map(&mut step).collect()
}

#[test]
fn a_quantised_model_answers_nearly_as_the_full_one() {
    let full = model(None);
    let ids: Vec<u32> = full.tokenizer.encode_text("How do I undo a mark?").unwrap();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let expected = logits(&full.decoder, &ids, &NoAdapter);
    for (format, name, allowed, _) in FORMATS {
        let quantised = model(Some(format));
        assert_eq!(quantised.base_hash, full.base_hash, "the files are the same");
        let error = relative(&logits(&quantised.decoder, &ids, &NoAdapter), &expected);
        println!("{name}: logits {error:.1e} away");
        assert!(error > 0.0 && error < allowed, "{name}: {error}");
    }
}

#[test]
fn training_on_a_quantised_base_follows_the_curve_of_the_full_one() {
    let expected = curve(&model(None), 12);
    assert!(expected[11] < 0.5 * expected[0], "it learns: {expected:?}");
    for (format, name, _, allowed) in FORMATS {
        let losses = curve(&model(Some(format)), 12);
        let errors = losses.iter().zip(&expected).map(|(x, y)| (x - y).abs() / expected[0]);
        let worst = errors.fold(0.0, f64::max);
        println!("{name}: losses at most {worst:.1e} of the first one away: {losses:.3?}");
        assert!(worst < allowed, "{name}: {worst}, {losses:?} and {expected:?}");
        assert!(losses[11] < 0.5 * losses[0], "{name} learns: {losses:?}");
    }
}
