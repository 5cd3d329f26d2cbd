//! Streamed text as chunks that a screen can take: wrapped below its width, one open line at most.
//!
//! The answer of a model comes in pieces that end anywhere; notices come in the middle of it. [`Flow`] knows which column
//! the open line has reached, holds a word back until it is whole, and breaks the line before it is full: a terminal that
//! wraps by itself would leave the cursor where nobody knows. Pure: no terminal, no clock.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Columns of a tab: enough to see an indent, few enough for 50 columns.
const TAB: &str = "    ";
/// Joins two emoji to one.
const ZERO_WIDTH_JOINER: char = '\u{200d}';
/// The narrowest screen that is wrapped for: below it every word would be broken.
const NARROWEST: usize = 8;

/// How lines end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrap {
    /// Only where the text has a line break: for files and pipes.
    Never,
    /// Before a column, anywhere.
    Hard(usize),
    /// Before a column, between words.
    Words(usize),
}

impl Wrap {
    /// Returns the wrapping for a terminal: its last column stays free, so that it never wraps by itself.
    pub fn for_terminal(columns: usize, words: bool) -> Self {
        let limit = columns.saturating_sub(1).max(NARROWEST);
        if words { Wrap::Words(limit) } else { Wrap::Hard(limit) }
    }

    fn limit(self) -> usize {
        match self {
            Wrap::Never => usize::MAX,
            Wrap::Hard(limit) | Wrap::Words(limit) => limit,
        }
    }
}

/// The state of the stream of text.
///
/// Every method returns chunks: each ends with `\n`, or is a non-empty part of the open line.
#[derive(Debug)]
pub struct Flow {
    wrap: Wrap,
    /// Columns of the open line that are on the screen.
    column: usize,
    /// Whether anything of the open line is on the screen, be it of no width.
    open: bool,
    /// White space that is written only if a word follows on the same line.
    space: String,
    /// The word that may still grow.
    word: String,
    chunks: Vec<String>,
    current: String,
}

impl Flow {
    /// Starts at the beginning of a line.
    pub fn new(wrap: Wrap) -> Self {
        Self {
            wrap,
            column: 0,
            open: false,
            space: String::new(),
            word: String::new(),
            chunks: Vec::new(),
            current: String::new(),
        }
    }

    /// Whether a line is open on the screen.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Takes in the next piece of an answer, made printable before.
    pub fn piece(&mut self, text: &str) -> Vec<String> {
        for c in text.chars() {
            self.push(c);
        }
        self.take()
    }

    /// Ends the answer: what was held back is written, and the line closed.
    pub fn end(&mut self) -> Vec<String> {
        self.write_word();
        self.space.clear();
        if self.open {
            self.break_line();
        }
        self.take()
    }

    /// Writes whole lines: an open line is closed before, and a word of the answer that is not whole yet comes after.
    pub fn lines(&mut self, text: &str) -> Vec<String> {
        let mut chunks = self.interrupt();
        for line in text.trim_end_matches('\n').split('\n') {
            let mut apart = Flow::new(self.wrap);
            let mut written = apart.piece(line);
            written.extend(apart.end());
            if written.is_empty() {
                written.push("\n".to_owned());
            }
            chunks.extend(joined(written));
        }
        chunks
    }

    /// Closes the open line without ending the answer.
    pub fn interrupt(&mut self) -> Vec<String> {
        self.space.clear();
        if self.open {
            self.break_line();
        }
        self.take()
    }

    /// Changes the wrapping; an open line is closed, as nobody knows where the terminal has put it.
    pub fn rewrap(&mut self, wrap: Wrap) -> Vec<String> {
        if wrap == self.wrap {
            return Vec::new();
        }
        self.wrap = wrap;
        self.interrupt()
    }

    fn push(&mut self, c: char) {
        if self.wrap == Wrap::Never {
            self.current.push(c);
            self.open = c != '\n';
            return;
        }
        match c {
            '\n' => {
                self.write_word();
                self.space.clear();
                self.break_line();
            }
            '\t' => {
                self.write_word();
                self.space.push_str(TAB);
            }
            c if c.is_whitespace() && c != '\u{a0}' => {
                self.write_word();
                self.space.push(' ');
            }
            c => self.push_letter(c),
        }
    }

    fn push_letter(&mut self, c: char) {
        let width = c.width().unwrap_or(0);
        let joins = width == 0 || self.word.ends_with(ZERO_WIDTH_JOINER);
        let after_wide = self.word.chars().any(|c| c.width() == Some(2));
        // Scripts without spaces break between any two wide characters.
        if !joins && (self.wrap_anywhere() || width == 2 || after_wide) {
            self.write_word();
        }
        if self.word.width() + width > self.wrap.limit() {
            self.write_word();
        }
        self.word.push(c);
    }

    fn wrap_anywhere(&self) -> bool {
        matches!(self.wrap, Wrap::Hard(_))
    }

    /// Writes the held word on this line if it fits, else on the next.
    fn write_word(&mut self) {
        if self.word.is_empty() {
            return;
        }
        let word = std::mem::take(&mut self.word);
        let mut space = std::mem::take(&mut self.space);
        let width = word.width();
        let limit = self.wrap.limit();
        if self.column > 0 && self.column + space.width() + width > limit {
            self.break_line();
            space.clear();
        }
        // An indent wider than the screen would push its word out.
        space.truncate(limit.saturating_sub(width));
        self.column += space.width() + width;
        self.open = true;
        self.current.push_str(&space);
        self.current.push_str(&word);
    }

    fn break_line(&mut self) {
        let mut line = std::mem::take(&mut self.current);
        line.push('\n');
        self.chunks.push(line);
        self.column = 0;
        self.open = false;
    }

    fn take(&mut self) -> Vec<String> {
        let mut chunks = std::mem::take(&mut self.chunks);
        if !self.current.is_empty() {
            chunks.push(std::mem::take(&mut self.current));
        }
        chunks
    }
}

/// Joins parts of lines, so that every chunk is a whole line.
fn joined(chunks: Vec<String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for chunk in chunks {
        match lines.last_mut() {
            Some(last) if !last.ends_with('\n') => last.push_str(&chunk),
            _ => lines.push(chunk),
        }
    }
    lines
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
