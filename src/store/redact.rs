//! Secrets in what is stored already, in marks and outside of them: found, and replaced where they stand.

use rusqlite::{Connection, params};
use serde::Serialize;

use super::error::StoreError;
use super::feedback::{self, FeedbackRow};
use super::guard::{self, SecretFound};
use super::{Store, buffer};
use crate::domain::AdapterId;
use crate::secrets;

/// Texts outside of the marks: table, column, and how a row is named to people.
const ELSEWHERE: [(&str, &str, &str); 3] = [
    ("job_feedback", "target", "'example ' || feedback_id || ' of job ' || job_id"),
    ("jobs", "error", "'job ' || id"),
    ("events", "detail", "coalesce('job ' || job_id, 'adapter ' || adapter, 'event ' || id)"),
];

/// A secret in a text that is no mark.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SecretElsewhere {
    /// Where: `job 3`, `example 5 of job 3`.
    pub place: String,
    /// The rule that found it.
    pub rule: &'static str,
}

/// What was replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redacted {
    /// In which marks.
    pub marks: Vec<(i64, Vec<SecretFound>)>,
    /// Where else.
    pub elsewhere: Vec<SecretElsewhere>,
    /// The adapters that were trained on one of the marks and still know it.
    pub seen_by: Vec<AdapterId>,
    /// Whether the old texts are still in the database's log, because another process reads from it.
    pub still_in_log: bool,
}

impl Store {
    /// Returns the secrets in reasons, notes and examples of jobs.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn secrets_elsewhere(&self) -> Result<Vec<SecretElsewhere>, StoreError> {
        self.read(elsewhere)
    }

    /// Replaces every secret in marks and in what jobs left; what was there is overwritten.
    ///
    /// # Errors
    /// When the database cannot be read or written; then nothing has changed.
    pub fn redact_stored(&self) -> Result<Redacted, StoreError> {
        let done = self.write(|db| {
            let mut done = Redacted { elsewhere: elsewhere(db)?, ..Redacted::default() };
            for domain in feedback::domains(db)? {
                for mut row in buffer::rows_of_domain(db, &domain, None, true)? {
                    let found = guard::clean_row(&mut row);
                    if found.is_empty() {
                        continue;
                    }
                    store(db, &row)?;
                    done.seen_by.extend(feedback::seen_by(db, row.id)?);
                    done.marks.push((row.id, found));
                }
            }
            for (table, column, _) in ELSEWHERE {
                redact_column(db, table, column)?;
            }
            done.marks.sort_by_key(|(id, _)| *id);
            done.seen_by.sort_by(|a, b| a.as_str().cmp(b.as_str()));
            done.seen_by.dedup();
            Ok(done)
        })?;
        Ok(Redacted { still_in_log: !self.empty_log(), ..done })
    }
}

fn store(db: &Connection, row: &FeedbackRow) -> Result<(), StoreError> {
    let messages = serde_json::to_string(&row.messages)
        .map_err(|e| StoreError::bad_row("feedback", row.id, e))?;
    db.prepare_cached(
        "UPDATE feedback SET messages = ?2, response = ?3, note = ?4, fix = ?5 WHERE id = ?1",
    )?
    .execute(params![row.id, messages, row.response, row.note, row.fix])?;
    Ok(())
}

fn elsewhere(db: &Connection) -> Result<Vec<SecretElsewhere>, StoreError> {
    let mut found = Vec::new();
    for (table, column, name) in ELSEWHERE {
        let sql = format!("SELECT {name}, {column} FROM {table} WHERE {column} IS NOT NULL");
        let mut statement = db.prepare(&sql)?;
        let mut cursor = statement.query([])?;
        while let Some(row) = cursor.next()? {
            let (place, text): (String, String) = (row.get(0)?, row.get(1)?);
            let rules = secrets::scan(&text).into_iter().map(|hit| hit.rule);
            found.extend(rules.map(|rule| SecretElsewhere { place: place.clone(), rule }));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn redact_column(db: &Connection, table: &str, column: &str) -> Result<(), StoreError> {
    let mut statement =
        db.prepare(&format!("SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"))?;
    let texts: Vec<String> =
        statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let replace = format!("UPDATE {table} SET {column} = ?2 WHERE {column} = ?1");
    for text in texts {
        if let Some((clean, _)) = secrets::redact(&text) {
            db.execute(&replace, (text, clean))?;
        }
    }
    Ok(())
}
