//! The rules of ARCHITECTURE.md that a look at the sources can check.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the modules of a layer may use, besides themselves. Nothing above a layer is in its list.
const LAYERS: [(&str, &[&str]); 22] = [
    ("domain", &[]),
    ("text", &[]),
    ("secrets", &[]),
    ("crash", &[]),
    ("plot", &["domain", "text"]),
    ("models", &["domain"]),
    ("hub", &["models"]),
    ("device", &["domain"]),
    ("config", &["domain"]),
    ("logging", &["config", "text"]),
    ("lora", &["domain", "device", "crash", "models", "eval"]),
    ("eval", &["domain", "models", "lora"]),
    ("engine", &["domain", "models", "lora"]),
    ("store", &["domain", "secrets", "crash", "eval"]),
    ("worker", &["domain", "text", "crash", "models", "lora", "eval"]),
    (
        "messages",
        &["domain", "text", "config", "models", "lora", "eval", "engine", "store", "worker"],
    ),
    ("plan", &["domain", "text", "config", "models", "lora", "eval", "engine", "store"]),
    ("actors", &[CORE, "messages", "plan", "worker", "secrets"]),
    ("app", &[CORE, "messages", "plan", "worker", "actors", "logging", "device"]),
    (
        "cli",
        &[
            CORE, "messages", "plan", "worker", "actors", "logging", "device", "app", "plot",
            "secrets",
        ],
    ),
    ("lib", &[]),
    ("main", &["cli"]),
];
/// Stands for the layers that everything from the actors upwards may use.
const CORE: &str = "core";
const CORE_LAYERS: [&str; 9] =
    ["domain", "text", "config", "models", "hub", "lora", "eval", "engine", "store"];

/// No file of the project is longer.
const MAX_LINES: usize = 500;

/// A source file without its tests and comments.
struct Source {
    path: PathBuf,
    /// The top-level module it belongs to.
    layer: String,
    lines: Vec<(usize, String)>,
}

