//! One layer of the configuration: a file, the environment, or flags, checked key by key.

use std::path::Path;

use config::{Map, Source, Value, ValueKind};
use fs_err as fs;
use toml::de::{DeTable, DeValue};

use super::origin::Origin;
use super::rules::{self, Breach, Rule};
use super::{ConfigError, ENV_PREFIX, ENV_SEPARATOR};

/// Largest file that is read as configuration; the defaults with all comments have about 10 kB.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 20;
/// Deepest nesting followed in a file; known keys have at most three parts.
const MAX_DEPTH: usize = 8;

/// Checked values, each with its key and origin.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    pub(super) entries: Vec<Entry>,
}

/// One value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: ValueKind,
    pub(super) origin: Origin,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        let value = |entry: &Entry| {
            let origin = entry.origin.to_string();
            (entry.key.clone(), Value::new(Some(&origin), entry.value.clone()))
        };
        Ok(self.entries.iter().map(value).collect())
    }
}

impl Layer {
    /// Reads a file; `None` when there is none.
    pub(super) fn from_file(path: &Path) -> Result<Option<Self>, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { source };
        match fs::metadata(path) {
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(unreadable(error)),
            Ok(found) if found.is_file() && found.len() > MAX_FILE_BYTES => {
                return Err(ConfigError::TooBig {
                    path: path.to_owned(),
                    bytes: found.len(),
                    limit: MAX_FILE_BYTES,
                });
            }
            Ok(_) => {}
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let place = Origin::File { path: path.display().to_string(), line: 1 };
        Self::from_toml(&text, &place).map(Some)
    }

    /// Reads the text of a file.
    pub(super) fn from_toml(text: &str, place: &Origin) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            origin: place.at_line(error.span().map_or(1, |span| line_at(text, span.start))),
            message: error.message().replace('\n', ", "),
        })?;
        let mut layer = Self::default();
        layer.add_table(table.get_ref(), "", text, place)?;
        Ok(layer)
    }

    fn add_table(
        &mut self,
        table: &DeTable<'_>,
        prefix: &str,
        text: &str,
        place: &Origin,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let origin = place.at_line(line_at(text, name.span().start));
            match value.get_ref() {
                DeValue::Table(inner) if enters(&key, inner) => {
                    if inner.is_empty() {
                        self.entries.push(empty_section(key, origin));
                    } else {
                        self.add_table(inner, &key, text, place)?;
                    }
                }
                other => self.add(key, plain(other), origin)?,
            }
        }
        Ok(())
    }

    /// Reads variables whose names start with `SHAMMAH__`; others are left alone.
    pub(super) fn from_env(variables: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            let key = rest.to_lowercase().replace(ENV_SEPARATOR, ".");
            layer.add_text(key, text, Origin::Env { name: name.clone() })?;
        }
        Ok(layer)
    }

    /// Reads a text of `--set`.
    pub(super) fn add_assignment(&mut self, text: &str) -> Result<(), ConfigError> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| ConfigError::NotAnAssignment { text: text.to_owned() })?;
        self.add_text(key.trim().to_owned(), value.trim(), Origin::Set)
    }

    /// Adds a value given as text: by the key's rule a bare text, a list with commas, or TOML.
    pub(super) fn add_text(
        &mut self,
        key: String,
        text: &str,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let value = match rules::rule_of(&key) {
            Some(rule) => value_of_text(rule, text),
            None => ValueKind::String(text.to_owned()),
        };
        self.add(key, value, origin)
    }

    /// Adds a value given as JSON.
    pub(super) fn add_json(
        &mut self,
        key: String,
        value: &serde_json::Value,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        self.add(key, plain_json(value), origin)
    }

    /// Adds a value if its key exists and its rule lets it pass.
    pub(super) fn add(
        &mut self,
        key: String,
        value: ValueKind,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let Some(rule) = rules::rule_of(&key) else {
            return Err(refuse_key(key, &value, origin));
        };
        match rule.check(&value) {
            Ok(()) => {
                self.entries.push(Entry { key, value, origin });
                Ok(())
            }
            Err(Breach::Type) => Err(ConfigError::WrongType {
                origin,
                key,
                found: describe(&value),
                expected: rule.to_string(),
            }),
            Err(Breach::Range) => Err(ConfigError::OutOfRange {
                origin,
                key,
                found: value_text(&value),
                expected: rule.to_string(),
            }),
        }
    }
}

