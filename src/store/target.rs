//! The better answer of a mark that is stored already, and the step back from one.

use rusqlite::named_params;
use serde::Serialize;

use super::Store;
use super::error::StoreError;
use super::feedback::{FeedbackEdit, FeedbackRow, check_untouched, check_weight, one};
use crate::domain::Mark;

/// What of a mark can change, as it was before a change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MarkState {
    /// The judgement.
    pub mark: Mark,
    /// How much it counts.
    pub weight: f64,
    /// What the user said about it.
    pub note: Option<String>,
    /// The better answer.
    pub fix: Option<String>,
    /// Whether that is the model's own.
    pub revised: bool,
}

impl FeedbackRow {
    /// Returns what of the mark can change.
    pub fn state(&self) -> MarkState {
        MarkState {
            mark: self.mark,
            weight: self.weight,
            note: self.note.clone(),
            fix: self.fix.clone(),
            revised: self.revised,
        }
    }

    /// Returns the answer that must not be learned, where a better one is known: the pair of them says which is preferred.
    pub fn rejected(&self) -> Option<&str> {
        rejected_of(self.mark, &self.response, self.fix.as_deref())
    }

    /// Whether it has a better answer that is not the model's own.
    fn has_fix_of_user(&self) -> bool {
        !self.revised && self.fix.as_deref().is_some_and(|fix| !fix.trim().is_empty())
    }
}

/// The criticised answer beside a better one; a criticised answer is no target, so only a fix is one here.
fn rejected_of<'a>(mark: Mark, response: &'a str, fix: Option<&str>) -> Option<&'a str> {
    let target = fix.map(str::trim).filter(|fix| !fix.is_empty())?;
    let answer = response.trim();
    (mark != Mark::Good && !answer.is_empty() && answer != target).then_some(answer)
}

impl Store {
    /// Gives a mark that no job has its better answer: that of the user, or a `revised` one of the model, which replaces
    /// none of the user.
    ///
    /// # Errors
    /// An empty answer, a revision where the user's own answer is; otherwise as [`Store::update_feedback`].
    pub fn set_target(
        &self,
        id: i64,
        text: &str,
        revised: bool,
    ) -> Result<FeedbackRow, StoreError> {
        if text.trim().is_empty() {
            return Err(StoreError::InvalidFeedback("the better answer is empty".to_owned()));
        }
        let edit = FeedbackEdit { fix: Some(text.to_owned()), ..FeedbackEdit::default() };
        let edit = self.guarded_edit(&edit)?;
        self.write(|db| {
            let row = one(db, id)?;
            check_untouched(&row)?;
            // It may have come while the model was still answering.
            if revised && row.has_fix_of_user() {
                return Err(StoreError::InvalidFeedback(format!(
                    "mark {id} has the user's own better answer, which a revision does not replace"
                )));
            }
            db.prepare_cached("UPDATE feedback SET fix = :fix, revised = :revised WHERE id = :id")?
                .execute(named_params! {":id": id, ":fix": edit.fix, ":revised": revised})?;
            one(db, id)
        })
    }

    /// Brings a mark that no job has back to an earlier state.
    ///
    /// # Errors
    /// As [`Store::update_feedback`].
    pub fn restore_feedback(&self, id: i64, to: &MarkState) -> Result<FeedbackRow, StoreError> {
        check_weight(to.weight)?;
        let texts = FeedbackEdit {
            note: Some(to.note.clone()),
            fix: to.fix.clone(),
            ..FeedbackEdit::default()
        };
        let texts = self.guarded_edit(&texts)?;
        self.write(|db| {
            check_untouched(&one(db, id)?)?;
            db.prepare_cached(
                "UPDATE feedback SET mark = :mark, weight = :weight, note = :note, fix = :fix, revised = :revised
                 WHERE id = :id",
            )?
            .execute(named_params! {
                ":id": id,
                ":mark": to.mark.as_str(),
                ":weight": to.weight,
                ":note": texts.note.flatten(),
                ":fix": texts.fix,
                ":revised": to.revised,
            })?;
            one(db, id)
        })
    }

    /// Returns the marks that wait for a better answer, the newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn waiting_marks(&self) -> Result<Vec<FeedbackRow>, StoreError> {
        let mut rows = self.list_feedback(&super::FeedbackFilter::default())?;
        rows.retain(FeedbackRow::waits_for_correction);
        rows.reverse();
        Ok(rows)
    }

    /// Returns the criticised answers of a job's examples by the ids of their marks: those that have a better answer. They
    /// are looked at for secrets as examples are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn rejected_answers(&self, job: i64) -> Result<Vec<(i64, String)>, StoreError> {
        self.read(|db| {
            let sql = "SELECT f.id, f.mark, f.response, f.fix
                       FROM job_feedback jf JOIN feedback f ON f.id = jf.feedback_id
                       WHERE jf.job_id = ?1 AND jf.role <> 'heldout' AND f.forgotten = 0 ORDER BY f.id";
            let mut statement = db.prepare_cached(sql)?;
            let mut cursor = statement.query([job])?;
            let mut rejected = Vec::new();
            while let Some(row) = cursor.next()? {
                let (id, mark): (i64, String) = (row.get("id")?, row.get("mark")?);
                let mark: Mark =
                    mark.parse().map_err(|e| StoreError::bad_row("feedback", id, e))?;
                let (response, fix): (String, Option<String>) =
                    (row.get("response")?, row.get("fix")?);
                if let Some(answer) = rejected_of(mark, &response, fix.as_deref()) {
                    rejected.push((id, self.cleaned(answer)));
                }
            }
            Ok(rejected)
        })
    }
}
