//! The questions by which others are routed to domains.

use std::collections::BTreeMap;

use super::error::StoreError;
use super::{Store, count, stored};
use crate::domain::{Message, Role, RoutedMark};

/// Marks of a domain that are compared, the newest: more would cost time and hardly move the nearest.
const MARKS_OF_DOMAIN: usize = 200;

impl Store {
    /// Counts the marks of each domain, learned and archived ones too.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn marks_by_domain(&self) -> Result<BTreeMap<String, usize>, StoreError> {
        self.read(|db| {
            let sql =
                "SELECT domain, count(*) AS marks FROM feedback WHERE forgotten = 0 GROUP BY 1";
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, count(row, "marks")?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Returns the newest marks of each domain with their questions, learned and archived ones too.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn routed_marks(&self) -> Result<Vec<RoutedMark>, StoreError> {
        let sql = "SELECT id, domain, messages FROM (
                       SELECT id, domain, messages,
                              row_number() OVER (PARTITION BY domain ORDER BY id DESC) AS place
                       FROM feedback WHERE forgotten = 0)
                   WHERE place <= ?1 ORDER BY id";
        self.read(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let mut cursor = statement.query([stored(MARKS_OF_DOMAIN)])?;
            let mut marks = Vec::new();
            while let Some(row) = cursor.next()? {
                let (id, text): (i64, String) = (row.get("id")?, row.get("messages")?);
                let messages: Vec<Message> = serde_json::from_str(&text)
                    .map_err(|e| StoreError::bad_row("feedback", id, e.to_string()))?;
                let last = messages.into_iter().rev().find(|m| m.role == Role::User);
                let question = last.map(|m| m.content).unwrap_or_default();
                marks.push(RoutedMark { domain: row.get("domain")?, question });
            }
            Ok(marks)
        })
    }
}
