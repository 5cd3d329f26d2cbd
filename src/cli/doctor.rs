//! `shammah doctor`: what works on this machine and what does not. It trains nothing, changes no row and shows no secret; a
//! data directory without a database stays as it is.

use std::path::Path;
use std::thread::available_parallelism;

use anyhow::Result;
use serde::Serialize;

use super::args::GlobalArgs;
use super::context::{home_path, load_config};
use super::exit::Exit;
use super::jobs::Listed;
use super::{model, output};
use crate::config::Config;
use crate::domain::AdapterId;
use crate::hub::{Hub, HubError};
use crate::store::{AdapterRow, Home, JobRow, JobState, SCHEMA_VERSION, Store};
use crate::text::{bytes, printable_line};
use crate::worker::available_memory;
use crate::{device, models};

/// Free space below which a job's checkpoints and adapters may not fit.
const LITTLE_SPACE: u64 = 1 << 30;
/// Ended jobs that tell how training goes.
const RUNS_LOOKED_AT: usize = 10;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It works.
    Ok,
    /// It works, and something should be known.
    Warning,
    /// It does not work.
    Failed,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    verdict: Verdict,
    detail: String,
}

/// The report so far.
#[derive(Default)]
struct Report(Vec<Check>);

impl Report {
    fn add(&mut self, check: &'static str, verdict: Verdict, detail: impl ToString) {
        self.0.push(Check { check, verdict, detail: detail.to_string() });
    }

    fn ok(&mut self, check: &'static str, detail: impl ToString) {
        self.add(check, Verdict::Ok, detail);
    }

    fn warn(&mut self, check: &'static str, detail: impl ToString) {
        self.add(check, Verdict::Warning, detail);
    }

    fn fail(&mut self, check: &'static str, detail: impl ToString) {
        self.add(check, Verdict::Failed, detail);
    }
}

/// Runs the command.
///
/// # Errors
/// When stdout cannot be written; what does not work is in the report.
pub fn run(as_json: bool, global: &GlobalArgs) -> Result<Exit> {
    let mut report = Report::default();
    match home_path(global) {
        Ok(path) => examine(&mut report, &path, global),
        Err(error) => report.fail("data directory", error),
    }
    machine(&mut report);
    if as_json {
        report.0.iter().try_for_each(output::json)?;
    } else {
        for check in &report.0 {
            let verdict = match check.verdict {
                Verdict::Ok => "ok     ",
                Verdict::Warning => "warning",
                Verdict::Failed => "FAILED ",
            };
            output::line(&format!(
                "{verdict}  {}: {}",
                check.check,
                printable_line(&check.detail)
            ))?;
        }
    }
    let failed = report.0.iter().any(|check| check.verdict == Verdict::Failed);
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

fn examine(report: &mut Report, path: &Path, global: &GlobalArgs) {
    let config = match load_config(global, path, Vec::new()) {
        Ok(loaded) => {
            report.ok("configuration", "every value is in its range");
            Some(loaded.config)
        }
        Err(error) => {
            report.fail("configuration", error);
            None
        }
    };
    if path.join("shammah.db").exists() {
        data(report, path, config.as_ref());
    } else {
        unmade(report, path);
    }
    if let Some(config) = &config {
        model_of(report, config);
        computing(report, config);
    }
    hub_of(report);
}

/// A data directory without a database: whether the first start can make what it needs.
fn unmade(report: &mut Report, path: &Path) {
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    if !there.is_dir() {
        let what = format!("{}: {} is no directory", path.display(), there.display());
        return report.fail("data directory", what);
    }
    let wanted = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    match rustix::fs::access(there, wanted) {
        Ok(()) => {
            let what = format!("{}: no database yet; made at the first start", path.display());
            report.ok("data directory", what);
        }
        Err(error) => {
            let what =
                format!("{}: cannot be made in {}: {error}", path.display(), there.display());
            report.fail("data directory", what);
        }
    }
}

fn data(report: &mut Report, path: &Path, config: Option<&Config>) {
    let home = match Home::open_or_create(path) {
        Ok(home) => home,
        Err(error) => return report.fail("data directory", error),
    };
    match tempfile::tempfile_in(home.root()) {
        Ok(_) => report.ok("data directory", format!("{}: yours alone, writable", path.display())),
        Err(error) => {
            let kind = error.kind();
            report.fail("data directory", format!("{}: not writable: {kind}", path.display()));
        }
    }
    match rustix::fs::statvfs(home.root()) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let verdict = if free < LITTLE_SPACE { Verdict::Warning } else { Verdict::Ok };
            report.add("disk", verdict, format!("{} free", bytes(free)));
        }
        Err(error) => report.warn("disk", format!("free space is not known: {error}")),
    }
    if let Err(error) = database(report, &home, config) {
        report.fail("database", error);
    }
}

fn database(
    report: &mut Report,
    home: &Home,
    config: Option<&Config>,
) -> Result<(), crate::store::StoreError> {
    let store = Store::open(home)?;
    let problems = store.problems()?;
    match problems.is_empty() {
        true => report.ok("database", format!("whole, schema {SCHEMA_VERSION}")),
        false => report.fail(
            "database",
            format!("damaged: {}: restore shammah.db from a backup", problems.join("; ")),
        ),
    }
    let jobs = store.jobs()?;
    queue(report, home, &jobs);
    let (adapters, incomplete) = (store.adapters()?, store.incomplete_adapters()?);
    let live = adapters.iter().filter(|adapter| adapter.live).count();
    match incomplete.is_empty() {
        true => report.ok("adapters", format!("{}, {live} live", adapters.len())),
        false => {
            let names: Vec<&str> = incomplete.iter().map(|id| id.as_str()).collect();
            let names = names.join(", ");
            report.warn(
                "adapters",
                format!("files are missing of {names}: put them back, or delete it"),
            );
        }
    }
    if let Some(config) = config {
        mixtures(report, config, &adapters);
    }
    runs(report, &jobs);
    Ok(())
}

