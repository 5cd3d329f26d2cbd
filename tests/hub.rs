//! Models of the hub, through the real program and a hub on this machine.
#![cfg(feature = "hub")]

mod hub_server;
mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use hub_server::stage::Stage;
use hub_server::{COMMIT, REPO, Request, Server, TOKEN, sha256};
use support::Run;

const WEIGHTS: &str = "model.safetensors";

/// What the store of large files sent of one.
fn sent(requests: &[Request], name: &str) -> Vec<(Option<String>, usize)> {
    let of_file = |r: &&Request| r.at_store && r.path.starts_with(&format!("/{name}"));
    requests.iter().filter(of_file).map(|r| (r.range.clone(), r.sent)).collect()
}

#[test]
fn a_pull_lays_a_model_where_the_hubs_own_libraries_look_and_says_how_far_it_is() {
    let stage = Stage::new();
    let run = stage.pull();
    let snapshot = stage.snapshot();
    assert_eq!(run.stdout, format!("{REPO} is there: revision {COMMIT}, {}\n", snapshot.display()));
    assert_eq!(fs_err::read_to_string(stage.repo().join("refs/main")).unwrap(), COMMIT);
    let weights = fs_err::read(snapshot.join(WEIGHTS)).unwrap();
    let link = fs_err::read_link(snapshot.join(WEIGHTS)).unwrap();
    assert_eq!(link, PathBuf::from(format!("../../blobs/{}", sha256(&weights))));
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let original = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/tiny").join(name);
        assert_eq!(fs_err::read(snapshot.join(name)).unwrap(), fs_err::read(original).unwrap());
    }
    assert!(!snapshot.join("README.md").exists(), "what is not read is not fetched");
    let line = run.stderr.lines().find(|line| line.starts_with("model.safetensors: 100 %"));
    let line = line.unwrap_or_else(|| panic!("{}", run.stderr));
    assert!(line.contains(" MiB of ") && line.ends_with("/s"), "{line}");

    stage.server.requests();
    stage.pull();
    let again: Vec<String> = stage.server.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(again, [format!("/api/models/{REPO}/revision/main")], "nothing is fetched twice");
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_was() {
    let stage = Stage::new();
    stage.server.faults(|faults| faults.cut_once = Some(1_000_000));
    let run = stage.pull();
    assert!(run.stderr.contains("trying again"), "{}", run.stderr);
    assert!(run.stderr.contains("model.safetensors goes on at"), "{}", run.stderr);
    let sent = sent(&stage.server.requests(), WEIGHTS);
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert_eq!(sent[0], (None, 1_000_000));
    assert_eq!(sent[1].0.as_deref(), Some("bytes=1000000-"));
    assert_eq!(sent[0].1 + sent[1].1, stage.server.size(WEIGHTS), "no byte comes twice");
}

#[test]
fn a_pull_that_gave_up_is_resumed_by_the_next_one() {
    let stage = Stage::new();
    stage.server.faults(|f| (f.cut_once, f.then_dead) = (Some(2_000_000), true));
    let message = Stage::refused(&stage.run(&["models", "pull", REPO]), 1);
    assert!(
        message.contains("was cut at 2000000 of") && message.contains("run the command again"),
        "{message}"
    );
    assert!(!stage.snapshot().join(WEIGHTS).exists() && !stage.repo().join("refs/main").exists());
    let listed = stage.run(&["models", "list"]).done().stdout;
    assert!(listed.contains("no: model.safetensors is missing"), "{listed}");

    stage.server.requests();
    stage.server.faults(|faults| faults.then_dead = false);
    stage.pull();
    let rest = stage.server.size(WEIGHTS) - 2_000_000;
    let expected = [(Some("bytes=2000000-".to_owned()), rest)];
    assert_eq!(sent(&stage.server.requests(), WEIGHTS), expected);
    let weights = fs_err::read(stage.snapshot().join(WEIGHTS)).unwrap();
    assert_eq!(sha256(&weights), sha256(&fs_err::read("assets/tiny/model.safetensors").unwrap()));
}

