//! The command line, as clap reads it.

mod adapters;
mod eval;
mod feedback;

use std::path::PathBuf;

pub use adapters::{AdaptersCommand, CompareAdaptersArgs, ExportArgs, ImportArgs};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
pub use eval::EvalArgs;
pub use feedback::{FeedbackEditArgs, StatsArgs};

use super::feedback_forms::Form;
pub use super::jobs_args::{JobsCommand, PlotArg};
use super::revise::ReviseArgs;
use crate::domain::{AdapterId, Mark, WeightedAdapter};

/// A local language-model assistant that learns from its user.
#[derive(Debug, Parser)]
#[command(
    name = "shammah",
    version,
    about,
    long_about = "A local language-model assistant that learns from its user: chat, mark answers, and an adapter is \
                  trained in the background, measured, and swapped in. Without a command it opens the console.",
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do; the console when missing.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Data directory [default: $SHAMMAH_HOME, else ~/.shammah]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Configuration file, read after the data directory's config.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Model: "builtin", a directory in Hugging Face layout, a GGUF file, or a model of the hub
    #[arg(long, global = true, value_name = "builtin|DIR|FILE.gguf|ORG/NAME[@REVISION]")]
    pub model: Option<String>,
    /// Where to compute: auto, cpu, cuda, cuda:N or metal
    #[arg(long, global = true, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Set a key of the configuration, e.g. --set lora.rank=8 (repeatable)
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Say more on stderr: -v what happens, -vv details
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Open the console (the default); with piped stdin, one line is one input
    Chat,
    /// Ask one question and print the answer
    Ask(AskArgs),
    /// Put a training job, or those of a runs file, into the queue
    Train(TrainArgs),
    /// List, show, watch, cancel, retry and compare training jobs; run the queue as a service
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// List, show, load, unload, roll back and delete adapters
    #[command(subcommand)]
    Adapters(AdaptersCommand),
    /// Measure an adapter as the gate does: what it changes, item by item
    Eval(EvalArgs),
    /// List, add, import, export and count marks
    #[command(subcommand)]
    Feedback(FeedbackCommand),
    /// Count answers, marks and trainings, by adapter and by week
    Stats(StatsArgs),
    /// List, fetch and describe models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Show, check and start the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Measure how fast this machine decodes, prefills and trains
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Say what works on this machine and what does not; exit code 1 when something does not
    Doctor(JsonArg),
    /// Print the completions of a shell
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Train for the program that started this one
    #[command(hide = true)]
    Worker,
}

