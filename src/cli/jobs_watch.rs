//! `shammah jobs watch`: a job, or the whole queue, as it goes on.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::context::Session;
use super::exit::Exit;
use super::jobs::{Listed, waits_for_a_holder};
use super::{compare, output};
use crate::plot;
use crate::store::{Home, JobRow, JobState, Store};
use crate::text::{duration, printable_line};

/// How often is looked: as often as the holder of the queue writes progress.
const POLL: Duration = Duration::from_millis(500);
/// The least time between two lines about the same job's steps, where lines cannot be overwritten.
const LINE_PAUSE: Duration = Duration::from_secs(2);
/// Columns of the loss curve.
const SPARK_COLUMNS: usize = 24;
/// Moves to the line's start and clears it.
const CLEAR_LINE: &str = "\r\u{1b}[2K";

/// Watches until the job, or every job that is open now or comes meanwhile, has ended.
///
/// # Errors
/// No such job, or a store that cannot be read.
pub fn run(session: &Session, id: Option<&str>, as_json: bool) -> Result<Exit> {
    let (store, home) = (&session.store, &session.home);
    let only = id.map(|id| compare::find(store, id)).transpose()?.map(|job| job.id);
    let mut watch = Watch { out: Out::new(as_json), pace: None, lonely: false };
    let mut open: Vec<i64> = Vec::new();
    if only.is_none() && !as_json && store.jobs()?.iter().all(|job| job.state.is_final()) {
        output::line("no job waits or runs")?;
    }
    loop {
        let rows = store.jobs()?;
        let is_told = |job: &JobRow| only == Some(job.id) && !open.contains(&job.id);
        for job in rows.iter().filter(|job| open.contains(&job.id) || is_told(job)) {
            if job.state.is_final() {
                watch.show(&View::of(store, home, &rows, job, None)?, true)?;
            }
        }
        let wanted = |job: &&JobRow| only.is_none_or(|id| id == job.id);
        open = rows.iter().filter(wanted).filter(|j| !j.state.is_final()).map(|j| j.id).collect();
        if open.is_empty() {
            return ended(&mut watch, &rows, only);
        }
        watch.tell_lonely(home, &rows)?;
        if let Some(job) = shown(&rows, only) {
            let left = watch.left(job);
            watch.show(&View::of(store, home, &rows, job, left)?, false)?;
        }
        thread::sleep(POLL);
    }
}

/// The job that a line is about: the one asked for, else the running one, else the next.
fn shown(rows: &[JobRow], only: Option<i64>) -> Option<&JobRow> {
    match only {
        Some(id) => rows.iter().find(|job| job.id == id),
        None => {
            rows.iter().find(|job| job.state.is_active()).or_else(|| queue(rows).first().copied())
        }
    }
}

fn ended(watch: &mut Watch, rows: &[JobRow], only: Option<i64>) -> Result<Exit> {
    watch.out.close()?;
    let Some(job) = only.and_then(|id| rows.iter().find(|job| job.id == id)) else {
        return Ok(Exit::Done);
    };
    Ok(match job.state {
        JobState::Succeeded => Exit::Done,
        JobState::Rejected => Exit::Rejected,
        _ => Exit::Failed,
    })
}

/// The jobs that wait, in the order in which they will run.
fn queue(rows: &[JobRow]) -> Vec<&JobRow> {
    let mut waiting: Vec<&JobRow> =
        rows.iter().filter(|job| job.state == JobState::Queued).collect();
    waiting.sort_by_key(|job| (std::cmp::Reverse(job.priority), job.id));
    waiting
}

/// What is shown of a job. Serialises to a line of `jobs watch --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct View {
    id: i64,
    name: String,
    state: &'static str,
    /// Its place among the jobs that wait, from 1.
    position: Option<usize>,
    waiting: usize,
    step: usize,
    total_steps: usize,
    loss: Option<f64>,
    left_ms: Option<u64>,
    error: Option<String>,
    #[serde(skip)]
    spark: String,
}

impl View {
    fn of(
        store: &Store,
        home: &Home,
        rows: &[JobRow],
        job: &JobRow,
        left: Option<Duration>,
    ) -> Result<Self> {
        let waiting = queue(rows);
        let place = waiting.iter().position(|other| other.id == job.id);
        Ok(Self {
            id: job.id,
            name: job.name.to_string(),
            state: Listed::of(home, job).state(),
            position: place.map(|place| place + 1),
            waiting: waiting.len(),
            step: job.step,
            total_steps: job.total_steps,
            loss: job.loss,
            left_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            error: job.error.clone(),
            spark: plot::sparkline(&store.curve(job.id)?, SPARK_COLUMNS),
        })
    }

