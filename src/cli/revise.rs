//! `shammah feedback revise`: answers marks that wait for a correction again, with their notes in mind.
//!
//! For runs without a person: the model is loaded here, as for `ask`. A revision is stored where the note's help exceeds a
//! bound: the one that was given, or the configured one where `lora.training.revisions` is `"auto"`. Otherwise nothing is.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::answering::Answering;
use super::args::{GlobalArgs, JsonArg};
use super::context::Session;
use super::exit::{self, Exit, UsageError};
use super::{interrupt, model, output};
use crate::config::{Revisions, TrainingSection};
use crate::engine::{Candidate, Engine, Revised, RevisionRequest};
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

/// What came of one mark.
#[derive(Debug)]
struct Outcome {
    revised: Revised,
    /// What the note's help had to exceed.
    bound: f64,
    /// Whether the best revision is stored as the answer to learn.
    accepted: bool,
}

/// Runs the command. A mark that cannot be revised is told on stderr and does not keep the others from it.
///
/// # Errors
/// A mark that does not wait or has no note, a model that cannot be loaded, a store that cannot be read.
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
    let mut end = Exit::Done;
    for row in rows {
        if !row.is_of(Some(&base)) {
            output::complain(&format!("mark {} is about another model's answer: left out", row.id));
            continue;
        }
        match revise(args, session, &mut engine, &row, &cancel) {
            Ok(Some(outcome)) => tell(args, &row, &outcome)?,
            Ok(None) => return Ok(Exit::Interrupted),
            Err(error) => {
                let why = exit::message(&error);
                output::complain(&format!("mark {} was not revised: {why}", row.id));
                end = Exit::Failed;
            }
        }
    }
    Ok(end)
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

/// Answers one mark again, and stores what helps enough; `None` when it was interrupted.
fn revise(
    args: &ReviseArgs,
    session: &Session,
    engine: &mut Engine,
    row: &FeedbackRow,
    cancel: &AtomicBool,
) -> Result<Option<Outcome>> {
    let config = &session.loaded.config;
    let training = &config.lora.training;
    let request = RevisionRequest {
        messages: row.messages.clone(),
        criticised: row.response.clone(),
        note: row.note.clone().unwrap_or_default(),
        candidates: training.revision_candidates,
        sampling: plan::sampling(&config.generation, rand::random),
    };
    let adapters = Answering::of_domain(session, engine.model(), &row.domain)?.set;
    let go_on = &mut |_: crate::engine::RevisionEvent<'_>| ControlFlow::Continue(());
    let revised = engine.revise(&request, &adapters, cancel, go_on)?;
    if revised.cancelled {
        return Ok(None);
    }
    let taken_above = taken_above(args, training);
    let bound = taken_above.unwrap_or(training.revision_threshold);
    let taken = revised.best(bound).filter(|_| taken_above.is_some());
    if let Some(best) = taken {
        session.store.set_target(row.id, &best.text, true)?;
    }
    let accepted = taken.is_some();
    Ok(Some(Outcome { revised, bound, accepted }))
}

/// Tells what came of one mark.
fn tell(args: &ReviseArgs, row: &FeedbackRow, outcome: &Outcome) -> std::io::Result<()> {
    let Outcome { revised, bound, accepted } = outcome;
    let (best, first) = (revised.best(*bound), revised.candidates.first());
    if !args.json.json {
        return output::line(&text(row, best, first, *accepted));
    }
    output::json(&Line {
        id: row.id,
        revision: best.map(|best| best.text.as_str()),
        score: best.or(first).map(|candidate| candidate.score),
        criticised_score: revised.criticised,
        answers: revised.answers,
        accepted: *accepted,
    })
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
