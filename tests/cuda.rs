//! The CUDA device against the CPU: logits, losses of twenty steps, a whole job. Says that it skips where there is none.

#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may fall"
)]

mod reference;

use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use reference::*;
use shammah::domain::{DeviceChoice, Message, TrainExample};
use shammah::lora::Preference;
use shammah::lora::dataset::Sequence;
use shammah::lora::preference::Pairs;
use shammah::lora::trainer::{self, MemoryPlan, TrainingData};
use shammah::lora::{
    AdamW, AdamWConfig, JobEvent, JobInput, LoraAdapter, MemoryBudget, TrainableLora,
    TrainingParams, Weighting, run_job,
};
use shammah::models::{self, Decoder, ModelConfig, ModelSource, NoAdapter, base_hash};

const STEPS: usize = 20;
/// Largest relative error of logits and of each step's loss, the base in f32.
const SINGLE: f64 = 1e-3;
/// The same with a base in bf16, whose products are rounded to it: 2⁻⁸ each, on tiny random models.
const BF16: f64 = 6e-2;

/// The first CUDA device, if there is one.
fn cuda() -> Option<Device> {
    let error = match Device::new_cuda(0) {
        Ok(device) => return Some(device),
        Err(error) => error.to_string(),
    };
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let reason = error.lines().next().unwrap_or_default();
    // Not eprintln!, which the harness swallows when a test passes.
    let text = format!("SKIPPED {test}: no CUDA device: {reason}\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    None
}

/// A family's decoder on a device, its matrices in `dtype`.
fn decoder_on(family: &str, dtype: DType, device: &Device) -> Decoder {
    let path = fixture(family).join("config.json");
    let config = ModelConfig::parse(&fs_err::read_to_string(&path).unwrap(), &path).unwrap();
    let weights = tensors(&format!("{family}/model.safetensors"));
    let mut take = |name: &str, shape: &[usize]| {
        let kept = if shape.len() == 2 { dtype } else { DType::F32 };
        Ok(weights[name].to_dtype(kept)?.to_device(device)?.into())
    };
    Decoder::new(config, device, &mut take).unwrap()
}

fn params(dora: bool) -> TrainingParams {
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    TrainingParams {
        rank: 4,
        alpha: 10.0,
        rslora: false,
        dora,
        dropout: 0.1,
        target_modules: all.map(str::to_owned).to_vec(),
        learning_rate: 1e-3,
        batch_size: 2,
        epochs: 1,
        min_steps: STEPS,
        weighting: Weighting::Loss,
        preference: Preference::OFF,
        warmup_ratio: 0.1,
        seed: 11,
        max_grad_norm: 1.0,
        weight_decay: 0.01,
        anchor: 0.7,
        anchor_prompts: 1,
        max_share: 0.3,
        checkpoint_every_steps: 8,
        paraphrase: false,
        neighbour_prompts: 0,
    }
}

/// The losses of [`STEPS`] steps.
fn curve(decoder: &Decoder, dora: bool) -> Vec<f64> {
    let sequence = |id: i64, ids: &[u32], answer_start: usize| Sequence {
        id,
        ids: ids.to_vec(),
        answer_start,
        weight: 1.0,
    };
    let train =
        [sequence(1, &[4, 7, 33, 8, 61, 2], 3), sequence(2, &[4, 7, 41, 42, 43, 44, 45, 2], 4)];
    let anchors = trainer::anchors(decoder, vec![sequence(1, &[4, 7, 68, 90, 2], 2)]).unwrap();
    let data = TrainingData {
        train: &train,
        weights: vec![0.5, 1.5],
        anchors: &anchors,
        pairs: Pairs::NONE,
    };
    let params = params(dora);
    let lora = TrainableLora::fresh(decoder, &params).unwrap();
    let vars: Vec<Var> = lora.vars().into_iter().map(|(_, var)| var).collect();
    let config = AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(vars, config).unwrap();
    let mut losses = Vec::new();
    let mut note = |progress: trainer::Progress, _: &AdamW| {
        losses.push(progress.loss);
        Ok(())
    };
    let memory = MemoryPlan::default();
    trainer::train(decoder, &lora, &data, &params, memory, &mut optimizer, &mut note).unwrap();
    losses
}

fn assert_same_curve(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!((got.len(), expected.len()), (STEPS, STEPS), "{what}");
    let apart = got.iter().zip(expected).map(|(x, y)| (x - y).abs() / y.abs());
    let worst = apart.fold(0.0, f64::max);
    println!("{what}: losses {worst:.1e} apart");
    assert!(worst <= tolerance, "{what}: {worst:.1e} apart\n{got:?}\n{expected:?}");
}

#[test]
fn logits_on_cuda_are_those_of_the_cpu() {
    let Some(cuda) = cuda() else { return };
    for (dtype, tolerance) in [(DType::F32, SINGLE), (DType::BF16, BF16)] {
        for family in FAMILIES {
            let ids = reference_ids(family);
            let cpu = logits(&decoder_on(family, dtype, &Device::Cpu), &ids, &NoAdapter);
            let decoder = decoder_on(family, dtype, &cuda);
            let got = logits(&decoder, &ids.to_device(&cuda).unwrap(), &NoAdapter);
            let got = got.to_device(&Device::Cpu).unwrap();
            assert_near(&format!("{family} {dtype:?}"), &got, &cpu, tolerance);
        }
    }
}

#[test]
fn cached_logits_on_cuda_are_those_of_whole_sequences() {
    let Some(cuda) = cuda() else { return };
    let decoder = decoder_on("qwen3", DType::F32, &cuda);
    let ids = reference_ids("qwen3").narrow(0, 1, 1).unwrap().contiguous().unwrap();
    let ids = ids.to_device(&cuda).unwrap();
    let mut cache = decoder.new_cache(23).unwrap();
    let mut parts = Vec::new();
    for piece in [7, 1, 1, 9, 5] {
        let ids = ids.narrow(1, cache.len(), piece).unwrap();
        let hidden = decoder.hidden(&ids, Some(&mut cache), &NoAdapter).unwrap();
        parts.push(decoder.logits(&hidden).unwrap());
    }
    let whole = logits(&decoder, &ids, &NoAdapter);
    assert_near("in pieces", &Tensor::cat(&parts, 1).unwrap(), &whole, SINGLE);
}

#[test]
fn twenty_steps_on_cuda_go_as_on_the_cpu() {
    let Some(cuda) = cuda() else { return };
    for (dtype, tolerance) in [(DType::F32, SINGLE), (DType::BF16, BF16)] {
        for (family, dora) in FAMILIES.into_iter().flat_map(|f| [(f, false), (f, true)]) {
            let cpu = curve(&decoder_on(family, dtype, &Device::Cpu), dora);
            let got = curve(&decoder_on(family, dtype, &cuda), dora);
            assert_same_curve(&format!("{family} {dtype:?} dora {dora}"), &got, &cpu, tolerance);
        }
    }
}

/// Trains the built-in model; returns the losses by step.
fn job(device: DeviceChoice, folder: &Path) -> Vec<f64> {
    let example = |id: i64, answer: &str| TrainExample {
        id,
        messages: vec![Message::user(format!("Name tree {id}."))],
        target: answer.to_owned(),
        weight: 1.0,
    };
    let input = JobInput {
        rules: Default::default(),
        model: ModelSource::Builtin,
        base_hash: base_hash(&ModelSource::Builtin, None).unwrap(),
        hash_cache: None,
        quantize: None,
        memory: MemoryBudget::default(),
        device,
        params: params(false),
        train: vec![example(1, "It is oak."), example(2, "It is ash.")],
        replay: Vec::new(),
        heldout: vec![example(3, "It is elm.")],
        rejected: Vec::new(),
        parent: None,
        baseline: None,
        delta: false,
        notes: Default::default(),
    };
    let out = folder.join("adapter");
    fs_err::create_dir_all(&out).unwrap();
    let mut losses = Vec::new();
    let mut hear = |event| {
        if let JobEvent::Step(progress) = event {
            losses.push(progress.loss);
        }
    };
    run_job(&input, &folder.join("checkpoint"), &out, &mut hear, &|| false).unwrap();
    losses
}

/// The base is bf16 on CUDA, as in its file, and widened to f32 on the CPU.
#[test]
fn a_job_on_cuda_goes_as_on_the_cpu_and_its_adapter_is_read_there() {
    let Some(cuda) = cuda() else { return };
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cpu = job(DeviceChoice::Cpu, here.path());
    let got = job(DeviceChoice::Cuda(0), there.path());
    assert_same_curve("built-in", &got, &cpu, BF16);
    let ids = Tensor::new(&[[1u32, 2, 3, 4]], &Device::Cpu).unwrap();
    let logits_on = |device: &Device| {
        let decoder = models::load(&ModelSource::Builtin, device, None).unwrap().decoder;
        let dir = there.path().join("adapter");
        let adapter = LoraAdapter::load(&dir, decoder.config(), device).unwrap();
        let logits = logits(&decoder, &ids.to_device(device).unwrap(), &adapter);
        logits.to_device(&Device::Cpu).unwrap()
    };
    assert_near("with its adapter", &logits_on(&cuda), &logits_on(&Device::Cpu), BF16);
}
