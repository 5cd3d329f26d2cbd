//! The loss curve as the worker notes it: each step, before the checkpoint that may hold it.

use std::io::{self, Write};
use std::path::Path;

use fs_err::{File, OpenOptions};

use crate::domain::{CURVE_FILE, CurvePoint};

/// The file of one job's steps, open at its end.
pub struct CurveFile(File);

impl CurveFile {
    /// Opens the file among the checkpoints of a job; what earlier attempts noted stays.
    ///
    /// # Errors
    /// A directory or file that cannot be made or written.
    pub fn open(checkpoint_dir: &Path) -> io::Result<Self> {
        fs_err::create_dir_all(checkpoint_dir)?;
        let path = checkpoint_dir.join(CURVE_FILE);
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        if file.metadata()?.len() > 0 {
            // Ends a line that a killed worker tore.
            file.write_all(b"\n")?;
        }
        Ok(Self(file))
    }

    /// Notes a step.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add(&mut self, point: &CurvePoint) -> io::Result<()> {
        let mut line = serde_json::to_vec(point)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }

    /// Makes the steps so far durable.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
