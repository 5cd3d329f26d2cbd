//! Loss curves of jobs for `jobs show` and `jobs compare`: on the terminal, and as a file.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::exit::UsageError;
use super::output;
use super::whole_file::{self, Existing};
use crate::plot::{self, Curve, Format};
use crate::store::{JobRow, Store};

/// Reads the loss curve of a job.
///
/// # Errors
/// A store that cannot be read.
pub fn of(store: &Store, job: &JobRow) -> Result<Curve> {
    Ok(Curve { label: title(job), points: store.curve(job.id)? })
}

/// Names a job where it stands beside others.
pub fn title(job: &JobRow) -> String {
    format!("{} {}", job.id, job.name)
}

/// Prints the curves as a picture of characters, if there is a step to show.
///
/// # Errors
/// When stdout cannot be written.
pub fn print(curves: &[Curve]) -> Result<()> {
    match plot::text(curves, output::columns().unwrap_or(output::USUAL_COLUMNS)) {
        Some(picture) => Ok(output::line(&format!("\n{picture}"))?),
        None => Ok(()),
    }
}

/// Draws the curves into a new file.
///
/// # Errors
/// A name that is neither SVG nor PNG, a file that is there already or cannot be written, nothing to draw.
pub fn draw(curves: &[Curve], file: &Path) -> Result<()> {
    let name = file.display();
    let Some(format) = Format::of(file) else {
        let message = format!("--plot {name}: the name must end in .svg or .png");
        return Err(UsageError(message).into());
    };
    let there_already =
        || format!("{name} exists already: choose another name, or remove it first");
    if file.symlink_metadata().is_ok() {
        bail!(there_already());
    }
    let picture = plot::picture(curves, format)?;
    // Whole or not at all, and never over a file that appears meanwhile.
    match whole_file::write(file, Existing::Keep, |out| out.write_all(&picture)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => bail!(there_already()),
        Err(error) => Err(error).with_context(|| {
            format!("cannot write {name}: choose a directory that exists and that you may write")
        }),
    }
}
