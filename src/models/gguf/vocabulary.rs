//! From a file's metadata to a tokenizer with its chat template.

use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};

use super::value::{Integers, Metadata, Texts, required};
use crate::models::tokenizer::ChatTexts;
use crate::models::vocabulary::{BytePairs, Frame, Vocabulary, is_blank, split_merge};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
/// Ids of tokens that end an answer: of the sequence, the turn, the message.
const ENDS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
const BOS: &str = "tokenizer.ggml.bos_token_id";
/// Bytes of a token that is split in all ways to find its merges. Gemma's longest have 93.
const MAX_MERGED_BYTES: usize = 512;

/// Tokens that a file may have, four times those of Gemma 3.
const MAX_TOKENS: usize = 1 << 20;
/// Merges that a file may have or imply, two for each token.
const MAX_MERGES: usize = 1 << 21;

/// Token types of the format.
mod kind {
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const UNUSED: i64 = 5;
}

/// How the texts of a kind of vocabulary are cut into words.
struct PreTokenizer {
    /// `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// A normalizer of the crate `tokenizers`.
    normalizer: fn() -> Json,
    /// Pre-tokenizers of that crate.
    steps: fn() -> Vec<Json>,
    /// Whether words that are in the vocabulary are not merged.
    ignores_merges: bool,
    /// Whether a text begins with the first token unless the file says otherwise.
    begins: bool,
}

/// Those of which the models' own `tokenizer.json` is known; `default` is what llama.cpp does.
const PRE_TOKENIZERS: [PreTokenizer; 6] = [
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        normalizer: || json!({"type": "NFC"}),
        steps: || {
            vec![
                split(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
                bytes(false),
            ]
        },
        ignores_merges: false,
        begins: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        normalizer: || Json::Null,
        steps: || {
            vec![
                split(
                    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
                bytes(false),
            ]
        },
        ignores_merges: true,
        begins: true,
    },
    PreTokenizer {
        names: &["tekken"],
        normalizer: || Json::Null,
        steps: || {
            vec![
                split(
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
                bytes(false),
            ]
        },
        ignores_merges: true,
        begins: true,
    },
    PreTokenizer {
        names: &["smollm"],
        normalizer: || Json::Null,
        steps: || vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)],
        ignores_merges: false,
        begins: false,
    },
    PreTokenizer {
        names: &["gpt-2"],
        normalizer: || Json::Null,
        steps: || vec![bytes(true)],
        ignores_merges: false,
        begins: false,
    },
    PreTokenizer {
        names: &["default"],
        normalizer: || Json::Null,
        steps: || {
            let parts = [
                r"[\p{P}\$\+<=>\^~\|]+",
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
                r"\p{N}+",
                "[0-9][0-9][0-9]",
            ];
            parts.into_iter().map(split).chain([bytes(false)]).collect()
        },
        ignores_merges: false,
        begins: false,
    },
];

