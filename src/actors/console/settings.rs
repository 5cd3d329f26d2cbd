//! The settings of the session: how answers are sampled, and whether jobs start by themselves.
//!
//! They start as the configuration says and are checked by its rules; `/set` changes them until the program ends.

use crate::config::{Config, Flag, GenerationSection, LoadArgs, Revisions, Seed};
use crate::engine::Sampling;
use crate::plan;

/// The settings that `/set` knows, in the order shown, with their keys in the configuration.
const KEYS: &[(&str, &str)] = &[
    ("temperature", "generation.temperature"),
    ("top_k", "generation.top_k"),
    ("top_p", "generation.top_p"),
    ("min_p", "generation.min_p"),
    ("repetition_penalty", "generation.repetition_penalty"),
    ("max_tokens", "generation.max_tokens"),
    ("seed", "generation.seed"),
    ("stop", "generation.stop"),
    ("revisions", "lora.training.revisions"),
    ("revision_candidates", "lora.training.revision_candidates"),
    ("revision_threshold", "lora.training.revision_threshold"),
    ("auto_train", "lora.training.auto_train"),
    ("auto_train_threshold", "lora.training.auto_train_threshold"),
];

/// Share of equal letters below which a suggestion is a guess.
const CLOSE_ENOUGH: f64 = 0.5;

/// Earlier turns that the built-in model can follow: nearly all it was trained on are of one or two.
const BUILTIN_TURNS: usize = 1;

/// The settings in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    generation: GenerationSection,
    history_turns: usize,
    builtin: bool,
    revisions: Revisions,
    revision_candidates: usize,
    revision_threshold: f64,
    auto_train: bool,
    auto_train_threshold: usize,
}

/// What a change was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// How answers are sampled and revised.
    Sampling,
    /// Whether and when jobs start by themselves: the feedback actor must be told.
    AutoTrain,
}

impl Settings {
    /// Takes the values of the configuration, for the built-in model or another.
    pub fn new(config: &Config, builtin: bool) -> Self {
        Self {
            generation: config.generation.clone(),
            history_turns: history_turns(&config.generation, builtin),
            builtin,
            revisions: config.lora.training.revisions,
            revision_candidates: config.lora.training.revision_candidates,
            revision_threshold: config.lora.training.revision_threshold,
            auto_train: config.lora.training.auto_train,
            auto_train_threshold: config.lora.training.auto_train_threshold,
        }
    }

    /// Whether a revision is rarely worth taking: the built-in model hardly understands a note.
    pub fn too_weak_to_revise(&self) -> bool {
        self.builtin
    }

    /// Fits what is "auto" to another model.
    pub fn adopt(&mut self, builtin: bool) {
        self.builtin = builtin;
        self.history_turns = history_turns(&self.generation, builtin);
    }

    /// Returns the sampling of the next answer; `draw` gives the seed when none is fixed.
    pub fn sampling(&self, draw: impl FnOnce() -> u64) -> Sampling {
        plan::sampling(&self.generation, draw)
    }

    /// Returns how many earlier turns the model sees with a new question.
    pub fn history_turns(&self) -> usize {
        self.history_turns
    }

    /// Returns the system message; empty for none.
    pub fn system(&self) -> &str {
        &self.generation.system
    }

    /// Returns the number of marks that start a job; `None` when jobs do not start by themselves.
    pub fn threshold(&self) -> Option<usize> {
        self.auto_train.then_some(self.auto_train_threshold)
    }

    /// Returns what becomes of a note without a better answer.
    pub fn revisions(&self) -> Revisions {
        self.revisions
    }

    /// Returns how often the model answers again.
    pub fn revision_candidates(&self) -> usize {
        self.revision_candidates
    }

    /// Returns how much the note must help, nats per token.
    pub fn revision_threshold(&self) -> f64 {
        self.revision_threshold
    }

