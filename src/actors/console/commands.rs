//! What a typed line means: a text for the model, or a command.

pub use super::command_help::{COMMANDS, Help};
use crate::domain::{AdapterId, Mark, WeightedAdapter};

/// Share of equal letters below which a suggestion is a guess: at a half, /domain would become /train.
const CLOSE_ENOUGH: f64 = 0.6;

/// Marks that `/marks` shows: what fits above the prompt.
const MARKS_SHOWN: usize = 10;

/// A line of input, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Nothing but white space.
    Empty,
    /// A text for the model.
    Text(String),
    /// A command.
    Command(Command),
}

/// A slash command with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// `/good`, `/medium`, `/critical`: judges the last answer.
    Mark {
        /// Which of the three.
        mark: Mark,
        /// The user's words.
        note: Option<String>,
    },
    /// `/fix TEXT`: a better answer.
    Fix(String),
    /// `/fix #ID TEXT`: a better answer for any mark.
    FixOf {
        /// The mark.
        id: i64,
        /// The better answer.
        text: String,
    },
    /// `/accept [ID]`: takes a revision; the one on offer without an id.
    Accept(Option<i64>),
    /// `/skip`: leaves the revision on offer.
    Skip,
    /// `/pending`: the marks that wait for a better answer.
    Pending,
    /// `/undo`: takes the last mark back.
    Undo,
    /// `/forget ID [retrain]`: drops a mark for good.
    Forget {
        /// The mark.
        id: i64,
        /// Trains anew without it, if an adapter has seen it.
        retrain: bool,
    },
    /// `/marks [N]`: at most so many.
    Marks(usize),
    /// `/domain …`.
    Domain(DomainCommand),
    /// `/stats`.
    Stats,
    /// `/train [domain]`.
    Train {
        /// The domain; the default one when missing.
        domain: Option<String>,
    },
    /// `/jobs …`.
    Jobs(JobsCommand),
    /// `/adapters …`.
    Adapters(AdaptersCommand),
    /// `/set [KEY [VALUE]]`.
    Set {
        /// The setting; all when missing.
        key: Option<String>,
        /// Its new value; shown when missing.
        value: Option<String>,
    },
    /// `/compare PROMPT`.
    Compare(String),
    /// `/model [M]`.
    Model(Option<String>),
    /// `/system …`.
    System(SystemCommand),
    /// `/run COMMAND …`, `/eval A [B]`: another command of the program, by its words.
    Run(Vec<String>),
    /// `/clear`: a new conversation.
    Clear,
    /// `/help [COMMAND]`.
    Help(Option<String>),
    /// `/quit`.
    Quit,
}

/// What `/jobs` can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobsCommand {
    /// Lists them.
    List,
    /// Cancels one.
    Cancel(i64),
    /// Waits until the queue is empty.
    Wait,
}

/// What `/domain` can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainCommand {
    /// Shows the domains.
    Show,
    /// Lets one answer.
    Pin(String),
    /// Routes each question.
    Auto,
}

/// What `/system` can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemCommand {
    /// Shows the system message.
    Show,
    /// Sets it.
    Set(String),
    /// Takes it away.
    Off,
}

/// What `/adapters` can do.
#[derive(Debug, Clone, PartialEq)]
pub enum AdaptersCommand {
    /// Lists them.
    List,
    /// Makes one live.
    Load(AdapterId),
    /// Lets several answer together, in this session.
    LoadAll(Vec<WeightedAdapter>),
    /// Lets two answer the same question; `None` is the base.
    Compare {
        /// The one.
        one: Option<WeightedAdapter>,
        /// The other.
        other: Option<WeightedAdapter>,
        /// The question.
        prompt: String,
    },
    /// Goes back to the base.
    Unload(Option<AdapterId>),
    /// Goes back to the parent of the live one.
    Rollback {
        /// The domain; the default one when missing.
        domain: Option<String>,
    },
    /// Removes one.
    Delete(AdapterId),
}

/// Why a line is no input. One line each, with a remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// No command has this name.
    #[error("unknown command /{name}{}", suggestion(.nearest))]
    Unknown {
        /// As typed.
        name: String,
        /// The command that is spelled most alike, if any is close.
        nearest: Option<&'static str>,
    },
    /// The command exists, its arguments make no sense.
    #[error("{problem}: use {usage}")]
    Usage {
        /// What is wrong.
        problem: String,
        /// How it is used.
        usage: &'static str,
    },
}

fn suggestion(nearest: &Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!(": did you mean /{name}?"),
        None => {
            ": /help lists the commands, a text that begins with a slash is sent with //".into()
        }
    }
}

