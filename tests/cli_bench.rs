//! `shammah bench`: figures that can be true, of the work that was asked for.

#![allow(clippy::unwrap_used, reason = "a test may fall")]

mod support;

use serde_json::Value;
use support::Program;

fn figures(args: &[&str]) -> Value {
    let program = Program::new();
    program.run(args).done().json()
}

#[test]
fn decoding_and_prefill_count_what_was_asked_for() {
    let figures_of =
        figures(&["bench", "decode", "--prompt-tokens", "8", "--new-tokens", "5", "--json"]);
    assert_eq!(figures_of["runs"].as_array().unwrap().len(), 3);
    assert!(figures_of["tokens_per_second"].as_f64().unwrap() > 0.0);
    let (median, p95) = (&figures_of["token_ms_median"], &figures_of["token_ms_p95"]);
    assert!(median.as_f64().unwrap() > 0.0 && p95.as_f64().unwrap() >= median.as_f64().unwrap());
    assert!(figures_of.get("adapter").is_none());
    let (read, share) = (&figures_of["read_gb_per_second"], &figures_of["share_of_read"]);
    assert!(read.as_f64().unwrap() > 0.0 && share.as_f64().unwrap() > 0.0);
    let adapted = ["bench", "decode", "--prompt-tokens", "8", "--new-tokens", "5", "--json"];
    let adapted = figures(&[&adapted[..], &["--adapter-rank", "4", "--runs", "2"]].concat());
    assert_eq!(adapted["adapter"]["rank"], 4);
    assert_eq!(adapted["adapter"]["runs"].as_array().unwrap().len(), 2);
    assert!(adapted["adapter"]["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(adapted["adapter"]["two_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(adapted["adapter"]["swap_ms"].as_f64().unwrap().is_finite());
    let prefill = figures(&["bench", "prefill", "--tokens", "32", "--runs", "2", "--json"]);
    assert_eq!(prefill["runs"].as_array().unwrap().len(), 2);
    assert_eq!((&prefill["dtype"], &prefill["device"]), (&"f32".into(), &"cpu".into()));
}

#[test]
fn training_counts_the_tokens_of_its_batches() {
    let figures_of = figures(&["bench", "train", "--uniform", "3x16", "--steps", "2", "--json"]);
    assert_eq!((&figures_of["tokens"], &figures_of["answer_tokens"]), (&96.into(), &90.into()));
    assert_eq!(
        figures_of["losses"].as_array().unwrap().len(),
        3,
        "the step that is not counted too"
    );
    let again =
        ["bench", "train", "--uniform", "3x16", "--steps", "2", "--checkpointing", "--json"];
    assert_eq!(figures(&again)["losses"], figures_of["losses"], "checkpointing changes no bit");
    let quantised =
        ["--set", "model.quantize=q4_k", "bench", "train", "--uniform", "2x8", "--json"];
    assert_eq!(figures(&quantised)["dtype"], "q4_k, q8_0");
}

#[test]
fn a_shape_that_is_none_is_refused() {
    let program = Program::new();
    let message = program.run(&["bench", "train", "--uniform", "4"]).failed(2);
    assert!(message.contains("BATCHxTOKENS"), "{message}");
    let message = program.run(&["bench", "train"]).failed(2);
    assert!(message.contains("--data"), "{message}");
    let message = program.run(&["bench", "prefill", "--tokens", "1000000"]).failed(2);
    assert!(message.contains("context"), "{message}");
}
