//! `shammah adapters load | unload | rollback | show | delete` on the real program.

mod support;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use shammah::lora::{self, Factors, LoraConfig};
use shammah::models::{self, LoadedModel, ModelSource, Module, Site};
use support::Program;

/// Rank of the adapters made here.
const RANK: usize = 2;

/// Puts an adapter that changes nothing into the database and onto the disk, as a publication would leave it.
///
/// Only the gate can make what the store wants for a real one.
fn put_adapter(
    program: &Program,
    id: &str,
    parent: Option<&str>,
    base: &LoadedModel,
    base_hash: &str,
) {
    let folder = program.home().join("adapters").join(id);
    write_adapter(&folder, base, false);
    let record = json!({"base_hash": base_hash}).to_string();
    fs_err::write(folder.join("training.json"), record).unwrap();
    let database = rusqlite::Connection::open(program.home().join("shammah.db")).unwrap();
    database
        .execute(
            "INSERT INTO adapters (id, domain, parent, base, base_hash, rank, target_modules, examples,
                                   gate, created_at, bytes)
             VALUES (?1, 'general', ?2, 'builtin', ?3, 16, '[\"q_proj\"]', 10, '{\"kl\":0.1}', 0, 3)",
            (id, parent, base_hash),
        )
        .unwrap();
}

/// Writes the files of an adapter whose factors are zero.
fn write_adapter(folder: &Path, base: &LoadedModel, dora: bool) {
    fs_err::create_dir_all(folder).unwrap();
    let model = base.decoder.config();
    let zeros = |shape| Tensor::zeros::<(usize, usize)>(shape, DType::F32, &Device::Cpu).unwrap();
    let width = model.num_attention_heads * model.head_dim;
    let (a, b) = (zeros((RANK, model.hidden_size)), zeros((width, RANK)));
    let magnitude = dora.then(|| Tensor::ones(width, DType::F32, &Device::Cpu).unwrap());
    let factors = Factors { a, b, magnitude, alpha: 2.0 };
    let site = Site { layer: 0, module: Module::QProj };
    let config = LoraConfig {
        rank: RANK,
        alpha: 2.0,
        rslora: false,
        dora,
        target_modules: vec!["q_proj".to_owned()],
    };
    lora::save(folder, &config, 0.0, "builtin", &[(site, factors)].into()).unwrap();
}

fn program_with_two_adapters() -> Program {
    let program = Program::new();
    program.run(&["adapters", "list"]).done();
    let base = models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
    put_adapter(&program, "first", None, &base, &base.base_hash);
    put_adapter(&program, "second", Some("first"), &base, &base.base_hash);
    put_adapter(&program, "foreign", None, &base, "0123");
    program
}

fn json(program: &Program, args: &[&str]) -> Value {
    let mut args = args.to_vec();
    args.push("--json");
    program.run(&args).done().json()
}