/// The `--json` of commands that print.
#[derive(Debug, Clone, Copy, Args)]
pub struct JsonArg {
    /// Print JSON: one object, or one per line for lists
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ask`.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The question
    pub prompt: String,
    /// Use this adapter instead of the live one, with a weight (default 1); repeatable
    #[arg(long, value_name = "ID[:WEIGHT]", conflicts_with = "no_adapter")]
    pub adapter: Vec<WeightedAdapter>,
    /// Use the base alone
    #[arg(long)]
    pub no_adapter: bool,
    /// Answer in this domain instead of the one that the question is closest to
    #[arg(long, value_name = "D", value_parser = crate::domain::domain_name, conflicts_with_all = ["adapter", "no_adapter"])]
    pub domain: Option<String>,
    /// Longest answer in tokens
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub max_tokens: Option<String>,
    /// Seed of the sampler, or "random"
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// Where a training job starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FromArg {
    /// From the live adapter of the domain
    Continue,
    /// From zero, on all examples of the domain
    Fresh,
    /// From the live adapter, frozen, with a difference on top
    Delta,
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Enqueue each `[[job]]` of this file, all or none: name, data, domain, from, and keys of `lora` and `lora.training`
    #[arg(value_name = "RUNS.toml", conflicts_with_all = ["data", "domain", "from", "name"])]
    pub runs: Option<PathBuf>,
    /// Store the marks of this file first (as `feedback import` does), then train
    #[arg(long, value_name = "FILE.jsonl")]
    pub data: Option<PathBuf>,
    /// Train this domain
    #[arg(long, value_name = "D", value_parser = crate::domain::domain_name)]
    pub domain: Option<String>,
    /// Where to start [default: lora.training.from]
    #[arg(long, value_enum)]
    pub from: Option<FromArg>,
    /// Name of the job and of its adapter; not a number, which would be a job's own
    #[arg(long, value_name = "N", value_parser = crate::config::job_name)]
    pub name: Option<AdapterId>,
    /// Higher goes first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i64,
    /// Stay until the job has ended, and run the queue here if no other process does
    #[arg(long)]
    pub wait: bool,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// What `feedback` can do.
#[derive(Debug, Subcommand)]
pub enum FeedbackCommand {
    /// List the marks, newest first
    List {
        /// Only this domain
        #[arg(long, value_name = "D", value_parser = crate::domain::domain_name)]
        domain: Option<String>,
        /// Only those waiting for a correction
        #[arg(long)]
        pending: bool,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Store one mark
    Add(FeedbackAddArgs),
    /// Change a mark that no job has learned
    Edit(FeedbackEditArgs),
    /// Take back the newest mark that no job has, or the one with this number
    Undo {
        /// Its number
        #[arg(value_name = "ID")]
        id: Option<i64>,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Store the marks of a JSONL file ("-": stdin), ours or chats as OpenAI and ShareGPT have them; all or, if a line is
    /// wrong, none
    Import {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Put all of them into this domain
        #[arg(long, value_name = "D", value_parser = crate::domain::domain_name)]
        domain: Option<String>,
        /// What chats without a mark are stored as: good, medium or critical
        #[arg(long, value_name = "MARK", default_value = "good", value_parser = crate::cli::feedback_forms::default_mark)]
        mark: Mark,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Write all marks to a JSONL file ("-": stdout)
    Export {
        /// The file; it must not exist
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Replace a file that exists
        #[arg(long)]
        force: bool,
        /// The form of its lines; other forms have only the marks with an answer to learn
        #[arg(long, value_enum, default_value_t = Form::Shammah)]
        format: Form,
        /// Only this domain
        #[arg(long, value_name = "D", value_parser = crate::domain::domain_name)]
        domain: Option<String>,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Drop a mark for good: its text is overwritten, and the adapters that have seen it are named
    Forget {
        /// Its number
        #[arg(value_name = "ID")]
        id: i64,
        /// Train anew without it, if an adapter has seen it
        #[arg(long)]
        retrain: bool,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Answer marks that wait for a correction again, with their notes in mind
    Revise(ReviseArgs),
    /// Look for secrets in all marks, in what jobs said, and in the console's history; exit code 1 when there are some
    Scan {
        /// Replace them where they stand
        #[arg(long)]
        redact: bool,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Count the marks of each domain
    Stats(JsonArg),
}

/// Arguments of `feedback add`.
#[derive(Debug, Args)]
pub struct FeedbackAddArgs {
    /// The question that was asked
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// The answer that was given
    #[arg(long, value_name = "TEXT")]
    pub response: String,
    /// good, medium, critical or fix
    #[arg(long)]
    pub mark: Mark,
    /// What to say about it
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// The better answer
    #[arg(long, value_name = "TEXT", required_if_eq("mark", "fix"))]
    pub fix: Option<String>,
    /// The domain that learns from it
    #[arg(long, value_name = "D", value_parser = crate::domain::domain_name)]
    pub domain: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// What `models` can do.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// List the built-in model and those in the cache of the hub
    List(JsonArg),
    /// Fetch a model of the hub into the cache; goes on where it was cut
    Pull {
        /// The model, or one GGUF file of it
        #[arg(value_name = "ORG/NAME[/FILE.gguf][@REVISION]")]
        id: String,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Say what a model is and what memory it needs, without loading it
    Inspect {
        /// "builtin", a directory, or a model of the hub that is in the cache
        #[arg(value_name = "MODEL")]
        name: String,
        /// How to print.
        #[command(flatten)]
        json: JsonArg,
    },
    /// Write a model's logits of a token sequence, to compare with other implementations
    Logits(LogitsArgs),
}

/// Arguments of `models logits`.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    /// "builtin", a directory, or a model of the hub that is in the cache
    #[arg(value_name = "MODEL")]
    pub name: String,
    /// Token ids, separated by commas
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', required = true)]
    pub ids: Vec<u32>,
    /// Compute with the adapter in this directory
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Where they go: `logits`, [tokens, vocabulary], f32
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
}

/// What `bench` can measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// One token after the other, behind a prompt
    Decode(BenchDecodeArgs),
    /// Taking in a prompt
    Prefill(BenchPrefillArgs),
    /// Steps of LoRA training
    Train(BenchTrainArgs),
}

/// Arguments of `bench decode`.
#[derive(Debug, Args)]
pub struct BenchDecodeArgs {
    /// Tokens before the first one that is measured
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub prompt_tokens: usize,
    /// Tokens that are decoded
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub new_tokens: usize,
    /// Measure in turn with an adapter of this rank on all seven projections
    #[arg(long, value_name = "N")]
    pub adapter_rank: Option<usize>,
    /// Runs, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub runs: usize,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// Arguments of `bench prefill`.
#[derive(Debug, Args)]
pub struct BenchPrefillArgs {
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub tokens: usize,
    /// Runs, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub runs: usize,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// Arguments of `bench train`.
#[derive(Debug, Args)]
pub struct BenchTrainArgs {
    /// Marks as JSONL, taken in the order of the file and again from its start
    #[arg(long, value_name = "FILE.jsonl", conflicts_with = "uniform")]
    pub data: Option<PathBuf>,
    /// Instead of a file: sequences of one length, every token a target
    #[arg(long, value_name = "BATCHxTOKENS")]
    pub uniform: Option<String>,
    /// Steps that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    pub steps: u16,
    /// Keep only the layers' inputs and compute them twice
    #[arg(long)]
    pub checkpointing: bool,
    /// How to print.
    #[command(flatten)]
    pub json: JsonArg,
}

/// What `config` can do.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show what is in force and where each value comes from
    Show(JsonArg),
    /// Check the configuration; exit code 2 when something is wrong
    Check(JsonArg),
    /// Write the commented defaults to config.toml in the data directory
    Init(JsonArg),
    /// Print the path of config.toml in the data directory
    Path(JsonArg),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
