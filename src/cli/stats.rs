//! `shammah stats`: answers, marks and trainings in numbers.

use std::io::{self, Write};

use anyhow::{Context, Result};

use super::args::{GlobalArgs, StatsArgs};
use super::context::Session;
use super::exit::Exit;
use super::output;
use super::whole_file::{self, Existing};
use crate::actors::console::stats;
use crate::store::{Statistics, WeekStats};

/// The columns of the file: one row for each week and adapter, from which all sums can be made.
const COLUMNS: &str = "week,adapter,answers,prompt_tokens,new_tokens,prefill_ms,decode_ms,good,medium,critical,fix,good_weight,weight";

/// Runs the command.
///
/// # Errors
/// A store that cannot be read, or a file that cannot be written.
pub fn run(args: &StatsArgs, global: &GlobalArgs) -> Result<Exit> {
    let session = Session::open(global, Vec::new())?;
    let statistics = session.store.statistics()?;
    if let Some(file) = &args.csv {
        whole_file::write(file, Existing::Replace, |out| csv(out, &statistics))
            .with_context(|| format!("cannot write {}: nothing was exported", file.display()))?;
        let rows = statistics.weeks.len();
        output::line(&format!("wrote {rows} rows to {}", file.display()))?;
    } else if args.json.json {
        output::json(&statistics)?;
    } else {
        output::line(&stats::text(&statistics))?;
    }
    Ok(Exit::Done)
}

/// Names are ids or words of ours, so that no cell needs quotes.
fn csv(out: &mut dyn Write, statistics: &Statistics) -> io::Result<()> {
    writeln!(out, "{COLUMNS}")?;
    for WeekStats { week, adapter, tally: t } in &statistics.weeks {
        writeln!(
            out,
            "{week},{adapter},{},{},{},{},{},{},{},{},{},{},{}",
            t.answers,
            t.prompt_tokens,
            t.new_tokens,
            t.prefill_ms,
            t.decode_ms,
            t.good,
            t.medium,
            t.critical,
            t.fix,
            t.good_weight,
            t.weight
        )?;
    }
    Ok(())
}
