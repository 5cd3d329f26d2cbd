//! The process killed at every point where something becomes durable, and what a start makes of what is left.

use std::path::Path;

use super::*;
use crate::crash::kit::{asked, at_each_point, say};

const CHILD: &str = "store::tests::crash_points::child";
/// What the marks of the cases say.
const TEXT: &str = "wallaby";

fn open(root: &Path) -> Fixture {
    let home = Home::open_or_create(root.join("home")).unwrap();
    let store = Store::open(&home).unwrap();
    Fixture { store, home, _directory: tempfile::tempdir().unwrap() }
}

fn marked() -> NewFeedback {
    NewFeedback { fix: Some(TEXT.to_owned()), ..mark(Mark::Fix, 1) }
}

/// The process that is killed: it says what it may be held to.
#[test]
#[ignore = "the tests below start it"]
fn child() {
    let Some((case, root)) = asked() else { return };
    let f = open(&root);
    match case.as_str() {
        "enqueue" => {
            let id = f.store.add_feedback(&marked()).unwrap().id;
            say(&format!("mark {id}"));
            say(&format!("job {}", f.store.enqueue_job(&job()).unwrap().id));
        }
        "promote" => say(&format!("adapter {}", f.train("made").id)),
        "purge" => {
            assert!(!f.store.remove_feedback(1).unwrap().still_in_log);
            say("purged");
        }
        "delete" => {
            f.store.delete_adapter(&id("old")).unwrap();
            say("deleted");
        }
        "import" => {
            let room = f.store.import_directory().unwrap();
            write_adapter(room.path());
            let job = f.store.job(1).unwrap();
            let new = NewAdapter {
                id: id("foreign"),
                dir: room.path().to_owned(),
                ..f.new_adapter(&job)
            };
            f.store.import_adapter(&new).unwrap();
            say("imported");
        }
        "quarantine" => {
            f.store.quarantine_adapter(&id("child"), "torn").unwrap();
            say("set aside");
        }
        "tidy" => {
            f.store.reconcile().unwrap();
            say("tidied");
        }
        "open" => say("opened"),
        other => panic!("no case {other}"),
    }
}

/// A start after the death: what must hold wherever the process died.
fn recover(root: &Path) -> Fixture {
    let f = open(root);
    f.store.reconcile().unwrap();
    f.store.requeue_orphans(9).unwrap();
    assert!(f.store.reconcile().unwrap().is_empty(), "one start is enough");
    let check: String =
        f.store.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let rows = f.store.adapters().unwrap();
    for row in &rows {
        assert!(
            f.home.adapter(&row.id).join("training.json").is_file(),
            "{} has its files",
            row.id
        );
        assert_ne!(row.state, AdapterState::Quarantined);
    }
    let directories = f.home.adapters().read_dir().unwrap().count();
    assert_eq!(directories, rows.len(), "no files without a row");
    assert!(f.store.jobs().unwrap().iter().all(|job| !job.state.is_active()), "no job is stuck");
    f
}

fn marks(f: &Fixture) -> Vec<FeedbackRow> {
    f.store.list_feedback(&FeedbackFilter::default()).unwrap()
}

#[test]
fn an_acknowledged_mark_and_job_are_there() {
    let points = at_each_point(
        CHILD,
        "enqueue",
        |root| drop(open(root)),
        |root, said| {
            let f = recover(root);
            let (rows, jobs) = (marks(&f), f.store.jobs().unwrap());
            assert!(rows.len() <= 1 && jobs.len() <= 1);
            assert!(rows.iter().all(|row| row.fix.as_deref() == Some(TEXT)), "whole or absent");
            if said.contains(&"mark 1".to_owned()) {
                assert_eq!(rows.len(), 1, "{said:?}");
            }
            if said.contains(&"job 1".to_owned()) {
                assert_eq!(f.ids(1, ExampleRole::New), [1], "{said:?}");
            }
            if rows.is_empty() {
                f.store.add_feedback(&marked()).unwrap();
            }
            if jobs.is_empty() {
                f.store.enqueue_job(&job()).unwrap();
            }
            assert_eq!(f.store.claim_next().unwrap().unwrap().examples, 1, "the job can run");
        },
    );
    assert!(points.len() >= 4, "{points:?}");
}

#[test]
fn an_adapter_is_there_whole_with_its_row_or_the_job_makes_it_again() {
    let points = at_each_point(
        CHILD,
        "promote",
        |root| drop(open(root)),
        |root, said| {
            let f = recover(root);
            if said.iter().any(|line| line.starts_with("adapter")) {
                assert_eq!(f.live(), Some(id("made")), "{said:?}");
            }
            let consumed = marks(&f).iter().filter(|row| row.consumed_by.is_some()).count();
            assert_eq!(
                consumed > 0,
                f.live().is_some(),
                "learned if and only if the adapter is there"
            );
            if f.live().is_some() {
                return;
            }
            match f.store.claim_next().unwrap() {
                Some(job) => {
                    f.succeed(&f.store.set_evaluating(job.id).unwrap());
                }
                None => {
                    f.train("made");
                }
            }
            assert_eq!(f.live(), Some(id("made")), "the next start comes to the end");
        },
    );
    let has = |name: &str| points.iter().any(|point| point == name);
    assert!(
        has("after the adapter was moved") && has("after a directory was synced"),
        "{points:?}"
    );
}

