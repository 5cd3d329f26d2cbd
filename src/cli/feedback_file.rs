//! Marks as JSONL: one object per line, as `feedback export` writes and `feedback import` reads them.

use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::feedback_forms::{self, Form};
use crate::config::FeedbackSection;
use crate::domain::{AdapterId, DEFAULT_DOMAIN, Mark, Message, Role, domain_name};
use crate::store::{FeedbackRow, NewFeedback};
use crate::text::{printable_json, printable_line};

/// Longest line that is read, in bytes: several times the longest conversation that fits a context.
const MAX_LINE_BYTES: u64 = 16 << 20;
/// Most marks in one file: they are held in memory and stored in one transaction.
const MAX_ROWS: usize = 100_000;

/// Why a file of marks cannot be read. Nothing of it was stored.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read {name}: {source}")]
    Io {
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A line is no mark.
    #[error("{name}:{line}: {problem}; nothing was stored")]
    Line {
        /// The file.
        name: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The file has no line.
    #[error(
        "{name} has no marks: each line must be a JSON object with messages, response and mark"
    )]
    Empty {
        /// The file.
        name: String,
    },
}

/// A line of a file. What an export or a list has besides, a mark gets anew.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    messages: Vec<Message>,
    response: String,
    mark: Mark,
    weight: Option<f64>,
    note: Option<String>,
    fix: Option<String>,
    domain: Option<String>,
    adapter: Option<AdapterId>,
    #[serde(rename = "revised")]
    _revised: Option<Value>,
    #[serde(rename = "id")]
    _id: Option<Value>,
    #[serde(rename = "base")]
    _base: Option<Value>,
    #[serde(rename = "created_at")]
    _created_at: Option<Value>,
    #[serde(rename = "consumed_by")]
    _consumed_by: Option<Value>,
    #[serde(rename = "in_job")]
    _in_job: Option<Value>,
    #[serde(rename = "heldout")]
    _heldout: Option<Value>,
    #[serde(rename = "archived")]
    _archived: Option<Value>,
}

/// A line as it is exported: the fields that scripts rely on.
#[derive(Debug, Serialize)]
struct ExportedLine<'a> {
    id: i64,
    messages: &'a [Message],
    response: &'a str,
    mark: Mark,
    weight: f64,
    note: Option<&'a str>,
    fix: Option<&'a str>,
    domain: &'a str,
    adapter: Option<&'a AdapterId>,
    created_at: String,
    consumed_by: Option<i64>,
}

/// Returns the configured weight of a mark.
pub fn weight_of(mark: Mark, weights: &FeedbackSection) -> f64 {
    match mark {
        Mark::Good => weights.weight_good,
        Mark::Medium => weights.weight_medium,
        Mark::Critical => weights.weight_critical,
        Mark::Fix => weights.weight_fix,
    }
}

/// How a file is read.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// The configured weights.
    pub weights: &'a FeedbackSection,
    /// The domain of all marks, if it is given.
    pub domain: Option<&'a str>,
    /// What a chat of another form is stored as.
    pub mark: Mark,
}

/// What was in a file.
#[derive(Debug, Default)]
pub struct ReadMarks {
    /// The marks.
    pub rows: Vec<NewFeedback>,
    /// How many of them were chats as OpenAI has them.
    pub openai: usize,
    /// How many of them were chats as ShareGPT has them.
    pub sharegpt: usize,
}

