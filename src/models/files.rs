//! The files of a model: where they come from, what they weigh, and the hash that names their content.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ModelError;
use super::kernels::Mapping;

/// The built-in model; made by `examples/pretrain/main.rs`, described in `assets/tiny/MODEL_CARD.md`.
const BUILTIN: [(&str, &[u8]); 4] = [
    (CONFIG, include_bytes!("../../assets/tiny/config.json")),
    (TOKENIZER, include_bytes!("../../assets/tiny/tokenizer.json")),
    (TOKENIZER_CONFIG, include_bytes!("../../assets/tiny/tokenizer_config.json")),
    (WEIGHTS, include_bytes!("../../assets/tiny/model.safetensors")),
];

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Where newer versions of transformers write the chat template.
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// May name more tokens that end an answer than the config does.
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
const WEIGHTS: &str = "model.safetensors";
/// Stands for a GGUF file, whatever it is called.
const GGUF: &str = "model.gguf";
const INDEX: &str = "model.safetensors.index.json";

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModelSource {
    /// The small model inside the program.
    Builtin,
    /// A directory in Hugging Face layout.
    Dir(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
}

impl std::str::FromStr for ModelSource {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = PathBuf::from(text);
        let is_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        Ok(match text {
            "builtin" => Self::Builtin,
            _ if is_gguf => Self::Gguf(path),
            _ => Self::Dir(path),
        })
    }
}

impl std::fmt::Display for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Builtin => f.write_str("builtin"),
            Self::Dir(path) | Self::Gguf(path) => path.display().fmt(f),
        }
    }
}

impl ModelSource {
    /// Returns the path to name in messages.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Builtin => Path::new("builtin").join(file),
            Self::Dir(dir) => dir.join(file),
            Self::Gguf(path) => path.clone(),
        }
    }

    /// Returns the bytes of the model's weight files.
    ///
    /// # Errors
    /// A file that is missing, by its path.
    pub fn weight_bytes(&self) -> Result<u64, ModelError> {
        let size = |file: String| match self {
            Self::Builtin => Ok(self.read(&file)?.len() as u64),
            _ => Ok(fs_err::metadata(self.path(&file))?.len()),
        };
        self.weight_files()?.into_iter().map(size).sum()
    }

    /// Returns where its files are: a directory with what its links lead to (the hub's cache links every file), or one
    /// file; nothing of the built-in one.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Builtin => Vec::new(),
            Self::Gguf(path) => vec![path.clone()],
            Self::Dir(dir) => {
                let entries = fs_err::read_dir(dir).into_iter().flatten().flatten();
                let links = entries.map(|e| e.path()).filter(|path| path.is_symlink());
                std::iter::once(dir.clone()).chain(links).collect()
            }
        }
    }

    /// Reads a file of the model.
    ///
    /// # Errors
    /// A file that is missing or unreadable, by its path.
    pub(super) fn read(&self, file: &str) -> Result<Vec<u8>, ModelError> {
        match self {
            Self::Builtin => {
                builtin(file).map(<[u8]>::to_vec).ok_or_else(|| missing(self.path(file)))
            }
            _ => {
                let path = self.path(file);
                if !path.exists() {
                    return Err(self.lacks(file));
                }
                Ok(fs_err::read(path)?)
            }
        }
    }

    /// Maps a file of the model.
    ///
    /// # Errors
    /// A file that is missing or unreadable, by its path.
    pub(super) fn map(&self, file: &str) -> Result<Mapping, ModelError> {
        match self {
            Self::Builtin => {
                builtin(file).map(Mapping::Static).ok_or_else(|| missing(self.path(file)))
            }
            _ => {
                let file = fs_err::File::open(self.path(file))?;
                Ok(Mapping::of_file(file.file())?)
            }
        }
    }

    /// Reads a file that a model may lack.
    pub(super) fn read_optional(&self, file: &str) -> Result<Option<Vec<u8>>, ModelError> {
        match self {
            Self::Builtin => Ok(builtin(file).map(<[u8]>::to_vec)),
            _ if !self.path(file).exists() => Ok(None),
            _ => self.read(file).map(Some),
        }
    }

    /// Returns the names of the weight files: one, or the shards that the index names.
    ///
    /// # Errors
    /// A directory without weights, an index that is malformed or names a shard that is not there.
    pub(super) fn weight_files(&self) -> Result<Vec<String>, ModelError> {
        let dir = match self {
            Self::Builtin => return Ok(vec![WEIGHTS.to_owned()]),
            Self::Gguf(path) if path.exists() => return Ok(vec![GGUF.to_owned()]),
            Self::Gguf(path) => return Err(missing(path.clone())),
            Self::Dir(dir) => dir,
        };
        let index = dir.join(INDEX);
        if !index.exists() {
            return match dir.join(WEIGHTS).exists() {
                true => Ok(vec![WEIGHTS.to_owned()]),
                false => Err(self.lacks(WEIGHTS)),
            };
        }
        shards(&index)?
            .into_iter()
            .map(
                |shard| {
                    if dir.join(&shard).exists() {
                        Ok(shard)
                    } else {
                        Err(missing(dir.join(shard)))
                    }
                },
            )
            .collect()
    }
}

