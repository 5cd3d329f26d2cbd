//! What the command line says of secrets in marks, and how a mark is dropped for good.

use std::collections::HashSet;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::context::Session;
use super::exit::Exit;
use super::{model, output, redact};
use crate::plan::{self, JobWish, PlanError};
use crate::secrets::{self, source};
use crate::store::{
    FeedbackFilter, FeedbackRow, Forgotten, JobRow, SecretElsewhere, SecretFound, StartFrom, Store,
    StoreError, listed,
};
use crate::text::printable_line;

/// A secret and where it is, or was.
#[derive(Debug, Serialize)]
pub struct Found {
    feedback: i64,
    #[serde(flatten)]
    secret: SecretFound,
}

/// Returns what was replaced in a mark.
pub fn of(row: &FeedbackRow) -> Vec<Found> {
    row.redactions().into_iter().map(|secret| Found { feedback: row.id, secret }).collect()
}

/// Returns those of the marks in which something was replaced.
///
/// # Errors
/// A store that cannot be read.
pub fn replaced_in(store: &Store, ids: &[i64]) -> Result<Vec<FeedbackRow>> {
    let ids: HashSet<i64> = ids.iter().copied().collect();
    let mut rows = store.list_feedback(&FeedbackFilter::default())?;
    rows.retain(|row| ids.contains(&row.id) && !row.redactions().is_empty());
    Ok(rows)
}

/// Tells what was replaced in marks that were just stored.
///
/// # Errors
/// When stdout cannot be written.
pub fn tell(rows: &[FeedbackRow]) -> std::io::Result<()> {
    lines(rows).iter().try_for_each(|line| output::line(line))
}

/// [`tell`], on stderr.
pub fn complain(rows: &[FeedbackRow]) {
    lines(rows).iter().for_each(|line| output::complain(line));
}

fn lines(rows: &[FeedbackRow]) -> Vec<String> {
    let replaced = rows.iter().map(|row| (row.id, row.redactions()));
    let replaced = replaced.filter(|(_, found)| !found.is_empty());
    replaced
        .map(|(id, found)| {
            format!("replaced in mark {id} before it was stored: {}", listed(&found))
        })
        .collect()
}

/// Looks through all marks, those that left the buffer too, through what jobs left, and through the console's history.
///
/// # Errors
/// A store that cannot be read.
pub fn scan(session: &Session, as_json: bool) -> Result<Exit> {
    let store = &session.store;
    let all = FeedbackFilter { domain: None, unconsumed: false, archived: true };
    let mut marks = 0;
    let mut bad = Vec::new();
    for row in store.list_feedback(&all)? {
        marks += 1;
        let found = row.secrets();
        if found.is_empty() {
            continue;
        }
        if as_json {
            for SecretFound { field, rule } in found {
                let object = json!({"feedback": row.id, "domain": row.domain, "field": field, "rule": rule,
                    "source": source(rule), "consumed_by": row.consumed_by});
                output::json(&object)?;
            }
        } else {
            output::line(&format!("mark {} ({}): {}", row.id, row.domain, listed(&found)))?;
        }
        bad.push(row.id);
    }
    let elsewhere = elsewhere(session)?;
    for SecretElsewhere { place, rule } in &elsewhere {
        if as_json {
            output::json(&json!({"place": place, "rule": rule, "source": source(rule)}))?;
        } else {
            output::line(&format!("{place}: {rule}"))?;
        }
    }
    let clean = bad.is_empty() && elsewhere.is_empty();
    if !as_json {
        output::line(&summary(marks, bad.len(), elsewhere.len()))?;
    }
    Ok(if clean { Exit::Done } else { Exit::Failed })
}

fn summary(marks: usize, bad: usize, elsewhere: usize) -> String {
    const REMEDY: &str = "`shammah feedback scan --redact` replaces them, `shammah feedback forget ID` drops a mark for good";
    match (bad, elsewhere) {
        (0, 0) => format!("no secrets in {marks} marks"),
        (bad, 0) => format!("{bad} of {marks} marks hold secrets: {REMEDY}"),
        (bad, more) => {
            format!("{bad} of {marks} marks hold secrets, and {more} are in other texts: {REMEDY}")
        }
    }
}

/// Looks at what is no mark: reasons, notes and examples of jobs, and lines that were typed.
fn elsewhere(session: &Session) -> Result<Vec<SecretElsewhere>> {
    let mut found = session.store.secrets_elsewhere()?;
    for (at, line) in redact::history(session).lines().enumerate() {
        let place = format!("line {} of the console's history", at + 1);
        let rules = secrets::scan(line).into_iter().map(|hit| hit.rule);
        found.extend(rules.map(|rule| SecretElsewhere { place: place.clone(), rule }));
    }
    Ok(found)
}

