//! `shammah train`: puts a job, or those of a runs file, into the queue, and with `--wait` sees them through.

use anyhow::Result;

use super::args::{FromArg, GlobalArgs, TrainArgs};
use super::context::Session;
use super::exit::{Exit, UsageError};
use super::progress::Progress;
use super::{feedback, model, output, runs, secrets};
use crate::app::{self, QueueEnd};
use crate::domain::DEFAULT_DOMAIN;
use crate::plan::{self, JobWish, PlanError};
use crate::store::{self, JobRow, JobState, StoreError};

/// Runs the command.
///
/// # Errors
/// Nothing to train, a full queue, a taken name, a wrong file, or a store that cannot be used.
pub fn run(args: &TrainArgs, global: &GlobalArgs) -> Result<Exit> {
    let session = Session::open(global, Vec::new())?;
    let jobs = match &args.runs {
        Some(file) => runs::enqueue(&session, file, args.priority)?,
        None => match enqueue(&session, args) {
            Ok(job) => vec![job],
            Err(error) => jobs_to_wait_for(&session, args, error)?,
        },
    };
    if !args.wait {
        jobs.iter().try_for_each(|job| show(job, args.json.json))?;
        return Ok(Exit::Done);
    }
    if !global.quiet {
        jobs.iter().for_each(|job| output::complain(&queued(job)));
    }
    let end = wait(session, &jobs, global.quiet)?;
    end.jobs.iter().try_for_each(|job| show(job, args.json.json))?;
    if end.jobs.len() > 1 && !global.quiet {
        let ids: Vec<String> = end.jobs.iter().map(|job| job.id.to_string()).collect();
        output::complain(&format!("side by side: shammah jobs compare {}", ids.join(" ")));
    }
    Ok(exit_of(&end))
}

/// Stores the marks of `--data` and enqueues a job for their domain.
fn enqueue(session: &Session, args: &TrainArgs) -> Result<JobRow> {
    let (domain, only) = match &args.data {
        None => (args.domain.clone().unwrap_or_else(|| DEFAULT_DOMAIN.to_owned()), None),
        Some(file) => {
            let rows = feedback::read_file(session, file, args.domain.as_deref())?;
            let domain = one_domain(rows.iter().map(|row| row.domain.as_str()))?;
            let ids = session.store.add_all_feedback(&rows)?;
            secrets::complain(&secrets::replaced_in(&session.store, &ids)?);
            (domain, Some(ids))
        }
    };
    let wish = JobWish {
        name: args.name.clone(),
        domain,
        from: args.from.map(|from| match from {
            FromArg::Continue => store::StartFrom::Continue,
            FromArg::Fresh => store::StartFrom::Fresh,
            FromArg::Delta => store::StartFrom::Delta,
        }),
        priority: args.priority,
        only,
        base: model::job_base(session)?,
    };
    Ok(plan::enqueue(&session.store, &session.loaded.config, wish)?)
}

fn one_domain<'a>(mut domains: impl Iterator<Item = &'a str>) -> Result<String, UsageError> {
    let first = domains.next().unwrap_or(DEFAULT_DOMAIN);
    match domains.find(|domain| *domain != first) {
        None => Ok(first.to_owned()),
        Some(other) => Err(UsageError(format!(
            "--data has marks of the domains \"{first}\" and \"{other}\", and a job learns one: give --domain D"
        ))),
    }
}

/// With `--wait` and nothing new to learn, the jobs that are queued already are what is waited for.
fn jobs_to_wait_for(
    session: &Session,
    args: &TrainArgs,
    error: anyhow::Error,
) -> Result<Vec<JobRow>> {
    let same = match error.downcast_ref() {
        Some(PlanError::Store(StoreError::NothingToTrain { .. })) if args.wait => None,
        Some(PlanError::Store(StoreError::SameJob(job))) if args.wait => Some(*job),
        _ => return Err(error),
    };
    let mut jobs = session.store.jobs()?;
    jobs.retain(|job| !job.state.is_final() && same.is_none_or(|same| same == job.id));
    if jobs.is_empty() {
        return Err(error);
    }
    output::complain("nothing new to learn: waiting for what is queued already");
    Ok(jobs)
}

/// Runs the queue, or watches whoever runs it, until the jobs have ended.
fn wait(session: Session, jobs: &[JobRow], quiet: bool) -> Result<QueueEnd> {
    let ids: Vec<i64> = jobs.iter().map(|job| job.id).collect();
    let setup = model::setup(session)?;
    if !quiet && setup.home.try_lock_queue()?.is_none() {
        let holder = setup.home.queue_holder().map(|pid| format!(" {pid}")).unwrap_or_default();
        output::complain(&format!(
            "process{holder} runs the queue of {}: waiting for it",
            setup.home.root().display()
        ));
    }
    let mut progress = Progress::new(quiet);
    Ok(app::run_queue(&setup, &ids, Box::new(move |notice| progress.show(notice)))?)
}

fn exit_of(end: &QueueEnd) -> Exit {
    let any = |wanted: &[JobState]| end.jobs.iter().any(|job| wanted.contains(&job.state));
    match end.cut_short {
        Some(code) if code == Exit::Interrupted.code() => Exit::Interrupted,
        Some(_) => Exit::Failed,
        None if any(&[JobState::Failed, JobState::Cancelled]) => Exit::Failed,
        None if any(&[JobState::Rejected]) => Exit::Rejected,
        None => Exit::Done,
    }
}

fn queued(job: &JobRow) -> String {
    let noun = if job.examples == 1 { "example" } else { "examples" };
    format!(
        "job {} ({}) is {}: {} {noun} of domain {}",
        job.id, job.name, job.state, job.examples, job.domain
    )
}

fn show(job: &JobRow, as_json: bool) -> Result<()> {
    if as_json {
        return Ok(output::json(job)?);
    }
    let text = match job.state {
        JobState::Queued => queued(job),
        state => {
            let why = job.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            format!("job {} ({}): {state}{why}", job.id, job.name)
        }
    };
    Ok(output::line(&text)?)
}