#[test]
fn a_purged_text_is_nowhere_after_the_next_start_if_its_row_is_gone() {
    let set_up = |root: &Path| {
        let f = open(root);
        f.store.add_feedback(&marked()).unwrap();
        f.store.enqueue_job(&job()).unwrap();
    };
    let points = at_each_point(CHILD, "purge", set_up, |root, said| {
        let f = recover(root);
        let left = marks(&f).len();
        if said.contains(&"purged".to_owned()) {
            assert_eq!(left, 0, "{said:?}");
        }
        let home = f.home.clone();
        if left == 1 {
            f.store.remove_feedback(1).unwrap();
        }
        drop(f);
        let files = home.root().read_dir().unwrap().map(|entry| entry.unwrap().path());
        for file in files.filter(|path| path.is_file()) {
            let bytes = std::fs::read(&file).unwrap();
            let found = bytes.windows(TEXT.len()).any(|window| window == TEXT.as_bytes());
            assert!(!found, "{} after {said:?}", file.display());
        }
    });
    assert!(points.len() >= 3, "{points:?}");
}

#[test]
fn a_deleted_adapter_is_gone_and_an_undeleted_one_whole() {
    let set_up = |root: &Path| {
        let f = open(root);
        f.train("old");
        f.store.unload(&id("old")).unwrap();
    };
    let points = at_each_point(CHILD, "delete", set_up, |root, said| {
        let f = recover(root);
        let there = !f.store.adapters().unwrap().is_empty();
        assert!(!(there && said.contains(&"deleted".to_owned())), "{said:?}");
        let kept = f.home.quarantine().join("old");
        assert!(
            !kept.exists() || kept.join("training.json").is_file(),
            "nothing half deleted is kept"
        );
    });
    assert!(points.len() >= 4, "{points:?}");
}

#[test]
fn an_imported_adapter_is_there_whole_or_not_at_all() {
    let set_up = |root: &Path| {
        let f = open(root);
        f.train("old");
    };
    let points = at_each_point(CHILD, "import", set_up, |root, said| {
        let f = recover(root);
        let there = f.store.adapters().unwrap().iter().any(|row| row.id == id("foreign"));
        assert!(there || !said.contains(&"imported".to_owned()), "{said:?}");
    });
    assert!(points.len() >= 6, "{points:?}");
}

#[test]
fn tidying_can_be_broken_off_anywhere() {
    let set_up = |root: &Path| {
        let f = open(root);
        f.train("known");
        write_adapter(&f.home.adapters().join("stranger"));
        f.add(1);
        let job = f.measured_job(&NewJob { name: Some(id("half")), ..job() });
        write_adapter(&f.home.adapter(&job.name));
    };
    let points = at_each_point(CHILD, "tidy", set_up, |root, _| {
        let f = recover(root);
        assert_eq!(f.live(), Some(id("known")));
        let kept = f.home.quarantine().join("stranger");
        assert!(kept.join("training.json").is_file(), "the stranger is kept whole");
        assert!(!f.home.adapter(&id("half")).exists());
    });
    assert!(points.len() >= 5, "{points:?}");
}

#[test]
fn a_migration_is_done_or_not_begun() {
    let set_up = |root: &Path| {
        let home = Home::open_or_create(root.join("home")).unwrap();
        sweeps::first_schema(&home.db());
    };
    let points = at_each_point(CHILD, "open", set_up, |root, _| {
        let f = recover(root);
        let version: i64 =
            f.store.connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, SCHEMA_VERSION);
        assert_eq!((marks(&f).len(), f.store.jobs().unwrap().len()), (2, 2), "all rows are there");
    });
    assert_eq!(points.len(), 1 + 2 * (SCHEMA_VERSION as usize - 1), "{points:?}");
    let points = at_each_point(CHILD, "open", |_| (), |root, _| drop(recover(root)));
    assert_eq!(points.len(), 1 + 2 * SCHEMA_VERSION as usize, "a new database: {points:?}");
}

#[test]
fn a_damaged_adapter_is_live_and_in_its_place_or_kept_aside_while_its_parent_answers() {
    let set_up = |root: &Path| {
        let f = open(root);
        f.train("parent");
        f.train("child");
    };
    let points = at_each_point(CHILD, "quarantine", set_up, |root, said| {
        let f = open(root);
        f.store.reconcile().unwrap();
        let state = f.store.adapter(&id("child")).unwrap().state;
        let (place, kept) = (f.home.adapter(&id("child")), f.home.quarantine().join("child"));
        assert!(place.is_dir() != kept.is_dir(), "nowhere, or twice: {said:?}");
        let aside = state == AdapterState::Quarantined;
        assert_eq!(aside, kept.is_dir(), "{said:?}");
        assert!(aside || !said.contains(&"set aside".to_owned()));
        assert_eq!(f.live(), Some(id(if aside { "parent" } else { "child" })), "{said:?}");
        assert!(f.store.reconcile().unwrap().is_empty());
    });
    assert!(points.len() >= 5, "{points:?}");
}
