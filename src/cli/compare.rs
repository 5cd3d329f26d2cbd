//! `shammah jobs compare`: jobs side by side.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::curves;
use super::exit::UsageError;
use super::output::{self, Table, or_dash};
use crate::domain::AdapterId;
use crate::eval::{Comparison, GateReport};
use crate::plot::{Curve, MAX_CURVES};
use crate::store::{ExampleRole, JobRow, Store};

/// Stands behind the best value of a row.
const BEST: &str = " ✓";
/// Hyper-parameters that say nothing about a job: they start jobs, or stand in a row of their own.
const NO_PARAMETERS: [&str; 3] = ["auto_train", "auto_train_threshold", "from"];
/// Ends the names of all target modules.
const MODULE_SUFFIX: &str = "_proj";

/// Finds a job by its number or, the newest, by its name.
///
/// # Errors
/// No such job, or a store that cannot be read.
pub fn find(store: &Store, text: &str) -> Result<JobRow> {
    if let Ok(id) = text.parse() {
        return Ok(store.job(id)?);
    }
    let named = |job: &JobRow| job.name.as_str() == text;
    store
        .jobs()?
        .into_iter()
        .rev()
        .find(named)
        .ok_or_else(|| anyhow::anyhow!("no job is named \"{text}\": see `shammah jobs list`"))
}

/// Reads the jobs to compare.
///
/// # Errors
/// Too many, one twice, one that does not exist, or a store that cannot be read.
pub fn read(store: &Store, names: &[String]) -> Result<Compared> {
    if names.len() > MAX_CURVES {
        let given = names.len();
        let message =
            format!("{given} jobs are more than can be told apart: give at most {MAX_CURVES}");
        return Err(UsageError(message).into());
    }
    let mut jobs: Vec<Job> = Vec::new();
    for name in names {
        let row = find(store, name)?;
        if jobs.iter().any(|job| job.row.id == row.id) {
            return Err(UsageError(format!("job {} is given twice", row.id)).into());
        }
        let ids = |role| -> Result<Vec<i64>> {
            Ok(store.job_examples(row.id, role)?.into_iter().map(|example| example.id).collect())
        };
        jobs.push(Job {
            report: row
                .gate
                .clone()
                .map(serde_json::from_value)
                .transpose()
                .with_context(|| format!("the stored report of job {} is not readable", row.id))?,
            learned: ids(ExampleRole::New)?,
            heldout: ids(ExampleRole::Heldout)?,
            parameters: parameters(&row),
            curve: curves::of(store, &row)?,
            row,
        });
    }
    Ok(Compared { jobs })
}

/// Jobs that are compared.
pub struct Compared {
    jobs: Vec<Job>,
}

struct Job {
    row: JobRow,
    report: Option<GateReport>,
    /// The marks that are new in it, and those that measure it.
    learned: Vec<i64>,
    heldout: Vec<i64>,
    parameters: BTreeMap<String, String>,
    curve: Curve,
}

impl Job {
    fn loss(&self) -> Option<f64> {
        self.row.loss
    }

    fn trained(&self) -> Option<&Comparison> {
        self.report.as_ref().map(|report| &report.trained)
    }

    fn measured(&self) -> Option<&Comparison> {
        self.report.as_ref().and_then(|report| report.heldout.as_ref())
    }

    fn kl(&self) -> Option<f64> {
        self.report.as_ref().map(|report| report.kl)
    }
}

/// The hyper-parameters of a job by name, as texts.
fn parameters(row: &JobRow) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([("from".to_owned(), row.from.to_string())]);
    let sections = [
        ("", Some(&row.params)),
        ("", row.params.get("training")),
        ("gate.", row.params.get("gate")),
    ];
    for (prefix, section) in sections {
        for (name, value) in section.and_then(Value::as_object).into_iter().flatten() {
            if !value.is_object() && !NO_PARAMETERS.contains(&name.as_str()) {
                all.insert(format!("{prefix}{name}"), value_text(value));
            }
        }
    }
    all
}

fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(value_text).collect();
            let short = |item: &String| item.strip_suffix(MODULE_SUFFIX).unwrap_or(item).to_owned();
            items.iter().map(short).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// The best value of each row: the jobs that have it, by number.
#[derive(Debug, Default, Serialize)]
struct Best {
    loss: Vec<i64>,
    trained: Vec<i64>,
    heldout: Vec<i64>,
    kl: Vec<i64>,
}

/// A job of `jobs compare --json`.
#[derive(Serialize)]
struct JsonJob<'a> {
    id: i64,
    name: &'a AdapterId,
    domain: &'a str,
    state: &'a str,
    sweep: Option<i64>,
    examples: usize,
    parameters: BTreeMap<&'a str, &'a str>,
    step: usize,
    total_steps: usize,
    loss: Option<f64>,
    trained: Option<&'a Comparison>,
    heldout: Option<&'a Comparison>,
    kl: Option<f64>,
    adapter: Option<&'a AdapterId>,
    error: Option<&'a str>,
    curve: &'a [crate::domain::CurvePoint],
}

impl Compared {
    /// The loss curves.
    pub fn curves(&self) -> Vec<Curve> {
        self.jobs.iter().map(|job| job.curve.clone()).collect()
    }

    /// The names of the hyper-parameters in which the jobs differ.
    fn differing(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.jobs.iter().flat_map(|job| job.parameters.keys().map(String::as_str)).collect();
        names.sort_unstable();
        names.dedup();
        let value = |job: &Job, name: &str| job.parameters.get(name).cloned();
        names.retain(|name| {
            self.jobs.iter().any(|job| value(job, name) != value(&self.jobs[0], name))
        });
        names
    }

    /// Whether all jobs learned the same examples: only then their losses can be compared.
    fn learned_the_same(&self) -> bool {
        self.jobs.iter().all(|job| job.learned == self.jobs[0].learned)
    }

    /// Whether all jobs are measured on the same marks.
    fn held_out_the_same(&self) -> bool {
        self.jobs.iter().all(|job| job.heldout == self.jobs[0].heldout)
    }

    fn best(&self) -> Best {
        let mut best = Best { kl: self.least(Job::kl), ..Best::default() };
        if self.learned_the_same() {
            best.loss = self.least(Job::loss);
            best.trained = self.least(|job| job.trained().map(|items| items.after));
        }
        if self.held_out_the_same() {
            best.heldout = self.least(|job| job.measured().map(|items| items.after));
        }
        best
    }

    /// The jobs with the least value, if there are others to be better than.
    fn least(&self, value: impl Fn(&Job) -> Option<f64>) -> Vec<i64> {
        let values: Vec<(i64, f64)> =
            self.jobs.iter().filter_map(|job| Some((job.row.id, value(job)?))).collect();
        let least = values.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
        let best: Vec<i64> =
            values.iter().filter(|(_, value)| *value <= least).map(|(id, _)| *id).collect();
        if best.len() < values.len() { best } else { Vec::new() }
    }

