//! The reading of byte pairs against the crate's own reader, on every tokenizer that is there.

use std::path::{Path, PathBuf};

use tokenizers::ModelWrapper as TokenizerModel;

use super::*;

const TEXTS: [&str; 7] = [
    "Hello, world! I'll see you in 2024 at 10:30.",
    "  two  spaces\n\n\tand tabs \r\n",
    "na\u{ef}ve cafe\u{301} \u{4F60}\u{597D} \u{1F600}\u{200D}\u{1F525} \u{3B1}\u{3B2}\u{3B3}",
    "fn main() { println!(\"{}\", 0x1F); } // <|im_end|>",
    "<|im_start|>user <s> <unk> </s> <think>",
    "\u{0}\u{1}\u{7F} \u{2581}x",
    "",
];

fn assert_same(name: &str, bytes: &[u8]) {
    let ours = Vocabulary::from_json(bytes).unwrap();
    let exact = Vocabulary::from_any_json(bytes).unwrap();
    assert!(serde_json::from_slice::<BytePairsFile<'_>>(bytes).is_ok(), "{name}: not read by us");
    assert_eq!((&ours.added, ours.first), (&exact.added, exact.first), "{name}");
    assert_eq!(ours.table, exact.table, "{name}");
    assert_eq!(ours.plain.get_vocab(false), exact.plain.get_vocab(false), "{name}");
    let (TokenizerModel::BPE(ours_model), TokenizerModel::BPE(exact_model)) =
        (ours.plain.get_model(), exact.plain.get_model())
    else {
        panic!("{name} is no BPE");
    };
    // All of it: vocabulary, merges with their ranks, options.
    assert!(ours_model == exact_model, "{name}: the models differ");
    for text in TEXTS {
        let ids = |v: &Vocabulary| v.plain.encode_fast(text, false).unwrap().get_ids().to_vec();
        assert_eq!(ids(&ours), ids(&exact), "{name}: {text:?}");
    }
}

#[test]
fn the_builtin_tokenizer_is_what_the_crate_reads() {
    assert_same("builtin", include_bytes!("../../assets/tiny/tokenizer.json"));
}

#[test]
fn real_tokenizers_are_what_the_crate_reads() {
    let named = std::env::var_os("SHAMMAH_SHARED").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let folder = named.unwrap_or(beside);
    for name in
        ["tokenizers/qwen2.5", "tokenizers/qwen3", "tokenizers/smollm2", "models/stories260k"]
    {
        if let Ok(bytes) = fs_err::read(folder.join(name).join("tokenizer.json")) {
            assert_same(name, &bytes);
        }
    }
}

/// Both ways of writing merges, the line of a version, whole words that are looked up.
#[test]
fn small_tokenizers_are_what_the_crate_reads() {
    let file = |merges: &str, rest: &str| {
        let vocab = r#"{"a": 0, "b": 1, "ab": 2, "<|x|>": 3}"#;
        let model = format!(r#"{{"type": "BPE", "vocab": {vocab}, "merges": {merges}{rest}}}"#);
        let added = r#"[{"id": 3, "content": "<|x|>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}]"#;
        let levels = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}"#;
        format!(
            r#"{{"version": "1.0", "added_tokens": {added}, "pre_tokenizer": {levels},
            "decoder": {levels}, "model": {model}}}"#
        )
    };
    for (merges, rest) in [
        (r#"["a b"]"#, ""),
        (r##"["#version: 0.2", "a b"]"##, ""),
        (r#"[["a", "b"]]"#, r#", "ignore_merges": true"#),
        ("[]", r#", "unk_token": "b", "fuse_unk": true, "byte_fallback": true"#),
        (r#"["a b"]"#, r#", "continuing_subword_prefix": "", "end_of_word_suffix": """#),
    ] {
        assert_same(merges, file(merges, rest).as_bytes());
    }
    // What is broken for the crate is broken here.
    for merges in [r#"["a b c"]"#, r#"["ab"]"#, r#"["a c"]"#, r#"[["a"]]"#, "[1]"] {
        let bytes = file(merges, "");
        assert!(Vocabulary::from_json(bytes.as_bytes()).is_err(), "{merges}");
        assert!(Vocabulary::from_any_json(bytes.as_bytes()).is_err(), "{merges}");
    }
}

#[test]
fn ids_beyond_all_vocabularies_are_refused() {
    let text = r#"{"version": "1.0", "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}"#;
    let error = Vocabulary::from_json(text.as_bytes()).map(|_| ()).unwrap_err();
    assert!(error.contains("4000000000, above"), "{error}");
}

/// Gemma's `tokenizer.json` names line breaks among the added tokens.
#[test]
fn white_space_among_the_added_tokens_is_text() {
    let added = |id: u32, text: &str| {
        serde_json::json!({"id": id, "content": text, "special": false, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let file = serde_json::json!({"version": "1.0", "added_tokens": [added(1, "\n"), added(2, "\n\n"), added(3, "<x>")],
        "model": {"type": "BPE", "vocab": {"a": 0, "\n": 1, "\n\n": 2, "<x>": 3}, "merges": [["\n", "\n"]]}});
    let vocabulary = Vocabulary::from_json(file.to_string().as_bytes()).unwrap();
    let ids = vocabulary.plain.encode_fast("a\n\n", false).unwrap().get_ids().to_vec();
    assert_eq!(ids, [0, 2]);
    assert_eq!((vocabulary.table.bytes(2), vocabulary.table.bytes(3)), (&b"\n\n"[..], &b""[..]));
}
