//! `shammah jobs list | show | cancel | retry | compare`.

use anyhow::Result;
use serde::Serialize;

use super::args::{GlobalArgs, JobsCommand, PlotArg};
use super::context::Session;
use super::exit::Exit;
use super::job_log::JobLog;
use super::output::{self, Table, or_dash};
use super::{compare, curves, gate_text, jobs_watch};
use crate::domain::CurvePoint;
use crate::lora::Resources;
use crate::plan;
use crate::plot::Curve;
use crate::store::{EventRow, Home, JobRow, JobState};
use crate::text::need;

/// What a rejection means for its user.
const REJECTED: &str = "nothing changed: the adapter that was live still is, and the marks stay. `shammah jobs retry ID` tries again; the next\nautomatic job waits for as many new marks as lora.training.auto_train_threshold says";

/// Runs the command.
///
/// # Errors
/// No such job, one that is over already, or a store that cannot be read or written.
pub fn run(command: &JobsCommand, global: &GlobalArgs) -> Result<Exit> {
    let session = Session::open(global, Vec::new())?;
    let store = &session.store;
    match command {
        JobsCommand::List(args) => list(&session.home, &store.jobs()?, args.json)?,
        JobsCommand::Show { id, plot, json } => {
            let job = compare::find(store, id)?;
            let curve = curves::of(store, &job)?;
            draw(std::slice::from_ref(&curve), plot)?;
            show(&Listed::of(&session.home, &job), &store.events(job.id)?, &curve, json.json)?;
        }
        JobsCommand::Compare { jobs, plot, json } => {
            let compared = compare::read(store, jobs)?;
            let curves = compared.curves();
            draw(&curves, plot)?;
            match json.json {
                true => compared.json()?,
                false => {
                    compared.print()?;
                    curves::print(&curves)?;
                }
            }
        }
        JobsCommand::Cancel { id, json } => {
            let job = cancel(&session, compare::find(store, id)?.id)?;
            match json.json {
                true => output::json(&job)?,
                false => output::line(&cancelled(&job))?,
            }
        }
        JobsCommand::Retry { id, priority, json } => {
            let old = compare::find(store, id)?.id;
            let job = plan::retry(store, &session.loaded.config, old, *priority)?;
            match json.json {
                true => output::json(&job)?,
                false => output::line(&format!("job {old} is queued again as job {}", job.id))?,
            }
        }
        JobsCommand::Watch { id, json } => {
            return jobs_watch::run(&session, id.as_deref(), json.json);
        }
        // Not a look at the store; `cli::run` has sent it elsewhere.
        JobsCommand::Run => {}
    }
    Ok(Exit::Done)
}

/// Cancels a job. Where its process is gone nobody is left to ask: then its end is written here.
fn cancel(session: &Session, id: i64) -> Result<JobRow> {
    let job = session.store.request_cancel(id)?;
    if job.state.is_final() {
        return Ok(job);
    }
    if let Some(_lock) = session.home.try_lock_queue()? {
        let attempts = usize::try_from(session.loaded.config.queue.max_attempts)?;
        session.store.requeue_orphans(attempts)?;
    }
    Ok(session.store.job(id)?)
}

/// A job as it is listed.
#[derive(Serialize)]
pub struct Listed<'a> {
    #[serde(flatten)]
    job: &'a JobRow,
    /// Whether it was running when its process died, and nobody has taken it up since.
    interrupted: bool,
}

impl<'a> Listed<'a> {
    /// Looks whether anybody runs a job that should be running.
    pub fn of(home: &Home, job: &'a JobRow) -> Self {
        Self { job, interrupted: job.state.is_active() && !home.queue_is_held() }
    }

    /// The state in words.
    pub fn state(&self) -> &'static str {
        if self.interrupted { "interrupted" } else { self.job.state.as_str() }
    }
}

/// Says what becomes of a job whose process is gone.
pub fn waits_for_a_holder(job: &JobRow) -> String {
    format!(
        "job {} was interrupted: its process is gone, and it waits for the next that runs the queue (a console, or `shammah jobs run`)",
        job.id
    )
}

/// Draws the loss curves into a file if one was asked for.
fn draw(curves: &[Curve], plot: &PlotArg) -> Result<()> {
    plot.file.as_ref().map_or(Ok(()), |file| curves::draw(curves, file))
}

