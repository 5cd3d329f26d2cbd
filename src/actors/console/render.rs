//! What the console says, as text: pure functions from events to lines.
//!
//! Every figure comes from the event; nothing is rounded up, guessed or announced before it happened. Text of others
//! (notes, errors, names) goes through [`printable_line`].

use crate::domain::{AdapterId, DEFAULT_DOMAIN, Mark, Route};
use crate::engine::FinishReason;
use crate::messages::console::{JobNotice, LiveChanged, Progress};
use crate::messages::feedback::{Buffer, Marked};
use crate::messages::inference::{Answer, ModelLine};
use crate::messages::training::JobLine;
use crate::store::{self, Forgotten, MarkState, SecretFound};
pub use crate::text::duration;
use crate::text::{need, printable_line, shortened};

/// Characters of a note or error that an acknowledgement repeats: enough to recognise it.
const NOTE_SHOWN: usize = 200;

/// What the console says before the first prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Banner {
    /// The model's name.
    pub model: String,
    /// Its parameters.
    pub parameters: usize,
    /// Where it computes, in words (`cpu`, `cuda:0`, `cpu, as no CUDA device was found`).
    pub device: String,
    /// The adapters that are live; empty for the base.
    pub adapters: Vec<AdapterId>,
    /// What the user should know from the start: repairs, a queue held elsewhere.
    pub notes: Vec<String>,
}

impl Banner {
    /// Returns the lines.
    pub fn text(&self) -> String {
        let model = printable_line(&self.model);
        let parameters = count(self.parameters);
        let mut text = format!(
            "shammah {} · {model} ({parameters} parameters) on {}\n",
            env!("CARGO_PKG_VERSION"),
            printable_line(&self.device)
        );
        text.push_str(&live(&self.adapters));
        text.push_str(". /help lists the commands.");
        if !self.notes.is_empty() {
            text.push('\n');
            text.push_str(&self.notes_text());
        }
        text
    }

    /// Returns only what must be known.
    pub fn notes_text(&self) -> String {
        self.notes.iter().map(|note| printable_line(note)).collect::<Vec<_>>().join("\n")
    }
}

