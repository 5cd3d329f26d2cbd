//! `shammah chat`: the console.

use std::ffi::OsStr;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};

use super::args::GlobalArgs;
use super::context::{Audience, Session};
use super::exit::UsageError;
use super::model;
use crate::actors::console::{BESIDE, Program};
use crate::app;

/// Runs the command, and returns the code that the console ends with.
///
/// # Errors
/// A wrong configuration, a data directory or model that cannot be used, or a queue that another process holds where the
/// configuration refuses to go on without it.
pub fn run(global: &GlobalArgs) -> Result<ExitCode> {
    if std::env::var_os(BESIDE).is_some() {
        let problem = "a console runs already: open another in a terminal of its own";
        return Err(UsageError(problem.to_owned()).into());
    }
    let session = Session::open_for(global, Vec::new(), Audience::Console)?;
    model::fetch(&session, global.quiet, &AtomicBool::new(false))?;
    Ok(app::run_console(model::setup(session)?, program(global)?)?.into())
}

/// Returns how this program is called again for the same data directory, configuration and model.
fn program(global: &GlobalArgs) -> Result<Program> {
    let path = std::env::current_exe().context("cannot find this program's own file")?;
    let mut options = Vec::new();
    let mut add = |name: &str, value: &OsStr| options.extend([name.into(), value.to_owned()]);
    for (name, path) in [("--home", &global.home), ("--config", &global.config)] {
        path.iter().for_each(|path| add(name, path.as_os_str()));
    }
    global.device.iter().for_each(|device| add("--device", device.as_ref()));
    global.set.iter().for_each(|set| add("--set", set.as_ref()));
    if global.quiet {
        options.push("--quiet".into());
    }
    Ok(Program { path, options, model: global.model.clone() })
}
