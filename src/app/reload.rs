//! What a configuration that is read again changes in a running service.

use serde_json::Value;

use crate::config::Config;

/// Keys that a running service cannot take up: the model is loaded, the log and the store are open.
const AT_START: [&str; 3] = ["model.", "log.", "feedback.secrets"];
/// Keys that a service does not use: nobody chats there.
const UNUSED: [&str; 4] = ["generation.", "console.", "feedback.", "queue.second_instance"];

/// The keys that differ, by what becomes of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In force from now on; jobs in the queue keep what they were enqueued with.
    pub taken: Vec<String>,
    /// In force at the next start.
    pub at_start: Vec<String>,
    /// Of no effect here.
    pub unused: Vec<String>,
}

impl Changes {
    /// Compares two configurations.
    pub fn between(old: &Config, new: &Config) -> Self {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        flatten("", &serde_json::to_value(old).unwrap_or_default(), &mut before);
        flatten("", &serde_json::to_value(new).unwrap_or_default(), &mut after);
        let differs = |(key, value): &(String, Value)| {
            !before.iter().any(|(other, was)| other == key && was == value)
        };
        let changed = after.iter().filter(|entry| differs(entry)).map(|(key, _)| key.clone());
        let gone = |(key, _): &&(String, Value)| !after.iter().any(|(other, _)| other == key);
        let keys = changed.chain(before.iter().filter(gone).map(|(key, _)| key.clone()));
        let mut changes = Self::default();
        for key in keys {
            let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| key.starts_with(prefix));
            let list = match () {
                () if is(&AT_START) => &mut changes.at_start,
                () if is(&UNUSED) || is_mixture(&key) => &mut changes.unused,
                () => &mut changes.taken,
            };
            list.push(key);
        }
        changes
    }

    /// Says what was done, one line.
    pub fn line(&self) -> String {
        let parts = [
            ("in force now", &self.taken),
            ("in force at the next start", &self.at_start),
            ("without effect here", &self.unused),
        ];
        let said: Vec<String> = parts
            .iter()
            .filter(|(_, keys)| !keys.is_empty())
            .map(|(what, keys)| format!("{what}: {}", keys.join(", ")))
            .collect();
        match said.is_empty() {
            true => "the configuration was read again: nothing changed".to_owned(),
            false => format!("the configuration was read again; {}", said.join("; ")),
        }
    }
}

/// What a domain answers with: a service answers nothing.
fn is_mixture(key: &str) -> bool {
    key.starts_with("domains.") && key.ends_with(".adapters")
}

/// Returns what a running service goes by after a reload: the new values, but what it cannot take up as it was.
pub fn applied(old: &Config, new: Config) -> Config {
    Config { model: old.model.clone(), log: old.log.clone(), ..new }
}

/// The values of all keys; a list is one value.
fn flatten(prefix: &str, value: &Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(entries) => {
            for (name, value) in entries {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, value, into);
            }
        }
        // What is not set.
        Value::Null => {}
        other => into.push((prefix.to_owned(), other.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_changed_key_is_said_with_what_becomes_of_it() {
        let old = Config::defaults().unwrap();
        let mut new = old.clone();
        new.lora.training.auto_train_threshold = 3;
        new.worker.nice = 5;
        new.model.threads = 7;
        new.console.wrap = !old.console.wrap;
        let rust =
            crate::config::DomainSection { description: Some("Rust".to_owned()), adapters: None };
        new.domains.insert("rust".to_owned(), rust);
        let changes = Changes::between(&old, &new);
        assert_eq!(
            changes.taken,
            ["lora.training.auto_train_threshold", "worker.nice", "domains.rust.description"]
        );
        assert_eq!(
            (changes.at_start, changes.unused),
            (vec!["model.threads".to_owned()], vec!["console.wrap".to_owned()])
        );
        assert_eq!(applied(&old, new).model, old.model);
        assert_eq!(Changes::between(&old, &old), Changes::default());
    }
}
