//! What each key may hold. The "Range:" lines of `config/default.toml` are checked against this table by a test.

use std::fmt;

use config::ValueKind;

use super::DeviceChoice;
use crate::domain::AdapterId;

/// Most texts in `generation.stop`: each is looked for at every token.
const MAX_STOP_TEXTS: usize = 16;
/// Largest seed: TOML's whole numbers are signed.
const MAX_SEED: i64 = i64::MAX;

const MODULES: &[&str] =
    &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// What a key may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds, both included.
    Whole(i64, i64),
    /// A number within bounds, both included.
    Fraction(f64, f64),
    /// A word, or what the other rule says.
    WordOr(&'static str, &'static Rule),
    /// Any text.
    Text,
    /// Any text but the empty one.
    SomeText,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// The name of a device.
    Device,
    /// A list of texts.
    Texts,
    /// A list of adapters with weights.
    Mixture,
    /// A list of these words, each once.
    Subset(&'static [&'static str]),
}

/// Why a value breaks its rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breach {
    /// The value is of another type.
    Type,
    /// The type is right, the value is not.
    Range,
}

const LEARNING_RATE: Rule = Rule::Fraction(1e-7, 1.0);
const HISTORY_TURNS: Rule = Rule::Whole(0, 10_000);
const MIN_STEPS: Rule = Rule::Whole(0, 100_000);
const NEIGHBOUR_PROMPTS: Rule = Rule::Whole(0, 200);
const ANCHOR_PROMPTS: Rule = Rule::Whole(0, 64);
const ANCHOR: Rule = Rule::Fraction(0.0, 100.0);
const SEED: Rule = Rule::Whole(0, MAX_SEED);
const WEIGHT: Rule = Rule::Fraction(0.01, 1000.0);
const SHARE: Rule = Rule::Fraction(0.0, 1.0);
const THREADS: Rule = Rule::Whole(0, 1024);
const MEBIBYTES: Rule = Rule::Whole(0, 16_777_216);
const KEPT: Rule = Rule::Whole(0, 1_000_000);
const MILLISECONDS: Rule = Rule::Whole(1, 3_600_000);

