//! Adapters, KL and whole training runs against PEFT and torch (tests/fixtures).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may fall"
)]

mod reference;

use std::collections::{BTreeSet, HashMap};

use candle_core::{DType, Device, Tensor};
use reference::adapters::{add_magnitudes, by_name, config, peft, trainable_of};
use reference::*;
use serde_json::Value;
use shammah::lora::dataset::{Sequence, normalised_weights};
use shammah::lora::loss::head_kl;
use shammah::lora::preference::Pairs;
use shammah::lora::trainer::{self, Batch, MemoryPlan, TrainingData};
use shammah::lora::{AdamW, AdamWConfig, CONFIG_FILE, LoraAdapter, TrainableLora, WEIGHTS_FILE};
use shammah::models::{Adapt, Decoder, NoAdapter};

/// Largest relative error of a training loss.
const LOSS: f64 = 1e-4;
/// Largest relative error of a gradient norm, a final tensor, a KL.
const TRAINED: f64 = 1e-3;

/// Adapters that PEFT wrote, of every kind.
const ADAPTERS: [&str; 5] = ["peft_all", "peft_qv", "peft_dora", "peft_rslora", "peft_patterns"];

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn logits_with_an_adapter_equal_those_of_peft() {
    for family in FAMILIES {
        let (decoder, ids) = (decoder(family), reference_ids(family));
        for name in ADAPTERS {
            let adapter = peft(family, name, decoder.config());
            let file = format!("{family}/{name}/reference_logits.safetensors");
            let logits = logits(&decoder, &ids, &adapter);
            assert_near(&format!("{family}/{name}"), &logits, &tensors(&file)["logits"], LOGITS);
        }
    }
}

#[test]
fn kl_from_the_base_equals_the_reference_by_row() {
    for family in FAMILIES {
        let (decoder, ids) = (decoder(family), reference_ids(family));
        let adapter = peft(family, "peft_all", decoder.config());
        let expected = numbers(&json(&format!("{family}/peft_all/kl.json"))["kl"]);
        for (row, expected) in expected.into_iter().enumerate() {
            let ids = ids.narrow(0, row, 1).unwrap();
            let hidden = |adapt| decoder.hidden(&ids, None, adapt).unwrap().squeeze(0).unwrap();
            let (base, adapted) = (hidden(&NoAdapter as &dyn Adapt), hidden(&adapter));
            let sum = head_kl(decoder.head(), &base, &adapted, 1.0, false).unwrap().value;
            let kl = sum / base.dim(0).unwrap() as f64;
            let error = (kl / expected - 1.0).abs();
            println!("{family} row {row}: KL {kl:.6}, relative error {error:.1e}");
            assert!(error < TRAINED, "{family} row {row}: KL {kl}, reference {expected}");
        }
    }
}

