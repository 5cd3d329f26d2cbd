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
use sha2::{Digest, Sha256};
use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use super::{Hub, HubError, HubId, Notice, is_hash};
use crate::models::hex;

/// Attempts for a file whose connection is cut; one that brought [`PROGRESS`] does not count.
const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; doubled for each later one.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes that are reason enough to try again without end.
const PROGRESS: u64 = 16 << 20;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Silence after which a connection counts as cut.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;
/// Digits of a SHA-256; other names of blobs are git's, whose files are small.
const SHA256_DIGITS: usize = 64;

/// Fetches the files of one commit.
pub(super) struct Transfer<'a> {
    pub hub: &'a Hub,
    pub id: &'a HubId,
    /// The repository at that commit.
    pub repo: Repo,
    pub commit: String,
    /// Its places in the cache.
    pub places: CacheRepo,
    pub agent: Agent,
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
        if link.exists() {
            let there = fs_err::canonicalize(&link)?;
            if is_whole(&there)? {
                return Ok(link);
            }
            if (self.tell)(Notice::Damaged(name)).is_break() {
                return Err(HubError::Interrupted);
            }
            fs_err::remove_file(there)?;
        }
        let remote = self.ask(name)?;
        let blob = self.places.blob_path(&remote.etag);
        let whole = blob.metadata().is_ok_and(|meta| meta.len() == remote.size);
        if !whole {
            self.download(name, &remote, &blob)?;
        }
        if let Some(folder) = link.parent() {
            fs_err::create_dir_all(folder)?;
        }
        // A link that leads nowhere may be in the way.
        let _ = fs_err::remove_file(&link);
        let up = "../".repeat(2 + name.matches('/').count());
        fs_err::os::unix::fs::symlink(Path::new(&up).join("blobs").join(&remote.etag), &link)?;
        Ok(link)
    }

    fn url(&self, name: &str) -> String {
        let (repo, revision) = (self.repo.url(), self.repo.url_revision());
        format!("{}/{repo}/resolve/{revision}/{name}", self.hub.endpoint)
    }

    /// Asks the hub for a file's hash and size, following it as long as it leads to itself.
    fn ask(&self, name: &str) -> Result<Remote, HubError> {
        let mut url = self.url(name);
        let mut response = self.request(&url, Some(0..=0))?;
        for _ in 0..MAX_REDIRECTS {
            match location(&response, &url) {
                Some(next) if same_origin(&next, &self.hub.endpoint) => {
                    response = self.request(&next, Some(0..=0))?;
                    url = next;
                }
                _ => break,
            }
        }
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(refusal(self.hub, self.id, &response, name));
        }
        let text = |key: &str| response.headers().get(key)?.to_str().ok();
        let etag = text("x-linked-etag").or_else(|| text("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let range = || text("content-range")?.rsplit('/').next();
        let length = || text("content-length").filter(|_| status == StatusCode::OK);
        let size = text("x-linked-size").or_else(range).or_else(length);
        match size.and_then(|size| size.parse().ok()) {
            Some(size) if is_hash(&etag) => Ok(Remote { etag, size }),
            _ => Err(self.answer(name, "without a hash and a size".to_owned())),
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
        let mut hash = Sha256::new();
        if remote.etag.len() == SHA256_DIGITS {
            file.rewind()?;
            io::copy(&mut file, &mut hash)?;
        }
        self.check_space(name, remote.size - done)?;
        if (self.tell)(Notice::File { name, done, size: remote.size }).is_break() {
            return Err(HubError::Interrupted);
        }
        if done < remote.size {
            self.receive(name, remote, &mut file, &mut hash)?;
        }
        let got = hex(&hash.finalize());
        if remote.etag.len() == SHA256_DIGITS && got != remote.etag {
            fs_err::remove_file(part)?;
            return Err(HubError::Hash {
                file: name.to_owned(),
                expected: remote.etag.clone(),
                got,
            });
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
        hash: &mut Sha256,
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
            (done, *hash) = (0, Sha256::new());
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
        let mut url = self.url(name);
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&url, (done > 0).then_some(done..=u64::MAX))?;
            match location(&response, &url) {
                Some(next) => url = next,
                None if response.status().is_success() => return Ok(response),
                None if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(response);
                }
                None => return Err(refusal(self.hub, self.id, &response, name)),
            }
        }
        Err(self.answer(name, "with redirects without end".to_owned()))
    }

    /// Sends one request; the token goes to the hub alone.
    fn request(
        &self,
        url: &str,
        range: Option<std::ops::RangeInclusive<u64>>,
    ) -> Result<Response<Body>, HubError> {
        let mut request = self.agent.get(url);
        if let Some(range) = range {
            let end =
                if *range.end() == u64::MAX { String::new() } else { range.end().to_string() };
            request = request.header(header::RANGE, format!("bytes={}-{end}", range.start()));
        }
        if let Some(token) =
            self.hub.token.as_ref().filter(|_| same_origin(url, &self.hub.endpoint))
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.0));
        }
        request.call().map_err(|error| unreachable(origin(url), &error))
    }

    fn check_space(&self, name: &str, needed: u64) -> Result<(), HubError> {
        let Ok(disk) = rustix::fs::statvfs(&self.hub.cache) else { return Ok(()) };
        let there = disk.f_bavail.saturating_mul(disk.f_frsize);
        if needed <= there {
            return Ok(());
        }
        let cache = self.hub.cache.clone();
        Err(HubError::NoSpace { file: name.to_owned(), cache, needed, there })
    }

    fn answer(&self, name: &str, problem: String) -> HubError {
        HubError::Answer { endpoint: self.hub.endpoint.clone(), file: name.to_owned(), problem }
    }
}