/// Every key of the configuration but those of `[domains.NAME]`, in the order of `config/default.toml`.
pub(super) const RULES: &[(&str, Rule)] = &[
    ("model.source", Rule::SomeText),
    ("model.device", Rule::Device),
    ("model.context_length", Rule::Whole(0, 1_048_576)),
    ("model.context_overflow", Rule::Choice(&["error", "slide"])),
    ("model.cache_mb", MEBIBYTES),
    ("model.threads", THREADS),
    ("model.quantize", Rule::Choice(&["none", "q8_0", "q4_0", "q4_k"])),
    ("generation.temperature", Rule::Fraction(0.0, 2.0)),
    ("generation.top_k", Rule::Whole(0, 1_000_000)),
    ("generation.top_p", Rule::Fraction(0.01, 1.0)),
    ("generation.min_p", SHARE),
    ("generation.repetition_penalty", Rule::Fraction(1.0, 2.0)),
    ("generation.max_tokens", Rule::Whole(1, 131_072)),
    ("generation.seed", Rule::WordOr("random", &SEED)),
    ("generation.stop", Rule::Texts),
    ("generation.history_turns", Rule::WordOr("auto", &HISTORY_TURNS)),
    ("generation.system", Rule::Text),
    ("generation.routing", Rule::Bool),
    ("generation.routing_margin", Rule::Fraction(-2.0, 2.0)),
    ("feedback.buffer_limit", Rule::Whole(10, 100_000)),
    ("feedback.weight_good", WEIGHT),
    ("feedback.weight_medium", WEIGHT),
    ("feedback.weight_critical", WEIGHT),
    ("feedback.weight_fix", WEIGHT),
    ("feedback.secrets", Rule::Choice(&["redact", "refuse", "off"])),
    ("lora.rank", Rule::Whole(1, 256)),
    ("lora.alpha", Rule::Fraction(0.1, 1024.0)),
    ("lora.rslora", Rule::Bool),
    ("lora.dora", Rule::Bool),
    ("lora.dropout", Rule::Fraction(0.0, 0.9)),
    ("lora.target_modules", Rule::Subset(MODULES)),
    ("lora.training.learning_rate", Rule::WordOr("auto", &LEARNING_RATE)),
    ("lora.training.batch_size", Rule::Whole(1, 256)),
    ("lora.training.epochs", Rule::Whole(1, 1000)),
    ("lora.training.min_steps", Rule::WordOr("auto", &MIN_STEPS)),
    ("lora.training.auto_train", Rule::Bool),
    ("lora.training.auto_train_threshold", Rule::Whole(1, 10_000)),
    ("lora.training.weighting", Rule::Choice(&["loss", "sampling"])),
    ("lora.training.revisions", Rule::Choice(&["ask", "auto", "off"])),
    ("lora.training.revision_candidates", Rule::Whole(1, 16)),
    ("lora.training.revision_threshold", Rule::Fraction(0.0, 10.0)),
    ("lora.training.preference", Rule::Fraction(0.0, 100.0)),
    ("lora.training.preference_beta", Rule::Fraction(0.001, 10.0)),
    ("lora.training.warmup_ratio", Rule::Fraction(0.0, 0.5)),
    ("lora.training.seed", SEED),
    ("lora.training.timeout_minutes", Rule::Whole(1, 10_080)),
    ("lora.training.max_grad_norm", Rule::Fraction(0.0, 1000.0)),
    ("lora.training.weight_decay", SHARE),
    ("lora.training.from", Rule::Choice(&["continue", "fresh", "delta"])),
    ("lora.training.replay", Rule::Whole(0, 10_000)),
    ("lora.training.anchor", Rule::WordOr("auto", &ANCHOR)),
    ("lora.training.anchor_prompts", Rule::WordOr("auto", &ANCHOR_PROMPTS)),
    ("lora.training.max_share_percent", Rule::Whole(1, 100)),
    ("lora.training.checkpoint_every_steps", Rule::Whole(1, 100_000)),
    ("lora.training.paraphrase", Rule::WordOr("auto", &Rule::Bool)),
    ("lora.training.neighbour_prompts", Rule::WordOr("auto", &NEIGHBOUR_PROMPTS)),
    ("lora.training.memory_limit_mb", MEBIBYTES),
    ("lora.gate.max_kl", Rule::Fraction(0.0001, 100.0)),
    ("lora.gate.rule_max_kl", Rule::Fraction(0.0001, 100.0)),
    ("lora.gate.max_taken_over", SHARE),
    ("lora.gate.confidence", Rule::Fraction(0.5, 0.999)),
    ("lora.gate.bootstrap_samples", Rule::Whole(100, 100_000)),
    ("queue.max_queued", Rule::Whole(1, 10_000)),
    ("queue.max_attempts", Rule::Whole(1, 100)),
    ("queue.backoff_base_ms", MILLISECONDS),
    ("queue.backoff_max_ms", MILLISECONDS),
    ("queue.second_instance", Rule::Choice(&["chat", "refuse"])),
    ("queue.keep_jobs", KEPT),
    ("queue.keep_adapters", KEPT),
    ("worker.threads", THREADS),
    ("worker.nice", Rule::Whole(0, 19)),
    ("worker.idle", Rule::Bool),
    ("worker.memory_limit_mb", MEBIBYTES),
    ("worker.oom_score_adj", Rule::Whole(0, 1000)),
    ("worker.core_dumps", Rule::Bool),
    ("worker.landlock", Rule::Choice(&["try", "require", "off"])),
    ("worker.heartbeat_timeout_s", Rule::Whole(5, 86_400)),
    ("console.show_usage", Rule::Bool),
    ("console.history_limit", Rule::Whole(0, 100_000)),
    ("console.wrap", Rule::Bool),
    ("log.level", Rule::Choice(&["off", "error", "warn", "info", "debug", "trace"])),
    ("log.file", Rule::Bool),
    ("log.keep_days", Rule::Whole(1, 3650)),
];

/// The keys of a domain.
const DOMAIN_KEYS: [(&str, Rule); 2] = [("description", Rule::Text), ("adapters", Rule::Mixture)];

/// Returns the rule of a key (`lora.rank`, `domains.rust.description`).
pub(super) fn rule_of(key: &str) -> Option<Rule> {
    if let Some(rest) = key.strip_prefix("domains.") {
        let (name, field) = rest.split_once('.')?;
        let known = DOMAIN_KEYS.iter().find(|(key, _)| *key == field && is_domain_name(name));
        return known.map(|(_, rule)| *rule);
    }
    RULES.iter().find(|(known, _)| *known == key).map(|(_, rule)| *rule)
}

