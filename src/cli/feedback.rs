//! `shammah feedback list | add | edit | undo | import | export | forget | revise | scan | stats`.
//!
//! `add` and `import` only store: whoever runs the queue looks at the threshold.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::args::{FeedbackAddArgs, FeedbackCommand, GlobalArgs};
use super::context::Session;
use super::exit::{Exit, UsageError};
use super::feedback_edit;
use super::feedback_file::{self, ReadMarks, Reading, weight_of};
use super::feedback_forms::Form;
use super::output::{self, Table};
use super::whole_file::{self, Existing};
use super::{redact, revise, secrets};
use crate::domain::{DEFAULT_DOMAIN, Mark, Message};
use crate::store::{BufferStatus, FeedbackFilter, FeedbackRow, NewFeedback, Store};
use crate::text::{printable_line, shortened};

/// Stands for stdin or stdout.
const STANDARD_STREAM: &str = "-";
/// Characters of a question or note in a table.
const SHOWN_TEXT: usize = 40;

/// Runs the command.
///
/// # Errors
/// A wrong file or value, or a store that cannot be read or written.
pub fn run(command: &FeedbackCommand, global: &GlobalArgs) -> Result<Exit> {
    let session = Session::open(global, Vec::new())?;
    match command {
        FeedbackCommand::List { domain, pending, json } => {
            list(&session.store, domain.clone(), *pending, json.json)?;
        }
        FeedbackCommand::Add(args) => add(&session, args)?,
        FeedbackCommand::Edit(args) => feedback_edit::edit(&session, args)?,
        FeedbackCommand::Undo { id, json } => feedback_edit::undo(&session, *id, json.json)?,
        FeedbackCommand::Import { file, domain, mark, json } => {
            import(&session, file, domain.as_deref(), *mark, json.json)?;
        }
        FeedbackCommand::Export { file, force, format, domain, json } => {
            if !force && file.is_file() {
                let message = format!(
                    "{} exists already: choose another file, or replace it with --force",
                    file.display()
                );
                return Err(UsageError(message).into());
            }
            export(&session.store, file, domain.clone(), *format, json.json)?;
        }
        FeedbackCommand::Forget { id, retrain, json } => {
            secrets::forget(&session, *id, *retrain, json.json)?;
        }
        FeedbackCommand::Revise(args) => return revise::run(args, &session, global),
        FeedbackCommand::Scan { redact: true, json } => redact::run(&session, json.json)?,
        FeedbackCommand::Scan { redact: false, json } => return secrets::scan(&session, json.json),
        FeedbackCommand::Stats(json) => stats(&session.store, json.json)?,
    }
    Ok(Exit::Done)
}

fn list(store: &Store, domain: Option<String>, pending: bool, as_json: bool) -> Result<()> {
    let filter = FeedbackFilter { domain, unconsumed: pending, archived: false };
    let mut rows = store.list_feedback(&filter)?;
    rows.retain(|row| !pending || row.waits_for_correction());
    rows.reverse();
    if as_json {
        return rows.iter().try_for_each(output::json).map_err(Into::into);
    }
    let mut table = Table::new(&["ID", "MARK", "WEIGHT", "DOMAIN", "STATE", "QUESTION", "NOTE"]);
    for row in &rows {
        let short = |text: &str| shortened(&printable_line(text), SHOWN_TEXT);
        table.row(&[
            row.id.to_string(),
            row.mark.to_string(),
            row.weight.to_string(),
            row.domain.clone(),
            row.fate(),
            short(row.question()),
            short(row.note.as_deref().unwrap_or("-")),
        ]);
    }
    Ok(table.print()?)
}

fn add(session: &Session, args: &FeedbackAddArgs) -> Result<()> {
    let empty = |text: &str| text.trim().is_empty();
    if empty(&args.prompt) || empty(&args.response) {
        let message =
            "--prompt and --response must not be empty: a mark judges an answer to a question";
        return Err(UsageError(message.to_owned()).into());
    }
    if args.fix.as_deref().is_some_and(empty) {
        let message = "the better answer is empty: give it with --fix TEXT, or leave --fix out";
        return Err(UsageError(message.to_owned()).into());
    }
    if args.mark == Mark::Good && args.fix.is_some() {
        let message =
            "--mark good keeps the answer and --fix replaces it: leave out one, or use --mark fix";
        return Err(UsageError(message.to_owned()).into());
    }
    let row = session.store.add_feedback(&NewFeedback {
        messages: vec![Message::user(&args.prompt)],
        response: args.response.clone(),
        mark: args.mark,
        weight: weight_of(args.mark, &session.loaded.config.feedback),
        note: args.note.clone().filter(|note| !empty(note)),
        fix: args.fix.clone(),
        domain: args.domain.clone().unwrap_or_else(|| DEFAULT_DOMAIN.to_owned()),
        adapter: None,
        base: None,
    })?;
    if args.json.json {
        return Ok(output::json(&row)?);
    }
    secrets::tell(std::slice::from_ref(&row))?;
    let note = row.note.as_ref().map(|note| format!(", note: {note}")).unwrap_or_default();
    let waits = if row.waits_for_correction() { ", waiting for a correction" } else { "" };
    output::line(&format!(
        "stored mark {}: {}, weight {}{note}{waits}",
        row.id, row.mark, row.weight
    ))?;
    Ok(output::line(&session.store.buffer_status(&row.domain, None)?.to_string())?)
}

