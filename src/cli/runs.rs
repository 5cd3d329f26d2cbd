//! `shammah train RUNS.toml`: enqueues the jobs of a file, all or none.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::context::Session;
use super::exit::UsageError;
use super::{feedback, model};
use crate::config::{Config, ConfigError, Run, Runs, StartFrom};
use crate::domain::DEFAULT_DOMAIN;
use crate::plan::{self, JobWish};
use crate::store::{BatchError, ExampleSet, JobRow, NewFeedback, StoreError};

/// Reads a runs file, looks at all of its jobs, and enqueues them together.
///
/// # Errors
/// Whatever is wrong with the file, a job or its data; a full queue, a taken name, nothing to learn. Then nothing is
/// stored.
pub fn enqueue(session: &Session, file: &Path, priority: i64) -> Result<Vec<JobRow>> {
    let config = &session.loaded.config;
    let runs = Runs::load(file, &config.lora).map_err(|error| with_hint(error, file))?;
    let mut shared = Shared::default();
    for index in 0..runs.jobs.len() {
        shared.add(session, &runs, index)?;
    }
    let base = model::job_base(session)?;
    let mut jobs = Vec::new();
    for (index, run) in runs.jobs.iter().enumerate() {
        let set = shared.set_of[index];
        let wish = JobWish {
            name: run.name.clone(),
            domain: shared.sets[set].domain.clone(),
            from: shared.start(&runs, index)?.map(Into::into),
            priority,
            only: None,
            base: base.clone(),
        };
        let config = Config { lora: run.lora.clone(), ..config.clone() };
        jobs.push((set, plan::new_job(&config, wish)?));
    }
    session.store.enqueue_batch(&shared.sets, &jobs).map_err(|error| refusal(&runs, error))
}

/// The example sets of a file, and which job learns which.
#[derive(Default)]
struct Shared {
    sets: Vec<ExampleSet>,
    /// What each set is recognised by.
    keys: Vec<(Option<PathBuf>, String)>,
    set_of: Vec<usize>,
}

impl Shared {
    /// Finds the set of a job, or reads it: the marks of a data file are stored once for each domain.
    fn add(&mut self, session: &Session, runs: &Runs, index: usize) -> Result<()> {
        let run = &runs.jobs[index];
        let (path, domain, marks) = match &run.data {
            None => (None, run.domain.clone().unwrap_or_else(|| DEFAULT_DOMAIN.to_owned()), None),
            Some(data) => {
                let path = fs_err::canonicalize(data).map_err(|error| {
                    let problem = format!("cannot be read: {error}: check the path");
                    runs.conflict(index, "data", problem)
                })?;
                let marks = self.read(session, runs, index, data)?;
                let domain = one_domain(runs, index, &marks)?;
                (Some(path), domain, Some(marks))
            }
        };
        let key = (path, domain);
        let known = self.keys.iter().position(|other| *other == key);
        self.set_of.push(known.unwrap_or(self.sets.len()));
        if known.is_none() {
            self.sets.push(ExampleSet { domain: key.1.clone(), marks });
            self.keys.push(key);
        }
        Ok(())
    }

    fn read(
        &self,
        session: &Session,
        runs: &Runs,
        index: usize,
        data: &Path,
    ) -> Result<Vec<NewFeedback>, ConfigError> {
        let domain = runs.jobs[index].domain.as_deref();
        feedback::read_file(session, data, domain).map_err(|error| {
            runs.conflict(index, "data", format!("is no file of marks: {error:#}"))
        })
    }

    /// Where a job starts: jobs of one set begin at zero, each a lineage of its own.
    fn start(&self, runs: &Runs, index: usize) -> Result<Option<StartFrom>, ConfigError> {
        let Run { from, .. } = runs.jobs[index];
        let same = |other: &usize| self.set_of[*other] == self.set_of[index] && *other != index;
        let Some(twin) = (0..self.set_of.len()).find(same) else { return Ok(from) };
        match from {
            None | Some(StartFrom::Fresh) => Ok(Some(StartFrom::Fresh)),
            Some(from) => {
                let from = crate::store::StartFrom::from(from);
                let problem = format!(
                    "is \"{from}\", and job {} learns the same examples: such jobs start from zero, remove the line or write \"fresh\"",
                    twin + 1
                );
                Err(runs.conflict(index, "from", problem))
            }
        }
    }
}

fn one_domain(runs: &Runs, index: usize, marks: &[NewFeedback]) -> Result<String, ConfigError> {
    let first = marks.first().map_or(DEFAULT_DOMAIN, |mark| mark.domain.as_str());
    match marks.iter().find(|mark| mark.domain != first) {
        None => Ok(first.to_owned()),
        Some(other) => {
            let problem = format!(
                "has marks of the domains \"{first}\" and \"{}\", and a job learns one: give it a domain",
                other.domain
            );
            Err(runs.conflict(index, "data", problem))
        }
    }
}

/// A file of marks taken for a runs file is told what it is.
fn with_hint(error: ConfigError, file: &Path) -> anyhow::Error {
    let is_data = file.extension().is_some_and(|extension| extension == "jsonl");
    match is_data && matches!(error, ConfigError::Syntax { .. }) {
        true => UsageError(format!(
            "{} is no runs file (TOML): to train on its marks write --data {}",
            file.display(),
            file.display()
        ))
        .into(),
        false => error.into(),
    }
}

/// Says which job the store refused; what is wrong with the file itself is a matter of usage.
fn refusal(runs: &Runs, error: BatchError) -> anyhow::Error {
    let place = runs.place(error.job);
    match error.source {
        StoreError::InvalidFeedback(reason) => {
            runs.conflict(error.job, "data", format!("is not stored: {reason}")).into()
        }
        source => anyhow::Error::from(source).context(format!("{place}: nothing is enqueued")),
    }
}
