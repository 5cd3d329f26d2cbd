//! Makes the built-in model: tokenizer, full-parameter training on the CPU, export and score.
//!
//! ```text
//! cargo run --release --example pretrain -- train --out target/tiny --shared ../shared --steps 6000
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
        Command::Score { assets, all } => score::score(&assets, all),
    }
}