/// Whether a blob is what its name says, as far as that is a SHA-256.
fn is_whole(blob: &Path) -> Result<bool, HubError> {
    let name = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.len() != SHA256_DIGITS || !is_hash(name) {
        return Ok(true);
    }
    let mut hash = Sha256::new();
    io::copy(&mut File::open(blob)?, &mut hash)?;
    Ok(hex(&hash.finalize()) == name)
}

/// Makes what sends the requests: it follows no redirect by itself and asks for files as they are.
pub(super) fn agent() -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .accept_encoding("identity")
        .user_agent(concat!("shammah/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE));
    config.build().into()
}

/// The connection failed. The message has no path: that of a redirect is signed.
pub(super) fn unreachable(endpoint: String, error: &ureq::Error) -> HubError {
    HubError::Unreachable { endpoint, problem: error.to_string() }
}

/// Says why the hub refuses.
pub(super) fn refusal(hub: &Hub, id: &HubId, response: &Response<Body>, file: &str) -> HubError {
    let endpoint = hub.endpoint.clone();
    let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
    match (response.status().as_u16(), code) {
        (404, code) | (401 | 403, code @ Some("RevisionNotFound" | "EntryNotFound")) => {
            let (what, remedy) = match code {
                Some("EntryNotFound") => (format!("{file} in {}", id.repo), "check the id"),
                Some("RevisionNotFound") => {
                    let what = format!("revision {} of {}", id.revision(), id.repo);
                    (what, "check what stands behind the @ (a branch, a tag or a commit)")
                }
                _ => (
                    format!("model {id}"),
                    "check the spelling of id and revision; if it is private, set HF_TOKEN",
                ),
            };
            HubError::Missing { what, endpoint, remedy: remedy.to_owned() }
        }
        (status @ (401 | 403), _) => HubError::Gated {
            id: id.to_string(),
            repo: id.repo.clone(),
            endpoint,
            status,
            with_token: hub.token.is_some(),
        },
        (status, _) => {
            HubError::Answer { endpoint, file: file.to_owned(), problem: format!("HTTP {status}") }
        }
    }
}

/// Whether an answer begins at these bytes.
fn continues(response: &Response<Body>, done: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {done}-")))
}

/// Returns where a redirect leads to, as a whole URL.
fn location(response: &Response<Body>, url: &str) -> Option<String> {
    if !response.status().is_redirection() {
        return None;
    }
    let to = response.headers().get(header::LOCATION)?.to_str().ok()?;
    match to.strip_prefix('/') {
        Some(rest) if !rest.starts_with('/') => Some(format!("{}{to}", origin(url))),
        Some(_) => Some(format!("{}:{to}", url.split(':').next()?)),
        None => Some(to.to_owned()),
    }
}

/// Returns scheme, host and port of a URL.
fn origin(url: &str) -> String {
    let uri: Uri = url.parse().unwrap_or_default();
    let host = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    format!(
        "{}://{}",
        uri.scheme_str().unwrap_or_default(),
        host.rsplit('@').next().unwrap_or_default()
    )
}

fn same_origin(one: &str, other: &str) -> bool {
    origin(one).eq_ignore_ascii_case(&origin(other)) && one.contains("://")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_goes_to_the_same_scheme_host_and_port_alone() {
        let hub = "https://huggingface.co";
        assert!(same_origin("https://huggingface.co/a/b?x", hub));
        assert!(same_origin("https://HuggingFace.co/", hub));
        for other in [
            "http://huggingface.co/a",
            "https://huggingface.co:444/a",
            "https://huggingface.co.evil.org/a",
            "https://huggingface.co@evil.org/a",
            "https://cdn-lfs.huggingface.co/a",
            "not a url",
        ] {
            assert!(!same_origin(other, hub), "{other}");
        }
        assert!(!same_origin("not a url", "neither is this"));
    }
}