/// Whether some key lies below this one (`lora`, `lora.training`, `domains.rust`).
pub(super) fn is_section(key: &str) -> bool {
    if key == "domains" || key.strip_prefix("domains.").is_some_and(is_domain_name) {
        return true;
    }
    RULES.iter().any(|(known, _)| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// Whether this may name a domain: the rule of adapter ids, as ids are derived from it.
fn is_domain_name(name: &str) -> bool {
    name.parse::<AdapterId>().is_ok()
}

impl Rule {
    /// Whether a bare word of an environment variable or of `--set` is a text for this rule.
    pub(super) fn takes_bare_text(self) -> bool {
        matches!(self, Rule::Text | Rule::SomeText | Rule::Choice(_) | Rule::Device)
    }

    /// Whether the rule wants a list.
    pub(super) fn takes_list(self) -> bool {
        matches!(self, Rule::Texts | Rule::Mixture | Rule::Subset(_))
    }

    /// Checks a value.
    pub(super) fn check(self, value: &ValueKind) -> Result<(), Breach> {
        let within = |inside: bool| if inside { Ok(()) } else { Err(Breach::Range) };
        match (self, value) {
            (Rule::Bool, ValueKind::Boolean(_)) | (Rule::Text, ValueKind::String(_)) => Ok(()),
            (Rule::Whole(low, high), ValueKind::I64(n)) => within((low..=high).contains(n)),
            (Rule::Fraction(low, high), ValueKind::I64(n)) => {
                within((low..=high).contains(&(*n as f64)))
            }
            (Rule::Fraction(low, high), ValueKind::Float(x)) => within((low..=high).contains(x)),
            (Rule::WordOr(word, _), ValueKind::String(text)) if text == word => Ok(()),
            (Rule::WordOr(_, rule), _) => rule.check(value),
            (Rule::SomeText, ValueKind::String(text)) => within(!text.trim().is_empty()),
            (Rule::Choice(words), ValueKind::String(text)) => {
                within(words.contains(&text.as_str()))
            }
            (Rule::Device, ValueKind::String(text)) => within(text.parse::<DeviceChoice>().is_ok()),
            (Rule::Texts, ValueKind::Array(items)) => {
                let texts = texts_of(items)?;
                within(texts.len() <= MAX_STOP_TEXTS && texts.iter().all(|text| !text.is_empty()))
            }
            (Rule::Mixture, ValueKind::Array(items)) => {
                let texts = texts_of(items)?;
                within(
                    !texts.is_empty()
                        && texts.iter().all(|text| super::mixture::term(text).is_ok()),
                )
            }
            (Rule::Subset(words), ValueKind::Array(items)) => {
                let mut texts = texts_of(items)?;
                let known = !texts.is_empty() && texts.iter().all(|text| words.contains(text));
                let count = texts.len();
                texts.sort_unstable();
                texts.dedup();
                within(known && texts.len() == count)
            }
            _ => Err(Breach::Type),
        }
    }
}

fn texts_of(items: &[config::Value]) -> Result<Vec<&str>, Breach> {
    items
        .iter()
        .map(|item| match &item.kind {
            ValueKind::String(text) => Ok(text.as_str()),
            _ => Err(Breach::Type),
        })
        .collect()
}

/// Describes what is allowed, as the "Range:" lines of `config/default.toml` say it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Bool => f.write_str("true or false"),
            Rule::Whole(low, high) => write!(f, "a whole number from {low} to {high}"),
            Rule::Fraction(low, high) => write!(f, "a number from {low} to {high}"),
            Rule::WordOr(word, rule) => write!(f, "\"{word}\" or {rule}"),
            Rule::Text => f.write_str("a text"),
            Rule::SomeText => f.write_str("a text, not empty"),
            Rule::Choice(words) => {
                let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                match quoted.split_last() {
                    Some((last, rest)) if !rest.is_empty() => {
                        write!(f, "{} or {last}", rest.join(", "))
                    }
                    _ => f.write_str(&quoted.concat()),
                }
            }
            Rule::Device => f.write_str("\"auto\", \"cpu\", \"cuda\", \"cuda:N\" or \"metal\""),
            Rule::Texts => write!(f, "a list of at most {MAX_STOP_TEXTS} texts, none empty"),
            Rule::Mixture => f.write_str(
                "a list of one or more of ID, ID:WEIGHT, \"live\" and \"live:WEIGHT\", weights above 0 up to 10",
            ),
            Rule::Subset(words) => {
                let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                write!(f, "a list of one or more of {}, each once", quoted.join(", "))
            }
        }
    }
}

