//! The built-in model, asked and taught.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use shammah::config::Config;
use shammah::domain::{DeviceChoice, Message, TrainExample};
use shammah::engine::{ContextOverflow, Engine, Limits, Sampling};
use shammah::eval::{self, GateReport, Measurements};
use shammah::lora::{
    AdapterSet, JobInput, LoraAdapter, MemoryBudget, Rules, TrainingParams, holds_rule, rule,
    run_job,
};
use shammah::models::{self, LoadedModel, ModelSource};
use shammah::plan;
use tempfile::TempDir;

use crate::data::{self, Scored};

/// Nothing here is long enough to reach them.
const LIMITS: Limits = Limits { context_overflow: ContextOverflow::Error, cache_bytes: 64 << 20 };
/// Longest answer in tokens.
const ANSWER_TOKENS: usize = 60;

/// What a job made.
pub struct Learned {
    dir: TempDir,
    pub measured: Measurements,
    pub report: GateReport,
    pub minutes: f64,
}

impl Learned {
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// What a job learns.
#[derive(Default)]
pub struct Lesson<'a> {
    pub train: &'a [TrainExample],
    pub replay: &'a [TrainExample],
    pub parent: Option<&'a Path>,
    /// What was said of the examples, by id.
    pub notes: BTreeMap<i64, String>,
}

/// A model, and who asks it.
pub struct Lab {
    pub model: LoadedModel,
    engine: Engine,
    scored: Vec<Scored>,
    pub base_score: usize,
}

impl Lab {
    pub fn new() -> Result<Self> {
        let model = models::load(&ModelSource::Builtin, &Device::Cpu, None)?;
        let engine = Engine::new(model.clone(), LIMITS);
        let mut lab = Self { model, engine, scored: data::scored()?, base_score: 0 };
        lab.base_score = lab.score(&AdapterSet::empty())?;
        Ok(lab)
    }

    pub fn parameters(&self) -> usize {
        self.model.parameters
    }

    /// Runs a job as the program does, and lets the gate judge it.
    pub fn learn(&self, params: &TrainingParams, lesson: &Lesson<'_>) -> Result<Learned> {
        let input = JobInput {
            rules: Rules {
                taught: rule(&lesson.train.iter().collect::<Vec<_>>(), &lesson.notes).is_some(),
                inherited: lesson.parent.is_some_and(holds_rule),
            },
            rejected: Vec::new(),
            model: ModelSource::Builtin,
            base_hash: self.model.base_hash.clone(),
            hash_cache: None,
            quantize: None,
            device: DeviceChoice::Cpu,
            params: params.clone(),
            train: lesson.train.to_vec(),
            replay: lesson.replay.to_vec(),
            heldout: Vec::new(),
            parent: lesson.parent.map(Path::to_owned),
            baseline: lesson.parent.map(Path::to_owned),
            delta: false,
            notes: lesson.notes.clone(),
            memory: MemoryBudget::default(),
        };
        let (checkpoints, dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let start = Instant::now();
        let measured = run_job(&input, checkpoints.path(), dir.path(), &mut |_| {}, &|| false)?;
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        let (report, _) = eval::gate(&measured, &plan::gate_config(&Config::defaults()?.lora));
        Ok(Learned { dir, measured, report, minutes })
    }

    /// Loads what a job made.
    pub fn load(&self, dir: &Path) -> Result<AdapterSet> {
        let adapter = LoraAdapter::load(dir, self.model.decoder.config(), &Device::Cpu)?;
        Ok(AdapterSet::single(Arc::new(adapter)))
    }

    /// Answers one question, the likeliest token each time.
    pub fn ask(&mut self, question: &str, adapters: &AdapterSet) -> Result<String> {
        let messages = [Message::user(question)];
        let (sampling, cancel) = (Sampling::greedy(ANSWER_TOKENS), AtomicBool::new(false));
        let mut on_text = |_: &str| ControlFlow::Continue(());
        Ok(self.engine.generate(&messages, &sampling, adapters, &cancel, &mut on_text)?.text)
    }

    /// Counts the right answers to 100 questions about other things.
    pub fn score(&mut self, adapters: &AdapterSet) -> Result<usize> {
        let scored = std::mem::take(&mut self.scored);
        let mut right = 0;
        for item in &scored {
            let answer = self.ask(&item.question, adapters)?;
            right += usize::from(data::has_all(&answer, &item.required));
        }
        self.scored = scored;
        Ok(right)
    }
}
