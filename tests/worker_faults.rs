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
#[path = "worker_faults/isolation.rs"]
mod isolation;
#[path = "worker_faults/trials.rs"]
mod trials;

use std::process::ExitCode;

use libtest_mimic::Arguments;

/// Trials at a time: they mostly wait for clocks, not for cores.
const WAITING_TRIALS: usize = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--as-worker"] => shammah::worker::child::main_with(faulty::Faulty),
        ["--as-raw-worker", fault] => faulty::speak_badly(fault),
        ["--as-owner"] => trials::own_a_hanging_worker(),
        _ => run_trials(),
    }
}

fn run_trials() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(WAITING_TRIALS);
    libtest_mimic::run(&arguments, trials::all()).exit_code()
}
