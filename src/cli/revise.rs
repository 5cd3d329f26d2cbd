//! `shammah feedback revise`: answers marks that wait for a correction again, with their notes in mind.
//!
//! For runs without a person: the model is loaded here, as for `ask`, and nothing is stored unless a bound was given that
//! the note's help must exceed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::args::{GlobalArgs, JsonArg};
use super::context::Session;
use super::exit::{Exit, UsageError};
use super::{interrupt, model, output};
use crate::config::{Revisions, TrainingSection};
use crate::engine::{Candidate, Engine, RevisionRequest};
use crate::lora::AdapterSet;
use crate::plan;
use crate::store::FeedbackRow;
use crate::text::{printable, printable_line};

/// Arguments of `feedback revise`.
#[derive(Debug, Args)]
pub struct ReviseArgs {
    /// Their numbers; all that have a note when none is given
    #[arg(value_name = "ID")]
    pub ids: Vec<i64>,
    /// Store as the answer to learn what the note makes likelier by more than this, in nats per token
    #[arg(long, value_name = "N", value_parser = accept_above)]
    pub accept_above: Option<f64>,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// Takes a number from 0 up.
fn accept_above(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(bound) if (0.0..f64::INFINITY).contains(&bound) => Ok(bound),
        _ => Err("use a number from 0 up, such as 0.1".to_owned()),
    }
}

/// What came of one mark, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Line<'a> {
    id: i64,
    revision: Option<&'a str>,
    /// Nats per token by which the note makes it likelier.
    score: Option<f64>,
    /// The same of the criticised answer.
    criticised_score: Option<f64>,
    answers: usize,
    accepted: bool,
}

/// Runs the command.
///
/// # Errors
/// A mark that does not wait or has no note, a model that cannot be loaded, a store that cannot be read or written.
pub fn run(args: &ReviseArgs, session: &Session, global: &GlobalArgs) -> Result<Exit> {
    let rows = chosen(args, session.store.waiting_marks()?)?;
    if rows.is_empty() {
        output::complain("no mark with a note waits for a correction");
        return Ok(Exit::Done);
    }
    let cancel = Arc::new(AtomicBool::new(false));
    interrupt::sets(&cancel)?;
    model::fetch(session, global.quiet, &cancel)?;
    let loaded = model::load(session)?;
    let base = loaded.base_hash.clone();
    let mut engine = Engine::new(loaded, plan::engine_limits(&session.loaded.config.model));
    for row in rows {
        if !row.is_of(Some(&base)) {
            output::complain(&format!("mark {} is about another model's answer: left out", row.id));
            continue;
        }
        if !revise(args, session, &mut engine, &row, &cancel)? {
            return Ok(Exit::Interrupted);
        }
    }
    Ok(Exit::Done)
}

/// Takes the marks that were named, or all that have a note; the oldest first.
fn chosen(args: &ReviseArgs, waiting: Vec<FeedbackRow>) -> Result<Vec<FeedbackRow>> {
    let noted = |row: &FeedbackRow| row.note.as_deref().is_some_and(|note| !note.trim().is_empty());
    let mut rows: Vec<FeedbackRow> = waiting.into_iter().rev().filter(noted).collect();
    if args.ids.is_empty() {
        return Ok(rows);
    }
    if let Some(id) = args.ids.iter().find(|id| rows.iter().all(|row| row.id != **id)) {
        let message = format!(
            "mark {id} cannot be revised: it has no note, does not wait for a correction, or does not exist; \
             `shammah feedback list --pending` lists those that wait"
        );
        return Err(UsageError(message).into());
    }
    rows.retain(|row| args.ids.contains(&row.id));
    Ok(rows)
}

/// Answers one mark again; `false` when it was interrupted.
fn revise(
    args: &ReviseArgs,
    session: &Session,
    engine: &mut Engine,
    row: &FeedbackRow,
    cancel: &AtomicBool,
) -> Result<bool> {
    let config = &session.loaded.config;
    let training = &config.lora.training;
    let request = RevisionRequest {
        messages: row.messages.clone(),
        criticised: row.response.clone(),
        note: row.note.clone().unwrap_or_default(),
        candidates: training.revision_candidates,
        sampling: plan::sampling(&config.generation, rand::random),
    };
    let live = session.store.live(&engine.model().base_hash, &row.domain)?;
    let adapters = match live {
        Some(live) => {
            AdapterSet::single(Arc::new(model::load_adapter(session, &live.id, engine.model())?))
        }
        None => AdapterSet::empty(),
    };
    let go_on = &mut |_: crate::engine::RevisionEvent<'_>| ControlFlow::Continue(());
    let revised = engine.revise(&request, &adapters, cancel, go_on)?;
    if revised.cancelled {
        return Ok(false);
    }
    let taken_above = taken_above(args, training);
    let best = revised.best(taken_above.unwrap_or(training.revision_threshold));
    let accepted = taken_above.is_some() && best.is_some();
    if let (true, Some(best)) = (accepted, best) {
        session.store.set_target(row.id, &best.text, true)?;
    }
    if args.json.json {
        output::json(&Line {
            id: row.id,
            revision: best.map(|best| best.text.as_str()),
            score: best.or(revised.candidates.first()).map(|candidate| candidate.score),
            criticised_score: revised.criticised,
            answers: revised.answers,
            accepted,
        })?;
    } else {
        output::line(&text(row, best, revised.candidates.first(), accepted))?;
    }
    Ok(true)
}

/// The bound above which a revision is taken: the given one, or the configured one where revisions are taken by themselves.
fn taken_above(args: &ReviseArgs, training: &TrainingSection) -> Option<f64> {
    let auto = training.revisions == Revisions::Auto;
    args.accept_above.or(auto.then_some(training.revision_threshold))
}

fn text(
    row: &FeedbackRow,
    best: Option<&Candidate>,
    first: Option<&Candidate>,
    accepted: bool,
) -> String {
    let mut text = format!("mark {}: {}\n", row.id, printable_line(row.question()));
    text.push_str(&format!(
        "  note: {}\n",
        printable_line(row.note.as_deref().unwrap_or_default())
    ));
    match (best, first) {
        (Some(best), _) => {
            let end = match accepted {
                true => "accepted as the answer to learn",
                false => "not stored: --accept-above N takes what helps more than N",
            };
            text.push_str(&format!(
                "  {}\n  the note makes it {:.2} nats per token likelier; {end}",
                printable(&best.text).replace('\n', "\n  "),
                best.score
            ));
        }
        (None, Some(first)) => text.push_str(&format!(
            "  no revision that the note helps enough (the best by {:.2} nats per token): it waits for a correction",
            first.score
        )),
        (None, None) => {
            text.push_str("  no other answer than the criticised one: it waits for a correction");
        }
    }
    text
}
