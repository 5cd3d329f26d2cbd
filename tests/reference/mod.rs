//! The fixtures of tests/fixtures and how far a tensor may be from them (see the README there).
#![allow(dead_code, reason = "each test uses some of it")]

pub mod adapters;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use shammah::models::{Adapt, Decoder, ModelConfig, ModelError, Weight};

pub const FAMILIES: [&str; 3] = ["llama", "qwen2", "qwen3"];
/// Other families, and odd shapes of them.
pub const SHAPES: [&str; 7] =
    ["mistral", "gemma3", "phi3", "phi3_longrope", "llama3", "qwen2_yarn", "qwen3_mixed"];
/// Largest relative error of logits.
pub const LOGITS: f64 = 1e-4;

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// Tensors of a fixture.
pub fn tensors(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(path), &Device::Cpu).unwrap()
}

pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_slice(&fs_err::read(fixture(path)).unwrap()).unwrap()
}

/// Builds a decoder of a directory's config.json and model.safetensors, which need no tokenizer.
pub fn decoder_in(dir: &Path) -> Decoder {
    let path = dir.join("config.json");
    let config = ModelConfig::parse(&fs_err::read_to_string(&path).unwrap(), &path).unwrap();
    let weights = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu);
    decoder_of(config, &weights.unwrap())
}

/// Builds a decoder of these weights.
pub fn decoder_of(config: ModelConfig, weights: &HashMap<String, Tensor>) -> Decoder {
    let mut take = |name: &str, shape: &[usize]| -> Result<Weight, ModelError> {
        let tensor = weights.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(tensor.dims(), shape, "{name}");
        Ok(tensor.clone().into())
    };
    Decoder::new(config, &Device::Cpu, &mut take).unwrap()
}

pub fn decoder(family: &str) -> Decoder {
    decoder_in(&fixture(family))
}

/// All models of the fixtures.
pub fn all_models() -> impl Iterator<Item = &'static str> {
    FAMILIES.into_iter().chain(SHAPES)
}

/// The ids of a family's reference, `[2, 23]`.
pub fn reference_ids(family: &str) -> Tensor {
    ids(&tensors(&format!("{family}/reference.safetensors"))["ids"])
}

pub fn ids(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::U32).unwrap()
}

/// Logits of whole sequences, without a cache.
pub fn logits(decoder: &Decoder, ids: &Tensor, adapt: &dyn Adapt) -> Tensor {
    decoder.logits(&decoder.hidden(ids, None, adapt).unwrap()).unwrap()
}

pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖x − y‖₂ / ‖y‖₂, in f64.
pub fn relative(x: &Tensor, y: &Tensor) -> f64 {
    assert_eq!(x.dims(), y.dims());
    relative_of(&values(x), &values(y))
}

pub fn relative_of(x: &[f32], y: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let apart: f64 = x.iter().zip(y).map(|(x, y)| square(f64::from(*x) - f64::from(*y))).sum();
    let norm: f64 = y.iter().map(|y| square(f64::from(*y))).sum();
    (apart / norm).sqrt()
}

/// Fails unless `x` is within `tolerance` of `y`, and prints how near it is.
pub fn assert_near(what: &str, x: &Tensor, y: &Tensor, tolerance: f64) {
    let error = relative(x, y);
    println!("{what}: relative error {error:.1e}");
    assert!(error <= tolerance, "{what}: relative error {error:.2e}, at most {tolerance:.0e}");
}

/// The folder of real models and tokenizers, if this machine has it.
pub fn shared() -> Option<PathBuf> {
    let named = std::env::var_os("SHAMMAH_SHARED").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = named.unwrap_or(beside);
    if folder.is_dir() {
        return Some(folder);
    }
    // Not eprintln!, which the harness swallows when a test passes.
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let text = format!("SKIPPED {test}: {} is not there; set SHAMMAH_SHARED\n", folder.display());
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    None
}
