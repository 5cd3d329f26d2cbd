//! A folder with a tiny model in it, and jobs on it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use shammah::domain::{DeviceChoice, Message, TrainExample};
use shammah::eval::Measurements;
use shammah::lora::{
    JobError, JobEvent, JobInput, MemoryBudget, Preference, TrainingParams, Weighting, run_job,
};
use shammah::models::{ModelSource, base_hash};

use crate::reference::{fixture, json};

/// Steps of a job.
pub const STEPS: usize = 6;

/// A folder with the Qwen3 fixture, a longer context, and a tokenizer of ASCII characters.
pub struct Workshop {
    pub folder: tempfile::TempDir,
}

impl Workshop {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs_err::create_dir(&model).unwrap();
        fs_err::copy(fixture("qwen3/model.safetensors"), model.join("model.safetensors")).unwrap();
        let mut config = json("qwen3/config.json");
        config["max_position_embeddings"] = 1024.into();
        config["eos_token_id"] = 98.into();
        fs_err::write(model.join("config.json"), config.to_string()).unwrap();
        fs_err::write(model.join("tokenizer.json"), ascii_tokenizer().to_string()).unwrap();
        let template = json("chat_template.json")["template"].clone();
        let config = json!({"eos_token": "<|im_end|>", "chat_template": template});
        fs_err::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn input(&self) -> JobInput {
        let example = |id: i64, weight: f64| TrainExample {
            id,
            messages: vec![Message::user(format!("Who is {id}?"))],
            target: format!("It is {}.", ["oak", "ash", "elm", "fir"][id as usize % 4]),
            weight,
        };
        let model = ModelSource::Dir(self.path("model"));
        JobInput {
            rules: Default::default(),
            base_hash: base_hash(&model, None).unwrap(),
            model,
            hash_cache: None,
            quantize: None,
            device: DeviceChoice::Cpu,
            params: params(),
            train: vec![example(1, 1.0), example(2, 10.0), example(3, 3.0)],
            replay: vec![example(4, 1.0)],
            heldout: vec![example(5, 1.0)],
            rejected: Vec::new(),
            parent: None,
            baseline: None,
            delta: false,
            notes: Default::default(),
            memory: MemoryBudget::default(),
        }
    }

    /// Runs a job into `out`, cancelled after `stop` steps.
    pub fn run(
        &self,
        input: &JobInput,
        out: &str,
        stop: Option<usize>,
    ) -> (Result<Measurements, JobError>, Vec<JobEvent>) {
        let out_dir = self.path(out);
        fs_err::create_dir_all(&out_dir).unwrap();
        let done = Cell::new(0);
        let mut events = Vec::new();
        let result = run_job(
            input,
            &self.path(&format!("{out}-checkpoint")),
            &out_dir,
            &mut |event| {
                if let JobEvent::Step(progress) = &event {
                    done.set(progress.step);
                }
                events.push(event);
            },
            &|| stop.is_some_and(|stop| done.get() >= stop),
        );
        (result, events)
    }

    pub fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let entry = |entry: std::io::Result<fs_err::DirEntry>| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs_err::read(path).unwrap())
        };
        fs_err::read_dir(self.path(folder)).unwrap().map(entry).collect()
    }
}

pub fn params() -> TrainingParams {
    TrainingParams {
        rank: 2,
        alpha: 8.0,
        rslora: false,
        dora: false,
        dropout: 0.1,
        target_modules: vec!["q_proj".to_owned(), "down_proj".to_owned()],
        learning_rate: 5e-3,
        batch_size: 2,
        epochs: 1,
        min_steps: STEPS,
        weighting: Weighting::Loss,
        preference: Preference::OFF,
        warmup_ratio: 0.2,
        seed: 42,
        max_grad_norm: 1.0,
        weight_decay: 0.01,
        anchor: 0.5,
        anchor_prompts: 1,
        max_share: 0.3,
        checkpoint_every_steps: 100,
        paraphrase: false,
        neighbour_prompts: 3,
    }
}

fn ascii_tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    for (id, c) in (0x21..0x7f).map(|b| b as u8 as char).chain(['Ġ', 'Ċ']).enumerate() {
        vocab.insert(c.to_string(), id.into());
    }
    let added: Vec<Value> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        .iter()
        .enumerate()
        .map(|(i, text)| json!({"id": 96 + i, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({"version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": byte_level,
        "post_processor": null, "decoder": byte_level, "model": {"type": "BPE", "vocab": vocab, "merges": []}})
}
