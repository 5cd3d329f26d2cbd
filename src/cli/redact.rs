//! `shammah feedback scan --redact`: secrets that are stored already, replaced where they stand.

use anyhow::{Context, Result};
use serde_json::json;

use super::context::Session;
use super::output;
use super::whole_file::{self, Existing};
use crate::secrets::redact;
use crate::store::{Redacted, listed};

/// Largest history that is looked through: that of the console is far smaller.
pub const MAX_HISTORY_BYTES: u64 = 16 << 20;

/// Reads the console's history; none where there is none, or something else in its place.
pub fn history(session: &Session) -> String {
    let path = session.home.history();
    if !fs_err::metadata(&path).is_ok_and(|meta| meta.len() <= MAX_HISTORY_BYTES) {
        return String::new();
    }
    String::from_utf8_lossy(&fs_err::read(&path).unwrap_or_default()).into_owned()
}

/// Replaces secrets in marks, in what jobs left, and in the console's history; says where.
///
/// # Errors
/// A store or a history that cannot be read or written.
pub fn run(session: &Session, as_json: bool) -> Result<()> {
    let done = session.store.redact_stored()?;
    let lines = redact_history(session)?;
    if as_json {
        let marks: Vec<_> = done
            .marks
            .iter()
            .flat_map(|(id, found)| {
                found
                    .iter()
                    .map(move |one| json!({"feedback": id, "field": one.field, "rule": one.rule}))
            })
            .collect();
        return Ok(output::json(&json!({"redacted": marks, "elsewhere": done.elsewhere,
            "history_lines": lines, "seen_by": done.seen_by, "still_in_log": done.still_in_log}))?);
    }
    tell(&done, lines)
}

fn tell(done: &Redacted, lines: usize) -> Result<()> {
    for (id, found) in &done.marks {
        output::line(&format!("replaced in mark {id}: {}", listed(found)))?;
    }
    for one in &done.elsewhere {
        output::line(&format!("replaced in {}: {}", one.place, one.rule))?;
    }
    if lines > 0 {
        output::line(&format!(
            "replaced in {lines} lines of the console's history; a console that runs still offers them until it ends"
        ))?;
    }
    if done.marks.is_empty() && done.elsewhere.is_empty() && lines == 0 {
        output::line("no secrets: nothing was changed")?;
    }
    for adapter in &done.seen_by {
        output::line(&format!(
            "adapter {adapter} has seen them: train anew with `shammah train --from fresh --domain DOMAIN`, then `shammah adapters delete {adapter}`"
        ))?;
    }
    if done.still_in_log {
        output::line(
            "another process reads the database: its log still has the texts until that ends",
        )?;
    }
    Ok(())
}

/// Returns in how many lines something was replaced.
fn redact_history(session: &Session) -> Result<usize> {
    let text = history(session);
    let clean: Vec<_> = text.lines().map(|line| (line, redact(line))).collect();
    let changed = clean.iter().filter(|(_, clean)| clean.is_some()).count();
    if changed > 0 {
        let path = session.home.history();
        whole_file::write(&path, Existing::Replace, |out| {
            clean.iter().try_for_each(|(line, clean)| {
                writeln!(out, "{}", clean.as_ref().map_or(*line, |(clean, _)| clean.as_str()))
            })
        })
        .with_context(|| format!("cannot rewrite {}", path.display()))?;
    }
    Ok(changed)
}
