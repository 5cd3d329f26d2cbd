//! How far a download is, on stderr: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::output;
use crate::hub::{Found, Hub, HubError, HubId, Notice};
use crate::text::{bytes, printable_line, shortened};

/// Characters of the bar.
const BAR_WIDTH: u64 = 12;
/// Characters of a file's name beside the bar: the line must not be wider than a terminal.
const NAME_WIDTH: usize = 22;
/// Clears the line of the bar.
const CLEAR_LINE: &str = "\r\u{1b}[2K";
/// Time between two bars.
const REDRAW: Duration = Duration::from_millis(100);
/// Percent between two lines.
const LINE_PERCENT: u64 = 10;

/// Fetches a model into the cache, and shows how far it is.
///
/// # Errors
/// As [`Hub::pull`]; [`HubError::Interrupted`] when `cancel` is set.
pub fn pull(hub: &Hub, id: &HubId, quiet: bool, cancel: &AtomicBool) -> Result<Found, HubError> {
    let mut screen = Screen::new(quiet);
    screen.title = Some(format!("fetching {id} into {}", hub.cache().display()));
    hub.pull(id, &mut |notice| {
        screen.show(notice);
        match cancel.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
}

struct Screen {
    /// What is said when the first file begins.
    title: Option<String>,
    terminal: bool,
    quiet: bool,
    bar_is_open: bool,
    file: File,
    /// When the bar was drawn.
    drawn: Instant,
    /// Percent of the last line.
    said: u64,
}

/// The file that is being fetched.
struct File {
    name: String,
    size: u64,
    done: u64,
    /// Bytes that were there before.
    before: u64,
    began: Instant,
}

impl File {
    fn percent(&self) -> u64 {
        self.done.saturating_mul(100).checked_div(self.size).unwrap_or(100)
    }

    /// Share, bytes and rate.
    fn line(&self, elapsed: Duration) -> String {
        let new = self.done.saturating_sub(self.before) as f64;
        let rate = new / elapsed.as_secs_f64().max(1e-3);
        let (percent, done, size) = (self.percent(), bytes(self.done), bytes(self.size));
        format!("{percent} % · {done} of {size} · {}/s", bytes(rate as u64))
    }
}

impl Screen {
    fn new(quiet: bool) -> Self {
        let now = Instant::now();
        let file = File { name: String::new(), size: 0, done: 0, before: 0, began: now };
        let terminal = io::stderr().is_terminal();
        Self { title: None, terminal, quiet, bar_is_open: false, file, drawn: now, said: 0 }
    }

    fn show(&mut self, notice: Notice<'_>) {
        match notice {
            Notice::File { name, done, size } => {
                if let Some(title) = self.title.take() {
                    self.line(&title);
                }
                let began = Instant::now();
                self.file = File { name: name.to_owned(), size, done, before: done, began };
                self.said = self.file.percent() / LINE_PERCENT;
                if done > 0 {
                    let (percent, done, size) = (self.file.percent(), bytes(done), bytes(size));
                    self.line(&format!("{name} goes on at {percent} % ({done} of {size})"));
                }
            }
            Notice::Bytes(done) => {
                // A server that does not know ranges begins again.
                self.file.before = self.file.before.min(done);
                self.file.done = done;
                self.progress();
            }
            // Nothing to see: it takes seconds even for gigabytes.
            Notice::Checking(_) => {}
            Notice::Damaged(name) => {
                self.line(&format!(
                    "{name} in the cache is damaged: it is removed and fetched anew"
                ));
            }
            Notice::Cut(problem) => {
                self.line(&format!("{}: {problem}; trying again", self.file.name));
            }
            Notice::Whole => {
                self.file.done = self.file.size;
                let line = self.file.line(self.file.began.elapsed());
                self.line(&format!("{}: {line}", self.file.name));
            }
        }
    }

    fn progress(&mut self) {
        if self.terminal {
            if self.drawn.elapsed() >= REDRAW {
                self.bar();
            }
            return;
        }
        let step = self.file.percent() / LINE_PERCENT;
        // Small files have their last line only; that one comes when the file is whole.
        if step > self.said && self.file.done < self.file.size && self.file.began.elapsed() > REDRAW
        {
            self.said = step;
            let line = self.file.line(self.file.began.elapsed());
            self.line(&format!("{}: {line}", self.file.name));
        }
    }

    fn bar(&mut self) {
        if self.quiet {
            return;
        }
        let file = &self.file;
        let filled = BAR_WIDTH * file.percent() / 100;
        let bar: String = (0..BAR_WIDTH).map(|i| if i < filled { '█' } else { '░' }).collect();
        let text = format!(
            "{} {bar} {}",
            shortened(&file.name, NAME_WIDTH),
            file.line(file.began.elapsed())
        );
        let mut out = io::stderr().lock();
        // A stderr that cannot be written is no reason to stop.
        let _ = write!(out, "{CLEAR_LINE}{}", printable_line(&text)).and_then(|()| out.flush());
        self.bar_is_open = true;
        self.drawn = Instant::now();
    }

    fn line(&mut self, text: &str) {
        self.close_bar();
        if !self.quiet {
            output::complain(text);
        }
    }

    fn close_bar(&mut self) {
        if std::mem::take(&mut self.bar_is_open) {
            let _ = write!(io::stderr().lock(), "{CLEAR_LINE}");
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close_bar();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_share_bytes_and_the_rate_of_what_came_now() {
        let file = File {
            name: "model.safetensors".to_owned(),
            size: 4 << 30,
            done: 1 << 30,
            before: 512 << 20,
            began: Instant::now(),
        };
        assert_eq!(file.line(Duration::from_secs(16)), "25 % · 1.0 GiB of 4.0 GiB · 32 MiB/s");
        let empty = File { size: 0, done: 0, before: 0, ..file };
        assert_eq!(empty.line(Duration::ZERO), "100 % · 0 B of 0 B · 0 B/s");
    }
}
