//! What goes to stdout: text made harmless for a terminal, aligned tables, JSON.

use std::io::{self, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::text::{printable, printable_json, printable_line};

/// The width of pictures where nobody says another.
pub const USUAL_COLUMNS: usize = 80;
/// Names the width of a terminal that is not on stdout itself.
const COLUMNS_VARIABLE: &str = "COLUMNS";
/// Spaces between two columns.
const GAP: usize = 2;
/// Spaces before what is continued below.
const INDENT: usize = 4;

/// Returns the width that lines should have: the terminal's, or what `COLUMNS` says; `None` where both are silent.
pub fn columns() -> Option<usize> {
    let given = || std::env::var(COLUMNS_VARIABLE).ok()?.parse().ok();
    let terminal = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok();
    let width = terminal.map(|size| usize::from(size.ws_col)).or_else(given);
    width.filter(|&columns| columns > 0)
}

/// Writes a line, control characters removed.
///
/// # Errors
/// When stdout cannot be written.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(printable(text).as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes a part of a line at once, control characters removed.
///
/// # Errors
/// When stdout cannot be written.
pub fn piece(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(printable(text).as_bytes())?;
    out.flush()
}

/// Writes one JSON object on one line.
///
/// # Errors
/// When stdout cannot be written.
pub fn json<T: Serialize>(value: &T) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(printable_json(&serde_json::to_string(value)?).as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes a line to stderr, control characters removed. A closed stderr is no reason to fail.
pub fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(text));
}

/// Rows under headings, in aligned columns.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Starts a table.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()] }
    }

    /// Adds a row; each cell becomes one line.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.iter().map(|cell| printable_line(cell)).collect());
    }

    /// The columns of its widest line.
    pub fn width(&self) -> usize {
        self.render().lines().map(UnicodeWidthStr::width).max().unwrap_or(0)
    }

    /// Lays the rows out; the last column is not padded.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let lines = self.rows.iter().map(|row| {
            let mut line = String::new();
            for (cell, &width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width - cell.width() + GAP));
            }
            line.trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Lays the rows out within so many columns: what does not fit beside goes below, indented, in lines of its own.
    pub fn fitted(&self, width: usize) -> String {
        if self.width() <= width {
            return self.render();
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let part = |from: usize, to: usize| {
            let cells = |row: &Vec<String>| row[from.min(row.len())..to.min(row.len())].to_vec();
            Self { rows: self.rows.iter().map(cells).collect() }
        };
        let (mut parts, mut from) = (Vec::new(), 0);
        while from < columns {
            let room = width - if from > 0 { INDENT.min(width) } else { 0 };
            let fits = |to: &usize| part(from, *to).width() <= room;
            let to = (from + 1..=columns).rev().find(fits).unwrap_or(from + 1);
            parts.push(part(from, to).render());
            from = to;
        }
        let mut parts: Vec<_> = parts.iter().map(|part| part.lines()).collect();
        let mut lines = Vec::new();
        for _ in &self.rows {
            for (place, part) in parts.iter_mut().enumerate() {
                let indent = if place > 0 { " ".repeat(INDENT) } else { String::new() };
                let line = part.next().filter(|line| !line.is_empty());
                lines.extend(line.map(|line| format!("{indent}{line}")));
            }
        }
        lines.join("\n")
    }

    /// Writes the table, within the terminal's width where there is one.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn print(&self) -> io::Result<()> {
        match columns() {
            Some(width) => line(&self.fitted(width)),
            None => line(&self.render()),
        }
    }
}

/// Writes "name: value" pairs below each other; each stays one line, so that no value can look like another.
///
/// # Errors
/// When stdout cannot be written.
pub fn fields(pairs: &[(&str, String)]) -> io::Result<()> {
    let width = pairs.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    for (name, value) in pairs {
        let pad = " ".repeat(width - name.width());
        line(&format!("{name}{pad}  {}", printable_line(value)))?;
    }
    Ok(())
}

/// Shows a time to the second, in UTC.
pub fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Shows a value that may be missing.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_width_and_stay_one_line() {
        let mut table = Table::new(&["ID", "QUESTION", "MARK"]);
        table.row(&["1".to_owned(), "日本\nx\u{1b}[2J".to_owned(), "good".to_owned()]);
        table.row(&["12".to_owned(), "hello".to_owned(), "fix".to_owned()]);
        let expected = "ID  QUESTION  MARK\n1   日本 x    good\n12  hello     fix";
        assert_eq!(table.render(), expected);
    }

    #[test]
    fn a_wide_table_goes_on_below_and_loses_nothing() {
        let mut table = Table::new(&["ID", "NAME", "STATE", "CREATED"]);
        let row = |cells: [&str; 4]| cells.map(str::to_owned);
        table.row(&row(["1", "lora_20261125_135245_a0d0", "succeeded", "2026-11-25"]));
        table.row(&row(["2", "x", "queued", ""]));
        assert_eq!(table.fitted(80), table.render());
        let expected = "ID  NAME\n    STATE      CREATED\n1   lora_20261125_135245_a0d0\n    succeeded  2026-11-25\n\
                        2   x\n    queued";
        assert_eq!(table.fitted(30), expected);
        assert!(table.fitted(3).contains("lora_20261125_135245_a0d0"));
    }
}
