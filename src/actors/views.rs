//! Rows of the store as the messages carry them.

use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, Utc};

use crate::engine::FinishReason;
use crate::messages::feedback::{Buffer, Marked, WaitingMark};
use crate::messages::registry::AdapterLine;
use crate::messages::training::JobLine;
use crate::store::{AdapterRow, BufferStatus, FeedbackRow, JobRow, MarkState};

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

pub(super) fn job_line(row: JobRow) -> JobLine {
    JobLine {
        id: row.id,
        name: row.name.to_string(),
        domain: row.domain,
        state: row.state.to_string(),
        attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
        examples: row.examples,
        step: row.step,
        total_steps: row.total_steps,
        loss: row.loss,
        heldout_before: row.heldout_before,
        heldout_after: row.heldout_after,
        adapter: row.adapter,
        error: row.error,
        created_at: rfc3339(row.created_at),
        finished_at: row.finished_at.map(rfc3339),
    }
}

pub(super) fn adapter_line(row: AdapterRow, path: PathBuf, loaded_base: &str) -> AdapterLine {
    AdapterLine {
        fits: row.base_hash == loaded_base,
        id: row.id,
        domain: row.domain,
        parent: row.parent,
        state: row.state.to_string(),
        live: row.live,
        base: row.base,
        rank: row.rank,
        examples: row.examples,
        used_in: row.used_in,
        path,
        created_at: rfc3339(row.created_at),
        bytes: row.bytes,
    }
}

pub(super) fn buffer(domain: String, status: BufferStatus, threshold: Option<usize>) -> Buffer {
    Buffer {
        domain,
        examples: status.examples,
        weighted: status.weighted,
        trainable: status.trainable_unconsumed,
        waiting_for_correction: status.waiting_for_correction,
        heldout: status.heldout,
        threshold,
    }
}

pub(super) fn marked(row: FeedbackRow, before: Option<MarkState>, buffer: Buffer) -> Marked {
    Marked {
        id: row.id,
        mark: row.mark,
        weight: row.weight,
        has_target: row.target().is_some(),
        redacted: row.redactions(),
        note: row.note,
        heldout: row.heldout,
        before,
        buffer,
    }
}

pub(super) fn waiting(row: FeedbackRow) -> WaitingMark {
    WaitingMark { id: row.id, mark: row.mark, question: row.question().to_owned(), note: row.note }
}

/// Names the end of an answer as it is stored.
pub(super) fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}
