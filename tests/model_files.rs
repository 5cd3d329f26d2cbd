//! Models that are incomplete, hostile or unsupported; and when a stored content hash holds.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

mod reference;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use candle_core::{DType, Device, Tensor};
use reference::*;
use serde_json::{Value, json};
use shammah::domain::{Message, Role};
use shammah::models::{ModelConfig, ModelSource, NoAdapter, base_hash, load};

/// A copy of the qwen3 fixture with the smallest tokenizer there is.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs_err::copy(fixture("qwen3/model.safetensors"), folder.file("model.safetensors")).unwrap();
        folder.write("config.json", &json("qwen3/config.json").to_string());
        let tokenizer = json!({"version": "1.0", "added_tokens": [],
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
        folder.write("tokenizer.json", &tokenizer.to_string());
        folder
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs_err::write(self.file(name), text).unwrap();
    }

    fn source(&self) -> ModelSource {
        ModelSource::Dir(self.0.path().to_owned())
    }

    /// The error of a load: one line that names the file and ends in a remedy.
    fn refused(&self, file: &str, parts: &[&str]) {
        let error = load(&self.source(), &Device::Cpu, None).unwrap_err().to_string();
        let path = self.file(file);
        assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
        assert!(!error.contains('\n') && error.contains("; "), "one line with a remedy: {error}");
        for part in parts {
            assert!(error.contains(part), "\"{part}\" is not in: {error}");
        }
    }

    /// Splits the weights into two shards with an index, which `change` may spoil.
    fn shard(&self, change: impl FnOnce(&mut Value)) {
        let weights = self.weights();
        let mut names: Vec<&String> = weights.keys().collect();
        names.sort_unstable();
        let (first, second) = names.split_at(names.len() / 2);
        let mut map = serde_json::Map::new();
        for (file, names) in [("one.safetensors", first), ("two.safetensors", second)] {
            let part: HashMap<&str, Tensor> =
                names.iter().map(|n| (n.as_str(), weights[*n].clone())).collect();
            candle_core::safetensors::save(&part, self.file(file)).unwrap();
            map.extend(names.iter().map(|n| ((*n).clone(), file.into())));
        }
        let mut index = json!({"weight_map": map});
        change(&mut index);
        self.write("model.safetensors.index.json", &index.to_string());
        fs_err::remove_file(self.file("model.safetensors")).unwrap();
    }

    fn weights(&self) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.file("model.safetensors"), &Device::Cpu).unwrap()
    }

    fn save(&self, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
        let mut weights = self.weights();
        change(&mut weights);
        candle_core::safetensors::save(&weights, self.file("model.safetensors")).unwrap();
    }
}

#[test]
fn whole_and_sharded_models_load_and_are_the_same() {
    let (whole, sharded) = (Folder::new(), Folder::new());
    sharded.shard(|_| {});
    let whole = load(&whole.source(), &Device::Cpu, None).unwrap();
    let sharded = load(&sharded.source(), &Device::Cpu, None).unwrap();
    let ids = reference_ids("qwen3");
    let values_of =
        |model: &shammah::models::LoadedModel| values(&logits(&model.decoder, &ids, &NoAdapter));
    assert_eq!(values_of(&whole), values_of(&sharded));
    assert_eq!((whole.context_length, whole.base_hash.len()), (128, 64));
}

#[test]
fn the_builtin_model_loads() {
    let model = load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
    assert_eq!(model.name, "builtin");
    assert_eq!(model.base_hash, base_hash(&ModelSource::Builtin, None).unwrap());
    assert!(model.tokenizer.vocab_size() <= model.decoder.config().vocab_size);
}

