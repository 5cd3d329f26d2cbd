//! What accelerators compute, of plain tensor operations, against the fused operations: both on the CPU.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::dataset::Sequence;
use super::trainer::{self, Batch, Gradients, MemoryPlan, TrainingData};
use super::watch::LossWatch;
use super::{
    AdamW, AdamWConfig, JobError, JobEvent, JobInput, MemoryBudget, TrainableLora, TrainingParams,
    WEIGHTS_FILE, Weighting, checkpoint, run_job,
};
use crate::domain::{DeviceChoice, Message, TrainExample};
use crate::lora::Preference;
use crate::lora::preference::{self, Pairs};
use crate::models::test_kit::composed;
use crate::models::{Decoder, ModelConfig, ModelSource, NoAdapter, base_hash, ops};

/// Largest relative error between two orders of f32 sums.
const SINGLE: f64 = 1e-5;
/// And of losses whose products have operands and results rounded to bf16, against operands in f32; these are the
/// largest over steps of tiny random models, where the mean is far below.
const BF16: f64 = 6e-2;
const STEPS: usize = 20;

/// A decoder of a fixture, its matrices in `dtype`.
fn decoder(family: &str, dtype: DType) -> Decoder {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
    let path = dir.join("config.json");
    let config = ModelConfig::parse(&fs_err::read_to_string(&path).unwrap(), &path).unwrap();
    let weights = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu);
    let weights = weights.unwrap();
    let mut take = |name: &str, shape: &[usize]| {
        let kept = if shape.len() == 2 { dtype } else { DType::F32 };
        Ok(weights[name].to_dtype(kept)?.into())
    };
    Decoder::new(config, &Device::Cpu, &mut take).unwrap()
}

fn params(dora: bool, dropout: f64) -> TrainingParams {
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    TrainingParams {
        rank: 4,
        alpha: 10.0,
        rslora: false,
        dora,
        dropout,
        target_modules: all.map(str::to_owned).to_vec(),
        learning_rate: 5e-3,
        batch_size: 2,
        epochs: 1,
        min_steps: STEPS,
        weighting: Weighting::Loss,
        preference: Preference::OFF,
        warmup_ratio: 0.1,
        seed: 11,
        max_grad_norm: 0.5,
        weight_decay: 0.01,
        anchor: 0.7,
        anchor_prompts: 1,
        max_share: 0.3,
        checkpoint_every_steps: 100,
        paraphrase: false,
        neighbour_prompts: 0,
    }
}

