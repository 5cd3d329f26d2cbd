//! Every way in which a worker can go wrong, each through a real process: the parent tells it by its name and returns
//! in bounded time.
//!
//! The faults live here and not in the product: this executable is its own worker (see `main`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may fall"
)]

#[path = "worker_faults/faulty.rs"]
mod faulty;
#[path = "worker_faults/trials.rs"]
mod trials;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--as-worker"] => shammah::worker::child::main_with(faulty::Faulty),
        ["--as-raw-worker", fault] => faulty::speak_badly(fault),
        ["--as-owner"] => trials::own_a_hanging_worker(),
        _ => libtest_mimic::run(&Arguments::from_args(), trials::all()).exit_code(),
    }
}