    /// Returns every setting, one a line.
    pub fn list(&self) -> String {
        let width = KEYS.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line = |(name, _): &(&str, &str)| format!("{name:<width$} = {}", self.value(name));
        KEYS.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Returns one setting as `name = value`.
    ///
    /// # Errors
    /// A key that is none, with the nearest one.
    pub fn show(&self, key: &str) -> Result<String, String> {
        let (name, _) = find(key)?;
        Ok(format!("{name} = {}", self.value(name)))
    }

    /// Changes a setting.
    ///
    /// # Errors
    /// An unknown key, a value of another type or out of range; nothing is changed then.
    pub fn change(&mut self, key: &str, value: &str) -> Result<Changed, String> {
        let (name, full) = find(key)?;
        let value = match (name, value) {
            ("auto_train", "on") => "true",
            ("auto_train", "off") => "false",
            (_, value) => value,
        };
        let config = checked(full, value)?;
        let (from, to) = (config.generation, &mut self.generation);
        match name {
            "temperature" => to.temperature = from.temperature,
            "top_k" => to.top_k = from.top_k,
            "top_p" => to.top_p = from.top_p,
            "min_p" => to.min_p = from.min_p,
            "repetition_penalty" => to.repetition_penalty = from.repetition_penalty,
            "max_tokens" => to.max_tokens = from.max_tokens,
            "seed" => to.seed = from.seed,
            "stop" => to.stop = from.stop,
            "revisions" => self.revisions = config.lora.training.revisions,
            "revision_candidates" => {
                self.revision_candidates = config.lora.training.revision_candidates;
            }
            "revision_threshold" => {
                self.revision_threshold = config.lora.training.revision_threshold;
            }
            _ => {
                let training = config.lora.training;
                if name == "auto_train" {
                    self.auto_train = training.auto_train;
                } else {
                    self.auto_train_threshold = training.auto_train_threshold;
                }
                return Ok(Changed::AutoTrain);
            }
        }
        Ok(Changed::Sampling)
    }

    fn value(&self, name: &str) -> String {
        let g = &self.generation;
        match name {
            "temperature" => g.temperature.to_string(),
            "top_k" => g.top_k.to_string(),
            "top_p" => g.top_p.to_string(),
            "min_p" => g.min_p.to_string(),
            "repetition_penalty" => g.repetition_penalty.to_string(),
            "max_tokens" => g.max_tokens.to_string(),
            "seed" => match g.seed {
                Seed::Random => "random".to_owned(),
                Seed::Fixed(seed) => seed.to_string(),
            },
            "stop" => format!("{:?}", g.stop),
            "revisions" => match self.revisions {
                Revisions::Ask => "ask".to_owned(),
                Revisions::Auto => "auto".to_owned(),
                Revisions::Off => "off".to_owned(),
            },
            "revision_candidates" => self.revision_candidates.to_string(),
            "revision_threshold" => self.revision_threshold.to_string(),
            "auto_train" => self.auto_train.to_string(),
            _ => self.auto_train_threshold.to_string(),
        }
    }
}

fn history_turns(generation: &GenerationSection, builtin: bool) -> usize {
    generation.history_turns.resolve(|| if builtin { BUILTIN_TURNS } else { usize::MAX })
}

/// Finds a setting by its short or its full name.
fn find(key: &str) -> Result<(&'static str, &'static str), String> {
    if let Some(found) = KEYS.iter().find(|(name, full)| *name == key || *full == key) {
        return Ok(*found);
    }
    let nearest = KEYS
        .iter()
        .map(|(name, _)| (*name, strsim::normalized_damerau_levenshtein(key, name)))
        .filter(|(_, likeness)| *likeness >= CLOSE_ENOUGH)
        .max_by(|a, b| a.1.total_cmp(&b.1));
    Err(match nearest {
        Some((name, _)) => format!("unknown setting \"{key}\": did you mean {name}?"),
        None => format!("unknown setting \"{key}\": /set lists those of the session"),
    })
}

/// Lets the configuration check one value by its own rules.
fn checked(key: &'static str, value: &str) -> Result<Config, String> {
    let flags = vec![Flag { name: "/set", key, value: value.to_owned() }];
    match Config::load(&LoadArgs { flags, ..LoadArgs::default() }) {
        Ok(loaded) => Ok(loaded.config),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new(&Config::defaults().expect("the defaults fit"), true)
    }

    #[test]
    fn every_setting_is_shown_and_takes_its_own_value_back() {
        let mut settings = settings();
        for (name, full) in KEYS {
            let shown = settings.show(name).expect("a known key");
            let value = shown.split_once(" = ").expect("name = value").1.to_owned();
            let before = settings.clone();
            settings.change(full, &value).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(settings, before, "{name}");
            assert!(settings.list().contains(&value));
        }
    }

    #[test]
    fn a_change_holds_for_the_next_answer() {
        let mut settings = settings();
        assert_eq!(settings.change("temperature", "0"), Ok(Changed::Sampling));
        assert_eq!(settings.change("seed", "7"), Ok(Changed::Sampling));
        assert_eq!(settings.change("stop", "[\"END\", \"###\"]"), Ok(Changed::Sampling));
        let sampling = settings.sampling(|| panic!("the seed is fixed"));
        assert_eq!((sampling.temperature, sampling.seed), (0.0, 7));
        assert_eq!(sampling.stop, ["END", "###"]);
        assert_eq!(settings.change("seed", "random"), Ok(Changed::Sampling));
        assert_eq!(settings.sampling(|| 99).seed, 99);
    }

    #[test]
    fn automatic_training_can_be_switched() {
        let mut settings = settings();
        assert_eq!(settings.change("auto_train", "off"), Ok(Changed::AutoTrain));
        assert_eq!(settings.threshold(), None);
        assert_eq!(settings.change("auto_train", "true"), Ok(Changed::AutoTrain));
        assert_eq!(settings.change("auto_train_threshold", "4"), Ok(Changed::AutoTrain));
        assert_eq!(settings.threshold(), Some(4));
    }

    #[test]
    fn bad_values_and_keys_are_refused_with_what_would_be_right() {
        let mut settings = settings();
        let before = settings.clone();
        for (key, value, words) in [
            ("temprature", "1", "did you mean temperature?"),
            ("color", "red", "/set lists"),
            ("temperature", "9", "from 0 to 2"),
            ("max_tokens", "many", "a whole number"),
            ("auto_train", "maybe", "true or false"),
        ] {
            let error = settings.change(key, value).expect_err(key);
            assert!(error.contains(words) && !error.contains('\n'), "{key}: {error}");
        }
        assert_eq!(settings, before);
    }
}
