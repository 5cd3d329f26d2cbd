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

const LIMITS: Limits = Limits { context_overflow: ContextOverflow::Slide, cache_bytes: 64 << 20 };
const TEMPLATE: &str = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}\
                        {% if add_generation_prompt %}<s>{% endif %}";

fn engine(family: &str) -> Engine {
    Engine::new(model(family, &tokenizer_json(), TEMPLATE, &|_| ()), LIMITS)
}

/// Loads a fixture with this tokenizer and template, after `damage` changed its weights.
fn model(family: &str, tokenizer: &str, template: &str, damage: &dyn Fn(&Path)) -> LoadedModel {
    let dir = tempfile::tempdir().expect("directory");
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(fixture(family).join(name), dir.path().join(name)).expect("copy");
    }
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
    fs_err::write(dir.path().join("tokenizer.json"), tokenizer).expect("write");
    fs_err::write(dir.path().join("tokenizer_config.json"), config.to_string()).expect("write");
    damage(&dir.path().join("model.safetensors"));
    let source = ModelSource::Dir(dir.path().to_owned());
    models::load(&source, &Device::Cpu, None).expect("model")
}

fn builtin() -> LoadedModel {
    models::load(&ModelSource::Builtin, &Device::Cpu, None).expect("model")
}

/// Makes every value of a tensor no number.
fn spoil(weights: &Path, name: &str) {
    let mut tensors = candle_core::safetensors::load(weights, &Device::Cpu).expect("weights");
    let spoilt = (tensors[name].zeros_like().expect("zeros") / 0.0).expect("no number");
    tensors.insert(name.to_owned(), spoilt);
    candle_core::safetensors::save(&tensors, weights).expect("saved");
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
    let mut warm = Engine::new(builtin(), LIMITS);
    let none = AdapterSet::empty();
    let mut messages = vec![Message::system("You are shammah."), Message::user("Hello!")];
    for question in ["Who are you?", "What does /good do?"] {
        let cached = ask(&mut warm, &messages, &none);
        let uncached = ask(&mut Engine::new(builtin(), LIMITS), &messages, &none);
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
            matches!(error, EngineError::ContextOverflow { prompt_tokens, context_length: 128, .. } if prompt_tokens > 100_000)
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

/// Asks greedily; returns the answer or the error.
fn try_ask(
    engine: &mut Engine,
    messages: &[Message],
    max_tokens: usize,
) -> Result<Generated, EngineError> {
    let never = AtomicBool::new(false);
    let listen = &mut |_: &str| ControlFlow::Continue(());
    engine.generate(messages, &Sampling::greedy(max_tokens), &AdapterSet::empty(), &never, listen)
}

/// The built-in model with a context of `context_length` tokens.
fn narrow(context_length: usize, limits: Limits) -> Engine {
    Engine::new(LoadedModel { context_length, ..builtin() }, limits)
}

#[test]
fn a_conversation_slides_over_the_context_and_answers_as_if_nothing_were_cached() {
    let mut warm = narrow(96, LIMITS);
    let mut messages = vec![Message::system("You are shammah.")];
    let mut dropped = 0;
    for turn in 0..10 {
        messages.push(Message::user(format!("Tell me something about the number {turn}.")));
        let cached = try_ask(&mut warm, &messages, 24).expect("it slides");
        let uncached = try_ask(&mut narrow(96, LIMITS), &messages, 24).expect("it slides");
        assert_eq!((&cached.text, cached.dropped_turns), (&uncached.text, uncached.dropped_turns));
        assert!(cached.prompt_tokens + 24 <= 96, "turn {turn}");
        assert!(cached.dropped_turns >= dropped, "more and more of them");
        dropped = cached.dropped_turns;
        messages.push(Message::assistant(cached.text));
    }
    assert!(dropped > 2, "{dropped}");
}

#[test]
fn a_conversation_is_refused_where_it_must_not_slide_and_a_long_question_always() {
    let strict = Limits { context_overflow: ContextOverflow::Error, ..LIMITS };
    let turn =
        [Message::user("Tell me a story."), Message::assistant("Once upon a time. ".repeat(3))];
    let mut messages = turn.iter().cycle().take(12).cloned().collect::<Vec<_>>();
    messages.push(Message::user("And then?"));
    let error = try_ask(&mut narrow(96, strict), &messages, 24).expect_err("too long").to_string();
    for words in ["holds 96", "/clear", "context_overflow"] {
        assert!(error.contains(words), "{error}");
    }
    assert!(try_ask(&mut narrow(96, LIMITS), &messages, 24).expect("it slides").dropped_turns > 0);
    messages.push(Message::assistant("The end."));
    messages.push(Message::user("why is it so? ".repeat(40)));
    let error = try_ask(&mut narrow(96, LIMITS), &messages, 24).expect_err("too long").to_string();
    assert!(error.contains("last message has") && error.contains("holds 96"), "{error}");
}

#[test]
fn an_answer_that_reaches_the_end_of_the_context_is_cut() {
    let mut engine = engine("llama");
    let mut cut = 0;
    // The model is random: some of its answers end by themselves.
    for letter in 'a'..='z' {
        let question = [Message::user(letter.to_string().repeat(120))];
        let generated = try_ask(&mut engine, &question, 1000).expect("room for some");
        let tokens = generated.prompt_tokens + generated.new_tokens;
        assert_eq!(generated.finish_reason == FinishReason::Length, tokens == 128, "{letter}");
        cut += usize::from(tokens == 128);
    }
    assert!(cut > 0);
}

#[test]
fn a_cache_too_small_for_two_conversations_changes_no_answer() {
    let one = KvCache::bytes_for(builtin().decoder.config(), 512);
    for cache_bytes in [0, one, 2 * one] {
        let mut small = Engine::new(builtin(), Limits { cache_bytes, ..LIMITS });
        let mut cached = 0;
        for question in ["Who are you?", "What does /good do?", "Who are you?", "Who are you?"] {
            let messages = [Message::user(question)];
            let answer = try_ask(&mut small, &messages, 12).expect("answer");
            let whole =
                try_ask(&mut Engine::new(builtin(), LIMITS), &messages, 12).expect("answer");
            assert_eq!(answer.text, whole.text);
            cached += usize::from(answer.cached_tokens + 1 == answer.prompt_tokens);
        }
        let expected = [0, 1, 2][usize::try_from(cache_bytes / one).expect("small")];
        assert_eq!(cached, expected, "{cache_bytes} bytes");
    }
}

#[test]
fn weights_that_are_no_numbers_are_an_error_with_the_names_of_model_and_adapters() {
    let damage = |path: &Path| spoil(path, "model.norm.weight");
    let mut broken = Engine::new(model("llama", &tokenizer_json(), TEMPLATE, &damage), LIMITS);
    let question = [Message::user("Hello")];
    let error = try_ask(&mut broken, &question, 4).expect_err("no number").to_string();
    let name = format!("model \"{}\"", broken.model().name);
    assert!(
        error.starts_with(&name) && error.contains("NaN") && error.contains("damaged"),
        "{error}"
    );
    let set = adapter(&broken, "llama", "peft_all", 1.0);
    let never = AtomicBool::new(false);
    let listen = &mut |_: &str| ControlFlow::Continue(());
    let error = broken
        .generate(&question, &Sampling::greedy(4), &set, &never, listen)
        .expect_err("no number")
        .to_string();
    assert!(
        error.contains("with adapter \"peft_all\"") && error.contains("/adapters unload"),
        "{error}"
    );
}

#[test]
fn a_token_beyond_the_embedding_is_an_error_and_no_panic() {
    let far = tokenizer_json().replace("\"Q\":50", "\"Q\":5000");
    assert!(far.contains("5000"));
    let mut engine = Engine::new(model("qwen2", &far, TEMPLATE, &|_| ()), LIMITS);
    let error =
        try_ask(&mut engine, &[Message::user("Q?")], 4).expect_err("no such row").to_string();
    assert!(error.contains("token 5000") && error.contains("rows"), "{error}");
    assert!(try_ask(&mut engine, &[Message::user("A?")], 4).is_ok());
}

#[test]
fn a_template_that_refuses_or_drops_the_system_message_says_so() {
    let refuses =
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}";
    let drops = "{% for m in messages if m.role != 'system' %}<s>{{ m.content }}</s>{% endfor %}";
    for template in [format!("{refuses}{TEMPLATE}"), drops.to_owned()] {
        let mut engine = Engine::new(model("llama", &tokenizer_json(), &template, &|_| ()), LIMITS);
        let messages = [Message::system("Be kind."), Message::user("Hello")];
        let error = try_ask(&mut engine, &messages, 4).expect_err("no place for it").to_string();
        assert!(
            error.contains("takes no system message") && error.contains("/system off"),
            "{error}"
        );
        assert!(try_ask(&mut engine, &messages[1..], 4).is_ok());
    }
    let mut engine = engine("llama");
    assert!(
        try_ask(&mut engine, &[Message::system("Be kind."), Message::user("Hello")], 4).is_ok()
    );
}

#[test]
fn a_template_that_fails_is_an_error_in_its_own_words() {
    let template = "{{ raise_exception('after the user comes the assistant') }}";
    let mut engine = Engine::new(model("llama", &tokenizer_json(), template, &|_| ()), LIMITS);
    let error =
        try_ask(&mut engine, &[Message::user("Hello")], 4).expect_err("refused").to_string();
    assert!(error.contains("after the user comes the assistant"), "{error}");
}
