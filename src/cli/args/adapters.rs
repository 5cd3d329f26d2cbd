//! Arguments of `adapters`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::JsonArg;
use crate::domain::AdapterId;

/// What `adapters` can do.
#[derive(Debug, Subcommand)]
pub enum AdaptersCommand {
    /// List all adapters, newest first
    List(JsonArg),
    /// Show one adapter
    Show(AdapterArg),
    /// Make an adapter live in its domain
    Load(AdapterArg),
    /// Take a live adapter out: the base answers
    Unload(AdapterArg),
    /// Go back to the parent of the live adapter, or to the base
    Rollback {
        /// The domain
        #[arg(long, value_name = "D", value_parser = crate::domain::domain_name)]
        domain: Option<String>,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Measure two adapters on what each was taught, and what they have in common
    Compare(CompareAdaptersArgs),
    /// Delete an adapter that is not live and no parent of another
    Delete(AdapterArg),
    /// Write an adapter into a new directory, as PEFT reads it
    Export(ExportArgs),
    /// Take in an adapter of the model in use, ours or PEFT's, after checking all of it
    Import(ImportArgs),
}

/// Arguments of `adapters compare`.
#[derive(Debug, Args)]
pub struct CompareAdaptersArgs {
    /// An adapter, or "base"
    #[arg(value_name = "A[:WEIGHT]")]
    pub one: String,
    /// Another
    #[arg(value_name = "B[:WEIGHT]")]
    pub other: String,
    /// Also let both answer this, side by side
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// Arguments of `adapters export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Its id
    #[arg(value_name = "ID")]
    pub id: AdapterId,
    /// The directory; it must not exist
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Keep the ids of the marks that it was trained and measured on
    #[arg(long)]
    pub with_provenance: bool,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// Arguments of `adapters import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The directory with adapter_model.safetensors and adapter_config.json
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Its id here [default: the directory's name]
    #[arg(long, value_name = "N")]
    pub name: Option<AdapterId>,
    /// The domain that it answers
    #[arg(long, value_name = "D", value_parser = crate::domain::domain_name)]
    pub domain: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// One adapter.
#[derive(Debug, Args)]
pub struct AdapterArg {
    /// Its id
    #[arg(value_name = "ID")]
    pub id: AdapterId,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}