/// An adapter whose B acts, the same each time.
fn acting(decoder: &Decoder, dora: bool, dropout: f64) -> TrainableLora {
    let lora = TrainableLora::fresh(decoder, &params(dora, dropout)).unwrap();
    let mut rng = StdRng::seed_from_u64(5);
    for (_, var) in lora.vars().into_iter().filter(|(name, _)| name.ends_with("lora_B")) {
        let values: Vec<f32> = (0..var.elem_count()).map(|_| rng.random_range(-0.2..0.2)).collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    lora
}

/// Sequences that begin alike, so that they share a prefix where nothing is dropped.
fn sequences(vocab: u32) -> Vec<Sequence> {
    let sequence = |id: i64, rest: &[u32], answer_start: usize, weight: f64| Sequence {
        id,
        ids: [&[4, 7], rest].concat().into_iter().map(|id| id % vocab).collect(),
        answer_start,
        weight,
    };
    vec![
        sequence(1, &[33, 8, 61, 2], 3, 1.0),
        sequence(2, &[41, 42, 43, 44, 45, 2], 4, 10.0),
        sequence(3, &[12, 2], 2, 3.0),
    ]
}

fn with_data<R>(decoder: &Decoder, f: impl FnOnce(&TrainingData<'_>) -> R) -> R {
    let vocab = decoder.config().vocab_size as u32;
    let ids = vec![4, 7, 68 % vocab, 90 % vocab, 2];
    let anchor = Sequence { id: 1, ids, answer_start: 2, weight: 1.0 };
    let anchors = trainer::anchors(decoder, vec![anchor], &NoAdapter).unwrap();
    let train = sequences(vocab);
    let rejected =
        Sequence { id: 1, ids: [&train[0].ids[..3], &[9, 2]].concat(), ..train[0].clone() };
    let pairs = preference::pairs(decoder, &train, &[Some(rejected)]).unwrap();
    let pairs = Pairs { of: &pairs, strength: Preference { weight: 0.6, beta: 0.3 } };
    f(&TrainingData { train: &train, weights: vec![0.4, 2.1, 0.5], anchors: &anchors, pairs })
}

fn gradients(decoder: &Decoder, lora: &TrainableLora) -> Gradients {
    let batch = Batch { epoch: 1, items: vec![1, 0, 2], anchors: vec![0] };
    let memory = MemoryPlan { checkpointed_layers: 1, micro_batch: 0 };
    lora.seed_step(3, 1);
    with_data(decoder, |data| trainer::gradients(decoder, lora, data, &batch, 0.7, memory).unwrap())
}

/// The losses of [`STEPS`] steps.
fn curve(decoder: &Decoder, dora: bool, dropout: f64) -> Vec<f64> {
    let lora = acting(decoder, dora, dropout);
    let vars: Vec<Var> = lora.vars().into_iter().map(|(_, var)| var).collect();
    let config = AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() };
    let mut optimizer = AdamW::new(vars, config).unwrap();
    let (params, memory) = (params(dora, dropout), MemoryPlan::default());
    let mut losses = Vec::new();
    with_data(decoder, |data| {
        let mut note = |progress: trainer::Progress, _: &AdamW| -> Result<(), JobError> {
            losses.push(progress.loss);
            Ok(())
        };
        trainer::train(decoder, &lora, data, &params, memory, &mut optimizer, &mut note).unwrap();
    });
    losses
}

fn norm(t: &Tensor) -> f64 {
    let squares = t.to_dtype(DType::F64).unwrap().sqr().unwrap();
    squares.sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

fn relative(x: &Tensor, y: &Tensor) -> f64 {
    norm(&(x - y).unwrap()) / norm(y)
}

fn worst(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| (x - y).abs() / y.abs()).fold(0.0, f64::max)
}

const KINDS: [(&str, bool, f64); 8] = [
    ("llama", false, 0.0),
    ("qwen2", false, 0.3),
    ("qwen3", true, 0.0),
    ("qwen2", true, 0.3),
    ("mistral", false, 0.3),
    ("gemma3", false, 0.0),
    ("gemma3", true, 0.3),
    ("phi3_longrope", false, 0.0),
];

/// Tells how far loss and gradients of the composed operations are from those of the fused ones.
fn gradients_apart(family: &str, dora: bool, dropout: f64, dtype: DType) -> (f64, f64) {
    let decoder = decoder(family, dtype);
    let fused = gradients(&decoder, &acting(&decoder, dora, dropout));
    let plain = composed(|| {
        assert!(!ops::fused(&Device::Cpu), "the compositions are what is compared");
        gradients(&decoder, &acting(&decoder, dora, dropout))
    });
    assert_eq!(fused.tensors.len(), plain.tensors.len());
    let pairs = plain.tensors.iter().zip(&fused.tensors);
    let apart = pairs.map(|(x, y)| relative(x.as_ref().unwrap(), y.as_ref().unwrap()));
    (worst(&[plain.loss], &[fused.loss]), apart.fold(0.0, f64::max))
}

#[test]
fn loss_and_gradients_on_accelerators_are_those_of_the_fused_operations() {
    for (family, dora, dropout) in KINDS {
        let (loss, gradient) = gradients_apart(family, dora, dropout, DType::F32);
        println!("{family} dora {dora} dropout {dropout}: {loss:.1e} {gradient:.1e}");
        assert!(loss < SINGLE && gradient < SINGLE, "{family}: {loss:.1e}, {gradient:.1e}");
    }
}

#[test]
fn a_base_in_half_precision_changes_loss_and_gradients_by_its_rounding_alone() {
    // f16 has three bits more, and the error falls with them.
    for (dtype, bound) in [(DType::BF16, 0.15), (DType::F16, 0.02)] {
        for (family, dora, dropout) in KINDS {
            let (loss, gradient) = gradients_apart(family, dora, dropout, dtype);
            println!("{family} {dtype:?} dora {dora}: {loss:.1e} {gradient:.1e}");
            assert!(
                loss < bound / 10.0 && gradient < bound,
                "{family}: {loss:.1e}, {gradient:.1e}"
            );
            assert!(gradient > SINGLE, "half precision was not computed with");
        }
    }
}

#[test]
fn twenty_steps_on_accelerators_go_as_on_the_cpu() {
    for (dtype, bound) in [(DType::F32, 1e-4), (DType::BF16, BF16)] {
        for (family, dora, dropout) in KINDS {
            let decoder = decoder(family, dtype);
            let fused = curve(&decoder, dora, dropout);
            let plain = composed(|| curve(&decoder, dora, dropout));
            let apart = worst(&plain, &fused);
            println!(
                "{family} {dtype:?} dora {dora}: {:.3} to {:.3}, {apart:.1e}",
                fused[0],
                fused[STEPS - 1]
            );
            assert!(apart < bound, "{family} {dtype:?}: {apart:.1e}\n{plain:?}\n{fused:?}");
        }
    }
}

#[test]
fn cached_answers_on_accelerators_are_those_of_the_fused_operations() {
    for family in ["llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "phi3_longrope"] {
        let decoder = decoder(family, DType::F32);
        let ids = Tensor::new(&[[4u32, 7, 48, 50, 2, 33, 8]], &Device::Cpu).unwrap();
        let run = || {
            let mut cache = decoder.new_cache(7).unwrap();
            let mut piece = |from: usize, len: usize| {
                let ids = ids.narrow(1, from, len).unwrap();
                let hidden = decoder.hidden(&ids, Some(&mut cache), &NoAdapter).unwrap();
                decoder.logits(&hidden).unwrap()
            };
            Tensor::cat(&[piece(0, 4), piece(4, 1), piece(5, 2)], 1).unwrap()
        };
        let apart = relative(&composed(run), &run());
        assert!(apart < SINGLE, "{family}: {apart:.1e}");
    }
}

fn example(id: i64, answer: &str) -> TrainExample {
    let messages = vec![Message::user(format!("Name tree {id}."))];
    TrainExample { id, messages, target: answer.to_owned(), weight: 1.0 }
}

fn job() -> JobInput {
    let source = ModelSource::Builtin;
    let modules = vec!["q_proj".to_owned(), "down_proj".to_owned()];
    JobInput {
        rules: Default::default(),
        base_hash: base_hash(&source, None).unwrap(),
        model: source,
        hash_cache: None,
        quantize: None,
        memory: MemoryBudget::default(),
        device: DeviceChoice::Cpu,
        params: TrainingParams {
            target_modules: modules,
            learning_rate: 1e-3,
            min_steps: 6,
            ..params(false, 0.1)
        },
        train: vec![example(1, "It is oak."), example(2, "It is ash.")],
        replay: Vec::new(),
        heldout: vec![example(3, "It is elm.")],
        rejected: Vec::new(),
        parent: None,
        baseline: None,
        delta: false,
        notes: Default::default(),
    }
}

/// Runs a job into `out`, cancelled after `stop` steps; returns its losses by step.
fn run(folder: &Path, out: &str, stop: usize) -> (Result<PathBuf, JobError>, Vec<f64>) {
    let out_dir = folder.join(out);
    fs_err::create_dir_all(&out_dir).unwrap();
    let (done, mut losses) = (std::cell::Cell::new(0), Vec::new());
    let mut hear = |event| {
        if let JobEvent::Step(progress) = event {
            done.set(progress.step);
            losses.push(progress.loss);
        }
    };
    let checkpoints = folder.join(out).with_extension("checkpoint");
    let ended = run_job(&job(), &checkpoints, &out_dir, &mut hear, &|| done.get() >= stop);
    (ended.map(|_| out_dir), losses)
}

/// The built-in model's matrices are bf16 in its file: so they stay on an accelerator, and are widened on the CPU.
#[test]
fn a_job_on_accelerators_stops_goes_on_and_ends_as_on_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let (fused, losses) = run(folder.path(), "fused", usize::MAX);
    fused.unwrap();
    composed(|| {
        let (whole, plain) = run(folder.path(), "whole", usize::MAX);
        let apart = worst(&plain, &losses);
        println!("built-in: {apart:.1e}");
        assert!(apart < 1e-2 && apart > 1e-7, "{apart:.1e}\n{plain:?}\n{losses:?}");
        let (stopped, first) = run(folder.path(), "resumed", 3);
        assert!(matches!(stopped, Err(JobError::Cancelled)) && first.len() == 3);
        let (resumed, rest) = run(folder.path(), "resumed", usize::MAX);
        assert_eq!([first, rest].concat(), plain);
        let weights = |dir: PathBuf| fs_err::read(dir.join(WEIGHTS_FILE)).unwrap();
        assert!(weights(resumed.unwrap()) == weights(whole.unwrap()), "the adapters are one");
    });
}

