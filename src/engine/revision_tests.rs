use candle_core::{Device, Tensor};

use super::*;
use crate::engine::{ContextOverflow, Limits};
use crate::models::{self, ModelSource, NoAdapter};

const LIMITS: Limits = Limits { context_overflow: ContextOverflow::Slide, cache_bytes: 64 << 20 };

fn engine() -> Engine {
    let model = models::load(&ModelSource::Builtin, &Device::Cpu, None).expect("model");
    Engine::new(model, LIMITS)
}

fn question() -> Vec<Message> {
    vec![Message::user("How do I undo a mark?")]
}

/// The mean log-probability of an answer's tokens, from the logits of the whole sequence without a cache.
fn directly(engine: &Engine, messages: &[Message], answer: &str) -> f64 {
    let model = engine.model();
    let (ids, start) = model.tokenizer.encode_answer(messages, answer).expect("encoded");
    let input = Tensor::new(&ids[..], &Device::Cpu).and_then(|t| t.unsqueeze(0)).expect("ids");
    let hidden = model.decoder.hidden(&input, None, &NoAdapter).expect("hidden");
    let logits = model.decoder.logits(&hidden).expect("logits").squeeze(0).expect("one");
    let rows: Vec<Vec<f32>> = logits.to_vec2().expect("rows");
    let log_prob = |at: usize| {
        let row: Vec<f64> = rows[at - 1].iter().map(|x| f64::from(*x)).collect();
        let most = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
        row[ids[at] as usize] - most - sum.ln()
    };
    (start..ids.len()).map(log_prob).sum::<f64>() / (ids.len() - start) as f64
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-4 * b.abs().max(1.0)
}

#[test]
fn likelihoods_equal_those_of_the_whole_sequence_whatever_is_cached() {
    let (mut engine, cancel) = (engine(), AtomicBool::new(false));
    let long = "It is /undo. ".repeat(30);
    let answers = ["/undo takes back your last mark.", "No.", long.as_str()];
    let expected: Vec<f64> = answers.map(|text| directly(&engine, &question(), text)).to_vec();
    for round in 0..2 {
        let found = engine.log_likelihoods(&question(), &answers, &AdapterSet::empty(), &cancel);
        for (found, expected) in found.expect("computed").expect("whole").iter().zip(&expected) {
            let found = found.expect("it fits");
            assert!(close(found, *expected), "round {round}: {found} and {expected}");
        }
        // The next round goes on from what an answer left in the cache.
        let sampling = Sampling::greedy(8);
        engine
            .generate(&question(), &sampling, &AdapterSet::empty(), &cancel, &mut |_| {
                ControlFlow::Continue(())
            })
            .expect("answered");
    }
}

#[test]
fn an_answer_that_the_context_does_not_hold_has_no_likelihood() {
    let (mut engine, cancel) = (engine(), AtomicBool::new(false));
    let long = "word ".repeat(engine.model().context_length);
    let found = engine
        .log_likelihoods(&question(), &[&long, "No."], &AdapterSet::empty(), &cancel)
        .expect("computed")
        .expect("whole");
    assert!(found[0].is_none() && found[1].is_some(), "{found:?}");
}

fn request(note: &str, candidates: usize) -> RevisionRequest {
    RevisionRequest {
        messages: question(),
        criticised: "Never.".to_owned(),
        note: note.to_owned(),
        candidates,
        sampling: Sampling { temperature: 0.3, top_k: 40, top_p: 0.95, ..Sampling::greedy(64) },
    }
}

#[test]
fn candidates_are_scored_by_what_the_note_changes_and_are_no_copies() {
    let (mut engine, cancel) = (engine(), AtomicBool::new(false));
    let request = request("say that /undo takes back the last mark", 4);
    let mut texts = vec![String::new(); 4];
    let mut on_event = |event: RevisionEvent<'_>| {
        if let RevisionEvent::Text { candidate, text } = event {
            texts[candidate].push_str(text);
        }
        ControlFlow::Continue(())
    };
    let revised =
        engine.revise(&request, &AdapterSet::empty(), &cancel, &mut on_event).expect("revised");
    assert_eq!((revised.answers, revised.cancelled), (4, false));
    assert!(!revised.candidates.is_empty(), "{texts:?}");
    let asked = |note| asked_again(&request.messages, &request.criticised, note);
    for candidate in &revised.candidates {
        assert_eq!(candidate.text, texts[candidate.index].trim());
        assert_ne!(normalised(&candidate.text), normalised(&request.criticised));
        let score = directly(&engine, &asked(Some(&request.note)), &candidate.text)
            - directly(&engine, &asked(None), &candidate.text);
        assert!((score - candidate.score).abs() < 1e-3, "{score} and {}", candidate.score);
    }
    let scores: Vec<f64> = revised.candidates.iter().map(|candidate| candidate.score).collect();
    assert!(scores.windows(2).all(|pair| pair[0] >= pair[1]), "{scores:?}");
}

