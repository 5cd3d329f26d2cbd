//! `shammah feedback edit | undo`: changes and takes back marks that no job has.

use anyhow::Result;

use super::args::FeedbackEditArgs;
use super::context::Session;
use super::exit::UsageError;
use super::feedback_file::weight_of;
use super::{output, secrets};
use crate::domain::Mark;
use crate::store::{FeedbackEdit, FeedbackFilter, FeedbackRow};

/// Changes a mark.
///
/// # Errors
/// A mark that was learned, is in a job or does not exist; a fix without a text; a weight out of range.
pub fn edit(session: &Session, args: &FeedbackEditArgs) -> Result<()> {
    let blank = |text: &String| text.trim().is_empty();
    let before = session.store.feedback(args.id)?;
    let has_fix = args.fix.as_ref().or(before.fix.as_ref()).is_some_and(|fix| !blank(fix));
    if args.fix.as_ref().is_some_and(blank) || (args.mark == Some(Mark::Fix) && !has_fix) {
        let message = "the better answer is empty: give it with --fix TEXT";
        return Err(UsageError(message.to_owned()).into());
    }
    if args.fix.is_some() && args.mark.unwrap_or(before.mark) == Mark::Good {
        let message = "a good mark keeps the answer and --fix replaces it: leave it out, or give --mark fix too";
        return Err(UsageError(message.to_owned()).into());
    }
    let configured = args.mark.map(|mark| weight_of(mark, &session.loaded.config.feedback));
    let edit = FeedbackEdit {
        mark: args.mark,
        weight: args.weight.or(configured),
        note: args.note.clone().map(|note| Some(note).filter(|note| !blank(note))),
        fix: args.fix.clone(),
    };
    session.store.update_feedback(args.id, &edit)?;
    if let Some(domain) = &args.domain {
        session.store.move_feedback(args.id, domain)?;
    }
    let row = session.store.feedback(args.id)?;
    if args.json.json {
        return Ok(output::json(&row)?);
    }
    secrets::tell(std::slice::from_ref(&row))?;
    let was = match before.weight == row.weight {
        true => String::new(),
        false => format!(" (was {})", before.weight),
    };
    Ok(output::line(&format!(
        "mark {}: {}, weight {}{was}, domain {}, {}",
        row.id,
        row.mark,
        row.weight,
        row.domain,
        row.fate()
    ))?)
}

/// Takes a mark back: the named one, or the newest that no job has.
///
/// # Errors
/// A mark that was learned, is in a job or does not exist.
pub fn undo(session: &Session, id: Option<i64>, as_json: bool) -> Result<()> {
    let untouched = |row: &FeedbackRow| row.consumed_by.is_none() && row.in_job.is_none();
    let id = match id {
        Some(id) => id,
        None => {
            let rows = session.store.list_feedback(&FeedbackFilter::default())?;
            anyhow::ensure!(!rows.is_empty(), "there are no marks yet");
            let newest = rows.into_iter().rev().find(untouched);
            newest.map(|row| row.id).ok_or_else(|| {
                anyhow::anyhow!("every mark was learned or is in a job: `shammah feedback forget ID` drops one for good")
            })?
        }
    };
    let row = session.store.undo_feedback(id)?;
    match as_json {
        true => output::json(&row)?,
        false => output::line(&format!("mark {id} is taken back"))?,
    }
    Ok(())
}