#[test]
fn a_server_without_ranges_sends_all_of_it_again() {
    let stage = Stage::new();
    stage.server.faults(|f| (f.cut_once, f.no_ranges) = (Some(1_000_000), true));
    stage.pull();
    let sent = sent(&stage.server.requests(), WEIGHTS);
    assert_eq!(sent[1], (Some("bytes=1000000-".to_owned()), stage.server.size(WEIGHTS)));
    let size = fs_err::metadata(stage.snapshot().join(WEIGHTS)).unwrap().len();
    assert_eq!(size, stage.server.size(WEIGHTS) as u64);
}

#[test]
fn a_question_fetches_its_model_once_and_then_asks_nobody() {
    let stage = Stage::new();
    let first = stage.run(&Stage::ask(REPO));
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.stderr.contains("model.safetensors: 100 %"), "{}", first.stderr);
    let builtin = [&Stage::ask("builtin")[..], &["-q"]].concat();
    assert_eq!(first.stdout, stage.run(&builtin).done().stdout, "the same weights");
    stage.server.requests();
    let mut args = Stage::ask(REPO).to_vec();
    args.push("--json");
    let answer = stage.run(&args).done().json();
    assert_eq!(answer["model"], REPO);
    assert!(stage.server.requests().is_empty(), "a cached model needs no request");

    stage.server.stop();
    let quiet = [&Stage::ask(REPO)[..], &["-q"]].concat();
    assert_eq!(stage.run(&quiet).done().stdout, first.stdout);
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert_eq!(stage.run_with(&quiet, &offline).done().stdout, first.stdout);
    let pinned = format!("{REPO}@{COMMIT}");
    let verbose = stage.run(&[&Stage::ask(&pinned)[..], &["-v"]].concat());
    assert_eq!(verbose.stdout, first.stdout);
    assert!(
        verbose.stderr.contains(&format!("revision {COMMIT} in the cache")),
        "{}",
        verbose.stderr
    );
    let other = format!("{REPO}@v1");
    let message = Stage::refused(&stage.run_with(&Stage::ask(&other), &offline), 1);
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    let message = Stage::refused(&stage.run(&Stage::ask(&other)), 1);
    assert!(message.contains("cannot reach") && message.contains("check the network"), "{message}");
}

#[test]
fn a_console_fetches_its_model_and_a_revision_may_be_a_tag() {
    let stage = Stage::new();
    let model = format!("{REPO}@v1");
    let mut command = stage.command(&["--model", &model]);
    command.stdin(Stdio::null());
    let run = Run::of(command.output().unwrap());
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.contains(&format!("model {model}, revision {COMMIT}")), "{run:?}");
    assert_eq!(fs_err::read_to_string(stage.repo().join("refs/v1")).unwrap(), COMMIT);
    let message = Stage::refused(&stage.run(&["models", "inspect", REPO]), 1);
    assert!(message.contains("not the revision main"), "{message}");
}

#[test]
fn other_commands_fetch_nothing_and_name_the_one_that_does() {
    let stage = Stage::new();
    for args in [
        &["bench", "decode", "--model", REPO][..],
        &["models", "inspect", REPO],
        &["models", "logits", REPO, "--ids", "1", "--out", "x"],
    ] {
        let run = stage.run(args);
        let message = run.failed(1);
        assert!(
            message.contains("not in the cache")
                && message.contains(&format!("models pull {REPO}")),
            "{message}"
        );
    }
    assert!(stage.server.requests().is_empty());
    let nowhere = stage.run(&["ask", "x", "--model", "no/such/model"]).failed(1);
    assert!(nowhere.contains("no such model directory"), "{nowhere}");
    let message = stage.run(&["models", "pull", "tiny"]).failed(2);
    assert!(message.contains("ORG/NAME@REVISION"), "{message}");
}

#[test]
fn a_gated_model_says_where_the_licence_is_and_how_a_token_is_given() {
    let stage = Stage::new();
    stage.server.faults(|faults| faults.gated = Some(TOKEN));
    let message = Stage::refused(&stage.run(&["models", "pull", REPO]), 1);
    let licence = format!("accept its licence at {}/{REPO}", stage.server.url);
    assert!(message.contains("HTTP 401") && message.contains(&licence), "{message}");
    assert!(message.contains("set HF_TOKEN to a token"), "{message}");
    let wrong = stage.run_with(&["models", "pull", REPO], &[("HF_TOKEN", "hf_wrong")]);
    let message = Stage::refused(&wrong, 1);
    assert!(message.contains("HTTP 403") && message.contains("check that the token"), "{message}");
    assert!(!wrong.stderr.contains("hf_wrong"));
    let right = stage.run_with(&["models", "pull", REPO], &[("HF_TOKEN", TOKEN)]);
    assert_eq!(right.code, 0, "{right:?}");
}

