//! Marks: what the user thought of an answer.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use serde::Serialize;

use super::error::{StoreError, from_millis, now};
use super::{Store, buffer, jobs};
use crate::domain::{AdapterId, Mark, Message, Role, TrainExample};

/// The longest name of a domain, in bytes.
const MAX_DOMAIN_BYTES: usize = 64;

/// A mark to store.
#[derive(Debug, Clone, PartialEq)]
pub struct NewFeedback {
    /// The conversation up to and including the user's last message.
    pub messages: Vec<Message>,
    /// The answer that was marked.
    pub response: String,
    /// The judgement.
    pub mark: Mark,
    /// How much it counts; greater than 0.
    pub weight: f64,
    /// What the user said about it.
    pub note: Option<String>,
    /// The better answer.
    pub fix: Option<String>,
    /// The domain that learns from it.
    pub domain: String,
    /// The adapter that gave the answer; `None` for the base.
    pub adapter: Option<AdapterId>,
    /// The hash of the model that gave the answer; `None` lets every model learn it.
    pub base: Option<String>,
}

impl NewFeedback {
    /// Returns the answer to learn, as [`FeedbackRow::target`] does.
    pub fn target(&self) -> Option<&str> {
        target_of(self.mark, &self.response, self.fix.as_deref())
    }
}

/// The better answer, or a good one as given.
fn target_of<'a>(mark: Mark, response: &'a str, fix: Option<&'a str>) -> Option<&'a str> {
    let given = |text: &&str| !text.trim().is_empty();
    let good = (mark == Mark::Good).then_some(response);
    fix.filter(given).or(good.filter(given))
}

/// A stored mark, and what became of it. Serialises to a row of `feedback list` and `export`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FeedbackRow {
    /// Row id, never used twice.
    pub id: i64,
    /// The conversation up to and including the user's last message.
    pub messages: Vec<Message>,
    /// The answer that was marked.
    pub response: String,
    /// The judgement.
    pub mark: Mark,
    /// How much it counts.
    pub weight: f64,
    /// What the user said about it.
    pub note: Option<String>,
    /// The better answer.
    pub fix: Option<String>,
    /// Whether the better answer is the model's own, made with the note in its context.
    pub revised: bool,
    /// The domain that learns from it.
    pub domain: String,
    /// The adapter that gave the answer; `None` for the base.
    pub adapter: Option<AdapterId>,
    /// The hash of the model that gave the answer; `None` lets every model learn it.
    pub base: Option<String>,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
    /// The job that learned it.
    pub consumed_by: Option<i64>,
    /// The queued or running job that is to learn it.
    pub in_job: Option<i64>,
    /// Whether it is kept out of training to measure it.
    pub heldout: bool,
    /// Whether it left the full buffer; only learned marks do.
    pub archived: bool,
}

impl FeedbackRow {
    /// Returns the answer to learn, if there is one: the better answer, or a good one as given.
    ///
    /// A criticised answer is never a target, nor is a note.
    pub fn target(&self) -> Option<&str> {
        target_of(self.mark, &self.response, self.fix.as_deref())
    }

    /// Returns the mark as the trainer takes it, if it has a target.
    pub fn example(&self) -> Option<TrainExample> {
        let target = self.target()?.to_owned();
        Some(TrainExample {
            id: self.id,
            messages: self.messages.clone(),
            target,
            weight: self.weight,
        })
    }

    /// Whether a model may learn it: one that gave the answer, or any where that is not known; without a `base` all are.
    pub fn is_of(&self, base: Option<&str>) -> bool {
        base.is_none() || self.base.is_none() || self.base.as_deref() == base
    }

    /// Whether it waits for a better answer before it can be learned.
    pub fn waits_for_correction(&self) -> bool {
        self.consumed_by.is_none() && self.target().is_none()
    }

    /// Says what will become of it, or became of it.
    pub fn fate(&self) -> String {
        match (self.consumed_by, self.in_job) {
            (Some(job), _) => format!("learned in job {job}"),
            (None, Some(job)) => format!("in job {job}"),
            (None, None) if self.waits_for_correction() => "waiting for a correction".to_owned(),
            (None, None) if self.heldout => "held out".to_owned(),
            (None, None) => "new".to_owned(),
        }
    }

    /// Returns the question that was answered: the user's last message.
    pub fn question(&self) -> &str {
        let last = self.messages.iter().rev().find(|m| m.role == Role::User);
        last.map_or("", |m| m.content.as_str())
    }
}

