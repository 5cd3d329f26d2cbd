//! Adapters: which there are, which is live, and what they came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, Row, named_params};
use serde::{Deserialize, Serialize};

use super::error::{StoreError, from_millis, now};
use super::events::adapter_event;
use super::{Store, count, publish, stored};
use crate::domain::AdapterId;

/// Whether an adapter may go live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterState {
    /// It may.
    Ready,
    /// It may, but the user went back from it.
    RolledBack,
    /// It may not: its files are missing.
    Quarantined,
}

impl AdapterState {
    /// Returns the name as it is shown and stored.
    pub fn as_str(self) -> &'static str {
        match self {
            AdapterState::Ready => "ready",
            AdapterState::RolledBack => "rolled_back",
            AdapterState::Quarantined => "quarantined",
        }
    }
}

impl fmt::Display for AdapterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AdapterState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ready" => Ok(AdapterState::Ready),
            "rolled_back" => Ok(AdapterState::RolledBack),
            "quarantined" => Ok(AdapterState::Quarantined),
            other => Err(format!("unknown adapter state \"{other}\"")),
        }
    }
}

/// An adapter to publish. Its parent is what its job continued from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAdapter {
    /// Its name.
    pub id: AdapterId,
    /// The domain that it learned.
    pub domain: String,
    /// The name of the base model.
    pub base: String,
    /// SHA-256 of the base model's weights, in hex.
    pub base_hash: String,
    /// Rank of its matrices.
    pub rank: usize,
    /// The linear layers that it changes.
    pub target_modules: Vec<String>,
    /// How many examples it was trained on.
    pub examples: usize,
    /// Where its files lie now, on the file system of the data directory.
    pub dir: PathBuf,
}

/// A published adapter. Serialises to a row of `adapters list`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterRow {
    /// Its name.
    pub id: AdapterId,
    /// The domain that it learned.
    pub domain: String,
    /// The adapter that it continued from; `None` for the base.
    pub parent: Option<AdapterId>,
    /// Whether it may go live.
    pub state: AdapterState,
    /// Whether it answers, on its base and in its domain.
    pub live: bool,
    /// The name of the base model.
    pub base: String,
    /// SHA-256 of the base model's weights, in hex.
    pub base_hash: String,
    /// Rank of its matrices.
    pub rank: usize,
    /// The linear layers that it changes.
    pub target_modules: Vec<String>,
    /// How many examples it was trained on.
    pub examples: usize,
    /// What the gate measured.
    pub gate: serde_json::Value,
    /// In how many answers it was used.
    pub used_in: usize,
    /// When it was published.
    pub created_at: DateTime<Utc>,
    /// Size of its files.
    pub bytes: u64,
}

