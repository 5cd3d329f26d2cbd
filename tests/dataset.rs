//! From marked answers to what the loss sees: masks, cuts, weights, order.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

use candle_core::Device;
use proptest::prelude::*;
use shammah::domain::{Message, TrainExample};
use shammah::lora::Preference;
use shammah::lora::dataset::{Sequence, encode, epoch_order, normalised_weights};
use shammah::lora::trainer::{batches, loss_weights};
use shammah::lora::{FORMS, TrainingParams, Weighting};
use shammah::models::{ModelSource, Tokenizer, load};

fn tokenizer() -> std::sync::Arc<Tokenizer> {
    load(&ModelSource::Builtin, &Device::Cpu, None).unwrap().tokenizer
}

fn example(messages: Vec<Message>, target: &str) -> TrainExample {
    TrainExample { id: 7, messages, target: target.to_owned(), weight: 3.0 }
}

fn params(weighting: Weighting) -> TrainingParams {
    TrainingParams {
        rank: 4,
        alpha: 8.0,
        rslora: false,
        dora: false,
        dropout: 0.0,
        target_modules: vec!["q_proj".to_owned()],
        learning_rate: 1e-3,
        batch_size: 4,
        epochs: 3,
        min_steps: 0,
        weighting,
        preference: Preference::OFF,
        warmup_ratio: 0.0,
        seed: 5,
        max_grad_norm: 1.0,
        weight_decay: 0.0,
        anchor: 0.0,
        anchor_prompts: 2,
        max_share: 0.3,
        checkpoint_every_steps: 10,
        paraphrase: false,
        neighbour_prompts: 0,
    }
}

fn sequences(weights: &[f64]) -> Vec<Sequence> {
    let sequence =
        |(id, &weight)| Sequence { id: id as i64, ids: vec![1, 2, 3], answer_start: 1, weight };
    weights.iter().enumerate().map(sequence).collect()
}

#[test]
fn only_the_answer_and_its_end_of_turn_are_targets() {
    let tokenizer = tokenizer();
    let messages = vec![Message::system("Be brief."), Message::user("Who are you?")];
    let dataset = encode(&[example(messages.clone(), "A test.")], &tokenizer, 512).unwrap();
    assert!(dataset.notes.is_empty());
    let sequence = &dataset.sequences[0];
    let prompt = tokenizer.render_chat(&messages, true).unwrap();
    let (asked, answer) = sequence.ids.split_at(sequence.answer_start);
    assert_eq!(asked, prompt, "all of the prompt and the template is masked");
    let mut expected = tokenizer.encode_text("A test.").unwrap();
    expected.push(*sequence.ids.last().unwrap());
    assert!(tokenizer.stop_ids().contains(expected.last().unwrap()));
    assert_eq!(answer, expected);
    assert_eq!(sequence.answer_tokens(), answer.len());
    assert_eq!((sequence.id, sequence.weight), (7, 3.0));
}

#[test]
fn a_long_conversation_is_cut_between_messages_and_keeps_its_instructions() {
    let tokenizer = tokenizer();
    let messages = vec![
        Message::system("Be brief."),
        Message::user("one ".repeat(40)),
        Message::assistant("two ".repeat(40)),
        Message::user("three"),
    ];
    let whole = encode(&[example(messages.clone(), "four")], &tokenizer, 4096).unwrap();
    let length = whole.sequences[0].ids.len();
    let fits = encode(&[example(messages.clone(), "four")], &tokenizer, length).unwrap();
    assert_eq!((fits.sequences.len(), fits.notes.len()), (1, 0));
    let cut = encode(&[example(messages.clone(), "four")], &tokenizer, length - 1).unwrap();
    let kept = vec![messages[0].clone(), messages[3].clone()];
    let (expected, start) = tokenizer.encode_answer(&kept, "four").unwrap();
    assert_eq!((&cut.sequences[0].ids, cut.sequences[0].answer_start), (&expected, start));
    assert!(cut.notes[0].contains("example 7") && cut.notes[0].contains("oldest 2 messages"));
}

#[test]
fn what_cannot_be_taken_is_noted_and_skipped() {
    let tokenizer = tokenizer();
    let ask = || vec![Message::user("Hi")];
    let zero = TrainExample { weight: 0.0, ..example(ask(), "x") };
    let nan = TrainExample { weight: f64::NAN, ..example(ask(), "x") };
    let examples = [
        example(ask(), ""),
        example(ask(), " \n"),
        example(ask(), &"long ".repeat(200)),
        zero,
        nan,
        example(ask(), "fine"),
    ];
    let dataset = encode(&examples, &tokenizer, 64).unwrap();
    assert_eq!(dataset.sequences.len(), 1);
    assert_eq!(dataset.notes.len(), 5);
    assert!(dataset.notes[0].contains("empty answer"), "{:?}", dataset.notes);
    assert!(dataset.notes[2].contains("does not fit in 64 tokens"), "{:?}", dataset.notes);
    assert!(dataset.notes[3].contains("weight 0"), "{:?}", dataset.notes);
}

