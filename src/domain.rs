//! The vocabulary that every layer shares: messages, marks, examples, identifiers.
//!
//! Plain data with no behaviour that needs a clock, a file or a tensor.

mod device;
mod route;
mod weighted;

use std::fmt;
use std::str::FromStr;

pub use device::DeviceChoice;
pub use route::{Route, RoutedMark, Routes};
use serde::{Deserialize, Serialize};
pub use weighted::WeightedAdapter;

/// The domain of marks and adapters when no other is named.
pub const DEFAULT_DOMAIN: &str = "general";

/// Who said a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Returns the role's name as chat templates spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said, as plain text.
    pub content: String,
}

impl Message {
    /// Makes a message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// Makes a message of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }

    /// Makes a system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: Role::System, content: content.into() }
    }
}

/// A user's judgement of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// The answer is right as it stands.
    Good,
    /// The answer should be improved.
    Medium,
    /// The answer must never be given like this again.
    Critical,
    /// The user gave a better answer and no other mark.
    Fix,
}

impl Mark {
    /// Returns the mark's name as it is typed and stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Mark::Good => "good",
            Mark::Medium => "medium",
            Mark::Critical => "critical",
            Mark::Fix => "fix",
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "good" => Ok(Mark::Good),
            "medium" => Ok(Mark::Medium),
            "critical" => Ok(Mark::Critical),
            "fix" => Ok(Mark::Fix),
            other => Err(format!("unknown mark \"{other}\": use good, medium, critical or fix")),
        }
    }
}

/// What becomes of secrets in marks: keys and passwords that were pasted into a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretPolicy {
    /// They are replaced before anything is stored.
    Redact,
    /// A mark with one is not stored.
    Refuse,
    /// Nobody looks.
    Off,
}

/// Whether the training process gives up access to files and network that its job does not need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confinement {
    /// Where the kernel can.
    Try,
    /// A job does not run where the kernel cannot.
    Require,
    /// No.
    Off,
}

/// A pair that the trainer can learn from: a conversation and the answer it should get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainExample {
    /// Row id of the mark it comes from.
    pub id: i64,
    /// The conversation up to and including the user's last message.
    pub messages: Vec<Message>,
    /// The answer to learn.
    pub target: String,
    /// The mark's weight (1, 3 or 10 by default).
    pub weight: f64,
}

/// The file beside a job's checkpoints to which its worker appends each step, one [`CurvePoint`] as JSON a line.
pub const CURVE_FILE: &str = "curve.jsonl";

/// One optimiser step of a job: a point of its loss curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The step, from 1.
    pub step: usize,
    /// The step's loss, anchor included: nats per answer token.
    pub loss: f64,
    /// The step size.
    pub learning_rate: f64,
}

/// Why a text is not a valid [`AdapterId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid adapter id \"{0}\": use 1 to 64 of a-z, 0-9, '_' and '-', starting with a letter or digit"
)]
pub struct InvalidAdapterId(pub String);

/// The name of an adapter: `^[a-z0-9][a-z0-9_-]{0,63}$`, and never `base`.
///
/// Paths are derived from ids, so nothing else may become one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdapterId(String);

impl AdapterId {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AdapterId {
    type Err = InvalidAdapterId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = (1..=64).contains(&bytes.len())
            && plain(bytes[0])
            && bytes.iter().all(|&c| plain(c) || c == b'_' || c == b'-')
            && text != "base";
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidAdapterId(text.to_owned())) }
    }
}

impl TryFrom<String> for AdapterId {
    type Error = InvalidAdapterId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AdapterId> for String {
    fn from(id: AdapterId) -> Self {
        id.0
    }
}

impl fmt::Display for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks the name of a domain: `^[a-z0-9][a-z0-9_-]{0,63}$`, as in `[domains.NAME]`.
///
/// # Errors
/// Any other text, with the rule.
pub fn domain_name(text: &str) -> Result<String, String> {
    match text.parse::<AdapterId>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "invalid domain \"{text}\": use 1 to 64 of a-z, 0-9, '_' and '-', starting with a letter or digit"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_plain_names() {
        assert_eq!(domain_name("rust").as_deref(), Ok("rust"));
        for bad in ["", "../../etc", "a b", "Rust"] {
            assert!(domain_name(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn adapter_ids_cannot_leave_their_directory() {
        for bad in ["", "../x", "a/b", "A", ".", "-a", "_a", "base", "a b", "a\0", &"a".repeat(65)]
        {
            assert!(bad.parse::<AdapterId>().is_err(), "{bad:?} must be refused");
        }
        for good in ["a", "0", "lora_20261122_101500_ab12", "rust-style", &"a".repeat(64)] {
            assert!(good.parse::<AdapterId>().is_ok(), "{good:?} must be taken");
        }
    }
}
