//! Two answers to the same question, side by side where the terminal is wide enough.

use unicode_width::UnicodeWidthStr;

use super::flow::{Flow, Wrap};

/// The narrowest terminal with two columns: below it each has fewer than fifty.
const WIDE: usize = 100;
/// What stands between the columns.
const BETWEEN: &str = " │ ";

/// An answer with its heading, both printable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// Who gave it.
    pub title: String,
    /// What was said.
    pub text: String,
}

/// The answers to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair(pub Side, pub Side);

impl Pair {
    /// Returns the answers for a terminal of this many columns; `None` is no terminal.
    pub fn lines(&self, columns: Option<usize>) -> String {
        let mut text = match columns.filter(|columns| *columns >= WIDE) {
            Some(columns) => self.beside(columns),
            None => self.below(),
        };
        if self.0.text == self.1.text {
            text.push_str("\n(The answers are the same.)");
        }
        text
    }

    fn below(&self) -> String {
        let side = |side: &Side| format!("{}:\n{}", side.title, side.text);
        format!("{}\n\n{}", side(&self.0), side(&self.1))
    }

    fn beside(&self, columns: usize) -> String {
        // The last column stays free, as everywhere.
        let width = (columns - 1 - BETWEEN.width()) / 2;
        let rule = "─".repeat(width);
        let mut rows = vec![row(&self.0.title, &self.1.title, width), format!("{rule}─┼─{rule}")];
        let (left, right) = (wrapped(&self.0.text, width), wrapped(&self.1.text, width));
        let line = |lines: &[String], at: usize| lines.get(at).cloned().unwrap_or_default();
        rows.extend(
            (0..left.len().max(right.len()))
                .map(|at| row(&line(&left, at), &line(&right, at), width)),
        );
        rows.join("\n")
    }
}

fn row(left: &str, right: &str, width: usize) -> String {
    let padding = " ".repeat(width.saturating_sub(left.width()));
    format!("{left}{padding}{BETWEEN}{right}").trim_end().to_owned()
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut flow = Flow::new(Wrap::Words(width));
    let mut chunks = flow.piece(text);
    chunks.extend(flow.end());
    chunks.concat().lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(left: &str, right: &str) -> Pair {
        let side = |title: &str, text: &str| Side { title: title.into(), text: text.into() };
        Pair(side("builtin alone", left), side("with lora_1", right))
    }

    #[test]
    fn a_wide_terminal_shows_both_columns_within_its_width() {
        let words = "every word of this answer is short 漢字 ".repeat(6);
        for columns in [100, 101, 120, 237] {
            let text = pair(&words, "one\n\ntwo").lines(Some(columns));
            let rows: Vec<&str> = text.lines().collect();
            assert!(rows[0].starts_with("builtin alone ") && rows[0].ends_with("│ with lora_1"));
            let bar = |row: &str| row.split(['│', '┼']).next().map(UnicodeWidthStr::width);
            for row in &rows {
                assert!(row.width() < columns, "{columns}: {row}");
                assert_eq!(bar(row), bar(rows[0]), "{columns}: {row}");
            }
            assert!(
                rows[2].ends_with("│ one") && rows[3].ends_with('│') && rows[4].ends_with("│ two")
            );
        }
    }

    #[test]
    fn a_narrow_terminal_and_a_pipe_show_one_below_the_other() {
        for columns in [None, Some(99), Some(20)] {
            let text = pair("yes", "no").lines(columns);
            assert_eq!(text, "builtin alone:\nyes\n\nwith lora_1:\nno");
        }
    }

    #[test]
    fn equal_answers_are_called_so() {
        assert!(pair("yes", "yes").lines(None).ends_with("\n(The answers are the same.)"));
        assert!(pair("yes", "yes").lines(Some(120)).ends_with("\n(The answers are the same.)"));
    }
}
