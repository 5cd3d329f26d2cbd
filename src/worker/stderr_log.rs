//! The worker's log: its stderr, kept in a file of bounded size, the last lines also in memory.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use fs_err as fs;

/// The largest log of one attempt, in bytes; what comes after is read and dropped, so that the worker never waits.
const MAX_LOG_BYTES: usize = 1024 * 1024;

/// How much of the log's end is kept for messages, in bytes.
const TAIL_BYTES: usize = 8 * 1024;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 4096;

/// The longest line quoted in a message, in characters.
const MAX_QUOTED_CHARS: usize = 200;

/// The last bytes of a worker's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        if self.bytes.len() > TAIL_BYTES {
            self.bytes.drain(..self.bytes.len() - TAIL_BYTES);
        }
    }

    /// Tells whether Rust's runtime reported that an allocation failed.
    pub fn tells_out_of_memory(&self) -> bool {
        self.lines().any(|line| {
            line.strip_prefix("memory allocation of ")
                .and_then(|rest| rest.split_once(" bytes failed"))
                .is_some_and(|(count, _)| count.bytes().all(|b| b.is_ascii_digit()))
        })
    }

    /// Tells whether Rust's runtime reported that a stack overflowed.
    pub fn tells_stack_overflow(&self) -> bool {
        self.lines()
            .any(|line| line.starts_with("thread '") && line.contains("' has overflowed its stack"))
    }

    /// Returns the last line that says something, without control characters, shortened.
    pub fn last_line(&self) -> Option<String> {
        let line = self.lines().filter(|line| !line.trim().is_empty()).last()?;
        let plain = line.trim().chars().filter(|c| !c.is_control());
        Some(plain.take(MAX_QUOTED_CHARS).collect())
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.bytes.split(|&b| b == b'\n').map(|line| String::from_utf8_lossy(line).into_owned())
    }
}

/// Copies `stderr` to the log until it ends; returns the tail. A log that cannot be written loses its text, not the job.
pub fn copy(mut stderr: impl Read, path: Option<&Path>) -> Tail {
    let mut log = path.and_then(|path| open(path).ok());
    let mut written = 0;
    let mut tail = Tail::default();
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let count = match stderr.read(&mut chunk) {
            Ok(0) => return tail,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return tail,
        };
        tail.push(&chunk[..count]);
        let room = count.min(MAX_LOG_BYTES - written);
        written += room;
        if let Some(file) = &mut log
            && file.write_all(&chunk[..room]).is_err()
        {
            log = None;
        }
    }
}

/// Opens the log for appending (a retried job goes on in the same file), readable by its owner only. One that has
/// grown over its size begins anew.
fn open(path: &Path) -> io::Result<fs::File> {
    let full = fs::metadata(path).is_ok_and(|meta| meta.len() >= MAX_LOG_BYTES as u64);
    let mut options = std::fs::OpenOptions::new();
    options.create(true).write(true).mode(0o600);
    if full {
        options.truncate(true)
    } else {
        options.append(true)
    };
    fs::OpenOptions::from_options(options).open(path)
}

/// Where a worker's log is and how it ended, for a message.
pub fn last_words(tail: &Tail, path: Option<&PathBuf>) -> Option<String> {
    let line = tail.last_line()?;
    Some(match path {
        Some(path) => {
            format!("the training process's last words: {line} (log: {})", path.display())
        }
        None => format!("the training process's last words: {line}"),
    })
}