/// Configured mixtures name adapters that exist.
fn mixtures(report: &mut Report, config: &Config, adapters: &[AdapterRow]) {
    for (domain, section) in &config.domains {
        let named = section.mixture().into_iter().filter_map(|term| term.adapter);
        let missing = |id: &AdapterId| adapters.iter().all(|row| row.id != *id);
        for id in named.filter(missing) {
            report.warn(
                "mixture",
                format!(
                    "domains.{domain}.adapters names \"{id}\", and there is no such adapter: it is left out of the answers"
                ),
            );
        }
    }
}

fn queue(report: &mut Report, home: &Home, jobs: &[JobRow]) {
    let waiting = jobs.iter().filter(|job| job.state == JobState::Queued).count();
    let holder = match (home.queue_is_held(), home.queue_holder()) {
        (true, Some(pid)) => format!("run by process {pid}"),
        (true, None) => "run by another process".to_owned(),
        (false, _) => "run by nobody now".to_owned(),
    };
    let active = jobs.iter().find(|job| job.state.is_active());
    match active.map(|job| (job.id, Listed::of(home, job).state())) {
        Some((id, "interrupted")) => report.warn(
            "queue",
            format!("{holder}; {waiting} waiting; job {id} was interrupted and goes on when a console or `shammah jobs run` starts"),
        ),
        Some((id, state)) => report.ok("queue", format!("{holder}; {waiting} waiting; job {id} {state}")),
        None if waiting > 0 && !home.queue_is_held() => report.warn(
            "queue",
            format!("{holder}; {waiting} waiting for a console or `shammah jobs run`"),
        ),
        None => report.ok("queue", format!("{holder}; {waiting} waiting")),
    }
}

/// How the last jobs ended.
fn runs(report: &mut Report, jobs: &[JobRow]) {
    let ended = jobs.iter().rev().filter(|job| job.state.is_final());
    let last: Vec<&JobRow> = ended.take(RUNS_LOOKED_AT).collect();
    let Some(newest) = last.first() else { return report.ok("last jobs", "none has ended yet") };
    let count = |state| last.iter().filter(|job| job.state == state).count();
    let counts = format!(
        "of the last {}: {} succeeded, {} rejected, {} failed, {} cancelled",
        last.len(),
        count(JobState::Succeeded),
        count(JobState::Rejected),
        count(JobState::Failed),
        count(JobState::Cancelled)
    );
    // The reason may quote an example; `jobs show` has it.
    match newest.state {
        JobState::Failed => report.warn(
            "last jobs",
            format!("{counts}; the newest failed: `shammah jobs show {}` says why", newest.id),
        ),
        _ => report.ok("last jobs", counts),
    }
}

fn model_of(report: &mut Report, config: &Config) {
    let name = &config.model.source;
    let found = match model::find(name) {
        Ok(found) => found,
        Err(error) => {
            let not_cached =
                matches!(error.downcast_ref::<HubError>(), Some(HubError::NotCached { .. }));
            let verdict = if not_cached { Verdict::Warning } else { Verdict::Failed };
            return report.add("model", verdict, format!("{error:#}"));
        }
    };
    let info = match models::inspect(&found, crate::plan::quantize(config.model.quantize)) {
        Ok(info) => info,
        Err(error) => return report.fail("model", error),
    };
    let needed = info.needed(config.generation.max_tokens);
    let detail = format!("{name}: {} parameters, needs {}", info.parameters, bytes(needed));
    match available_memory() {
        Some(there) if there < needed => {
            report.fail("model", format!("{detail}, and {} is available", bytes(there)));
        }
        _ => report.ok("model", detail),
    }
}

fn computing(report: &mut Report, config: &Config) {
    match device::open(config.model.device) {
        Ok(opened) => {
            let name = model::name_of(&opened.device);
            let why = opened.fallback.map(|why| format!(" ({why})")).unwrap_or_default();
            report.ok("device", format!("{name}{why}"));
        }
        Err(error) => report.fail("device", error),
    }
    let cores = available_parallelism().map_or(1, usize::from);
    let threads = |set: usize| if set == 0 { cores } else { set };
    let (answers, training) = (threads(config.model.threads), threads(config.worker.threads));
    let detail = format!("{cores} cores; {answers} for answers, {training} for training");
    let verdict = if answers.max(training) > cores { Verdict::Warning } else { Verdict::Ok };
    report.add("threads", verdict, detail);
}

fn machine(report: &mut Report) {
    report.ok("CPU", format!("kernels in use: {}", models::kernels::forms()));
    match available_memory() {
        Some(there) => report.ok("memory", format!("{} available", bytes(there))),
        None => report.warn("memory", "what is available is not known on this system"),
    }
}

fn hub_of(report: &mut Report) {
    let hub = match Hub::from_env() {
        Ok(hub) => hub,
        Err(error) => return report.warn("hub", error),
    };
    let cache = hub.cache().display();
    let models = match hub.list() {
        Ok(models) => format!("{} models in {cache}", models.len()),
        Err(error) => return report.warn("hub", error),
    };
    let token = match hub.has_token() {
        Ok(true) => "a token is there",
        Ok(false) => "no token (gated models are closed)",
        Err(error) => return report.warn("hub", error),
    };
    let offline = if hub.is_offline() { "; downloads are forbidden (HF_HUB_OFFLINE)" } else { "" };
    report.ok("hub", format!("{models}; {token}{offline}"));
}