fn import(
    session: &Session,
    file: &Path,
    domain: Option<&str>,
    mark: Mark,
    as_json: bool,
) -> Result<()> {
    let read = read_chats(session, file, domain, mark)?;
    // Without a model there is nothing to compare with.
    let in_use = super::model::base_hash(session).ok();
    let done = session.store.import_feedback(&read.rows, in_use.as_deref())?;
    let replaced = secrets::replaced_in(&session.store, &done.ids)?;
    let stored = done.ids.len();
    if as_json {
        let found: Vec<_> = replaced.iter().flat_map(secrets::of).collect();
        let forms = json!({"openai": read.openai, "sharegpt": read.sharegpt});
        return Ok(output::json(&json!({
            "imported": stored, "ids": done.ids, "merged": done.merged, "raised": done.raised,
            "chats": forms, "redacted": found
        }))?);
    }
    secrets::tell(&replaced)?;
    output::line(&format!("stored {stored} marks from {}", file.display()))?;
    for (chats, form) in [(read.openai, "OpenAI"), (read.sharegpt, "ShareGPT")] {
        if chats > 0 {
            output::line(&format!(
                "{chats} of its lines are chats in the form of {form}: taken as {mark} (--mark takes them as another)"
            ))?;
        }
    }
    if done.merged > 0 {
        output::line(&format!(
            "{} of its lines were there already and are not stored twice; {} of those got a higher weight",
            done.merged, done.raised
        ))?;
    }
    Ok(())
}

/// Reads the marks of a file or of stdin; stores nothing.
///
/// # Errors
/// A file that cannot be read, or a line that is no mark.
pub fn read_file(session: &Session, file: &Path, domain: Option<&str>) -> Result<Vec<NewFeedback>> {
    Ok(read_chats(session, file, domain, Mark::Good)?.rows)
}

fn read_chats(
    session: &Session,
    file: &Path,
    domain: Option<&str>,
    mark: Mark,
) -> Result<ReadMarks> {
    let reading = Reading { weights: &session.loaded.config.feedback, domain, mark };
    if file == Path::new(STANDARD_STREAM) {
        return Ok(feedback_file::read(io::stdin().lock(), "stdin", reading)?);
    }
    let opened = fs_err::File::open(file).context("cannot read the marks; check the path")?;
    let opened = io::BufReader::new(opened);
    Ok(feedback_file::read(opened, &file.display().to_string(), reading)?)
}

fn export(
    store: &Store,
    file: &Path,
    domain: Option<String>,
    form: Form,
    as_json: bool,
) -> Result<()> {
    let filter = FeedbackFilter { domain, unconsumed: false, archived: true };
    let mut rows = store.list_feedback(&filter)?;
    let all = rows.len();
    rows.retain(|row| form == Form::Shammah || row.target().is_some());
    if file == Path::new(STANDARD_STREAM) {
        return feedback_file::write(io::stdout().lock(), &rows, form).map_err(Into::into);
    }
    whole_file::write(file, Existing::Replace, |out| feedback_file::write(out, &rows, form))
        .with_context(|| format!("cannot write {}: nothing was exported", file.display()))?;
    let left_out = all - rows.len();
    if as_json {
        return Ok(output::json(
            &json!({"exported": rows.len(), "left_out": left_out, "path": file}),
        )?);
    }
    output::line(&format!("wrote {} marks to {}", rows.len(), file.display()))?;
    if left_out > 0 {
        output::line(&format!("left out {left_out} without an answer to learn"))?;
    }
    Ok(())
}

/// The marks of one domain, counted.
#[derive(Debug, Default, Serialize)]
struct DomainStats {
    domain: String,
    marks: usize,
    good: usize,
    medium: usize,
    critical: usize,
    fix: usize,
    learned: usize,
    archived: usize,
    #[serde(flatten)]
    buffer: BufferStatus,
}

fn stats(store: &Store, as_json: bool) -> Result<()> {
    let all = FeedbackFilter { domain: None, unconsumed: false, archived: true };
    let mut domains: BTreeMap<String, DomainStats> = BTreeMap::new();
    for row in store.list_feedback(&all)? {
        let stats = domains.entry(row.domain.clone()).or_default();
        stats.count(&row);
    }
    for (domain, stats) in &mut domains {
        stats.domain.clone_from(domain);
        stats.buffer = store.buffer_status(domain, None)?;
    }
    if as_json && domains.is_empty() {
        let domain = DEFAULT_DOMAIN.to_owned();
        return Ok(output::json(&DomainStats { domain, ..DomainStats::default() })?);
    }
    if as_json {
        return domains.values().try_for_each(output::json).map_err(Into::into);
    }
    let mut table = Table::new(&[
        "DOMAIN",
        "MARKS",
        "GOOD",
        "MEDIUM",
        "CRITICAL",
        "FIX",
        "LEARNED",
        "NEW",
        "HELD OUT",
        "WAITING",
        "IN TRAINING",
        "WEIGHTED",
    ]);
    for stats in domains.values() {
        table.row(&stats.cells());
    }
    Ok(table.print()?)
}

impl DomainStats {
    fn count(&mut self, row: &FeedbackRow) {
        self.marks += 1;
        self.learned += usize::from(row.consumed_by.is_some());
        self.archived += usize::from(row.archived);
        match row.mark {
            Mark::Good => self.good += 1,
            Mark::Medium => self.medium += 1,
            Mark::Critical => self.critical += 1,
            Mark::Fix => self.fix += 1,
        }
    }

    fn cells(&self) -> Vec<String> {
        let buffer = &self.buffer;
        let counts = [
            self.marks,
            self.good,
            self.medium,
            self.critical,
            self.fix,
            self.learned,
            buffer.trainable_unconsumed,
            buffer.heldout,
            buffer.waiting_for_correction,
            buffer.in_training,
        ];
        let mut cells = vec![self.domain.clone()];
        cells.extend(counts.iter().map(ToString::to_string));
        cells.push(format!("{:.1}", buffer.weighted));
        cells
    }
}
