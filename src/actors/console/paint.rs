//! Chunks of text as bytes for the crate that draws the prompt, with what it needs to draw them right.
//!
//! rustyline-async 0.4.9 has two faults that show here. It finds the end of an open line by adding up widths, which
//! terminals count differently; so it gets whole lines only, and the open line is written again, one row up, as it grows.
//! And when a line of several rows is entered, it forgets the rows above the cursor; so they are removed afterwards.
//! Pure: text in, text out. Everything returned ends with a line break, or is empty.

use unicode_width::UnicodeWidthChar;

/// What is on the row above the prompt.
#[derive(Debug, Default)]
pub(super) struct Painter {
    /// The line of the answer that may still grow; empty when the last row is complete.
    open: String,
}

impl Painter {
    /// Returns what draws these chunks: each a whole line, the last perhaps a part of one.
    pub(super) fn chunks(&mut self, chunks: &[String]) -> String {
        let mut chunks = chunks;
        // A line that only ends is on the screen already, wherever a resize may have put it.
        if let [first, rest @ ..] = chunks
            && first == "\n"
            && !self.open.is_empty()
        {
            self.open.clear();
            chunks = rest;
        }
        if chunks.is_empty() {
            return String::new();
        }
        let mut data = String::new();
        if !self.open.is_empty() {
            data.push_str(&up(1));
            data.push_str(&self.open);
        }
        for chunk in chunks {
            data.push_str(chunk);
            if chunk.ends_with('\n') {
                self.open.clear();
            } else {
                self.open.push_str(chunk);
            }
        }
        if !self.open.is_empty() {
            data.push('\n');
        }
        data
    }

    /// Returns what replaces the crate's echo of an entered line, `shown` with its prompt, by `lines`.
    ///
    /// An echo of several rows stays, and only the rows are removed that the crate forgot below it: how many depends
    /// on where the cursor was. It is taken to have been at the end; if not, the echo loses rows, and nothing else does.
    pub(super) fn echo(&mut self, shown: &str, columns: usize, lines: &str) -> String {
        self.open.clear();
        match rows(shown, columns) {
            1 if lines.is_empty() => format!("{}{CLEAR_BELOW}{}\n", up(1), up(1)),
            1 => format!("{}{CLEAR_BELOW}{lines}", up(1)),
            n => format!("{}{CLEAR_BELOW}{}\n", up(n - 1), up(1)),
        }
    }
}

/// Erases from the cursor to the end of the screen (ED, ECMA-48).
const CLEAR_BELOW: &str = "\u{1b}[J";

/// Goes to the first column, some rows up (CUU, ECMA-48); needs at least one.
fn up(rows: usize) -> String {
    format!("\r\u{1b}[{rows}A")
}

/// Counts the rows that a text takes on a terminal that wraps anywhere.
fn rows(text: &str, columns: usize) -> usize {
    let (mut rows, mut column) = (1, 0);
    for width in text.chars().filter_map(|c| c.width()) {
        if column + width > columns.max(1) {
            rows += 1;
            column = 0;
        }
        column += width;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(painter: &mut Painter, parts: &[&str]) -> String {
        painter.chunks(&parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_open_line_is_written_again_as_it_grows() {
        let mut painter = Painter::default();
        assert_eq!(chunks(&mut painter, &["The"]), "The\n");
        assert_eq!(chunks(&mut painter, &[" answer"]), "\r\u{1b}[1AThe answer\n");
        assert_eq!(chunks(&mut painter, &[" is\n", "long"]), "\r\u{1b}[1AThe answer is\nlong\n");
        assert_eq!(chunks(&mut painter, &["\n"]), "", "it is complete on the screen");
        assert_eq!(chunks(&mut painter, &["next\n"]), "next\n");
    }

    #[test]
    fn an_empty_line_is_written_when_none_is_open() {
        let mut painter = Painter::default();
        assert_eq!(chunks(&mut painter, &["\n"]), "\n");
        assert_eq!(chunks(&mut painter, &["a"]), "a\n");
        assert_eq!(chunks(&mut painter, &["\n", "\n", "b\n"]), "\nb\n");
        assert_eq!(chunks(&mut painter, &[]), "");
    }

    #[test]
    fn the_echo_of_one_row_is_replaced_and_of_several_cleaned() {
        let mut painter = Painter::default();
        assert_eq!(painter.echo("[job 1] > hi", 80, "> hi\n"), "\r\u{1b}[1A\u{1b}[J> hi\n");
        assert_eq!(painter.echo("> ", 80, ""), "\r\u{1b}[1A\u{1b}[J\r\u{1b}[1A\n");
        let long = "x".repeat(25);
        assert_eq!(painter.echo(&long, 10, "> x\n"), "\r\u{1b}[2A\u{1b}[J\r\u{1b}[1A\n");
    }

    #[test]
    fn rows_are_counted_as_a_terminal_wraps() {
        for (text, columns, count) in [
            ("", 10, 1),
            ("0123456789", 10, 1),
            ("0123456789a", 10, 2),
            ("世世世", 5, 2),
            ("世世世", 3, 3),
        ] {
            assert_eq!(rows(text, columns), count, "{text} in {columns}");
        }
    }
}
