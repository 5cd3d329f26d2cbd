//! The command line of `jobs`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::JsonArg;

/// The `--plot` of commands that show loss curves.
#[derive(Debug, Clone, Args)]
pub struct PlotArg {
    /// Also draw the loss curves into this file, which must not exist
    #[arg(long = "plot", value_name = "FILE.svg|FILE.png")]
    pub file: Option<PathBuf>,
}

/// What `jobs` can do.
#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// List all jobs, newest first
    List(JsonArg),
    /// Show one job
    Show {
        /// Its number, or the name of the newest one
        #[arg(value_name = "ID|NAME")]
        id: String,
        /// Where to draw its loss curve.
        #[command(flatten)]
        plot: PlotArg,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Show jobs side by side: settings that differ, losses before and after, loss curves
    Compare {
        /// Their numbers or names
        #[arg(value_name = "ID", required = true)]
        jobs: Vec<String>,
        /// Where to draw their loss curves.
        #[command(flatten)]
        plot: PlotArg,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Cancel a job that is queued or running; its marks stay
    Cancel {
        /// Its number, or the name of the newest one
        #[arg(value_name = "ID|NAME")]
        id: String,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Put the examples of a job that did not succeed into the queue again, with the same settings
    Retry {
        /// Its number, or the name of the newest one
        #[arg(value_name = "ID|NAME")]
        id: String,
        /// Higher goes first [default: that of the job]
        #[arg(long, value_name = "N", allow_negative_numbers = true)]
        priority: Option<i64>,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Watch a job, or the whole queue, until it has ended: position, progress, loss, time left
    Watch {
        /// Its number, or the name of the newest one; all open jobs when missing
        #[arg(value_name = "ID|NAME")]
        id: Option<String>,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Run the queue without a console, until SIGTERM; SIGHUP reads the configuration again
    Run,
}
