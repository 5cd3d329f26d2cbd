//! Tokenizers of GGUF files against the `tokenizer.json` that they were made of.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

mod gguf_kit;
mod reference;

use std::path::{Path, PathBuf};

use gguf_kit::Gguf;
use reference::shared;
use serde_json::{Value, json};
use shammah::domain::Message;
use shammah::models::Tokenizer;

/// Text of a kind that finds differences.
const TRICKY: [&str; 14] = [
    "",
    " ",
    "a  b   c\t\n\n  d \r\n e ",
    "I'll, you'RE and they've 1234567 in 12.5 % of x=y+3;",
    "Cafe\u{301} na\u{ef}ve \u{1F600}\u{200D}\u{1F525} \u{4F60}\u{597D}\u{FF0C}\u{4E16}\u{754C}",
    "\u{627}\u{644}\u{639}\u{631}\u{628}\u{64A}\u{629} \u{5E9}\u{5DC}\u{5D5}\u{5DD} \u{939}\u{93F}\u{928}\u{94D}\u{926}\u{940} \u{E44}\u{E17}\u{E22}",
    "<|im_end|> <|im_start|>user\n<|endoftext|> <think> </tool_call> <s></s><unk>",
    "fn main() { println!(\"{}\", 0x1F_u32 as f64 * 2.5e-3); }\n",
    "\u{2581}under \u{2581}\u{2581} lines <0x0A> \u{0}\u{1}\u{7F}\u{80}",
    "ǅ ʼn ﬃ Ⅷ ² ½ ٣ \u{FEFF}\u{200B}x",
    "http://example.org/?a=1&b=%20#frag user@example.com",
    "          indented\n\t\ttwice\n",
    "don't DON'T Don’t",
    "________ ---- ==== ....!!!???",
];

struct Case {
    name: &'static str,
    pre: &'static str,
    json: PathBuf,
    config: Option<PathBuf>,
}

fn value(path: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

fn tiny() -> Case {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny");
    Case {
        name: "builtin",
        pre: "qwen2",
        json: folder.join("tokenizer.json"),
        config: Some(folder.join("tokenizer_config.json")),
    }
}

/// What `tokenizer_config.json` says, or would say.
fn config_of(case: &Case) -> Value {
    match &case.config {
        Some(path) => value(path),
        None if case.pre.is_empty() => json!({"bos_token": "<s>", "eos_token": "</s>"}),
        None => json!({"eos_token": "<|im_end|>"}),
    }
}

/// Both tokenizers encode, decode and render alike.
fn assert_same(case: &Case, texts: &[String]) {
    let (json, config) = (fs_err::read(&case.json).unwrap(), config_of(case));
    let ours = Tokenizer::new(&json, Some(config.to_string().as_bytes()), &[], &case.json).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let file = Gguf::new().tokenizer(case.pre, &json, &config).read().unwrap();
    let theirs = file.tokenizer().unwrap();
    let name = case.name;
    assert_eq!(theirs.vocab_size(), ours.vocab_size(), "{name}");
    assert_eq!(theirs.stop_ids(), ours.stop_ids(), "{name}");
    for id in 0..=ours.vocab_size() as u32 {
        assert_eq!(theirs.token_bytes(id), ours.token_bytes(id), "{name}: bytes of {id}");
        assert_eq!(theirs.is_special(id), ours.is_special(id), "{name}: {id}");
    }
    // Qwen's brings text into NFC, which the built-in one does not.
    let composed = |text: &&str| name != "builtin" || !text.contains('\u{301}');
    for text in TRICKY.into_iter().chain(texts.iter().map(String::as_str)).filter(composed) {
        let ids = theirs.encode_text(text).unwrap();
        assert_eq!(ids, ours.encode_text(text).unwrap(), "{name}: {text:?}");
        assert!(ids.iter().all(|id| !theirs.is_special(*id) || *id == 0), "{name}: {text:?}");
        let messages = [Message::user(text), Message::assistant("Yes."), Message::user(text)];
        let ids = theirs.render_chat(&messages, true).unwrap();
        assert_eq!(ids, ours.render_chat(&messages, true).unwrap(), "{name}: {text:?}");
    }
}

#[test]
fn the_builtin_tokenizer_is_the_same_from_gguf() {
    assert_same(&tiny(), &[]);
}

#[test]
fn real_tokenizers_are_the_same_from_gguf() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("tokenizers");
    let case = |name: &'static str, pre, config: bool| Case {
        name,
        pre,
        json: folder.join(name).join("tokenizer.json"),
        config: config.then(|| folder.join(name).join("tokenizer_config.json")),
    };
    let stories = Case {
        name: "stories260k",
        pre: "",
        json: shared.join("models/stories260k/tokenizer.json"),
        config: None,
    };
    let texts = texts(&shared);
    for case in [
        case("qwen2.5", "qwen2", true),
        case("qwen3", "qwen2", true),
        case("smollm2", "smollm", false),
        stories,
    ] {
        assert_same(&case, &texts);
    }
}

/// Pieces of real text in prose, code and dialogue.
fn texts(shared: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for file in ["rust_reference.md", "self_dialogue.jsonl", "gsm8k_train.jsonl", "tldr_en.md"] {
        let text = fs_err::read_to_string(shared.join("data").join(file)).unwrap();
        let lines: Vec<&str> = text.lines().take(200).collect();
        texts.extend(lines.chunks(20).map(|part| part.join("\n")));
    }
    let vectors = fs_err::read_to_string(shared.join("tokenizers/qwen2.5/qwen2.inp")).unwrap();
    texts.extend(vectors.split("\n__ggml_vocab_test__\n").map(str::to_owned));
    assert!(texts.len() > 80, "{} texts", texts.len());
    texts
}