fn live(program: &Program) -> Vec<String> {
    let rows = program.run(&["adapters", "list", "--json"]).done().json_lines();
    let live = rows.iter().filter(|row| row["live"] == true);
    live.map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn load_rollback_and_unload_change_what_is_live() {
    let program = program_with_two_adapters();
    assert_eq!(json(&program, &["adapters", "load", "second"])["live"], true);
    assert_eq!(live(&program), ["second"]);
    let back = json(&program, &["adapters", "rollback"]);
    assert_eq!(back, json!({"domain": "general", "from": "second", "to": "first"}));
    assert_eq!(live(&program), ["first"]);
    let text = program.run(&["adapters", "rollback"]).done().stdout;
    assert_eq!(text, "rolled back from adapter first to the base in domain general\n");
    let message = program.run(&["adapters", "rollback"]).failed(1);
    assert!(message.contains("the base model is live"), "{message}");
    program.run(&["adapters", "load", "first"]).done();
    program.run(&["adapters", "unload", "first"]).done();
    assert!(live(&program).is_empty());
}

#[test]
fn an_adapter_of_another_base_is_refused_with_a_remedy() {
    let program = program_with_two_adapters();
    let message = program.run(&["adapters", "load", "foreign"]).failed(1);
    assert!(message.contains("another base model") && message.contains("--model"), "{message}");
    assert!(live(&program).is_empty());
}

#[test]
fn a_live_adapter_and_the_parent_of_one_are_not_deleted() {
    let program = program_with_two_adapters();
    program.run(&["adapters", "load", "second"]).done();
    for id in ["second", "first"] {
        let message = program.run(&["adapters", "delete", id]).failed(1);
        assert!(message.contains("is live"), "{message}");
    }
    program.run(&["adapters", "unload", "second"]).done();
    let gone = json(&program, &["adapters", "delete", "second"]);
    assert_eq!(gone, json!({"deleted": "second", "bytes": 3}));
    assert!(!program.home().join("adapters/second").exists());
    let keys: Vec<String> = json(&program, &["adapters", "show", "first"])
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    for key in [
        "id",
        "domain",
        "parent",
        "state",
        "live",
        "base",
        "rank",
        "target_modules",
        "examples",
        "gate",
        "used_in",
        "created_at",
        "bytes",
    ] {
        assert!(keys.iter().any(|k| k == key), "{key} is missing");
    }
}

#[test]
fn a_damaged_adapter_is_not_made_live() {
    let program = program_with_two_adapters();
    let weights = program.home().join("adapters/first/adapter_model.safetensors");
    fs_err::write(&weights, [0xff; 64]).unwrap();
    for args in [&["adapters", "load", "first"][..], &["ask", "hello", "--adapter", "first"]] {
        let message = program.run(args).failed(1);
        assert!(message.contains("adapter_model.safetensors"), "{message}");
    }
    assert!(live(&program).is_empty());
}

#[test]
fn a_dora_adapter_answers_alone_and_is_refused_by_name_in_a_mixture() {
    let program = program_with_two_adapters();
    let base = models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
    write_adapter(&program.home().join("adapters/second"), &base, true);
    let ask = |adapters: &[&str]| {
        let mut args = vec!["ask", "hello", "-q", "--max-tokens", "2"];
        adapters.iter().for_each(|adapter| args.extend(["--adapter", adapter]));
        program.run(&args)
    };
    ask(&["second"]).done();
    for mixture in [&["second:0.5"][..], &["first", "second"]] {
        let message = ask(mixture).failed(1);
        assert!(message.contains("adapters/second: it is a DoRA adapter"), "{message}");
        assert!(message.contains("use it alone at weight 1"), "{message}");
    }
}

#[test]
fn ask_says_which_adapters_answered() {
    let program = program_with_two_adapters();
    program.run(&["adapters", "load", "second"]).done();
    let adapters = |more: &[&str]| {
        let mut args = vec!["ask", "hello", "--max-tokens", "2", "--seed", "1"];
        args.extend(more);
        json(&program, &args)["adapters"].clone()
    };
    assert_eq!(adapters(&[]), json!(["second"]));
    assert_eq!(adapters(&["--no-adapter"]), json!([]));
    assert_eq!(
        adapters(&["--adapter", "first:0.5", "--adapter", "second"]),
        json!(["first:0.5", "second"])
    );
    assert_eq!(json(&program, &["adapters", "show", "second"])["used_in"], 2);
    let message = program.run(&["ask", "hello", "--adapter", "foreign"]).failed(1);
    assert!(message.contains("another base model"), "{message}");
    let message = program.run(&["ask", "hello", "--adapter", "unknown"]).failed(1);
    assert!(message.contains("no adapter \"unknown\""), "{message}");
}

/// Replaces an adapter's files by one that changes answers.
fn strengthen(program: &Program, id: &str, base: &LoadedModel) {
    let folder = program.home().join("adapters").join(id);
    let model = base.decoder.config();
    let wave = |rows: usize, columns: usize, step: f32| {
        let values: Vec<f32> = (0..rows * columns).map(|n| (n as f32 * step).sin()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let (a, b) = (wave(RANK, model.intermediate_size, 0.7), wave(model.hidden_size, RANK, 1.3));
    let site = Site { layer: 0, module: Module::DownProj };
    let config = LoraConfig {
        rank: RANK,
        alpha: 8.0,
        rslora: false,
        dora: false,
        target_modules: vec!["down_proj".to_owned()],
    };
    let factors = Factors { a, b, magnitude: None, alpha: 8.0 };
    lora::save(&folder, &config, 0.0, "builtin", &[(site, factors)].into()).unwrap();
}

#[test]
fn two_halves_of_an_adapter_answer_as_the_whole_and_the_base_answers_otherwise() {
    let program = program_with_two_adapters();
    let base = models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
    strengthen(&program, "first", &base);
    strengthen(&program, "second", &base);
    let text = |adapters: &[&str]| {
        let mut args =
            vec!["ask", "Who are you?", "--max-tokens", "12", "--set", "generation.temperature=0"];
        adapters.iter().for_each(|adapter| args.extend(["--adapter", adapter]));
        json(&program, &args)["text"].as_str().unwrap().to_owned()
    };
    let whole = text(&["first"]);
    assert_eq!(text(&["first:0.5", "second:0.5"]), whole);
    assert_eq!(text(&["first:0.25", "second:0.75"]), whole);
    assert_ne!(text(&[]), whole, "the adapter must change the answer");
    assert_ne!(text(&["first:0.01", "second:0.01"]), whole, "and its weight must count");
}

#[test]
fn a_weight_that_makes_no_sense_is_a_wrong_usage() {
    let program = program_with_two_adapters();
    for weight in ["nan", "inf", "-inf", "0", "-1", "11", "", "half"] {
        let adapter = format!("first:{weight}");
        let run = program.run(&["ask", "hello", "--adapter", &adapter]);
        assert_eq!(run.code, 2, "{weight}: {}", run.stderr);
        let named = run.stderr.contains("the weight must be a number above 0");
        assert!(named, "{weight}: {}", run.stderr);
    }
}

#[test]
fn the_console_compares_the_base_with_the_live_adapter() {
    let program = program_with_two_adapters();
    let base = models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
    strengthen(&program, "first", &base);
    let chat = ["chat", "--set", "generation.temperature=0", "--set", "generation.max_tokens=12"];
    let none = program.run_with_input(&chat, "/compare Who are you?\n");
    assert!(none.stderr.contains("no adapter is live") && none.code == 1, "{}", none.stderr);
    program.run(&["adapters", "load", "first"]).done();
    let said = program.run_with_input(&chat, "/compare Who are you?\n/good\n").stdout;
    let (left, right) = said.split_once("\n\nwith first:\n").expect("both answers");
    let (_, left) = left.split_once("builtin alone:\n").unwrap_or_else(|| panic!("{left}"));
    assert_ne!(left.trim(), right.trim());
    let args =
        ["ask", "Who are you?", "-q", "--max-tokens", "12", "--set", "generation.temperature=0"];
    let alone = program.run(&[&args[..], &["--no-adapter"]].concat()).done().stdout;
    assert_eq!(left.lines().next(), alone.lines().next());
    assert!(program.run(&["feedback", "list", "--json"]).done().json_lines().is_empty());
}