impl Store {
    /// Returns all adapters, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn adapters(&self) -> Result<Vec<AdapterRow>, StoreError> {
        self.read(all)
    }

    /// Returns one adapter.
    ///
    /// # Errors
    /// When there is none with this id, or the database cannot be read.
    pub fn adapter(&self, id: &AdapterId) -> Result<AdapterRow, StoreError> {
        self.read(|db| one(db, id))
    }

    /// Returns the adapter that is live on a base in a domain; `None` means the base alone.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn live(&self, base_hash: &str, domain: &str) -> Result<Option<AdapterRow>, StoreError> {
        self.read(|db| live(db, base_hash, domain))
    }

    /// Returns which adapter is live on a base, by domain.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn live_ids(&self, base_hash: &str) -> Result<BTreeMap<String, AdapterId>, StoreError> {
        self.read(|db| {
            let sql = "SELECT domain, id FROM adapters WHERE live = 1 AND base_hash = ?1";
            let mut statement = db.prepare_cached(sql)?;
            let mut cursor = statement.query([base_hash])?;
            let mut ids = BTreeMap::new();
            while let Some(row) = cursor.next()? {
                let id: String = row.get("id")?;
                let name = id.parse().map_err(|e| StoreError::bad_row("adapters", &id, e))?;
                ids.insert(row.get("domain")?, name);
            }
            Ok(ids)
        })
    }

    /// Returns an adapter that can answer on the base that is loaded.
    ///
    /// # Errors
    /// When it was made for another base, its files are missing, there is none with this id, or the
    /// database cannot be read.
    pub fn usable_adapter(
        &self,
        id: &AdapterId,
        base_hash: &str,
    ) -> Result<AdapterRow, StoreError> {
        let row = self.adapter(id)?;
        self.check_usable(&row, base_hash)?;
        Ok(row)
    }

    fn check_usable(&self, row: &AdapterRow, base_hash: &str) -> Result<(), StoreError> {
        if row.base_hash != base_hash {
            return Err(StoreError::OtherBase {
                adapter: row.id.clone(),
                trained_on: format!("{} {}", row.base, short(&row.base_hash)),
                loaded: short(base_hash).to_owned(),
            });
        }
        let whole = publish::first_missing(&self.home.adapter(&row.id)).is_none();
        if row.state == AdapterState::Quarantined || !whole {
            return Err(StoreError::AdapterQuarantined(row.id.clone()));
        }
        Ok(())
    }

    /// Makes an adapter live on the base that is loaded.
    ///
    /// # Errors
    /// When it was made for another base, its files are missing, there is none with this id, or the
    /// database cannot be written.
    pub fn set_live(&self, id: &AdapterId, base_hash: &str) -> Result<AdapterRow, StoreError> {
        self.write(|db| {
            self.check_usable(&one(db, id)?, base_hash)?;
            make_live(db, id)?;
            adapter_event(db, None, id, "live", Some("loaded by the user"))?;
            one(db, id)
        })
    }

    /// Makes the base live instead of an adapter; the adapter stays.
    ///
    /// # Errors
    /// When it is not live, there is none with this id, or the database cannot be written.
    pub fn unload(&self, id: &AdapterId) -> Result<AdapterRow, StoreError> {
        self.write(|db| {
            if !one(db, id)?.live {
                return Err(StoreError::AdapterNotLive(id.clone()));
            }
            db.execute("UPDATE adapters SET live = 0 WHERE id = ?1", [id.as_str()])?;
            adapter_event(db, None, id, "unloaded", None)?;
            one(db, id)
        })
    }

    /// Goes back from the live adapter to its nearest ancestor whose files are there, and returns
    /// that, or `None` for the base.
    ///
    /// # Errors
    /// When the base is live already, or the database cannot be written.
    pub fn rollback(&self, base_hash: &str, domain: &str) -> Result<Option<AdapterId>, StoreError> {
        self.write(|db| {
            let Some(row) = live(db, base_hash, domain)? else {
                return Err(StoreError::NothingLive(domain.to_owned()));
            };
            let back_to = self.step_back(db, &row, AdapterState::RolledBack)?;
            let detail = back_to.as_ref().map_or("base", AdapterId::as_str);
            adapter_event(db, None, &row.id, "rolled_back", Some(&format!("to {detail}")))?;
            Ok(back_to)
        })
    }

    /// Gives an adapter that is or was live a state that cannot be, and makes its nearest whole
    /// ancestor live.
    pub(super) fn step_back(
        &self,
        db: &Connection,
        row: &AdapterRow,
        state: AdapterState,
    ) -> Result<Option<AdapterId>, StoreError> {
        db.execute(
            "UPDATE adapters SET live = 0, state = ?2 WHERE id = ?1",
            (row.id.as_str(), state.as_str()),
        )?;
        let mut next = row.parent.clone();
        while let Some(id) = next {
            let parent = one(db, &id)?;
            let whole = publish::first_missing(&self.home.adapter(&id)).is_none();
            // Another base's adapter, or another domain's, would take what is not its place.
            let fits = parent.base_hash == row.base_hash && parent.domain == row.domain;
            if whole && fits && parent.state != AdapterState::Quarantined {
                make_live(db, &id)?;
                return Ok(Some(id));
            }
            next = parent.parent;
        }
        Ok(None)
    }

    /// Deletes an adapter: its row, then its files. Its children take its parent as theirs.
    ///
    /// # Errors
    /// When it is live, the parent of a live one or of a running job, when there is none with this
    /// id, or something cannot be written.
    pub fn delete_adapter(&self, id: &AdapterId) -> Result<(), StoreError> {
        self.write(|db| {
            let row = one(db, id)?;
            check_deletable(db, &row)?;
            db.execute(
                "UPDATE adapters SET parent = ?2 WHERE parent = ?1",
                (id.as_str(), row.parent.as_ref().map(AdapterId::as_str)),
            )?;
            db.execute("DELETE FROM adapters WHERE id = ?1", [id.as_str()])?;
            adapter_event(db, None, id, "deleted", None)
        })?;
        publish::discard(&self.home, &self.home.adapter(id))
    }
}

fn check_deletable(db: &Connection, row: &AdapterRow) -> Result<(), StoreError> {
    if row.live {
        return Err(StoreError::AdapterIsLive(row.id.clone()));
    }
    let name = row.id.as_str();
    let live_child = "SELECT id FROM adapters WHERE parent = ?1 AND live = 1 LIMIT 1";
    let child: Option<String> = db.query_row(live_child, [name], |r| r.get(0)).optional()?;
    if let Some(child) = child {
        let child = child.parse().map_err(|e| StoreError::bad_row("adapters", &child, e))?;
        return Err(StoreError::AdapterIsParentOfLive { adapter: row.id.clone(), child });
    }
    let in_use = "SELECT id FROM jobs
                  WHERE parent = ?1 AND state IN ('queued', 'running', 'evaluating') LIMIT 1";
    match db.query_row(in_use, [name], |r| r.get(0)).optional()? {
        Some(job) => Err(StoreError::AdapterInUse { adapter: row.id.clone(), job }),
        None => Ok(()),
    }
}

