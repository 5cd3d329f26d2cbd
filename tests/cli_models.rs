//! `shammah models list | inspect | logits`, and the memory that a model needs.

mod gguf_kit;
mod reference;
mod support;

use std::io::Write;
use std::path::Path;

use candle_core::Device;
use gguf_kit::Gguf;
use reference::{FAMILIES, LOGITS, assert_near, fixture, tensors};
use shammah::models::{ModelSource, inspect, load};
use shammah::worker::available_memory;
use support::Program;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/tiny");

/// Copies files into a folder.
fn copy(from: &Path, to: &Path, names: &[&str]) {
    fs_err::create_dir_all(to).unwrap();
    for name in names {
        fs_err::copy(from.join(name), to.join(name)).unwrap();
    }
}

/// Writes bf16 projections of so many bytes in `layers` layers, of which the disk holds none.
fn sparse_weights(path: &Path, bytes: u64, layers: u64) {
    let (cols, per_layer) = (4096, bytes / layers / 8192 * 8192);
    let tensor = |layer: u64| {
        let value = serde_json::json!({"dtype": "BF16", "shape": [per_layer / 2 / cols, cols],
            "data_offsets": [layer * per_layer, (layer + 1) * per_layer]});
        (format!("model.layers.{layer}.self_attn.q_proj.weight"), value)
    };
    let header: serde_json::Map<_, _> = (0..layers).map(tensor).collect();
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = fs_err::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + layers * per_layer).unwrap();
}

fn large_model(program: &Program, bytes: u64) -> String {
    let folder = program.path("large");
    copy(ASSETS.as_ref(), &folder, &["config.json", "tokenizer.json", "tokenizer_config.json"]);
    sparse_weights(&folder.join("model.safetensors"), bytes, 64);
    folder.to_str().unwrap().to_owned()
}

#[test]
fn the_list_has_the_built_in_model_and_what_the_cache_holds_usable_or_why_not() {
    let program = Program::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let put = |repo: &str| program.path("cache").join(repo).join("snapshots").join(commit);
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    copy(ASSETS.as_ref(), &put("models--acme--whole"), &names);
    copy(ASSETS.as_ref(), &put("models--acme--part"), &names[..2]);
    copy(ASSETS.as_ref(), &put("models--acme--alien"), &names[1..]);
    let alien = put("models--acme--alien").join("config.json");
    fs_err::write(alien, "{\"model_type\": \"alien\"}").unwrap();
    copy(ASSETS.as_ref(), &put("models--acme--mute"), &names);
    fs_err::write(put("models--acme--mute").join("tokenizer.json"), "{}").unwrap();
    copy(ASSETS.as_ref(), &put("models--acme--torn"), &names);
    let torn = put("models--acme--torn").join("config.json");
    let config = fs_err::read(&torn).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let layers = config["num_hidden_layers"].as_u64().unwrap();
    config["num_hidden_layers"] = (layers + 1).into();
    fs_err::write(torn, config.to_string()).unwrap();
    let mut gguf = fs_err::read(fixture("gguf/llama_q8_0.gguf")).unwrap();
    fs_err::create_dir_all(put("models--acme--file")).unwrap();
    fs_err::write(put("models--acme--file").join("whole.gguf"), &gguf).unwrap();
    let name = b"blk.1.ffn_up.weight";
    let at = gguf.windows(name.len()).position(|part| part == name).unwrap();
    gguf[at + name.len() - 1] = b'x';
    fs_err::write(put("models--acme--file").join("torn.gguf"), &gguf).unwrap();

    let cache = program.path("cache");
    let env = [("HF_HUB_CACHE", cache.to_str().unwrap())];
    let rows = program.run_with_env(&["models", "list", "--json"], &env).done().json_lines();
    let shown: Vec<_> = rows
        .iter()
        .map(|r| (r["id"].as_str().unwrap(), r["family"].as_str(), &r["usable"]))
        .collect();
    let family = rows[0]["family"].as_str();
    let (yes, no) = (true.into(), false.into());
    assert_eq!(
        shown,
        [
            ("builtin", family, &yes),
            ("acme/alien", Some("alien"), &no),
            ("acme/file/torn.gguf", Some("llama"), &no),
            ("acme/file/whole.gguf", Some("llama"), &yes),
            ("acme/mute", family, &no),
            ("acme/part", family, &no),
            ("acme/torn", family, &no),
            ("acme/whole", family, &yes)
        ]
    );
    let missing = format!("tensor model.layers.{layers}.self_attn.q_proj.weight is missing");
    for (row, part) in [
        (1, "model_type \"alien\""),
        (2, "tensor blk.1.ffn_up.weight is missing"),
        (4, "tokenizer.json: "),
        (5, "model.safetensors is missing"),
        (6, &missing),
    ] {
        let problem = rows[row]["problem"].as_str().unwrap();
        assert!(problem.contains(part), "\"{part}\" is not in {problem}");
    }
    let rows = &rows[4..];
    assert_eq!(rows[3]["revision"], commit);
    let bytes =
        names.iter().map(|name| fs_err::metadata(Path::new(ASSETS).join(name)).unwrap().len());
    assert_eq!(rows[3]["bytes"], bytes.sum::<u64>());
    let table = program.run_with_env(&["models", "list"], &env).done().stdout;
    assert!(table.contains("acme/whole") && table.contains("0123456789ab "), "{table}");
}