fn split(pattern: &str) -> Json {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn bytes(words: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": words})
}

/// Why a tokenizer is refused.
pub(super) enum Refusal {
    /// Its parts contradict each other.
    Broken(String),
    /// It is of a kind that is not read; what, and a remedy.
    Unsupported(String, &'static str),
}

impl From<String> for Refusal {
    fn from(problem: String) -> Self {
        Self::Broken(problem)
    }
}

/// A file's tokens, by their types.
struct Tokens<'a> {
    texts: &'a Texts,
    types: Option<&'a Integers>,
}

/// A tokenizer's parts, and the ids that end an answer.
pub(super) struct Parts {
    pub vocabulary: Vocabulary,
    pub texts: ChatTexts,
    pub ends: Vec<u32>,
}

/// Returns the ids that end an answer, as far as the file names them.
pub(super) fn ends(metadata: &Metadata) -> Result<Vec<u32>, String> {
    let ids = ENDS.iter().map(|key| id(metadata, key));
    ids.filter_map(Result::transpose).collect()
}

fn id(metadata: &Metadata, key: &str) -> Result<Option<u32>, String> {
    let number = metadata.unsigned(key)?;
    number.map(|n| u32::try_from(n).map_err(|_| format!("{key} is {n}"))).transpose()
}

/// Reads the tokenizer.
pub(super) fn read(metadata: &Metadata) -> Result<Parts, Refusal> {
    let texts = required(TOKENS, metadata.texts(TOKENS))?;
    at_most(MAX_TOKENS, texts.len(), TOKENS)?;
    let types = metadata.integers(TYPES)?;
    if let Some(types) = types.filter(|t| t.len() != texts.len()) {
        let problem = format!("{} tokens have {} types", texts.len(), types.len());
        return Err(Refusal::Broken(problem));
    }
    let tokens = Tokens { texts, types };
    let bos = tokens.named(metadata, BOS)?;
    let mut marks: Vec<u32> = bos.iter().map(|(id, _)| *id).collect();
    for key in ENDS {
        marks.extend(tokens.named(metadata, key)?.map(|(id, _)| id));
    }
    let eos = tokens.named(metadata, ENDS[0])?.map(|(_, text)| text);
    let added = tokens.added(&marks);
    let model = required("tokenizer.ggml.model", metadata.text("tokenizer.ggml.model"))?;
    let (pairs, frame, begins) = match model {
        "gpt2" => tokens.gpt2(metadata, &added)?,
        "llama" => tokens.sentence_piece(metadata)?,
        other => {
            let what = format!("tokenizer.ggml.model \"{other}\"");
            return Err(Refusal::Unsupported(what, "choose a model with \"gpt2\" or \"llama\""));
        }
    };
    let begins = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(begins);
    let first = bos.as_ref().filter(|_| begins).map(|(_, text)| text.as_str());
    Ok(Parts {
        vocabulary: Vocabulary::of_byte_pairs(pairs, frame, added, first)?,
        texts: ChatTexts {
            template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
            bos_token: bos.as_ref().map(|(_, text)| text.clone()),
            eos_token: eos,
        },
        ends: ends(metadata)?,
    })
}

fn at_most(most: usize, count: usize, what: &str) -> Result<(), String> {
    match count > most {
        true => Err(format!("{what}: {count}, more than {most}")),
        false => Ok(()),
    }
}

impl Tokens<'_> {
    fn kind(&self, id: usize) -> i64 {
        self.types.and_then(|types| types.get(id)).unwrap_or(1)
    }

    /// Returns id and text of the token that a key names.
    fn named(&self, metadata: &Metadata, key: &str) -> Result<Option<(u32, String)>, String> {
        let Some(id) = id(metadata, key)? else { return Ok(None) };
        match self.texts.get(id as usize) {
            Some(text) => Ok(Some((id, text.to_owned()))),
            None => Err(format!("{key} is {id}, there are {} tokens", self.texts.len())),
        }
    }

    /// Returns the tokens that no text becomes: those of the types for it, and the `marks`.
    fn added(&self, marks: &[u32]) -> Vec<(String, u32)> {
        let all = self.texts.iter().zip(0u32..);
        all.filter(|(text, id)| {
            let special = match self.kind(*id as usize) {
                kind::UNKNOWN | kind::CONTROL => true,
                kind::USER_DEFINED => !is_blank(text),
                _ => false,
            };
            !text.is_empty() && (special || marks.contains(id))
        })
        .map(|(text, id)| (text.to_owned(), id))
        .collect()
    }

    /// Returns the tokens that text is encoded with, each once.
    fn plain(&self, without: &HashSet<u32>) -> Result<Vec<(String, u32)>, String> {
        let mut seen = HashSet::with_capacity(self.texts.len());
        let mut plain = Vec::with_capacity(self.texts.len());
        for (text, id) in self.texts.iter().zip(0u32..) {
            if self.kind(id as usize) == kind::UNUSED || without.contains(&id) {
                continue;
            }
            if !seen.insert(text) {
                return Err(format!("{TOKENS} has {text:?} twice"));
            }
            plain.push((text.to_owned(), id));
        }
        Ok(plain)
    }

    /// Byte pairs over GPT-2's characters for bytes.
    fn gpt2(
        &self,
        metadata: &Metadata,
        added: &[(String, u32)],
    ) -> Result<(BytePairs, Frame, bool), Refusal> {
        let pre = required("tokenizer.ggml.pre", metadata.text("tokenizer.ggml.pre"))?;
        let Some(pre) = PRE_TOKENIZERS.iter().find(|p| p.names.contains(&pre)) else {
            let what = format!("tokenizer.ggml.pre \"{pre}\"");
            return Err(Refusal::Unsupported(
                what,
                "take the model as a directory with tokenizer.json",
            ));
        };
        let plain = self.plain(&added.iter().map(|(_, id)| *id).collect())?;
        let added: HashSet<&str> = added.iter().map(|(text, _)| text.as_str()).collect();
        let mut merges = Vec::new();
        let lines = required(MERGES, metadata.texts(MERGES))?;
        at_most(MAX_MERGES, lines.len(), MERGES)?;
        for line in lines.iter() {
            let (a, b) = split_merge(line).ok_or_else(|| format!("{line:?} is no merge"))?;
            // No text may become an added token, by no merge.
            let makes_marker = [a.as_str(), b.as_str()].into_iter().any(|t| added.contains(t))
                || added.contains(format!("{a}{b}").as_str());
            if !makes_marker {
                merges.push((a, b));
            }
        }
        let pairs = BytePairs::new(plain.into_iter(), merges).ignoring_merges(pre.ignores_merges);
        let steps = json!({"type": "Sequence", "pretokenizers": (pre.steps)()});
        let normalizer = (pre.normalizer)();
        Ok((pairs, Frame { normalizer, pre_tokenizer: steps, byte_level: true }, pre.begins))
    }

    /// SentencePiece's byte pairs: of all neighbours that make a token, the one with the best score is merged.
    fn sentence_piece(&self, metadata: &Metadata) -> Result<(BytePairs, Frame, bool), Refusal> {
        if metadata.flag("tokenizer.ggml.remove_extra_whitespaces")? == Some(true) {
            let what = "tokenizer.ggml.remove_extra_whitespaces".to_owned();
            return Err(Refusal::Unsupported(what, "choose another model"));
        }
        let scores = required(SCORES, metadata.floats(SCORES))?;
        if scores.len() != self.texts.len() || scores.iter().any(|s| s.is_nan()) {
            return Err(Refusal::Broken(format!("{SCORES} does not fit {TOKENS}")));
        }
        let is_user_defined = |id: usize| self.kind(id) == kind::USER_DEFINED;
        let blank = |id: usize| is_user_defined(id) && self.texts.get(id).is_some_and(is_blank);
        let control = (0..self.texts.len())
            .filter(|id| self.kind(*id) == kind::CONTROL || is_user_defined(*id) && !blank(*id));
        let mut plain = self.plain(&control.map(|id| id as u32).collect())?;
        let mut scores = scores.to_vec();
        for (text, id) in &mut plain {
            if blank(*id as usize) {
                // Converters write their spaces as such, and they are cut out of a text before all else.
                *text = text.replace(' ', "\u{2581}");
                scores[*id as usize] = f32::INFINITY;
            }
        }
        let merges = merges_of(&plain, &scores)?;
        let unknown = self.named(metadata, "tokenizer.ggml.unknown_token_id")?;
        let unknown = unknown.map(|(_, text)| text).filter(|u| plain.iter().any(|(t, _)| t == u));
        let pairs = BytePairs::new(plain.into_iter(), merges).falling_back(unknown);
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let normalizer = match metadata.flag("tokenizer.ggml.add_space_prefix")? {
            Some(false) => spaces,
            _ => json!({"type": "Sequence", "normalizers":
                [{"type": "Prepend", "prepend": "\u{2581}"}, spaces]}),
        };
        Ok((pairs, Frame { normalizer, pre_tokenizer: Json::Null, byte_level: false }, true))
    }
}

/// Finds all pairs of tokens that make a token, best score first, as transformers does when it converts such a model.
fn merges_of(plain: &[(String, u32)], scores: &[f32]) -> Result<Vec<(String, String)>, String> {
    let ids: HashMap<&str, u32> = plain.iter().map(|(text, id)| (text.as_str(), *id)).collect();
    let mut merges = Vec::new();
    for (text, id) in plain {
        if text.len() > MAX_MERGED_BYTES {
            return Err(format!("{TOKENS} has a token of {} bytes", text.len()));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[*id as usize], *id, *l, *r, left, right));
            }
        }
        at_most(MAX_MERGES, merges.len(), "merges that make its tokens")?;
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    Ok(merges.into_iter().map(|m| (m.4.to_owned(), m.5.to_owned())).collect())
}