/// Which marks to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedbackFilter {
    /// Only those of this domain.
    pub domain: Option<String>,
    /// Only those that are not consumed.
    pub unconsumed: bool,
    /// Also those that left the buffer.
    pub archived: bool,
}

/// What to change of a mark; `None` leaves a field as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeedbackEdit {
    /// The judgement.
    pub mark: Option<Mark>,
    /// How much it counts.
    pub weight: Option<f64>,
    /// What the user said about it; `Some(None)` takes the note away.
    pub note: Option<Option<String>>,
    /// The better answer.
    pub fix: Option<String>,
}

/// What a forgotten mark leaves behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Forgotten {
    /// The domain that it was of.
    #[serde(skip)]
    pub domain: String,
    /// The adapters that were trained on it and still know it.
    pub seen_by: Vec<AdapterId>,
    /// The running job whose worker already has it.
    pub in_running_job: Option<i64>,
    /// The queued jobs that were cancelled because it was their last example.
    pub cancelled_jobs: Vec<i64>,
    /// Whether the text is still in the database's log, because another process reads from it: it goes when that ends.
    pub still_in_log: bool,
}

impl Store {
    /// Stores a mark.
    ///
    /// # Errors
    /// When a field is out of its range, or the database cannot be written.
    pub fn add_feedback(&self, new: &NewFeedback) -> Result<FeedbackRow, StoreError> {
        let new = self.guarded(new)?;
        check(&new)?;
        self.write(|db| {
            let id = insert(db, &new)?;
            one(db, id)
        })
    }

    /// Stores many marks, all or none, and returns their ids.
    ///
    /// # Errors
    /// When a field of one is out of its range, or the database cannot be written.
    pub fn add_all_feedback(&self, new: &[NewFeedback]) -> Result<Vec<i64>, StoreError> {
        let safe = new.iter().map(|one| self.guarded(one)).collect::<Result<Vec<_>, _>>()?;
        safe.iter().try_for_each(|one| check(one))?;
        self.write(|db| safe.iter().map(|one| insert(db, one)).collect())
    }

    /// Returns the marks that `filter` lets through, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn list_feedback(&self, filter: &FeedbackFilter) -> Result<Vec<FeedbackRow>, StoreError> {
        self.read(|db| {
            let domains = match &filter.domain {
                Some(domain) => vec![domain.clone()],
                None => domains(db)?,
            };
            let mut rows = Vec::new();
            for domain in domains {
                rows.extend(buffer::rows_of_domain(db, &domain, None, filter.archived)?);
            }
            rows.retain(|row| !(filter.unconsumed && row.consumed_by.is_some()));
            rows.sort_by_key(|row| row.id);
            Ok(rows)
        })
    }

    /// Returns one mark.
    ///
    /// # Errors
    /// When there is none with this id, or the database cannot be read.
    pub fn feedback(&self, id: i64) -> Result<FeedbackRow, StoreError> {
        self.read(|db| one(db, id))
    }

    /// Changes a mark that no job has learned or is about to.
    ///
    /// # Errors
    /// When it was learned or is in a job, when there is none with this id, when a field is out of
    /// its range, or the database cannot be written.
    pub fn update_feedback(&self, id: i64, edit: &FeedbackEdit) -> Result<FeedbackRow, StoreError> {
        edit.weight.map_or(Ok(()), check_weight)?;
        let edit = self.guarded_edit(edit)?;
        // A new criticism is about what was said last: a revision that was taken is no target any more.
        let criticised =
            edit.note.is_some() && matches!(edit.mark, Some(Mark::Medium | Mark::Critical));
        self.write(|db| {
            check_untouched(&one(db, id)?)?;
            db.prepare_cached(
                "UPDATE feedback SET mark = coalesce(:mark, mark), weight = coalesce(:weight, weight),
                     note = iif(:replace_note, :note, note),
                     fix = CASE WHEN :fix IS NOT NULL THEN :fix WHEN :criticised AND revised = 1 THEN NULL ELSE fix END,
                     revised = iif(:fix IS NULL AND NOT :criticised, revised, 0) WHERE id = :id",
            )?
            .execute(named_params! {
                ":id": id,
                ":mark": edit.mark.map(Mark::as_str),
                ":weight": edit.weight,
                ":replace_note": edit.note.is_some(),
                ":criticised": criticised,
                ":note": edit.note.as_ref().and_then(Option::as_ref),
                ":fix": edit.fix,
            })?;
            one(db, id)
        })
    }

    /// Takes back a mark that no job has learned or is about to, and returns it.
    ///
    /// # Errors
    /// When it was learned or is in a job, when there is none with this id, or the database cannot
    /// be written.
    pub fn undo_feedback(&self, id: i64) -> Result<FeedbackRow, StoreError> {
        self.write(|db| {
            let row = one(db, id)?;
            check_untouched(&row)?;
            erase(db, id)?;
            Ok(row)
        })
    }

    /// Forgets a mark: its text is overwritten, in the database's log too, queued jobs lose it, and the answer tells who
    /// has seen it already.
    ///
    /// # Errors
    /// When there is none with this id, or the database cannot be written.
    pub fn remove_feedback(&self, id: i64) -> Result<Forgotten, StoreError> {
        let forgotten = self.write(|db| {
            let domain = one(db, id)?.domain;
            let cancelled_jobs = jobs::drop_from_queued(db, id)?;
            let forgotten = Forgotten {
                domain,
                seen_by: seen_by(db, id)?,
                in_running_job: running_with(db, id)?,
                cancelled_jobs,
                still_in_log: false,
            };
            erase(db, id)?;
            Ok(forgotten)
        })?;
        Ok(Forgotten { still_in_log: !self.empty_log(), ..forgotten })
    }
}

