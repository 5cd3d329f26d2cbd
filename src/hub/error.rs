//! What can go wrong with models of the hub, and what to do about it. No message holds a token or a signed address.

use std::io;
use std::path::PathBuf;

use super::HubId;

/// An error of the hub and its cache.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The feature is off.
    #[error(
        "this program was built without the feature \"hub\": build it with it (cargo build --features hub), or give a \
         directory"
    )]
    NotBuilt,
    /// Neither a home directory nor a variable that names the cache.
    #[error("there is no home directory for models of the hub: set HF_HOME to a directory")]
    NoHome,
    /// The token cannot stand in a header; it is not shown.
    #[error(
        "the token of HF_TOKEN or of its file has spaces or other signs that no token has: set HF_TOKEN anew"
    )]
    Token,
    /// No file is there, and the text is no id either.
    #[error("{path}: no such model directory or file; {remedy}")]
    NoPath {
        /// The path as it was given.
        path: String,
        /// What to do.
        remedy: String,
    },
    /// The cache has no such model, or not all of it.
    #[error(
        "{id} is no directory, and as a model of the hub it is not in the cache {cache} ({why}): fetch it with `shammah \
         models pull {id}`"
    )]
    NotCached {
        /// The id as it was given.
        id: HubId,
        /// The cache.
        cache: PathBuf,
        /// What is missing.
        why: String,
    },
    /// `HF_HUB_OFFLINE` forbids the download.
    #[error(
        "{id} would have to be fetched, and HF_HUB_OFFLINE forbids it: unset HF_HUB_OFFLINE, or choose a model that \
         `shammah models list` shows"
    )]
    Offline {
        /// The id.
        id: String,
    },
    /// 401 or 403.
    #[error("{endpoint} does not let {id} be read (HTTP {status}): {}", gated(.endpoint, .repo, *.with_token))]
    Gated {
        /// The id.
        id: String,
        /// The repository.
        repo: String,
        /// The hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The hub has no such repository, revision or file.
    #[error("{endpoint} has no {what}: {remedy}")]
    Missing {
        /// What was asked for.
        what: String,
        /// The hub.
        endpoint: String,
        /// What to do.
        remedy: String,
    },
    /// Nobody answers.
    #[error(
        "cannot reach {endpoint}: {problem}: check the network (HF_ENDPOINT and proxies too); models that are in the \
         cache work without it"
    )]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// What the connection said.
        problem: String,
    },
    /// The answer is not that of a hub.
    #[error("{endpoint} answered {problem} for {file}: try again later, or check HF_ENDPOINT")]
    Answer {
        /// The hub.
        endpoint: String,
        /// The file that was asked for.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// The connection was cut again and again.
    #[error(
        "{file} was cut at {done} of {size} bytes: {problem}: run the command again, it goes on from there"
    )]
    Cut {
        /// The file.
        file: String,
        /// Bytes that are kept.
        done: u64,
        /// Bytes of the whole.
        size: u64,
        /// What the connection said.
        problem: String,
    },
    /// The bytes are not those whose hash the hub names.
    #[error(
        "{file} does not have the hash that the hub names ({expected}, got {got}): what was fetched is removed; run the \
         command again, and if it happens again, something on the way (proxy, mirror) changes files"
    )]
    Hash {
        /// The file.
        file: String,
        /// What the hub says.
        expected: String,
        /// What was computed.
        got: String,
    },
    /// The cache cannot be written.
    #[error(
        "cannot write the cache: {source}: make room and the directory writable, or set HF_HUB_CACHE to another"
    )]
    Cache {
        /// The system's error, with the path.
        #[from]
        source: io::Error,
    },
    /// The cache cannot be read.
    #[error("cannot read the cache of models: {source}")]
    Read {
        /// The system's error, with the path.
        source: io::Error,
    },
    /// The file does not fit on the disk.
    #[error(
        "{file} needs {needed} bytes more and the disk of {cache} has {there}: make room, or set HF_HUB_CACHE to another \
         directory"
    )]
    NoSpace {
        /// The file.
        file: String,
        /// The cache.
        cache: PathBuf,
        /// Bytes still to come.
        needed: u64,
        /// Bytes that are free.
        there: u64,
    },
    /// Another process fetches the same file.
    #[error("another process is fetching {file}: wait for it, then run the command again")]
    Busy {
        /// The file.
        file: String,
    },
    /// The repository has nothing that this program loads.
    #[error("{id} has no {missing}: {remedy}")]
    NoModel {
        /// The id.
        id: String,
        /// The file.
        missing: &'static str,
        /// What to do.
        remedy: String,
    },
    /// The user broke it off.
    #[error("the download was broken off; what was fetched is kept")]
    Interrupted,
}

fn gated(endpoint: &str, repo: &str, with_token: bool) -> String {
    let token = if with_token {
        "and check that the token of HF_TOKEN belongs to that account and may read it"
    } else {
        "and set HF_TOKEN to a token of that account (none was sent)"
    };
    format!(
        "check the id; if it is gated or private, accept its licence at {endpoint}/{repo} with your account, {token}"
    )
}
