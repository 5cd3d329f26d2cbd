//! Arguments of `eval`.

use std::path::PathBuf;

use clap::Args;

use super::JsonArg;
use crate::domain::AdapterId;

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The adapter to measure
    #[arg(long, value_name = "ID")]
    pub adapter: AdapterId,
    /// What it is compared with: another adapter, or "base"
    #[arg(long, value_name = "ID|base", default_value = "base")]
    pub against: String,
    /// Measure on the marks of this file [default: those that its domain was trained and measured on]
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}