/// Reads one mark with all that follows from the others of its domain.
pub(super) fn one(db: &Connection, id: i64) -> Result<FeedbackRow, StoreError> {
    let found: Option<String> = db
        .prepare_cached("SELECT domain FROM feedback WHERE id = ?1 AND forgotten = 0")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    let domain = found.ok_or(StoreError::UnknownFeedback(id))?;
    let rows = buffer::rows_of_domain(db, &domain, None, true)?;
    rows.into_iter().find(|row| row.id == id).ok_or(StoreError::UnknownFeedback(id))
}

pub(super) fn domains(db: &Connection) -> Result<Vec<String>, StoreError> {
    let mut statement =
        db.prepare_cached("SELECT DISTINCT domain FROM feedback WHERE forgotten = 0")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Stores a mark that was checked, and returns its id.
pub(super) fn insert(db: &Connection, new: &NewFeedback) -> Result<i64, StoreError> {
    let messages = serde_json::to_string(&new.messages)
        .map_err(|e| StoreError::InvalidFeedback(e.to_string()))?;
    db.prepare_cached(
        "INSERT INTO feedback
             (messages, response, mark, weight, note, fix, domain, adapter, base, created_at)
         VALUES (:messages, :response, :mark, :weight, :note, :fix, :domain, :adapter, :base, :created_at)",
    )?
    .execute(named_params! {
        ":messages": messages,
        ":response": new.response,
        ":mark": new.mark.as_str(),
        ":weight": new.weight,
        ":note": new.note,
        ":fix": new.fix,
        ":domain": new.domain,
        ":adapter": new.adapter.as_ref().map(AdapterId::as_str),
        ":base": new.base,
        ":created_at": now().timestamp_millis(),
    })?;
    Ok(db.last_insert_rowid())
}

/// Reads a row of `feedback` joined with `consumed` and `reserved`; held out is decided later.
pub(super) fn read_row(row: &Row<'_>) -> Result<FeedbackRow, StoreError> {
    let id: i64 = row.get("id")?;
    let bad = |reason: String| StoreError::bad_row("feedback", id, reason);
    let messages: String = row.get("messages")?;
    let mark: String = row.get("mark")?;
    let adapter: Option<String> = row.get("adapter")?;
    Ok(FeedbackRow {
        id,
        messages: serde_json::from_str(&messages).map_err(|e| bad(e.to_string()))?,
        response: row.get("response")?,
        mark: mark.parse().map_err(bad)?,
        weight: row.get("weight")?,
        note: row.get("note")?,
        fix: row.get("fix")?,
        revised: row.get("revised")?,
        domain: row.get("domain")?,
        adapter: adapter.map(|a| a.parse().map_err(|e| bad(format!("{e}")))).transpose()?,
        base: row.get("base")?,
        created_at: from_millis(row.get("created_at")?),
        consumed_by: row.get("consumed_by")?,
        in_job: row.get("in_job")?,
        heldout: false,
        archived: row.get("archived")?,
    })
}

/// Refuses a mark with a field out of its range.
pub(super) fn check(new: &NewFeedback) -> Result<(), StoreError> {
    let invalid = |reason: &str| Err(StoreError::InvalidFeedback(reason.to_owned()));
    if new.messages.last().is_none_or(|m| m.role != Role::User) {
        return invalid("messages must end with one of the user");
    }
    let fix_is_empty = new.fix.as_deref().is_none_or(|f| f.trim().is_empty());
    if new.mark == Mark::Fix && fix_is_empty {
        return invalid("a fix needs the better answer");
    }
    let plain = |c: char| !c.is_whitespace() && !c.is_control();
    if !(1..=MAX_DOMAIN_BYTES).contains(&new.domain.len()) || !new.domain.chars().all(plain) {
        return invalid("a domain is a word of 1 to 64 bytes");
    }
    check_weight(new.weight)
}

/// Refuses a mark that a job has learned or is about to.
pub(super) fn check_untouched(row: &FeedbackRow) -> Result<(), StoreError> {
    let feedback = row.id;
    match (row.consumed_by, row.in_job) {
        (Some(job), _) => Err(StoreError::AlreadyLearned { feedback, job }),
        (None, Some(job)) => Err(StoreError::InTraining { feedback, job }),
        (None, None) => Ok(()),
    }
}

pub(super) fn check_weight(weight: f64) -> Result<(), StoreError> {
    if weight.is_finite() && weight > 0.0 {
        return Ok(());
    }
    Err(StoreError::InvalidFeedback(format!("weight {weight} is not a number greater than 0")))
}

/// Lists the adapters that know a mark: those trained on it, and those that grew from them. They are followed from job to
/// job, because an adapter in between may be deleted.
pub(super) fn seen_by(db: &Connection, id: i64) -> Result<Vec<AdapterId>, StoreError> {
    let mut statement = db.prepare_cached(
        "WITH RECURSIVE knows(job, adapter) AS (
             SELECT j.id, j.adapter FROM job_feedback jf JOIN jobs j ON j.id = jf.job_id
             WHERE jf.feedback_id = ?1 AND jf.role <> 'heldout' AND j.state = 'succeeded'
             UNION
             SELECT j.id, j.adapter FROM knows JOIN jobs j ON j.parent = knows.adapter AND j.id > knows.job
             WHERE j.state = 'succeeded')
         SELECT DISTINCT knows.adapter FROM knows JOIN adapters a ON a.id = knows.adapter ORDER BY knows.job",
    )?;
    let mut seen = Vec::new();
    for name in statement.query_map([id], |row| row.get::<_, String>(0))? {
        let name = name?;
        seen.push(name.parse().map_err(|e| StoreError::bad_row("adapters", &name, e))?);
    }
    Ok(seen)
}

