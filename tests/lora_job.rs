//! Whole jobs on a tiny model in a directory: repeatable, resumable, and written as promised.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

mod reference;
mod workshop;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use shammah::domain::{Message, TrainExample};
use shammah::eval::{GateConfig, Measurements, Verdict, gate};
use shammah::lora::{
    JobError, JobEvent, JobInput, MemoryBudget, TRAINING_FILE, TrainingParams, TrainingRecord,
};
use shammah::models::{ModelSource, base_hash};
use workshop::{STEPS, Workshop, params};

#[test]
fn the_same_seed_gives_the_same_adapter_bit_for_bit() {
    let shop = Workshop::new();
    let input = shop.input();
    let (first, events) = shop.run(&input, "first", None);
    let (second, _) = shop.run(&input, "second", None);
    let first = first.unwrap();
    assert_eq!(first, second.unwrap());
    assert_eq!(shop.files("first"), shop.files("second"));
    let steps = events.iter().filter(|e| matches!(e, JobEvent::Step(_))).count();
    assert_eq!((first.steps, steps), (STEPS, STEPS));
    let other = JobInput { params: TrainingParams { seed: 43, ..params() }, ..input };
    shop.run(&other, "other", None).0.unwrap();
    assert_ne!(
        shop.files("first")["adapter_model.safetensors"],
        shop.files("other")["adapter_model.safetensors"]
    );
}

#[test]
fn a_run_stopped_at_any_step_and_resumed_gives_the_same_adapter_bit_for_bit() {
    let shop = Workshop::new();
    let input = shop.input();
    let (whole, _) = shop.run(&input, "whole", None);
    let whole = whole.unwrap();
    for stop in 1..=STEPS {
        let out = format!("stopped-{stop}");
        let (stopped, events) = shop.run(&input, &out, Some(stop));
        assert!(matches!(stopped, Err(JobError::Cancelled)), "{stopped:?}");
        assert_eq!(events.last(), Some(&JobEvent::Checkpointed { step: stop }));
        assert!(shop.files(&out).is_empty(), "nothing half is written");
        let (resumed, events) = shop.run(&input, &out, None);
        assert_eq!(resumed.unwrap(), whole, "stopped after {stop}");
        assert_eq!(shop.files(&out), shop.files("whole"), "stopped after {stop}");
        let steps = events.iter().filter(|e| matches!(e, JobEvent::Step(_))).count();
        assert_eq!(steps, STEPS - stop, "nothing is done twice");
        // Until the adapter is published the work must not be lost: the caller removes this.
        let kept = shop.path(&format!("{out}-checkpoint")).join("checkpoint.safetensors");
        assert!(kept.is_file(), "the checkpoint outlives the job");
    }
}

#[test]
fn a_note_that_changes_meanwhile_costs_no_step() {
    let shop = Workshop::new();
    let input = shop.input();
    assert!(shop.run(&input, "noted", Some(2)).0.is_err());
    let notes = [(5, "Say a tree.".to_owned())].into();
    let (resumed, events) = shop.run(&JobInput { notes, ..input }, "noted", None);
    assert_eq!(resumed.unwrap().prompted.len(), 1, "the new note is measured with");
    let steps = events.iter().filter(|e| matches!(e, JobEvent::Step(_))).count();
    assert_eq!(steps, STEPS - 2);
}

#[test]
fn a_dora_run_stopped_and_resumed_gives_the_same_adapter_bit_for_bit() {
    let shop = Workshop::new();
    let params = TrainingParams { dora: true, rslora: true, ..params() };
    let input = JobInput { params, ..shop.input() };
    let whole = shop.run(&input, "whole", None).0.unwrap();
    shop.run(&input, "stopped", Some(3)).0.unwrap_err();
    assert_eq!(shop.run(&input, "stopped", None).0.unwrap(), whole);
    assert_eq!(shop.files("stopped"), shop.files("whole"));
}

#[test]
fn a_continued_adapter_keeps_its_kind() {
    let shop = Workshop::new();
    let dora = TrainingParams { dora: true, rslora: true, ..params() };
    shop.run(&JobInput { params: dora, ..shop.input() }, "first", None).0.unwrap();
    let next = JobInput { parent: Some(shop.path("first")), ..shop.input() };
    let (result, events) = shop.run(&next, "second", None);
    result.unwrap();
    for folder in ["first", "second"] {
        let config: Value =
            serde_json::from_slice(&shop.files(folder)["adapter_config.json"]).unwrap();
        let kind = (&config["use_dora"], &config["use_rslora"]);
        assert_eq!(kind, (&json!(true), &json!(true)), "{folder}");
    }
    let told = |e: &JobEvent| matches!(e, JobEvent::Note(n) if n.contains("goes on with the DoRA of rank 2 and alpha 8 (rsLoRA)"));
    assert!(events.iter().any(told), "{events:?}");
    assert_ne!(
        shop.files("first")["adapter_model.safetensors"],
        shop.files("second")["adapter_model.safetensors"]
    );
}

