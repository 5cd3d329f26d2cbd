//! Text to token ids and back, so that no text of a user can become a special token.
//!
//! The crate `tokenizers` matches added tokens (`<|im_end|>`) wherever they stand. Here a template's
//! own markers become ids, and everything else is encoded by a copy without added tokens.

use std::path::Path;

use serde_json::Value;

use super::ModelError;
use super::template::ChatTemplate;
use crate::domain::{Message, Role};

/// Private-use characters that may stand in for a break inside a user's marker look-alike.
const BREAK_CANDIDATES: std::ops::RangeInclusive<char> = '\u{E000}'..='\u{E0FF}';

/// The tokens that end an answer, in the families that are supported.
const END_OF_TURN: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>"];

/// Ids from here on are hostile: the table of bytes has an entry for every id below the largest.
const MAX_ID: u32 = 1 << 22;

/// A tokenizer with its chat template.
#[derive(Debug)]
pub struct Tokenizer {
    /// The vocabulary without added tokens.
    plain: tokenizers::Tokenizer,
    /// Added tokens and their ids, longest first.
    added: Vec<(String, u32)>,
    template: Option<ChatTemplate>,
    bos: Option<u32>,
    /// The token behind an answer that is learned, where no template writes one.
    end_of_answer: Option<u32>,
    stop_ids: Vec<u32>,
    /// Raw bytes of every id; empty for added tokens.
    bytes: Vec<Vec<u8>>,
    special: Vec<bool>,
}

impl Tokenizer {
    /// Builds a tokenizer of the texts of `tokenizer.json` and, if there is one,
    /// `tokenizer_config.json`; `eos_token_ids` are those that the model's config names.
    ///
    /// # Errors
    /// Malformed files, each with `path`.
    pub fn new(
        tokenizer_json: &[u8],
        tokenizer_config: Option<&[u8]>,
        eos_token_ids: &[u32],
        path: &Path,
    ) -> Result<Self, ModelError> {
        let bad = |what: String| ModelError::invalid(path, what, "download the tokenizer again");
        let mut json: Value = serde_json::from_slice(tokenizer_json)
            .map_err(|e| bad(format!("tokenizer.json is not JSON: {e}")))?;
        let mut added = added_tokens(&json);
        json["added_tokens"] = Value::Array(Vec::new());
        forget(&mut json["model"], &added);
        let first = first_special(&json["post_processor"]).map(str::to_owned);
        json["post_processor"] = Value::Null;
        json["truncation"] = Value::Null;
        json["padding"] = Value::Null;
        let plain = tokenizers::Tokenizer::from_bytes(json.to_string().as_bytes())
            .map_err(|e| bad(format!("tokenizer.json is no tokenizer: {e}")))?;
        added.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        let config: Value = match tokenizer_config {
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|e| bad(format!("tokenizer_config.json is not JSON: {e}")))?,
            None => Value::Null,
        };
        let id_of = |text: &str| added.iter().find(|(t, _)| t == text).map(|(_, id)| *id);
        let bos_token = token_text(&config["bos_token"]);
        let eos_token = token_text(&config["eos_token"]);
        let mut stop_ids: Vec<u32> = eos_token.as_deref().and_then(id_of).into_iter().collect();
        stop_ids.extend(eos_token_ids);
        stop_ids.extend(END_OF_TURN.iter().filter_map(|t| id_of(t)));
        let end_of_answer = stop_ids.first().copied();
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let template = match config["chat_template"].as_str() {
            Some(text) => Some(ChatTemplate::new(text, bos_token.clone(), eos_token)?),
            None => None,
        };
        let bos = first.as_deref().and_then(id_of);
        let largest = plain.get_vocab(false).into_values().chain(added.iter().map(|t| t.1)).max();
        if let Some(id) = largest.filter(|id| *id >= MAX_ID) {
            return Err(bad(format!("tokenizer.json has the token id {id}, above {MAX_ID}")));
        }
        let (bytes, special) = token_table(&plain, &json, &added);
        Ok(Self { plain, added, template, bos, end_of_answer, stop_ids, bytes, special })
    }

    /// Encodes a text in which nothing is special.
    ///
    /// # Errors
    /// A tokenizer that cannot encode it.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self
            .plain
            .encode_fast(text, false)
            .map_err(|e| ModelError::Tokenizer(format!("cannot encode the text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Encodes a conversation in the model's chat template.
    ///
    /// A model without a template (a base model) gets the texts of all messages, one a line.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn render_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, ModelError> {
        let Some(template) = &self.template else {
            return self.encode_plain_conversation(messages);
        };
        let break_mark = unused_char(messages);
        let safe: Vec<Message> = messages
            .iter()
            .map(|m| Message { role: m.role, content: self.defuse(&m.content, break_mark) })
            .collect();
        let text = template.render(&safe, add_generation_prompt)?;
        self.encode_rendered(&text, break_mark)
    }

    /// Tells whether the chat template has a place for a system message: some refuse it, others leave it out.
    pub fn takes_system(&self) -> bool {
        let question = Message { role: Role::User, content: "?".to_owned() };
        let system = Message { role: Role::System, content: "!".to_owned() };
        let without = self.render_chat(std::slice::from_ref(&question), true);
        match (self.render_chat(&[system, question], true), without) {
            (Ok(with), Ok(without)) => with != without,
            _ => false,
        }
    }

    /// Encodes a conversation with the answer to learn; returns all ids, the end of turn included,
    /// and the index of the answer's first token.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn encode_answer(
        &self,
        messages: &[Message],
        target: &str,
    ) -> Result<(Vec<u32>, usize), ModelError> {
        let prompt = self.render_chat(messages, true)?;
        let mut whole = messages.to_vec();
        whole.push(Message { role: Role::Assistant, content: target.to_owned() });
        let mut ids = self.render_chat(&whole, false)?;
        let start = prompt.len();
        if self.template.is_some() && ids.len() > start && ids.starts_with(&prompt) {
            // What a template writes behind the end of turn is never generated.
            if let Some(end) = ids.iter().rposition(|id| self.stop_ids.contains(id))
                && end >= start
            {
                ids.truncate(end + 1);
                return Ok((ids, start));
            }
        }
        ids = prompt;
        ids.extend(self.encode_text(target)?);
        ids.extend(self.end_of_answer);
        Ok((ids, start))
    }

    /// Decodes ids to text, without special tokens.
    ///
    /// # Errors
    /// None at present; incomplete UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the ids that end an answer.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Returns the bytes that a token stands for; none for special tokens and unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// Returns whether the id is one of the tokens that text can never become.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Returns the number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    fn encode_plain_conversation(&self, messages: &[Message]) -> Result<Vec<u32>, ModelError> {
        let texts: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        ids.extend(self.encode_text(&texts.join("\n"))?);
        Ok(ids)
    }

    /// Finds the longest added token that a text begins with. One of a single character is a character,
    /// and no marker: nothing could break it.
    fn marker_at(&self, text: &str) -> Option<&(String, u32)> {
        let longer = |token: &str| token.chars().nth(1).is_some();
        self.added.iter().find(|(token, _)| text.starts_with(token.as_str()) && longer(token))
    }

    /// Breaks every look-alike of an added token behind its first character.
    fn defuse(&self, text: &str, break_mark: char) -> String {
        let mut safe = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            safe.push(c);
            if self.marker_at(&text[at..]).is_some() {
                safe.push(break_mark);
            }
        }
        safe
    }

    /// Encodes rendered text: markers become ids, the text between them is plain.
    fn encode_rendered(&self, text: &str, break_mark: char) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        let mut pending = 0;
        let mut at = 0;
        let flush = |from: usize, to: usize, ids: &mut Vec<u32>| -> Result<(), ModelError> {
            if from < to {
                ids.extend(self.encode_text(&text[from..to].replace(break_mark, ""))?);
            }
            Ok(())
        };
        while at < text.len() {
            let rest = &text[at..];
            match self.marker_at(rest) {
                Some((token, id)) => {
                    flush(pending, at, &mut ids)?;
                    ids.push(*id);
                    at += token.len();
                    pending = at;
                }
                None => at += rest.chars().next().map_or(1, char::len_utf8),
            }
        }
        flush(pending, text.len(), &mut ids)?;
        Ok(ids)
    }
}

