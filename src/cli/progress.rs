//! What becomes of jobs, on stderr: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal, Write};

use super::output;
use crate::messages::console::{JobNotice, Progress as Step};
use crate::text::{need, printable_line};

/// Characters of the bar.
const BAR_WIDTH: usize = 24;
/// Clears the line of the bar.
const CLEAR_LINE: &str = "\r\u{1b}[2K";

/// Shows notices on stderr.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    quiet: bool,
    bar_is_open: bool,
}

impl Progress {
    /// Makes one for this process's stderr; a quiet one shows nothing.
    pub fn new(quiet: bool) -> Self {
        Self { terminal: io::stderr().is_terminal(), quiet, bar_is_open: false }
    }

    /// Shows what happened.
    pub fn show(&mut self, notice: &JobNotice) {
        if self.quiet {
            return;
        }
        match notice {
            JobNotice::Progressed(step) if self.terminal => self.bar(&bar(step)),
            JobNotice::Progressed(_) => {}
            other => {
                if let Some(text) = line(other) {
                    self.close_bar();
                    output::complain(&text);
                }
            }
        }
    }

    fn bar(&mut self, text: &str) {
        let mut out = io::stderr().lock();
        // A stderr that cannot be written is no reason to stop the job.
        let _ = write!(out, "{CLEAR_LINE}{}", printable_line(text)).and_then(|()| out.flush());
        self.bar_is_open = true;
    }

    fn close_bar(&mut self) {
        if std::mem::take(&mut self.bar_is_open) {
            let _ = write!(io::stderr().lock(), "{CLEAR_LINE}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.close_bar();
    }
}

fn bar(step: &Step) -> String {
    let total = step.total_steps.max(1);
    let done = step.step.min(total);
    let filled = BAR_WIDTH * done / total;
    let bar: String = (0..BAR_WIDTH).map(|i| if i < filled { '█' } else { '░' }).collect();
    let left = step.eta_ms.map(|ms| format!(" · {} left", clock(ms))).unwrap_or_default();
    let loss =
        if step.loss.is_finite() { format!(" · loss {:.3}", step.loss) } else { String::new() };
    format!(
        "job {} {bar} {}% · step {}/{}{loss}{left}",
        step.job,
        100 * done / total,
        step.step,
        step.total_steps
    )
}

fn clock(ms: u64) -> String {
    /// Milliseconds in a second, seconds in a minute.
    const UNITS: (u64, u64) = (1000, 60);
    let seconds = ms.div_ceil(UNITS.0);
    format!("{}:{:02}", seconds / UNITS.1, seconds % UNITS.1)
}

/// Says a notice in one line; steps and checkpoints are the bar's.
fn line(notice: &JobNotice) -> Option<String> {
    Some(match notice {
        JobNotice::Queued { .. } | JobNotice::Progressed(_) | JobNotice::Checkpointed { .. } => {
            return None;
        }
        JobNotice::Started { job, examples, attempt } => {
            let again = if *attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
            format!("job {job} started: {examples} examples{again}")
        }
        JobNotice::Expected { job, ms, bytes } => format!("job {job}: about {}", need(*ms, *bytes)),
        JobNotice::Evaluating { job } => format!("job {job} is being measured"),
        JobNotice::Noted { job, text } => format!("job {job}: {text}"),
        JobNotice::Retrying { job, reason, attempt, max_attempts, .. } => {
            format!("job {job}: {reason}; trying again ({attempt} of {max_attempts})")
        }
        JobNotice::Succeeded { job, adapter, path, examples, final_loss, report, .. } => format!(
            "job {job} succeeded: adapter {adapter} is live ({examples} examples, final loss {final_loss:.3}; {report}), {}",
            path.display()
        ),
        JobNotice::Rejected { job, reasons, report, .. } => {
            format!("job {job} was rejected by the gate: {} ({report})", reasons.join("; "))
        }
        JobNotice::Failed { job, error, attempts } => {
            format!("job {job} failed after {attempts} attempts: {error}")
        }
        JobNotice::Cancelled { job } => format!("job {job} was cancelled"),
        JobNotice::Parked { job, step } => {
            format!("job {job} is parked at step {step}: it goes on at the next start")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_tells_share_step_loss_and_time_left() {
        let mut step = Step {
            job: 3,
            epoch: 1,
            epochs: 3,
            step: 15,
            total_steps: 30,
            loss: 1.2345,
            elapsed_ms: 100,
            eta_ms: Some(61_500),
        };
        assert_eq!(
            bar(&step),
            "job 3 ████████████░░░░░░░░░░░░ 50% · step 15/30 · loss 1.234 · 1:02 left"
        );
        (step.total_steps, step.loss, step.eta_ms) = (0, f64::NAN, None);
        assert!(bar(&step).ends_with("100% · step 15/0"), "{}", bar(&step));
    }
}