#[test]
fn a_checkpoint_of_another_device_is_not_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    let decoder = decoder("llama", DType::F32);
    let lora = acting(&decoder, false, 0.0);
    let of = |device| super::job::fingerprint(&job(), device).unwrap();
    let (cpu, cuda) = (of(DeviceChoice::Cpu), of(DeviceChoice::Cuda(0)));
    let config = AdamWConfig::default();
    let vars = || lora.vars().into_iter().map(|(_, var)| var).collect();
    let optimizer = AdamW::new(vars(), config).unwrap();
    checkpoint::save(folder.path(), &lora, &optimizer, 1.0, &LossWatch::default(), &cuda).unwrap();
    let restored = |fingerprint: &str| {
        checkpoint::restore(folder.path(), &lora, config, fingerprint, &Device::Cpu).unwrap()
    };
    assert!(restored(&cpu).is_none());
    assert!(restored(&cuda).is_some());
}

/// Attention over a prefix that is shared, whose rows get their gradient from every sequence.
#[test]
fn packed_attention_on_accelerators_is_that_of_the_fused_operation() {
    use crate::models::Packing;
    use crate::models::attention::{Heads, packed};
    let full = Heads::full(4, 2, 6);
    let packing = Packing::new(&[&[1, 2, 3], &[1, 2, 4, 5, 6], &[1, 2]], true).unwrap();
    let packing = Arc::new(packing);
    let random = |width: usize, seed: u64| {
        let mut rng = StdRng::seed_from_u64(seed);
        let data: Vec<f32> =
            (0..packing.len() * width).map(|_| rng.random_range(-2.0..2.0)).collect();
        Var::from_vec(data, (packing.len(), width), &Device::Cpu).unwrap()
    };
    let (q, k, v, upstream) = (random(24, 1), random(12, 2), random(12, 3), random(24, 4));
    let run = |heads| {
        let y = packed(&q, &k, &v, heads, &packing).unwrap();
        let sum = (&y * &upstream.as_tensor().detach()).unwrap().sum_all().unwrap();
        let store = sum.backward().unwrap();
        let grads = [&q, &k, &v].map(|var| store.get(var).unwrap().clone());
        [vec![y.detach()], grads.to_vec()].concat()
    };
    for heads in [full, Heads { window: Some(2), scale: 0.3, ..full }] {
        for (plain, fused) in composed(|| run(heads)).iter().zip(&run(heads)) {
            assert!(relative(plain, fused) < SINGLE);
        }
    }
}
