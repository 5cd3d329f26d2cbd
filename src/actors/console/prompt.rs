//! The prompt, with the running job in it.

use unicode_width::UnicodeWidthStr;

use super::render::duration;
use crate::messages::console::{JobNotice, Progress};

/// What the prompt ends with; the whole of it when no job runs.
pub const PROMPT: &str = "> ";
/// Columns that the prompt leaves for typing before it becomes shorter.
const ROOM_TO_TYPE: usize = 12;

/// What the running job does.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum JobStatus {
    /// No job runs.
    #[default]
    Idle,
    /// A worker starts.
    Starting(i64),
    /// It trains.
    Training(Progress),
    /// The gate's measurements are being made.
    Evaluating(i64),
    /// Its worker died and another attempt follows.
    Retrying(i64),
}

impl JobStatus {
    /// Takes a notice in, and tells whether anything changed.
    pub fn update(&mut self, notice: &JobNotice) -> bool {
        let next = match notice {
            JobNotice::Started { job, .. } => JobStatus::Starting(*job),
            JobNotice::Progressed(progress) => JobStatus::Training(progress.clone()),
            JobNotice::Evaluating { job } => JobStatus::Evaluating(*job),
            JobNotice::Retrying { job, .. } => JobStatus::Retrying(*job),
            end if end.is_end() && self.job() == Some(end.job()) => JobStatus::Idle,
            _ => return false,
        };
        let changed = next != *self;
        *self = next;
        changed
    }

    fn job(&self) -> Option<i64> {
        match self {
            JobStatus::Idle => None,
            JobStatus::Starting(job) | JobStatus::Evaluating(job) | JobStatus::Retrying(job) => {
                Some(*job)
            }
            JobStatus::Training(progress) => Some(progress.job),
        }
    }

    /// Returns the prompt for a terminal of this many columns: the longest form that leaves room to type.
    pub fn prompt(&self, columns: usize) -> String {
        let forms = match self {
            JobStatus::Idle => Vec::new(),
            JobStatus::Starting(job) => stage(*job, "starting"),
            JobStatus::Evaluating(job) => stage(*job, "measuring"),
            JobStatus::Retrying(job) => stage(*job, "retrying"),
            JobStatus::Training(progress) => training(progress),
        };
        forms
            .into_iter()
            .map(|form| format!("[{form}] {PROMPT}"))
            .find(|form| form.width() + ROOM_TO_TYPE <= columns)
            .unwrap_or_else(|| PROMPT.to_owned())
    }
}

fn stage(job: i64, doing: &str) -> Vec<String> {
    vec![format!("job {job} · {doing}"), format!("job {job}")]
}

/// From the longest to the shortest.
fn training(progress: &Progress) -> Vec<String> {
    let Progress { job, epoch, epochs, step, total_steps, loss, eta_ms, .. } = progress;
    let percent = (step * 100).checked_div(*total_steps).unwrap_or(0);
    let mut forms = Vec::new();
    // Of another process's job the epoch is not known.
    let at = if *epochs > 0 { format!(" · epoch {epoch}/{epochs}") } else { String::new() };
    let whole = format!("job {job}{at} · step {step}/{total_steps} · loss {loss:.2}");
    if let Some(eta) = eta_ms {
        let left = duration(*eta);
        forms.push(format!("{whole} · {left} left"));
        forms.push(format!(
            "job {job} · {epoch}/{epochs} · {step}/{total_steps} · {loss:.2} · {left}"
        ));
        forms.push(format!("job {job} · {percent}% · {loss:.2} · {left}"));
    } else {
        forms.push(whole);
    }
    forms.push(format!("job {job} · {percent}% · loss {loss:.2}"));
    forms.push(format!("job {job} · {percent}%"));
    forms.push(format!("{percent}%"));
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress {
            job: 3,
            epoch: 2,
            epochs: 3,
            step: 41,
            total_steps: 100,
            loss: 1.234,
            elapsed_ms: 8_000,
            eta_ms: Some(12_100),
        }
    }

    #[test]
    fn the_prompt_is_as_long_as_the_terminal_allows() {
        let status = JobStatus::Training(progress());
        for (columns, prompt) in [
            (80, "[job 3 · epoch 2/3 · step 41/100 · loss 1.23 · 12 s left] > "),
            (60, "[job 3 · 2/3 · 41/100 · 1.23 · 12 s] > "),
            (50, "[job 3 · 41% · 1.23 · 12 s] > "),
            (40, "[job 3 · 41% · loss 1.23] > "),
            (30, "[job 3 · 41%] > "),
            (24, "[41%] > "),
            (10, "> "),
        ] {
            assert_eq!(status.prompt(columns), prompt, "{columns} columns");
        }
    }

    #[test]
    fn every_form_leaves_room_to_type() {
        let stages = [
            JobStatus::Training(progress()),
            JobStatus::Training(Progress { eta_ms: None, total_steps: 0, ..progress() }),
            JobStatus::Starting(12),
            JobStatus::Evaluating(12),
            JobStatus::Retrying(12),
        ];
        for columns in 1..200 {
            for status in &stages {
                let width = status.prompt(columns).width();
                assert!(width == PROMPT.len() || width + ROOM_TO_TYPE <= columns);
            }
        }
    }

    #[test]
    fn the_status_follows_the_job_and_ends_with_it() {
        let mut status = JobStatus::default();
        assert!(status.update(&JobNotice::Started { job: 3, examples: 8, attempt: 1 }));
        assert!(status.update(&JobNotice::Progressed(progress())));
        assert!(!status.update(&JobNotice::Progressed(progress())), "nothing new");
        assert!(!status.update(&JobNotice::Cancelled { job: 9 }), "another job's end");
        assert!(status.update(&JobNotice::Evaluating { job: 3 }));
        assert!(status.update(&JobNotice::Cancelled { job: 3 }));
        assert_eq!(status.prompt(80), PROMPT);
    }
}
