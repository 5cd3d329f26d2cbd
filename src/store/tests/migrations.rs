//! Databases of every earlier schema, with rows in every table, opened by this version.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;
use rusqlite::types::Value;

use super::*;
use crate::store::schema::MIGRATIONS;

/// Rows in the columns that the first schema has, each with something in every column.
const ROWS: &str = r#"
    INSERT INTO feedback (id, messages, response, mark, weight, note, fix, domain, adapter, created_at, archived, forgotten)
    VALUES
        (1, '[{"role":"user","content":"q1"}]', 'a', 'fix', 3, 'n', 'b', 'general', 'old', 1, 0, 0),
        (2, '[{"role":"user","content":"q2"}]', 'a', 'critical', 10, 'n', NULL, 'rust', NULL, 2, 0, 0),
        (3, '[{"role":"user","content":"q3"}]', 'a', 'good', 1, NULL, NULL, 'general', NULL, 3, 1, 0),
        (4, '[]', '', 'good', 1, NULL, NULL, 'general', NULL, 4, 0, 1);
    INSERT INTO jobs (id, name, domain, start, priority, state, attempts, examples, step, total_steps, loss, heldout_before,
        heldout_after, adapter, parent, error, gate, params, cancel_requested, created_at, started_at, finished_at, not_before)
    VALUES
        (1, 'old', 'general', 'continue', 0, 'succeeded', 1, 1, 60, 60, 0.1, 2, 1, 'old', NULL, NULL, '{"kl":0.1}', '{}', 0, 5, 6, 7, NULL),
        (2, 'new', 'general', 'fresh', 5, 'queued', 1, 1, 0, 0, NULL, NULL, NULL, NULL, NULL, 'signal 9', NULL, '{}', 0, 8, 9, NULL, 10),
        (3, 'next', 'rust', 'continue', -1, 'running', 1, 1, 3, 60, 0.2, NULL, NULL, NULL, 'old', NULL, NULL, '{}', 1, 11, 12, NULL, NULL);
    INSERT INTO job_feedback VALUES (1, 3, 'new', 'a', 1), (2, 1, 'new', 'b', 3), (2, 3, 'replay', 'a', 1), (3, 2, 'new', 'b', 10);
    INSERT INTO adapters (id, domain, parent, state, live, base, base_hash, rank, target_modules, examples, gate, created_at, bytes)
    VALUES
        ('old', 'general', NULL, 'ready', 1, 'tiny', 'b', 4, '["q_proj"]', 1, '{}', 7, 10),
        ('gone', 'general', 'old', 'rolled_back', 0, 'tiny', 'b', 4, '["q_proj"]', 1, '{}', 8, 10);
    INSERT INTO events (at, job_id, adapter, kind, detail) VALUES (5, 1, NULL, 'queued', NULL), (7, 1, 'old', 'live', 'promoted');
    INSERT INTO usage (at, base, adapters, prompt_tokens, new_tokens, prefill_ms, decode_ms, finish_reason, feedback_id)
    VALUES (8, 'tiny', '[{"id":"old","weight":1.0}]', 3, 4, 5, 6, 'stop', 1);
"#;
/// Rows of the tables that came later.
const LATER: &[(&str, &str)] = &[("job_curve", "INSERT INTO job_curve VALUES (1, 1, 2.5, 0.001)")];

/// A database as the program with the first `version` steps left it.
fn database_of(path: &std::path::Path, version: usize) {
    let old = Connection::open(path).unwrap();
    old.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
    for sql in &MIGRATIONS[..version] {
        old.execute_batch(sql).unwrap();
    }
    old.pragma_update(None, "user_version", version as i64).unwrap();
    if version == 0 {
        return;
    }
    old.execute_batch(ROWS).unwrap();
    let there = tables(&old);
    for (table, sql) in LATER.iter().filter(|(table, _)| there.contains(*table)) {
        old.execute_batch(sql).unwrap_or_else(|error| panic!("{table}: {error}"));
    }
    for table in there {
        let rows: i64 =
            old.query_row(&format!("SELECT count(*) FROM {table}"), [], |r| r.get(0)).unwrap();
        assert!(rows > 0, "put a row of {table} into LATER, so that later steps are tried on it");
    }
}

