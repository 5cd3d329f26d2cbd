//! Adapters of PEFT's layout, put together from tensors.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use shammah::lora::{CONFIG_FILE, LoraAdapter, TrainableLora, WEIGHTS_FILE};
use shammah::models::{ModelConfig, Site};

use super::{fixture, tensors};

/// PEFT's name of a factor, spelled independently of the product.
pub fn peft_name(site: Site, factor: char) -> String {
    let (layer, path) = (site.layer, site.module.path());
    format!("base_model.model.model.layers.{layer}.{path}.lora_{factor}.weight")
}

/// PEFT's name of a DoRA magnitude.
pub fn magnitude_name(site: Site) -> String {
    peft_name(site, 'A').replace("lora_A.weight", "lora_magnitude_vector")
}

/// An adapter's tensors by PEFT's names.
pub fn by_name(adapter: &LoraAdapter) -> BTreeMap<String, Tensor> {
    let mut named = BTreeMap::new();
    for (site, factors) in adapter.sites() {
        named.insert(peft_name(*site, 'A'), factors.a.clone());
        named.insert(peft_name(*site, 'B'), factors.b.clone());
        if let Some(magnitude) = &factors.magnitude {
            named.insert(magnitude_name(*site), magnitude.clone());
        }
    }
    named
}

/// Gives every A in `tensors` the magnitudes that PEFT starts DoRA from: the rows' lengths of the family's weights.
pub fn add_magnitudes(family: &str, tensors_of: &mut HashMap<String, Tensor>) {
    let weights = tensors(&format!("{family}/model.safetensors"));
    let starts: Vec<String> = tensors_of
        .keys()
        .filter_map(|n| n.strip_suffix("lora_A.weight"))
        .map(str::to_owned)
        .collect();
    for start in starts {
        let name = format!("{}weight", start.strip_prefix("base_model.model.").unwrap());
        let length = weights[&name].sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        tensors_of.insert(format!("{start}lora_magnitude_vector"), length);
    }
}

/// A minimal `adapter_config.json`.
pub fn config(rank: usize, alpha: f64, modules: &[&str]) -> Value {
    json!({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": modules})
}

/// Writes an adapter's two files.
pub fn write(dir: &Path, config: &Value, tensors: &HashMap<String, Tensor>) {
    fs_err::create_dir_all(dir).unwrap();
    fs_err::write(dir.join(CONFIG_FILE), config.to_string()).unwrap();
    candle_core::safetensors::save(tensors, dir.join(WEIGHTS_FILE)).unwrap();
}

/// An adapter that PEFT wrote.
pub fn peft(family: &str, name: &str, model: &ModelConfig) -> LoraAdapter {
    LoraAdapter::load(&fixture(&format!("{family}/{name}")), model, &Device::Cpu).unwrap()
}

/// Variables with the values of a file of tensors.
pub fn trainable(file: &str, config: &Value, model: &ModelConfig) -> TrainableLora {
    trainable_of(&tensors(file), config, model)
}

/// Variables with these values.
pub fn trainable_of(
    tensors: &HashMap<String, Tensor>,
    config: &Value,
    model: &ModelConfig,
) -> TrainableLora {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, tensors);
    let adapter = LoraAdapter::load(folder.path(), model, &Device::Cpu).unwrap();
    TrainableLora::from_adapter(&adapter, 0.0).unwrap()
}
