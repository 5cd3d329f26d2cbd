//! Adapters that leave a data directory and come into one, through the real program.

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use shammah::lora::{self, Factors, LoraConfig};
use shammah::models::{self, LoadedModel, ModelSource, Module, Site};
use support::{Program, mode};

const RANK: usize = 2;

fn builtin() -> LoadedModel {
    models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap()
}

/// Writes an adapter as PEFT leaves it, without a record.
fn write_adapter(folder: &Path, base: &LoadedModel, value: f32) {
    fs_err::create_dir_all(folder).unwrap();
    let model = base.decoder.config();
    let full = |shape: (usize, usize)| Tensor::full(value, shape, &Device::Cpu).unwrap();
    let width = model.num_attention_heads * model.head_dim;
    let factors = Factors {
        a: full((RANK, model.hidden_size)).to_dtype(DType::F32).unwrap(),
        b: full((width, RANK)),
        magnitude: None,
        alpha: 2.0,
    };
    let site = Site { layer: 0, module: Module::QProj };
    let config = LoraConfig {
        rank: RANK,
        alpha: 2.0,
        rslora: false,
        dora: false,
        target_modules: vec!["q_proj".to_owned()],
    };
    lora::save(folder, &config, 0.0, "builtin", &[(site, factors)].into()).unwrap();
}

fn import(program: &Program, folder: &Path, more: &[&str]) -> support::Run {
    let mut args = vec!["adapters", "import", folder.to_str().unwrap()];
    args.extend(more);
    program.run(&args)
}

fn adapters(program: &Program) -> Vec<Value> {
    program.run(&["adapters", "list", "--json"]).done().json_lines()
}

#[test]
fn a_foreign_adapter_is_checked_pinned_and_only_live_when_the_user_wants_it() {
    let (program, base) = (Program::new(), builtin());
    let folder = program.path("style");
    write_adapter(&folder, &base, 0.01);
    // The hub's cache links its files.
    fs_err::rename(folder.join("adapter_model.safetensors"), program.path("blob")).unwrap();
    symlink(program.path("blob"), folder.join("adapter_model.safetensors")).unwrap();
    let row = import(&program, &folder, &["--json"]).done().json();
    assert_eq!(
        (&row["id"], &row["live"], &row["rank"]),
        (&json!("style"), &json!(false), &json!(RANK))
    );
    assert_eq!(row["base_hash"], json!(base.base_hash));
    let place = program.home().join("adapters/style");
    assert_eq!(mode(&place), 0o700);
    let weights = place.join("adapter_model.safetensors");
    assert!(weights.symlink_metadata().unwrap().is_file() && mode(&weights) == 0o600);
    let record: Value =
        serde_json::from_slice(&fs_err::read(place.join("training.json")).unwrap()).unwrap();
    assert_eq!((&record["base_hash"], &record["imported"]), (&json!(base.base_hash), &json!(true)));
    program.run(&["adapters", "load", "style"]).done();
    assert_eq!(adapters(&program)[0]["live"], true);

    let message = import(&program, &folder, &[]).failed(1);
    assert!(message.contains("\"style\" is taken") && message.contains("--name"), "{message}");
    import(&program, &folder, &["--name", "other", "--domain", "rust"]).done();
    assert_eq!(adapters(&program).len(), 2);
}