fn running_with(db: &Connection, id: i64) -> Result<Option<i64>, StoreError> {
    Ok(db
        .prepare_cached(
            "SELECT j.id FROM job_feedback jf JOIN jobs j ON j.id = jf.job_id
             WHERE jf.feedback_id = ?1 AND j.state IN ('running', 'evaluating')",
        )?
        .query_row([id], |row| row.get(0))
        .optional()?)
}

/// Deletes a mark's text; the row goes too unless a job refers to it. What workers said of their failures goes as well: it
/// may quote the text.
fn erase(db: &Connection, id: i64) -> Result<(), StoreError> {
    let jobs = "SELECT job_id FROM job_feedback WHERE feedback_id = ?1";
    db.execute(
        &format!(
            "UPDATE jobs SET error = ?2
                 WHERE error IS NOT NULL AND state IN ('failed', 'queued') AND id IN ({jobs})"
        ),
        params![id, "its reason went with a mark that was forgotten"],
    )?;
    db.execute(
        &format!(
            "UPDATE events SET detail = NULL
             WHERE kind IN ('failed', 'queued', 'note', 'log_tail', 'out_of_memory')
             AND job_id IN ({jobs})"
        ),
        [id],
    )?;
    db.execute("UPDATE job_feedback SET target = '' WHERE feedback_id = ?1", [id])?;
    let kept = db.execute(
        "UPDATE feedback SET messages = '[]', response = '', note = NULL, fix = NULL, forgotten = 1
         WHERE id = ?1 AND EXISTS (SELECT 1 FROM job_feedback WHERE feedback_id = ?1)",
        [id],
    )?;
    if kept == 0 {
        db.execute("DELETE FROM feedback WHERE id = ?1", [id])?;
    }
    Ok(())
}
