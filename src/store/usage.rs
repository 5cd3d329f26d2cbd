//! Usage: what answered, how fast, and how its answers were marked.

use rusqlite::{Row, named_params};
use serde::{Deserialize, Serialize};

use super::error::{StoreError, now};
use super::{Store, count, stored};
use crate::domain::AdapterId;

/// An adapter in an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsedAdapter {
    /// Its name.
    pub id: AdapterId,
    /// Its weight in the mixture.
    pub weight: f64,
}

/// An answer that was given.
#[derive(Debug, Clone, PartialEq)]
pub struct NewUsage {
    /// The name of the base model.
    pub base: String,
    /// The adapters that took part; none for the base alone.
    pub adapters: Vec<UsedAdapter>,
    /// Tokens read, those from the cache included.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub new_tokens: usize,
    /// Time to read the prompt.
    pub prefill_ms: f64,
    /// Time to write the answer.
    pub decode_ms: f64,
    /// Why the answer ended.
    pub finish_reason: String,
}

/// What an adapter, or the base alone, did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UsageSummary {
    /// The adapter; `None` for the base alone.
    pub adapter: Option<String>,
    /// Answers given.
    pub answers: usize,
    /// Tokens read.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub new_tokens: usize,
    /// Tokens written per second of writing; `None` before the first.
    pub tokens_per_second: Option<f64>,
    /// Answers marked good.
    pub good: usize,
    /// Answers marked medium.
    pub medium: usize,
    /// Answers marked critical.
    pub critical: usize,
    /// Answers that were only corrected.
    pub fix: usize,
}

impl Store {
    /// Records an answer and returns its row id.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn add_usage(&self, usage: &NewUsage) -> Result<i64, StoreError> {
        let adapters = serde_json::to_string(&usage.adapters)
            .map_err(|e| StoreError::bad_row("usage", "new", e))?;
        self.write(|db| {
            db.prepare_cached(
                "INSERT INTO usage (at, base, adapters, prompt_tokens, new_tokens, prefill_ms,
                                    decode_ms, finish_reason)
                 VALUES (:at, :base, :adapters, :prompt, :new, :prefill, :decode, :reason)",
            )?
            .execute(named_params! {
                ":at": now().timestamp_millis(),
                ":base": usage.base,
                ":adapters": adapters,
                ":prompt": stored(usage.prompt_tokens),
                ":new": stored(usage.new_tokens),
                ":prefill": usage.prefill_ms,
                ":decode": usage.decode_ms,
                ":reason": usage.finish_reason,
            })?;
            Ok(db.last_insert_rowid())
        })
    }

    /// Records which mark an answer got.
    ///
    /// # Errors
    /// When there is no such mark, or the database cannot be written.
    pub fn mark_usage(&self, usage: i64, feedback: i64) -> Result<(), StoreError> {
        self.write(|db| {
            db.execute("UPDATE usage SET feedback_id = ?2 WHERE id = ?1", (usage, feedback))?;
            Ok(())
        })
    }

    /// Counts answers and their marks for the base alone and for each adapter.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn usage(&self) -> Result<Vec<UsageSummary>, StoreError> {
        let sql = "
            SELECT json_extract(a.value, '$.id') AS adapter, count(*) AS answers,
                   sum(u.prompt_tokens) AS prompt_tokens, sum(u.new_tokens) AS new_tokens,
                   sum(u.decode_ms) AS decode_ms,
                   sum(f.mark IS 'good') AS good, sum(f.mark IS 'medium') AS medium,
                   sum(f.mark IS 'critical') AS critical, sum(f.mark IS 'fix') AS fix
            FROM usage u LEFT JOIN json_each(u.adapters) AS a
                 LEFT JOIN feedback f ON f.id = u.feedback_id
            GROUP BY 1 ORDER BY 1";
        self.read(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([], read_summary)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

fn read_summary(row: &Row<'_>) -> rusqlite::Result<UsageSummary> {
    /// Milliseconds in a second.
    const MILLIS: f64 = 1000.0;
    let decode_ms: f64 = row.get("decode_ms")?;
    let new_tokens = count(row, "new_tokens")?;
    Ok(UsageSummary {
        adapter: row.get("adapter")?,
        answers: count(row, "answers")?,
        prompt_tokens: count(row, "prompt_tokens")?,
        new_tokens,
        tokens_per_second: (decode_ms > 0.0).then(|| new_tokens as f64 * MILLIS / decode_ms),
        good: count(row, "good")?,
        medium: count(row, "medium")?,
        critical: count(row, "critical")?,
        fix: count(row, "fix")?,
    })
}