/// Whether an error means that there is no such file; below a file there is none either.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Whether a table is looked into: it is a section, or a wrong one that has keys to name.
fn enters(key: &str, table: &DeTable<'_>) -> bool {
    rules::is_section(key)
        || (rules::rule_of(key).is_none()
            && !table.is_empty()
            && key.matches('.').count() < MAX_DEPTH)
}

fn empty_section(key: String, origin: Origin) -> Entry {
    Entry { key, value: ValueKind::Table(Map::new()), origin }
}

fn refuse_key(key: String, value: &ValueKind, origin: Origin) -> ConfigError {
    if rules::is_section(&key) {
        let expected = format!("a section: write [{key}] and its keys below");
        return ConfigError::WrongType { origin, key, found: describe(value), expected };
    }
    let remedy = rules::remedy_for_unknown(&key);
    ConfigError::UnknownKey { origin, key, remedy }
}

/// Reads the text of a variable or flag as its rule wants it.
fn value_of_text(rule: Rule, text: &str) -> ValueKind {
    let bare = || ValueKind::String(text.to_owned());
    let quoted = text.len() >= 2 && text.starts_with(['"', '\'']);
    if rule.takes_bare_text() && !quoted {
        return bare();
    }
    if rule.takes_list() && !text.trim_start().starts_with('[') {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        return ValueKind::Array(items.map(|item| Value::new(None, item.to_owned())).collect());
    }
    match DeValue::parse(text) {
        Ok(value) => plain(value.get_ref()),
        Err(_) => bare(),
    }
}

/// Converts a TOML value to the crate `config`'s; dates have no counterpart and become texts, which their rules refuse or take.
pub(super) fn plain(value: &DeValue<'_>) -> ValueKind {
    match value {
        DeValue::String(text) => ValueKind::String(text.to_string()),
        DeValue::Integer(number) => {
            match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => ValueKind::I64(number),
                // Too big for 64 bits: as a fraction it is out of every range of whole numbers.
                Err(_) => ValueKind::Float(number.as_str().parse().unwrap_or(f64::INFINITY)),
            }
        }
        DeValue::Float(number) => ValueKind::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(truth) => ValueKind::Boolean(*truth),
        DeValue::Datetime(date) => ValueKind::String(date.to_string()),
        DeValue::Array(items) => ValueKind::Array(
            items.iter().map(|item| Value::new(None, plain(item.get_ref()))).collect(),
        ),
        DeValue::Table(table) => ValueKind::Table(
            table
                .iter()
                .map(|(name, value)| {
                    (name.get_ref().to_string(), Value::new(None, plain(value.get_ref())))
                })
                .collect(),
        ),
    }
}

fn plain_json(value: &serde_json::Value) -> ValueKind {
    match value {
        serde_json::Value::Null => ValueKind::Nil,
        serde_json::Value::Bool(truth) => ValueKind::Boolean(*truth),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => ValueKind::I64(whole),
            None => ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => ValueKind::String(text.clone()),
        serde_json::Value::Array(items) => {
            ValueKind::Array(items.iter().map(|item| Value::new(None, plain_json(item))).collect())
        }
        serde_json::Value::Object(map) => ValueKind::Table(
            map.iter()
                .map(|(name, value)| (name.clone(), Value::new(None, plain_json(value))))
                .collect(),
        ),
    }
}

/// Names a value's type and shows it.
pub(super) fn describe(value: &ValueKind) -> String {
    match value {
        ValueKind::Boolean(_) => format!("the truth value {}", value_text(value)),
        ValueKind::I64(_) => format!("the whole number {}", value_text(value)),
        ValueKind::Float(_) => format!("the number {}", value_text(value)),
        ValueKind::String(_) => format!("the text {}", value_text(value)),
        ValueKind::Array(_) => format!("the list {}", value_text(value)),
        ValueKind::Table(_) => "a section".to_owned(),
        _ => "empty".to_owned(),
    }
}

/// Writes a value as TOML would, shortened.
pub(super) fn value_text(value: &ValueKind) -> String {
    /// Longer values are cut in messages.
    const MAX_SHOWN: usize = 120;
    let text = match value {
        ValueKind::Float(number) => format!("{number:?}"),
        ValueKind::String(text) => format!("{text:?}"),
        ValueKind::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| value_text(&item.kind)).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    };
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Counts the line of a byte offset, from 1.
pub(super) fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1
}
