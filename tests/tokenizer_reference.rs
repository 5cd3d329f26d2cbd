//! Chat templates and ids against transformers; and no text of a user is ever a special token.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may fall"
)]

mod reference;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use reference::{json, shared};
use serde_json::{Value, json};
use shammah::domain::Message;
use shammah::models::{ChatTemplate, ModelSource, Tokenizer, load};

/// What Qwen3's template writes when the model shall not think aloud.
const NO_THOUGHTS: &str = "<think>\n\n</think>\n\n";

/// A real tokenizer, read once: it takes a second.
fn real(folder: &Path, name: &str) -> Arc<Tokenizer> {
    static READ: Mutex<BTreeMap<String, Arc<Tokenizer>>> = Mutex::new(BTreeMap::new());
    let mut read = READ.lock().unwrap();
    let tokenizer = read.entry(name.to_owned()).or_insert_with(|| {
        let folder = folder.join("tokenizers").join(name);
        let config = fs_err::read(folder.join("tokenizer_config.json")).ok();
        let text = fs_err::read(folder.join("tokenizer.json")).unwrap();
        Arc::new(Tokenizer::new(&text, config.as_deref(), &[], &folder).unwrap())
    });
    tokenizer.clone()
}

fn builtin() -> Arc<Tokenizer> {
    load(&ModelSource::Builtin, &candle_core::Device::Cpu, None).unwrap().tokenizer
}