/// Drops a mark for good, says what still knows it, and trains anew without it if that is wanted and the model in use
/// learned it.
///
/// # Errors
/// No such mark, or a store that cannot be written.
pub fn forget(session: &Session, id: i64, retrain: bool, as_json: bool) -> Result<()> {
    let row = session.store.feedback(id)?;
    let done = session.store.remove_feedback(id)?;
    let in_history = history_has(session, &row);
    let Retrained { job: again, models } = match retrain {
        true => train_without(session, &row.domain, &done)?,
        false => Retrained::default(),
    };
    if as_json {
        let Forgotten { seen_by, in_running_job, cancelled_jobs, still_in_log, .. } = done;
        return Ok(output::json(&json!({"forgotten": id, "seen_by": seen_by,
            "in_running_job": in_running_job, "cancelled_jobs": cancelled_jobs,
            "still_in_log": still_in_log, "in_history": in_history,
            "retrained_in": again.map(|job| job.id), "models_to_load": models}))?);
    }
    output::line(&format!("mark {id} is forgotten: its text is gone from the database"))?;
    if done.still_in_log {
        output::line(
            "another process reads the database: its log still has the text until that ends",
        )?;
    }
    for adapter in &done.seen_by {
        let first = match again {
            Some(_) => "when the new one is live".to_owned(),
            None => {
                format!(
                    "train anew with `shammah train --from fresh --domain {}`, then",
                    row.domain
                )
            }
        };
        output::line(&format!(
            "adapter {adapter} has seen it: {first} `shammah adapters delete {adapter}`"
        ))?;
    }
    if let Some(job) = done.in_running_job {
        output::line(&format!(
            "job {job} is learning it now: `shammah jobs cancel {job}` stops that"
        ))?;
    }
    for job in &done.cancelled_jobs {
        output::line(&format!("job {job} is cancelled: it was its only example"))?;
    }
    match &again {
        Some(job) => output::line(&format!(
            "job {} ({}) learns domain {} from zero without it",
            job.id, job.name, job.domain
        ))?,
        None if retrain && done.seen_by.is_empty() => {
            output::line("no adapter has seen it: there is nothing to train anew")?;
        }
        None if !models.is_empty() => output::line(&format!(
            "no job was made: what has seen it is of another model; load {} (--model), and train anew with \
             `shammah train --from fresh --domain {}`",
            models.join(" or "),
            row.domain
        ))?,
        None if retrain => output::line(&format!(
            "domain {} has nothing else to learn: no job was made",
            row.domain
        ))?,
        None => {}
    }
    if in_history {
        let path = session.home.history();
        output::line(&format!(
            "the console's history still has lines of it: edit {}",
            path.display()
        ))?;
    }
    Ok(())
}

/// What came of the wish to train anew.
#[derive(Debug, Default)]
struct Retrained {
    job: Option<JobRow>,
    /// The models of which one must be loaded for it, because no adapter of the one in use has seen the mark.
    models: Vec<String>,
}

/// Enqueues a job that learns a domain from zero, if an adapter of the model in use has seen what was forgotten and
/// something is left.
fn train_without(session: &Session, domain: &str, done: &Forgotten) -> Result<Retrained> {
    let mut seen_by = session.store.adapters()?;
    seen_by.retain(|adapter| done.seen_by.contains(&adapter.id));
    if seen_by.is_empty() {
        return Ok(Retrained::default());
    }
    let in_use = model::base_hash(session)?;
    if seen_by.iter().all(|adapter| adapter.base_hash != in_use) {
        // A new adapter of this model would replace none of them.
        let mut models: Vec<String> = seen_by.into_iter().map(|adapter| adapter.base).collect();
        models.sort_unstable();
        models.dedup();
        return Ok(Retrained { job: None, models });
    }
    let wish = JobWish {
        domain: domain.to_owned(),
        from: Some(StartFrom::Fresh),
        base: model::job_base(session)?,
        ..JobWish::default()
    };
    match plan::enqueue(&session.store, &session.loaded.config, wish) {
        Ok(job) => Ok(Retrained { job: Some(job), ..Retrained::default() }),
        Err(PlanError::Store(StoreError::NothingToTrain { .. })) => Ok(Retrained::default()),
        // It waits already, and the mark was taken out of it.
        Err(PlanError::Store(StoreError::SameJob(job))) => {
            Ok(Retrained { job: Some(session.store.job(job)?), ..Retrained::default() })
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether something that was typed for a mark is in the console's history.
fn history_has(session: &Session, row: &FeedbackRow) -> bool {
    let history = redact::history(session);
    let typed = [Some(row.question()), row.note.as_deref(), row.fix.as_deref()];
    let typed = typed.into_iter().flatten().map(printable_line);
    typed.filter(|text| !text.trim().is_empty()).any(|text| history.contains(text.trim()))
}