/// The training set of a fixture, padding taken off.
fn sequences(path: &str) -> Vec<Sequence> {
    let data = tensors(path);
    let integers = |name: &str| data[name].to_vec1::<i64>().unwrap();
    let ids = data["ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
    let weights = data["weights"].to_vec1::<f32>().unwrap();
    let rows = ids.into_iter().zip(integers("lengths")).zip(integers("loss_start")).zip(weights);
    rows.enumerate()
        .map(|(id, (((ids, length), start), weight))| Sequence {
            id: id as i64,
            ids: ids[..length as usize].to_vec(),
            answer_start: start as usize,
            weight: f64::from(weight),
        })
        .collect()
}

/// The largest relative errors of losses, norms and final tensors of one curve.
fn worst(what: &str, got: &[f64], expected: &[f64], tolerance: f64) -> f64 {
    assert_eq!(got.len(), expected.len());
    let errors = got.iter().zip(expected).map(|(x, y)| (x / y - 1.0).abs());
    let worst = errors.fold(0.0, f64::max);
    assert!(worst <= tolerance, "{what}: relative error {worst:.2e}, at most {tolerance:.0e}");
    worst
}

/// The adapter that a curve starts from.
fn start_of(family: &str, folder: &str, curve: &Value, decoder: &Decoder) -> TrainableLora {
    let number = |key: &str| curve[key].as_f64().unwrap();
    let modules: Vec<&str> =
        curve["target_modules"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    let mut shape = config(number("rank") as usize, number("alpha"), &modules);
    let mut first = tensors(&format!("{folder}/init.safetensors"));
    let on = |key: &str| curve.get(key).and_then(Value::as_bool).unwrap_or(false);
    shape["use_rslora"] = on("use_rslora").into();
    shape["use_dora"] = on("use_dora").into();
    if on("use_dora") {
        add_magnitudes(family, &mut first);
    }
    trainable_of(&first, &shape, decoder.config())
}

/// Trains as a curve (`""`, `"_weighted"`, `"_dora"` ...) says and compares all that it holds; returns what came out.
fn follow_curve(family: &str, target: &str, suffix: &str, memory: MemoryPlan) -> TrainableLora {
    let folder = format!("{family}/train_{target}");
    let curve = json(&format!("{folder}/curve{suffix}.json"));
    let decoder = decoder(family);
    let number = |key: &str| curve[key].as_f64().unwrap();
    let lora = start_of(family, &folder, &curve, &decoder);
    let weighted = curve["weighted"].as_bool().unwrap();
    let train = sequences(&format!("{folder}/data.safetensors"));
    let raw: Vec<f64> = train.iter().map(|s| s.weight).collect();
    // The fixture caps no share.
    let weights = if weighted { normalised_weights(&raw, 1.0) } else { vec![1.0; train.len()] };
    let data = TrainingData { train: &train, weights, anchors: &[], pairs: Pairs::NONE };
    let vars = lora.vars().into_iter().map(|(_, var)| var).collect();
    let adam = AdamWConfig {
        beta1: number("beta1"),
        beta2: number("beta2"),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
    };
    let mut optimizer = AdamW::new(vars, adam).unwrap();
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    let (steps, size) = (number("steps") as usize, number("batch_size") as usize);
    for step in 0..steps {
        let items = (0..size).map(|i| (size * step + i) % train.len()).collect();
        let batch = Batch { epoch: 1, items, anchors: Vec::new() };
        let gradients = trainer::gradients(&decoder, &lora, &data, &batch, 0.0, memory).unwrap();
        losses.push(gradients.loss);
        let (rate, limit) = (number("learning_rate"), number("max_grad_norm"));
        norms.push(trainer::step(gradients, &lora, &mut optimizer, rate, limit, step < 2).unwrap());
    }
    let what = format!("{family}/{target}{suffix}");
    let loss = worst(&format!("{what}: loss"), &losses, &numbers(&curve["losses"]), LOSS);
    let norm = worst(&format!("{what}: norm"), &norms, &numbers(&curve["grad_norms"]), TRAINED);
    let expected = tensors(&format!("{folder}/final{suffix}.safetensors"));
    let trained = by_name(&lora.publish().unwrap());
    assert_eq!(trained.len(), expected.len());
    let tensor = trained.iter().map(|(name, t)| relative(t, &expected[name])).fold(0.0, f64::max);
    assert!(tensor <= TRAINED, "{what}: a final tensor is {tensor:.2e} away");
    println!("{what}: largest errors: loss {loss:.1e}, norm {norm:.1e}, tensor {tensor:.1e}");
    lora
}

/// Follows a curve for all families, q and v alone and all seven projections.
fn follow_all(suffix: &str) {
    follow_all_with(suffix, MemoryPlan::default());
}

fn follow_all_with(suffix: &str, memory: MemoryPlan) {
    for family in FAMILIES {
        for target in ["qv", "all"] {
            follow_curve(family, target, suffix, memory);
        }
    }
}

#[test]
fn twenty_steps_equal_those_of_torch() {
    follow_all("");
}

#[test]
fn twenty_weighted_steps_equal_those_of_torch() {
    follow_all("_weighted");
}

#[test]
fn twenty_steps_without_clipping_equal_those_of_torch() {
    follow_all("_unclipped");
}

#[test]
fn twenty_rslora_steps_equal_those_of_torch() {
    follow_all("_rslora");
}

#[test]
fn twenty_dora_steps_equal_those_of_torch() {
    follow_all("_dora");
}

#[test]
fn twenty_steps_of_added_up_gradients_equal_those_of_torch() {
    follow_all_with(
        "_accumulated_weighted",
        MemoryPlan { micro_batch: 2, ..MemoryPlan::default() },
    );
}

#[test]
fn dora_steps_with_checkpointing_and_accumulation_equal_those_of_torch() {
    follow_curve("qwen2", "all", "_dora", MemoryPlan { checkpointed_layers: 2, micro_batch: 3 });
}

#[test]
fn steps_with_checkpointing_and_accumulation_equal_those_of_torch() {
    for (family, target) in [("llama", "qv"), ("qwen3", "all")] {
        for (checkpointed_layers, micro_batch) in [(3, 0), (2, 1), (0, 3)] {
            follow_curve(
                family,
                target,
                "_weighted",
                MemoryPlan { checkpointed_layers, micro_batch },
            );
        }
    }
}

/// Adapters of ours whose logits PEFT computed (tests/fixtures/README.md), with the curve that they were trained along.
const OURS: [(&str, &str); 2] = [("ours_lora", ""), ("ours_dora", "_dora")];

#[test]
fn adapters_trained_here_give_the_logits_that_peft_computes_with_them() {
    let (decoder, ids) = (decoder("qwen3"), reference_ids("qwen3"));
    for (name, _) in OURS {
        let adapter = peft("qwen3", name, decoder.config());
        let file = format!("qwen3/{name}/peft_logits.safetensors");
        assert_near(name, &logits(&decoder, &ids, &adapter), &tensors(&file)["logits"], LOGITS);
    }
}

/// Writes these adapters and our logits into `$SHAMMAH_WRITE_OURS`; check_ours_in_peft.py does the rest.
#[test]
#[ignore = "makes a fixture"]
fn write_adapters_for_peft() {
    let folder = std::path::PathBuf::from(std::env::var_os("SHAMMAH_WRITE_OURS").unwrap());
    let (decoder, ids) = (decoder("qwen3"), reference_ids("qwen3"));
    let write = |name: &str, adapter: &LoraAdapter| {
        let dir = folder.join(name);
        fs_err::create_dir_all(&dir).unwrap();
        shammah::lora::save(&dir, adapter.config(), 0.0, "qwen3", adapter.sites()).unwrap();
        let logits = logits(&decoder, &ids, adapter);
        let ids = ids.to_dtype(DType::I64).unwrap();
        let tensors = HashMap::from([("ids", ids), ("logits", logits)]);
        candle_core::safetensors::save(&tensors, dir.join("our_logits.safetensors")).unwrap();
    };
    for (name, curve) in OURS {
        write(name, &follow_curve("qwen3", "all", curve, MemoryPlan::default()).publish().unwrap());
    }
    write("ours_patterns", &peft("qwen3", "peft_patterns", decoder.config()));
}

#[test]
fn what_is_saved_is_what_is_loaded_in_the_names_of_peft() {
    for (family, name) in FAMILIES.into_iter().flat_map(|f| ADAPTERS.map(|name| (f, name))) {
        let decoder = decoder(family);
        let model = decoder.config();
        let adapter = peft(family, name, model);
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        shammah::lora::save(dir, adapter.config(), 0.1, "tiny", adapter.sites()).unwrap();

        let written = candle_core::safetensors::load(dir.join(WEIGHTS_FILE), &Device::Cpu).unwrap();
        let original = tensors(&format!("{family}/{name}/adapter_model.safetensors"));
        let names = |t: &HashMap<String, Tensor>| t.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&written), names(&original));
        for (name, tensor) in &original {
            assert_eq!(values(&written[name]), values(tensor), "{name}");
        }
        let again = LoraAdapter::load(dir, model, &Device::Cpu).unwrap();
        assert_eq!(again.config(), adapter.config());
        let ids = reference_ids(family);
        assert_eq!(
            values(&logits(&decoder, &ids, &again)),
            values(&logits(&decoder, &ids, &adapter)),
            "save and load is the identity"
        );
        let once_more = tempfile::tempdir().unwrap();
        shammah::lora::save(once_more.path(), again.config(), 0.1, "tiny", again.sites()).unwrap();
        let third = LoraAdapter::load(once_more.path(), model, &Device::Cpu).unwrap();
        assert_eq!(third.digest(), again.digest(), "the same effect has the same name");
        assert_eq!(again.digest().len(), 64);
    }
}

