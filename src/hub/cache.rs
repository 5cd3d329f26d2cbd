//! The cache of models that Hugging Face's libraries share: what of it is there, without asking anybody.

use std::io;
use std::path::{Path, PathBuf};

use super::{Hub, HubError, HubId, is_gguf, is_hash, is_name};
use crate::models::{ModelError, ModelSource};

/// What the directory of a model's repository begins with.
const PREFIX: &str = "models--";
/// Stands for `/` in that name.
const SLASH: &str = "--";
/// Files that a model cannot do without, besides its weights.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];

/// A model in the cache, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The snapshot's directory, or the GGUF file that the id names.
    pub path: PathBuf,
    /// The commit.
    pub commit: String,
}

/// A snapshot in the cache, whole or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// `ORG/NAME`, and the file if it is a GGUF one.
    pub id: String,
    /// The commit.
    pub commit: String,
    /// Branches and tags that point to it.
    pub revisions: Vec<String>,
    /// The snapshot's directory, or the file.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// What is missing of it.
    pub incomplete: Option<String>,
}

impl Hub {
    /// Finds a model in the cache.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    pub fn cached(&self, id: &HubId) -> Result<Found, HubError> {
        if cfg!(not(feature = "hub")) {
            return Err(HubError::NotBuilt);
        }
        let missing =
            |why: String| HubError::NotCached { id: id.clone(), cache: self.cache.clone(), why };
        let repo = self.cache.join(folder(&id.repo));
        if !repo.is_dir() {
            return Err(missing("no revision of it".to_owned()));
        }
        let revision = id.revision();
        let commit = match fs_err::read_to_string(self.reference(&id.repo, revision)) {
            Ok(text) => text.trim().to_owned(),
            // A commit needs no reference.
            Err(_) => revision.to_owned(),
        };
        let snapshot = repo.join("snapshots").join(&commit);
        if !is_hash(&commit) || !snapshot.is_dir() {
            return Err(missing(format!("not the revision {revision}")));
        }
        match &id.file {
            Some(file) if snapshot.join(file).is_file() => {
                Ok(Found { path: snapshot.join(file), commit })
            }
            Some(file) => Err(missing(format!("{file} is missing"))),
            None => match incomplete(&snapshot) {
                None => Ok(Found { path: snapshot, commit }),
                Some(why) => Err(missing(why)),
            },
        }
    }

    /// Returns where the commit of a branch or tag is written.
    pub(super) fn reference(&self, repo: &str, revision: &str) -> PathBuf {
        self.cache.join(folder(repo)).join("refs").join(revision)
    }

    /// Lists the snapshots in the cache, by id; a cache that is not there is empty.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn list(&self) -> Result<Vec<CachedModel>, HubError> {
        let mut models = Vec::new();
        for repo in directories(&self.cache)? {
            let name = repo.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(id) = name.strip_prefix(PREFIX) else { continue };
            let id = id.replacen(SLASH, "/", 1);
            let references = references(&repo.join("refs"))?;
            for snapshot in directories(&repo.join("snapshots"))? {
                let commit = snapshot.file_name().unwrap_or_default().to_string_lossy();
                let points = references.iter().filter(|(_, to)| *to == commit);
                let model = CachedModel {
                    id: id.clone(),
                    commit: commit.to_string(),
                    revisions: points.map(|(name, _)| name.clone()).collect(),
                    bytes: 0,
                    incomplete: incomplete(&snapshot),
                    path: snapshot,
                };
                models.extend(parts(model)?);
            }
        }
        models.sort_by(|a, b| (&a.id, &a.commit).cmp(&(&b.id, &b.commit)));
        Ok(models)
    }
}

/// Returns the name of a repository's directory.
fn folder(repo: &str) -> String {
    format!("{PREFIX}{}", repo.replace('/', SLASH))
}

/// Says what is missing of a snapshot, if anything is.
fn incomplete(snapshot: &Path) -> Option<String> {
    if let Some(name) = NEEDED.iter().find(|name| !snapshot.join(name).is_file()) {
        return Some(format!("{name} is missing"));
    }
    let error = ModelSource::Dir(snapshot.to_owned()).weight_bytes().err()?;
    // By its name alone: where the cache is stands in the message already.
    Some(match &error {
        ModelError::Invalid { path, problem, .. } => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match path.exists() {
                true => format!("{name} is {problem}"),
                false => format!("{name} is missing"),
            }
        }
        _ => error.to_string(),
    })
}

/// A snapshot is a model, and so is each GGUF file in it; one of GGUF files alone is no other.
fn parts(snapshot: CachedModel) -> Result<Vec<CachedModel>, HubError> {
    let files = files(&snapshot.path)?;
    let gguf: Vec<&(PathBuf, u64)> =
        files.iter().filter(|(path, _)| is_gguf(&path.to_string_lossy())).collect();
    let part = |(path, bytes): &(PathBuf, u64)| CachedModel {
        id: format!("{}/{}", snapshot.id, path.display()),
        path: snapshot.path.join(path),
        bytes: *bytes,
        incomplete: None,
        ..snapshot.clone()
    };
    let mut found: Vec<CachedModel> = gguf.into_iter().map(part).collect();
    if found.is_empty() || snapshot.incomplete.is_none() {
        let others = files.iter().filter(|(path, _)| !is_gguf(&path.to_string_lossy()));
        let bytes = others.map(|(_, bytes)| bytes).sum();
        found.push(CachedModel { bytes, ..snapshot });
    }
    Ok(found)
}

/// Lists the directories in one, none if it is not there.
fn directories(path: &Path) -> Result<Vec<PathBuf>, HubError> {
    let mut found = entries(path)?;
    found.retain(|path| path.is_dir());
    Ok(found)
}