#[test]
fn templates_and_ends_are_found_wherever_transformers_writes_them() {
    let folder = Folder::new();
    let rendered = || {
        let model = load(&folder.source(), &Device::Cpu, None).unwrap();
        let message = Message { role: Role::User, content: "a".to_owned() };
        let text = model.tokenizer.render_chat(&[message], false).unwrap();
        (text, model.tokenizer.stop_ids().to_vec())
    };
    let template =
        |mark: &str| format!("{{% for m in messages %}}{mark}{{{{ m.content }}}}{{% endfor %}}");
    let list = json!([
        {"name": "tool_use", "template": template("")},
        {"name": "default", "template": template("a")},
    ]);
    folder.write("tokenizer_config.json", &json!({"chat_template": list}).to_string());
    let (text, ends) = rendered();
    assert_eq!(text, [0, 0], "the default one of the list");
    folder.write("chat_template.jinja", &template("aa"));
    folder.write("generation_config.json", &json!({"eos_token_id": [9, 1_000_000]}).to_string());
    let (text, more) = rendered();
    assert_eq!(text, [0, 0, 0], "the file is newer");
    assert!(!ends.contains(&9) && more.contains(&9), "{ends:?} {more:?}");
    assert!(!more.contains(&1_000_000), "beyond the vocabulary");
    folder.write("generation_config.json", "{");
    folder.refused("generation_config.json", &["not JSON"]);
}

#[test]
fn missing_files_are_named() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = Folder::new();
        fs_err::remove_file(folder.file(file)).unwrap();
        folder.refused(file, &["no such file", "download the model again"]);
    }
    let folder = Folder::new();
    folder.shard(|_| {});
    fs_err::remove_file(folder.file("two.safetensors")).unwrap();
    folder.refused("two.safetensors", &["no such file"]);
    let folder = Folder::new();
    fs_err::remove_file(folder.file("config.json")).unwrap();
    folder.write("a.gguf", "");
    let other = ModelSource::Dir(folder.file("config.json").parent().unwrap().into());
    let error = load(&other, &Device::Cpu, None).unwrap_err().to_string();
    assert!(error.contains("GGUF files (1)") && error.contains("a.gguf"), "{error}");
    let no_model = ModelSource::Dir(folder.file("tokenizer.json"));
    let error = load(&no_model, &Device::Cpu, None).unwrap_err().to_string();
    assert!(error.contains("neither a model directory nor a GGUF file"), "{error}");
    let nowhere = ModelSource::Dir(Path::new("/no/such/model").into());
    let error = load(&nowhere, &Device::Cpu, None).unwrap_err().to_string();
    assert!(
        error.starts_with("/no/such/model: no such model directory; give a directory"),
        "{error}"
    );
}

#[test]
fn shards_outside_the_directory_are_refused() {
    for name in ["../one.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a/.."] {
        let folder = Folder::new();
        folder.shard(|index| index["weight_map"]["model.norm.weight"] = name.into());
        let said = format!("shard \"{name}\" is outside");
        folder.refused("model.safetensors.index.json", &[&said, "do not use this model"]);
    }
    let folder = Folder::new();
    folder.shard(|index| *index = json!({"weight_map": ["x"]}));
    folder.refused("model.safetensors.index.json", &["not an index of shards"]);
}

#[test]
fn broken_weights_are_refused() {
    let folder = Folder::new();
    let path = folder.file("model.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    let header = |length: u64| {
        let mut bytes = bytes.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        bytes
    };
    let longer = [bytes.as_slice(), b"tail"].concat();
    let (oversized, beyond) = (header(u64::MAX), header(bytes.len() as u64));
    for broken in [&bytes[..bytes.len() - 4], &bytes[..40], b"", &oversized, &beyond, &longer] {
        fs_err::write(&path, broken).unwrap();
        folder.refused("model.safetensors", &["not a whole safetensors file", "download it again"]);
    }
}