/// Makes an adapter live in place of the one that is live on its base and in its domain.
pub(super) fn make_live(db: &Connection, id: &AdapterId) -> Result<(), StoreError> {
    let row = one(db, id)?;
    db.execute(
        "UPDATE adapters SET live = 0 WHERE base_hash = ?1 AND domain = ?2",
        (&row.base_hash, &row.domain),
    )?;
    db.execute("UPDATE adapters SET live = 1, state = 'ready' WHERE id = ?1", [id.as_str()])?;
    Ok(())
}

/// Gives an adapter another state.
pub(super) fn set_state(
    db: &Connection,
    id: &AdapterId,
    state: AdapterState,
) -> Result<(), StoreError> {
    db.execute("UPDATE adapters SET state = ?2 WHERE id = ?1", (id.as_str(), state.as_str()))?;
    Ok(())
}

/// Whether there is an adapter with this id.
pub(super) fn exists(db: &Connection, id: &AdapterId) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM adapters WHERE id = ?1)";
    Ok(db.query_row(sql, [id.as_str()], |row| row.get(0))?)
}

/// Stores the row of an adapter that is being published; a parent that is gone is none.
pub(super) fn insert(
    db: &Connection,
    new: &NewAdapter,
    gate: &serde_json::Value,
    bytes: u64,
    parent: Option<&AdapterId>,
) -> Result<(), StoreError> {
    let parent = match parent {
        Some(id) if exists(db, id)? => Some(id.as_str()),
        _ => None,
    };
    db.prepare_cached(
        "INSERT INTO adapters (id, domain, parent, base, base_hash, rank, target_modules, examples,
                               gate, created_at, bytes)
         VALUES (:id, :domain, :parent, :base, :base_hash, :rank, :target_modules, :examples,
                 :gate, :created_at, :bytes)",
    )?
    .execute(named_params! {
        ":id": new.id.as_str(),
        ":domain": new.domain,
        ":parent": parent,
        ":base": new.base,
        ":base_hash": new.base_hash,
        ":rank": stored(new.rank),
        ":target_modules": serde_json::Value::from(new.target_modules.clone()).to_string(),
        ":examples": stored(new.examples),
        ":gate": gate.to_string(),
        ":created_at": now().timestamp_millis(),
        ":bytes": i64::try_from(bytes).unwrap_or(i64::MAX),
    })?;
    Ok(())
}

const SELECT: &str = "SELECT a.*, coalesce(u.answers, 0) AS used_in
                      FROM adapters a LEFT JOIN used_in u ON u.adapter = a.id";

/// Reads all adapters inside a transaction.
pub(super) fn all(db: &Connection) -> Result<Vec<AdapterRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!("{SELECT} ORDER BY a.created_at, a.rowid"))?;
    let mut cursor = statement.query([])?;
    let mut rows = Vec::new();
    while let Some(row) = cursor.next()? {
        rows.push(read_row(row)?);
    }
    Ok(rows)
}

/// Reads one adapter inside a transaction.
pub(super) fn one(db: &Connection, id: &AdapterId) -> Result<AdapterRow, StoreError> {
    let mut statement = db.prepare_cached(&format!("{SELECT} WHERE a.id = ?1"))?;
    let row = statement.query_row([id.as_str()], |row| Ok(read_row(row))).optional()?;
    row.unwrap_or_else(|| Err(StoreError::UnknownAdapter(id.clone())))
}

fn live(db: &Connection, base_hash: &str, domain: &str) -> Result<Option<AdapterRow>, StoreError> {
    let sql = format!("{SELECT} WHERE a.live = 1 AND a.base_hash = ?1 AND a.domain = ?2");
    let mut statement = db.prepare_cached(&sql)?;
    statement.query_row([base_hash, domain], |row| Ok(read_row(row))).optional()?.transpose()
}

fn read_row(row: &Row<'_>) -> Result<AdapterRow, StoreError> {
    let id: String = row.get("id")?;
    let bad = |reason: String| StoreError::bad_row("adapters", &id, reason);
    let name = |text: String| text.parse().map_err(|e| bad(format!("{e}")));
    let state: String = row.get("state")?;
    let modules: String = row.get("target_modules")?;
    let gate: String = row.get("gate")?;
    let parent: Option<String> = row.get("parent")?;
    let bytes: i64 = row.get("bytes")?;
    Ok(AdapterRow {
        id: name(id.clone())?,
        domain: row.get("domain")?,
        parent: parent.map(name).transpose()?,
        state: state.parse().map_err(bad)?,
        live: row.get("live")?,
        base: row.get("base")?,
        base_hash: row.get("base_hash")?,
        rank: count(row, "rank")?,
        target_modules: serde_json::from_str(&modules).map_err(|e| bad(e.to_string()))?,
        examples: count(row, "examples")?,
        gate: serde_json::from_str(&gate).map_err(|e| bad(e.to_string()))?,
        used_in: count(row, "used_in")?,
        created_at: from_millis(row.get("created_at")?),
        bytes: u64::try_from(bytes).unwrap_or(0),
    })
}

/// Shortens a hash for a message.
fn short(hash: &str) -> &str {
    /// Enough digits to tell the models on one machine apart.
    const DIGITS: usize = 12;
    hash.get(..DIGITS).unwrap_or(hash)
}