fn tables(db: &Connection) -> BTreeSet<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let mut statement = db.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

type Rows = Vec<Vec<(String, Value)>>;

/// All rows of all tables, by the names of their columns.
fn contents(db: &Connection) -> BTreeMap<String, Rows> {
    let read = |table: &String| {
        let mut statement = db.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let row = |row: &rusqlite::Row<'_>| {
            names.iter().enumerate().map(|(i, name)| Ok((name.clone(), row.get(i)?))).collect()
        };
        statement.query_map([], row).unwrap().collect::<Result<Rows, _>>().unwrap()
    };
    tables(db).into_iter().map(|table| (table.clone(), read(&table))).collect()
}

#[test]
fn every_row_of_every_earlier_schema_is_there_after_the_update() {
    for version in 0..=MIGRATIONS.len() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::open_or_create(directory.path().join("home")).unwrap();
        database_of(&home.db(), version);
        let before = contents(&Connection::open(home.db()).unwrap());
        let store = Store::open(&home).unwrap();
        assert_eq!(store.problems().unwrap(), Vec::<String>::new(), "from schema {version}");
        let now: i64 =
            store.connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(now, SCHEMA_VERSION);
        let after = contents(&store.connection);
        for (table, rows) in &before {
            let same = after.get(table).unwrap_or_else(|| panic!("{table} is gone"));
            assert_eq!(same.len(), rows.len(), "{table} from schema {version}");
            for (old, new) in rows.iter().zip(same) {
                let kept = |cell: &&(String, Value)| new.contains(cell);
                let lost: Vec<_> = old.iter().filter(|cell| !kept(cell)).collect();
                assert!(lost.is_empty(), "{table} from schema {version}: {lost:?} became {new:?}");
            }
        }
        drop(store);
        let store = Store::open(&home).unwrap();
        assert_eq!(contents(&store.connection), after, "opened again");
        reads_as_ever(&store, version);
    }
}

/// What the program makes of those rows.
fn reads_as_ever(store: &Store, version: usize) {
    let filter = FeedbackFilter { archived: true, ..FeedbackFilter::default() };
    let marks = store.list_feedback(&filter).unwrap();
    let (jobs, adapters) = (store.jobs().unwrap(), store.adapters().unwrap());
    if version == 0 {
        assert!(marks.is_empty() && jobs.is_empty() && adapters.is_empty());
        return;
    }
    let of = |id: i64| marks.iter().find(|row| row.id == id).unwrap();
    assert_eq!(marks.len(), 3, "what was forgotten is not shown");
    assert_eq!((of(3).consumed_by, of(1).in_job, of(2).in_job), (Some(1), Some(2), Some(3)));
    assert_eq!(jobs.iter().map(|job| job.priority).collect::<Vec<_>>(), [0, 5, -1]);
    assert_eq!(store.job_examples(2, ExampleRole::Replay).unwrap().len(), 1);
    assert_eq!((adapters.len(), adapters[0].live, adapters[0].used_in), (2, true, 1));
    assert_eq!(adapters[1].parent, Some(id("old")));
    assert_eq!(store.events(1).unwrap().len(), 2);
    // The job that ran goes on, and what was learned stays learned once.
    assert_eq!(store.requeue_orphans(3).unwrap().cancelled, [3]);
    let sql = "UPDATE jobs SET state = 'succeeded' WHERE id = 2";
    let twice = "INSERT INTO job_feedback VALUES (2, 4, 'new', 'a', 1), (1, 4, 'new', 'a', 1)";
    store.connection.execute(twice, []).unwrap();
    let error = store.connection.execute(sql, []).unwrap_err().to_string();
    assert!(error.contains("already learned"), "{error}");
}
