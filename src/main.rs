//! The program: restricts its files to their owner, sees to its threads, reads the command line, and calls it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Parser;
use rustix::fs::Mode;
use rustix::process::umask;
use shammah::cli::{self, Cli};
use shammah::worker::ENVIRONMENT;

fn main() -> ExitCode {
    // First of all: files are 0600, directories 0700.
    umask(Mode::RWXG | Mode::RWXO);
    start_again_with_environment();
    cli::main(Cli::parse())
}

/// candle and the C library ask the environment at their start, and a running program cannot set its own safely: so the
/// program becomes itself again, with [`ENVIRONMENT`]. Where that fails it goes on as it is, only slower.
fn start_again_with_environment() {
    let is_set = |(name, _): &(&str, &str)| std::env::var_os(name).is_some();
    if ENVIRONMENT.iter().any(is_set) {
        return;
    }
    let mut arguments = std::env::args_os();
    let (Ok(program), Some(name)) = (std::env::current_exe(), arguments.next()) else {
        return;
    };
    // Under a loader (ld.so shammah …) the executable is the loader.
    if Path::new(&name).file_name() == program.file_name() {
        let _ = Command::new(program).arg0(name).args(arguments).envs(ENVIRONMENT).exec();
    }
}
