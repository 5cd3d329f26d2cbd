//! The engine over real decoders: the random tiny models of `tests/fixtures`, with a tokenizer of
//! single characters.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use candle_core::{Device, Tensor};
use serde_json::json;

use super::generation::TokenModel;
use super::*;
use crate::lora::LoraAdapter;
use crate::models::{self, ModelSource};

const FAMILIES: [&str; 3] = ["llama", "qwen2", "qwen3"];

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family)
}

/// A byte-level vocabulary of single characters; ids 1 and 2 are `<s>` and `</s>`.
fn tokenizer_json() -> String {
    let characters = ('!'..='}').chain(['Ġ', 'Ċ']);
    let ids = (0..).filter(|id| ![1, 2].contains(id));
    let vocab: serde_json::Map<_, _> =
        characters.zip(ids).map(|(c, id): (char, u32)| (c.to_string(), id.into())).collect();
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let level = |prefix: bool| {
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true,
               "use_regex": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(1, "<s>"), added(2, "</s>")],
        "normalizer": null, "pre_tokenizer": level(false), "post_processor": null,
        "decoder": level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    })
    .to_string()
}

fn engine(family: &str) -> Engine {
    let dir = tempfile::tempdir().expect("directory");
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(fixture(family).join(name), dir.path().join(name)).expect("copy");
    }
    let template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}\
                    {% if add_generation_prompt %}<s>{% endif %}";
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
    fs_err::write(dir.path().join("tokenizer.json"), tokenizer_json()).expect("write");
    fs_err::write(dir.path().join("tokenizer_config.json"), config.to_string()).expect("write");
    let source = ModelSource::Dir(dir.path().to_owned());
    Engine::new(models::load(&source, &Device::Cpu, None).expect("model"))
}

fn adapter(engine: &Engine, family: &str, name: &str, weight: f64) -> AdapterSet {
    let dir = fixture(family).join(name);
    let decoder = &engine.model().decoder;
    let adapter = LoraAdapter::load(&dir, decoder.config(), &Device::Cpu).expect("adapter");
    AdapterSet::weighted(vec![(Arc::new(adapter), weight)]).expect("set")
}

fn sampling(max_tokens: usize) -> Sampling {
    Sampling { temperature: 1.0, seed: 7, ..Sampling::greedy(max_tokens) }
}

fn ask(engine: &mut Engine, messages: &[Message], adapters: &AdapterSet) -> Generated {
    let never = AtomicBool::new(false);
    let mut pieces = String::new();
    let generated = engine
        .generate(messages, &sampling(12), adapters, &never, &mut |text| {
            assert!(!text.is_empty());
            pieces.push_str(text);
            ControlFlow::Continue(())
        })
        .expect("generated");
    assert_eq!(pieces, generated.text);
    generated
}

/// Returns ‖x − y‖₂ / ‖y‖₂.
fn relative_error(x: &Tensor, y: &Tensor) -> f32 {
    let norm = |t: &Tensor| -> f32 {
        t.sqr().and_then(|t| t.sum_all()).and_then(|t| t.to_scalar::<f32>()).expect("norm").sqrt()
    };
    norm(&(x - y).expect("difference")) / norm(y)
}

#[test]
fn cached_logits_equal_uncached_ones_however_the_prompt_is_split() {
    for family in FAMILIES {
        let engine = engine(family);
        let adapters = adapter(&engine, family, "peft_all", 0.7);
        let model = AdaptedModel { base: engine.model(), adapters: &adapters };
        let ids: Vec<u32> = (0..40).map(|n| 3 + n * 7 % 90).collect();
        let mut whole = model.new_cache(64).expect("cache");
        let expected = model.advance(&ids, &mut whole).expect("logits");
        for parts in [vec![1; 40], vec![20, 20], vec![39, 1], vec![3, 30, 7]] {
            let mut cache = model.new_cache(4).expect("cache");
            let (mut start, mut logits) = (0, None);
            for len in parts {
                // Grown in small steps, and with a detour that is cut off again.
                cache.reserve(start + len + 2).expect("room");
                model.advance(&[5, 6], &mut cache).expect("detour");
                cache.truncate(start);
                logits = Some(model.advance(&ids[start..start + len], &mut cache).expect("logits"));
                start += len;
            }
            let error = relative_error(&logits.expect("logits"), &expected);
            assert!(error < 1e-5, "{family}: {error}");
        }
    }
}