#[test]
fn a_revision_can_be_stopped_and_the_engine_answers_as_before() {
    let cancel = AtomicBool::new(false);
    let sampling = Sampling::greedy(16);
    let ask = |engine: &mut Engine| {
        let go_on = &mut |_: &str| ControlFlow::Continue(());
        let never = AtomicBool::new(false);
        engine.generate(&question(), &sampling, &AdapterSet::empty(), &never, go_on).expect("text")
    };
    let mut engine = engine();
    let before = ask(&mut engine).text;
    let mut stop = |event: RevisionEvent<'_>| {
        if event == (RevisionEvent::Answered { candidate: 1 }) {
            cancel.store(true, Ordering::Relaxed);
        }
        ControlFlow::Continue(())
    };
    let revised = engine
        .revise(&request("be brief", 3), &AdapterSet::empty(), &cancel, &mut stop)
        .expect("stopped");
    assert!(revised.cancelled && revised.best(f64::MIN).is_none(), "{revised:?}");
    assert_eq!(ask(&mut engine).text, before);
}

#[test]
fn old_turns_make_room_for_a_revision_but_the_question_never_does() {
    let (mut engine, cancel) = (engine(), AtomicBool::new(false));
    let go_on = &mut |_: RevisionEvent<'_>| ControlFlow::Continue(());
    let mut request = request("be brief", 1);
    let old = [Message::user("Who are you? ".repeat(200)), Message::assistant("A program.")];
    request.messages = old.into_iter().chain(request.messages).collect();
    let revised = engine.revise(&request, &AdapterSet::empty(), &cancel, go_on).expect("slides");
    assert_eq!(revised.answers, 1);
    request.criticised = "I do not know. ".repeat(400);
    let error = engine.revise(&request, &AdapterSet::empty(), &cancel, go_on).expect_err("long");
    assert!(error.to_string().contains("question with its answer and the note"), "{error}");
}

#[test]
fn the_best_candidate_counts_only_if_the_note_helps_it() {
    let candidate = |score| Candidate { text: "a".to_owned(), score, index: 0 };
    let revised = |score, criticised| Revised {
        candidates: vec![candidate(score)],
        criticised,
        answers: 1,
        cancelled: false,
    };
    assert!(revised(0.5, Some(0.1)).best(0.2).is_some());
    assert!(revised(0.1, Some(-0.1)).best(0.2).is_none(), "below the threshold");
    assert!(revised(0.5, Some(0.6)).best(0.2).is_none(), "the note helps the old answer more");
    assert!(revised(0.2, None).best(0.2).is_none(), "above, not at it");
    assert!(Revised::default().best(f64::MIN).is_none());
}

#[test]
fn copies_are_found_whatever_their_case_space_and_end() {
    for (a, b) in [("Yes.", " yes "), ("a\n b", "A b!"), ("\"Kestrel\"", "kestrel")] {
        assert_eq!(normalised(a), normalised(b), "{a} and {b}");
    }
    for (a, b) in [("x + 1", "x - 1"), ("f(x)", "f[x]"), ("Kestrel", "Kestrels")] {
        assert_ne!(normalised(a), normalised(b), "{a} and {b}");
    }
}

#[test]
fn the_first_candidate_is_the_likeliest_and_the_others_differ() {
    let sampling = Sampling { temperature: 0.3, seed: 7, ..Sampling::greedy(4) };
    assert_eq!(of_candidate(&sampling, 0).temperature, 0.0);
    let second = of_candidate(&sampling, 1);
    assert_eq!((second.temperature, second.seed), (CANDIDATE_TEMPERATURE, 8));
    let wild = Sampling { temperature: 1.2, ..sampling };
    assert_eq!(of_candidate(&wild, 2).temperature, 1.2);
}
