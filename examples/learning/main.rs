//! The experiments behind the defaults of learning: facts, style rules, rounds of continued training, poisoned batches.
//!
//! ```text
//! cargo run --release --example learning -- run [--only EXPERIMENT,…] [--setting SETTING]… [--seeds N] [--out FILE]
//! cargo run --release --example learning -- report [--out FILE]
//! ```
//!
//! A setting is `defaults`, `seed`, `no-anchor`, `sampling`, `prompt`, `prompt-all`, or `KEY=VALUE,…` on top of the
//! defaults. Every cell (experiment, setting, seed) is one line of the results file; cells that are there are not
//! computed again. Jobs go through `run_job`, as those of the program do; it computes on one thread.

mod cells;
mod data;
mod experiments;
mod model;
mod report;
mod settings;

use std::path::PathBuf;

use anyhow::{Result, bail};

use cells::Results;

/// What is run where nothing else is asked for.
const EXPERIMENTS: [&str; 5] = ["facts", "one_sentence", "name_command", "rounds", "poison"];
const SETTINGS: [&str; 6] = ["defaults", "seed", "no-anchor", "sampling", "prompt", "prompt-all"];
const SEEDS: u64 = 3;
/// The first seed of a list: the program's own default.
const FIRST_SEED: u64 = 42;

struct Wish {
    command: String,
    experiments: Vec<String>,
    settings: Vec<String>,
    seeds: u64,
    out: PathBuf,
}

fn main() -> Result<()> {
    let wish = wish()?;
    let mut results = Results::open(&wish.out)?;
    match wish.command.as_str() {
        "run" => {
            rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
            run(&wish, &mut results)
        }
        "report" => {
            print!("{}", report::all(&results));
            Ok(())
        }
        other => bail!("unknown command {other}: run or report"),
    }
}

fn run(wish: &Wish, results: &mut Results) -> Result<()> {
    let mut lab = model::Lab::new()?;
    // Seeds outermost, so that what is there when a run is stopped says something about everything.
    for seed in FIRST_SEED..FIRST_SEED + wish.seeds {
        for experiment in &wish.experiments {
            for setting in &wish.settings {
                if experiments::makes_sense(experiment, setting, seed)
                    && !results.has(experiment, setting, seed)
                {
                    for cell in experiments::run(&mut lab, experiment, setting, seed)? {
                        eprintln!("{}", cell.line());
                        results.add(cell)?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn wish() -> Result<Wish> {
    let mut arguments = std::env::args().skip(1);
    let mut wish = Wish {
        command: arguments.next().unwrap_or_else(|| "report".to_owned()),
        experiments: EXPERIMENTS.map(str::to_owned).to_vec(),
        settings: Vec::new(),
        seeds: SEEDS,
        out: PathBuf::from("docs/learning.jsonl"),
    };
    while let Some(flag) = arguments.next() {
        let Some(value) = arguments.next() else { bail!("{flag} needs a value") };
        match flag.as_str() {
            "--only" => wish.experiments = value.split(',').map(str::to_owned).collect(),
            "--setting" => wish.settings.push(value),
            "--seeds" => wish.seeds = value.parse()?,
            "--out" => wish.out = PathBuf::from(value),
            _ => bail!("unknown flag {flag}"),
        }
    }
    if wish.settings.is_empty() {
        wish.settings = SETTINGS.map(str::to_owned).to_vec();
    }
    Ok(wish)
}
