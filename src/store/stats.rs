//! Statistics: what each adapter answered, how its answers were marked, week by week, and what was trained.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, Utc};
use rusqlite::Connection;
use serde::Serialize;

use super::adapters::{self, AdapterRow};
use super::error::{StoreError, from_millis};
use super::usage::UsedAdapter;
use super::{JobState, Store, count};
use crate::domain::Mark;

/// Milliseconds in a second.
const MILLIS: f64 = 1000.0;

/// Answers and their marks, added up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Answers given.
    pub answers: usize,
    /// Tokens read, those from the cache included.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub new_tokens: usize,
    /// Time to read all prompts.
    pub prefill_ms: f64,
    /// Time to write all answers.
    pub decode_ms: f64,
    /// Marks by kind.
    pub good: usize,
    /// Answers marked medium.
    pub medium: usize,
    /// Answers marked critical.
    pub critical: usize,
    /// Answers that were only corrected.
    pub fix: usize,
    /// Weight of the good marks.
    pub good_weight: f64,
    /// Weight of all marks.
    pub weight: f64,
}

impl Tally {
    /// Returns the number of marks.
    pub fn marks(&self) -> usize {
        self.good + self.medium + self.critical + self.fix
    }

    /// Returns the share of the marks that are good, by number.
    pub fn good_share(&self) -> Option<f64> {
        (self.marks() > 0).then(|| self.good as f64 / self.marks() as f64)
    }

    /// Returns the share of the marks that are good, by weight: a critical answer counts ten good ones.
    pub fn weighted_share(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.good_weight / self.weight)
    }

    /// Returns the tokens written per second of writing.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.decode_ms > 0.0).then(|| self.new_tokens as f64 * MILLIS / self.decode_ms)
    }

    /// Returns the mean time of an answer, milliseconds.
    pub fn latency_ms(&self) -> Option<f64> {
        (self.answers > 0).then(|| (self.prefill_ms + self.decode_ms) / self.answers as f64)
    }

    fn mark(&mut self, mark: Mark, weight: f64) {
        match mark {
            Mark::Good => {
                (self.good, self.good_weight) = (self.good + 1, self.good_weight + weight)
            }
            Mark::Medium => self.medium += 1,
            Mark::Critical => self.critical += 1,
            Mark::Fix => self.fix += 1,
        }
        self.weight += weight;
    }

    fn answer(&mut self, used: &Used) {
        self.answers += 1;
        self.prompt_tokens += used.prompt_tokens;
        self.new_tokens += used.new_tokens;
        self.prefill_ms += used.prefill_ms;
        self.decode_ms += used.decode_ms;
    }
}

/// Who gave an answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Giver {
    /// A model alone.
    Base,
    /// This adapter, alone or in a mixture.
    Adapter(String),
    /// Not known: the mark was imported or added by hand.
    Elsewhere,
}

impl Giver {
    /// Returns its name: that of the adapter, `base`, or `imported`.
    pub fn name(&self) -> &str {
        match self {
            Giver::Base => "base",
            Giver::Adapter(id) => id,
            Giver::Elsewhere => "imported",
        }
    }
}

/// What an adapter, or a model alone, did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GiverStats {
    /// `base`, `imported`, or the adapter's id.
    pub adapter: String,
    /// The domain of an adapter that is there.
    pub domain: Option<String>,
    /// What came before it: its parent, or `base`.
    pub before: Option<String>,
    /// Whether it is live.
    pub live: bool,
    /// Tokens written per second of writing.
    pub tokens_per_second: Option<f64>,
    /// Mean time of an answer.
    pub latency_ms: Option<f64>,
    /// Share of good marks, by number.
    pub good_share: Option<f64>,
    /// Share of good marks, by weight.
    pub weighted_share: Option<f64>,
    /// That of what came before it.
    pub weighted_share_before: Option<f64>,
    /// The counts behind them.
    #[serde(flatten)]
    pub tally: Tally,
}

/// What an adapter, or a model alone, did in one week.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeekStats {
    /// The ISO week, as in `2026-W48`.
    pub week: String,
    /// `base`, `imported`, or the adapter's id.
    pub adapter: String,
    /// The counts.
    #[serde(flatten)]
    pub tally: Tally,
}

/// A job that ended, in a few numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainingStats {
    /// Its number.
    pub job: i64,
    /// Its name.
    pub name: String,
    /// Its domain.
    pub domain: String,
    /// How it ended.
    pub state: JobState,
    /// Examples learned.
    pub examples: usize,
    /// When.
    pub finished_at: Option<DateTime<Utc>>,
    /// From its start to its end.
    pub seconds: Option<f64>,
    /// Mean loss of its examples before and after.
    pub trained: Option<(f64, f64)>,
    /// Mean loss of the held-out ones before and after.
    pub heldout: Option<(f64, f64)>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// By adapter: the models alone first, then as they were made.
    pub adapters: Vec<GiverStats>,
    /// By week and adapter, the oldest first.
    pub weeks: Vec<WeekStats>,
    /// Jobs that ended, the oldest first.
    pub trainings: Vec<TrainingStats>,
}