#[test]
fn what_does_not_pass_the_checks_of_loading_leaves_no_trace() {
    let (program, base) = (Program::new(), builtin());
    program.run(&["adapters", "list"]).done();
    let file =
        |folder: &Path, name: &str, bytes: &[u8]| fs_err::write(folder.join(name), bytes).unwrap();
    let broken = |name: &str, change: &dyn Fn(&Path)| {
        let folder = program.path(name);
        write_adapter(&folder, &base, 0.01);
        change(&folder);
        import(&program, &folder, &[]).failed(1)
    };
    let weights = "adapter_model.safetensors";
    let cases = [
        (
            broken("cut", &|f| file(f, weights, &fs_err::read(f.join(weights)).unwrap()[..200])),
            weights,
        ),
        (
            broken("missing", &|f| fs_err::remove_file(f.join("adapter_config.json")).unwrap()),
            "adapter_config.json",
        ),
        (broken("nan", &|f| write_adapter(f, &base, f32::NAN)), weights),
        (
            broken("foreign", &|f| {
                file(f, "training.json", br#"{"base": "big", "base_hash": "0123"}"#)
            }),
            "another base model",
        ),
        (broken("nonsense", &|f| file(f, "training.json", b"{")), "training.json"),
        (
            broken("folder", &|f| {
                fs_err::remove_file(f.join("adapter_config.json")).unwrap();
                fs_err::create_dir(f.join("adapter_config.json")).unwrap();
            }),
            "is no file",
        ),
        (
            broken("large", &|f| file(f, "adapter_config.json", &vec![b' '; (1 << 20) + 1])),
            "1048576 bytes",
        ),
    ];
    for (message, words) in cases {
        assert!(message.contains(words), "{message} should contain {words}");
        assert!(!message.contains(".trash"), "{message}: nobody knows that place");
    }
    let message = import(&program, &program.path("Not An Id"), &[]);
    assert_eq!(message.code, 1, "{message:?}");
    assert!(adapters(&program).is_empty());
    let left = fs_err::read_dir(program.home().join("adapters")).unwrap();
    let left: Vec<_> = left.map(|e| e.unwrap().file_name()).filter(|n| n != ".trash").collect();
    assert_eq!(left, [""; 0], "nothing is left among the adapters");
}

#[test]
fn an_export_has_no_ids_unless_they_are_asked_for_and_can_be_imported() {
    let (program, base) = (Program::new(), builtin());
    let folder = program.path("made");
    write_adapter(&folder, &base, 0.02);
    import(&program, &folder, &[]).done();
    // As training leaves it.
    let record = json!({
        "base": "builtin", "base_hash": base.base_hash, "examples": [17, 18], "replay": [3], "heldout": [4],
        "params": {"rank": RANK},
        "measurements": {"trained": [{"id": 17, "before": 2.0, "after": 1.0}], "kl": 0.01, "steps": 60, "examples": 2},
    });
    let place = program.home().join("adapters/made/training.json");
    fs_err::write(&place, record.to_string()).unwrap();
    let (plain, whole) = (program.path("plain"), program.path("whole"));
    let export = |to: &Path, more: &[&str]| {
        let mut args = vec!["adapters", "export", "made", to.to_str().unwrap()];
        args.extend(more);
        program.run(&args)
    };
    let text = export(&plain, &[]).done().stdout;
    assert!(text.contains("without the ids of its marks"), "{text}");
    assert_eq!(export(&whole, &["--with-provenance", "--json"]).done().json()["provenance"], true);
    let read = |folder: &Path| -> Value {
        serde_json::from_slice(&fs_err::read(folder.join("training.json")).unwrap()).unwrap()
    };
    let shared = json!({"base": "builtin", "base_hash": base.base_hash, "params": {"rank": RANK},
        "measurements": {"kl": 0.01, "steps": 60, "examples": 2}});
    assert_eq!(read(&plain), shared);
    assert_eq!(read(&whole), record);
    let message = export(&plain, &[]).failed(2);
    assert!(message.contains("exists already"), "{message}");

    let other = Program::new();
    let row = import(&other, &plain, &["--name", "given", "--json"]).done().json();
    assert_eq!(row["examples"], 2, "as its record says");
    let same = |program: &Program, id: &str| {
        fs_err::read(program.home().join("adapters").join(id).join("adapter_model.safetensors"))
            .unwrap()
    };
    assert_eq!(same(&program, "made"), same(&other, "given"));
    let left = fs_err::read_dir(program.path("")).unwrap();
    let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
    assert!(
        left.map(|e| e.unwrap().file_name()).all(|name| !hidden(&name)),
        "no partial export is left"
    );
}

#[test]
fn a_damaged_live_adapter_is_set_aside_at_the_start_and_its_parent_answers() {
    let (program, base) = (Program::new(), builtin());
    for (name, value) in [("parent", 0.01), ("child", 0.02)] {
        write_adapter(&program.path(name), &base, value);
        import(&program, &program.path(name), &[]).done();
    }
    program.run(&["adapters", "load", "child"]).done();
    let database = rusqlite::Connection::open(program.home().join("shammah.db")).unwrap();
    database.execute("UPDATE adapters SET parent = 'parent' WHERE id = 'child'", []).unwrap();
    drop(database);
    let weights = program.home().join("adapters/child/adapter_model.safetensors");
    let whole = fs_err::read(&weights).unwrap();
    fs_err::write(&weights, &whole[..whole.len() / 2]).unwrap();

    let run = program.run_with_input(&[], "Who are you?\n");
    let said = format!("{}{}", run.stdout, run.stderr);
    assert!(said.contains("adapter \"child\" is damaged and was set aside in"), "{said}");
    assert!(said.contains("answers with adapter \"parent\""), "{said}");
    let state = |name: &str| {
        let row = program.run(&["adapters", "show", name, "--json"]).done().json();
        (row["state"].as_str().unwrap().to_owned(), row["live"].as_bool().unwrap())
    };
    assert_eq!(state("child"), ("quarantined".to_owned(), false));
    assert_eq!(state("parent"), ("ready".to_owned(), true));
    let kept = program.home().join("quarantine/child");
    assert_eq!(
        fs_err::read(kept.join("adapter_model.safetensors")).unwrap().len(),
        whole.len() / 2
    );
    let run = program.run_with_input(&[], "Who are you?\n");
    assert!(!format!("{}{}", run.stdout, run.stderr).contains("child"), "said once: {run:?}");

    // Good files in their place make it usable again.
    fs_err::rename(&kept, program.home().join("adapters/child")).unwrap();
    fs_err::write(&weights, &whole).unwrap();
    let run = program.run_with_input(&[], "Who are you?\n");
    assert!(format!("{}{}", run.stdout, run.stderr).contains("has its files back"), "{run:?}");
    program.run(&["adapters", "load", "child"]).done();
}
