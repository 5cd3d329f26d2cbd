//! What is in the cache of models: repaired, used once a run, laid by several at a time; through the real program.
#![cfg(feature = "hub")]

mod hub_server;
mod support;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hub_server::stage::Stage;
use hub_server::{REPO, Server, TOKEN, git_hash, sha256};
use support::Run;

const WEIGHTS: &str = "model.safetensors";

#[test]
fn a_pull_replaces_a_file_in_the_cache_that_is_damaged() {
    let stage = Stage::new();
    stage.pull();
    let weights = stage.snapshot().join(WEIGHTS);
    let good = fs_err::read(&weights).unwrap();
    fs_err::write(fs_err::canonicalize(&weights).unwrap(), &good[..1000]).unwrap();
    let run = stage.pull();
    assert!(run.stderr.contains("model.safetensors in the cache is damaged"), "{}", run.stderr);
    assert_eq!(sha256(&fs_err::read(&weights).unwrap()), sha256(&good));
}

#[test]
fn a_pull_repairs_a_small_file_that_git_names() {
    let stage = Stage::new();
    stage.pull();
    let config = stage.snapshot().join("config.json");
    let good = fs_err::read(&config).unwrap();
    let blob = fs_err::canonicalize(&config).unwrap();
    assert_eq!(blob.file_name().unwrap().to_str().unwrap(), git_hash(&good));
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    for (damage, link_is_there) in [(&changed[..], true), (&changed[..], false), (b"", true)] {
        fs_err::write(&blob, damage).unwrap();
        if !link_is_there {
            fs_err::remove_file(&config).unwrap();
        }
        let run = stage.pull();
        assert!(run.stderr.contains("config.json in the cache is damaged"), "{}", run.stderr);
        assert_eq!(fs_err::read(&config).unwrap(), good);
    }
    // An index that is none is said to be that, not to be missing.
    let index = stage.snapshot().join("model.safetensors.index.json");
    fs_err::write(&index, "{").unwrap();
    let listed = stage.run(&["models", "list"]).done().stdout;
    assert!(listed.contains("index.json is not an index of shards"), "{listed}");
    let message = stage.run(&["models", "inspect", REPO]).failed(1);
    assert!(message.contains("(model.safetensors.index.json is not an index"), "{message}");
}

#[test]
fn a_description_that_moved_is_asked_for_without_the_token() {
    let env = [("HF_TOKEN", TOKEN)];
    for host in ["127.0.0.1", "localhost"] {
        let stage = Stage::new();
        stage.server.faults(|faults| faults.moved = Some(host));
        let run = stage.run_with(&["models", "pull", REPO], &env);
        assert_eq!(run.code, 0, "{run:?}");
        let requests = stage.server.requests();
        let moved = requests.iter().filter(|r| r.path.starts_with("/api/models/"));
        let moved: Vec<_> = moved.map(|r| (r.at_store, r.authorization.is_some())).collect();
        assert_eq!(moved, [(false, true), (true, false)], "{host}");
    }
}

#[test]
fn a_wrong_token_is_no_reason_not_to_use_what_is_in_the_cache() {
    let stage = Stage::new();
    stage.pull();
    let env = [("HF_TOKEN", "hf_two words")];
    assert_eq!(stage.run_with(&Stage::ask(REPO), &env).code, 0);
    assert!(stage.run_with(&["models", "list"], &env).done().stdout.contains(REPO));
    let message = Stage::refused(&stage.run_with(&["models", "pull", REPO], &env), 1);
    assert!(message.contains("set HF_TOKEN anew") && !message.contains("words"), "{message}");
}

/// What a run uses is found once: that a branch moves meanwhile must not mix two commits.
#[test]
fn a_model_is_looked_for_once_in_a_run() {
    let stage = Stage::new();
    stage.pull();
    for args in [&Stage::ask(REPO)[..], &["--model", REPO]] {
        let mut command = stage.command(args);
        command.env("RUST_LOG", "info").stdin(Stdio::null());
        assert_eq!(Run::of(command.output().unwrap()).code, 0);
        let logs = fs_err::read_dir(stage.program.home().join("logs")).unwrap();
        let mut text = String::new();
        for log in logs {
            let path = log.unwrap().path();
            text.push_str(&fs_err::read_to_string(&path).unwrap());
            fs_err::remove_file(path).unwrap();
        }
        assert_eq!(text.matches("in the cache, ").count(), 1, "{text}");
    }
}

#[test]
fn an_empty_file_is_fetched_as_such() {
    let mut files = BTreeMap::new();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        files.insert(name.to_owned(), fs_err::read(format!("assets/tiny/{name}")).unwrap());
    }
    files.insert("chat_template.jinja".to_owned(), Vec::new());
    let stage = Stage::with(Server::with_files(files));
    stage.pull();
    let template = stage.snapshot().join("chat_template.jinja");
    assert_eq!(fs_err::metadata(&template).unwrap().len(), 0);
    assert!(fs_err::canonicalize(&template).unwrap().ends_with(git_hash(b"")));
    stage.server.requests();
    stage.pull();
    assert_eq!(stage.server.requests().len(), 1, "nothing is fetched twice");
}

#[test]
fn pulls_at_the_same_time_lay_the_same_links() {
    let stage = Stage::new();
    stage.pull();
    for _ in 0..3 {
        fs_err::remove_dir_all(stage.snapshot()).unwrap();
        let pull = |_| {
            let mut command = stage.command(&["models", "pull", REPO]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = (0..4).map(pull).collect();
        for child in children {
            let run = Run::of(child.wait_with_output().unwrap());
            assert_eq!(run.code, 0, "{run:?}");
        }
    }
}

/// The file has holes alone, and more of them than can be read in the time that this test has.
#[test]
fn comparing_a_large_file_with_its_name_can_be_broken_off() {
    let stage = Stage::new();
    stage.pull();
    let blob = fs_err::canonicalize(stage.snapshot().join(WEIGHTS)).unwrap();
    fs_err::File::options().write(true).open(&blob).unwrap().set_len(1 << 40).unwrap();
    stage.server.requests();
    let mut command = stage.command(&["models", "pull", REPO]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while stage.server.requests().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it is still at it");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if since.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("it goes on after Ctrl-C");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Stage::refused(&Run::of(child.wait_with_output().unwrap()), 130);
    assert!(blob.exists());
}