/// Returns the help of a command, by its name with or without the slash.
///
/// # Errors
/// [`InputError::Unknown`] with the nearest name.
pub fn help_of(name: &str) -> Result<&'static Help, InputError> {
    let name = name.trim_start_matches('/');
    let lower = name.to_lowercase();
    COMMANDS
        .iter()
        .find(|help| help.name == lower)
        .ok_or_else(|| InputError::Unknown { name: name.to_owned(), nearest: nearest(&lower) })
}

/// Finds the command that is spelled most alike, if any is close.
fn nearest(name: &str) -> Option<&'static str> {
    COMMANDS
        .iter()
        .map(|help| (help.name, strsim::normalized_damerau_levenshtein(name, help.name)))
        .filter(|(_, likeness)| *likeness >= CLOSE_ENOUGH)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(name, _)| name)
}

/// Understands one line.
///
/// # Errors
/// An unknown command, or arguments that make no sense.
pub fn parse(line: &str) -> Result<Input, InputError> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Input::Empty);
    }
    let Some(rest) = line.strip_prefix('/') else { return Ok(Input::Text(line.to_owned())) };
    if rest.starts_with('/') {
        return Ok(Input::Text(rest.to_owned()));
    }
    let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let help = help_of(name)?;
    command(help, argument.trim()).map(Input::Command)
}

fn command(help: &'static Help, argument: &str) -> Result<Command, InputError> {
    let text = (!argument.is_empty()).then(|| argument.to_owned());
    let wrong = |problem: String| InputError::Usage { problem, usage: help.usage };
    let bare = |command| match &text {
        None => Ok(command),
        Some(_) => Err(wrong(format!("/{} takes no arguments", help.name))),
    };
    match help.name {
        "good" => Ok(Command::Mark { mark: Mark::Good, note: text }),
        "medium" => Ok(Command::Mark { mark: Mark::Medium, note: text }),
        "critical" => Ok(Command::Mark { mark: Mark::Critical, note: text }),
        "fix" => fix(argument).map_err(wrong),
        "accept" if argument.is_empty() => Ok(Command::Accept(None)),
        "accept" => match argument.trim_start_matches('#').parse() {
            Ok(id) => Ok(Command::Accept(Some(id))),
            Err(_) => Err(wrong(format!("\"{argument}\" is no number of a mark"))),
        },
        "skip" => bare(Command::Skip),
        "pending" => bare(Command::Pending),
        "undo" => bare(Command::Undo),
        "forget" => {
            let first = argument.strip_suffix(" retrain").unwrap_or(argument).trim();
            match first.trim_start_matches('#').parse() {
                Ok(id) => Ok(Command::Forget { id, retrain: first != argument }),
                Err(_) if first.is_empty() => {
                    Err(wrong("the number of the mark is missing".into()))
                }
                Err(_) => Err(wrong(format!("\"{first}\" is no number of a mark"))),
            }
        }
        "marks" => match argument {
            "" => Ok(Command::Marks(MARKS_SHOWN)),
            number => match number.parse() {
                Ok(limit) if limit > 0 => Ok(Command::Marks(limit)),
                _ => Err(wrong(format!("\"{number}\" is no number of marks"))),
            },
        },
        "domain" => Ok(Command::Domain(match text {
            None => DomainCommand::Show,
            Some(text) if text == "auto" => DomainCommand::Auto,
            text => domain(text).map_err(wrong)?.map_or(DomainCommand::Show, DomainCommand::Pin),
        })),
        "stats" => bare(Command::Stats),
        "train" => Ok(Command::Train { domain: domain(text).map_err(wrong)? }),
        "jobs" => jobs(argument).map(Command::Jobs).map_err(wrong),
        "adapters" => adapters(argument).map(Command::Adapters).map_err(wrong),
        "compare" => {
            text.map(Command::Compare).ok_or_else(|| wrong("the question is missing".into()))
        }
        "model" => Ok(Command::Model(text)),
        "system" => Ok(Command::System(match text {
            None => SystemCommand::Show,
            Some(text) if text == "off" => SystemCommand::Off,
            Some(text) => SystemCommand::Set(text),
        })),
        "set" => Ok(setting(argument)),
        "run" => words(argument).map(Command::Run).map_err(wrong),
        "eval" => eval(argument).map(Command::Run).map_err(wrong),
        "clear" => bare(Command::Clear),
        "help" => Ok(Command::Help(text)),
        _ => bare(Command::Quit),
    }
}

/// Takes `TEXT` and `#ID TEXT`; a text that begins with a number sign and no number is a text.
fn fix(argument: &str) -> Result<Command, String> {
    let missing = || "the better answer is missing".to_owned();
    let (first, rest) = argument.split_once(char::is_whitespace).unwrap_or((argument, ""));
    let id = first.strip_prefix('#').and_then(|digits| digits.parse().ok());
    match (id, rest.trim()) {
        (Some(_), "") => Err(missing()),
        (Some(id), text) => Ok(Command::FixOf { id, text: text.to_owned() }),
        (None, _) if argument.is_empty() => Err(missing()),
        (None, _) => Ok(Command::Fix(argument.to_owned())),
    }
}

