use std::path::Path;

use super::*;

/// The shape of Qwen2.5-0.5B.
fn model() -> ModelConfig {
    let text = r#"{"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768, "tie_word_embeddings": true}"#;
    ModelConfig::parse(text, Path::new("config.json")).unwrap()
}

/// The step of `bench train` that was measured: 1007 tokens (and the last of each), 691 of them answers.
fn job() -> Workload {
    let load = |tokens, answers| Load { tokens, answers };
    let items = vec![load(250, 173), load(251, 173), load(251, 173), load(251, 172)];
    let steps = vec![Step { items, anchors: Vec::new() }; 3];
    Workload {
        model: model(),
        model_bytes: 988_097_824,
        rank: 16,
        modules: Module::ALL.to_vec(),
        steps,
        measured: Vec::new(),
        general: Vec::new(),
        anchors: Vec::new(),
    }
}

fn plan(checkpointed_layers: usize, micro_batch: usize) -> MemoryPlan {
    MemoryPlan { checkpointed_layers, micro_batch }
}

#[test]
fn the_peak_of_a_measured_step_is_met() {
    // Peak resident bytes of `shammah bench train` on this shape, on two cores.
    for (plan, measured) in [(plan(0, 0), 2.80e9), (plan(24, 0), 1.45e9)] {
        let ratio = job().peak_bytes(plan) as f64 / measured;
        assert!((0.95..1.1).contains(&ratio), "{plan:?}: {ratio} of {measured}");
    }
}

#[test]
fn a_plan_costs_no_more_time_than_the_budget_asks_for() {
    let job = job();
    let fitting = |budget: u64| MemoryPlan::fitting(&job, budget);
    let whole = job.peak_bytes(plan(0, 0));
    assert_eq!(fitting(whole), Ok(plan(0, 0)));
    let one = fitting(whole - 1).unwrap();
    assert_eq!(one, plan(1, 0), "the fewest layers twice");
    let all = job.peak_bytes(plan(24, 0));
    assert_eq!(fitting(all - 1), Ok(plan(24, 2)), "then half of the batch");
    let halved = job.peak_bytes(plan(24, 2));
    assert_eq!(fitting(halved - 1), Ok(plan(24, 1)));
    assert!(job.training_flops(0, plan(24, 0)) > job.training_flops(0, plan(1, 0)));
}

#[test]
fn a_plan_that_is_found_fits_and_a_refusal_names_what_would() {
    let job = job();
    let least = job.peak_bytes(plan(24, 1));
    for budget in (0..50).map(|i| least + i * (64 << 20)) {
        let plan = MemoryPlan::fitting(&job, budget).unwrap();
        assert!(job.peak_bytes(plan) <= budget);
    }
    let refused = MemoryPlan::fitting(&job, least - 1).unwrap_err();
    assert_eq!((refused.needed, refused.longest), (least, 252));
    assert!(refused.fitting < 252 && refused.fitting > 150, "{refused:?}");
    // What is named would fit.
    let mut shorter = job.clone();
    let load = Load { tokens: refused.fitting - 1, answers: refused.fitting - 1 };
    shorter.steps = vec![Step { items: vec![load; 4], anchors: Vec::new() }];
    assert!(MemoryPlan::fitting(&shorter, least - 1).is_ok());
    let hopeless = MemoryPlan::fitting(&job, 1 << 20).unwrap_err();
    assert_eq!(hopeless.fitting, 0, "the model alone is larger");
}

#[test]
fn after_a_death_layers_are_computed_twice_and_then_batches_halved() {
    let job = job();
    let mut plans = vec![plan(3, 0)];
    while let Some(next) = plans[plans.len() - 1].smaller(&job) {
        assert!(job.peak_bytes(next) < job.peak_bytes(plans[plans.len() - 1]));
        plans.push(next);
    }
    assert_eq!(plans, [plan(3, 0), plan(24, 0), plan(24, 2), plan(24, 1)]);
}

#[test]
fn anchors_count_with_the_batch_and_hold_two_logits() {
    let mut anchored = job();
    let load = Load { tokens: 200, answers: 150 };
    anchored.steps.iter_mut().for_each(|s| s.anchors = vec![load; 2]);
    anchored.anchors = vec![load; 8];
    let (without, with) = (job().peak_bytes(plan(24, 0)), anchored.peak_bytes(plan(24, 0)));
    assert!(with > without);
    let half = MemoryPlan { micro_batch: 3, ..plan(24, 0) };
    assert_eq!(plan(24, 0).smaller(&anchored), Some(half), "six sequences of a step");
    assert!(anchored.training_flops(0, plan(0, 0)) > job().training_flops(0, plan(0, 0)));
}

#[test]
fn operations_count_weights_tokens_and_the_steps_that_are_left() {
    let mut job = job();
    job.rank = 0;
    let c = model();
    let layers = (24 * (2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * c.intermediate_size)) as f64;
    let head = (896 * c.vocab_size) as f64;
    let (tokens, answers) = (1003.0, 691.0);
    let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
    let step = 4.0 * layers * tokens + 4.0 * head * answers;
    close(job.training_flops(0, plan(0, 0)), 3.0 * step);
    close(job.training_flops(2, plan(0, 0)), step);
    close(job.training_flops(2, plan(24, 0)), step + 2.0 * layers * tokens);
    assert_eq!(job.training_flops(3, plan(0, 0)), 0.0);
    let load = Load { tokens: 100, answers: 10 };
    (job.measured, job.general) = (vec![load], vec![load]);
    let (forward, logits) = (2.0 * layers * 100.0, 2.0 * head * 10.0);
    close(job.flops_before(), forward + logits);
    close(job.flops_after(), 3.0 * forward + 5.0 * logits);
}

#[test]
fn a_criticised_answer_counts_beside_the_better_one() {
    let sequence =
        |id, tokens: usize| Sequence { id, ids: vec![7; tokens], answer_start: 3, weight: 1.0 };
    let train = [sequence(1, 10), sequence(2, 8)];
    let batch = Batch { epoch: 1, items: vec![1, 0], anchors: Vec::new() };
    let step = Step::of(&batch, &train, &[]).with_rejected(&batch, &[Some(sequence(1, 6)), None]);
    let load = |tokens, answers| Load { tokens, answers };
    assert_eq!(step.items, [load(7, 5), load(9 + 5, 7 + 3)]);
}
