//! One file of the hub into the cache: asked for, resumed, checked, linked.
//!
//! hf-hub 0.5 has a download of its own. It sends the token to the host that the hub redirects to, appends to what is there
//! whatever the server answers to a range, and does not look at hashes; so the bytes come through `ureq` here, which hf-hub
//! sends its requests with, into the places that hf-hub names (`blobs/ETAG.part`, `blobs/ETAG`, `snapshots/COMMIT/FILE`).

use std::fs::TryLockError;
use std::io::{self, Read, Seek, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use fs_err::File;
use hf_hub::{CacheRepo, Repo};
use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::hash::BlobHash;
use super::request::Client;
use super::{HubError, HubId, Notice, is_hash, place};

/// Attempts for a file whose connection is cut; one that brought [`PROGRESS`] does not count.
const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; doubled for each later one.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes that are reason enough to try again without end.
const PROGRESS: u64 = 16 << 20;
/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;

/// Fetches the files of one commit.
pub(super) struct Transfer<'a> {
    pub client: Client<'a>,
    pub id: &'a HubId,
    /// The repository at that commit.
    pub repo: Repo,
    pub commit: String,
    /// Its places in the cache.
    pub places: CacheRepo,
    pub tell: &'a mut dyn FnMut(Notice<'_>) -> ControlFlow<()>,
}

/// What the hub says about a file.
struct Remote {
    /// The name of its blob.
    etag: String,
    size: u64,
}

