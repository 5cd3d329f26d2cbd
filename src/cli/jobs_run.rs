//! `shammah jobs run`: the queue as a service.

use std::process::ExitCode;

use anyhow::Result;

use super::args::GlobalArgs;
use super::context::{self, Session};
use super::{model, output};
use crate::app::{self, AppError, ReadConfig, Said};
use crate::messages::console::JobNotice;
use crate::text::need;

/// Runs the command until a signal ends it, and returns the exit code.
///
/// # Errors
/// A wrong configuration, a data directory or model that cannot be used, or a queue that another process holds.
pub fn run(global: &GlobalArgs) -> Result<ExitCode> {
    let session = Session::open(global, Vec::new())?;
    // Before the model is loaded; the lock itself is taken later.
    if session.home.queue_is_held() {
        return Err(AppError::held(&session.home).into());
    }
    let setup = model::setup(session)?;
    setup.notes.iter().for_each(|note| tracing::info!("{note}"));
    let (again, home) = (global.clone(), setup.home.root().to_owned());
    let read: ReadConfig = Box::new(move || {
        let loaded = context::load_config(&again, &home, Vec::new());
        loaded.map(|loaded| loaded.config).map_err(|error| error.to_string())
    });
    let quiet = global.quiet;
    let said = Box::new(move |said: Said<'_>| {
        let line = match said {
            Said::Job(notice) => job_line(notice),
            Said::Line(line) => Some(line.to_owned()),
        };
        if let Some(line) = line.filter(|_| !quiet) {
            output::complain(&line);
        }
    });
    Ok(app::run_service(&setup, read, said)?.into())
}

/// Says a turn of a job in one line. A journal is a log: reasons that may quote an example stay in `jobs show`.
fn job_line(notice: &JobNotice) -> Option<String> {
    Some(match notice {
        JobNotice::Queued { job, domain, examples, automatic } => {
            let why = if *automatic { " (the buffer reached its threshold)" } else { "" };
            format!("job {job} queued: {examples} examples, domain {domain}{why}")
        }
        JobNotice::Started { job, examples, attempt } => {
            format!("job {job} started: {examples} examples, attempt {attempt}")
        }
        JobNotice::Expected { job, ms, bytes } => format!("job {job}: about {}", need(*ms, *bytes)),
        JobNotice::Evaluating { job } => format!("job {job} is being measured"),
        JobNotice::Retrying { job, attempt, max_attempts, .. } => format!(
            "job {job}: its worker died, attempt {attempt} of {max_attempts} follows (`shammah jobs show {job}` says why)"
        ),
        JobNotice::Succeeded { job, adapter, final_loss, .. } => {
            format!("job {job} succeeded: adapter {adapter} is live, final loss {final_loss:.4}")
        }
        JobNotice::Rejected { job, .. } => {
            format!("job {job} was rejected by the gate (`shammah jobs show {job}` says why)")
        }
        JobNotice::Failed { job, attempts, .. } => format!(
            "job {job} failed after {attempts} attempts (`shammah jobs show {job}` says why)"
        ),
        JobNotice::Cancelled { job } => format!("job {job} was cancelled"),
        JobNotice::Parked { job, step } => {
            format!("job {job} is parked at step {step}: it goes on at the next start")
        }
        JobNotice::Noted { .. } | JobNotice::Progressed(_) | JobNotice::Checkpointed { .. } => {
            return None;
        }
    })
}
