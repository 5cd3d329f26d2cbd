//! How a job ended, as its row tells it.

use crate::eval::GateReport;
use crate::messages::console::JobNotice;
use crate::store::{Home, JobRow, JobState};

/// Returns what to say of a job that has ended; `None` of one that has not.
pub fn notice(home: &Home, row: &JobRow) -> Option<JobNotice> {
    let (job, error) = (row.id, row.error.clone().unwrap_or_default());
    let (examples, final_loss) = (row.examples, row.loss.unwrap_or(f64::NAN));
    Some(match row.state {
        JobState::Succeeded => {
            let adapter = row.name.clone();
            let path = home.adapter(&adapter);
            let report = report_of(row);
            // Whoever answers here swaps it in by its row.
            let live = false;
            JobNotice::Succeeded { job, adapter, path, examples, final_loss, report, live }
        }
        JobState::Rejected => {
            let (reasons, report) = (vec![error], report_of(row));
            JobNotice::Rejected { job, reasons, examples, final_loss, report }
        }
        JobState::Cancelled => JobNotice::Cancelled { job },
        JobState::Failed => {
            let attempts = u32::try_from(row.attempts).unwrap_or(u32::MAX);
            JobNotice::Failed { job, error, attempts }
        }
        JobState::Queued | JobState::Running | JobState::Evaluating => return None,
    })
}

fn report_of(row: &JobRow) -> String {
    match row.gate.clone().map(serde_json::from_value::<GateReport>) {
        Some(Ok(report)) => report.to_string(),
        Some(Err(error)) => {
            tracing::warn!(job = row.id, %error, "the stored report of this job is not readable");
            String::new()
        }
        None => String::new(),
    }
}
