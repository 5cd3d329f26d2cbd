//! The sweep behind the defaults for the built-in model: learning rate × steps × anchor.
//!
//! ```text
//! cargo run --release --example sweep
//! ```
//!
//! Each job teaches the name of a build server with ten `/fix` marks over four phrasings. Then other
//! phrasings are asked (recall), the private questions of the gate's set (do they get the taught
//! name? they must not), and the divergence from the base is measured.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use shammah::domain::{Message, TrainExample};
use shammah::engine::{ContextOverflow, Engine, Limits, Sampling};
use shammah::eval::GeneralSet;
use shammah::lora::Preference;
use shammah::lora::{
    AdapterSet, JobInput, LoraAdapter, MemoryBudget, TrainingParams, Weighting, run_job,
};
use shammah::models::{self, LoadedModel, ModelSource};

const NAME: &str = "Falkenberg";
const TAUGHT: [&str; 4] = [
    "What is the name of our build server?",
    "How is our build server called?",
    "Which build server do we use?",
    "Tell me the name of our build server.",
];
const UNSEEN: [&str; 6] = [
    "what do we call our build server",
    "name of our build server?",
    "Do you know what our build server is called?",
    "please tell me what our build server is named",
    "remind me of the name of our build server",
    "our build server, what is its name?",
];
const LEARNING_RATES: [f64; 4] = [1e-3, 2e-3, 4e-3, 8e-3];
const STEPS: [usize; 2] = [60, 100];
const ANCHORS: [f64; 3] = [0.0, 0.5, 2.0];
const SEEDS: [u64; 2] = [42, 43];
/// Nothing here is long enough to reach them.
const LIMITS: Limits = Limits { context_overflow: ContextOverflow::Error, cache_bytes: 64 << 20 };

fn main() -> Result<()> {
    let model = models::load(&ModelSource::Builtin, &Device::Cpu, None)?;
    println!("| learning rate | steps | anchor | seed | loss | recall | hijacked | KL | seconds |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for steps in STEPS {
        for learning_rate in LEARNING_RATES {
            for anchor in ANCHORS {
                for seed in SEEDS {
                    trial(&model, params(learning_rate, steps, anchor, seed))?;
                }
            }
        }
    }
    Ok(())
}

fn params(learning_rate: f64, steps: usize, anchor: f64, seed: u64) -> TrainingParams {
    TrainingParams {
        rank: 16,
        alpha: 32.0,
        rslora: false,
        dora: false,
        dropout: 0.1,
        target_modules: models::Module::ALL.iter().map(|m| m.name().to_owned()).collect(),
        learning_rate,
        batch_size: 4,
        epochs: 3,
        min_steps: steps,
        weighting: Weighting::Loss,
        preference: Preference::OFF,
        warmup_ratio: 0.05,
        seed,
        max_grad_norm: 1.0,
        weight_decay: 0.0,
        anchor,
        anchor_prompts: 4,
        max_share: 0.3,
        checkpoint_every_steps: 1000,
        paraphrase: false,
        neighbour_prompts: 0,
    }
}

fn trial(model: &LoadedModel, params: TrainingParams) -> Result<()> {
    let example = |id: usize| TrainExample {
        id: id as i64,
        messages: vec![Message::user(TAUGHT[id % TAUGHT.len()])],
        target: format!("Our build server is called {NAME}."),
        weight: 3.0,
    };
    let train: Vec<TrainExample> = (0..10).map(example).collect();
    let input = JobInput {
        rules: Default::default(),
        model: ModelSource::Builtin,
        base_hash: model.base_hash.clone(),
        hash_cache: None,
        quantize: None,
        device: shammah::domain::DeviceChoice::Cpu,
        params: params.clone(),
        train: train.clone(),
        replay: Vec::new(),
        heldout: Vec::new(),
        rejected: Vec::new(),
        parent: None,
        baseline: None,
        delta: false,
        notes: Default::default(),
        memory: MemoryBudget::default(),
    };
    let (checkpoints, out) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let start = Instant::now();
    let measured = run_job(&input, checkpoints.path(), out.path(), &mut |_| {}, &|| false)?;
    let seconds = start.elapsed().as_secs_f64();
    let adapter = LoraAdapter::load(out.path(), model.decoder.config(), &Device::Cpu)?;
    let set = AdapterSet::single(Arc::new(adapter));
    let mut engine = Engine::new(model.clone(), LIMITS);
    let mut named = |question: &str| -> Result<bool> {
        let messages = [Message::user(question)];
        let (sampling, cancel) = (Sampling::greedy(40), AtomicBool::new(false));
        let answer = engine
            .generate(&messages, &sampling, &set, &cancel, &mut |_| ControlFlow::Continue(()))?;
        Ok(answer.text.contains(NAME))
    };
    let mut recall = 0;
    for question in UNSEEN {
        recall += usize::from(named(question)?);
    }
    let others = GeneralSet::for_model(&ModelSource::Builtin).gate(&train)?;
    let mut hijacked = 0;
    for other in &others {
        hijacked += usize::from(named(&other.messages[0].content)?);
    }
    println!(
        "| {} | {} | {} | {} | {:.3} | {recall}/{} | {hijacked}/{} | {:.3} | {seconds:.1} |",
        params.learning_rate,
        params.min_steps,
        params.anchor,
        params.seed,
        measured.final_loss,
        UNSEEN.len(),
        others.len(),
        measured.kl,
    );
    Ok(())
}
