//! Models of the Hugging Face hub: ids, the cache on this machine, and (feature `hub`) downloads into it.
//!
//! The only part of the program that uses the network, and only [`Hub::pull`] does: finding a model in the cache never
//! asks anybody. The cache is the one that Hugging Face's own libraries share
//! (`models--ORG--NAME/{blobs,refs,snapshots}`), so what they fetched is found here, and the other way round.

mod cache;
mod error;
#[cfg(feature = "hub")]
mod hash;
#[cfg(feature = "hub")]
mod place;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod request;
#[cfg(feature = "hub")]
mod transfer;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::models::ModelSource;

pub use cache::{CachedModel, Found};
pub use error::HubError;

/// Where the hub is when `HF_ENDPOINT` names no other place.
const ENDPOINT: &str = "https://huggingface.co";
/// The revision of an id without one.
const MAIN: &str = "main";
/// The name of the model inside the program.
const BUILTIN: &str = "builtin";
/// Longest id that is taken; the hub's own names end at 96 characters each.
const MAX_ID: usize = 512;

/// The name of a model on the hub: `ORG/NAME`, `ORG/NAME@REVISION`, or a GGUF file in it, `ORG/NAME/FILE.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `ORG/NAME`.
    pub repo: String,
    /// The GGUF file, by its path in the repository.
    pub file: Option<String>,
    /// Branch, tag or commit; `main` when missing.
    pub revision: Option<String>,
}

impl HubId {
    /// Parses an id; `None` for what cannot be one. Whether a directory of that name exists is the caller's question.
    pub fn parse(text: &str) -> Option<Self> {
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        if text.len() > MAX_ID || !revision.is_none_or(|r| r.split('/').all(is_name)) {
            return None;
        }
        let parts: Vec<&str> = path.split('/').collect();
        let (repo, file) = parts.split_at_checked(2)?;
        // A GGUF file with one name before it is a path on this machine.
        let is_file = match file {
            [] => !is_gguf(path) && !is_gguf(text),
            _ => is_gguf(path),
        };
        (parts.iter().all(|part| is_name(part)) && is_file).then(|| Self {
            repo: repo.join("/"),
            file: (!file.is_empty()).then(|| file.join("/")),
            revision: revision.map(str::to_owned),
        })
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// A model that a text names, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Where its files are.
    pub source: ModelSource,
    /// Its id and commit if it is of the hub.
    pub of_hub: Option<(HubId, String)>,
}

impl Resolved {
    /// Returns the model of an id that was found in the cache.
    pub fn of_hub(id: HubId, found: Found) -> Self {
        let Found { path, commit } = found;
        tracing::info!("model {id}: revision {commit} in the cache, {}", path.display());
        Self { source: at(path), of_hub: Some((id, commit)) }
    }
}

/// Returns the id if a text that names a model (`--model`, `model.source`) names one of the hub. It is neither `builtin`
/// nor a path that exists, and unless it has a revision its first part is no folder: that would be a path with a slip.
pub fn named(text: &str) -> Option<HubId> {
    if text == BUILTIN || Path::new(text).exists() {
        return None;
    }
    HubId::parse(text).filter(|id| id.revision.is_some() || folder_of(text).is_none())
}

/// Finds the model that a text names: `builtin`, a path, or one of the hub that is in the cache. Asks nobody.
///
/// # Errors
/// A path where nothing is, a model of the hub that is not in the cache, or not whole.
pub fn resolve(text: &str) -> Result<Resolved, HubError> {
    if let Some(id) = named(text) {
        let found = Hub::from_env()?.cached(&id)?;
        return Ok(Resolved::of_hub(id, found));
    }
    if text != BUILTIN && !Path::new(text).exists() {
        return Err(HubError::NoPath { path: text.to_owned(), remedy: remedy(text) });
    }
    let source = if text == BUILTIN { ModelSource::Builtin } else { at(text.into()) };
    Ok(Resolved { source, of_hub: None })
}

/// Returns the model at a path.
fn at(path: PathBuf) -> ModelSource {
    if is_gguf(&path.to_string_lossy()) { ModelSource::Gguf(path) } else { ModelSource::Dir(path) }
}

/// Returns the folder on this machine that a path with several parts begins with, if it is there.
fn folder_of(text: &str) -> Option<&str> {
    let (first, _) = text.split_once('/')?;
    Path::new(first).is_dir().then_some(first)
}

/// Says what helps where a path leads nowhere.
fn remedy(text: &str) -> String {
    if text.starts_with('~') {
        return "\"~\" is expanded by shells alone: write the whole path".to_owned();
    }
    match (HubId::parse(text), folder_of(text)) {
        (Some(id), Some(folder)) => format!(
            "as there is a folder {folder} here, it is taken for a path: check it, or write {id}@{MAIN} for the model of the \
             hub"
        ),
        _ => "give a directory with config.json and *.safetensors, a GGUF file, a model of the hub (ORG/NAME or \
              ORG/NAME/FILE.gguf), or \"builtin\""
            .to_owned(),
    }
}

/// Whether a text is one part of a path on the hub: harmless as the name of a file and in a URL.
fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && part.chars().all(allowed)
}