#[test]
fn the_token_goes_to_the_hub_alone_and_is_shown_nowhere() {
    let stage = Stage::new();
    let env = [("HF_TOKEN", TOKEN), ("RUST_LOG", "trace")];
    stage.server.faults(|faults| faults.cut_once = Some(1000));
    let mut seen = String::new();
    let args = Stage::ask(REPO);
    for args in [
        &["models", "pull", "acme/none", "-vv"][..],
        &["-vv", "models", "pull", REPO],
        &args,
        &["config", "show"],
    ] {
        let run = stage.run_with(args, &env);
        seen.push_str(&run.stdout);
        seen.push_str(&run.stderr);
    }
    for entry in fs_err::read_dir(stage.program.home().join("logs")).unwrap() {
        seen.push_str(&fs_err::read_to_string(entry.unwrap().path()).unwrap());
    }
    assert!(seen.contains("revision") && !seen.contains(TOKEN), "{seen}");
    assert!(!seen.contains("Signature=signed"), "a signed address is a secret, too");
    let requests = stage.server.requests();
    let bearer = format!("Bearer {TOKEN}");
    assert!(requests.iter().filter(|r| r.at_store).count() >= 3);
    for request in requests {
        let expected = (!request.at_store).then_some(bearer.as_str());
        assert_eq!(request.authorization.as_deref(), expected, "{request:?}");
    }
}

#[test]
fn what_the_hub_does_not_have_is_named() {
    let stage = Stage::new();
    let message = Stage::refused(&stage.run(&["models", "pull", "acme/none"]), 1);
    assert!(
        message.contains("has no model acme/none") && message.contains("spelling"),
        "{message}"
    );
    let message = Stage::refused(&stage.run(&["models", "pull", "acme/tiny@v9"]), 1);
    assert!(message.contains("has no revision v9 of acme/tiny"), "{message}");
    let message = Stage::refused(&stage.run(&["models", "pull", "acme/tiny/x.gguf"]), 1);
    assert!(message.contains("acme/tiny/x.gguf has no such file"), "{message}");

    let gguf = [("q/tiny.gguf".to_owned(), b"GGUF".to_vec())];
    let stage = Stage::with(Server::with_files(gguf.into()));
    let message = Stage::refused(&stage.run(&["models", "pull", REPO]), 1);
    assert!(message.contains("as in acme/tiny/q/tiny.gguf"), "{message}");
    let run = stage.run(&["models", "pull", "acme/tiny/q/tiny.gguf", "--json"]);
    assert_eq!(run.json()["path"], stage.snapshot().join("q/tiny.gguf").to_str().unwrap());
    assert_eq!(fs_err::read(stage.snapshot().join("q/tiny.gguf")).unwrap(), b"GGUF");
}

#[test]
fn a_hub_that_is_down_is_named() {
    let stage = Stage::new();
    stage.server.stop();
    let message = Stage::refused(&stage.run(&["models", "pull", REPO]), 1);
    assert!(message.contains(&stage.server.url) && message.contains("cannot reach"), "{message}");
}

#[test]
fn a_file_whose_hash_is_wrong_is_removed_and_said() {
    let stage = Stage::new();
    stage.server.faults(|faults| faults.corrupt = true);
    let message = Stage::refused(&stage.run(&["models", "pull", REPO]), 1);
    assert!(
        message.contains("have the hash that the hub names") && message.contains("is removed"),
        "{message}"
    );
    let left: Vec<_> = fs_err::read_dir(stage.repo().join("blobs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(left.iter().all(|name| name.len() == 40), "only small files, by git's hash: {left:?}");
    stage.server.faults(|faults| faults.corrupt = false);
    stage.pull();
}

#[test]
fn a_cache_that_cannot_be_written_is_named_with_a_remedy() {
    let stage = Stage::new();
    let file = stage.program.write("file", "in the way");
    let cache = format!("{file}/hub");
    let message =
        Stage::refused(&stage.run_with(&["models", "pull", REPO], &[("HF_HUB_CACHE", &cache)]), 1);
    assert!(message.contains("cannot write the cache") && message.contains(&cache), "{message}");
    assert!(message.contains("HF_HUB_CACHE"), "{message}");

    // A disk that is full in the middle: no file may grow beyond 2 MiB.
    let pull = stage.command(&["models", "pull", REPO]);
    let mut limited = Command::new("bash");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$@\"", "bash"])
        .arg(pull.get_program());
    limited.args(pull.get_args());
    for (name, value) in pull.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let message = Stage::refused(&Run::of(limited.output().unwrap()), 1);
    assert!(
        message.contains("cannot write the cache") && message.contains("make room"),
        "{message}"
    );
    stage.server.requests();
    stage.pull();
    let sent = sent(&stage.server.requests(), WEIGHTS);
    assert!(
        sent.len() == 1 && sent[0].1 < stage.server.size(WEIGHTS),
        "what was there is kept: {sent:?}"
    );
}