/// Reads marks; a given domain wins over that of the lines, a line's weight over the configured one.
///
/// # Errors
/// The first line that is no mark, by its number.
pub fn read(
    mut input: impl BufRead,
    name: &str,
    reading: Reading<'_>,
) -> Result<ReadMarks, FileError> {
    let mut done = ReadMarks::default();
    let mut number = 0;
    loop {
        number += 1;
        let wrong =
            |problem: String| FileError::Line { name: name.to_owned(), line: number, problem };
        let mut text = Vec::new();
        let taken = input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text);
        let bytes = taken.map_err(|source| FileError::Io { name: name.to_owned(), source })?;
        if bytes == 0 {
            break;
        }
        if bytes as u64 == MAX_LINE_BYTES {
            return Err(wrong(format!("the line is longer than {MAX_LINE_BYTES} bytes")));
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        if done.rows.len() == MAX_ROWS {
            return Err(wrong(format!("more than {MAX_ROWS} marks: split the file")));
        }
        // Some editors put a byte order mark before a text, where nobody sees it.
        let line = text.strip_prefix("\u{feff}".as_bytes()).filter(|_| number == 1);
        let (row, form) = parse(line.unwrap_or(&text), reading).map_err(wrong)?;
        done.rows.push(row);
        done.openai += usize::from(form == Form::Openai);
        done.sharegpt += usize::from(form == Form::Sharegpt);
    }
    if done.rows.is_empty() { Err(FileError::Empty { name: name.to_owned() }) } else { Ok(done) }
}

fn parse(text: &[u8], reading: Reading<'_>) -> Result<(NewFeedback, Form), String> {
    let misfit = |error: serde_json::Error| {
        format!(
            "{}: a mark has messages [{{role, content}}], response and mark (good, medium, critical or fix)",
            reason(&error)
        )
    };
    // Only to tell the form: the line itself is read again, so that an error has its column.
    let value = serde_json::from_slice::<Value>(text).map_err(misfit)?;
    if let Some(chat) = feedback_forms::read(&value) {
        let chat = chat?;
        let row = NewFeedback {
            messages: chat.messages,
            response: chat.response,
            mark: reading.mark,
            weight: chat.weight.unwrap_or_else(|| weight_of(reading.mark, reading.weights)),
            note: None,
            fix: None,
            domain: domain_name(reading.domain.unwrap_or(DEFAULT_DOMAIN))?,
            adapter: None,
            base: None,
        };
        return Ok((row, chat.form));
    }
    let Reading { weights, domain, .. } = reading;
    let line: Line = serde_json::from_slice(text).map_err(misfit)?;
    let empty = |text: &str| text.trim().is_empty();
    if line.messages.last().is_none_or(|message| message.role != Role::User) {
        return Err("messages must end with one of role \"user\": the question that was answered"
            .to_owned());
    }
    if line.mark == Mark::Good && line.fix.is_none() && empty(&line.response) {
        return Err("response is empty: a mark judges an answer".to_owned());
    }
    if line.mark == Mark::Fix && line.fix.as_deref().is_none_or(empty) {
        return Err("mark is \"fix\" and there is no better answer: put it into \"fix\"".to_owned());
    }
    let weight = line.weight.unwrap_or_else(|| weight_of(line.mark, weights));
    if !(weight.is_finite() && weight > 0.0) {
        return Err(format!("weight is {weight}: it must be a number above 0"));
    }
    let row = NewFeedback {
        messages: line.messages,
        response: line.response,
        mark: line.mark,
        weight,
        note: line.note,
        fix: line.fix,
        domain: domain_name(domain.or(line.domain.as_deref()).unwrap_or(DEFAULT_DOMAIN))?,
        adapter: line.adapter,
        base: None,
    };
    Ok((row, Form::Shammah))
}

/// Says what is wrong with a line, which is line 1 for the parser whatever its number in the file is.
fn reason(error: &serde_json::Error) -> String {
    // It may name what stands in the file.
    let text = printable_line(&error.to_string());
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(reason) => format!("{reason} (column {})", error.column()),
        None => text,
    }
}

