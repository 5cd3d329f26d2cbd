//! Whether the database is whole.

use super::error::StoreError;
use super::{Store, publish};
use crate::domain::AdapterId;

/// Problems that are named; a damaged file has thousands, and the first say enough.
const MAX_PROBLEMS: usize = 5;

impl Store {
    /// Looks for damage: pages, indexes and references between rows; returns what is wrong, nothing if all is well.
    ///
    /// # Errors
    /// When the database cannot be read at all.
    pub fn problems(&self) -> Result<Vec<String>, StoreError> {
        self.read(|db| {
            let mut problems = Vec::new();
            let mut check = db.prepare(&format!("PRAGMA integrity_check({MAX_PROBLEMS})"))?;
            for line in check.query_map([], |row| row.get::<_, String>(0))? {
                problems.push(line?);
            }
            problems.retain(|line| line != "ok");
            let mut check = db.prepare("PRAGMA foreign_key_check")?;
            let tables = check.query_map([], |row| row.get::<_, String>(0))?;
            for table in tables.take(MAX_PROBLEMS) {
                problems.push(format!("a row of {} refers to one that is not there", table?));
            }
            Ok(problems)
        })
    }

    /// Returns the adapters that may go live and lack files.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn incomplete_adapters(&self) -> Result<Vec<AdapterId>, StoreError> {
        let lacks = |id: &AdapterId| publish::first_missing(&self.home.adapter(id)).is_some();
        Ok(self.adapters()?.into_iter().map(|row| row.id).filter(lacks).collect())
    }
}