impl Transfer<'_> {
    /// Makes sure that a file is in the snapshot, and returns its path.
    pub fn file(&mut self, name: &str) -> Result<PathBuf, HubError> {
        let link = self.places.pointer_path(&self.commit).join(name);
        if let Ok(there) = fs_err::canonicalize(&link)
            && self.is_whole(name, &there)?
        {
            return Ok(link);
        }
        let remote = self.ask(name)?;
        let blob = self.places.blob_path(&remote.etag);
        let there = blob.metadata().is_ok_and(|meta| meta.len() == remote.size);
        if !(there && self.is_whole(name, &blob)?) {
            self.download(name, &remote, &blob)?;
        }
        let up = "../".repeat(2 + name.matches('/').count());
        place::link(&Path::new(&up).join("blobs").join(&remote.etag), &link)?;
        Ok(link)
    }

    /// Whether a blob is what its name says, as far as that is a hash; one that is not is removed.
    fn is_whole(&mut self, name: &str, blob: &Path) -> Result<bool, HubError> {
        let digits = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut file = match File::open(blob) {
            // Another process has found the same and removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        let mut hash = BlobHash::of(digits, file.metadata()?.len());
        hash.read(&mut file, &mut || (self.tell)(Notice::Checking(name)))?;
        if hash.check(digits).is_ok() {
            return Ok(true);
        }
        if (self.tell)(Notice::Damaged(name)).is_break() {
            return Err(HubError::Interrupted);
        }
        match fs_err::remove_file(blob) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            removed => Ok(removed.map(|()| false)?),
        }
    }

    fn url(&self, name: &str) -> String {
        let (repo, revision) = (self.repo.url(), self.repo.url_revision());
        format!("{}/{repo}/resolve/{revision}/{name}", self.client.hub.endpoint)
    }

    /// Asks the hub for a file's hash and size, following it as long as it leads to itself.
    fn ask(&self, name: &str) -> Result<Remote, HubError> {
        let follow = |range| {
            self.client.follow(self.url(name), range, name, |next| self.client.is_hub(next))
        };
        let mut response = follow(Some(0..=0))?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // An empty file has no first byte.
            response = follow(None)?;
        }
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.client.refusal(self.id, &response, name));
        }
        let text = |key: &str| response.headers().get(key)?.to_str().ok();
        let etag = text("x-linked-etag").or_else(|| text("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let range = || text("content-range")?.rsplit('/').next();
        let length = || text("content-length").filter(|_| status == StatusCode::OK);
        let size = text("x-linked-size").or_else(range).or_else(length);
        match size.and_then(|size| size.parse().ok()) {
            Some(size) if is_hash(&etag) => Ok(Remote { etag, size }),
            _ => Err(self.client.answer(name, "without a hash and a size".to_owned())),
        }
    }

    /// Fetches a file into its blob, in several attempts if connections are cut.
    fn download(&mut self, name: &str, remote: &Remote, blob: &Path) -> Result<(), HubError> {
        let part = blob.with_extension("part");
        if let Some(folder) = blob.parent() {
            fs_err::create_dir_all(folder)?;
        }
        let length = || part.metadata().map_or(0, |meta| meta.len());
        let mut attempt = 1;
        loop {
            let before = length();
            match self.attempt(name, remote, blob, &part) {
                Err(HubError::Cut { problem, .. }) if attempt < ATTEMPTS => {
                    if (self.tell)(Notice::Cut(&problem)).is_break() {
                        return Err(HubError::Interrupted);
                    }
                    attempt = if length() >= before + PROGRESS { 1 } else { attempt + 1 };
                    thread::sleep(PAUSE * 2_u32.pow(attempt.saturating_sub(2)));
                }
                end => return end,
            }
        }
    }

    fn attempt(
        &mut self,
        name: &str,
        remote: &Remote,
        blob: &Path,
        part: &Path,
    ) -> Result<(), HubError> {
        let mut file = File::options().read(true).append(true).create(true).open(part)?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(HubError::Busy { file: name.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(source.into()),
        }
        if blob.metadata().is_ok_and(|meta| meta.len() == remote.size) {
            // Another process has just finished it; what was opened is then this very blob.
            return Ok(());
        }
        let mut done = file.metadata()?.len();
        if done > remote.size {
            file.set_len(0)?;
            done = 0;
        }
        let mut hash = BlobHash::of(&remote.etag, remote.size);
        file.rewind()?;
        hash.read(&mut file, &mut || (self.tell)(Notice::Checking(name)))?;
        self.check_space(name, remote.size - done)?;
        if (self.tell)(Notice::File { name, done, size: remote.size }).is_break() {
            return Err(HubError::Interrupted);
        }
        if done < remote.size {
            self.receive(name, remote, &mut file, &mut hash)?;
        }
        if let Err(got) = hash.check(&remote.etag) {
            fs_err::remove_file(part)?;
            let (file, expected) = (name.to_owned(), remote.etag.clone());
            return Err(HubError::Hash { file, expected, got });
        }
        file.sync_all()?;
        fs_err::rename(part, blob)?;
        match (self.tell)(Notice::Whole) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(HubError::Interrupted),
        }
    }

    /// Receives the bytes behind those that are there.
    fn receive(
        &mut self,
        name: &str,
        remote: &Remote,
        file: &mut File,
        hash: &mut BlobHash,
    ) -> Result<(), HubError> {
        let mut done = file.metadata()?.len();
        let cut = |done, problem| HubError::Cut {
            file: name.to_owned(),
            done,
            size: remote.size,
            problem,
        };
        let response = match self.open(name, done) {
            // In the middle of a file it is the connection that failed, not the configuration.
            Err(HubError::Unreachable { problem, .. }) => return Err(cut(done, problem)),
            other => other?,
        };
        if done > 0 && !continues(&response, done) {
            file.set_len(0)?;
            if response.status() != StatusCode::OK {
                return Err(cut(0, "the server does not go on where it was cut".to_owned()));
            }
            // It does not know ranges: all of it comes again.
            (done, *hash) = (0, BlobHash::of(&remote.etag, remote.size));
        }
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        while done < remote.size {
            let read = match body.read(&mut piece) {
                Ok(0) => return Err(cut(done, "the connection ended".to_owned())),
                Ok(read) => read.min(usize::try_from(remote.size - done).unwrap_or(read)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(cut(done, error.to_string())),
            };
            file.write_all(&piece[..read])?;
            hash.update(&piece[..read]);
            done += read as u64;
            if (self.tell)(Notice::Bytes(done)).is_break() {
                return Err(HubError::Interrupted);
            }
        }
        Ok(())
    }

    /// Opens a file at the bytes from `done` on, wherever the hub leads to.
    fn open(&self, name: &str, done: u64) -> Result<Response<Body>, HubError> {
        let range = (done > 0).then_some(done..=u64::MAX);
        let response = self.client.follow(self.url(name), range, name, |_| true)?;
        match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            status if status.is_success() => Ok(response),
            _ => Err(self.client.refusal(self.id, &response, name)),
        }
    }

    fn check_space(&self, name: &str, needed: u64) -> Result<(), HubError> {
        let Ok(disk) = rustix::fs::statvfs(&self.client.hub.cache) else { return Ok(()) };
        let there = disk.f_bavail.saturating_mul(disk.f_frsize);
        if needed <= there {
            return Ok(());
        }
        let cache = self.client.hub.cache.clone();
        Err(HubError::NoSpace { file: name.to_owned(), cache, needed, there })
    }
}

/// Whether an answer begins at these bytes.
fn continues(response: &Response<Body>, done: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {done}-")))
}
