//! The command line: reads it, calls what it names, turns errors into messages and exit codes.
//!
//! stdout carries results only (with `--json` JSON and nothing else), stderr everything else.

mod adapters;
mod args;
mod ask;
mod config_command;
mod context;
mod exit;
mod feedback;
mod feedback_file;
mod interrupt;
mod jobs;
mod model;
mod output;

use std::process::ExitCode;

use anyhow::Result;

pub use args::Cli;
use args::Command;
use exit::Exit;

use crate::worker;

use crate::worker::child;

/// Runs what the command line asks for, says what went wrong, and returns the exit code.
pub fn main(cli: Cli) -> ExitCode {
    if matches!(cli.command, Some(Command::Worker)) {
        // Neither configuration nor log: its parent gives it everything, and stdout belongs to its frames.
        return child::main();
    }
    if let Some(Command::Worker) = cli.command {
        // It speaks in frames and takes stdout for itself: nothing may come before it.
        return worker::child::main();
    }
    let exit = match run(&cli) {
        Ok(exit) => exit,
        Err(error) => {
            if !exit::is_silent(&error) {
                output::complain(&format!("shammah: {}", exit::message(&error)));
            }
            exit::exit_of(&error)
        }
    };
    exit.into()
}

fn run(cli: &Cli) -> Result<Exit> {
    let global = &cli.global;
    match &cli.command {
        Some(Command::Ask(args)) => ask::run(args, global),
        Some(Command::Jobs(command)) => jobs::run(command, global),
        Some(Command::Adapters(command)) => adapters::run(command, global),
        Some(Command::Feedback(command)) => feedback::run(command, global),
        Some(Command::Config(command)) => config_command::run(command, global),
        Some(Command::Worker) | None => {
            Err(exit::UsageError("give a command: see shammah --help".to_owned()).into())
        }
    }
}