    fn line(&self) -> String {
        let mut text = format!("job {} ({}) {}", self.id, self.name, self.state);
        if let Some(position) = self.position {
            text.push_str(&format!(" · position {position} of {}", self.waiting));
        }
        if let Some(percent) = (100 * self.step).checked_div(self.total_steps) {
            text.push_str(&format!(" · step {}/{} · {percent}%", self.step, self.total_steps));
        }
        if let Some(loss) = self.loss {
            text.push_str(&format!(" · loss {loss:.3}"));
        }
        if !self.spark.is_empty() {
            text.push_str(&format!(" {}", self.spark));
        }
        if let Some(left) = self.left_ms {
            text.push_str(&format!(" · {} left", duration(left)));
        }
        if let Some(error) = &self.error {
            text.push_str(&format!(" · {error}"));
        }
        printable_line(&text)
    }
}

struct Watch {
    out: Out,
    pace: Option<Pace>,
    /// Whether it was said that nobody runs the queue.
    lonely: bool,
}

/// Where a job's steps are counted from.
struct Pace {
    job: i64,
    attempt: usize,
    since: DateTime<Utc>,
    step: usize,
}

impl Watch {
    /// How long a job will still train, by the pace that was seen: a first attempt's from its start, a later one's from
    /// the first look at it, because it goes on from a checkpoint.
    fn left(&mut self, job: &JobRow) -> Option<Duration> {
        if job.state != JobState::Running || job.total_steps == 0 {
            return None;
        }
        let known =
            self.pace.as_ref().is_some_and(|p| p.job == job.id && p.attempt == job.attempts);
        if !known {
            let start = job.started_at.filter(|_| job.attempts == 1).map(|since| (since, 0));
            let (since, step) = start.unwrap_or((Utc::now(), job.step));
            self.pace = Some(Pace { job: job.id, attempt: job.attempts, since, step });
        }
        let pace = self.pace.as_ref()?;
        let done = job.step.checked_sub(pace.step).filter(|&done| done > 0)?;
        let took = (Utc::now() - pace.since).to_std().ok()?;
        let to_do = job.total_steps.saturating_sub(job.step);
        Some(took.mul_f64(to_do as f64 / done as f64))
    }

    /// Says once that nobody runs the queue.
    fn tell_lonely(&mut self, home: &Home, rows: &[JobRow]) -> Result<()> {
        let lonely = !home.queue_is_held();
        if lonely && !std::mem::replace(&mut self.lonely, lonely) {
            let text = match rows.iter().find(|job| job.state.is_active()) {
                Some(job) => waits_for_a_holder(job),
                None => "nobody runs the queue: start a console, or `shammah jobs run`".to_owned(),
            };
            self.out.close()?;
            output::complain(&text);
        }
        self.lonely = lonely;
        Ok(())
    }

    fn show(&mut self, view: &View, end: bool) -> Result<()> {
        self.out.show(view, end)
    }
}

/// Where views go: one line that is overwritten on a terminal, else a line for each change.
struct Out {
    as_json: bool,
    terminal: bool,
    /// Whether the line can still be overwritten.
    open: bool,
    last: Option<(View, Instant)>,
}

impl Out {
    fn new(as_json: bool) -> Self {
        Self { as_json, terminal: io::stdout().is_terminal(), open: false, last: None }
    }

    fn show(&mut self, view: &View, end: bool) -> Result<()> {
        if self.terminal && !self.as_json {
            return self.overwrite(view, end);
        }
        let news = self.last.as_ref().is_none_or(|(last, at)| {
            let turn = (last.id, last.state, last.position) != (view.id, view.state, view.position);
            turn || (last.step != view.step && at.elapsed() >= LINE_PAUSE)
        });
        if news {
            match self.as_json {
                true => output::json(view)?,
                false => output::line(&view.line())?,
            }
            self.last = Some((view.clone(), Instant::now()));
        }
        Ok(())
    }

    fn overwrite(&mut self, view: &View, end: bool) -> Result<()> {
        let width = output::columns().unwrap_or(output::USUAL_COLUMNS);
        // An end is said in full; a line that wraps could not be overwritten.
        let line = match end {
            true => view.line(),
            false => crate::text::shortened(&view.line(), width.saturating_sub(1)),
        };
        let mut out = io::stdout().lock();
        write!(out, "{CLEAR_LINE}{line}")?;
        self.open = !end;
        if end {
            writeln!(out)?;
        }
        Ok(out.flush()?)
    }

    /// Leaves the line as it is; the next one goes below.
    fn close(&mut self) -> Result<()> {
        if std::mem::take(&mut self.open) {
            writeln!(io::stdout().lock())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_position_progress_loss_and_time_left() {
        let mut view = View {
            id: 3,
            name: "gentle".to_owned(),
            state: "running",
            position: None,
            waiting: 1,
            step: 41,
            total_steps: 100,
            loss: Some(1.234),
            left_ms: Some(12_000),
            error: None,
            spark: "█▅▁".to_owned(),
        };
        assert_eq!(
            view.line(),
            "job 3 (gentle) running · step 41/100 · 41% · loss 1.234 █▅▁ · 12 s left"
        );
        view = View { state: "queued", position: Some(2), waiting: 3, total_steps: 0, ..view };
        (view.loss, view.left_ms, view.spark) = (None, None, String::new());
        assert_eq!(view.line(), "job 3 (gentle) queued · position 2 of 3");
    }
}