/// What an example counts in an epoch: its factor on the loss times how often it is drawn.
fn shares(weights: &[f64], params: &TrainingParams, epochs: usize) -> Vec<f64> {
    let train = sequences(weights);
    let factors = loss_weights(&train, params);
    let params = TrainingParams { epochs, ..params.clone() };
    let mut seen = vec![0.0; weights.len()];
    for batch in batches(&train, 0, &params) {
        batch.items.iter().for_each(|&i| seen[i] += factors[i]);
    }
    seen
}

#[test]
fn doubling_a_weight_doubles_its_ratio_and_not_its_square() {
    let before = [1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    let mut after = before;
    after[2] = 4.0;
    for (weighting, epochs, tolerance) in
        [(Weighting::Loss, 1, 1e-9), (Weighting::Sampling, 4_000, 0.05)]
    {
        let params = TrainingParams { max_share: 1.0, ..params(weighting) };
        let ratio = |weights: &[f64]| {
            let shares = shares(weights, &params, epochs);
            shares[2] / shares[0]
        };
        let (before, after) = (ratio(&before), ratio(&after));
        assert!((before / 2.0 - 1.0).abs() < tolerance, "{weighting:?}: {before}");
        assert!((after / before / 2.0 - 1.0).abs() < tolerance, "{weighting:?}: {before} {after}");
    }
}

#[test]
fn one_example_has_at_most_its_share_of_an_epoch() {
    for weighting in [Weighting::Loss, Weighting::Sampling] {
        for (weights, cap) in [
            (vec![100.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 0.3),
            // Of three, 2/3 is the larger bound; of one or two, everything.
            (vec![100.0, 1.0, 1.0], 2.0 / 3.0),
            (vec![100.0, 1.0], 100.0 / 101.0),
            (vec![100.0], 1.0),
        ] {
            let shares = shares(&weights, &params(weighting), 3_000);
            let share = shares[0] / shares.iter().sum::<f64>();
            assert!((share - cap).abs() < 0.02, "{weighting:?} {weights:?}: {share}");
        }
    }
}

#[test]
fn an_epoch_shows_each_example_once_and_its_order_is_repeatable() {
    let train = sequences(&[1.0, 3.0, 10.0, 1.0, 1.0, 3.0]);
    let params = params(Weighting::Loss);
    let plan = batches(&train, 3, &params);
    assert_eq!(plan, batches(&train, 3, &params));
    assert_eq!(plan.len(), 6, "three epochs of two batches");
    for epoch in 1..=3 {
        let of_epoch = plan.iter().filter(|b| b.epoch == epoch);
        let mut seen: Vec<usize> = of_epoch.flat_map(|b| b.items.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
    }
    let order = |seed| epoch_order(&[1.0; 20], Weighting::Loss, seed, 0);
    assert_ne!(order(1), order(2));
    let mut anchors: Vec<usize> = plan.iter().flat_map(|b| b.anchors.clone()).collect();
    anchors.sort_unstable();
    assert_eq!(anchors, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], "anchors take turns");
    let least = TrainingParams { min_steps: 9, ..params };
    assert_eq!(batches(&train, 0, &least).len(), 10, "whole epochs, at least so many steps");
}

#[test]
fn each_epoch_asks_in_the_next_form_and_weighs_all_forms_alike() {
    let weights = [1.0, 3.0, 10.0, 1.0, 1.0];
    let train = sequences(&weights.repeat(FORMS));
    for weighting in [Weighting::Loss, Weighting::Sampling] {
        let plain = params(weighting);
        let forms = TrainingParams { paraphrase: true, ..plain.clone() };
        let of_plain = loss_weights(&train[..5], &plain);
        assert_eq!(loss_weights(&train, &forms), of_plain.repeat(FORMS));
        let (one, all) = (batches(&train[..5], 0, &plain), batches(&train, 0, &forms));
        assert_eq!(one.len(), all.len(), "it costs no step");
        for (a, b) in one.iter().zip(&all) {
            let shifted: Vec<usize> =
                a.items.iter().map(|i| i + 5 * ((a.epoch - 1) % FORMS)).collect();
            assert_eq!(shifted, b.items);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn normalised_weights_have_mean_one_and_keep_their_order(
        weights in proptest::collection::vec(0.1f64..1000.0, 1..40),
        max_share in 0.05f64..1.0,
    ) {
        let n = weights.len() as f64;
        let normalised = normalised_weights(&weights, max_share);
        prop_assert!((normalised.iter().sum::<f64>() / n - 1.0).abs() < 1e-9);
        let cap = max_share.max(2.0 / n).min(1.0) * n;
        prop_assert!(normalised.iter().all(|w| *w > 0.0 && *w <= cap * (1.0 + 1e-9)));
        for (i, a) in weights.iter().enumerate() {
            for (j, b) in weights.iter().enumerate() {
                let (x, y) = (normalised[i], normalised[j]);
                prop_assert!(a > b || x <= y * (1.0 + 1e-9), "order is kept");
                if x < cap * (1.0 - 1e-9) && y < cap * (1.0 - 1e-9) {
                    prop_assert!((x * b - y * a).abs() < 1e-6 * x * b, "ratios below the cap are kept");
                }
            }
        }
    }
}