#[test]
fn a_checkpoint_of_another_job_or_half_a_one_is_not_taken_up() {
    let shop = Workshop::new();
    let input = shop.input();
    let whole = shop.run(&input, "whole", None).0.unwrap();
    shop.run(&input, "again", Some(3)).0.unwrap_err();
    let checkpoint = shop.path("again-checkpoint").join("checkpoint.safetensors");
    let bytes = fs_err::read(&checkpoint).unwrap();
    for broken in [&bytes[..bytes.len() / 2], &bytes[..4], b"", &[0xff; 64]] {
        fs_err::write(&checkpoint, broken).unwrap();
        let (result, events) = shop.run(&input, "again", None);
        assert_eq!(result.unwrap(), whole);
        assert_eq!(events.iter().filter(|e| matches!(e, JobEvent::Step(_))).count(), STEPS);
    }
    fs_err::write(&checkpoint, &bytes).unwrap();
    let other = JobInput { params: TrainingParams { seed: 1, ..params() }, ..input };
    let (_, events) = shop.run(&other, "again", None);
    assert_eq!(events.iter().filter(|e| matches!(e, JobEvent::Step(_))).count(), STEPS);
}

#[test]
fn invariant_3_training_does_not_touch_the_models_files() {
    let shop = Workshop::new();
    let before = shop.files("model");
    shop.run(&shop.input(), "out", None).0.unwrap();
    assert_eq!(shop.files("model"), before);
}

