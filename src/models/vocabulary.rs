//! Vocabularies: how a tokenizer is built of its parts, whichever file they come from.
//!
//! A `tokenizer.json` of Qwen's size has 300,000 texts. Its byte-pair encoding is therefore read straight into what the
//! crate `tokenizers` builds its model of; that crate's own reader would keep every text several times over.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

/// Ids from here on are hostile: the table of bytes has an entry for every id below the largest.
const MAX_ID: u32 = 1 << 22;

/// A vocabulary without its added tokens, and these.
pub(super) struct Vocabulary {
    /// Encodes text in which nothing is special.
    pub plain: tokenizers::Tokenizer,
    /// Added tokens and their ids, longest first.
    pub added: Vec<(String, u32)>,
    /// The added token that is put before a text.
    pub first: Option<u32>,
    /// What each id stands for.
    pub table: TokenTable,
}

/// Per id, the bytes that it stands for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct TokenTable {
    bytes: Vec<u8>,
    /// Where each id's bytes end.
    ends: Vec<u32>,
    special: Vec<bool>,
}

impl TokenTable {
    /// Returns the bytes of an id; none for special and unknown ones.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }

    /// Returns whether the id is that of an added token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Returns the number of ids.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    fn new<'a>(
        vocab: impl Iterator<Item = (&'a str, u32)> + Clone,
        added: &[(String, u32)],
        byte_level: bool,
    ) -> Result<Self, String> {
        let ids = vocab.clone().map(|(_, id)| id).chain(added.iter().map(|(_, id)| *id));
        let size = match ids.max() {
            Some(id) if id >= MAX_ID => {
                return Err(format!("it has the token id {id}, above {MAX_ID}"));
            }
            Some(id) => id as usize + 1,
            None => 0,
        };
        let mut texts = vec![""; size];
        for (text, id) in vocab {
            texts[id as usize] = text;
        }
        let mut special = vec![false; size];
        for (_, id) in added {
            texts[*id as usize] = "";
            special[*id as usize] = true;
        }
        let from_char = byte_level_chars();
        let mut table = Self { special, ..Self::default() };
        for text in texts {
            if byte_level {
                table.bytes.extend(text.chars().filter_map(|c| from_char.get(&c)));
            } else {
                sentence_piece_bytes(text, &mut table.bytes);
            }
            let end = u32::try_from(table.bytes.len()).map_err(|_| "its texts are too long")?;
            table.ends.push(end);
        }
        Ok(table)
    }
}

/// The options and parts of a byte-pair encoding, named as in `tokenizer.json`.
#[derive(Deserialize)]
pub(super) struct BytePairs {
    #[serde(rename = "type")]
    kind: BytePairsKind,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Vocab,
    #[serde(deserialize_with = "merges")]
    merges: Merges,
}

#[derive(Deserialize)]
enum BytePairsKind {
    #[serde(rename = "BPE")]
    BytePairs,
}

impl BytePairs {
    /// Makes an encoding of these tokens.
    pub fn new(tokens: impl Iterator<Item = (String, u32)>, merges: Merges) -> Self {
        Self {
            kind: BytePairsKind::BytePairs,
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab: tokens.collect(),
            merges,
        }
    }

    /// Looks whole words up before it merges.
    pub fn ignoring_merges(mut self, yes: bool) -> Self {
        self.ignore_merges = yes;
        self
    }

    /// Writes characters that it lacks as bytes, or as the token for unknown text.
    pub fn falling_back(mut self, unknown: Option<String>) -> Self {
        (self.byte_fallback, self.fuse_unk, self.unk_token) = (true, true, unknown);
        self
    }

    /// Takes the added tokens out of a vocabulary in which whole words are looked up (`ignore_merges`): a text could
    /// become them. Where words are merged, no merge makes a marker. The token for unknown text stays: it says nothing.
    fn forget(&mut self, added: &[(String, u32)]) {
        if self.ignore_merges {
            for (token, _) in added.iter().filter(|(t, _)| self.unk_token.as_ref() != Some(t)) {
                self.vocab.remove(token);
            }
        }
    }

