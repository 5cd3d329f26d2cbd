//! Makes the built-in model: tokenizer, full-parameter training on the CPU, export and score.
//!
//! ```text
//! cargo run --release --example pretrain -- train --out target/tiny --shared ../shared --steps 1300
//! cargo run --release --example pretrain -- export --out target/tiny --assets assets/tiny
//! cargo run --release --example pretrain -- score --assets assets/tiny
//! ```
//!
//! `train` goes on from its last checkpoint; a later run with more `--steps` continues the same run.

mod corpus;
mod model;
mod score;
mod tokenizer;
mod train;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Makes the built-in model")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains, or goes on training.
    Train(train::TrainArgs),
    /// Writes the trained model in Hugging Face layout, bf16.
    Export {
        /// The training directory.
        #[arg(long, default_value = "target/tiny")]
        out: PathBuf,
        /// Where the model goes.
        #[arg(long, default_value = "assets/tiny")]
        assets: PathBuf,
    },
    /// Draws the general prompts on which training of adapters is anchored and measured.
    General {
        /// Where `builtin_anchors.jsonl` and `builtin_gate.jsonl` go.
        #[arg(long, default_value = "assets/general")]
        assets: PathBuf,
    },
    /// Asks the 100 held-out questions and counts the right answers.
    Score {
        /// The exported model.
        #[arg(long, default_value = "assets/tiny")]
        assets: PathBuf,
        /// Prints every answer, not only the wrong ones.
        #[arg(long)]
        all: bool,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Train(args) => train::train(&args),
        Command::Export { out, assets } => model::export(&out, &assets),
        Command::General { assets } => general(&assets),
        Command::Score { assets, all } => score::score(&assets, all),
    }
}

/// Facts, small talk and unknown things among the anchors, and among the gate's prompts.
const ANCHORS: [usize; 3] = [40, 6, 34];
const GATE: [usize; 3] = [18, 3, 15];
/// Anchors drawn after the gate's prompts, so that those stay what they were when there were fewer anchors.
const MORE_ANCHORS: [usize; 3] = [90, 2, 20];
/// Seed of the general prompts.
const GENERAL_SEED: u64 = 7;

/// Writes two disjoint sets of general prompts.
fn general(assets: &std::path::Path) -> Result<()> {
    use rand::SeedableRng;
    let corpus = corpus::Corpus::builtin()?;
    let mut rng = rand::rngs::StdRng::seed_from_u64(GENERAL_SEED);
    let mut anchors = corpus.general(ANCHORS, &mut rng);
    let among = |turns: &[corpus::Turn], turn: &corpus::Turn| {
        turns.iter().any(|t| t.user.eq_ignore_ascii_case(&turn.user))
    };
    let gate = loop {
        let drawn = corpus.general(GATE, &mut rng);
        if !drawn.iter().any(|turn| among(&anchors, turn)) {
            break drawn;
        }
    };
    for turn in corpus.general(MORE_ANCHORS, &mut rng) {
        if !among(&anchors, &turn) && !among(&gate, &turn) {
            anchors.push(turn);
        }
    }
    fs_err::create_dir_all(assets)?;
    for (name, turns) in [("builtin_anchors", anchors), ("builtin_gate", gate)] {
        let row = |t: &corpus::Turn| {
            serde_json::json!({"prompt": t.user, "response": t.assistant}).to_string()
        };
        let rows: Vec<String> = turns.iter().map(row).collect();
        fs_err::write(assets.join(format!("{name}.jsonl")), rows.join("\n") + "\n")?;
        println!("{} prompts in {name}.jsonl", rows.len());
    }
    Ok(())
}
