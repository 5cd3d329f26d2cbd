//! Jobs, adapters and help as lists for a narrow terminal.

use super::commands::{COMMANDS, Help};
use super::render::counted;
use crate::messages::feedback::{DomainLine, Waiting, WaitingMark};
use crate::messages::registry::AdapterLine;
use crate::messages::training::JobLine;
use crate::store::FeedbackRow;
use crate::text::{printable_line, shortened};

/// Jobs that `/jobs` shows: what fits above the prompt; `shammah jobs list` has all.
pub const JOBS_SHOWN: usize = 10;

/// Marks that `/pending` shows; `shammah feedback list --pending` has all.
pub const PENDING_SHOWN: usize = 10;
/// Characters of a question or note that `/pending` shows.
const PENDING_TEXT: usize = 60;

/// Lists the marks that wait for a better answer, two or three lines each; `offered` tells which have a revision.
pub fn pending(waiting: &Waiting, offered: impl Fn(i64) -> bool) -> String {
    if waiting.marks.is_empty() {
        return "No mark waits for a better answer.".to_owned();
    }
    let short = |text: &str| shortened(&printable_line(text), PENDING_TEXT);
    let one = |mark: &WaitingMark| {
        let mut text = format!("#{} {} · {}", mark.id, mark.mark, short(&mark.question));
        if let Some(note) = &mark.note {
            text.push_str(&format!("\n   note: {}", short(note)));
        }
        if offered(mark.id) {
            text.push_str(&format!("\n   a revision is there: /accept {}", mark.id));
        }
        text
    };
    let mut lines: Vec<String> = waiting.marks.iter().map(one).collect();
    if waiting.total > waiting.marks.len() {
        lines.push(format!("{} in all: `shammah feedback list --pending`", waiting.total));
    }
    lines.push("/fix #ID TEXT gives the better answer, /forget ID drops the mark.".to_owned());
    lines.join("\n")
}

/// Lists jobs, newest first, one or two lines each.
pub fn jobs(jobs: &[JobLine]) -> String {
    if jobs.is_empty() {
        return "No jobs yet: marks start one at the threshold, /train starts one now.".to_owned();
    }
    jobs.iter().map(job).collect::<Vec<_>>().join("\n")
}

fn job(job: &JobLine) -> String {
    let mut text = format!(
        "#{} {} · {} · {}",
        job.id,
        job.state,
        job.domain,
        counted(job.examples, "example")
    );
    if job.total_steps > 0 {
        text.push_str(&format!(" · step {}/{}", job.step, job.total_steps));
    }
    if let Some(loss) = job.loss {
        text.push_str(&format!(" · loss {loss:.4}"));
    }
    if let (Some(before), Some(after)) = (job.heldout_before, job.heldout_after) {
        text.push_str(&format!(" · held-out {before:.2} → {after:.2}"));
    }
    if let Some(adapter) = &job.adapter {
        text.push_str(&format!(" · {adapter}"));
    }
    if let Some(error) = &job.error {
        text.push_str(&format!("\n   {}", printable_line(error)));
    }
    text
}

/// Lists adapters, the live ones with a star.
pub fn adapters(adapters: &[AdapterLine]) -> String {
    if adapters.is_empty() {
        return "No adapters yet: the model answers as it came.".to_owned();
    }
    let mut lines: Vec<String> = adapters.iter().map(adapter).collect();
    if !adapters.iter().any(|adapter| adapter.live) {
        lines.push("None is live: the model answers as it came.".to_owned());
    }
    lines.join("\n")
}

fn adapter(adapter: &AdapterLine) -> String {
    let star = if adapter.live { '*' } else { ' ' };
    let mut text = format!("{star} {} · {}", adapter.id, adapter.domain);
    if adapter.state != "ready" {
        text.push_str(&format!(" · {}", adapter.state));
    }
    if !adapter.fits {
        text.push_str(" · of another model");
    }
    text.push_str(&format!(
        " · rank {} · {} · {}",
        adapter.rank,
        counted(adapter.examples, "example"),
        counted(adapter.used_in, "answer")
    ));
    if let Some(parent) = &adapter.parent {
        text.push_str(&format!(" · from {parent}"));
    }
    text
}

/// Lists domains, the pinned one with a star.
pub fn domains(domains: &[DomainLine], pinned: Option<&str>) -> String {
    let mut lines = vec![match pinned {
        Some(name) => format!("Domain {name} is pinned (/domain auto routes again)."),
        None => {
            "Questions go to the domain whose marks they are closest to (/domain NAME pins one)."
                .to_owned()
        }
    }];
    lines.extend(domains.iter().map(|domain| {
        let star = if pinned == Some(domain.name.as_str()) { '*' } else { ' ' };
        let adapter = domain.adapter.as_ref().map_or("the base", |id| id.as_str());
        format!("{star} {} · {} · {adapter}", domain.name, counted(domain.marks, "mark"))
    }));
    lines.join("\n")
}

/// Lists marks, two lines each.
pub fn marks(rows: &[FeedbackRow]) -> String {
    /// Characters of a question or note: two lines are for recognising it.
    const SHOWN: usize = 70;
    if rows.is_empty() {
        return "No marks yet: /good, /medium, /critical and /fix mark the last answer.".to_owned();
    }
    let line = |row: &FeedbackRow| {
        let mut text = format!(
            "#{} {} · weight {} · {} · {}\n   {}",
            row.id,
            row.mark,
            row.weight,
            row.domain,
            row.fate(),
            shortened(&printable_line(row.question()), SHOWN)
        );
        if let Some(note) = &row.note {
            text.push_str(&format!("\n   note: {}", shortened(&printable_line(note), SHOWN)));
        }
        text
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Lists the commands.
pub fn help() -> String {
    /// Usages up to this many columns have their summary beside them.
    const BESIDE: usize = 24;
    let mut lines: Vec<String> = COMMANDS
        .iter()
        .map(|Help { usage, summary, .. }| {
            if usage.len() <= BESIDE {
                format!("{usage:<BESIDE$} {summary}")
            } else {
                format!("{usage}\n{:BESIDE$} {summary}", "")
            }
        })
        .collect();
    lines.push(
        "Everything else is said to the model; //… sends a text that begins with a slash."
            .to_owned(),
    );
    lines.push("Ctrl-C stops an answer, Ctrl-D leaves.".to_owned());
    lines.join("\n")
}

/// Explains one command.
pub fn help_of(help: &Help) -> String {
    format!("{}: {}.\n{}", help.usage, help.summary, help.detail)
}

#[cfg(test)]
#[path = "lists_tests.rs"]
mod tests;