    fn build(self) -> tokenizers::Result<BPE> {
        let BytePairsKind::BytePairs = self.kind;
        let mut builder = BPE::builder()
            .vocab_and_merges(self.vocab, self.merges)
            .fuse_unk(self.fuse_unk)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges);
        if let Some(share) = self.dropout {
            builder = builder.dropout(share);
        }
        if let Some(token) = self.unk_token {
            builder = builder.unk_token(token);
        }
        if let Some(prefix) = self.continuing_subword_prefix {
            builder = builder.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = self.end_of_word_suffix {
            builder = builder.end_of_word_suffix(suffix);
        }
        builder.build()
    }
}

/// What stands around the model in `tokenizer.json`.
pub(super) struct Frame {
    /// Changes text before all else.
    pub normalizer: Value,
    /// Cuts text into words.
    pub pre_tokenizer: Value,
    /// Whether tokens write bytes in GPT-2's characters.
    pub byte_level: bool,
}

/// A `tokenizer.json` with byte pairs; all others are left to the crate's own reader.
#[derive(Deserialize)]
struct BytePairsFile<'a> {
    #[serde(default, borrow)]
    added_tokens: Vec<Added<'a>>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: BytePairs,
}

#[derive(Deserialize)]
struct Added<'a> {
    id: u32,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

impl Vocabulary {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let Ok(file) = serde_json::from_slice::<BytePairsFile<'_>>(bytes) else {
            return Self::from_any_json(bytes);
        };
        let added = file.added_tokens.into_iter().map(|t| (t.content.into_owned(), t.id));
        let added: Vec<(String, u32)> = added.filter(|(text, _)| !text.is_empty()).collect();
        let frame = Frame {
            normalizer: file.normalizer,
            pre_tokenizer: file.pre_tokenizer,
            byte_level: is_byte_level(&file.decoder),
        };
        let first = first_special(&file.post_processor).map(str::to_owned);
        Self::of_byte_pairs(file.model, frame, added, first.as_deref())
    }

    /// Builds a vocabulary of byte pairs; `first` is the added token that is put before a text.
    ///
    /// # Errors
    /// Merges of tokens that are not there, ids that are too large, an unknown frame.
    pub fn of_byte_pairs(
        mut model: BytePairs,
        frame: Frame,
        mut added: Vec<(String, u32)>,
        first: Option<&str>,
    ) -> Result<Self, String> {
        added.retain(|(text, _)| !(is_blank(text) && model.vocab.contains_key(text)));
        model.forget(&added);
        let vocab = model.vocab.iter().map(|(text, id)| (text.as_str(), *id));
        let table = TokenTable::new(vocab, &added, frame.byte_level)?;
        let mut plain = tokenizers::Tokenizer::new(model.build().map_err(no_tokenizer)?);
        let normalizer: Option<NormalizerWrapper> =
            serde_json::from_value(frame.normalizer).map_err(no_tokenizer)?;
        let pre_tokenizer: Option<PreTokenizerWrapper> =
            serde_json::from_value(frame.pre_tokenizer).map_err(no_tokenizer)?;
        plain.with_normalizer(normalizer).map_err(no_tokenizer)?;
        plain.with_pre_tokenizer(pre_tokenizer);
        Ok(Self::assemble(plain, added, first, table))
    }

    /// Reads a `tokenizer.json` of any kind.
    fn from_any_json(bytes: &[u8]) -> Result<Self, String> {
        let mut json: Value = serde_json::from_slice(bytes)
            .map_err(|e| format!("tokenizer.json is not JSON: {e}"))?;
        let added = added_tokens(&json);
        json["added_tokens"] = Value::Array(Vec::new());
        forget(&mut json["model"], &added);
        let first = first_special(&json["post_processor"]).map(str::to_owned);
        json["post_processor"] = Value::Null;
        json["truncation"] = Value::Null;
        json["padding"] = Value::Null;
        let plain =
            tokenizers::Tokenizer::from_bytes(json.to_string().as_bytes()).map_err(no_tokenizer)?;
        let vocab = plain.get_vocab(false);
        let texts = vocab.iter().map(|(text, id)| (text.as_str(), *id));
        let table = TokenTable::new(texts, &added, is_byte_level(&json["decoder"]))?;
        Ok(Self::assemble(plain, added, first.as_deref(), table))
    }

    fn assemble(
        plain: tokenizers::Tokenizer,
        mut added: Vec<(String, u32)>,
        first: Option<&str>,
        table: TokenTable,
    ) -> Self {
        let first = added.iter().find(|(text, _)| Some(text.as_str()) == first).map(|(_, id)| *id);
        added.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        Self { plain, added, first, table }
    }
}

