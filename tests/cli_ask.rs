//! `shammah ask` on the built-in model, through the real program.

mod support;

use support::Program;

const SHORT: [&str; 4] = ["--max-tokens", "8", "--set", "generation.temperature=0"];

fn ask(program: &Program, prompt: &str, more: &[&str]) -> support::Run {
    let mut args = vec!["ask", prompt];
    args.extend(SHORT);
    args.extend(more);
    program.run(&args)
}

#[test]
fn the_answer_streams_to_stdout_and_json_says_the_same_and_how() {
    let program = Program::new();
    let text = ask(&program, "hello", &["-q"]).done().stdout;
    let answer = ask(&program, "hello", &["--json"]).done().json();
    assert_eq!(text, format!("{}\n", answer["text"].as_str().unwrap()));
    assert!(!text.trim().is_empty());
    let keys: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "text",
            "model",
            "adapters",
            "domain",
            "similarity",
            "prompt_tokens",
            "new_tokens",
            "prefill_ms",
            "decode_ms",
            "finish_reason"
        ]
    );
    assert_eq!(answer["model"], "builtin");
    let tokens = answer["new_tokens"].as_u64().unwrap();
    assert!((1..=8).contains(&tokens) && answer["prompt_tokens"].as_u64().unwrap() > 0);
    assert!(
        answer["prefill_ms"].as_f64().unwrap() > 0.0
            && answer["decode_ms"].as_f64().unwrap() >= 0.0
    );
    let expected = if tokens == 8 { "length" } else { "stop" };
    assert_eq!(answer["finish_reason"], expected);
}

#[test]
fn an_answer_that_was_cut_says_so_beside_it() {
    let program = Program::new();
    let cut = program.run(&["ask", "Who are you?", "--max-tokens", "2"]);
    assert_eq!(cut.stderr, "the answer is cut at 2 tokens: --max-tokens N allows more\n");
    assert_eq!(cut.code, 0);
    let whole = program.run(&["ask", "Who are you?", "--max-tokens", "200", "--seed", "1"]);
    assert_eq!((whole.stderr.as_str(), whole.code), ("", 0), "{}", whole.stdout);
    program.run(&["ask", "Who are you?", "--max-tokens", "2", "--json"]).done();
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let program = Program::new();
    let ask = || {
        let args = ["ask", "tell me something", "--seed", "7", "--max-tokens", "12", "--json"];
        program.run_with_env(&args, &[("SHAMMAH__GENERATION__TEMPERATURE", "1.5")]).done().json()["text"].clone()
    };
    assert_eq!(ask(), ask());
}

#[test]
fn what_cannot_be_asked_is_a_wrong_usage() {
    let program = Program::new();
    let message = ask(&program, "  ", &[]).failed(2);
    assert!(message.contains("empty"), "{message}");
    let message = program.run(&["ask", "x", "--max-tokens", "0"]).failed(2);
    assert_eq!(
        message,
        "--max-tokens: generation.max_tokens = 0 is not allowed: it must be a whole number from 1 to 131072"
    );
    let message = program.run(&["ask", "x", "--seed", "-1"]).failed(2);
    assert!(message.starts_with("--seed: generation.seed = -1"), "{message}");
    let both = program.run(&["ask", "x", "--no-adapter", "--adapter", "a"]);
    assert_eq!(both.code, 2);
}

#[cfg(not(any(feature = "cuda", feature = "metal")))]
#[test]
fn a_device_that_is_not_built_in_exits_2_and_auto_falls_back() {
    let program = Program::new();
    for device in ["cuda", "cuda:1", "metal"] {
        let message = ask(&program, "hello", &["--device", device]).failed(2);
        assert!(message.contains("not built into this program"), "{message}");
        assert!(message.contains("--device cpu"), "{message}");
    }
    let run = ask(&program, "hello", &["-v", "--device", "auto"]);
    assert_eq!(run.code, 0);
    assert!(run.stderr.contains("computing on the CPU: cuda is not built in"), "{}", run.stderr);
    let logs: String = fs_err::read_dir(program.home().join("logs"))
        .unwrap()
        .map(|entry| fs_err::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert!(logs.contains("computing on the CPU"), "{logs}");
    assert!(!logs.contains("hello"), "the text of chats is not logged");
}

#[test]
fn a_question_longer_than_the_context_is_refused_with_a_remedy() {
    let program = Program::new();
    let long = "why is it so? ".repeat(100_000 / 14);
    let message = ask(&program, &long, &[]).failed(1);
    assert!(message.contains("tokens") && message.contains("shorten"), "{message}");
    let small = ask(&program, "one two three four five six", &["--set", "model.context_length=4"]);
    assert!(small.failed(1).contains("context holds 4"));
}

#[test]
fn a_model_that_is_not_there_or_broken_names_the_file() {
    let program = Program::new();
    let message = ask(&program, "hello", &["--model", "/no/such/model"]).failed(1);
    assert!(message.contains("/no/such/model"), "{message}");
    let folder = program.path("model");
    fs_err::create_dir(&folder).unwrap();
    fs_err::write(folder.join("config.json"), "{\"model_type\": \"alien\"}").unwrap();
    let message = ask(&program, "hello", &["--model", folder.to_str().unwrap()]).failed(1);
    assert!(message.contains(folder.to_str().unwrap()), "{message}");
}

/// Copies the built-in model without any token that ends an answer, and with a context that takes minutes to fill.
fn endless_model(program: &Program) -> String {
    let builtin = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny");
    let folder = program.path("endless");
    fs_err::create_dir(&folder).unwrap();
    fs_err::copy(builtin.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let text = fs_err::read_to_string(builtin.join(name)).unwrap();
        let text = text
            .replace("<|im_end|>", "<|im_over|>")
            .replace("<|endoftext|>", "<|textover|>")
            .replace("\"eos_token\": \"<|im_over|>\"", "\"eos_token\": null")
            .replace("\"eos_token_id\": 2", "\"eos_token_id\": 999999")
            .replace("\"max_position_embeddings\": 1024", "\"max_position_embeddings\": 32768");
        fs_err::write(folder.join(name), text).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

#[test]
fn an_interrupted_answer_ends_with_130() {
    use std::io::Read;
    use std::process::Stdio;

    let program = Program::new();
    let model = endless_model(&program);
    let args = ["ask", "tell me a story", "--model", &model, "--max-tokens", "32000"];
    let mut child =
        program.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
}