/// Writes marks, one per line; in another form than ours, those with an answer to learn.
///
/// # Errors
/// When the output cannot be written.
pub fn write(mut out: impl Write, rows: &[FeedbackRow], form: Form) -> io::Result<()> {
    for row in rows {
        if form != Form::Shammah {
            if let Some(chat) = feedback_forms::write(form, row) {
                out.write_all(printable_json(&chat.to_string()).as_bytes())?;
                out.write_all(b"\n")?;
            }
            continue;
        }
        let line = ExportedLine {
            id: row.id,
            messages: &row.messages,
            response: &row.response,
            mark: row.mark,
            weight: row.weight,
            note: row.note.as_deref(),
            fix: row.fix.as_deref(),
            domain: &row.domain,
            adapter: row.adapter.as_ref(),
            created_at: row.created_at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            consumed_by: row.consumed_by,
        };
        out.write_all(printable_json(&serde_json::to_string(&line)?).as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read_text(text: &str) -> Result<Vec<NewFeedback>, FileError> {
        let weights = &Config::defaults().unwrap().feedback;
        let reading = Reading { weights, domain: None, mark: Mark::Good };
        Ok(read(text.as_bytes(), "marks.jsonl", reading)?.rows)
    }

    const QUESTION: &str = r#""messages":[{"role":"user","content":"q"}],"response":"a""#;

    #[test]
    fn weights_come_from_the_mark_unless_given() {
        let text = format!(
            "{{{QUESTION},\"mark\":\"good\"}}\n\n{{{QUESTION},\"mark\":\"critical\",\"fix\":\"b\"}}\n{{{QUESTION},\"mark\":\"medium\",\"weight\":2.5}}"
        );
        let rows = read_text(&text).unwrap();
        let weights: Vec<f64> = rows.iter().map(|row| row.weight).collect();
        assert_eq!(weights, [1.0, 10.0, 2.5]);
        assert!(rows.iter().all(|row| row.domain == DEFAULT_DOMAIN));
    }

    #[test]
    fn each_mistake_names_its_line() {
        for (line, part) in [
            ("{".to_owned(), "EOF"),
            (format!("{{{QUESTION}}}"), "missing field `mark`"),
            (format!("{{{QUESTION},\"mark\":\"bad\"}}"), "unknown variant `bad`"),
            (format!("{{{QUESTION},\"mark\":\"good\",\"colour\":1}}"), "unknown field `colour`"),
            (format!("{{{QUESTION},\"mark\":\"fix\"}}"), "put it into \"fix\""),
            (format!("{{{QUESTION},\"mark\":\"good\",\"weight\":0}}"), "above 0"),
            (r#"{"messages":[],"response":"a","mark":"good"}"#.to_owned(), "must end with"),
            (
                r#"{"messages":[{"role":"user","content":"q"}],"response":" ","mark":"good"}"#
                    .to_owned(),
                "empty",
            ),
            (
                format!("{{{QUESTION},\"mark\":\"good\",\"adapter\":\"../x\"}}"),
                "invalid adapter id",
            ),
        ] {
            let text = format!("{{{QUESTION},\"mark\":\"good\"}}\n{line}\n");
            let message = read_text(&text).unwrap_err().to_string();
            assert!(message.starts_with("marks.jsonl:2: "), "{message}");
            assert!(message.contains(part), "{message} should contain {part}");
            assert!(!message.contains("at line"), "{message} numbers the line twice");
            assert!(message.ends_with("nothing was stored"), "{message}");
        }
        assert_eq!(
            read_text(&format!("\u{feff}{{{QUESTION},\"mark\":\"good\"}}\n")).unwrap().len(),
            1
        );
        // Found by fuzzing: a key is named in the message as it stands in the file.
        let key =
            r#"{"messages":[{"role":"user","cont\n\u001b[2Jt":"q"}],"response":"a","mark":"good"}"#;
        let message = read_text(key).unwrap_err().to_string();
        assert!(!message.contains(char::is_control), "{message:?}");
        assert!(matches!(read_text("\n\n"), Err(FileError::Empty { .. })));
        assert!(read_text("\u{0}\u{1}").is_err());
    }
}