/// Says what would be right instead of a key that does not exist.
pub(super) fn remedy_for_unknown(key: &str) -> String {
    if let Some(nearest) = nearest_key(key) {
        return format!("did you mean \"{nearest}\"?");
    }
    if key.starts_with("domains.") {
        return "use [domains.NAME] with the keys \"description\" and \"adapters\", NAME of a-z, 0-9, '_' and '-'"
            .to_owned();
    }
    match key.rsplit_once('.') {
        Some((section, _)) if is_section(section) => {
            let prefix = format!("{section}.");
            let names: Vec<&str> = RULES
                .iter()
                .filter_map(|(known, _)| known.strip_prefix(&prefix))
                .filter(|name| !name.contains('.'))
                .collect();
            format!("[{section}] has {}", names.join(", "))
        }
        _ => "remove it; `shammah config show` lists every key".to_owned(),
    }
}

/// Returns the names of the keys that a job may have of its own, those of `[lora]` and `[lora.training]`, with their
/// whole keys.
pub(super) fn job_keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    RULES.iter().filter_map(|(key, _)| {
        let rest = key.strip_prefix("lora.")?;
        let name = rest.strip_prefix("training.").unwrap_or(rest);
        (!name.contains('.')).then_some((name, *key))
    })
}

/// Finds the known key that is spelled most alike, if any is close.
fn nearest_key(key: &str) -> Option<&'static str> {
    /// Below this share of equal letters a suggestion is a guess.
    const CLOSE: f64 = 0.7;
    let leaf = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let wanted = leaf(key);
    let likeness = |known: &str| {
        let whole = strsim::normalized_damerau_levenshtein(key, known);
        // The right name in the wrong section counts nearly as much as a slip of the pen.
        let name = strsim::normalized_damerau_levenshtein(&wanted, &leaf(known)) * 0.9;
        whole.max(name)
    };
    RULES
        .iter()
        .map(|(known, _)| (*known, likeness(known)))
        .filter(|(_, likeness)| *likeness >= CLOSE)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(known, _)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_and_a_wrong_section_find_their_key() {
        assert_eq!(nearest_key("generation.temprature"), Some("generation.temperature"));
        assert_eq!(nearest_key("generatoin.top_k"), Some("generation.top_k"));
        assert_eq!(nearest_key("lora.learning_rate"), Some("lora.training.learning_rate"));
        assert_eq!(nearest_key("lora.training.seeed"), Some("lora.training.seed"));
        assert_eq!(nearest_key("color.scheme"), None);
    }

    #[test]
    fn bounds_are_included_and_nothing_beyond_them() {
        let rule = Rule::Fraction(0.0, 2.0);
        for good in [ValueKind::Float(0.0), ValueKind::I64(2), ValueKind::Float(1.5)] {
            assert_eq!(rule.check(&good), Ok(()));
        }
        for bad in [ValueKind::Float(f64::NAN), ValueKind::Float(-0.1), ValueKind::I64(3)] {
            assert_eq!(rule.check(&bad), Err(Breach::Range));
        }
        assert_eq!(rule.check(&ValueKind::Boolean(true)), Err(Breach::Type));
        assert_eq!(Rule::Whole(0, 5).check(&ValueKind::Float(1.0)), Err(Breach::Type));
    }
    #[test]
    fn the_documented_range_of_each_default_is_its_rule() {
        let mut section = "";
        let mut range = "";
        let mut documented = Vec::new();
        for line in super::super::DEFAULT_TOML.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            } else if let Some(text) = line.strip_prefix("# Range: ") {
                range = text.trim_end_matches('.');
            } else if let Some((key, _)) = line.split_once(" = ")
                && !line.starts_with('#')
            {
                let key = format!("{section}.{key}");
                let rule = rule_of(&key).expect("the key has a rule");
                assert_eq!(range, rule.to_string(), "{key}");
                documented.push(key);
            }
        }
        documented.retain(|key| !key.starts_with("domains."));
        let known: Vec<&str> = RULES.iter().map(|(key, _)| *key).collect();
        assert_eq!(documented, known, "the same keys in the same order");
    }
}
