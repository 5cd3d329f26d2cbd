//! A configuration file, and the same text as assignments of the command line and the environment.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use shammah::config::{Config, LoadArgs};

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

fuzz_target!(|bytes: &[u8]| {
    let file = FOLDER.path().join("config.toml");
    std::fs::write(&file, bytes).expect("the file");
    let loaded = Config::load(&LoadArgs { config_file: Some(file), ..LoadArgs::default() });
    let _ = loaded.map_err(|error| error.to_string());
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let overrides: Vec<String> = text.lines().take(8).map(str::to_owned).collect();
    let env = overrides.iter().filter_map(|line| line.split_once('='));
    let env = env.map(|(key, value)| (format!("SHAMMAH__{key}"), value.to_owned())).collect();
    let _ = Config::load(&LoadArgs { env, ..LoadArgs::default() }).map_err(|e| e.to_string());
    let _ = Config::load(&LoadArgs { overrides, ..LoadArgs::default() }).map_err(|e| e.to_string());
});
