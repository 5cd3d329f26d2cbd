//! Adapters that are not what they say: each is refused in one line that names file, tensor and remedy.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

mod reference;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use reference::adapters::{config, peft, peft_name, write};
use reference::*;
use serde_json::{Value, json};
use shammah::lora::{AdapterSet, CONFIG_FILE, LoraAdapter, WEIGHTS_FILE};
use shammah::models::{Decoder, Module, Site};

const FAMILY: &str = "qwen3";

type Weights = HashMap<String, Tensor>;

fn weights() -> Weights {
    tensors(&format!("{FAMILY}/peft_qv/adapter_model.safetensors"))
}

fn good_config() -> Value {
    config(3, 3.0, &["q_proj", "v_proj"])
}

fn name(layer: usize, module: Module, factor: char) -> String {
    peft_name(Site { layer, module }, factor)
}

fn load(dir: &Path, decoder: &Decoder) -> Result<LoraAdapter, String> {
    LoraAdapter::load(dir, decoder.config(), &Device::Cpu).map_err(|e| e.to_string())
}

/// Loads these two files; the error must be one line that begins with the file at fault.
fn refused(config: &Value, weights: &Weights, file: &str, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, weights);
    check(folder.path(), file, parts);
}

fn check(dir: &Path, file: &str, parts: &[&str]) {
    let error = load(dir, &decoder(FAMILY)).map(|_| ()).unwrap_err();
    let path = dir.join(file);
    assert!(error.starts_with(&format!("adapter {}: ", path.display())), "{error}");
    assert!(!error.contains('\n') && error.contains("; "), "one line with a remedy: {error}");
    for part in parts {
        assert!(error.contains(part), "\"{part}\" is not in: {error}");
    }
}

fn with(change: impl FnOnce(&mut Weights)) -> Weights {
    let mut weights = weights();
    change(&mut weights);
    weights
}

fn random(shape: (usize, usize)) -> Tensor {
    Tensor::rand(-1f32, 1.0, shape, &Device::Cpu).unwrap()
}

#[test]
fn what_peft_wrote_is_taken() {
    for family in FAMILIES {
        let decoder = decoder(family);
        let all = peft(family, "peft_all", decoder.config());
        assert_eq!((all.config().rank, all.config().alpha, all.sites().len()), (4, 10.0, 21));
        let qv = peft(family, "peft_qv", decoder.config());
        assert_eq!(qv.config().target_modules, ["q_proj", "v_proj"]);
    }
}