/// The built-in tokenizer as a file, with one thing changed.
fn spoilt(change: impl FnOnce(Gguf) -> Gguf, without: &str) -> Result<Tokenizer, String> {
    let case = tiny();
    let mut file = Gguf::new().tokenizer(case.pre, &value(&case.json), &config_of(&case));
    file.values.retain(|v| without.is_empty() || !v.starts_with(&gguf_kit::text(without)));
    let file = change(file).read().unwrap();
    file.tokenizer().map_err(|e| e.to_string())
}

fn refused(change: impl FnOnce(Gguf) -> Gguf, without: &str, parts: &[&str]) {
    let error = spoilt(change, without).unwrap_err();
    for part in parts {
        assert!(error.contains(part), "\"{part}\" is not in: {error}");
    }
}

#[test]
fn a_file_without_a_token_that_ends_an_answer_is_refused() {
    // The built-in model's own end of turn is known by its text: another vocabulary's is not.
    let file = Gguf::new()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &["a".into(), "b".into()])
        .texts("tokenizer.ggml.merges", &[]);
    let error = file.read().unwrap().tokenizer().unwrap_err().to_string();
    assert!(error.contains("no token ends an answer") && error.contains("eos_token_id"), "{error}");
}

#[test]
fn tokenizers_that_are_not_known_are_refused_by_name() {
    let key = "tokenizer.ggml.pre";
    refused(|f| f, key, &["tokenizer.ggml.pre is missing"]);
    refused(
        |f| f.text(key, "superbpe"),
        key,
        &["tokenizer.ggml.pre \"superbpe\" is not supported"],
    );
    let key = "tokenizer.ggml.model";
    refused(|f| f.text(key, "bert"), key, &["tokenizer.ggml.model \"bert\" is not supported"]);
    refused(|f| f.text(key, "llama"), key, &["tokenizer.ggml.scores is missing"]);
    refused(|f| f.count(key, 1), key, &["tokenizer.ggml.model is 1, not a text"]);
}

#[test]
fn parts_of_a_tokenizer_that_contradict_each_other_are_refused() {
    let tokens = "tokenizer.ggml.tokens";
    let two = || vec!["a".to_owned(), "a".to_owned()];
    refused(|f| f.texts(tokens, &two()), tokens, &["2 tokens have 2048 types"]);
    let types = "tokenizer.ggml.token_type";
    refused(|f| f.integers(types, &[1]), types, &["2048 tokens have 1 types"]);
    let eos = "tokenizer.ggml.eos_token_id";
    refused(|f| f.count(eos, 9_999), eos, &["eos_token_id is 9999, there are 2048 tokens"]);
    let merges = "tokenizer.ggml.merges";
    refused(|f| f.texts(merges, &["a b c".into()]), merges, &["\"a b c\" is no merge"]);
    refused(|f| f.texts(merges, &["a \u{4E00}".into()]), merges, &["out of vocabulary"]);
    let template = "tokenizer.chat_template";
    refused(
        |f| f.text(template, "{% for x in %}"),
        template,
        &["chat template", "check the model"],
    );
}

/// A file may hold merges that spell a marker out of plain tokens; no text becomes it.
#[test]
fn no_merge_makes_a_special_token() {
    let tokens: Vec<String> = ["<", "|", "e", ">", "<|", "e|", "|>", "<|e|>", "<|e"]
        .iter()
        .map(|t| (*t).to_owned())
        .collect();
    let merges: Vec<String> = ["< |", "<| e", "| >", "<|e |>"].map(str::to_owned).to_vec();
    let file = Gguf::new()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &tokens)
        .integers("tokenizer.ggml.token_type", &[1, 1, 1, 1, 1, 1, 1, 3, 1])
        .texts("tokenizer.ggml.merges", &merges)
        .count("tokenizer.ggml.eos_token_id", 7);
    let tokenizer = file.read().unwrap().tokenizer().unwrap();
    let ids = tokenizer.encode_text("<|e|>").unwrap();
    assert!(!ids.contains(&7) && tokenizer.is_special(7), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "<|e|>");
}

/// The eos of a file ends answers even where the file gives it no type of its own.
#[test]
fn the_end_of_text_is_special_whatever_its_type() {
    let tokens = ["a", "b", "end"].map(str::to_owned);
    let file = Gguf::new()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "default")
        .texts("tokenizer.ggml.tokens", &tokens)
        .texts("tokenizer.ggml.merges", &[])
        .count("tokenizer.ggml.eos_token_id", 2);
    let tokenizer = file.read().unwrap().tokenizer().unwrap();
    assert_eq!((tokenizer.stop_ids(), tokenizer.is_special(2)), (&[2u32][..], true));
    assert_eq!(tokenizer.encode_text("ab").unwrap(), [0, 1]);
}

/// Gemma's line breaks and runs of spaces are tokens that a user defined, of the worst score; its markers are others.
#[test]
fn white_space_that_a_file_defines_is_text_and_taken_first() {
    let tokens =
        ["end", "a", "\u{2581}", "\u{2581}a", "\n", "\n\n", "  ", "<table>"].map(str::to_owned);
    let file = Gguf::new()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .integers("tokenizer.ggml.token_type", &[3, 1, 1, 1, 4, 4, 4, 4])
        .floats("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -1.0, -1e3, -1e3, -1e3, -1e3])
        .flag("tokenizer.ggml.add_space_prefix", false)
        .count("tokenizer.ggml.eos_token_id", 0);
    let tokenizer = file.read().unwrap().tokenizer().unwrap();
    let text = "a\n\n  a a\n";
    let ids = tokenizer.encode_text(text).unwrap();
    assert_eq!(ids, [1, 5, 6, 1, 3, 4]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert!(tokenizer.is_special(7) && tokenizer.is_special(0) && !tokenizer.is_special(5));
}