#[test]
fn an_inspection_tells_shape_and_memory_without_loading() {
    let program = Program::new();
    let info = inspect(&ModelSource::Builtin, None).unwrap();
    let told = program.run(&["models", "inspect", "builtin", "--json"]).done().json();
    assert_eq!((&told["model"], &told["path"]), (&"builtin".into(), &serde_json::Value::Null));
    assert_eq!(told["parameters"], info.parameters);
    assert_eq!(told["layers"], info.config.num_hidden_layers);
    assert_eq!(told["context_length"], info.config.max_position_embeddings);
    assert_eq!(told["weight_bytes"], info.weight_bytes);
    assert_eq!(told["needed_bytes"], info.needed(256), "an answer of generation.max_tokens");
    assert_eq!(told["needed_bytes_full_context"], info.needed(info.config.max_position_embeddings));
    assert!(told["available_bytes"].as_u64().unwrap() > 0);
    assert_eq!(told["fits"], true);
    let small = [
        "models",
        "inspect",
        ASSETS,
        "--json",
        "--set",
        "model.quantize=q4_0",
        "--set",
        "model.context_length=64",
    ];
    let small = program.run(&small).done().json();
    assert!(small["weight_bytes"].as_u64().unwrap() < info.weight_bytes);
    assert_eq!(small["context_length"], 64);
    let text = program.run(&["models", "inspect", "builtin"]).done().stdout;
    assert!(
        text.contains("2.8 million") && text.contains("fits") && text.contains("tokens"),
        "{text}"
    );
    let message = program.run(&["models", "inspect", "/no/such"]).failed(1);
    assert!(message.contains("/no/such"), "{message}");
}

#[test]
fn a_model_that_cannot_fit_is_refused_before_it_is_read() {
    let program = Program::new();
    let model = large_model(&program, 1 << 40);
    for args in [
        &["ask", "hello", "--model", &model][..],
        &["models", "logits", &model, "--ids", "1", "--out", "x"],
    ] {
        let message = program.run(args).failed(1);
        assert!(message.contains("needs 1.0 TiB of memory (1.0 TiB of weights"), "{message}");
        assert!(message.contains("is available: choose a smaller model"), "{message}");
        assert!(message.contains("for an answer of 256 tokens"), "{message}");
    }
    let told = program.run(&["models", "inspect", &model, "--json"]).done().json();
    assert_eq!((&told["fits"], &told["dtype"]), (&false.into(), &"bf16".into()));
}

#[test]
fn the_refusal_names_the_quantisation_that_would_make_it_fit() {
    let program = Program::new();
    // In bf16 half as much again as there is, in 4 bits less than half of it.
    let model = large_model(&program, available_memory().unwrap() / 2 * 3);
    let message = program.run(&["ask", "hello", "--model", &model]).failed(1);
    assert!(message.contains("set model.quantize = \"q4_0\" (it then needs "), "{message}");
    let told = ["models", "inspect", &model, "--json", "--set", "model.quantize=q4_0"];
    assert_eq!(program.run(&told).done().json()["fits"], true);
}

#[test]
fn a_gguf_file_is_inspected_and_asked_and_a_cut_one_refused() {
    let program = Program::new();
    let whole = fixture("gguf/qwen3_q4_0.gguf");
    let path = whole.to_str().unwrap();
    let told = program.run(&["models", "inspect", path, "--json"]).done().json();
    assert_eq!((&told["family"], &told["dtype"]), (&"qwen3".into(), &"q4_0, q8_0".into()));
    assert_eq!((&told["context_length"], &told["fits"]), (&128.into(), &true.into()));
    let model = load(&ModelSource::Gguf(whole.clone()), &Device::Cpu, None).unwrap();
    assert_eq!(told["parameters"], model.parameters);
    assert_eq!(told["file_bytes"], fs_err::metadata(&whole).unwrap().len());
    assert!(told["weight_bytes"].as_u64() < told["file_bytes"].as_u64(), "{told}");

    let ask =
        |path: &str| program.run(&["ask", "hello", "--model", path, "--max-tokens", "4", "--json"]);
    let answer = ask(path).done().json();
    assert_eq!(answer["model"], "qwen3_q4_0.gguf");
    assert!((1..=4).contains(&answer["new_tokens"].as_u64().unwrap()), "{answer}");

    let bytes = fs_err::read(&whole).unwrap();
    for (length, problem) in [(bytes.len() - 1, "ends behind the file"), (999, "bytes are left")] {
        let cut = program.path("cut.gguf");
        fs_err::write(&cut, &bytes[..length]).unwrap();
        let cut = cut.to_str().unwrap();
        for run in [ask(cut), program.run(&["models", "inspect", cut])] {
            let message = run.failed(1);
            assert!(message.contains("cut.gguf: not a whole GGUF file: "), "{message}");
            assert!(message.contains(problem) && message.contains("download it"), "{message}");
        }
    }
}

