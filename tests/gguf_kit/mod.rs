//! Writes GGUF files, whole ones and others.
#![allow(dead_code, reason = "each test uses some of it")]

use std::io::Cursor;
use std::path::Path;

use serde_json::Value;
use shammah::models::ModelError;
use shammah::models::gguf::GgufFile;

/// Numbers of types, as the format gives them.
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const TEXT: u32 = 8;
pub const ARRAY: u32 = 9;

/// A tensor of the directory; `dims` as in the file, fastest first.
pub struct Entry {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

/// A file in the making.
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    pub values: Vec<Vec<u8>>,
    pub tensors: Vec<Entry>,
    /// Bytes of data, zeros.
    pub data: usize,
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

pub fn array(kind: u32, items: &[Vec<u8>]) -> Vec<u8> {
    let length = (items.len() as u64).to_le_bytes();
    [kind.to_le_bytes().as_slice(), &length, &items.concat()].concat()
}

impl Gguf {
    pub fn new() -> Self {
        Self { magic: *b"GGUF", version: 3, values: Vec::new(), tensors: Vec::new(), data: 0 }
    }

    pub fn value(mut self, key: &str, kind: u32, bytes: &[u8]) -> Self {
        self.values.push([&text(key), kind.to_le_bytes().as_slice(), bytes].concat());
        self
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.value(key, TEXT, &text(value))
    }

    pub fn count(self, key: &str, value: u32) -> Self {
        self.value(key, U32, &value.to_le_bytes())
    }

    pub fn float(self, key: &str, value: f32) -> Self {
        self.value(key, F32, &value.to_le_bytes())
    }

    pub fn flag(self, key: &str, value: bool) -> Self {
        self.value(key, BOOL, &[value.into()])
    }

    pub fn texts(self, key: &str, values: &[String]) -> Self {
        let items: Vec<Vec<u8>> = values.iter().map(|v| text(v)).collect();
        self.value(key, ARRAY, &array(TEXT, &items))
    }

    pub fn integers(self, key: &str, values: &[i32]) -> Self {
        let items: Vec<Vec<u8>> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.value(key, ARRAY, &array(I32, &items))
    }

    pub fn floats(self, key: &str, values: &[f32]) -> Self {
        let items: Vec<Vec<u8>> = values.iter().map(|v| v.to_le_bytes().to_vec()).collect();
        self.value(key, ARRAY, &array(F32, &items))
    }

    /// Adds a tensor of f32 behind the others.
    pub fn tensor(mut self, name: &str, dims: &[u64]) -> Self {
        let offset = self.data as u64;
        self.tensors.push(Entry { name: name.into(), dims: dims.to_vec(), kind: 0, offset });
        self.data += (4 * dims.iter().product::<u64>()).next_multiple_of(32) as usize;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [self.magic.as_slice(), &self.version.to_le_bytes()].concat();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        out.extend(self.values.concat());
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32) + self.data, 0);
        out
    }

    pub fn read(&self) -> Result<GgufFile, ModelError> {
        read(&self.bytes())
    }

    /// A tokenizer as converters write it, made of a `tokenizer.json` and a `tokenizer_config.json`.
    pub fn tokenizer(self, pre: &str, json: &Value, config: &Value) -> Self {
        let vocab = json["model"]["vocab"].as_object().unwrap();
        let added = json["added_tokens"].as_array().unwrap();
        let id_of = |v: &Value| v.as_u64().unwrap() as usize;
        let ids = vocab.values().chain(added.iter().map(|t| &t["id"])).map(id_of);
        let size = ids.max().unwrap() + 1;
        let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![5; size];
        for (token, id) in vocab {
            tokens[id_of(id)] = token.clone();
            types[id_of(id)] = if token.starts_with("<0x") { 6 } else { 1 };
        }
        for token in added {
            let id = id_of(&token["id"]);
            tokens[id] = token["content"].as_str().unwrap().to_owned();
            types[id] = if token["special"] == true { 3 } else { 4 };
        }
        let name = |key: &str| config[key].as_str().or_else(|| config[key]["content"].as_str());
        let id = |text: &str| tokens.iter().position(|t| t == text).unwrap() as u32;
        let mut file = self;
        for (key, token) in [("bos", name("bos_token")), ("eos", name("eos_token"))] {
            if let Some(token) = token {
                file = file.count(&format!("tokenizer.ggml.{key}_token_id"), id(token));
            }
        }
        if let Some(template) = config["chat_template"].as_str() {
            file = file.text("tokenizer.chat_template", template);
        }
        if pre.is_empty() {
            types[0] = 2;
            // As SentencePiece scores byte pairs: the earlier, the better.
            let scores: Vec<f32> = (0..size).map(|id| 259.0 - id as f32).collect();
            return file
                .text("tokenizer.ggml.model", "llama")
                .count("tokenizer.ggml.unknown_token_id", 0)
                .texts("tokenizer.ggml.tokens", &tokens)
                .integers("tokenizer.ggml.token_type", &types)
                .floats("tokenizer.ggml.scores", &scores);
        }
        let merge = |m: &Value| match m.as_array() {
            Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            None => m.as_str().unwrap().to_owned(),
        };
        let merges = json["model"]["merges"].as_array().unwrap().iter().map(merge);
        file.text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", &tokens)
            .integers("tokenizer.ggml.token_type", &types)
            .texts("tokenizer.ggml.merges", &merges.collect::<Vec<_>>())
    }
}

/// Reads a file's header from memory.
pub fn read(bytes: &[u8]) -> Result<GgufFile, ModelError> {
    GgufFile::read(Cursor::new(bytes), bytes.len() as u64, Path::new("model.gguf"))
}