/// Finds a private-use character that no message holds.
fn unused_char(messages: &[Message]) -> char {
    BREAK_CANDIDATES
        .into_iter()
        .find(|&c| messages.iter().all(|m| !m.content.contains(c)))
        .unwrap_or('\u{E000}')
}

/// Takes the added tokens out of a vocabulary in which whole words are looked up (`ignore_merges`): a
/// text could become them. Where words are merged, no merge makes a marker. The token for unknown text
/// stays: it says nothing.
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

/// A token in `tokenizer_config.json` is a string, or an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// Returns per id the bytes it stands for, and whether it is special.
fn token_table(
    plain: &tokenizers::Tokenizer,
    json: &Value,
    added: &[(String, u32)],
) -> (Vec<Vec<u8>>, Vec<bool>) {
    let byte_level = json["decoder"].to_string().contains("ByteLevel");
    let vocab = plain.get_vocab(false);
    let largest = vocab.values().chain(added.iter().map(|(_, id)| id)).max().copied();
    let size = largest.map_or(0, |id| id as usize + 1);
    let mut bytes = vec![Vec::new(); size];
    let mut special = vec![false; size];
    let from_char = byte_level_chars();
    for (token, id) in vocab {
        bytes[id as usize] = if byte_level {
            byte_level_bytes(&token, &from_char)
        } else {
            sentence_piece_bytes(&token)
        };
    }
    for (_, id) in added {
        bytes[*id as usize].clear();
        special[*id as usize] = true;
    }
    (bytes, special)
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

fn byte_level_bytes(token: &str, table: &std::collections::HashMap<char, u8>) -> Vec<u8> {
    token.chars().filter_map(|c| table.get(&c).copied()).collect()
}

/// SentencePiece writes `▁` for a space and `<0x0A>` for a byte.
fn sentence_piece_bytes(token: &str) -> Vec<u8> {
    let byte = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace('\u{2581}', " ").into_bytes(),
    }
}
