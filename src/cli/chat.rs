//! `shammah chat`: the console.

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::Result;

use super::args::GlobalArgs;
use super::context::{Audience, Session};
use super::model;
use crate::app;

/// Runs the command, and returns the code that the console ends with.
///
/// # Errors
/// A wrong configuration, a data directory or model that cannot be used, or a queue that another process holds where the
/// configuration refuses to go on without it.
pub fn run(global: &GlobalArgs) -> Result<ExitCode> {
    let session = Session::open_for(global, Vec::new(), Audience::Console)?;
    model::fetch(&session, global.quiet, &AtomicBool::new(false))?;
    Ok(app::run_console(model::setup(session)?)?.into())
}
