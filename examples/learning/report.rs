//! The tables of `docs/LEARNING.md`.

use std::fmt::Write;

use crate::cells::{Cell, Results};

/// All tables, as Markdown.
pub fn all(results: &Results) -> String {
    let mut text = String::new();
    for (id, title) in [
        ("facts", "(a) Ten facts, two phrasings marked, five others asked"),
        ("one_sentence", "(b) \"Answer in one sentence.\""),
        ("name_command", "(b) \"Name the command first.\""),
        ("rounds", "(c) Five rounds, two facts each"),
    ] {
        table(&mut text, results, id, title);
    }
    poison(&mut text, results);
    text
}

fn table(text: &mut String, results: &Results, id: &str, title: &str) {
    let cells: Vec<&Cell> = results.cells.iter().filter(|cell| cell.experiment == id).collect();
    let Some(first) = cells.first() else { return };
    let mut settings: Vec<&str> = Vec::new();
    cells.iter().for_each(|c| {
        if !settings.contains(&c.setting.as_str()) {
            settings.push(&c.setting);
        }
    });
    let _ =
        writeln!(text, "### {title}\n\nBefore: {} of {} right.\n", first.right_before, first.asked);
    let last = if id == "rounds" { "round 1 kept" } else { "content right" };
    let _ = writeln!(
        text,
        "| setting | right | {last} | strangers | regression loss | KL | of 100 others | gate passed | minutes |\n|---|---|---|---|---|---|---|---|---|"
    );
    for setting in settings {
        let of: Vec<&Cell> = cells.iter().copied().filter(|c| c.setting == setting).collect();
        row(text, setting, &of);
    }
    text.push('\n');
}

fn row(text: &mut String, setting: &str, cells: &[&Cell]) {
    let list = |value: &dyn Fn(&Cell) -> String| {
        cells.iter().map(|c| value(c)).collect::<Vec<_>>().join(", ")
    };
    let share = |n: usize, of: usize| format!("{:.0} %", 100.0 * n as f64 / of.max(1) as f64);
    let extra = |c: &Cell| match (c.content, c.rounds.first(), c.rounds.last()) {
        (Some(content), ..) => share(content, c.asked),
        (_, Some(first), Some(last)) => format!("{} → {} of 10", first[0], last[0]),
        _ => "–".to_owned(),
    };
    let trained =
        |c: &Cell, value: String| if c.gate.is_empty() { "–".to_owned() } else { value };
    let _ = writeln!(
        text,
        "| {setting} | {} | {} | {} | {} | {} | {} | {} | {} |",
        list(&|c| share(c.right, c.asked)),
        list(&extra),
        list(&|c| c.strangers.as_ref().map_or("–".to_owned(), |s| s.len().to_string())),
        list(&|c| trained(c, format!("{:+.1} %", c.forgetting()))),
        list(&|c| trained(c, format!("{:.4}", c.kl))),
        list(&|c| trained(c, format!("{} → {}", c.score_before, c.score))),
        list(&|c| trained(c, format!("{}/{}", c.passed(), c.gate.len()))),
        list(&|c| trained(c, format!("{:.1}", c.minutes))),
    );
}

fn poison(text: &mut String, results: &Results) {
    let cells: Vec<&Cell> =
        results.cells.iter().filter(|c| c.experiment.starts_with("poison ")).collect();
    if cells.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "### (d) Poisoned batches\n\n| batch | setting | seed | gate | KL | regression loss | of 100 others |\n|---|---|---|---|---|---|---|"
    );
    for c in cells {
        let gate = match c.gate.first() {
            _ if c.refused.is_some() => {
                format!("refused: {}", c.refused.as_deref().unwrap_or_default())
            }
            Some(reasons) if reasons.is_empty() => "passed".to_owned(),
            Some(reasons) => format!("rejected: {}", reasons.join("; ")),
            None => "–".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {gate} | {:.4} | {:+.1} % | {} → {} |",
            c.experiment.trim_start_matches("poison "),
            c.setting,
            c.seed,
            c.kl,
            c.forgetting(),
            c.score_before,
            c.score
        );
    }
    text.push('\n');
}
