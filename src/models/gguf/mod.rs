//! GGUF files: a model in one file, with its tokenizer and its chat template.

mod config;
mod divisors;
mod names;
mod reader;
mod tensor_type;
mod value;
mod vocabulary;
mod weights;

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use config::{Architecture, architecture};
pub use reader::{Header, Refusal, TensorInfo};
pub use value::{Integers, Metadata, Texts, Value};
pub(super) use weights::{Rows, load};

use super::{Family, ModelConfig, ModelError, Tokenizer};

/// A file whose header was read and checked against its length.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    bytes: u64,
    header: Header,
    /// What the rotary frequencies are divided by, if the file says so.
    divisors: Option<Vec<f32>>,
}

/// What a file says of its model.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// `general.name`, if the file has one.
    pub name: Option<String>,
    /// The family.
    pub family: Family,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of tensors by format.
    pub formats: BTreeMap<&'static str, u64>,
    /// Longest sequence in tokens.
    pub context_length: usize,
    /// Bytes of the whole file.
    pub bytes: u64,
    /// Whether it has a chat template.
    pub chat_template: bool,
}

impl GgufFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// A file that is missing, unreadable, truncated, hostile or of a kind that is not supported.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            let remedy = "check the path, or download the file again";
            return Err(ModelError::invalid(path, "no such file", remedy));
        }
        let file = fs_err::File::open(path)?;
        let bytes = file.metadata()?.len();
        Self::read(BufReader::new(file), bytes, path)
    }

    /// Reads the header of a file of so many bytes; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn read(mut input: impl Read + Seek, bytes: u64, path: &Path) -> Result<Self, ModelError> {
        let header = Header::read(&mut input, bytes).map_err(|refusal| match refusal {
            Refusal::Broken(problem) => ModelError::invalid(
                path,
                format!("not a whole GGUF file: {problem}"),
                "download it again",
            ),
            Refusal::Unsupported(what, remedy) => {
                ModelError::Unsupported { path: path.to_owned(), what, remedy: remedy.to_owned() }
            }
        })?;
        let mut file = Self { path: path.to_owned(), bytes, header, divisors: None };
        if let Ok(Architecture { divisors: [name, ..], .. }) = architecture(&file.header, path) {
            let divisors = divisors::read(&mut input, &file.header, name);
            file.divisors = divisors.map_err(|e| file.invalid(e))?;
        }
        match file.header.metadata.unsigned("split.count") {
            Ok(Some(parts)) if parts > 1 => Err(ModelError::Unsupported {
                path: path.to_owned(),
                what: format!("a file that is one of {parts} parts"),
                remedy: "merge them with llama.cpp's llama-gguf-split --merge".into(),
            }),
            Ok(_) => Ok(file),
            Err(problem) => Err(file.invalid(problem)),
        }
    }

    /// Describes the model without reading a weight.
    ///
    /// # Errors
    /// Metadata that describe no model of a supported family.
    pub fn describe(&self) -> Result<Description, ModelError> {
        let config = self.config()?;
        let no_weights = architecture(&self.header, &self.path)?.divisors;
        let mut formats = BTreeMap::new();
        for tensor in self.header.tensors.values() {
            *formats.entry(tensor.kind.name()).or_default() += tensor.bytes;
        }
        let text = |key: &str| self.header.metadata.text(key).map_err(|e| self.invalid(e));
        Ok(Description {
            name: text("general.name")?.map(str::to_owned),
            family: config.family,
            parameters: self
                .tensors()
                .filter(|tensor| !no_weights.contains(&tensor.name.as_str()))
                .map(TensorInfo::elements)
                .sum(),
            formats,
            context_length: config.max_position_embeddings,
            bytes: self.bytes,
            chat_template: text("tokenizer.chat_template")?.is_some(),
        })
    }

    /// Returns the name of the architecture, as the file has it.
    pub fn architecture(&self) -> Option<&str> {
        self.header.metadata.text("general.architecture").ok().flatten()
    }

    /// Returns its tensors, ordered by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.header.tensors.values()
    }

    /// Returns the model's shape.
    ///
    /// # Errors
    /// As [`Self::describe`].
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        let ends = vocabulary::ends(&self.header.metadata).map_err(|e| self.invalid(e))?;
        config::config(&self.header, self.divisors.as_deref(), &ends, &self.path)
    }

    /// Builds the tokenizer, with the file's chat template.
    ///
    /// # Errors
    /// A vocabulary that is broken or of a kind that is not supported, no token that ends an answer, a malformed template.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let parts = vocabulary::read(&self.header.metadata).map_err(|refusal| match refusal {
            vocabulary::Refusal::Broken(problem) => self.invalid(problem),
            vocabulary::Refusal::Unsupported(what, remedy) => {
                ModelError::Unsupported { path: self.path.clone(), what, remedy: remedy.to_owned() }
            }
        })?;
        let tokenizer = Tokenizer::assemble(parts.vocabulary, parts.texts, &parts.ends)?;
        if tokenizer.stop_ids().is_empty() {
            let remedy = "choose a file that names tokenizer.ggml.eos_token_id";
            return Err(ModelError::invalid(&self.path, "no token ends an answer", remedy));
        }
        Ok(tokenizer)
    }

    fn invalid(&self, problem: String) -> ModelError {
        ModelError::invalid(&self.path, problem, "choose another file of the model")
    }
}
