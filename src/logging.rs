//! The log: one file per day in the data directory, and stderr for commands that are no console.
//!
//! Control characters never get through, and an event is always one line, so that foreign text can neither steer a
//! terminal nor forge an entry. The text of chats and notes is not logged above `trace`.

use std::io::{self, Write};
use std::path::Path;

use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::text::printable_line;

/// Start of the files' names; the day follows.
const FILE_PREFIX: &str = "shammah.log";
/// Overrides every level.
const FILTER_VARIABLE: &str = "RUST_LOG";

/// How much goes where.
#[derive(Debug, Clone, Copy)]
pub struct LogPlan<'a> {
    /// Where the file goes; none is written when missing.
    pub file: Option<FilePlan<'a>>,
    /// Level of stderr; nothing goes there when missing.
    pub stderr: Option<&'a str>,
}

/// The log's files.
#[derive(Debug, Clone, Copy)]
pub struct FilePlan<'a> {
    /// Their directory.
    pub directory: &'a Path,
    /// Their level.
    pub level: &'a str,
    /// Days that are kept, each a file.
    pub keep_days: usize,
}

/// Starts logging for the life of the process. A second call changes nothing.
///
/// # Errors
/// When the log file cannot be made; stderr is logged to all the same.
pub fn init(plan: LogPlan<'_>) -> io::Result<()> {
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();
    if let Some(level) = plan.stderr {
        let layer = fmt::layer().with_ansi(false).without_time().with_target(false);
        layers.push(layer.with_writer(OneLine(io::stderr)).with_filter(filter(level)).boxed());
    }
    let mut problem = Ok(());
    if let Some(FilePlan { directory, level, keep_days }) = plan.file {
        match appender(directory, keep_days) {
            Ok(appender) => {
                // A full disk must not end in messages on the console's screen.
                let layer = fmt::layer().with_ansi(false).log_internal_errors(false);
                let layer = layer.with_writer(OneLine(appender)).with_filter(filter(level));
                layers.push(layer.boxed());
            }
            Err(error) => problem = Err(error),
        }
    }
    if tracing_subscriber::registry().with(layers).try_init().is_ok() {
        log_panics();
    }
    problem
}

fn filter(level: &str) -> EnvFilter {
    match std::env::var(FILTER_VARIABLE) {
        Ok(directives) if !directives.is_empty() => EnvFilter::new(directives),
        _ => EnvFilter::new(level),
    }
}

fn appender(directory: &Path, keep_days: usize) -> io::Result<RollingFileAppender> {
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(FILE_PREFIX)
        .max_log_files(keep_days)
        .build(directory)
        .map_err(|error| {
            io::Error::other(format!(
                "cannot log to {}: {error}: make it writable, or set log.file = false",
                directory.display()
            ))
        })
}

/// Panics go to the log instead of the screen; whoever catches them tells the user. Their messages may quote the text of
/// a chat (slicing does), so only the place is logged above `trace`.
fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = info.payload_as_str().unwrap_or("no message");
        tracing::error!(place, "panic");
        tracing::trace!(place, message, "panic");
    }));
}

/// Makes writers that keep each event on one harmless line.
struct OneLine<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for OneLine<M> {
    type Writer = OneLineWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLineWriter(self.0.make_writer())
    }
}

/// Takes one event per `write`, as the formatter does.
struct OneLineWriter<W>(W);

impl<W: Write> Write for OneLineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut line = printable_line(text.trim_end_matches('\n'));
        line.push('\n');
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_harmless_line() {
        let mut out = Vec::new();
        let event = "INFO said \u{1b}[2Jhi\nERROR forged\n";
        OneLineWriter(&mut out).write_all(event.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "INFO said hi ERROR forged\n");
    }

    #[test]
    fn the_oldest_days_go_beyond_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        for day in 1..=9 {
            fs_err::write(folder.path().join(format!("shammah.log.2026-01-0{day}")), "x").unwrap();
        }
        fs_err::write(folder.path().join("worker.log"), "x").unwrap();
        let _appender = appender(folder.path(), 3).unwrap();
        let entries = fs_err::read_dir(folder.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert!(names.contains(&"worker.log".to_owned()), "{names:?}");
        assert_eq!(
            names.iter().filter(|name| name.starts_with(FILE_PREFIX)).count(),
            3,
            "{names:?}"
        );
    }

    #[test]
    fn the_file_is_made_in_its_directory() {
        let folder = tempfile::tempdir().unwrap();
        let mut appender = appender(folder.path(), 7).unwrap();
        appender.write_all(b"x\n").unwrap();
        let names: Vec<String> = fs_err::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names.len(), 1);
        assert!(names[0].starts_with("shammah.log."), "{names:?}");
        assert!(super::appender(&folder.path().join("no\0such"), 7).is_err());
    }
}