fn no_tokenizer(error: impl fmt::Display) -> String {
    format!("tokenizer.json is no tokenizer: {error}")
}

fn is_byte_level(decoder: &Value) -> bool {
    decoder.to_string().contains("ByteLevel")
}

/// Reads merges in either way of writing them: `"a b"` or `["a", "b"]`.
fn merges<'de, D: Deserializer<'de>>(input: D) -> Result<Merges, D::Error> {
    struct List;
    impl<'de> Visitor<'de> for List {
        type Value = Merges;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("merges")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merges, A::Error> {
            let mut all = Vec::new();
            while let Some(Merge(pair)) = list.next_element()? {
                all.extend(pair);
            }
            Ok(all)
        }
    }
    input.deserialize_seq(List)
}

/// One of them; none in a line that names a version.
struct Merge(Option<(String, String)>);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge of two tokens")
            }
            fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Merge, E> {
                if line.starts_with("#version") {
                    return Ok(Merge(None));
                }
                split_merge(line).map(|pair| Merge(Some(pair))).ok_or_else(|| E::custom("a merge"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Merge, A::Error> {
                let (Some(a), Some(b)) = (pair.next_element()?, pair.next_element()?) else {
                    return Err(A::Error::custom("a merge of two tokens"));
                };
                Ok(Merge(Some((a, b))))
            }
        }
        input.deserialize_any(Pair)
    }
}

/// Whether a token is white space: some families (Gemma) add line breaks and runs of spaces to their vocabularies. They are
/// text, not markers.
pub(super) fn is_blank(token: &str) -> bool {
    token.chars().all(|c| c.is_whitespace() || c == '\u{2581}')
}

/// Splits a merge that is written with a space between its tokens.
pub(super) fn split_merge(line: &str) -> Option<(String, String)> {
    let (a, b) = line.split_once(' ').filter(|(_, b)| !b.contains(' '))?;
    Some((a.to_owned(), b.to_owned()))
}

/// As [`BytePairs::forget`], for any model.
fn forget(model: &mut Value, added: &[(String, u32)]) {
    if model["type"] == "BPE" && model["ignore_merges"] != true {
        return;
    }
    let unknown = model["unk_token"].as_str().map(str::to_owned);
    if let Some(vocab) = model["vocab"].as_object_mut() {
        for (token, _) in added.iter().filter(|(t, _)| unknown.as_ref() != Some(t)) {
            vocab.remove(token);
        }
    }
}

/// Finds the special token that a post-processor puts before a text, if it puts one.
fn first_special(processor: &Value) -> Option<&str> {
    if let Some(parts) = processor["processors"].as_array() {
        return parts.iter().find_map(first_special);
    }
    processor["single"][0]["SpecialToken"]["id"].as_str()
}

fn added_tokens(json: &Value) -> Vec<(String, u32)> {
    let entry = |t: &Value| {
        let id = u32::try_from(t["id"].as_u64()?).ok()?;
        Some((t["content"].as_str()?.to_owned(), id)).filter(|(text, _)| !text.is_empty())
    };
    json["added_tokens"].as_array().map_or_else(Vec::new, |a| a.iter().filter_map(entry).collect())
}

/// The printable characters that byte-level BPE (GPT-2) writes for the 256 bytes.
fn byte_level_chars() -> std::collections::HashMap<char, u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 256u32;
    let mut table = std::collections::HashMap::with_capacity(256);
    for byte in 0..=255u8 {
        let code = if printable(byte) {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        table.extend(char::from_u32(code).map(|c| (c, byte)));
    }
    table
}

/// SentencePiece writes `▁` for a space and `<0x0A>` for a byte.
fn sentence_piece_bytes(token: &str, out: &mut Vec<u8>) {
    let byte = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => out.push(byte),
        None => out.extend(token.replace('\u{2581}', " ").into_bytes()),
    }
}

#[cfg(test)]
#[path = "vocabulary_tests.rs"]
mod tests;
