//! The program: restricts its files to their owner, sees to its threads, reads the command line, and calls it.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Parser;
use rustix::fs::Mode;
use rustix::process::umask;
use shammah::cli::{self, Cli};

/// Names the number of candle's own threads, which spin at barriers beside those of the pool.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

fn main() -> ExitCode {
    // First of all: files are 0600, directories 0700.
    umask(Mode::RWXG | Mode::RWXO);
    start_again_without_spinning();
    cli::main(Cli::parse())
}

/// candle asks the environment once, and a running program cannot set its own safely: so the program becomes itself
/// again, with the variable set. Where that fails it goes on as it is, only slower.
fn start_again_without_spinning() {
    if std::env::var_os(CANDLE_THREADS).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| program.clone().into_os_string());
        let _ = Command::new(program).arg0(name).args(arguments).env(CANDLE_THREADS, "1").exec();
    }
}