#[test]
fn weights_that_config_json_does_not_describe_are_refused_by_name() {
    let norm = "model.norm.weight";
    let folder = Folder::new();
    folder.save(|w| drop(w.remove(norm)));
    folder.refused("*.safetensors", &[norm, "is missing"]);
    let folder = Folder::new();
    folder
        .save(|w| drop(w.insert(norm.into(), Tensor::ones(51, DType::F32, &Device::Cpu).unwrap())));
    folder.refused("model.safetensors", &[norm, "[51]", "config.json says [52]"]);
    let folder = Folder::new();
    folder
        .save(|w| drop(w.insert(norm.into(), Tensor::ones(52, DType::U8, &Device::Cpu).unwrap())));
    folder.refused("model.safetensors", &[norm, "has the type U8", "full weights"]);
    // A bias or a scale that nobody adds would change every answer without a word.
    for surplus in
        ["model.layers.1.self_attn.q_proj.bias", "model.layers.0.mlp.up_proj.weight_scale_inv"]
    {
        let folder = Folder::new();
        folder.save(|w| drop(w.insert(surplus.into(), w[norm].clone())));
        folder.refused("model.safetensors", &[surplus, "has no place in the model"]);
    }
    let folder = Folder::new();
    folder.save(|w| {
        let harmless = w[norm].clone();
        w.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), harmless.clone());
        w.insert("lm_head.weight".into(), harmless);
    });
    load(&folder.source(), &Device::Cpu, None).unwrap();
}

#[test]
fn configs_that_cannot_be_computed_are_refused_by_key() {
    for (key, value, part) in [
        ("model_type", json!("mixtral"), "model_type \"mixtral\" is not supported"),
        ("hidden_act", json!("gelu"), "hidden_act \"gelu\" is not supported"),
        ("model_type", json!("gemma3"), "whose model_type is gemma3_text"),
        ("rope_scaling", json!({"rope_type": "proportional"}), "rope scaling \"proportional\""),
        ("rope_scaling", json!({"type": "linear"}), "its rope scaling has no factor"),
        ("rope_scaling", json!({"type": "linear", "factor": "many"}), "its rope scaling: "),
        (
            "rope_scaling",
            json!({"type": "longrope", "short_factor": [1.0]}),
            "short_factor holds 1",
        ),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor 0.5 in this family"),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_theta": 1e4}}),
            "rope_parameters by layer type",
        ),
        ("layer_types", json!(["full_attention"]), "layer_types names 1 layers, not 3"),
        ("layer_types", json!(vec!["linear_attention"; 3]), "layer type \"linear_attention\""),
        ("layer_types", json!(vec!["sliding_attention"; 3]), "and sliding_window is none"),
        ("attn_logit_softcapping", json!(50.0), "attn_logit_softcapping = 50"),
        ("final_logit_softcapping", json!(30.0), "final_logit_softcapping = 30"),
        ("use_bidirectional_attention", json!(true), "use_bidirectional_attention = true"),
        (
            "quantization_config",
            json!({"quant_method": "fp8"}),
            "quantization_config of method \"fp8\"",
        ),
        ("hidden_size", json!(0), "hidden_size is 0"),
        ("num_hidden_layers", json!(1u64 << 40), "num_hidden_layers is 1099511627776"),
        ("num_key_value_heads", json!(3), "4 attention heads cannot share 3"),
        (
            "head_dim",
            json!(17),
            "17 of 17 numbers of a head are rotated, rotary embedding needs pairs",
        ),
        ("rms_norm_eps", json!(-1.0), "rms_norm_eps is -1"),
        ("rope_theta", json!(0.0), "rope_theta is 0"),
        ("vocab_size", json!("many"), "not a model's config"),
    ] {
        let folder = Folder::new();
        let mut config = json("qwen3/config.json");
        config[key] = value;
        folder.write("config.json", &config.to_string());
        folder.refused("config.json", &[part]);
    }
    let folder = Folder::new();
    folder.write("config.json", "{");
    folder.refused("config.json", &["not a model's config"]);
    let folder = Folder::new();
    let mut config = json("qwen3/config.json");
    config.as_object_mut().unwrap().remove("eos_token_id");
    folder.write("config.json", &config.to_string());
    folder.refused("config.json", &["no token ends an answer", "add eos_token_id"]);
}