#[test]
fn a_growing_conversation_answers_as_if_nothing_were_cached() {
    for family in FAMILIES {
        let mut warm = engine(family);
        let none = AdapterSet::empty();
        let mut messages = Vec::new();
        for (turn, question) in ["Who are you?", "Why?", "And then?"].into_iter().enumerate() {
            messages.push(Message::user(question));
            let cached = ask(&mut warm, &messages, &none);
            let uncached = ask(&mut engine(family), &messages, &none);
            assert_eq!(cached.text, uncached.text, "{family}, turn {turn}");
            assert_eq!(uncached.cached_tokens, 0);
            assert_eq!(cached.cached_tokens > 0, turn > 0, "{family}, turn {turn}");
            messages.push(Message::assistant(cached.text));
        }
        // Asked again, only the last token of the prompt is computed.
        messages.pop();
        let again = ask(&mut warm, &messages, &none);
        assert_eq!(again.cached_tokens, again.prompt_tokens - 1);
    }
}

#[test]
fn the_built_in_model_answers_alike_with_and_without_a_cache() {
    let load = || models::load(&ModelSource::Builtin, &Device::Cpu, None).expect("model");
    let mut warm = Engine::new(load());
    let none = AdapterSet::empty();
    let mut messages = vec![Message::system("You are shammah."), Message::user("Hello!")];
    for question in ["Who are you?", "What does /good do?"] {
        let cached = ask(&mut warm, &messages, &none);
        let uncached = ask(&mut Engine::new(load()), &messages, &none);
        assert_eq!(cached.text, uncached.text);
        messages.push(Message::assistant(cached.text));
        messages.push(Message::user(question));
    }
    assert!(ask(&mut warm, &messages, &none).cached_tokens > 0);
}

#[test]
fn an_adapter_never_reads_the_cache_of_the_base_or_of_another_weight() {
    let mut warm = engine("llama");
    let messages = [Message::user("Tell me something about adapters.")];
    let sets = [
        AdapterSet::empty(),
        adapter(&warm, "llama", "peft_all", 1.0),
        adapter(&warm, "llama", "peft_all", 0.5),
        adapter(&warm, "llama", "peft_qv", 1.0),
    ];
    let first: Vec<Generated> = sets.iter().map(|set| ask(&mut warm, &messages, set)).collect();
    for (generated, set) in first.iter().zip(&sets) {
        assert_eq!(generated.cached_tokens, 0);
        assert_eq!(generated.text, ask(&mut engine("llama"), &messages, set).text);
    }
    assert_ne!(first[0].text, first[1].text, "the adapter must change the answer");
    for (generated, set) in first.iter().zip(&sets) {
        let again = ask(&mut warm, &messages, set);
        assert_eq!(again.text, generated.text);
        assert_eq!(again.cached_tokens, again.prompt_tokens - 1);
    }
}

#[test]
fn a_cancelled_answer_ends_within_one_token_and_the_next_one_is_right() {
    let mut warm = engine("qwen3");
    let messages = [Message::user("Count to a hundred.")];
    let cancel = AtomicBool::new(false);
    let mut pieces = 0;
    let generated = warm
        .generate(&messages, &sampling(50), &AdapterSet::empty(), &cancel, &mut |_| {
            pieces += 1;
            cancel.store(pieces == 2, Ordering::Relaxed);
            ControlFlow::Continue(())
        })
        .expect("generated");
    assert_eq!((pieces, generated.finish_reason), (2, FinishReason::Cancelled));
    let next = ask(&mut warm, &messages, &AdapterSet::empty());
    assert!(next.cached_tokens > 0);
    assert_eq!(next.text, ask(&mut engine("qwen3"), &messages, &AdapterSet::empty()).text);
}

#[test]
fn a_prompt_of_100_000_characters_is_refused_at_once_and_the_engine_lives_on() {
    let mut engine = engine("llama");
    let none = AdapterSet::empty();
    for text in ["lorem ipsum ".repeat(8_334), "a".repeat(100_000)] {
        let start = Instant::now();
        let never = AtomicBool::new(false);
        let error = engine
            .generate(&[Message::user(text)], &sampling(5), &none, &never, &mut |_| {
                ControlFlow::Continue(())
            })
            .expect_err("overflow");
        assert!(
            matches!(error, EngineError::ContextOverflow { prompt_tokens, context_length: 128 } if prompt_tokens > 100_000)
        );
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    ask(&mut engine, &[Message::user("Hello")], &none);
}

#[test]
fn timings_are_there_with_a_clock_only() {
    let mut plain = engine("llama");
    let generated = ask(&mut plain, &[Message::user("Hello")], &AdapterSet::empty());
    assert_eq!((generated.prefill, generated.decode), (None, None));
    let start = Instant::now();
    let mut timed = engine("llama").with_clock(move || start.elapsed());
    let generated = ask(&mut timed, &[Message::user("Hello")], &AdapterSet::empty());
    assert!(generated.prefill.is_some_and(|time| time > Duration::ZERO));
    assert!(generated.decode.is_some());
}

#[test]
fn an_engine_can_be_moved_to_its_thread() {
    fn assert_send<T: Send>() {}
    assert_send::<Engine>();
    assert_send::<EngineError>();
}