fn is_gguf(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Whether a text is a hash in hexadecimal digits: a commit, or the name of a blob.
fn is_hash(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A secret that no message shows.
#[derive(Clone)]
struct Token(
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only downloads use it"))] String,
);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// A token that no header can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WrongToken;

/// What is told while a model is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice<'a> {
    /// A file begins, or goes on behind the bytes that are there.
    File {
        /// Its name.
        name: &'a str,
        /// Bytes that are there.
        done: u64,
        /// Bytes of the whole.
        size: u64,
    },
    /// So many bytes of the file are there now.
    Bytes(u64),
    /// The bytes of a file that is there are compared with its name; told again and again.
    Checking(&'a str),
    /// A file in the cache is not what its name says: it is removed and fetched anew.
    Damaged(&'a str),
    /// The connection was cut; it is tried again.
    Cut(&'a str),
    /// The file is there, whole.
    Whole,
}

/// The hub as the environment describes it.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The shared cache.
    cache: PathBuf,
    /// URL without a slash at its end.
    #[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "only downloads use it"))]
    endpoint: String,
    /// What is wrong with one matters only where it would be sent.
    token: Result<Option<Token>, WrongToken>,
    /// Nothing may be asked.
    offline: bool,
}

impl Hub {
    /// Reads `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE` as Hugging Face's
    /// own libraries do.
    ///
    /// # Errors
    /// No directory for the cache.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(&|name| std::env::var_os(name), std::env::home_dir())
    }

    fn from_lookup(
        lookup: &dyn Fn(&str) -> Option<OsString>,
        user: Option<PathBuf>,
    ) -> Result<Self, HubError> {
        let given = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let text = |name: &str| given(name).map(|value| value.to_string_lossy().trim().to_owned());
        let path = |name: &str| given(name).map(PathBuf::from);
        let home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(user?.join(".cache")))?;
            Some(caches.join("huggingface"))
        });
        let cache = path("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub")));
        let token = match text("HF_TOKEN") {
            Some(token) => Some(token),
            None => path("HF_TOKEN_PATH")
                .or_else(|| Some(home?.join("token")))
                .and_then(|file| fs_err::read_to_string(file).ok())
                .map(|token| token.trim().to_owned()),
        };
        let offline = ["1", "ON", "YES", "TRUE"];
        let offline = |value: String| offline.contains(&value.to_ascii_uppercase().as_str());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Self {
            cache: cache.ok_or(HubError::NoHome)?,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.filter(|token| !token.is_empty()).map(checked).transpose(),
            offline: text("HF_HUB_OFFLINE").is_some_and(offline),
        })
    }

    /// The directory of the cache.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Tells whether there is a token, which opens gated models.
    ///
    /// # Errors
    /// One that cannot be sent.
    pub fn has_token(&self) -> Result<bool, HubError> {
        self.token.as_ref().map(Option::is_some).map_err(|_| HubError::Token)
    }

    /// Whether downloads are forbidden.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// Fetches a model into the cache, going on where an earlier attempt was cut; `tell` may break it off. What is there
    /// already is not fetched again.
    ///
    /// # Errors
    /// A server that cannot be reached or refuses, files that are not what it promised, a cache that cannot be written;
    /// each says what to do.
    #[cfg(feature = "hub")]
    pub fn pull(
        &self,
        id: &HubId,
        tell: &mut dyn FnMut(Notice<'_>) -> std::ops::ControlFlow<()>,
    ) -> Result<Found, HubError> {
        if self.offline {
            return Err(HubError::Offline { id: id.to_string() });
        }
        pull::pull(self, id, tell)
    }

    /// Says that this program was built without downloads.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "hub"))]
    pub fn pull(
        &self,
        _: &HubId,
        _: &mut dyn FnMut(Notice<'_>) -> std::ops::ControlFlow<()>,
    ) -> Result<Found, HubError> {
        Err(HubError::NotBuilt)
    }
}

fn checked(token: String) -> Result<Token, WrongToken> {
    if token.bytes().all(|b| b.is_ascii_graphic()) { Ok(Token(token)) } else { Err(WrongToken) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Option<(String, Option<String>, Option<String>)> {
        HubId::parse(text).map(|id| {
            assert_eq!(id.to_string(), text);
            (id.repo, id.file, id.revision)
        })
    }

    #[test]
    fn an_id_is_an_owner_a_name_and_perhaps_a_file_and_a_revision() {
        let owned = |text: &str| Some(text.to_owned());
        assert_eq!(id("Qwen/Qwen3-0.6B"), Some(("Qwen/Qwen3-0.6B".into(), None, None)));
        assert_eq!(id("a/b@v1.0"), Some(("a/b".into(), None, owned("v1.0"))));
        assert_eq!(id("a/b@refs/pr/1"), Some(("a/b".into(), None, owned("refs/pr/1"))));
        let file = Some(("a/b".into(), owned("q4/x.gguf"), owned("main")));
        assert_eq!(id("a/b/q4/x.gguf@main"), file);
        for none in [
            "builtin",
            "a",
            "a/x.gguf",
            "a/x.GGUF",
            "a/x.gguf@main",
            "a/x@2.gguf",
            "/a/b",
            "./a",
            "../a",
            "a/../b",
            "a/b/",
            "~/b",
            "a/b/c",
            "a/b@",
            "a/b@../x",
            "a//b",
            "a/b c",
            "a/b@x y",
            "a/b?x",
            "",
        ] {
            assert_eq!(id(none), None, "{none}");
        }
    }

    #[test]
    fn what_looks_like_a_path_is_none_of_the_hub_and_its_remedy_says_so() {
        let why = |text: &str| resolve(text).unwrap_err().to_string();
        for text in ["models/x.gguf", "./a", "../a/b", "~/a", "~a/b", "/no/such", "src/nothing"] {
            assert_eq!(named(text), None, "{text}");
            assert!(why(text).starts_with(&format!("{text}: no such model directory or file; ")));
        }
        assert!(why("~/a").contains("write the whole path"));
        assert!(why("src/nothing").contains("write src/nothing@main for the model of the hub"));
        assert!(why("models/x.gguf").contains("give a directory"));
        for text in ["no-folder/x", "src/nothing@main", "no-folder/x/y.gguf"] {
            assert_eq!(named(text).unwrap().to_string(), text);
        }
    }

    fn hub(values: &[(&str, &str)]) -> Result<Hub, HubError> {
        let lookup = |name: &str| {
            values.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        Hub::from_lookup(&lookup, Some(PathBuf::from("/u")))
    }

    #[test]
    fn the_cache_is_where_the_hubs_own_libraries_have_it() {
        let cache = |values: &[(&str, &str)]| hub(values).unwrap().cache;
        assert_eq!(cache(&[]), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "")]), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/h/hub"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]), Path::new("/c"));
        assert!(matches!(Hub::from_lookup(&|_| None, None), Err(HubError::NoHome)));
    }

    #[test]
    fn a_token_comes_from_the_environment_or_its_file_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("token"), "hf_file\n").unwrap();
        let home = ("HF_HOME", folder.path().to_str().unwrap());
        let token =
            |values: &[(&str, &str)]| hub(values).unwrap().token.unwrap().map(|token| token.0);
        assert_eq!(token(&[home]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[home, ("HF_TOKEN", " hf_env ")]).as_deref(), Some("hf_env"));
        let shown = format!("{:?}", hub(&[("HF_TOKEN", "hf_secret")]).unwrap());
        assert!(!shown.contains("hf_secret"), "{shown}");
        assert_eq!(token(&[home, ("HF_TOKEN_PATH", "/no/such/file")]), None);
        assert!(hub(&[("HF_TOKEN", "hf_se cret")]).unwrap().token.is_err());
    }

    #[test]
    fn offline_and_the_endpoint_come_from_the_environment() {
        assert!(hub(&[("HF_HUB_OFFLINE", "1")]).unwrap().offline);
        assert!(hub(&[("HF_HUB_OFFLINE", "true")]).unwrap().offline);
        assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
        assert_eq!(hub(&[("HF_ENDPOINT", "http://x:1/")]).unwrap().endpoint, "http://x:1");
        assert_eq!(hub(&[]).unwrap().endpoint, ENDPOINT);
    }
}
