//! Statistics as text of at most 80 columns, with small bars. The command line prints the same.

use std::collections::BTreeMap;

use super::render::counted;
use crate::store::{GiverStats, Statistics, Tally, TrainingStats, WeekStats};
use crate::text::{bar, duration, printable_line, shortened};

/// Columns of an adapter's name: ids as they are made have 24.
const NAME: usize = 24;
/// Columns of a bar.
const BAR: usize = 10;
/// Weeks and trainings that are shown, the newest.
const SHOWN: usize = 12;
/// Percent in one.
const PERCENT: f64 = 100.0;

/// Lays out all of it.
pub fn text(statistics: &Statistics) -> String {
    if statistics.adapters.is_empty() && statistics.trainings.is_empty() {
        return "Nothing was asked, marked or trained yet.".to_owned();
    }
    let mut parts = vec![answers(&statistics.adapters), marks(&statistics.adapters)];
    if !statistics.weeks.is_empty() {
        parts.push(weeks(&statistics.weeks));
    }
    if !statistics.trainings.is_empty() {
        parts.push(trainings(&statistics.trainings));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

fn name(text: &str) -> String {
    format!("{:<NAME$}", shortened(&printable_line(text), NAME))
}

fn answers(adapters: &[GiverStats]) -> String {
    let most = adapters.iter().map(|one| one.tally.answers).max().unwrap_or(0);
    let rows = adapters.iter().filter(|one| one.tally.answers > 0);
    let lines: Vec<String> = rows
        .map(|one| {
            format!(
                "{} {:>7} {} {:>8} {:>9} {:>9}",
                name(&one.adapter),
                one.tally.answers,
                bar(one.tally.answers as f64, most as f64, BAR),
                one.tally.new_tokens,
                one.tokens_per_second.map_or_else(|| "-".to_owned(), |speed| format!("{speed:.1}")),
                one.latency_ms.map_or_else(|| "-".to_owned(), |ms| duration(ms as u64)),
            )
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    let heading = format!(
        "{:<NAME$} {:>7} {:BAR$} {:>8} {:>9} {:>9}",
        "ADAPTER", "ANSWERS", "", "TOKENS", "TOKENS/S", "AN ANSWER"
    );
    format!("{heading}\n{}", lines.join("\n"))
}

fn share(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * PERCENT))
}

fn marks(adapters: &[GiverStats]) -> String {
    let rows = adapters.iter().filter(|one| one.tally.marks() > 0);
    let lines: Vec<String> = rows
        .map(|one| {
            let Tally { good, medium, critical, fix, .. } = &one.tally;
            format!(
                "{} {good:>5} {medium:>6} {critical:>8} {fix:>4} {:>6} {} {:>6}",
                name(&one.adapter),
                share(one.weighted_share),
                bar(one.weighted_share.unwrap_or(0.0), 1.0, BAR),
                share(one.weighted_share_before),
            )
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    let heading = format!(
        "{:<NAME$} {:>5} {:>6} {:>8} {:>4} {:>6} {:BAR$} {:>6}",
        "MARKS", "GOOD", "MEDIUM", "CRITICAL", "FIX", "RIGHT", "", "BEFORE"
    );
    let note = "RIGHT: share of good marks by weight; BEFORE: that of its parent, or the base.";
    format!("{heading}\n{}\n{note}", lines.join("\n"))
}

/// Weeks with all adapters added up.
fn weeks(weeks: &[WeekStats]) -> String {
    let mut all: BTreeMap<&str, (usize, usize, f64, f64)> = BTreeMap::new();
    for WeekStats { week, tally, .. } in weeks {
        let sum = all.entry(week).or_default();
        sum.0 += tally.answers;
        sum.1 += tally.marks();
        sum.2 += tally.good_weight;
        sum.3 += tally.weight;
    }
    let most = all.values().map(|sum| sum.1).max().unwrap_or(0);
    let lines = all.iter().rev().take(SHOWN).rev().map(|(week, (answers, marks, good, weight))| {
        let right = (*weight > 0.0).then(|| good / weight);
        format!(
            "{week:<9} {answers:>7} {marks:>5} {} {:>6}",
            bar(*marks as f64, most as f64, BAR),
            share(right)
        )
    });
    let lines: Vec<String> = lines.collect();
    let heading =
        format!("{:<9} {:>7} {:>5} {:BAR$} {:>6}", "WEEK", "ANSWERS", "MARKS", "", "RIGHT");
    format!("{heading}\n{}", lines.join("\n"))
}

fn trainings(trainings: &[TrainingStats]) -> String {
    let change = |pair: Option<(f64, f64)>| {
        pair.map_or_else(|| "-".to_owned(), |(before, after)| format!("{before:.2} → {after:.2}"))
    };
    let lines = trainings.iter().rev().take(SHOWN).rev().map(|job| {
        let when = job.finished_at.map_or_else(|| "-".to_owned(), |at| at.format("%F").to_string());
        format!(
            "{:>4} {:<10} {when:<10} {:<12} {:>8} {:>14} {:>14}",
            format!("#{}", job.job),
            job.state.as_str(),
            shortened(&printable_line(&job.domain), 12),
            job.examples,
            change(job.trained),
            change(job.heldout),
        )
    });
    let lines: Vec<String> = lines.collect();
    let heading = format!(
        "{:>4} {:<10} {:<10} {:<12} {:>8} {:>14} {:>14}",
        "JOB", "STATE", "ENDED", "DOMAIN", "EXAMPLES", "TRAINED LOSS", "HELD-OUT LOSS"
    );
    let more = trainings.len().saturating_sub(SHOWN);
    let more = match more {
        0 => String::new(),
        more => format!("\n(and {} before)", counted(more, "job")),
    };
    format!("{heading}\n{}{more}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::*;
    use crate::store::JobState;

    #[test]
    fn every_line_fits_80_columns_and_bars_tell_the_share() {
        let tally = |good: usize, critical: usize| Tally {
            answers: 12_345,
            new_tokens: 1_234_567,
            decode_ms: 60_000.0,
            good,
            critical,
            good_weight: good as f64,
            weight: good as f64 + 10.0 * critical as f64,
            ..Tally::default()
        };
        let giver = |adapter: &str, tally: Tally, before: Option<f64>| GiverStats {
            adapter: adapter.to_owned(),
            domain: None,
            before: None,
            live: false,
            tokens_per_second: tally.tokens_per_second(),
            latency_ms: tally.latency_ms(),
            good_share: tally.good_share(),
            weighted_share: tally.weighted_share(),
            weighted_share_before: before,
            tally,
        };
        let training = TrainingStats {
            job: 12,
            name: "x".into(),
            domain: "a-domain-with-a-long-name".into(),
            state: JobState::Succeeded,
            examples: 100,
            finished_at: None,
            seconds: None,
            trained: Some((14.57, 0.01)),
            heldout: None,
        };
        let statistics = Statistics {
            adapters: vec![
                giver("base", tally(10, 1), None),
                giver(&"l".repeat(64), tally(30, 1), Some(0.5)),
            ],
            weeks: vec![WeekStats {
                week: "2026-W48".into(),
                adapter: "base".into(),
                tally: tally(10, 1),
            }],
            trainings: vec![training; 20],
        };
        let text = text(&statistics);
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("   50 % █████           -"), "{text}");
        assert!(text.contains("   75 % ███████▌     50 %"), "{text}");
        assert!(text.contains("14.57 → 0.01"), "{text}");
        assert!(text.ends_with("(and 8 jobs before)"), "{text}");
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        assert_eq!(
            super::text(&Statistics::default()),
            "Nothing was asked, marked or trained yet."
        );
    }
}