fn live(adapters: &[AdapterId]) -> String {
    match adapters {
        [] => "No adapter: the model answers as it came".to_owned(),
        [one] => format!("Adapter {one} is live"),
        many => format!(
            "Adapters {} are live",
            many.iter().map(AdapterId::as_str).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Names the adapters of an answer.
pub fn with_adapters(adapters: &[(AdapterId, f64)]) -> String {
    match adapters {
        // Unloaded meanwhile.
        [] => "without an adapter".to_owned(),
        some => {
            let names: Vec<&str> = some.iter().map(|(id, _)| id.as_str()).collect();
            format!("with {}", names.join(", "))
        }
    }
}

/// Says which model is in use, one property a line.
pub fn model(line: &ModelLine) -> String {
    let rows = [
        ("model", printable_line(&line.name)),
        ("from", printable_line(&line.source)),
        ("family", printable_line(&line.family)),
        ("parameters", count(line.parameters)),
        ("format", printable_line(&line.format)),
        ("context", format!("{} tokens", line.context_length)),
        ("device", printable_line(&line.device)),
        (
            "adapter",
            match line.adapters.as_slice() {
                [] => "none is live".to_owned(),
                ids => ids.iter().map(AdapterId::as_str).collect::<Vec<_>>().join(", "),
            },
        ),
    ];
    let line = |(name, value): &(&str, String)| format!("{name:<10}  {value}");
    rows.iter().filter(|(_, value)| !value.is_empty()).map(line).collect::<Vec<_>>().join("\n")
}

/// Says that another model answers now.
pub fn switched(line: &ModelLine) -> String {
    let mut text = format!(
        "{} ({} parameters, {}) answers from now on, and the conversation goes on. New marks and jobs belong to it.\n{}.",
        printable_line(&line.name),
        count(line.parameters),
        printable_line(&line.format),
        live(&line.adapters)
    );
    for note in &line.notes {
        text.push_str(&format!("\n{}", printable_line(note)));
    }
    text
}

/// Says that the oldest turns are left out; once a conversation, as it goes on like that.
pub fn slid(turns: usize) -> String {
    let turns = if turns == 1 { "oldest turn".to_owned() } else { format!("{turns} oldest turns") };
    format!(
        "[the context is full: the model no longer sees the {turns}, and later ones go as it fills; /clear starts anew]"
    )
}

/// Returns a count in the unit that leaves three or four digits (`3.4 M`, `494 M`).
fn count(n: usize) -> String {
    let n = n as f64;
    match n {
        n if n < 1e3 => format!("{n}"),
        n if n < 1e6 => format!("{:.0} k", n / 1e3),
        n if n < 1e7 => format!("{:.1} M", n / 1e6),
        n if n < 1e9 => format!("{:.0} M", n / 1e6),
        n => format!("{:.1} B", n / 1e9),
    }
}

/// Repeats a text of others on one line, cut to a length that does not fill the screen.
pub fn quoted(text: &str) -> String {
    shortened(&printable_line(text), NOTE_SHOWN)
}

/// Acknowledges a stored mark.
pub fn marked(marked: &Marked) -> String {
    let mut text = format!("Marked {} (weight {}, #{})", marked.mark, marked.weight, marked.id);
    match &marked.note {
        Some(note) => text.push_str(&format!(": {}", quoted(note))),
        None if !marked.has_target => text.push_str(", without a note"),
        None => {}
    }
    if !marked.has_target {
        text.push_str("\nWaiting for a correction: /fix TEXT gives it.");
    } else if marked.heldout {
        text.push_str("\nHeld out: it measures the next training and is not trained on.");
    }
    text.push_str(&redacted(&marked.redacted));
    text.push('\n');
    text.push_str(&buffer(&marked.buffer));
    text
}

/// Says what was replaced before a mark was stored.
fn redacted(found: &[SecretFound]) -> String {
    match found {
        [] => String::new(),
        found => format!("\nReplaced before it was stored: {}.", store::listed(found)),
    }
}

/// Says what is left of a mark that was dropped for good.
pub fn forgotten(id: i64, done: &Forgotten, retrain: bool) -> String {
    let mut text = format!("Mark {id} is forgotten: its text is gone from the database.");
    if done.still_in_log {
        text.push_str(
            "\nAnother process reads the database: its log still has the text until that ends.",
        );
    }
    for adapter in &done.seen_by {
        text.push_str(&match retrain {
            true => format!("\nAdapter {adapter} has seen it: /adapters delete {adapter} when the new one is live."),
            false => format!(
                "\nAdapter {adapter} has seen it: /adapters unload {adapter}, /adapters delete {adapter}, and then \
                 `shammah train --from fresh --domain {}` in a shell.",
                done.domain
            ),
        });
    }
    if retrain && done.seen_by.is_empty() {
        text.push_str("\nNo adapter has seen it: there is nothing to train anew.");
    }
    if let Some(job) = done.in_running_job {
        text.push_str(&format!("\nJob {job} is learning it now: /jobs cancel {job} stops that."));
    }
    for job in &done.cancelled_jobs {
        text.push_str(&format!("\nJob {job} is cancelled: it was its only example."));
    }
    text
}

/// Acknowledges a `/fix`; on a mark that was there it says that its weight stays.
pub fn fixed(marked: &Marked) -> String {
    let mut text = match marked.mark {
        Mark::Fix => format!("Corrected (weight {}, #{})", marked.weight, marked.id),
        mark => format!("Corrected the {mark} mark (weight {}, #{})", marked.weight, marked.id),
    };
    if let Some(note) = &marked.note {
        text.push_str(&format!(": {}", quoted(note)));
    }
    text.push_str(&stored(marked));
    text
}

/// Says what became of a mark that has a better answer now.
pub(super) fn stored(marked: &Marked) -> String {
    let heldout = match marked.heldout {
        true => "\nHeld out: it measures the next training and is not trained on.",
        false => "",
    };
    format!("{heldout}{}\n{}", redacted(&marked.redacted), buffer(&marked.buffer))
}

/// Says that a step was taken back, and what the mark is again.
pub fn undone(id: i64, to: Option<&MarkState>, left: &Buffer) -> String {
    let text = match to {
        None => format!("Mark {id} is taken back."),
        Some(to) => {
            let target = match (&to.fix, to.mark) {
                (Some(_), _) if to.revised => "with its revision",
                (Some(_), _) => "with its fix",
                (None, Mark::Good) => "without a fix",
                (None, _) => "waiting for a correction",
            };
            format!("The last change of mark {id} is taken back: {} again, {target}.", to.mark)
        }
    };
    format!("{text}\n{}", buffer(left))
}

/// Says what `/jobs wait` waits for, if that is known.
pub fn waiting_for(jobs: &[JobLine]) -> Option<String> {
    let active = |job: &&JobLine| matches!(job.state.as_str(), "queued" | "running" | "evaluating");
    let mut names: Vec<String> =
        jobs.iter().filter(active).map(|job| format!("job {} ({})", job.id, job.state)).collect();
    names.reverse();
    (!names.is_empty())
        .then(|| format!("Waiting for {}; Ctrl-C ends the wait, not the jobs.", names.join(", ")))
}

/// Says what is in the buffer.
pub fn buffer(buffer: &Buffer) -> String {
    let noun = if buffer.examples == 1 { "example" } else { "examples" };
    let mut text =
        format!("Training buffer: {} {noun} ({:.1} weighted)", buffer.examples, buffer.weighted);
    match buffer.threshold {
        Some(threshold) if buffer.trainable < threshold => {
            text.push_str(&format!(" · {} of {threshold} for a training", buffer.trainable));
        }
        Some(_) => {}
        None => text.push_str(" · /train starts a training"),
    }
    if buffer.waiting_for_correction > 0 {
        text.push_str(&format!(" · {} waiting for a correction", buffer.waiting_for_correction));
    }
    if buffer.heldout > 0 {
        text.push_str(&format!(" · {} held out", buffer.heldout));
    }
    text
}

/// Says what happened to a job; `None` for what only the prompt shows.
pub fn job_notice(notice: &JobNotice) -> Option<String> {
    let text = match notice {
        JobNotice::Queued { job, domain, examples, automatic } => format!(
            "Job {job} queued: {}, domain {}{}.",
            counted(*examples, "example"),
            printable_line(domain),
            if *automatic { " (the buffer reached its threshold)" } else { "" }
        ),
        JobNotice::Started { job, examples, attempt: 1 } => {
            format!(
                "Job {job} started: training on {} in the background.",
                counted(*examples, "example")
            )
        }
        JobNotice::Started { job, attempt, .. } => {
            format!("Job {job} started again (attempt {attempt}).")
        }
        JobNotice::Expected { job, ms, bytes } => {
            format!("Job {job}: about {}.", need(*ms, *bytes))
        }
        JobNotice::Noted { job, text } => format!("Job {job}: {}", quoted(text)),
        JobNotice::Retrying { job, reason, attempt, max_attempts, pause_ms } => format!(
            "Job {job}: {}. Attempt {attempt} of {max_attempts} follows in {}.",
            quoted(reason).trim_end_matches('.'),
            duration(*pause_ms)
        ),
        JobNotice::Succeeded { job, adapter, path, examples, final_loss, report, live } => {
            let state =
                if *live { "is live" } else { "is stored, and live when its model is loaded next" };
            format!(
                "Job {job} finished: {}, final loss {final_loss:.4}\n{}\nAdapter {adapter} {state}: {}",
                counted(*examples, "example"),
                lines_of(report),
                printable_line(&path.display().to_string())
            )
        }
        JobNotice::Rejected { job, reasons, examples, final_loss, report } => {
            let mut text = format!(
                "Job {job} rejected: {}, final loss {final_loss:.4}. Nothing changed; the examples stay.\n{}",
                counted(*examples, "example"),
                lines_of(report)
            );
            for reason in reasons {
                text.push_str(&format!("\n- {}", printable_line(reason)));
            }
            text
        }
        JobNotice::Failed { job, error, attempts } => format!(
            "Job {job} failed after {}: {}. The examples stay.",
            counted(*attempts as usize, "attempt"),
            quoted(error).trim_end_matches('.')
        ),
        JobNotice::Cancelled { job } => format!("Job {job} cancelled. The examples stay."),
        JobNotice::Parked { job, step } => {
            format!("Job {job} is checkpointed at step {step} and goes on at the next start.")
        }
        JobNotice::Progressed(_)
        | JobNotice::Checkpointed { .. }
        | JobNotice::Evaluating { .. } => {
            return None;
        }
    };
    Some(text)
}

fn lines_of(text: &str) -> String {
    text.trim_end().lines().map(printable_line).collect::<Vec<_>>().join("\n")
}

/// Says what another process made live.
pub fn live_changed(change: &LiveChanged) -> String {
    let names: Vec<_> = change.adapters.iter().map(|id| format!("\"{id}\"")).collect();
    let domain = printable_line(&change.domain);
    let what = match names.is_empty() {
        true => "the base model".to_owned(),
        false => format!("adapter {}", names.join(", ")),
    };
    format!("Domain \"{domain}\" answers with {what} now (changed outside this console).")
}

/// Returns `1 example`, `2 examples`.
pub fn counted(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// Returns a size in the unit that leaves up to three digits before the point.
pub fn size(bytes: u64) -> String {
    let n = bytes as f64;
    match n {
        n if n < 1e3 => format!("{bytes} bytes"),
        n if n < 1e6 => format!("{:.0} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.1} GB", n / 1e9),
    }
}

/// One line about a running job, for transcripts.
pub fn progress(progress: &Progress) -> String {
    format!("Job {}: {}", progress.job, steps(progress, " · "))
}

fn steps(progress: &Progress, between: &str) -> String {
    let Progress { epoch, epochs, step, total_steps, loss, .. } = progress;
    // Of another process's job the epoch is not known.
    let epoch = (*epochs > 0).then(|| format!("epoch {epoch}/{epochs}"));
    let known = [format!("step {step}/{total_steps}"), format!("loss {loss:.2}")];
    epoch.into_iter().chain(known).collect::<Vec<_>>().join(between)
}

/// Names the domain that a question was routed to, with its similarity; what is in no domain is similar to none.
fn route(route: &Route) -> Option<String> {
    let similarity = route.similarity?;
    match route.domain.as_str() {
        DEFAULT_DOMAIN => Some(DEFAULT_DOMAIN.to_owned()),
        domain => Some(format!("{} {similarity:.2}", printable_line(domain))),
    }
}

/// Lists adapters with their weights.
pub fn weighted(adapters: &[(AdapterId, f64)]) -> String {
    let name = |(id, weight): &(AdapterId, f64)| match *weight {
        1.0 => id.to_string(),
        weight => format!("{id}:{weight}"),
    };
    adapters.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// What follows an answer, if anything must be said about it.
pub fn answer_tail(answer: &Answer, max_tokens: usize, usage: bool) -> Option<String> {
    let mut parts: Vec<String> = route(&answer.route).into_iter().collect();
    match answer.finish_reason {
        FinishReason::Stop => {}
        FinishReason::Cancelled => parts.push("stopped".to_owned()),
        FinishReason::Length if answer.new_tokens < max_tokens => {
            parts.push("cut: the context is full, /clear starts anew".to_owned());
        }
        FinishReason::Length => {
            parts.push(format!("cut at {max_tokens} tokens: /set max_tokens N allows more"));
        }
    }
    if usage {
        parts.push(format!(
            "{} after {}",
            counted(answer.new_tokens, "token"),
            counted(answer.prompt_tokens, "token")
        ));
        if answer.decode_ms > 0 {
            let speed = answer.new_tokens as f64 * 1000.0 / answer.decode_ms as f64;
            parts.push(format!("{speed:.1} tokens/s"));
        }
        parts.extend((!answer.adapters.is_empty()).then(|| weighted(&answer.adapters)));
    }
    (!parts.is_empty()).then(|| format!("[{}]", parts.join(" · ")))
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
