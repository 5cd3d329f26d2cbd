//! The worker's log: its stderr, kept in a file of bounded size, the last lines also in memory.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::text::printable_line;

/// The largest log of one attempt, in bytes; what comes after is read and dropped, so that the worker never waits.
const MAX_LOG_BYTES: usize = 1024 * 1024;

/// How much of the log's end is kept for messages, in bytes.
const TAIL_BYTES: usize = 8 * 1024;

/// How many lines of it are kept with a job that failed.
const TAIL_LINES: usize = 20;

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
        // Between the thread's name and these words stands its number in some versions of Rust.
        self.lines()
            .any(|line| line.starts_with("thread '") && line.ends_with(" has overflowed its stack"))
    }

    /// Returns the last line that says something, without control characters, shortened.
    pub fn last_line(&self) -> Option<String> {
        let line = self.lines().filter(|line| !line.trim().is_empty()).last()?;
        let plain = line.trim().chars().filter(|c| !c.is_control());
        Some(plain.take(MAX_QUOTED_CHARS).collect())
    }

    /// Returns the last lines, without control characters, if they say something.
    pub fn last_lines(&self) -> Option<String> {
        let lines: Vec<String> = self.lines().map(|line| printable_line(&line)).collect();
        let said: Vec<&str> =
            lines.iter().map(|line| line.trim_end()).filter(|line| !line.is_empty()).collect();
        let last = &said[said.len().saturating_sub(TAIL_LINES)..];
        (!last.is_empty()).then(|| last.join("\n"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(text: &str) -> Tail {
        copy(text.as_bytes(), None)
    }

    #[test]
    fn the_runtimes_last_words_are_understood() {
        assert!(tail("x\nmemory allocation of 2147483648 bytes failed\n").tells_out_of_memory());
        assert!(!tail("memory allocation of many bytes failed\n").tells_out_of_memory());
        for words in
            ["thread 'job' (77) has overflowed its stack", "thread 'job' has overflowed its stack"]
        {
            let text = format!("\n{words}\nfatal runtime error: stack overflow, aborting\n");
            assert!(tail(&text).tells_stack_overflow(), "{words}");
        }
        assert!(!tail("a note: thread 'x' has overflowed its stack\n").tells_stack_overflow());
    }

    #[test]
    fn a_quoted_line_is_short_and_plain() {
        assert_eq!(tail("first\n\u{1b}[31mlast\u{7}\n \n").last_line().unwrap(), "[31mlast");
        assert_eq!(
            tail(&"é".repeat(50_000)).last_line().unwrap().chars().count(),
            MAX_QUOTED_CHARS
        );
        assert_eq!(tail("\n \n").last_line(), None);
    }

    #[test]
    fn the_last_lines_are_few_and_harmless() {
        let text: String = (1..=50).map(|n| format!("line {n}\u{1b}[2J\n\n")).collect();
        let lines = tail(&text).last_lines().unwrap();
        assert_eq!(lines.lines().count(), TAIL_LINES);
        assert!(lines.starts_with("line 31\n") && lines.ends_with("\nline 50"), "{lines}");
        assert_eq!(tail("\n\n").last_lines(), None);
    }

    #[test]
    fn the_log_is_bounded_and_goes_on_in_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("job.log");
        copy(&b"one\n"[..], Some(&path));
        copy(&b"two\n"[..], Some(&path));
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        copy(vec![b'x'; 3 * MAX_LOG_BYTES].as_slice(), Some(&path));
        assert_eq!(fs::metadata(&path).unwrap().len(), 8 + MAX_LOG_BYTES as u64);
        copy(&b"anew\n"[..], Some(&path));
        assert_eq!(fs::read(&path).unwrap(), b"anew\n");
    }

    #[test]
    fn a_log_that_cannot_be_written_loses_only_its_text() {
        let nowhere = Path::new("/nonexistent/job.log");
        assert_eq!(copy(&b"last\n"[..], Some(nowhere)).last_line().unwrap(), "last");
    }
}