/// Writes a file whose embedding takes 1 TiB, of which the disk holds nothing.
fn sparse_gguf(path: &Path) {
    let mut file = Gguf::new()
        .text("general.architecture", "qwen3")
        .count("qwen3.block_count", 1)
        .count("qwen3.context_length", 1024)
        .count("qwen3.embedding_length", 1 << 22)
        .count("qwen3.feed_forward_length", 16)
        .count("qwen3.attention.head_count", 1 << 16)
        .float("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
        .tensor("token_embd.weight", &[1 << 22, 1 << 16]);
    let bytes = std::mem::take(&mut file.data) as u64;
    fs_err::write(path, file.bytes()).unwrap();
    let written = fs_err::OpenOptions::new().append(true).open(path).unwrap();
    written.set_len(written.metadata().unwrap().len() + bytes).unwrap();
}

#[test]
fn a_gguf_file_that_cannot_fit_is_refused_before_it_is_read() {
    let program = Program::new();
    let path = program.path("large.gguf");
    sparse_gguf(&path);
    let message = program.run(&["ask", "hello", "--model", path.to_str().unwrap()]).failed(1);
    assert!(message.contains("TiB of memory (1.0 TiB of weights"), "{message}");
    assert!(message.contains("is available: choose a smaller model"), "{message}");
}

#[test]
fn logits_are_those_of_transformers_and_with_an_adapter_those_of_peft() {
    let program = Program::new();
    for family in FAMILIES {
        let folder = program.path(family);
        copy(&fixture(family), &folder, &["config.json", "model.safetensors"]);
        copy(ASSETS.as_ref(), &folder, &["tokenizer.json", "tokenizer_config.json"]);
        let expected = tensors(&format!("{family}/reference.safetensors"));
        let ids = expected["ids"].to_vec2::<i64>().unwrap().remove(1);
        let ids = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let (folder, out) = (folder.to_str().unwrap(), program.path("logits.safetensors"));
        let out = out.to_str().unwrap();
        let base = ["models", "logits", folder, "--ids", &ids, "--out", out];
        let adapter = fixture(&format!("{family}/peft_all"));
        let adapted = [&base[..], &["--adapter", adapter.to_str().unwrap()]].concat();
        let file = format!("{family}/peft_all/reference_logits.safetensors");
        for (args, expected) in [(&base[..], expected), (&adapted, tensors(&file))] {
            let run = program.run(args).done();
            assert!(run.stdout.starts_with("logits [23, "), "{}", run.stdout);
            let written = candle_core::safetensors::load(out, &Device::Cpu).unwrap();
            let row = expected["logits"].get(1).unwrap();
            assert_near(&args.join(" "), &written["logits"], &row, LOGITS);
        }
    }
}

#[test]
fn ids_that_the_model_does_not_have_are_a_wrong_usage() {
    let program = Program::new();
    let out = program.path("x");
    let logits = |ids: &str| {
        program.run(&["models", "logits", "builtin", "--ids", ids, "--out", out.to_str().unwrap()])
    };
    let message = logits("1,99999999").failed(2);
    assert!(message.contains("99999999 is no token"), "{message}");
    assert!(logits(&["1"; 2000].join(",")).failed(2).contains("the context holds 1024"));
    assert_eq!(logits("1,x").code, 2);
    assert!(!out.exists());
}

#[cfg(not(feature = "hub"))]
#[test]
fn without_the_feature_a_model_of_the_hub_names_it() {
    let program = Program::new();
    for args in [&["ask", "hello", "--model", "acme/tiny"][..], &["models", "pull", "acme/tiny"]] {
        let message = program.run(args).failed(1);
        assert!(message.contains("built without the feature \"hub\""), "{message}");
    }
    assert!(program.run(&["models", "list"]).done().stdout.contains("builtin"));
}
