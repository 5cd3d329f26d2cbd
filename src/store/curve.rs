//! The loss curves of jobs: every step of the training, from the worker's file into the database.
//!
//! While a job lives its worker appends each step to a file beside the checkpoints, which thus holds what came before
//! them, whoever dies. When the job has ended the curve moves into the database and the file goes with the checkpoints.

use rusqlite::Connection;

use super::error::StoreError;
use super::{Store, count, jobs, stored};
use crate::domain::CurvePoint;

impl Store {
    /// Returns the loss curve of a job, by step: of one that has not ended as far as it has come.
    ///
    /// # Errors
    /// When there is no such job, or the database or the file cannot be read.
    pub fn curve(&self, job: i64) -> Result<Vec<CurvePoint>, StoreError> {
        let kept = self.read(|db| {
            jobs::one(db, job)?;
            kept(db, job)
        })?;
        if kept.is_empty() { self.unkept(job) } else { Ok(kept) }
    }

    /// Moves the loss curve of a job that has ended into the database; where the worker left none nothing changes.
    ///
    /// # Errors
    /// When the file cannot be read, there is no such job, or the database cannot be written.
    pub fn keep_curve(&self, job: i64) -> Result<(), StoreError> {
        let points = self.unkept(job)?;
        if points.is_empty() {
            return Ok(());
        }
        self.write(|db| {
            jobs::one(db, job)?;
            db.execute("DELETE FROM job_curve WHERE job_id = ?1", [job])?;
            let sql = "INSERT INTO job_curve (job_id, step, loss, learning_rate)
                       VALUES (?1, ?2, ?3, ?4)";
            let mut insert = db.prepare_cached(sql)?;
            for point in &points {
                insert.execute((job, stored(point.step), point.loss, point.learning_rate))?;
            }
            Ok(())
        })
    }

    /// Reads the worker's file.
    fn unkept(&self, job: i64) -> Result<Vec<CurvePoint>, StoreError> {
        match fs_err::read_to_string(self.home.curve(job)) {
            Ok(text) => Ok(points(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(StoreError::io("read a loss curve")(error)),
        }
    }
}

fn kept(db: &Connection, job: i64) -> Result<Vec<CurvePoint>, StoreError> {
    let sql = "SELECT step, loss, learning_rate FROM job_curve WHERE job_id = ?1 ORDER BY step";
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map([job], |row| {
        Ok(CurvePoint {
            step: count(row, "step")?,
            loss: row.get("loss")?,
            learning_rate: row.get("learning_rate")?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Reads lines of points. An attempt that goes on from an earlier step replaces what came after it; the torn line of a
/// worker that was killed is nothing.
fn points(text: &str) -> Vec<CurvePoint> {
    let mut points: Vec<CurvePoint> = Vec::new();
    for point in text.lines().filter_map(|line| serde_json::from_str::<CurvePoint>(line).ok()) {
        let earlier = points.partition_point(|before| before.step < point.step);
        points.truncate(earlier);
        points.push(point);
    }
    points.retain(|point| point.step > 0);
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_goes_back_replaces_what_came_after() {
        let line = |step: usize, loss: f64| {
            format!("{{\"step\":{step},\"loss\":{loss},\"learning_rate\":0.5}}\n")
        };
        let text = [
            line(1, 4.0),
            line(2, 3.0),
            line(3, 2.0),
            "{\"step\":4,\"lo\n".to_owned(),
            line(2, 3.5),
            line(3, 2.5),
        ];
        let read: Vec<_> = points(&text.concat()).iter().map(|p| (p.step, p.loss)).collect();
        assert_eq!(read, [(1, 4.0), (2, 3.5), (3, 2.5)]);
        assert_eq!(points("\n\nnonsense\n"), []);
    }
}
