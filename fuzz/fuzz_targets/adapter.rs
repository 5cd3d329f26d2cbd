//! An adapter: the first four bytes are the length of its config, then come config and weights.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use candle_core::Device;
use libfuzzer_sys::fuzz_target;
use shammah::lora::{CONFIG_FILE, LoraAdapter, WEIGHTS_FILE};
use shammah::models::ModelConfig;

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

static MODEL: LazyLock<ModelConfig> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3/config.json");
    let text = std::fs::read_to_string(&path).expect("the fixture's config");
    ModelConfig::parse(&text, &path).expect("a config")
});

fuzz_target!(|bytes: &[u8]| {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return };
    let Some((config, weights)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else {
        return;
    };
    let folder = FOLDER.path();
    std::fs::write(folder.join(CONFIG_FILE), config).expect("the config");
    std::fs::write(folder.join(WEIGHTS_FILE), weights).expect("the weights");
    let _ = LoraAdapter::load(folder, &MODEL, &Device::Cpu);
});
