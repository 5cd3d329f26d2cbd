//! The console's model: changing it, its context, what goes wrong with it; through the real program.

mod support;

use serde_json::Value;
use support::Program;

/// Copies the built-in model, with changes to its files; a change of the config alone makes another base.
fn copy(program: &Program, name: &str, change: impl Fn(&str, String) -> String) -> String {
    let builtin = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny");
    let folder = program.path(name);
    fs_err::create_dir(&folder).unwrap();
    fs_err::copy(builtin.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let text = fs_err::read_to_string(builtin.join(file)).unwrap();
        fs_err::write(folder.join(file), change(file, text)).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

fn other(program: &Program) -> String {
    copy(program, "other", |file, text| match file {
        "config.json" => text.replacen('{', "{\"note\": \"another base\",", 1),
        _ => text,
    })
}

fn jobs(program: &Program) -> Vec<(String, Option<String>)> {
    let database = rusqlite::Connection::open(program.home().join("shammah.db")).unwrap();
    let mut rows = database.prepare("SELECT state, base FROM jobs ORDER BY id").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn marks_and_jobs_belong_to_the_model_they_were_made_with() {
    let program = Program::new();
    let dir = other(&program);
    let quick = ["chat", "--set", "lora.training.min_steps=2", "--set", "generation.max_tokens=8"];
    let script = format!(
        "/model\nhello\n/fix good day\n/model {dir}\n/model\nhello\n/train\n/fix good evening\n/train\n/jobs wait\n"
    );
    let run = program.run_with_input(&quick, &script);
    assert!(
        run.stdout.contains("model       builtin\n") && run.stdout.contains("model       other\n")
    );
    assert!(
        run.stdout.contains("other (") && run.stdout.contains("answers from now on"),
        "{}",
        run.stdout
    );
    assert!(
        run.stderr.contains("nothing to train"),
        "the first mark is the built-in's: {}",
        run.stderr
    );
    assert!(
        run.stdout.contains("Training buffer: 1 example (3.0 weighted) · 1 of 10"),
        "{}",
        run.stdout
    );
    let rows = program.run(&["feedback", "list", "--json"]).done().json_lines();
    let bases: Vec<&Value> = rows.iter().map(|row| &row["base"]).collect();
    assert!(bases[0] != bases[1] && bases.iter().all(|base| base.is_string()), "{bases:?}");
    let jobs = jobs(&program);
    assert_eq!(jobs.len(), 1);
    assert!(["succeeded", "rejected"].contains(&jobs[0].0.as_str()), "{jobs:?}: {}", run.stdout);
    assert_eq!(jobs[0].1.as_deref(), bases[0].as_str(), "the newest mark's model");
}

#[test]
fn a_model_that_cannot_be_loaded_leaves_the_old_one_with_a_reason() {
    let program = Program::new();
    let script = "hello\n/model /no/such/model\nhello\n/model builtin\n";
    let run = program.run_with_input(&["chat", "--set", "generation.max_tokens=4"], script);
    let errors: Vec<&str> = run.stderr.lines().collect();
    assert!(errors[0].contains("/no/such/model") && errors[0].ends_with("The old model stays"));
    assert!(errors[1].contains("in use already"), "{}", run.stderr);
    assert_eq!((errors.len(), run.code), (2, 1));
}

const NARROW: [&str; 9] = [
    "chat",
    "--set",
    "model.context_length=96",
    "--set",
    "generation.max_tokens=24",
    "--set",
    "generation.history_turns=100",
    "--set",
    "generation.temperature=0",
];

#[test]
fn a_long_conversation_slides_and_the_console_says_so_once() {
    let program = Program::new();
    let question = "Tell me something about the number seven, please.\n";
    let run = program.run_with_input(&NARROW, &question.repeat(8));
    assert_eq!((run.stderr.as_str(), run.code), ("", 0));
    assert_eq!(run.stdout.matches("the model no longer sees").count(), 1, "{}", run.stdout);
}

#[test]
fn a_conversation_that_must_not_slide_is_refused_with_what_helps() {
    let program = Program::new();
    let question = "Tell me something about the number seven, please.\n";
    let strict = [&NARROW[..], &["--set", "model.context_overflow=error"]].concat();
    let script = format!("{}/clear\n{question}", question.repeat(8));
    let run = program.run_with_input(&strict, &script);
    let error = run.stderr.lines().next().expect("it is full");
    for words in ["context holds 96", "/clear", "model.context_overflow = \"slide\""] {
        assert!(error.contains(words), "{error}");
    }
    let after = run.stdout.split("A new conversation.\n").nth(1).expect("cleared");
    assert!(!after.trim().is_empty(), "a new conversation is answered");
    let slid = program.run_with_input(&NARROW, &format!("{}\n", "why is it so? ".repeat(60)));
    assert!(
        slid.stderr.contains("last message has") && slid.stderr.contains("holds 96"),
        "{}",
        slid.stderr
    );
}

#[test]
fn damaged_weights_and_odd_tokens_are_errors_that_name_the_model() {
    let program = Program::new();
    let spoilt = copy(&program, "spoilt", |_, text| text);
    let weights = std::path::Path::new(&spoilt).join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &candle_core::Device::Cpu).unwrap();
    let norm = tensors["model.norm.weight"].clone();
    tensors.insert("model.norm.weight".to_owned(), (norm.zeros_like().unwrap() / 0.0).unwrap());
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    let message = program.run(&["ask", "hello", "--model", &spoilt]).failed(1);
    assert!(message.contains("model \"spoilt\"") && message.contains("damaged"), "{message}");
    assert!(!message.contains("panic"), "{message}");

    let endless = copy(&program, "endless", |_, text| {
        text.replace("<|im_end|>", "<|im_over|>")
            .replace("<|endoftext|>", "<|textover|>")
            .replace("\"eos_token\": \"<|im_over|>\"", "\"eos_token\": null")
            .replace("\"eos_token_id\": 2", "\"eos_token_id\": null")
    });
    let message = program.run(&["ask", "hello", "--model", &endless]).failed(1);
    assert!(
        message.contains("no token ends an answer") && message.contains("eos_token_id"),
        "{message}"
    );
}