impl ModelSource {
    /// Says why a file is not there: often the path is not that of a model in this layout.
    fn lacks(&self, file: &str) -> ModelError {
        let Self::Dir(dir) = self else { return missing(self.path(file)) };
        let layout = "give a directory with config.json and *.safetensors, a file that ends in .gguf, a model of the hub \
                      (ORG/NAME), or \"builtin\"";
        if !dir.exists() {
            return ModelError::invalid(dir, "no such model directory", layout);
        }
        if !dir.is_dir() {
            return ModelError::invalid(dir, "neither a model directory nor a GGUF file", layout);
        }
        let is_gguf =
            |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let entries = fs_err::read_dir(dir).into_iter().flatten().flatten();
        let mut ggufs: Vec<PathBuf> = entries.map(|e| e.path()).filter(is_gguf).collect();
        ggufs.sort();
        match ggufs.first() {
            Some(first) if !dir.join(CONFIG).exists() => ModelError::invalid(
                dir,
                format!("no {CONFIG}, but GGUF files ({})", ggufs.len()),
                format!("name the file: {}", first.display()),
            ),
            _ => missing(dir.join(file)),
        }
    }
}

fn builtin(file: &str) -> Option<&'static [u8]> {
    BUILTIN.iter().find(|(name, _)| *name == file).map(|(_, bytes)| *bytes)
}

fn missing(path: PathBuf) -> ModelError {
    ModelError::invalid(path, "no such file", "download the model again, all files of it")
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads the distinct shard names of an index, sorted; each must be a plain file name.
///
/// # Errors
/// A file that is no index, or names a file outside its directory.
pub fn shards(path: &Path) -> Result<Vec<String>, ModelError> {
    let index: Index = serde_json::from_slice(&fs_err::read(path)?).map_err(|e| {
        ModelError::invalid(path, format!("not an index of shards: {e}"), "download it again")
    })?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    match names.iter().find(|n| Path::new(n).file_name() != Some(n.as_ref())) {
        Some(name) => Err(ModelError::invalid(
            path,
            format!("shard \"{name}\" is outside the model's directory"),
            "do not use this model",
        )),
        None => Ok(names),
    }
}

/// What must be unchanged for a stored hash to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HashEntry {
    size: u64,
    mtime_ns: i128,
    inode: u64,
    sha256: String,
}

/// Hashes by path, in a small JSON file.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
struct HashCache(BTreeMap<PathBuf, HashEntry>);

/// Computes the content hash (hex SHA-256) of a model's config and weights, without loading it.
///
/// Hashes of files are kept in `cache` (JSON) by path, size, modification time and inode, so that
/// gigabytes are hashed once. A cache that cannot be read or written costs time, not correctness.
///
/// # Errors
/// Missing or unreadable files.
pub fn base_hash(source: &ModelSource, cache: Option<&Path>) -> Result<String, ModelError> {
    let mut names = match source {
        ModelSource::Gguf(_) => Vec::new(),
        _ => vec![CONFIG.to_owned()],
    };
    names.extend(source.weight_files()?);
    let mut known: HashCache = cache
        .and_then(|path| fs_err::read(path).ok())
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let mut changed = false;
    let mut whole = Sha256::new();
    for name in names {
        let file_hash = match source {
            ModelSource::Builtin => hex(&Sha256::digest(source.read(&name)?)),
            _ => known.hash(&source.path(&name), &mut changed)?,
        };
        whole.update(format!("{name} {file_hash}\n"));
    }
    if let (true, Some(path)) = (changed, cache)
        && let Ok(json) = serde_json::to_vec(&known)
    {
        let temporary = path.with_extension("tmp");
        let _ = fs_err::write(&temporary, json).and_then(|()| fs_err::rename(&temporary, path));
    }
    Ok(hex(&whole.finalize()))
}

impl HashCache {
    fn hash(&mut self, path: &Path, changed: &mut bool) -> Result<String, ModelError> {
        let path = fs_err::canonicalize(path)?;
        let meta = fs_err::metadata(&path)?;
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let (size, inode) = (meta.len(), meta.ino());
        if let Some(entry) = self.0.get(&path)
            && (entry.size, entry.mtime_ns, entry.inode) == (size, mtime_ns, inode)
        {
            return Ok(entry.sha256.clone());
        }
        let mut hasher = Sha256::new();
        std::io::copy(&mut fs_err::File::open(&path)?, &mut hasher)?;
        let sha256 = hex(&hasher.finalize());
        self.0.insert(path, HashEntry { size, mtime_ns, inode, sha256: sha256.clone() });
        *changed = true;
        Ok(sha256)
    }
}

/// Writes bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
