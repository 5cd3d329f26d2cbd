//! What the gate measured, as rows for people.

use serde_json::Value;

use crate::eval::{Comparison, GateReport};

/// Reads a stored report; `None` for one of another version.
pub fn report(gate: &Value) -> Option<GateReport> {
    serde_json::from_value(gate.clone()).ok()
}

/// Returns a report as named rows.
pub fn rows(report: &GateReport) -> Vec<(&'static str, String)> {
    let verdict = if report.promoted { "passed" } else { "rejected" };
    let mut rows = vec![("gate", verdict.to_owned()), ("  new items", changed(&report.trained))];
    let heldout = report.heldout.as_ref().map_or_else(|| "none yet".to_owned(), changed);
    rows.push(("  held out", heldout));
    if let Some(general) = &report.general {
        rows.push(("  general", format!("loss {:.3} → {:.3}", general.before, general.after)));
    }
    rows.push(("  KL to base", format!("{:.4} (at most {})", report.kl, report.max_kl)));
    if let Some((taken, asked)) = report.taken_over {
        let most = report.may_be_taken_over.map(|most| format!(" (at most {most})"));
        let most = most.unwrap_or_default();
        let text = format!("{taken} of {asked} questions about something else{most}");
        rows.push(("  taken over", text));
    }
    if let Some(prompted) = &report.prompted {
        rows.extend(prompt_rows("  in the prompt", prompted));
    }
    rows.extend(report.reasons.iter().map(|reason| ("  because", reason.clone())));
    rows
}

/// Returns a comparison with its interval.
pub fn changed(items: &Comparison) -> String {
    let (low, high) = items.interval;
    format!("{}, by {low:+.2} to {high:+.2}", items.describe("loss"))
}

/// Says what telling it in the prompt gives instead.
pub fn prompt_rows(name: &'static str, items: &Comparison) -> Vec<(&'static str, String)> {
    let Comparison { better, worse, before, after, .. } = items;
    vec![
        (name, format!("loss {before:.2}, trained {after:.2} ({better} better, {worse} worse)")),
        ("", items.against_prompt().to_owned()),
    ]
}
