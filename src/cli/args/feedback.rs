//! Arguments of `feedback edit` and `stats`.

use std::path::PathBuf;

use clap::Args;

use super::JsonArg;
use crate::domain::Mark;

/// Arguments of `feedback edit`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct FeedbackEditArgs {
    /// Its number
    #[arg(value_name = "ID")]
    pub id: i64,
    /// The better answer
    #[arg(long, value_name = "TEXT", group = "change")]
    pub fix: Option<String>,
    /// What to say about it; an empty text takes the note away
    #[arg(long, value_name = "TEXT", group = "change")]
    pub note: Option<String>,
    /// good, medium, critical or fix; its weight becomes the configured one unless --weight is given
    #[arg(long, group = "change")]
    pub mark: Option<Mark>,
    /// How much it counts
    #[arg(long, value_name = "W", group = "change")]
    pub weight: Option<f64>,
    /// The domain that learns from it
    #[arg(long, value_name = "D", group = "change", value_parser = crate::domain::domain_name)]
    pub domain: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Write the counts of each week and adapter to this file instead
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub csv: Option<PathBuf>,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}