fn jobs(argument: &str) -> Result<JobsCommand, String> {
    let words: Vec<&str> = argument.split_whitespace().collect();
    match words.as_slice() {
        [] | ["list"] => Ok(JobsCommand::List),
        ["wait"] => Ok(JobsCommand::Wait),
        ["cancel"] => Err("the number of the job is missing".into()),
        ["cancel", id] => match id.trim_start_matches('#').parse() {
            Ok(id) => Ok(JobsCommand::Cancel(id)),
            Err(_) => Err(format!("\"{id}\" is no number of a job")),
        },
        ["show" | "watch" | "retry" | "compare" | "run", ..] => {
            Err(format!("/jobs has no \"{argument}\", /run jobs {argument} does it"))
        }
        _ => Err(format!("/jobs does not know \"{argument}\"")),
    }
}

fn adapters(argument: &str) -> Result<AdaptersCommand, String> {
    let words: Vec<&str> = argument.split_whitespace().collect();
    let id = |text: &str| text.parse::<AdapterId>().map_err(|error| error.to_string());
    match words.as_slice() {
        [] | ["list"] => Ok(AdaptersCommand::List),
        ["load", one] if !one.contains(':') => Ok(AdaptersCommand::Load(id(one)?)),
        ["load", first, rest @ ..] => {
            let all = [first].into_iter().chain(rest).map(|text| text.parse());
            Ok(AdaptersCommand::LoadAll(all.collect::<Result<_, _>>()?))
        }
        ["compare", one, other, prompt @ ..] if !prompt.is_empty() => {
            let side = |text: &str| (text != "base").then(|| text.parse()).transpose();
            let prompt = prompt.join(" ");
            Ok(AdaptersCommand::Compare { one: side(one)?, other: side(other)?, prompt })
        }
        ["compare", ..] => {
            Err("two adapters (or base) and a question are needed; without a question, \
            /run adapters compare A B measures"
                .into())
        }
        ["unload"] => Ok(AdaptersCommand::Unload(None)),
        ["unload", one] => Ok(AdaptersCommand::Unload(Some(id(one)?))),
        ["rollback"] => Ok(AdaptersCommand::Rollback { domain: None }),
        ["rollback", name] => {
            Ok(AdaptersCommand::Rollback { domain: domain(Some((*name).to_owned()))? })
        }
        ["delete", one] => Ok(AdaptersCommand::Delete(id(one)?)),
        ["show" | "export" | "import", ..] => {
            Err(format!("/adapters has no \"{argument}\", /run adapters {argument} does it"))
        }
        ["load" | "delete"] => Err("the id of the adapter is missing".into()),
        _ => Err(format!("/adapters does not know \"{argument}\"")),
    }
}

/// Takes a command line as a shell would part it.
fn words(argument: &str) -> Result<Vec<String>, String> {
    match shlex::split(argument) {
        None => Err("a quotation mark is not closed".into()),
        Some(words) if words.is_empty() => Err("the command is missing".into()),
        Some(words) => Ok(words),
    }
}

/// Takes the adapter, and what it is compared with if that is not the base.
fn eval(argument: &str) -> Result<Vec<String>, String> {
    let ids: Vec<&str> = argument.split_whitespace().collect();
    let (adapter, against) = match ids.as_slice() {
        [] => return Err("the id of the adapter is missing".into()),
        [adapter] => (adapter, "base"),
        [adapter, against] => (adapter, *against),
        _ => return Err(format!("/eval does not know \"{argument}\"")),
    };
    Ok(["eval", "--adapter", adapter, "--against", against].map(str::to_owned).to_vec())
}

/// Checks the name of a domain: the rule of adapter ids, as ids are derived from it.
fn domain(text: Option<String>) -> Result<Option<String>, String> {
    match text {
        Some(name) if name.parse::<AdapterId>().is_err() => {
            Err(format!("\"{name}\" is no name of a domain (1 to 64 of a-z, 0-9, '_' and '-')"))
        }
        other => Ok(other),
    }
}

/// Takes `KEY`, `KEY VALUE`, `KEY=VALUE` and `KEY = VALUE`.
fn setting(argument: &str) -> Command {
    let (key, value) = match argument.split_once(|c: char| c == '=' || c.is_whitespace()) {
        Some((key, rest)) => (key, rest.trim().trim_start_matches('=').trim()),
        None => (argument, ""),
    };
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Command::Set { key: some(key), value: some(value) }
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