/// transformers 5 writes theta and scaling into one object.
#[test]
fn rope_theta_is_found_where_either_version_of_transformers_writes_it() {
    let path = fixture("qwen3/config.json");
    let mut config = json("qwen3/config.json");
    config.as_object_mut().unwrap().remove("rope_theta");
    config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 5e6});
    assert_eq!(ModelConfig::parse(&config.to_string(), &path).unwrap().rope.theta, 5e6);
}

/// What the cache says of a file, or nothing.
fn cached(cache: &Path) -> HashMap<PathBuf, Value> {
    fs_err::read(cache).map(|b| serde_json::from_slice(&b).unwrap()).unwrap_or_default()
}

#[test]
fn invariant_1_a_content_hash_is_cached_by_path_size_mtime_and_inode() {
    let folder = Folder::new();
    let cache = folder.file("hashes.json");
    let weights = folder.file("model.safetensors");
    let hash = || base_hash(&folder.source(), Some(&cache)).unwrap();
    let first = hash();
    assert_eq!(first, base_hash(&folder.source(), None).unwrap(), "the cache changes no hash");

    // A cached hash is believed while nothing moved: one that was planted is what comes out.
    let key = fs_err::canonicalize(&weights).unwrap();
    let plant = |sha256: &str| {
        let mut entries = cached(&cache);
        entries.get_mut(&key).unwrap()["sha256"] = sha256.into();
        fs_err::write(&cache, serde_json::to_vec(&entries).unwrap()).unwrap();
    };
    plant("planted");
    assert_ne!(hash(), first, "the file was not read again");

    // Another modification time.
    let later = SystemTime::now() + Duration::from_secs(60);
    let file = fs_err::OpenOptions::new().write(true).open(&weights).unwrap();
    file.file().set_modified(later).unwrap();
    assert_eq!(hash(), first);
    // Another inode: a copy with the same size and time.
    plant("planted");
    let copy = folder.file("copy");
    fs_err::copy(&weights, &copy).unwrap();
    let file = fs_err::OpenOptions::new().write(true).open(&copy).unwrap();
    file.file().set_modified(later).unwrap();
    fs_err::rename(&copy, &weights).unwrap();
    assert_eq!(hash(), first);
    // Another size, at the same time: other content.
    plant("planted");
    fs_err::write(&weights, [fs_err::read(&weights).unwrap(), vec![0]].concat()).unwrap();
    let file = fs_err::OpenOptions::new().write(true).open(&weights).unwrap();
    file.file().set_modified(later).unwrap();
    let other = hash();
    assert_ne!(other, first);
    assert_eq!(other, base_hash(&folder.source(), None).unwrap());
}

#[test]
fn a_broken_hash_cache_costs_time_and_not_correctness() {
    let folder = Folder::new();
    let expected = base_hash(&folder.source(), None).unwrap();
    let cache = folder.file("hashes.json");
    for broken in ["", "{", "[1]", "{\"x\": 3}"] {
        fs_err::write(&cache, broken).unwrap();
        assert_eq!(base_hash(&folder.source(), Some(&cache)).unwrap(), expected);
    }
    let nowhere = Path::new("/no/such/folder/hashes.json");
    assert_eq!(base_hash(&folder.source(), Some(nowhere)).unwrap(), expected);
}

#[test]
fn the_hash_changes_with_config_and_weights() {
    let folder = Folder::new();
    let first = base_hash(&folder.source(), None).unwrap();
    folder.write("config.json", &format!("{} ", json("qwen3/config.json")));
    let second = base_hash(&folder.source(), None).unwrap();
    folder.save(|w| drop(w.insert("x".into(), Tensor::ones(1, DType::F32, &Device::Cpu).unwrap())));
    let third = base_hash(&folder.source(), None).unwrap();
    assert!(first != second && second != third);
}
