//! Runs files: several training jobs in one TOML file, each with changes of its own over `[lora]`.
//!
//! ```toml
//! [[job]]
//! name = "gentle"
//! data = "marks.jsonl"
//! learning_rate = 1e-3
//! ```

use std::path::{Path, PathBuf};

use config::ValueKind;
use toml::de::{DeTable, DeValue};

use super::layer::{self, Layer, MAX_FILE_BYTES};
use super::{ConfigError, LoraSection, Origin, StartFrom, rules};
use crate::domain::{AdapterId, domain_name};

/// The only key of the file: a list of tables.
const JOB: &str = "job";
/// The keys that a job has besides those of `[lora]` and `[lora.training]`.
const OWN_KEYS: [&str; 3] = ["name", "data", "domain"];
/// What a name may be.
const NAMES: &str =
    "1 to 64 of a-z, 0-9, '_' and '-', starting with a letter or digit, and not a number";
/// What a domain may be.
const DOMAINS: &str = "1 to 64 of a-z, 0-9, '_' and '-', starting with a letter or digit";

/// One job of a runs file.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The line where it begins, counted from 1.
    pub line: usize,
    /// The name of the job and of its adapter.
    pub name: Option<AdapterId>,
    /// The marks it learns; a relative path is one from the runs file.
    pub data: Option<PathBuf>,
    /// The domain that it learns.
    pub domain: Option<String>,
    /// Where it starts, if it says so itself.
    pub from: Option<StartFrom>,
    /// The hyper-parameters: the effective ones with its changes.
    pub lora: LoraSection,
}

/// The jobs of a runs file, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Runs {
    /// The file, as given.
    pub path: PathBuf,
    /// The jobs; at least one.
    pub jobs: Vec<Run>,
}

impl Runs {
    /// Reads a runs file and lays each job's values over `lora`.
    ///
    /// # Errors
    /// A file that cannot be read, has no job or is no TOML; an unknown key, a value of the wrong type or out of range,
    /// a name that two jobs have.
    pub fn load(path: &Path, lora: &LoraSection) -> Result<Self, ConfigError> {
        let unusable = |problem: String| ConfigError::Runs { path: path.to_owned(), problem };
        let size = fs_err::metadata(path).map_err(|e| unusable(reason(&e)))?.len();
        if size > MAX_FILE_BYTES {
            let problem = format!("{size} bytes, more than {MAX_FILE_BYTES}: it is no runs file");
            return Err(unusable(problem));
        }
        let text = fs_err::read_to_string(path).map_err(|e| unusable(reason(&e)))?;
        let jobs = Reader { path, text: &text, lora }.jobs()?;
        if jobs.is_empty() {
            let problem = "it has no job: begin each one with a line [[job]]";
            return Err(unusable(problem.to_owned()));
        }
        let runs = Self { path: path.to_owned(), jobs };
        runs.check_names()?;
        Ok(runs)
    }

    fn check_names(&self) -> Result<(), ConfigError> {
        for (index, run) in self.jobs.iter().enumerate() {
            let twin = |other: &Run| run.name.is_some() && other.name == run.name;
            if let (Some(first), Some(name)) = (self.jobs[..index].iter().position(twin), &run.name)
            {
                let problem =
                    format!("is \"{name}\", as that of job {}: give each job its own", first + 1);
                return Err(self.conflict(index, "name", problem));
            }
        }
        Ok(())
    }

    /// Says where a job stands: `runs.toml:7: job 2`.
    pub fn place(&self, index: usize) -> Origin {
        let line = self.jobs.get(index).map_or(1, |run| run.line);
        Origin::Run { path: self.path.display().to_string(), line, job: index + 1 }
    }

    /// Makes the error of a key of one job that does not fit the others or the files.
    pub fn conflict(&self, index: usize, key: &str, problem: String) -> ConfigError {
        ConfigError::Conflict { origin: self.place(index), key: key.to_owned(), problem }
    }
}

/// Reads the name that a user gives to a job: that of its adapter, but no number, because `jobs show 7` means job 7.
///
/// # Errors
/// Any other text, with the rule.
pub fn job_name(text: &str) -> Result<AdapterId, String> {
    if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) {
        return Err(format!("\"{text}\" is a number, and jobs have numbers: add a letter"));
    }
    text.parse::<AdapterId>().map_err(|error| error.to_string())
}

/// Says why a runs file cannot be read, and what to do.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "it does not exist: check the path".to_owned(),
        _ => format!("cannot be read: {error}: make it a readable text file"),
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    lora: &'a LoraSection,
}

