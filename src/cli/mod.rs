//! The command line: reads it, calls what it names, turns errors into messages and exit codes.
//!
//! stdout carries results only (with `--json` JSON and nothing else), stderr everything else.

mod adapter_files;
mod adapters;
mod adapters_compare;
mod answering;
mod args;
mod ask;
mod bench;
mod chat;
mod compare;
mod completions;
mod config_command;
mod context;
mod curves;
mod doctor;
mod download;
mod eval;
mod exit;
mod feedback;
mod feedback_edit;
pub mod feedback_file;
mod feedback_forms;
mod gate_text;
mod interrupt;
mod job_log;
mod jobs;
mod jobs_args;
mod jobs_run;
mod jobs_watch;
mod logits;
mod model;
mod models;
mod output;
mod progress;
mod redact;
mod revise;
mod runs;
mod secrets;
mod stats;
mod train;
mod whole_file;

use std::process::ExitCode;

use anyhow::{Context, Result};

pub use args::Cli;
use args::{Command, JobsCommand};
use exit::Exit;

use crate::actors::console::BESIDE;
use crate::worker::{child, die_with_parent};

/// Runs what the command line asks for, says what went wrong, and returns the exit code.
pub fn main(cli: Cli) -> ExitCode {
    run(&cli).unwrap_or_else(|error| {
        if !exit::is_silent(&error) {
            output::complain(&format!("shammah: {}", exit::message(&error)));
        }
        exit::exit_of(&error).into()
    })
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let global = &cli.global;
    if std::env::var_os(BESIDE).is_some() {
        die_with_parent().context("cannot be tied to the console that started it")?;
    }
    let exit: Exit = match &cli.command {
        // Neither configuration nor log: its parent gives it everything, and stdout belongs to its frames.
        Some(Command::Worker) => return Ok(child::main()),
        None | Some(Command::Chat) => return chat::run(global),
        Some(Command::Ask(args)) => ask::run(args, global),
        Some(Command::Train(args)) => train::run(args, global),
        Some(Command::Jobs(JobsCommand::Run)) => return jobs_run::run(global),
        Some(Command::Jobs(command)) => jobs::run(command, global),
        Some(Command::Adapters(command)) => adapters::run(command, global),
        Some(Command::Eval(args)) => eval::run(args, global),
        Some(Command::Feedback(command)) => feedback::run(command, global),
        Some(Command::Stats(args)) => stats::run(args, global),
        Some(Command::Models(command)) => models::run(command, global),
        Some(Command::Bench(command)) => bench::run(command, global),
        Some(Command::Config(command)) => config_command::run(command, global),
        Some(Command::Doctor(args)) => doctor::run(args.json, global),
        Some(Command::Completions { shell }) => completions::run(*shell),
    }?;
    Ok(exit.into())
}