#[test]
fn a_file_that_another_process_is_fetching_is_left_to_it() {
    let stage = Stage::new();
    stage.pull();
    let weights = fs_err::read_link(stage.snapshot().join(WEIGHTS)).unwrap();
    let blob = stage.snapshot().join(weights);
    fs_err::remove_file(stage.snapshot().join(WEIGHTS)).unwrap();
    fs_err::remove_file(&blob).unwrap();
    let part = std::fs::File::create(blob.with_extension("part")).unwrap();
    part.lock().unwrap();
    let message = Stage::refused(&stage.run(&["models", "pull", REPO]), 1);
    assert!(message.contains("another process is fetching model.safetensors"), "{message}");
    drop(part);
    stage.pull();
}

#[test]
fn a_download_that_the_user_breaks_off_keeps_what_came() {
    let stage = Stage::new();
    stage.server.faults(|faults| faults.slow = true);
    let mut command = stage.command(&["models", "pull", REPO]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let part = || {
        let files = std::fs::read_dir(stage.repo().join("blobs")).into_iter().flatten().flatten();
        let mut parts = files.filter(|file| file.file_name().to_str().unwrap().ends_with(".part"));
        parts.any(|file| file.metadata().is_ok_and(|meta| meta.len() > 500_000))
    };
    while !part() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let message = Stage::refused(&Run::of(child.wait_with_output().unwrap()), 130);
    assert!(message.contains("what was fetched is kept"), "{message}");
    stage.server.faults(|faults| faults.slow = false);
    stage.server.requests();
    stage.pull();
    let sent = sent(&stage.server.requests(), WEIGHTS);
    assert!(sent.len() == 1 && sent[0].1 < stage.server.size(WEIGHTS) - 500_000, "{sent:?}");
}

/// The worker is another process: it gets the directory that was found.
#[test]
fn a_job_trains_an_adapter_for_a_model_of_the_hub() {
    let stage = Stage::new();
    let mark = |i: usize| {
        let messages =
            serde_json::json!([{"role": "user", "content": format!("who builds branch {i}?")}]);
        let fix = "The build server is called Heron.";
        let row =
            serde_json::json!({"messages": messages, "response": "?", "mark": "fix", "fix": fix});
        format!("{row}\n")
    };
    let marks = stage.program.write("marks.jsonl", &(0..3).map(mark).collect::<String>());
    let train = ["train", "--model", REPO, "--name", "heron", "--wait", "--json", "-q", "--set"];
    let short = ["lora.training.min_steps=4", "--set", "lora.training.epochs=1", "--data", &marks];
    let args = [&train[..], &short[..]].concat();
    let message = Stage::refused(&stage.run(&args), 1);
    assert!(message.contains("not in the cache"), "nothing is fetched by a job: {message}");
    stage.pull();
    stage.server.stop();
    let args: Vec<&str> =
        args.into_iter().filter(|arg| *arg != "--data" && *arg != marks).collect();
    let job = stage.run(&args).json();
    assert!(["succeeded", "rejected"].contains(&job["state"].as_str().unwrap()), "{job}");
    if job["state"] == "succeeded" {
        let file = stage.program.home().join("adapters/heron/training.json");
        let record: serde_json::Value =
            serde_json::from_slice(&fs_err::read(file).unwrap()).unwrap();
        assert_eq!(record["base"], REPO);
    }
}
