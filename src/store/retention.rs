//! What is kept of the past: loss curves and notes of ended jobs, what they left on the disk, and old adapters.
//!
//! Rows of jobs stay: they say which marks were learned, and which were tried in vain.

use rusqlite::named_params;

use super::error::StoreError;
use super::{Store, stored};
use crate::domain::AdapterId;

/// How much is kept; 0 keeps all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Ended jobs whose curves and notes are kept.
    pub jobs: usize,
    /// Adapters of each domain and model.
    pub adapters: usize,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Jobs that had ended and whose checkpoints a dead process had left.
    pub checkpoints: Vec<i64>,
    /// Points of loss curves and notes.
    pub details: usize,
    /// Adapters.
    pub adapters: Vec<AdapterId>,
}

impl Store {
    /// Removes what is not to be kept. Only for the holder of the queue's lock, while it runs no job.
    ///
    /// # Errors
    /// When something cannot be read or removed; what was removed before stays so.
    pub fn prune(&self, keep: &Keep) -> Result<Pruned, StoreError> {
        Ok(Pruned {
            checkpoints: self.prune_checkpoints()?,
            details: if keep.jobs > 0 { self.prune_details(keep.jobs)? } else { 0 },
            adapters: if keep.adapters > 0 {
                self.prune_adapters(keep.adapters)?
            } else {
                Vec::new()
            },
        })
    }

    /// Removes the checkpoints of jobs that have ended, after their curves are in the database.
    fn prune_checkpoints(&self) -> Result<Vec<i64>, StoreError> {
        let list = || fs_err::read_dir(self.home.checkpoints())?.collect::<Result<Vec<_>, _>>();
        let mut removed = Vec::new();
        for entry in list().map_err(StoreError::io("list the checkpoints"))? {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("job-"));
            let Some(job) = number.and_then(|number| number.parse().ok()) else { continue };
            match self.job(job) {
                Ok(row) if row.state.is_final() => self.keep_curve(job)?,
                Ok(_) => continue,
                Err(StoreError::UnknownJob(_)) => {}
                Err(error) => return Err(error),
            }
            self.home.remove_checkpoint(job)?;
            removed.push(job);
        }
        Ok(removed)
    }

    fn prune_details(&self, keep: usize) -> Result<usize, StoreError> {
        self.write(|db| {
            let old = "SELECT id FROM jobs WHERE state IN ('succeeded', 'rejected', 'failed', 'cancelled')
                       ORDER BY id DESC LIMIT -1 OFFSET :keep";
            let keep = named_params! {":keep": stored(keep)};
            let points =
                db.execute(&format!("DELETE FROM job_curve WHERE job_id IN ({old})"), keep)?;
            let notes = format!(
                "DELETE FROM events WHERE job_id IN ({old})
                 AND kind IN ('note', 'resources', 'isolation', 'log_tail', 'out_of_memory')"
            );
            Ok(points + db.execute(&notes, keep)?)
        })
    }

    fn prune_adapters(&self, keep: usize) -> Result<Vec<AdapterId>, StoreError> {
        let mut removed = Vec::new();
        while let Some(id) = self.oldest_beyond(keep)? {
            self.delete_adapter(&id)?;
            removed.push(id);
        }
        Ok(removed)
    }

    /// Returns the oldest adapter that is more than `keep` behind the newest of its domain and model, and that nothing
    /// needs: not live, no other continues from it, no job that waits has to do with it, its files are there.
    fn oldest_beyond(&self, keep: usize) -> Result<Option<AdapterId>, StoreError> {
        self.read(|db| {
            let sql = "SELECT id FROM (
                    SELECT *, row_number() OVER
                        (PARTITION BY base_hash, domain ORDER BY created_at DESC, rowid DESC) AS place
                    FROM adapters) a
                WHERE place > :keep AND live = 0 AND state <> 'quarantined'
                  AND NOT EXISTS (SELECT 1 FROM adapters child WHERE child.parent = a.id)
                  AND NOT EXISTS (SELECT 1 FROM jobs WHERE parent = a.id
                                  AND state IN ('queued', 'running', 'evaluating'))
                ORDER BY created_at, id LIMIT 1";
            let mut statement = db.prepare_cached(sql)?;
            let mut ids = statement.query_map(named_params! {":keep": stored(keep)}, |row| {
                row.get::<_, String>(0)
            })?;
            let Some(id) = ids.next().transpose()? else { return Ok(None) };
            id.parse().map(Some).map_err(|e| StoreError::bad_row("adapters", &id, e))
        })
    }
}
