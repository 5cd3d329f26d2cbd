//! The weights of a model directory; the rest of it is that of the fixture qwen3.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use candle_core::Device;
use libfuzzer_sys::fuzz_target;
use shammah::models::{ModelSource, load};

const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [],
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3/config.json");
    std::fs::copy(config, folder.path().join("config.json")).expect("the fixture's config");
    std::fs::write(folder.path().join("tokenizer.json"), TOKENIZER).expect("a tokenizer");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let folder = FOLDER.path();
    std::fs::write(folder.join("model.safetensors"), bytes).expect("the weights");
    let _ = load(&ModelSource::Dir(folder.to_owned()), &Device::Cpu, None);
});