/// PEFT refuses no key that it knows, so ours are some of those it writes, with values it takes.
#[test]
fn a_saved_config_is_one_that_peft_reads() {
    let decoder = decoder("qwen3");
    let adapter = peft("qwen3", "peft_qv", decoder.config());
    let folder = tempfile::tempdir().unwrap();
    shammah::lora::save(folder.path(), adapter.config(), 0.1, "tiny", adapter.sites()).unwrap();
    let text = fs_err::read(folder.path().join(CONFIG_FILE)).unwrap();
    let ours: Value = serde_json::from_slice(&text).unwrap();
    let theirs = json("qwen3/peft_qv/adapter_config.json");
    for (key, value) in ours.as_object().unwrap() {
        let theirs = theirs.get(key).unwrap_or_else(|| panic!("PEFT writes no {key}"));
        match key.as_str() {
            "base_model_name_or_path" | "lora_dropout" => {}
            "lora_alpha" => assert_eq!(value.as_f64(), theirs.as_f64()),
            _ => assert_eq!(value, theirs, "{key}"),
        }
    }
    for key in ["peft_type", "task_type", "r", "lora_alpha", "target_modules", "bias", "use_rslora"]
    {
        assert!(ours.get(key).is_some(), "{key} is written");
    }
}

/// The digest names the effect: weights and scale, not the config's other keys.
#[test]
fn the_digest_changes_with_scale_and_weights() {
    let decoder = decoder("llama");
    let model = decoder.config();
    let weights = tensors("llama/peft_qv/adapter_model.safetensors");
    let digest = |alpha: f64, weights: &HashMap<String, Tensor>| {
        let folder = tempfile::tempdir().unwrap();
        reference::adapters::write(
            folder.path(),
            &config(3, alpha, &["q_proj", "v_proj"]),
            weights,
        );
        LoraAdapter::load(folder.path(), model, &Device::Cpu).unwrap().digest().to_owned()
    };
    let mut changed = weights.clone();
    let name = changed.keys().min().unwrap().clone();
    changed.insert(name.clone(), (&changed[&name] * 1.5).unwrap());
    assert_eq!(digest(3.0, &weights), digest(3.0, &weights));
    assert_ne!(digest(3.0, &weights), digest(6.0, &weights));
    assert_ne!(digest(3.0, &weights), digest(3.0, &changed));
}