    /// Prints one JSON object.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn json(&self) -> Result<()> {
        let differing = self.differing();
        let job = |job| JsonJob::of(job, &differing);
        let jobs: Vec<JsonJob<'_>> = self.jobs.iter().map(job).collect();
        Ok(output::json(&serde_json::json!({"jobs": jobs, "best": self.best()}))?)
    }

    /// Prints the table, below each other where it is too wide, and why jobs did not succeed.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn print(&self) -> Result<()> {
        let best = self.best();
        let lines = self.lines(&best);
        output::line(&fitted(&lines, self.jobs.len(), output::columns()))?;
        if lines.iter().flatten().any(|cell| cell.ends_with(BEST)) {
            output::line(&format!("{} best of its row", BEST.trim()))?;
        }
        if self.jobs.iter().any(|job| job.report.is_some()) {
            output::line("losses: what was live → what the job made")?;
        }
        let several = self.jobs.len() > 1;
        if several && !self.learned_the_same() {
            output::line("no best loss is marked: the jobs learned different examples")?;
        }
        if several && !self.held_out_the_same() {
            output::line(
                "no best held-out loss is marked: the jobs have different marks held out",
            )?;
        }
        for Job { row, .. } in &self.jobs {
            if let Some(error) = &row.error {
                output::line(&format!("job {} ({}) {}: {error}", row.id, row.name, row.state))?;
            }
        }
        Ok(())
    }

    /// The table: each line has a name and a cell for each job.
    fn lines(&self, best: &Best) -> Vec<Vec<String>> {
        let line = |name: &str, cell: &dyn Fn(&Job) -> String| {
            let mut line = vec![name.to_owned()];
            line.extend(self.jobs.iter().map(cell));
            line
        };
        let marked = |text: String, job: &Job, best: &[i64]| match best.contains(&job.row.id) {
            true => text + BEST,
            false => text,
        };
        let change = |items: Option<&Comparison>| {
            or_dash(items.map(|items| format!("{:.3} → {:.3}", items.before, items.after)))
        };
        let count = |items: Option<&Comparison>| {
            or_dash(items.map(|items| format!("{}/{}/{}", items.better, items.equal, items.worse)))
        };
        let number = |value: Option<f64>| or_dash(value.map(|value| format!("{value:.4}")));
        let mut lines = vec![
            line("", &|job| curves::title(&job.row)),
            line("state", &|job| job.row.state.to_string()),
            line("domain", &|job| job.row.domain.clone()),
            line("examples", &|job| job.row.examples.to_string()),
        ];
        for name in self.differing() {
            lines.push(line(name, &|job| or_dash(job.parameters.get(name))));
        }
        lines.extend([
            line("steps", &|job| format!("{}/{}", job.row.step, job.row.total_steps)),
            line("final loss", &|job| marked(number(job.loss()), job, &best.loss)),
            line("trained loss", &|job| marked(change(job.trained()), job, &best.trained)),
            line("win/tie/loss", &|job| count(job.trained())),
            line("held-out loss", &|job| marked(change(job.measured()), job, &best.heldout)),
            line("win/tie/loss", &|job| count(job.measured())),
            line("KL to the base", &|job| marked(number(job.kl()), job, &best.kl)),
        ]);
        lines
    }
}

impl<'a> JsonJob<'a> {
    fn of(job: &'a Job, differing: &[&'a str]) -> Self {
        let row = &job.row;
        let parameter = |name: &&'a str| Some((*name, job.parameters.get(*name)?.as_str()));
        Self {
            id: row.id,
            name: &row.name,
            domain: &row.domain,
            state: row.state.as_str(),
            sweep: row.sweep,
            examples: row.examples,
            parameters: differing.iter().filter_map(parameter).collect(),
            step: row.step,
            total_steps: row.total_steps,
            loss: row.loss,
            trained: job.trained(),
            heldout: job.measured(),
            kl: job.kl(),
            adapter: row.adapter.as_ref(),
            error: row.error.as_deref(),
            curve: &job.curve.points,
        }
    }
}

/// Lays the lines out with as many jobs side by side as fit; the others follow below.
fn fitted(lines: &[Vec<String>], jobs: usize, width: Option<usize>) -> String {
    let part = |from: usize, to: usize| {
        let cells = |line: &Vec<String>| {
            let mut cells = vec![line[0].clone()];
            cells.extend_from_slice(&line[1 + from..1 + to]);
            cells
        };
        let mut rows = lines.iter().map(cells);
        let heading = rows.next().unwrap_or_default();
        let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
        let mut table = Table::new(&heading);
        rows.for_each(|cells| table.row(&cells));
        table
    };
    let parts = |side_by_side: usize| -> Vec<Table> {
        let starts = (0..jobs).step_by(side_by_side);
        starts.map(|from| part(from, (from + side_by_side).min(jobs))).collect()
    };
    let fits = |tables: &Vec<Table>| {
        width.is_none_or(|width| tables.iter().all(|table| table.width() <= width))
    };
    let tables = (1..=jobs).rev().map(parts).find(fits).unwrap_or_else(|| parts(1));
    tables.iter().map(Table::render).collect::<Vec<_>>().join("\n\n")
}