fn entries(path: &Path) -> Result<Vec<PathBuf>, HubError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let read = || -> io::Result<Vec<PathBuf>> {
        fs_err::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()
    };
    read().map_err(|source| HubError::Read { source })
}

/// Lists the files below a directory, by their path in it, with the bytes of what they point to.
fn files(top: &Path) -> Result<Vec<(PathBuf, u64)>, HubError> {
    let mut folders = vec![top.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            match path.metadata() {
                // A link to a folder may lead around in a circle.
                Ok(meta) if meta.is_dir() && path.is_symlink() => {}
                Ok(meta) if meta.is_dir() => folders.push(path),
                // Of a link whose blob is gone nothing is there.
                Err(_) => {}
                Ok(meta) => {
                    found.push((path.strip_prefix(top).unwrap_or(&path).to_owned(), meta.len()));
                }
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads branches and tags: name and commit.
fn references(folder: &Path) -> Result<Vec<(String, String)>, HubError> {
    let named = |(path, _): (PathBuf, u64)| {
        let commit = fs_err::read_to_string(folder.join(&path)).ok()?.trim().to_owned();
        let name = path.to_str().filter(|name| name.split('/').all(is_name))?.to_owned();
        // hf-hub writes one for a commit, too.
        (name != commit).then_some((name, commit))
    };
    Ok(files(folder)?.into_iter().filter_map(named).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn hub(cache: &Path) -> Hub {
        Hub { cache: cache.to_owned(), endpoint: String::new(), token: Ok(None), offline: true }
    }

    fn put(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    #[cfg(feature = "hub")]
    #[test]
    fn a_model_is_found_by_branch_or_commit_once_all_of_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (hub, repo) = (hub(folder.path()), folder.path().join("models--a--b"));
        let snapshot = repo.join("snapshots").join(COMMIT);
        let find = |text: &str| hub.cached(&HubId::parse(text).unwrap());
        let why = |text: &str| find(text).unwrap_err().to_string();
        assert!(why("a/b").contains("no revision of it"), "{}", why("a/b"));
        put(&repo, "refs/main", COMMIT);
        assert!(why("a/b").contains("not the revision main"));
        put(&snapshot, "config.json", "{}");
        assert!(why("a/b").contains("tokenizer.json is missing"));
        put(&snapshot, "tokenizer.json", "{}");
        put(
            &snapshot,
            "model.safetensors.index.json",
            r#"{"weight_map": {"x": "m-1.safetensors"}}"#,
        );
        assert!(why("a/b").contains("m-1.safetensors is missing"), "{}", why("a/b"));
        put(&snapshot, "m-1.safetensors", "12345");
        let found = Found { path: snapshot.clone(), commit: COMMIT.to_owned() };
        assert_eq!(find("a/b").unwrap(), found);
        assert_eq!(find(&format!("a/b@{COMMIT}")).unwrap(), found);
        assert!(
            why("a/b@v1").contains("not the revision v1")
                && why("a/b@v1").contains("models pull a/b@v1")
        );
        assert!(why("a/b/x.gguf").contains("x.gguf is missing"));
        put(&repo, "refs/main", "../../outside");
        assert!(why("a/b").contains("not the revision main"), "a reference leads nowhere else");
    }

    #[test]
    fn the_list_names_revisions_bytes_and_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let hub = hub(folder.path());
        assert_eq!(hub.list().unwrap(), []);
        let repo = folder.path().join("models--a--b--c");
        put(&repo, "refs/main", COMMIT);
        put(&repo, "refs/refs/pr/1", COMMIT);
        put(&repo, &format!("refs/{COMMIT}"), COMMIT);
        put(&repo, &format!("snapshots/{COMMIT}/config.json"), "{}");
        put(folder.path(), &format!("models--g--g/snapshots/{COMMIT}/q/x.gguf"), "123");
        put(folder.path(), "datasets--d--d/snapshots/0/x", "");
        let list = hub.list().unwrap();
        let shown: Vec<_> =
            list.iter().map(|m| (m.id.as_str(), m.bytes, m.incomplete.as_deref())).collect();
        assert_eq!(
            shown,
            [("a/b--c", 2, Some("tokenizer.json is missing")), ("g/g/q/x.gguf", 3, None)]
        );
        assert_eq!(list[0].revisions, ["main", "refs/pr/1"]);
    }

    #[test]
    fn links_to_folders_are_followed_to_models_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, disk) = (folder.path().join("cache"), folder.path().join("disk"));
        fs_err::create_dir_all(&cache).unwrap();
        let hub = hub(&cache);
        let link = |to: &Path, at: PathBuf| fs_err::os::unix::fs::symlink(to, at).unwrap();
        // A repository that was moved to another disk is one.
        let repo = disk.join("moved");
        put(&repo, "refs/main", COMMIT);
        put(&repo, &format!("snapshots/{COMMIT}/config.json"), "{}");
        put(&repo, &format!("snapshots/{COMMIT}/q/x.gguf"), "123");
        link(&repo, cache.join("models--a--b"));
        // In a snapshot they lead around in a circle, to what was counted, or nowhere.
        let snapshot = repo.join("snapshots").join(COMMIT);
        link(&snapshot, snapshot.join("q/circle"));
        link(&snapshot.join("q"), snapshot.join("again"));
        link(Path::new("nowhere"), snapshot.join("broken"));
        link(&repo, repo.join("refs/circle"));
        link(Path::new("nowhere"), cache.join("models--c--d"));
        let list = hub.list().unwrap();
        let shown: Vec<_> = list.iter().map(|m| (m.id.as_str(), m.bytes)).collect();
        assert_eq!(shown, [("a/b/q/x.gguf", 3)]);
        assert_eq!(list[0].revisions, ["main"]);
    }
}
