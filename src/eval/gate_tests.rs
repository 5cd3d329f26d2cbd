use super::*;
use crate::eval::NeighbourLoss;

const CONFIG: GateConfig = GateConfig {
    max_kl: 0.1,
    max_taken_over: 0.25,
    rule_max_kl: 0.4,
    confidence: 0.95,
    bootstrap_samples: 500,
};

fn items(pairs: &[(f64, f64)]) -> Vec<ItemLoss> {
    let item =
        |(i, &(before, after)): (usize, &(f64, f64))| ItemLoss { id: i as i64, before, after };
    pairs.iter().enumerate().map(item).collect()
}

/// Measurements of an adapter that learned well and changed nothing else.
fn good() -> Measurements {
    Measurements {
        trained: items(&[(4.0, 0.1), (3.0, 0.2), (5.0, 0.1)]),
        heldout: items(&[(2.0, 1.0), (2.1, 1.4), (1.8, 1.8)]),
        general: items(&[(0.2, 0.21), (0.3, 0.29)]),
        prompted: Vec::new(),
        neighbours: Vec::new(),
        rule: false,
        kl: 0.01,
        final_loss: 0.1,
        steps: 60,
        examples: 3,
        exploded_at: None,
    }
}

fn reasons(measurements: &Measurements) -> Vec<String> {
    let (report, verdict) = gate(measurements, &CONFIG);
    match verdict {
        Verdict::Promote(_) => {
            assert!(report.promoted && report.reasons.is_empty());
            Vec::new()
        }
        Verdict::Reject { reasons } => {
            assert!(!report.promoted);
            assert_eq!(report.reasons, reasons);
            reasons
        }
    }
}

#[track_caller]
fn rejected_for(measurements: &Measurements, words: &str) {
    let reasons = reasons(measurements);
    assert!(reasons.iter().any(|r| r.contains(words)), "{words:?} not in {reasons:?}");
}

#[test]
fn what_learned_and_changed_nothing_else_passes() {
    assert_eq!(reasons(&good()), Vec::<String>::new());
    let without_heldout = Measurements { heldout: Vec::new(), ..good() };
    assert_eq!(reasons(&without_heldout), Vec::<String>::new());
}

#[test]
fn what_did_not_learn_is_rejected() {
    rejected_for(&Measurements { trained: items(&[(1.0, 1.2), (1.0, 1.1)]), ..good() }, "learn");
    rejected_for(&Measurements { trained: items(&[(1.0, 1.0)]), ..good() }, "learn");
    rejected_for(&Measurements { trained: Vec::new(), ..good() }, "learn");
    rejected_for(&Measurements { trained: items(&[(0.004, 0.004)]), ..good() }, "knew the new");
    // A lower mean by one item, while most got worse, is no lesson learned.
    let uneven = items(&[(5.0, 0.1), (1.0, 1.2), (1.0, 1.2)]);
    rejected_for(&Measurements { trained: uneven, ..good() }, "learn");
}

#[test]
fn held_out_items_may_waver_but_not_get_worse_beyond_the_interval() {
    let worse = items(&[(1.0, 1.9), (1.0, 2.0), (1.0, 2.1), (1.0, 2.0)]);
    rejected_for(&Measurements { heldout: worse, ..good() }, "held-out");
    let wavering = items(&[(1.0, 1.5), (1.5, 0.9), (1.0, 1.3), (1.2, 0.8)]);
    assert_eq!(reasons(&Measurements { heldout: wavering, ..good() }), Vec::<String>::new());
}

#[test]
fn training_that_exploded_is_rejected_whatever_it_reached() {
    rejected_for(&Measurements { exploded_at: Some(17), ..good() }, "stopped at step 17");
}

#[test]
fn the_divergence_has_a_ceiling() {
    assert_eq!(reasons(&Measurements { kl: CONFIG.max_kl, ..good() }), Vec::<String>::new());
    rejected_for(&Measurements { kl: CONFIG.max_kl * 1.01, ..good() }, "unrelated");
    rejected_for(&Measurements { kl: f64::NAN, ..good() }, "unrelated");
}

#[test]
fn a_rule_for_every_answer_may_change_more_and_never_less_than_others() {
    let rule = |kl| Measurements { rule: true, kl, ..good() };
    assert_eq!(reasons(&rule(CONFIG.rule_max_kl)), Vec::<String>::new());
    rejected_for(&rule(CONFIG.rule_max_kl * 1.01), "unrelated");
    assert_eq!(gate(&rule(0.2), &CONFIG).0.max_kl, CONFIG.rule_max_kl, "what held is told");
    let lenient = GateConfig { max_kl: 9.0, ..CONFIG };
    assert!(gate(&rule(8.0), &lenient).0.promoted);
}