impl Source {
    fn text(&self) -> String {
        self.lines.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut folders = vec![root().join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    files
}

/// Files that are compiled into the tests alone.
fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    name == "tests" || name.ends_with("_tests") || name == "test_kit"
}

fn sources() -> Vec<Source> {
    let source = |path: PathBuf| {
        let relative = path.strip_prefix(root().join("src")).unwrap().to_owned();
        let first = relative.components().next().unwrap();
        let layer = Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs_err::read_to_string(&path).unwrap();
        // By house style a file's tests are its last item.
        let end = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub(crate) mod tests {"]
            .iter()
            .filter_map(|start| text.find(start))
            .min()
            .unwrap_or(text.len());
        let code = |line: &str| !line.trim_start().starts_with("//");
        let lines = text[..end].lines().enumerate().filter(|(_, line)| code(line));
        let lines = lines.map(|(at, line)| (at + 1, line.to_owned())).collect();
        Source { path: Path::new("src").join(relative), layer, lines }
    };
    rust_files("src").into_iter().filter(|path| !is_test_file(path)).map(source).collect()
}

/// Fails with every place in `layers` (all of them if empty) where a word stands.
fn forbid(layers: &[&str], words: &[&str], allowed: impl Fn(&Source) -> bool, why: &str) {
    let mut found = Vec::new();
    for source in sources() {
        if (!layers.is_empty() && !layers.contains(&source.layer.as_str())) || allowed(&source) {
            continue;
        }
        for (number, line) in &source.lines {
            found.extend(words.iter().filter(|word| line.contains(**word)).map(|word| {
                format!("{}:{number}: {word}: {}", source.path.display(), line.trim())
            }));
        }
    }
    assert!(found.is_empty(), "{why}:\n{}", found.join("\n"));
}

/// The top-level modules that a source names as `crate::x` or `crate::{x, y}`.
fn uses(source: &Source) -> Vec<String> {
    let text = source.text();
    let mut names = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // Not `some_crate::`, not the `$crate::` of a macro.
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        let word = |text: &str| -> String {
            text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        };
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = &group[..group.find(['}', '{']).unwrap_or(group.len())];
                names.extend(group.split(',').map(|part| word(part.trim())));
            }
            None => names.push(word(rest)),
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn layers_use_only_what_lies_below_them() {
    let layers: BTreeMap<&str, &[&str]> = LAYERS.into_iter().collect();
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(allowed) = layers.get(source.layer.as_str()) else {
            wrong.push(format!("{}: no layer; give it one here", source.path.display()));
            continue;
        };
        for used in uses(&source) {
            let core = allowed.contains(&CORE) && CORE_LAYERS.contains(&used.as_str());
            // Types of the crate's root (none so far) begin in upper case.
            let is_module = used.starts_with(char::is_lowercase);
            if is_module && used != source.layer && !core && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses {used}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the direction of dependencies:\n{}", wrong.join("\n"));
}

#[test]
fn the_layers_have_no_way_up() {
    let layers: BTreeMap<&str, &[&str]> = LAYERS.into_iter().collect();
    // lora and eval measure each other's work; they count as one.
    for (upper, lower) in [
        ("actors", "messages"),
        ("messages", "engine"),
        ("engine", "lora"),
        ("lora", "models"),
        ("cli", "actors"),
    ] {
        assert!(!layers[lower].contains(&upper), "{lower} must not use {upper}");
    }
}

#[test]
fn the_actor_crate_stays_under_actors_messages_and_app() {
    let words = ["actix::", "use actix", "actix_rt", "extern crate actix"];
    let allowed = |s: &Source| ["actors", "messages", "app"].contains(&s.layer.as_str());
    forbid(&[], &words, allowed, "replacing actix must stay a small job");
}

#[test]
fn tensors_and_sql_stay_out_of_the_actors() {
    let words = ["candle", "rusqlite", "Tensor", "safetensors"];
    forbid(&["actors", "messages"], &words, |_| false, "actors are thin shells over plain structs");
}

#[test]
fn invariant_1_the_core_reads_no_clock_environment_config_or_network_and_prints_nothing() {
    let words = [
        "SystemTime",
        "Instant",
        "chrono",
        "std::env",
        "env::",
        "crate::config",
        "std::net",
        "println!",
        "eprintln!",
        "print!(",
        "dbg!",
        "stdout()",
        "stderr()",
        "std::process",
        "thread::sleep",
        "OsRng",
        "rand::rng()",
        "from_os_rng",
    ];
    let core = ["models", "lora", "engine", "eval"];
    forbid(&core, &words, |_| false, "pass the value in");
}

/// A queue's limit: what stands behind `channel(`.
fn limit(rest: &str) -> &str {
    rest.split([')', ',']).next().unwrap_or("").trim()
}

#[test]
fn invariant_2_every_queue_has_a_named_limit() {
    let unbounded = [
        "unbounded_channel",
        "mpsc::channel()",
        "mpsc::unbounded",
        "UnboundedSender",
        "SyncArbiter",
        "flume::unbounded",
    ];
    forbid(&[], &unbounded, |_| false, "every queue is bounded");
    // `do_send` ignores a mailbox's capacity. Only the supervisor gets such messages: one `Down` per
    // death and one `Shutdown` per signal, which must not be lost.
    let to_supervisor =
        |s: &Source| ["actors/supervisor.rs", "app/signals.rs"].iter().any(|f| s.path.ends_with(f));
    forbid(&[], &["do_send("], to_supervisor, "no message evades a mailbox's limit");
    let is_name = |limit: &str| {
        let name = limit.rsplit("::").next().unwrap_or("");
        name.len() > 1
            && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    };
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in &source.lines {
            let calls = ["channel(", "channel::<", "set_mailbox_capacity(", "sync_channel("];
            let Some(at) = calls.iter().filter_map(|call| line.find(call)).min() else {
                continue;
            };
            // One answer, one value: these hold no queue. A function of ours has its own line.
            let one = line.contains("oneshot::") || line.contains("watch::");
            if one
                || line.contains("fn ")
                || line.contains("answer_channel()")
                || line.contains("revision_channel()")
            {
                continue;
            }
            let limit = limit(line[at..].split_once('(').map_or("", |(_, rest)| rest));
            if !is_name(limit) {
                wrong.push(format!("{}:{number}: {}", source.path.display(), line.trim()));
            }
        }
        let text = source.text();
        if text.contains("VecDeque") && !text.contains("const ") {
            wrong.push(format!("{}: a VecDeque without a named limit", source.path.display()));
        }
    }
    assert!(wrong.is_empty(), "queues whose limit is no constant:\n{}", wrong.join("\n"));
}

#[test]
fn every_actor_limits_its_mailbox() {
    for source in sources() {
        let text = source.text();
        let actors = text.matches("impl Actor for").count();
        let limits = text.matches("set_mailbox_capacity(").count();
        assert!(limits >= actors, "{}: {actors} actors, {limits} limits", source.path.display());
    }
}

#[test]
fn only_the_kernels_are_unsafe() {
    let files = [
        "gemm.rs",
        "mapping.rs",
        "team.rs",
        "avx2/mod.rs",
        "avx2/dense.rs",
        "avx2/blocks.rs",
        "avx2/super_blocks.rs",
        "neon/mod.rs",
    ]
    .map(|file| format!("models/kernels/{file}"));
    let kernels = |s: &Source| files.iter().any(|file| s.path.ends_with(file));
    forbid(&[], &["unsafe "], kernels, "unsafe code belongs to the kernels");
}

#[test]
fn only_the_command_line_prints() {
    let words =
        ["println!", "eprintln!", "print!(", "eprint!(", "dbg!(", "todo!(", "unimplemented!("];
    forbid(&[], &words, |s| s.layer == "cli" || s.layer == "main", "only cli and main print");
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let mut wrong = Vec::new();
    for folder in ["src", "tests", "examples", "benches"] {
        if !root().join(folder).is_dir() {
            continue;
        }
        for path in rust_files(folder) {
            let lines = fs_err::read_to_string(&path).unwrap().lines().count();
            if lines > MAX_LINES {
                wrong.push(format!("{}: {lines} lines", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "split:\n{}", wrong.join("\n"));
}

/// Invariant 4: outside the gate nobody makes the proof that a promotion needs.
#[test]
fn invariant_4_the_gate_alone_makes_a_promotion() {
    let makes = ["Promotion {", "Promotion{"];
    let gate = |s: &Source| s.path.ends_with("eval/gate.rs");
    forbid(&[], &makes, gate, "only eval::gate makes a Promotion");
    let gate = sources().into_iter().find(gate).unwrap().text();
    let at =
        gate.find("pub struct Promotion {").expect("the proof is a struct with a private field");
    let derives = gate[..at].rsplit("#[derive(").next().unwrap();
    assert!(!derives.contains("Deserialize") && !derives.contains("Clone"), "{derives}");
    let field = gate[at..].lines().nth(1).unwrap().trim();
    assert!(!field.starts_with("pub"), "{field}");
}