impl Store {
    /// Adds up usage, marks and jobs.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn statistics(&self) -> Result<Statistics, StoreError> {
        let (by_week, rows) = self.read(|db| Ok((tallies(db)?, adapters::all(db)?)))?;
        let mut totals: BTreeMap<Giver, Tally> = BTreeMap::new();
        for ((_, giver), tally) in &by_week {
            totals.entry(giver.clone()).or_default().add(tally);
        }
        let week = |((week, giver), tally): ((String, Giver), Tally)| WeekStats {
            week,
            adapter: giver.name().to_owned(),
            tally,
        };
        Ok(Statistics {
            adapters: givers(&totals, &rows),
            weeks: by_week.into_iter().map(week).collect(),
            trainings: self.trainings()?,
        })
    }

    fn trainings(&self) -> Result<Vec<TrainingStats>, StoreError> {
        let jobs = self.jobs()?.into_iter().filter(|job| job.state.is_final());
        let training = |job: super::JobRow| {
            let number = |at: &str| job.gate.as_ref()?.pointer(at)?.as_f64();
            let pair = |from: &str| {
                Some((number(&format!("/{from}/before"))?, number(&format!("/{from}/after"))?))
            };
            let took = job.started_at.zip(job.finished_at).map(|(from, to)| to - from);
            TrainingStats {
                trained: pair("trained"),
                heldout: pair("heldout"),
                seconds: took.map(|took| took.num_milliseconds() as f64 / MILLIS),
                job: job.id,
                name: job.name.to_string(),
                domain: job.domain,
                state: job.state,
                examples: job.examples,
                finished_at: job.finished_at,
            }
        };
        Ok(jobs.map(training).collect())
    }
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.prompt_tokens += other.prompt_tokens;
        self.new_tokens += other.new_tokens;
        self.prefill_ms += other.prefill_ms;
        self.decode_ms += other.decode_ms;
        self.good += other.good;
        self.medium += other.medium;
        self.critical += other.critical;
        self.fix += other.fix;
        self.good_weight += other.good_weight;
        self.weight += other.weight;
    }
}

/// One answer.
struct Used {
    prompt_tokens: usize,
    new_tokens: usize,
    prefill_ms: f64,
    decode_ms: f64,
}

fn givers(totals: &BTreeMap<Giver, Tally>, rows: &[AdapterRow]) -> Vec<GiverStats> {
    let share = |giver: &Giver| totals.get(giver).and_then(Tally::weighted_share);
    let known: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let of = |giver: Giver, row: Option<&AdapterRow>| {
        let tally = totals.get(&giver).cloned().unwrap_or_default();
        let parent = row.map(|row| {
            row.parent.as_ref().map_or(Giver::Base, |id| Giver::Adapter(id.to_string()))
        });
        GiverStats {
            adapter: giver.name().to_owned(),
            domain: row.map(|row| row.domain.clone()),
            before: parent.as_ref().map(|parent| parent.name().to_owned()),
            live: row.is_some_and(|row| row.live),
            tokens_per_second: tally.tokens_per_second(),
            latency_ms: tally.latency_ms(),
            good_share: tally.good_share(),
            weighted_share: tally.weighted_share(),
            weighted_share_before: parent.as_ref().and_then(share),
            tally,
        }
    };
    let others = totals.keys().filter(|giver| match giver {
        Giver::Adapter(id) => !known.contains(id.as_str()),
        Giver::Base | Giver::Elsewhere => true,
    });
    let others = others.map(|giver| of(giver.clone(), None));
    others.chain(rows.iter().map(|row| of(Giver::Adapter(row.id.to_string()), Some(row)))).collect()
}

fn week_of(time: DateTime<Utc>) -> String {
    let week = time.iso_week();
    format!("{}-W{:02}", week.year(), week.week())
}

fn tallies(db: &Connection) -> Result<BTreeMap<(String, Giver), Tally>, StoreError> {
    let mut all: BTreeMap<(String, Giver), Tally> = BTreeMap::new();
    let sql =
        "SELECT id, at, adapters, prompt_tokens, new_tokens, prefill_ms, decode_ms FROM usage";
    let mut statement = db.prepare_cached(sql)?;
    let mut cursor = statement.query([])?;
    while let Some(row) = cursor.next()? {
        let (id, text): (i64, String) = (row.get("id")?, row.get("adapters")?);
        let adapters: Vec<UsedAdapter> = serde_json::from_str(&text)
            .map_err(|e| StoreError::bad_row("usage", id, e.to_string()))?;
        let used = Used {
            prompt_tokens: count(row, "prompt_tokens")?,
            new_tokens: count(row, "new_tokens")?,
            prefill_ms: row.get("prefill_ms")?,
            decode_ms: row.get("decode_ms")?,
        };
        let week = week_of(from_millis(row.get("at")?));
        let mut givers: Vec<Giver> =
            adapters.iter().map(|used| Giver::Adapter(used.id.to_string())).collect();
        if givers.is_empty() {
            givers.push(Giver::Base);
        }
        for giver in givers {
            all.entry((week.clone(), giver)).or_default().answer(&used);
        }
    }
    let sql =
        "SELECT id, created_at, adapter, base, mark, weight FROM feedback WHERE forgotten = 0";
    let mut statement = db.prepare_cached(sql)?;
    let mut cursor = statement.query([])?;
    while let Some(row) = cursor.next()? {
        let (adapter, base): (Option<String>, Option<String>) =
            (row.get("adapter")?, row.get("base")?);
        let giver = match (adapter, base) {
            (Some(id), _) => Giver::Adapter(id),
            (None, Some(_)) => Giver::Base,
            (None, None) => Giver::Elsewhere,
        };
        let (id, mark): (i64, String) = (row.get("id")?, row.get("mark")?);
        let mark = mark.parse().map_err(|e: String| StoreError::bad_row("feedback", id, e))?;
        let week = week_of(from_millis(row.get("created_at")?));
        all.entry((week, giver)).or_default().mark(mark, row.get("weight")?);
    }
    Ok(all)
}