#[test]
fn no_number_passes_that_is_none() {
    for bad in [f64::NAN, f64::INFINITY] {
        rejected_for(
            &Measurements { trained: items(&[(4.0, 0.1), (bad, 0.1)]), ..good() },
            "no number",
        );
        rejected_for(&Measurements { heldout: items(&[(4.0, bad)]), ..good() }, "no number");
        rejected_for(&Measurements { general: items(&[(4.0, bad)]), ..good() }, "no number");
    }
}

#[test]
fn each_reason_says_what_to_do() {
    let bad = Measurements {
        trained: items(&[(1.0, 1.2)]),
        heldout: items(&[(1.0, 1.9), (1.0, 2.0), (1.0, 2.1)]),
        kl: 0.4,
        exploded_at: Some(3),
        ..good()
    };
    let all = reasons(&bad);
    assert_eq!(all.len(), 4, "{all:?}");
    for (reason, remedy) in
        all.iter().zip(["learning_rate", "contradict", "mark more", "lora.training.anchor"])
    {
        assert!(reason.contains(remedy), "{remedy:?} not in {reason:?}");
    }
}

#[test]
fn a_prompt_that_does_better_is_named_and_decides_nothing() {
    let told = |pairs: &[(f64, f64)]| {
        let (report, verdict) = gate(&Measurements { prompted: items(pairs), ..good() }, &CONFIG);
        assert!(matches!(verdict, Verdict::Promote(_)), "a comparison, not a condition");
        assert!(report.to_string().contains(&report.against_prompt().unwrap()), "{report}");
        report.against_prompt().unwrap()
    };
    let wins = told(&[(0.1, 0.5), (0.2, 0.6), (0.1, 0.4)]);
    assert!(
        wins.contains("0 better, 3 worse") && wins.contains("the prompt does better"),
        "{wins}"
    );
    assert!(told(&[(2.0, 0.5), (1.9, 0.6), (2.1, 0.4)]).contains("training does better"));
    assert!(told(&[(0.4, 0.5), (0.7, 0.6), (0.5, 0.5)]).contains("no clear difference"));
    assert_eq!(gate(&good(), &CONFIG).0.against_prompt(), None);
}

#[test]
fn tiny_differences_are_ties() {
    let compared = Comparison::of(&items(&[(1.0, 1.0005), (1.0, 0.9995), (1.0, 0.9)]), &CONFIG);
    assert_eq!((compared.better, compared.worse, compared.equal), (1, 0, 2));
}

#[test]
fn the_interval_holds_the_mean_and_repeats() {
    let pairs = items(&[(1.0, 0.2), (1.0, 0.9), (1.0, 1.3), (1.0, 0.5), (1.0, 0.7)]);
    let (first, second) = (Comparison::of(&pairs, &CONFIG), Comparison::of(&pairs, &CONFIG));
    assert_eq!(first, second);
    let mean = first.after - first.before;
    assert!(first.interval.0 < mean && mean < first.interval.1, "{first:?}");
    let certain = Comparison::of(&items(&[(1.0, 0.5); 4]), &CONFIG);
    assert_eq!(certain.interval, (-0.5, -0.5));
}

#[test]
fn invariant_4_a_report_read_from_data_promotes_nothing() {
    // A report may say "promoted"; only the verdict of the gate holds the proof.
    let (mut report, _) = gate(&Measurements { kl: 9.0, ..good() }, &CONFIG);
    report.promoted = true;
    let json = serde_json::to_string(&report).expect("a report is data");
    let read: GateReport = serde_json::from_str(&json).expect("and can be read");
    assert!(read.promoted);
    assert!(matches!(gate(&Measurements { kl: 9.0, ..good() }, &CONFIG).1, Verdict::Reject { .. }));
}

#[test]
fn what_answers_questions_about_something_else_with_the_taught_is_rejected() {
    let with = |taken: usize| {
        let loss = |i| NeighbourLoss { id: 1, own: 1.0, taught: if i < taken { 0.5 } else { 1.0 } };
        Measurements { neighbours: (0..8).map(loss).collect(), ..good() }
    };
    assert_eq!(reasons(&with(2)), Vec::<String>::new());
    rejected_for(&with(3), "3 of 8 questions like the taught ones");
    rejected_for(&with(3), "at most 2 may");
    let (report, _) = gate(&with(2), &CONFIG);
    assert_eq!(report.taken_over, Some((2, 8)));
    assert!(report.to_string().contains("begin with a taught answer (at most 2)"), "{report}");
    let broken = NeighbourLoss { id: 1, own: f64::NAN, taught: 1.0 };
    rejected_for(&Measurements { neighbours: vec![broken], ..good() }, "no number");
}
