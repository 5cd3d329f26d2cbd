//! Text to token ids and back, so that no text of a user can become a special token.
//!
//! The crate `tokenizers` matches added tokens (`<|im_end|>`) wherever they stand. Here a template's
//! own markers become ids, and everything else is encoded by a copy without added tokens.

use std::path::Path;

use serde_json::Value;

use super::ModelError;
use super::template::ChatTemplate;
use super::vocabulary::{TokenTable, Vocabulary};
use crate::domain::{Message, Role};

/// Private-use characters that may stand in for a break inside a user's marker look-alike.
const BREAK_CANDIDATES: std::ops::RangeInclusive<char> = '\u{E000}'..='\u{E0FF}';

/// The tokens that end an answer, in the families that are supported.
const END_OF_TURN: [&str; 6] =
    ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>"];

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
    table: TokenTable,
}

/// What a chat template is rendered with.
#[derive(Default)]
pub(super) struct ChatTexts {
    /// The template's text; a base model has none.
    pub template: Option<String>,
    /// The token before a text.
    pub bos_token: Option<String>,
    /// The token behind an answer.
    pub eos_token: Option<String>,
}

/// A template's text, or in a list of named ones that of `default`.
fn template_text(value: &Value) -> Option<&str> {
    let named = |list: &'_ Vec<Value>| list.iter().position(|t| t["name"] == "default");
    match value.as_array() {
        Some(list) => list[named(list)?]["template"].as_str(),
        None => value.as_str(),
    }
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
        let vocabulary = Vocabulary::from_json(tokenizer_json).map_err(bad)?;
        let config: Value = match tokenizer_config {
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|e| bad(format!("tokenizer_config.json is not JSON: {e}")))?,
            None => Value::Null,
        };
        let texts = ChatTexts {
            template: template_text(&config["chat_template"]).map(str::to_owned),
            bos_token: token_text(&config["bos_token"]),
            eos_token: token_text(&config["eos_token"]),
        };
        Self::assemble(vocabulary, texts, eos_token_ids)
    }

    /// Puts a tokenizer together; `eos_token_ids` are those that the model's config names.
    ///
    /// # Errors
    /// A malformed template.
    pub(super) fn assemble(
        vocabulary: Vocabulary,
        texts: ChatTexts,
        eos_token_ids: &[u32],
    ) -> Result<Self, ModelError> {
        let Vocabulary { plain, added, first, table } = vocabulary;
        let ChatTexts { template, bos_token, eos_token } = texts;
        let id_of = |text: &str| added.iter().find(|(t, _)| t == text).map(|(_, id)| *id);
        let mut stop_ids: Vec<u32> = eos_token.as_deref().and_then(id_of).into_iter().collect();
        stop_ids.extend(eos_token_ids);
        stop_ids.extend(END_OF_TURN.iter().filter_map(|t| id_of(t)));
        let end_of_answer = stop_ids.first().copied();
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let template = match template {
            Some(text) => Some(ChatTemplate::new(&text, bos_token, eos_token)?),
            None => None,
        };
        Ok(Self { plain, added, template, bos: first, end_of_answer, stop_ids, table })
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
        self.table.bytes(id)
    }

    /// Returns whether the id is one of the tokens that text can never become.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_special(id)
    }

    /// Returns the number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
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

/// A token in `tokenizer_config.json` is a string, or an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}
