//! `shammah adapters load | unload | rollback | show | delete` on the real program.

mod support;

use serde_json::{Value, json};
use shammah::models::{self, ModelSource};
use support::Program;

/// Puts an adapter into the database and onto the disk, as a publication would leave it.
///
/// Only the gate can make what the store wants for a real one; what the files hold does not matter here.
fn put_adapter(program: &Program, id: &str, parent: Option<&str>, base_hash: &str) {
    let folder = program.home().join("adapters").join(id);
    fs_err::create_dir_all(&folder).unwrap();
    for name in ["adapter_model.safetensors", "adapter_config.json", "training.json"] {
        fs_err::write(folder.join(name), "x").unwrap();
    }
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

fn program_with_two_adapters() -> Program {
    let program = Program::new();
    program.run(&["adapters", "list"]).done();
    let base = models::base_hash(&ModelSource::Builtin, None).unwrap();
    put_adapter(&program, "first", None, &base);
    put_adapter(&program, "second", Some("first"), &base);
    put_adapter(&program, "foreign", None, "0123");
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
