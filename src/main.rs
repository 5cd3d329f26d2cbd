//! The program: restricts its files to their owner, reads the command line, and calls it.

use std::process::ExitCode;

use clap::Parser;
use rustix::fs::Mode;
use rustix::process::umask;
use shammah::cli::{self, Cli};

fn main() -> ExitCode {
    // First of all: files are 0600, directories 0700.
    umask(Mode::RWXG | Mode::RWXO);
    cli::main(Cli::parse())
}