impl Reader<'_> {
    fn jobs(&self) -> Result<Vec<Run>, ConfigError> {
        let file = |line| Origin::File { path: self.path.display().to_string(), line };
        let syntax = |at: Option<std::ops::Range<usize>>, message: &str| ConfigError::Syntax {
            origin: file(at.map_or(1, |span| layer::line_at(self.text, span.start))),
            message: message.replace('\n', ", "),
        };
        let table = DeTable::parse(self.text).map_err(|e| syntax(e.span(), e.message()))?;
        // The same again without places, to be laid over the section.
        let plain: serde_json::Value =
            toml::from_str(self.text).map_err(|e| syntax(e.span(), e.message()))?;
        let mut runs = Vec::new();
        for (name, value) in table.get_ref() {
            let line = layer::line_at(self.text, name.span().start);
            let DeValue::Array(jobs) = value.get_ref() else {
                return Err(self.stranger(name.get_ref(), file(line)));
            };
            if name.get_ref() != JOB {
                return Err(self.stranger(name.get_ref(), file(line)));
            }
            for (index, job) in jobs.iter().enumerate() {
                let DeValue::Table(table) = job.get_ref() else {
                    return Err(self.stranger(name.get_ref(), file(line)));
                };
                let line = layer::line_at(self.text, job.span().start);
                runs.push(self.job(index + 1, line, table, &plain[JOB][index])?);
            }
        }
        Ok(runs)
    }

    fn stranger(&self, key: &str, origin: Origin) -> ConfigError {
        let remedy = "a runs file has only jobs, each begun with a line [[job]]".to_owned();
        ConfigError::UnknownKey { origin, key: key.to_owned(), remedy }
    }

    fn job(
        &self,
        number: usize,
        line: usize,
        table: &DeTable<'_>,
        plain: &serde_json::Value,
    ) -> Result<Run, ConfigError> {
        let drift = |error: serde_json::Error| ConfigError::Drift(error.to_string());
        let mut run =
            Run { line, name: None, data: None, domain: None, from: None, lora: self.lora.clone() };
        let mut whole = serde_json::to_value(self.lora).map_err(drift)?;
        let mut checked = Layer::default();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let line = layer::line_at(self.text, key.span().start);
            let path = self.path.display().to_string();
            let origin = Origin::Run { path, line, job: number };
            let value = layer::plain(value.get_ref());
            if OWN_KEYS.contains(&name) {
                self.take_own(&mut run, name, &value, origin)?;
                continue;
            }
            let Some((_, key)) = rules::job_keys().find(|(known, _)| *known == name) else {
                let remedy = remedy(name);
                return Err(ConfigError::UnknownKey { origin, key: name.to_owned(), remedy });
            };
            checked.add(key.to_owned(), value, origin)?;
            let section =
                if key.starts_with("lora.training.") { &mut whole["training"] } else { &mut whole };
            section[name] = plain[name].clone();
        }
        run.lora = serde_json::from_value(whole).map_err(drift)?;
        run.from = table.contains_key("from").then_some(run.lora.training.from);
        Ok(run)
    }

    /// Takes a key that is no hyper-parameter.
    fn take_own(
        &self,
        run: &mut Run,
        key: &str,
        value: &ValueKind,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let key = key.to_owned();
        let ValueKind::String(text) = value else {
            let (found, expected) = (layer::describe(value), "a text".to_owned());
            return Err(ConfigError::WrongType { origin, key, found, expected });
        };
        let right = match key.as_str() {
            "name" => job_name(text).map(|name| run.name = Some(name)).map_err(|_| NAMES),
            "domain" => domain_name(text).map(|name| run.domain = Some(name)).map_err(|_| DOMAINS),
            _ if text.trim().is_empty() => Err("the path of a JSONL file with marks"),
            _ => {
                let folder = self.path.parent().unwrap_or(Path::new(""));
                run.data = Some(folder.join(text));
                Ok(())
            }
        };
        right.map_err(|expected| {
            let (found, expected) = (layer::value_text(value), expected.to_owned());
            ConfigError::OutOfRange { origin, key, found, expected }
        })
    }
}

/// Says what would be right instead of a key that no job has.
fn remedy(key: &str) -> String {
    /// Below this share of equal letters a suggestion is a guess.
    const CLOSE: f64 = 0.6;
    let names: Vec<&str> =
        OWN_KEYS.into_iter().chain(rules::job_keys().map(|(name, _)| name)).collect();
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(key, name);
    let nearest = names.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|name| likeness(name) >= CLOSE) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => format!("a job has {}", names.join(", ")),
    }
}