/// Prints jobs that come oldest first the other way round.
fn list(home: &Home, jobs: &[JobRow], as_json: bool) -> Result<()> {
    let jobs: Vec<Listed<'_>> = jobs.iter().rev().map(|job| Listed::of(home, job)).collect();
    if as_json {
        return jobs.iter().try_for_each(output::json).map_err(Into::into);
    }
    let mut table = Table::new(&[
        "ID", "NAME", "DOMAIN", "STATE", "EXAMPLES", "STEP", "LOSS", "HELD OUT", "CREATED",
    ]);
    for listed @ Listed { job, .. } in &jobs {
        table.row(&[
            job.id.to_string(),
            job.name.to_string(),
            job.domain.clone(),
            listed.state().to_owned(),
            job.examples.to_string(),
            step_of(job),
            loss_text(job.loss),
            heldout_text(job),
            output::time(job.created_at),
        ]);
    }
    table.print()?;
    let gone = jobs.iter().find(|listed| listed.interrupted);
    Ok(gone.map_or(Ok(()), |listed| output::line(&waits_for_a_holder(listed.job)))?)
}

/// A job with what its events tell of it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    listed: &'a Listed<'a>,
    /// Of the last attempt.
    resources: Option<Resources>,
    notes: Vec<&'a str>,
    #[serde(flatten)]
    log: JobLog<'a>,
    curve: &'a [CurvePoint],
}

fn show(listed: &Listed<'_>, events: &[EventRow], curve: &Curve, as_json: bool) -> Result<()> {
    let job = listed.job;
    let of_kind = |kind: &'static str| {
        events.iter().filter(move |e| e.kind == kind).filter_map(|e| e.detail.as_deref())
    };
    let last = of_kind(plan::RESOURCES).next_back();
    let resources: Option<Resources> = last.and_then(|json| serde_json::from_str(json).ok());
    let notes: Vec<&str> = of_kind(plan::NOTE).collect();
    if as_json {
        let log = JobLog::of(job, events);
        return Ok(output::json(&Shown { listed, resources, notes, log, curve: &curve.points })?);
    }
    let expected = resources.and_then(|r| Some(need(r.expected_ms?, r.expected_bytes)));
    let took = resources.and_then(|r| Some(need(r.elapsed_ms?, r.peak_bytes?)));
    let mut fields = vec![
        ("id", job.id.to_string()),
        ("name", job.name.to_string()),
        ("domain", job.domain.clone()),
        ("state", listed.state().to_owned()),
        ("attempts", job.attempts.to_string()),
        ("from", job.from.to_string()),
        ("parent", or_dash(job.parent.as_ref())),
        ("sweep", or_dash(job.sweep)),
        ("examples", job.examples.to_string()),
        ("step", step_of(job)),
        ("loss", loss_text(job.loss)),
        ("held-out loss", heldout_text(job)),
        ("adapter", or_dash(job.adapter.as_ref())),
        ("expected", or_dash(expected.map(|need| format!("about {need}")))),
        ("took", or_dash(took)),
        ("error", or_dash(job.error.as_ref())),
        ("created", output::time(job.created_at)),
        ("started", or_dash(job.started_at.map(output::time))),
        ("finished", or_dash(job.finished_at.map(output::time))),
    ];
    fields.extend(job.gate.as_ref().and_then(gate_text::report).iter().flat_map(gate_text::rows));
    output::fields(&fields)?;
    if job.state == JobState::Rejected {
        output::line(REJECTED)?;
    }
    if listed.interrupted {
        output::line(&waits_for_a_holder(job))?;
    }
    notes.into_iter().try_for_each(|note| output::line(&format!("note: {note}")))?;
    JobLog::of(job, events).print()?;
    curves::print(std::slice::from_ref(curve))
}

fn cancelled(job: &JobRow) -> String {
    if job.state.is_final() {
        format!("job {} is {}; its marks are back in the buffer", job.id, job.state)
    } else {
        format!("asked job {} to stop; its marks return to the buffer when it did", job.id)
    }
}

fn step_of(job: &JobRow) -> String {
    match job.total_steps {
        0 => "-".to_owned(),
        total => format!("{}/{total}", job.step),
    }
}

fn loss_text(loss: Option<f64>) -> String {
    or_dash(loss.map(|loss| format!("{loss:.4}")))
}

fn heldout_text(job: &JobRow) -> String {
    match (job.heldout_before, job.heldout_after) {
        (Some(before), Some(after)) => format!("{before:.2} → {after:.2}"),
        _ => "-".to_owned(),
    }
}