#[test]
fn invariant_5_an_adapter_has_its_config_ids_metrics_and_base_beside_it() {
    let shop = Workshop::new();
    let input = shop.input();
    let measured = shop.run(&input, "out", None).0.unwrap();
    let files = shop.files("out");
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors", "training.json"]);
    let record: TrainingRecord = serde_json::from_slice(&files[TRAINING_FILE]).unwrap();
    assert_eq!(record.base_hash, input.base_hash);
    assert_eq!((record.examples, record.replay, record.heldout), (vec![1, 2, 3], vec![4], vec![5]));
    assert_eq!(record.params, input.params);
    // serde_json reads a number's last digit as it likes.
    assert_eq!(format!("{:.9?}", record.measurements), format!("{measured:.9?}"));
    assert_eq!(measured.trained.iter().map(|i| i.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(measured.heldout.iter().map(|i| i.id).collect::<Vec<_>>(), [5]);
    assert!(!measured.general.is_empty() && measured.kl > 0.0 && measured.final_loss.is_finite());
    let mean = |f: fn(&shammah::eval::ItemLoss) -> f64| measured.trained.iter().map(f).sum::<f64>();
    assert!(mean(|i| i.after) < mean(|i| i.before), "it learns");
}

#[test]
fn training_goes_on_from_a_parent_and_measures_against_the_live_adapter() {
    let shop = Workshop::new();
    let first = shop.run(&shop.input(), "first", None).0.unwrap();
    let parent = Some(shop.path("first"));
    let params = TrainingParams { rank: 16, ..params() };
    let next = JobInput { parent: parent.clone(), baseline: parent, params, ..shop.input() };
    let (second, events) = shop.run(&next, "second", None);
    let before: Vec<f64> = second.unwrap().trained.iter().map(|i| i.before).collect();
    let after: Vec<f64> = first.trained.iter().map(|i| i.after).collect();
    assert_eq!(before, after, "the live adapter is what the new one must beat");
    let config: Value =
        serde_json::from_slice(&shop.files("second")["adapter_config.json"]).unwrap();
    assert_eq!(config["r"], 2, "a continued adapter keeps its rank");
    let told = |e: &JobEvent| matches!(e, JobEvent::Note(n) if n.contains("rank 2"));
    assert!(events.iter().any(told), "and the user is told: {events:?}");
}

#[test]
fn a_difference_is_trained_on_a_frozen_adapter_and_their_sum_is_published_at_its_rank() {
    let shop = Workshop::new();
    shop.run(&shop.input(), "first", None).0.unwrap();
    let frozen = shop.files("first");
    let parent = Some(shop.path("first"));
    let params = TrainingParams {
        rank: 3,
        target_modules: vec!["q_proj".to_owned(), "v_proj".to_owned()],
        ..params()
    };
    let next =
        JobInput { parent: parent.clone(), baseline: parent, delta: true, params, ..shop.input() };
    let (result, events) = shop.run(&next, "second", None);
    let measured = result.unwrap();
    let mean = |f: fn(&shammah::eval::ItemLoss) -> f64| measured.trained.iter().map(f).sum::<f64>();
    assert!(mean(|i| i.after) < mean(|i| i.before), "it goes on learning: {measured:?}");
    assert_eq!(shop.files("first"), frozen, "the adapter before stays as it was");

    let files = shop.files("second");
    let record: TrainingRecord = serde_json::from_slice(&files[TRAINING_FILE]).unwrap();
    let error = record.compression_error.unwrap();
    assert!(error > 0.0 && error < 1.0, "{error}");
    let told = format!("leaves out {:.2} %", error * 100.0);
    assert!(
        events.iter().any(|e| matches!(e, JobEvent::Note(n) if n.contains(&told))),
        "{events:?}"
    );
    let config: Value = serde_json::from_slice(&files["adapter_config.json"]).unwrap();
    assert_eq!(config["r"], 2);
    assert_eq!(config["target_modules"], json!(["q_proj", "down_proj", "v_proj"]));
    // Where only the difference acts it keeps its own rank.
    let ranks = config["rank_pattern"].as_object().unwrap();
    assert!(
        !ranks.is_empty() && ranks.iter().all(|(k, v)| k.ends_with("v_proj") && *v == 3),
        "{ranks:?}"
    );

    shop.run(&next, "stopped", Some(3)).0.unwrap_err();
    assert_eq!(shop.run(&next, "stopped", None).0.unwrap(), measured);
    assert_eq!(shop.files("stopped"), files, "also when it was interrupted");
}

#[test]
fn training_is_compared_with_the_note_in_the_prompt_on_what_is_held_out_or_else_on_what_is_new() {
    let shop = Workshop::new();
    let ids = |measured: &Measurements| measured.prompted.iter().map(|i| i.id).collect::<Vec<_>>();
    let input = shop.input();
    let plain = shop.run(&input, "plain", None).0.unwrap();
    assert_eq!(ids(&plain), [0; 0], "nothing was said about any");
    let said = |id| (id, "Say a tree.".to_owned());
    let notes: BTreeMap<i64, String> = [said(2), said(3), said(5)].into();
    let noted = JobInput { notes: notes.clone(), ..input.clone() };
    let noted = shop.run(&noted, "noted", None).0.unwrap();
    assert_eq!(ids(&noted), [5]);
    assert_eq!(noted.prompted[0].after, noted.heldout[0].after);
    assert_ne!(noted.prompted[0].before, noted.heldout[0].before, "the note is what is told");
    assert_eq!(noted.heldout, plain.heldout, "and nothing is trained on it");
    let none = JobInput { heldout: Vec::new(), notes, ..input };
    assert_eq!(ids(&shop.run(&none, "none", None).0.unwrap()), [2, 3]);
}

#[test]
fn a_job_without_new_examples_learns_the_old_ones_again() {
    let shop = Workshop::new();
    let input = shop.input();
    let replay = input.train.clone();
    let again = JobInput { train: Vec::new(), replay, ..input };
    let measured = shop.run(&again, "again", None).0.unwrap();
    assert_eq!(measured.trained.iter().map(|i| i.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(measured.examples, 3);
}

fn failure(shop: &Workshop, input: &JobInput) -> String {
    let error = shop.run(input, "failed", None).0.unwrap_err().to_string();
    assert!(shop.files("failed").is_empty(), "nothing is written");
    error
}

#[test]
fn inputs_that_cannot_be_trained_on_are_refused_in_words() {
    let shop = Workshop::new();
    let input = shop.input();
    let changed = JobInput { base_hash: "0".repeat(64), ..input.clone() };
    assert!(failure(&shop, &changed).contains("changed since the job was enqueued"));
    let mut overlap = input.clone();
    overlap.heldout.push(overlap.replay[0].clone());
    assert!(failure(&shop, &overlap).contains("example 4 is held out and trained on"));
    let mut empty = input.clone();
    empty.train.iter_mut().for_each(|e| e.target.clear());
    let why = failure(&shop, &empty);
    assert!(why.contains("no example has an answer to learn (example "), "{why}");
    let forgotten = JobInput { train: Vec::new(), replay: Vec::new(), ..input.clone() };
    assert!(failure(&shop, &forgotten).contains("all its examples were forgotten"));

    shop.run(&input, "parent", None).0.unwrap();
    let record = shop.path("parent").join(TRAINING_FILE);
    let text = fs_err::read_to_string(&record).unwrap().replace(&input.base_hash, &"1".repeat(64));
    fs_err::write(&record, text).unwrap();
    let foreign = JobInput { parent: Some(shop.path("parent")), ..input };
    let error = failure(&shop, &foreign);
    assert!(error.contains("training.json: it was trained on another base model"), "{error}");
}

#[test]
fn a_loss_that_is_no_number_fails_the_job_and_names_step_and_examples() {
    let shop = Workshop::new();
    let mut input = shop.input();
    let parent = shop.path("parent");
    shop.run(&input, "parent", None).0.unwrap();
    poison(&parent.join("adapter_model.safetensors"));
    input.parent = Some(parent);
    let error = failure(&shop, &input);
    assert!(error.contains("the loss became NaN at step 1 (examples ["), "{error}");
    assert!(error.contains("lower lora.training.learning_rate"), "{error}");
    assert!(!shop.path("failed-checkpoint").exists(), "nothing to go on from");
}

/// Makes the numbers of an adapter so large that their products have none; each by itself is finite.
fn poison(file: &Path) {
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let huge = tensors.into_iter().map(|(name, t)| {
        let values = (0..t.elem_count()).map(|i| if i % 2 == 0 { 1e30 } else { -1e30 });
        (name, Tensor::from_vec(values.collect::<Vec<_>>(), t.shape(), &Device::Cpu).unwrap())
    });
    candle_core::safetensors::save(&huge.collect::<HashMap<_, _>>(), file).unwrap();
}

#[test]
fn a_rate_that_diverges_ends_training_early_and_the_gate_rejects_the_adapter() {
    let shop = Workshop::new();
    let params =
        TrainingParams { learning_rate: 1.0, max_grad_norm: 0.0, min_steps: 60, ..params() };
    // A model that knows the answers: the random one has nothing to lose.
    let (model, base_hash) =
        (ModelSource::Builtin, base_hash(&ModelSource::Builtin, None).unwrap());
    let mut input = JobInput { params, model, base_hash, ..shop.input() };
    let known = |id, question: &str, answer: &str| TrainExample {
        id,
        messages: vec![Message::user(question)],
        target: answer.to_owned(),
        weight: 1.0,
    };
    input.train = vec![
        known(1, "How do I undo a mark?", "/undo takes back your last mark."),
        known(2, "What weight has /critical?", "/critical has weight 10, the highest."),
    ];
    (input.replay, input.heldout) = (Vec::new(), Vec::new());
    let (result, events) = shop.run(&input, "wild", None);
    let measured = result.expect("no failed job");
    let at = measured.exploded_at.expect("seen");
    assert!(at < 60 && measured.steps <= at, "stopped at {at} after {} steps", measured.steps);
    let told =
        |e: &JobEvent| matches!(e, JobEvent::Note(n) if n.contains("training stopped early"));
    assert!(events.iter().any(told), "{events:?}");
    let config = GateConfig {
        max_kl: 1e9,
        max_taken_over: 1.0,
        rule_max_kl: 1e9,
        confidence: 0.95,
        bootstrap_samples: 100,
    };
    let Verdict::Reject { reasons } = gate(&measured, &config).1 else { panic!("{measured:?}") };
    assert!(reasons.iter().any(|r| r.contains("training diverged")), "{reasons:?}");

    // A run that is killed and goes on stops at the same step.
    shop.run(&input, "resumed", Some(3)).0.unwrap_err();
    let resumed = shop.run(&input, "resumed", None).0.unwrap();
    assert_eq!((resumed.exploded_at, resumed.steps), (Some(at), measured.steps));
    let tame = shop.run(&shop.input(), "tame", None).0.unwrap();
    assert_eq!(tame.exploded_at, None);
}

#[test]
fn one_example_alone_is_learned() {
    let shop = Workshop::new();
    let mut input = shop.input();
    input.train.truncate(1);
    (input.replay, input.heldout) = (Vec::new(), Vec::new());
    let measured = shop.run(&input, "one", None).0.unwrap();
    assert_eq!((measured.steps, measured.trained.len(), measured.examples), (STEPS, 1, 1));
    assert!(measured.trained[0].after < measured.trained[0].before);
    assert!(measured.final_loss.is_finite() && measured.heldout.is_empty());
}

#[test]
fn an_example_twice_is_learned_once_with_both_weights() {
    let shop = Workshop::new();
    let input = shop.input();
    let twin = |of: &TrainExample, id, weight| TrainExample { id, weight, ..of.clone() };
    let mut joined = input.clone();
    joined.train[0].weight += 2.5;
    let mut doubled = input.clone();
    doubled.train.push(twin(&input.train[0], 11, 2.0));
    doubled.replay.insert(0, twin(&input.train[0], 12, 0.5));
    doubled.heldout.push(twin(&input.train[1], 13, 1.0));
    let expected = shop.run(&joined, "joined", None).0.unwrap();
    let (measured, events) = shop.run(&doubled, "doubled", None);
    assert_eq!(measured.unwrap(), expected, "as one example of the sum of the weights");
    let weights = "adapter_model.safetensors";
    assert_eq!(shop.files("doubled")[weights], shop.files("joined")[weights]);
    let notes: Vec<_> = events
        .iter()
        .filter_map(|e| if let JobEvent::Note(n) = e { Some(n.as_str()) } else { None })
        .collect();
    let learned = "learned as one, with their weights added to";
    assert_eq!(
        notes,
        [
            &format!("example 11 repeats example 1: {learned} 3"),
            &format!("example 12 repeats example 1: {learned} 3.5"),
            "held-out example 13 repeats example 2, which is trained on: it was left out",
        ]
    );
    let record: TrainingRecord =
        serde_json::from_slice(&shop.files("doubled")[TRAINING_FILE]).unwrap();
    assert_eq!(record.examples, [1, 2, 3, 11], "both ids are reported");
}

#[test]
fn a_job_that_cannot_fit_is_refused_with_the_setting_that_makes_it_fit() {
    let shop = Workshop::new();
    let within = |bytes| MemoryBudget { bytes, ..MemoryBudget::default() };
    let input = JobInput { memory: within(30 << 20), ..shop.input() };
    let error = failure(&shop, &input);
    let advised: u64 = error
        .split_once("set lora.training.memory_limit_mb to ")
        .and_then(|(_, rest)| rest.split_once(" at least"))
        .and_then(|(number, _)| number.parse().ok())
        .unwrap_or_else(|| panic!("{error}"));
    let input = JobInput { memory: within(advised << 20), ..shop.input() };
    let (result, events) = shop.run(&input, "advised", None);
    result.expect("what is advised is enough");
    let planned = events.iter().find_map(|e| match e {
        JobEvent::Planned { bytes, .. } => Some(*bytes),
        _ => None,
    });
    assert!(planned.is_some_and(|bytes| bytes <= advised << 20), "{planned:?}");
}

#[test]
fn an_attempt_after_one_that_ran_out_of_memory_goes_on_with_a_smaller_plan() {
    let shop = Workshop::new();
    let mut input = shop.input();
    // Dropout draws by place, which another plan changes.
    input.params.dropout = 0.0;
    let whole = shop.run(&input, "whole", None).0.unwrap();
    for (deaths, says) in [(1, "layers twice because"), (2, "1 example at a time, because")] {
        let out = format!("starved-{deaths}");
        shop.run(&input, &out, Some(3)).0.unwrap_err();
        let memory = MemoryBudget { deaths, ..MemoryBudget::default() };
        let starved = JobInput { memory, ..input.clone() };
        let (result, events) = shop.run(&starved, &out, None);
        let told = |e: &JobEvent| matches!(e, JobEvent::Note(n) if n.contains(says));
        assert!(events.iter().any(told), "{says}: {events:?}");
        let steps = events.iter().filter(|e| matches!(e, JobEvent::Step(_))).count();
        assert_eq!(steps, STEPS - 3, "it goes on from the checkpoint");
        let measured = result.unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-3 * b.abs();
        assert!(close(measured.final_loss, whole.final_loss), "{measured:?} {whole:?}");
        assert!(close(measured.trained[0].after, whole.trained[0].after));
    }
}

#[test]
fn a_job_reads_no_file_but_those_it_is_given() {
    let shop = Workshop::new();
    let missing = JobInput { parent: Some(Path::new("/no/such/adapter").into()), ..shop.input() };
    assert!(failure(&shop, &missing).contains("/no/such/adapter/adapter_config.json"));
}
