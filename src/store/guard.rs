//! What becomes of secrets: in marks before they are stored, in examples before they are learned.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

use super::Store;
use super::error::StoreError;
use super::feedback::{FeedbackEdit, FeedbackRow, NewFeedback};
use super::jobs::ExampleRole;
use crate::domain::{Message, SecretPolicy, TrainExample};
use crate::secrets;

/// A secret in a mark, or the place of one that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretFound {
    /// Where: `message 1`, `response`, `note`, `fix`.
    pub field: String,
    /// The rule that found it.
    pub rule: &'static str,
}

impl fmt::Display for SecretFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.rule, self.field)
    }
}

/// Names secrets in one line: `github-token in note, jwt in response`.
pub fn listed(found: &[SecretFound]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Examples as they may be learned, and what was replaced in which of them.
pub type Learnable = (Vec<TrainExample>, Vec<(i64, Vec<SecretFound>)>);

impl FeedbackRow {
    /// Returns the secrets that the mark holds.
    pub fn secrets(&self) -> Vec<SecretFound> {
        self.look(|text| secrets::scan(text).into_iter().map(|hit| hit.rule).collect())
    }

    /// Returns what was replaced before the mark was stored.
    pub fn redactions(&self) -> Vec<SecretFound> {
        self.look(secrets::redacted)
    }

    fn look(&self, rules: impl Fn(&str) -> Vec<&'static str>) -> Vec<SecretFound> {
        let messages = self.messages.iter().enumerate().map(|(at, m)| (message(at), &m.content));
        let fields = [("response", Some(&self.response)), ("note", self.note.as_ref())];
        let fields = fields.into_iter().chain([("fix", self.fix.as_ref())]);
        let fields = fields.filter_map(|(name, text)| Some((name.to_owned(), text?)));
        let found = messages.chain(fields).flat_map(|(field, text)| {
            rules(text).into_iter().map(move |rule| SecretFound { field: field.clone(), rule })
        });
        found.collect()
    }
}

impl Store {
    /// Sets what becomes of secrets; a store that was not told replaces them.
    #[must_use]
    pub fn with_secrets(mut self, policy: SecretPolicy) -> Self {
        self.secrets = policy;
        self
    }

    /// Returns the examples of a job in one role as they may be learned, and what was replaced in which of them.
    ///
    /// # Errors
    /// An example with a secret where such are refused; otherwise as [`Store::job_examples`].
    pub fn learnable_examples(&self, job: i64, role: ExampleRole) -> Result<Learnable, StoreError> {
        let mut examples = self.job_examples(job, role)?;
        let mut replaced = Vec::new();
        if self.secrets == SecretPolicy::Off {
            return Ok((examples, replaced));
        }
        for example in &mut examples {
            let mut found = clean_messages(&mut example.messages);
            clean("target", &mut example.target, &mut found);
            if found.is_empty() {
                continue;
            }
            if self.secrets == SecretPolicy::Refuse {
                let what = listed(&found);
                return Err(StoreError::SecretInExample { feedback: example.id, what });
            }
            replaced.push((example.id, found));
        }
        Ok((examples, replaced))
    }

    /// Returns a mark as it may be stored.
    pub(super) fn guarded<'a>(
        &self,
        new: &'a NewFeedback,
    ) -> Result<Cow<'a, NewFeedback>, StoreError> {
        if self.secrets == SecretPolicy::Off {
            return Ok(Cow::Borrowed(new));
        }
        let mut safe = new.clone();
        let mut found = clean_messages(&mut safe.messages);
        clean("response", &mut safe.response, &mut found);
        clean_optional("note", &mut safe.note, &mut found);
        clean_optional("fix", &mut safe.fix, &mut found);
        self.permit(&found)?;
        Ok(if found.is_empty() { Cow::Borrowed(new) } else { Cow::Owned(safe) })
    }

    /// Returns a change as it may be stored.
    pub(super) fn guarded_edit(&self, edit: &FeedbackEdit) -> Result<FeedbackEdit, StoreError> {
        let mut safe = edit.clone();
        if self.secrets == SecretPolicy::Off {
            return Ok(safe);
        }
        let mut found = Vec::new();
        if let Some(note) = &mut safe.note {
            clean_optional("note", note, &mut found);
        }
        clean_optional("fix", &mut safe.fix, &mut found);
        self.permit(&found)?;
        Ok(safe)
    }

    /// Returns a text that is only learned against, without its secrets.
    pub(super) fn cleaned(&self, text: &str) -> String {
        let safe = (self.secrets != SecretPolicy::Off).then(|| secrets::redact(text)).flatten();
        safe.map_or_else(|| text.to_owned(), |(safe, _)| safe)
    }

    fn permit(&self, found: &[SecretFound]) -> Result<(), StoreError> {
        if self.secrets == SecretPolicy::Refuse && !found.is_empty() {
            return Err(StoreError::HoldsSecret(listed(found)));
        }
        Ok(())
    }
}

/// Replaces the secrets of a mark that is stored, and returns what was found.
pub(super) fn clean_row(row: &mut FeedbackRow) -> Vec<SecretFound> {
    let mut found = clean_messages(&mut row.messages);
    clean("response", &mut row.response, &mut found);
    clean_optional("note", &mut row.note, &mut found);
    clean_optional("fix", &mut row.fix, &mut found);
    found
}

fn message(at: usize) -> String {
    format!("message {}", at + 1)
}

fn clean_messages(messages: &mut [Message]) -> Vec<SecretFound> {
    let mut found = Vec::new();
    for (at, one) in messages.iter_mut().enumerate() {
        clean(&message(at), &mut one.content, &mut found);
    }
    found
}

fn clean_optional(field: &str, text: &mut Option<String>, found: &mut Vec<SecretFound>) {
    if let Some(text) = text {
        clean(field, text, found);
    }
}

fn clean(field: &str, text: &mut String, found: &mut Vec<SecretFound>) {
    if let Some((safe, rules)) = secrets::redact(text) {
        *text = safe;
        found.extend(rules.into_iter().map(|rule| SecretFound { field: field.to_owned(), rule }));
    }
}