#[test]
fn an_adapter_is_named_by_its_directory_and_told_from_others_by_what_it_does() {
    let (folder, decoder) = (tempfile::tempdir().unwrap(), decoder(FAMILY));
    let written = |name: &str, config: &Value, weights: &Weights| {
        let dir = folder.path().join(name);
        fs_err::create_dir_all(&dir).unwrap();
        write(&dir, config, weights);
        load(&dir, &decoder).unwrap()
    };
    let one = written("one", &good_config(), &weights());
    let same = written("two", &good_config(), &weights());
    assert_eq!((one.name(), same.name()), ("one", "two"));
    assert_eq!(one.digest(), same.digest());
    // What was computed with one must never be taken for another's.
    let louder = written("three", &config(3, 6.0, &["q_proj", "v_proj"]), &weights());
    let other = with(|weights| {
        let b = name(0, Module::QProj, 'B');
        let changed = (weights[&b].clone() * 2.0).unwrap();
        weights.insert(b, changed);
    });
    let other = written("four", &good_config(), &other);
    let digests = [&one, &louder, &other].map(LoraAdapter::digest);
    assert_eq!(digests.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    assert!(digests.iter().all(|digest| digest.len() == 64), "{digests:?}");
}

#[test]
fn tensors_that_do_not_fit_the_model_are_refused_by_name() {
    let q_a = name(0, Module::QProj, 'A');
    let wrong = with(|w| drop(w.insert(q_a.clone(), random((3, 51)))));
    refused(&good_config(), &wrong, WEIGHTS_FILE, &[&q_a, "[3, 51]", "[3, 52]", "own base model"]);
    let wrong = with(|w| drop(w.insert(q_a.clone(), random((4, 52)))));
    refused(&good_config(), &wrong, WEIGHTS_FILE, &[&q_a, "[4, 52]", "[3, 52]"]);
    let rank = config(8, 3.0, &["q_proj", "v_proj"]);
    refused(&rank, &weights(), WEIGHTS_FILE, &["has shape", "this model needs [8, 52]"]);
    let far = name(3, Module::QProj, 'A');
    let wrong = with(|w| drop(w.insert(far.clone(), random((3, 52)))));
    refused(&good_config(), &wrong, WEIGHTS_FILE, &[&far, "beyond the model's 3 layers"]);
    // The other families' shapes differ, so their adapters do too.
    let foreign = tensors("llama/peft_qv/adapter_model.safetensors");
    refused(&good_config(), &foreign, WEIGHTS_FILE, &["load the adapter's own base model"]);
}

#[test]
fn half_adapters_and_foreign_tensors_are_refused() {
    let half = with(|w| drop(w.remove(&name(1, Module::VProj, 'B'))));
    refused(&good_config(), &half, WEIGHTS_FILE, &["layer 1 v_proj has only one factor", "export"]);
    for foreign in [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight",
        "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.+1.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "",
    ] {
        let more = with(|w| drop(w.insert(foreign.to_owned(), random((3, 52)))));
        refused(&good_config(), &more, WEIGHTS_FILE, &[&format!("tensor {foreign} is unknown")]);
    }
    refused(&good_config(), &Weights::new(), WEIGHTS_FILE, &["holds no tensor"]);
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    let v_b = name(2, Module::VProj, 'B');
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let wrong = with(|w| {
            let mut data = values(&w[&v_b]);
            data[5] = bad;
            let tensor = Tensor::from_vec(data, w[&v_b].shape(), &Device::Cpu).unwrap();
            w.insert(v_b.clone(), tensor);
        });
        refused(&good_config(), &wrong, WEIGHTS_FILE, &[&v_b, "values that are no numbers"]);
    }
    let huge = with(|w| {
        let f64s = Tensor::full(1e300, w[&v_b].shape(), &Device::Cpu).unwrap();
        w.insert(v_b.clone(), f64s);
    });
    refused(&good_config(), &huge, WEIGHTS_FILE, &[&v_b, "values that are no numbers"]);
    let integers = with(|w| {
        let ints = w[&v_b].to_dtype(DType::U8).unwrap();
        w.insert(v_b.clone(), ints);
    });
    refused(
        &good_config(),
        &integers,
        WEIGHTS_FILE,
        &[&v_b, "has the type U8", "export it in f32"],
    );
}

#[test]
fn half_precision_adapters_are_taken() {
    let decoder = decoder(FAMILY);
    let folder = tempfile::tempdir().unwrap();
    let bf16 = weights().into_iter().map(|(n, t)| (n, t.to_dtype(DType::BF16).unwrap())).collect();
    write(folder.path(), &good_config(), &bf16);
    let adapter = load(folder.path(), &decoder).unwrap();
    let exact = peft(FAMILY, "peft_qv", decoder.config());
    let ids = reference_ids(FAMILY);
    let (near, exact) = (logits(&decoder, &ids, &adapter), logits(&decoder, &ids, &exact));
    assert!(relative(&near, &exact) < 1e-2);
}

#[test]
fn broken_weight_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &good_config(), &weights());
    let path = folder.path().join(WEIGHTS_FILE);
    let bytes = fs_err::read(&path).unwrap();
    let mut oversized = bytes.clone();
    oversized[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut beyond = bytes.clone();
    beyond[..8].copy_from_slice(&(bytes.len() as u64 + 1).to_le_bytes());
    let longer = [bytes.as_slice(), b"tail"].concat();
    let not_json = [&[2, 0, 0, 0, 0, 0, 0, 0], b"{x".as_slice()].concat();
    for broken in [
        &bytes[..bytes.len() - 1],
        &bytes[..100],
        &bytes[..7],
        b"",
        &oversized,
        &beyond,
        &longer,
        &not_json,
    ] {
        fs_err::write(&path, broken).unwrap();
        check(
            folder.path(),
            WEIGHTS_FILE,
            &["not a whole safetensors file", "export the adapter again"],
        );
    }
    fs_err::remove_file(&path).unwrap();
    let missing = load(folder.path(), &decoder(FAMILY)).map(|_| ()).unwrap_err();
    assert!(missing.contains("adapter_model.safetensors"), "{missing}");
}