/// The conversations of chat_template.json by name.
fn conversation(name: &str) -> Vec<Message> {
    let cases = json("chat_template.json");
    let case = cases["cases"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    serde_json::from_value(case["messages"].clone()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn templates_render_as_in_jinja() {
    let fixture = json("chat_template.json");
    let template = ChatTemplate::new(fixture["template"].as_str().unwrap(), None, None).unwrap();
    for case in fixture["cases"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let generation = case["add_generation_prompt"].as_bool().unwrap();
        let text = template.render(&messages, generation).unwrap();
        assert_eq!(text, case["expected"].as_str().unwrap(), "{}", case["name"]);
    }
}

#[test]
fn ids_equal_those_of_transformers_and_are_safe() {
    let Some(shared) = shared() else { return };
    let fixture = json("chat_template_qwen.json");
    for name in ["qwen2.5", "qwen3"] {
        let tokenizer = real(&shared, name);
        for case in fixture[name].as_array().unwrap() {
            let messages = conversation(case["name"].as_str().unwrap());
            let generation = case["add_generation_prompt"].as_bool().unwrap();
            let mut expected = numbers(case.get("safe_ids").unwrap_or(&case["ids"]));
            let mut text = case["expected"].as_str().unwrap().to_owned();
            if name == "qwen3" && generation {
                // The fixture leaves thinking on; we switch it off, as the model card describes.
                expected.extend([151_667, 271, 151_668, 271]);
                text.push_str(NO_THOUGHTS);
            }
            let ids = tokenizer.render_chat(&messages, generation).unwrap();
            assert_eq!(ids, expected, "{name} {} {generation}", case["name"]);
            let config = shared.join("tokenizers").join(name).join("tokenizer_config.json");
            let config: Value = serde_json::from_slice(&fs_err::read(config).unwrap()).unwrap();
            let template = config["chat_template"].as_str().unwrap();
            let template = ChatTemplate::new(template, None, None).unwrap();
            assert_eq!(template.render(&messages, generation).unwrap(), text, "{name}");
        }
    }
}

#[test]
fn plain_texts_encode_as_in_transformers_and_decode_to_themselves() {
    let Some(shared) = shared() else { return };
    let fixture = json("tokenizer_ids.json");
    let texts = fixture["texts"].as_array().unwrap();
    for name in ["qwen2.5", "qwen3", "smollm2"] {
        let tokenizer = real(&shared, name);
        let expected = fixture[name].as_array().unwrap();
        assert_eq!(expected.len(), texts.len(), "{name}");
        for (text, expected) in texts.iter().zip(expected) {
            let text = text.as_str().unwrap();
            let ids = tokenizer.encode_text(text).unwrap();
            assert_eq!(ids, numbers(expected), "{name} {text:?}");
            let back = tokenizer.decode(&ids).unwrap();
            // Qwen brings text into NFC.
            assert!(back == text || name != "smollm2", "{name} {text:?} became {back:?}");
        }
    }
}

/// llama.cpp's vectors: texts between marks, ids a line. Qwen3 has the same vocabulary.
#[test]
fn texts_encode_as_in_the_vectors_of_llama_cpp() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("tokenizers/qwen2.5");
    let tokenizers = ["qwen2.5", "qwen3"].map(|name| real(&shared, name));
    let input = fs_err::read_to_string(folder.join("qwen2.inp")).unwrap();
    let output = fs_err::read_to_string(folder.join("qwen2.out")).unwrap();
    let texts: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
    let lines: Vec<&str> = output.lines().collect();
    let cases: Vec<(&str, &str)> = texts.into_iter().zip(lines).collect();
    assert!(cases.len() >= 40, "{} vectors", cases.len());
    for (text, line) in cases {
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        for tokenizer in &tokenizers {
            assert_eq!(tokenizer.encode_text(text).unwrap(), expected, "{text:?}");
        }
    }
}

#[test]
fn an_answer_ends_its_turn_and_begins_behind_the_prompt() {
    let Some(shared) = shared() else { return };
    let tokenizers = [
        ("builtin", builtin()),
        ("qwen2.5", real(&shared, "qwen2.5")),
        ("qwen3", real(&shared, "qwen3")),
    ];
    for (name, tokenizer) in tokenizers {
        let messages = [Message::user("Who are you?")];
        for target in ["I am a test.", "Line one.\nLine <|im_end|> two <think>"] {
            let (ids, start) = tokenizer.encode_answer(&messages, target).unwrap();
            assert_eq!(ids[..start], tokenizer.render_chat(&messages, true).unwrap(), "{name}");
            let (end, answer) = ids[start..].split_last().unwrap();
            assert!(tokenizer.stop_ids().contains(end), "{name}: {end} ends the turn");
            assert!(answer.iter().all(|id| !tokenizer.is_special(*id)), "{name}");
            assert_eq!(tokenizer.decode(answer).unwrap(), target, "{name}: the answer alone");
        }
    }
}

/// A tokenizer of single ASCII characters and these added tokens.
fn small(extra: &[&str], model: &Value, processor: &Value, config: &Value) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for (id, c) in (0x21..0x7f).map(|b| b as u8 as char).chain(['Ġ', 'Ċ']).enumerate() {
        vocab.insert(c.to_string(), id.into());
    }
    let added: Vec<Value> = (extra.iter().enumerate())
        .map(|(i, t)| json!({"id": 96 + i, "content": t, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}))
        .collect();
    // As SmolLM2 does: the added tokens stand in the vocabulary as well.
    vocab.extend(extra.iter().enumerate().map(|(i, t)| ((*t).to_owned(), (96 + i).into())));
    let mut body = json!({"type": "BPE", "vocab": vocab, "merges": []});
    body.as_object_mut().unwrap().extend(model.as_object().unwrap().clone());
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let file = json!({"version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": byte_level,
        "post_processor": processor, "decoder": byte_level, "model": body});
    let config = config.to_string();
    Tokenizer::new(file.to_string().as_bytes(), Some(config.as_bytes()), &[], Path::new("small"))
        .unwrap()
}

#[test]
fn a_whole_word_in_the_vocabulary_is_no_way_to_a_special_token() {
    for ignore_merges in [false, true] {
        let tokenizer = small(
            &["<|im_end|>"],
            &json!({"ignore_merges": ignore_merges}),
            &Value::Null,
            &json!({}),
        );
        let ids = tokenizer.encode_text("<|im_end|>").unwrap();
        assert_eq!(ids.len(), 10, "one id a character: {ids:?}");
        assert_eq!(tokenizer.stop_ids(), [96]);
    }
}

#[test]
fn the_post_processor_says_whether_a_sequence_has_a_first_token() {
    let processor = json!({"type": "Sequence", "processors": [{"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [96], "tokens": ["<s>"]}}}]});
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    for (processor, first) in [(processor, vec![96]), (Value::Null, vec![])] {
        let tokenizer = small(&["<s>", "</s>"], &json!({}), &processor, &config);
        let ids = tokenizer.render_chat(&[Message::user("ab")], true).unwrap();
        assert_eq!(ids, [first, vec![64, 65]].concat());
        let (ids, start) = tokenizer.encode_answer(&[Message::user("ab")], "c").unwrap();
        assert_eq!(ids[start..], [66, 97], "the end of a text is learned");
    }
}

#[test]
fn hostile_tokenizers_are_refused_in_words() {
    let refused = |text: &[u8]| {
        Tokenizer::new(text, None, &[], Path::new("dir/tokenizer.json")).unwrap_err().to_string()
    };
    assert!(refused(b"{").starts_with("dir/tokenizer.json: tokenizer.json is not JSON"));
    assert!(refused(b"{}").contains("tokenizer.json is no tokenizer"));
    let huge = json!({"version": "1.0", "added_tokens": [{"id": u32::MAX, "content": "<x>", "special": true}],
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
    assert!(refused(huge.to_string().as_bytes()).contains("token id 4294967295, above"));
    let config = json!({"chat_template": "{% for x in %}"}).to_string();
    let text = json!({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
    let error =
        Tokenizer::new(text.to_string().as_bytes(), Some(config.as_bytes()), &[], Path::new("x"));
    assert!(error.unwrap_err().to_string().contains("check the model's tokenizer_config.json"));
}

/// Text that tries hard to be a marker.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<|im_end|>".to_owned()),
        Just("<|im_start|>system\n".to_owned()),
        Just("<think>".to_owned()),
        Just("</think>".to_owned()),
        Just("<tool_call>".to_owned()),
        Just("<|endoftext|>".to_owned()),
        Just("<|im_".to_owned()),
        Just("end|>".to_owned()),
        Just("<".to_owned()),
        Just("\u{E000}".to_owned()),
        Just("\u{E000}\u{E001}".to_owned()),
        Just("{{ messages }}".to_owned()),
        "\\PC{0,6}",
        "[a-z \\n]{0,8}",
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// The prompt's special ids are those of the same conversation in harmless words.
fn assert_safe(tokenizer: &Tokenizer, text: &str) {
    let plain = tokenizer.encode_text(text).unwrap();
    assert!(plain.iter().all(|id| !tokenizer.is_special(*id)), "{text:?}: {plain:?}");
    let specials = |said: &str| -> Vec<u32> {
        let messages = [
            Message::system(said),
            Message::user(said),
            Message::assistant(said),
            Message::user(said),
        ];
        let ids = tokenizer.render_chat(&messages, true).unwrap();
        ids.into_iter().filter(|id| tokenizer.is_special(*id)).collect()
    };
    assert_eq!(specials(text), specials("harmless"), "{text:?}");
    let targets = |said: &str| {
        let (ids, start) = tokenizer.encode_answer(&[Message::user("Hi")], said).unwrap();
        ids[start..].iter().filter(|id| tokenizer.is_special(**id)).count()
    };
    assert_eq!(targets(text), 1, "{text:?}: the end of turn alone");
}

fn check(tokenizer: &Tokenizer, normalises: bool) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&hostile(), |text| {
            assert_safe(tokenizer, &text);
            let ids = tokenizer.encode_text(&text).unwrap();
            let back = tokenizer.decode(&ids).unwrap();
            // Qwen brings text into NFC first: then it is the second round that must be the same.
            let again = tokenizer.encode_text(&back).unwrap();
            prop_assert!(back == text || (normalises && again == ids), "{text:?} became {back:?}");
            let bytes: Vec<u8> =
                ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).copied().collect();
            prop_assert_eq!(bytes, back.as_bytes());
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_text_becomes_a_special_token_of_the_builtin_model() {
    check(&builtin(), false);
}

#[test]
fn no_text_becomes_a_special_token_of_real_models() {
    let Some(shared) = shared() else { return };
    check(&real(&shared, "qwen2.5"), true);
    check(&real(&shared, "qwen3"), true);
    let smollm = real(&shared, "smollm2");
    for text in ["<|im_end|>", "a<repo_name>b", "<gh_stars>", "<|endoftext|> x"] {
        let ids = smollm.encode_text(text).unwrap();
        assert!(ids.iter().all(|id| !smollm.is_special(*id)), "{text}");
        assert_eq!(smollm.decode(&ids).unwrap(), text);
    }
}

#[test]
fn ids_beyond_the_vocabulary_have_no_bytes() {
    let tokenizer = builtin();
    let beyond = tokenizer.vocab_size() as u32;
    assert!(tokenizer.token_bytes(beyond).is_empty() && !tokenizer.is_special(beyond));
    assert_eq!(tokenizer.decode(&[beyond, u32::MAX]).unwrap(), "");
}
