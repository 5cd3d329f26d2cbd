//! What takes long: an hour of chat, marks and jobs, and hundreds of kills. Short versions run in every test run.

#![cfg(target_os = "linux")]

mod support;

#[path = "endurance/kill_loop.rs"]
mod kill_loop;
#[path = "endurance/soak.rs"]
mod soak;