#[test]
fn files_above_the_limit_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &good_config(), &weights());
    // A hole: five GiB that take no disk.
    let file = fs_err::File::create(folder.path().join(WEIGHTS_FILE)).unwrap();
    file.set_len(5 << 30).unwrap();
    check(
        folder.path(),
        WEIGHTS_FILE,
        &["more than the 4294967296 bytes", "use a smaller adapter"],
    );
    fs_err::write(folder.path().join(CONFIG_FILE), vec![b' '; (1 << 20) + 1]).unwrap();
    check(folder.path(), CONFIG_FILE, &["more than the 1048576 bytes"]);
}

#[test]
fn what_peft_can_do_and_we_cannot_is_refused_by_name() {
    for (key, value, part) in [
        ("modules_to_save", json!(["lm_head"]), "modules_to_save"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out"),
        ("lora_bias", json!(true), "lora_bias"),
        ("layer_replication", json!([[0, 2]]), "layer_replication"),
        ("use_qalora", json!(true), "use_qalora"),
        ("trainable_token_indices", json!([1]), "trainable_token_indices"),
        ("bias", json!("all"), "trained biases"),
        ("peft_type", json!("LOHA"), "peft_type \"LOHA\""),
        ("init_lora_weights", json!("pissa_niter_4"), "init_lora_weights \"pissa_niter_4\""),
        ("init_lora_weights", json!("loftq"), "init_lora_weights \"loftq\""),
        ("r", json!(0), "rank 0"),
        ("rank_pattern", json!({"q_proj": 0}), "rank_pattern gives \"q_proj\" the value 0"),
        ("rank_pattern", json!({"q_proj": 2.5}), "rank_pattern gives \"q_proj\" the value 2.5"),
        ("alpha_pattern", json!({"v_proj": "8"}), "alpha_pattern gives \"v_proj\" the value \"8\""),
        ("alpha_pattern", json!({"(?<=x)q_proj": 8}), "the pattern \"(?<=x)q_proj\", which cannot"),
        ("rank_pattern", json!({"(q{999}){999}": 8}), "which cannot be read"),
        ("rank_pattern", json!("q_proj"), "not a PEFT config"),
        ("use_dora", json!("yes"), "not a PEFT config"),
        ("r", json!(-1), "not a PEFT config"),
        ("r", json!("4"), "not a PEFT config"),
        ("lora_alpha", Value::Null, "not a PEFT config"),
    ] {
        let mut config = good_config();
        config[key] = value;
        refused(&config, &weights(), CONFIG_FILE, &[part]);
    }
    let mut harmless = good_config();
    harmless["init_lora_weights"] = json!("gaussian");
    harmless["rank_pattern"] = json!({});
    harmless["alpha_pattern"] = Value::Null;
    harmless["use_dora"] = json!(false);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &harmless, &weights());
    load(folder.path(), &decoder(FAMILY)).unwrap();
}

/// Too many patterns would cost more than any adapter is worth.
#[test]
fn endless_patterns_are_refused() {
    let patterns = (0..5000).map(|i| (format!("layers.{i}.self_attn.q_proj"), json!(3)));
    let mut config = good_config();
    config["rank_pattern"] = Value::Object(patterns.collect());
    refused(&config, &weights(), CONFIG_FILE, &["rank_pattern has 5000 patterns, 4096 are read"]);
}

#[test]
fn ranks_by_module_decide_the_shapes() {
    let mut config = good_config();
    config["rank_pattern"] = json!({"layers.1.self_attn.q_proj": 5});
    let q_a = name(1, Module::QProj, 'A');
    refused(&config, &weights(), WEIGHTS_FILE, &[&q_a, "[3, 52]", "this model needs [5, 52]"]);
    let fitting = with(|w| {
        w.insert(q_a.clone(), random((5, 52)));
        w.insert(name(1, Module::QProj, 'B'), random((72, 5)));
    });
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config, &fitting);
    let adapter = load(folder.path(), &decoder(FAMILY)).unwrap();
    let rank = |layer| adapter.sites()[&Site { layer, module: Module::QProj }].rank();
    assert_eq!((rank(0), rank(1), rank(2)), (3, 5, 3));
    // Without the pattern the same file is of two adapters.
    refused(&good_config(), &fitting, WEIGHTS_FILE, &[&q_a, "[5, 52]", "this model needs [3, 52]"]);
}

/// The config and the tensors of an adapter that PEFT trained with DoRA.
fn dora() -> (Value, Weights) {
    let config = json(&format!("{FAMILY}/peft_dora/adapter_config.json"));
    (config, tensors(&format!("{FAMILY}/peft_dora/adapter_model.safetensors")))
}

fn magnitude_name(layer: usize) -> String {
    name(layer, Module::QProj, 'A').replace("lora_A.weight", "lora_magnitude_vector")
}

#[test]
fn dora_adapters_need_their_magnitudes_and_others_have_none() {
    let (config, mut weights) = dora();
    let taken = weights.remove(&magnitude_name(1)).unwrap();
    refused(&config, &weights, WEIGHTS_FILE, &["layer 1 q_proj has no magnitude vector"]);
    let short = Tensor::zeros(71, DType::F32, &Device::Cpu).unwrap();
    for (wrong, part) in [
        (short, "[71], this model needs [72]"),
        (taken.unsqueeze(0).unwrap(), "[1, 72], this model needs [72]"),
        ((&taken / 0.0).unwrap(), "values that are no numbers"),
    ] {
        weights.insert(magnitude_name(1), wrong);
        refused(&config, &weights, WEIGHTS_FILE, &[&magnitude_name(1), part]);
    }
    weights.insert(magnitude_name(1), taken);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config, &weights);
    assert!(load(folder.path(), &decoder(FAMILY)).unwrap().config().dora);
    let mut plain = config;
    plain["use_dora"] = json!(false);
    refused(&plain, &weights, WEIGHTS_FILE, &["lora_magnitude_vector is unknown"]);
}

#[test]
fn a_dora_adapter_acts_alone_at_weight_one() {
    let decoder = decoder(FAMILY);
    let dora = Arc::new(peft(FAMILY, "peft_dora", decoder.config()));
    let plain = Arc::new(peft(FAMILY, "peft_qv", decoder.config()));
    for mixture in [
        vec![(dora.clone(), 0.5)],
        vec![(dora.clone(), 0.0)],
        vec![(plain.clone(), 1.0), (dora.clone(), 1.0)],
        vec![(dora.clone(), 1.0), (dora.clone(), 1.0)],
    ] {
        let error = AdapterSet::weighted(mixture).unwrap_err().to_string();
        assert!(error.contains("peft_dora: it is a DoRA adapter"), "{error}");
        assert!(error.ends_with("; use it alone at weight 1"), "{error}");
    }
    let ids = reference_ids(FAMILY);
    let alone = AdapterSet::weighted(vec![(dora.clone(), 1.0)]).unwrap();
    assert_eq!(values(&logits(&decoder, &ids, &alone)), values(&logits(&decoder, &ids, &*dora)));
    AdapterSet::weighted(vec![(plain, 0.5)]).unwrap();
}

#[test]
fn config_and_weights_must_be_of_one_adapter() {
    let fewer = config(3, 3.0, &["q_proj"]);
    refused(&fewer, &weights(), CONFIG_FILE, &["the weights adapt v_proj", "of one adapter"]);
    let more = config(3, 3.0, &["q_proj", "v_proj", "o_proj"]);
    refused(&more, &weights(), CONFIG_FILE, &["names \"o_proj\", the weights hold none of it"]);
    for fine in [json!("all-linear"), json!(["self_attn.q_proj", "v_proj"]), json!(null)] {
        let mut config = good_config();
        config["target_modules"] = fine;
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &config, &weights());
        let adapter = load(folder.path(), &decoder(FAMILY)).unwrap();
        assert_eq!(adapter.config().target_modules, ["q_proj", "v_proj"]);
    }
}

#[test]
fn rslora_scales_by_the_root_of_the_rank() {
    let decoder = decoder(FAMILY);
    let adapter = |alpha: f64, rslora: bool| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(3, alpha, &["q_proj", "v_proj"]);
        config["use_rslora"] = rslora.into();
        write(folder.path(), &config, &weights());
        load(folder.path(), &decoder).unwrap()
    };
    let ids = reference_ids(FAMILY);
    let (root, plain) = (adapter(3.0, true), adapter(3.0 * 3f64.sqrt(), false));
    assert_near("rslora", &logits(&decoder, &ids, &root), &logits(&decoder, &ids, &plain), 1e-6);
}
