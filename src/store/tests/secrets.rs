//! Secrets are replaced before they are stored and before they are learned; what is forgotten is nowhere on the disk.

use super::*;
use crate::domain::SecretPolicy;
use crate::store::SecretFound;

/// A key as GitHub gives them; put together, so that none stands in this file.
fn key() -> String {
    format!("ghp_{}", "q7Xw2mR9tZ4pL8vB3nJ6hY5cD1fG0sAkU2eW")
}

fn with(policy: SecretPolicy) -> Fixture {
    let f = fixture();
    Fixture { store: f.store.with_secrets(policy), ..f }
}

/// A mark with a secret in each of its texts.
fn leaky() -> NewFeedback {
    NewFeedback {
        messages: vec![Message::user(format!("why does {} fail?", key()))],
        response: format!("use {}", key()),
        note: Some(format!("not {}!", key())),
        fix: Some(format!("{} is revoked", key())),
        ..mark(Mark::Critical, 1)
    }
}

/// The bytes of the database and of its log.
fn on_disk(f: &Fixture) -> Vec<u8> {
    let log = f.home.root().join("shammah.db-wal");
    let mut bytes = std::fs::read(f.home.db()).unwrap();
    bytes.extend(std::fs::read(log).unwrap_or_default());
    bytes
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_secret_is_replaced_in_every_text_before_it_is_stored() {
    let f = with(SecretPolicy::Redact);
    let row = f.store.add_feedback(&leaky()).unwrap();
    let fields: Vec<String> = row.redactions().into_iter().map(|found| found.field).collect();
    assert_eq!(fields, ["message 1", "response", "note", "fix"]);
    assert_eq!(row.fix.as_deref(), Some("[REDACTED:github-token] is revoked"));
    assert!(row.secrets().is_empty());
    f.store.add_all_feedback(&[leaky(), leaky()]).unwrap();
    let edit = FeedbackEdit { fix: Some(key()), note: Some(Some(key())), ..Default::default() };
    let edited = f.store.update_feedback(row.id, &edit).unwrap();
    assert_eq!(edited.fix.as_deref(), Some("[REDACTED:github-token]"));
    let set = ExampleSet { domain: DEFAULT_DOMAIN.to_owned(), marks: Some(vec![leaky()]) };
    f.store.enqueue_batch(&[set], &[(0, job())]).unwrap();
    assert!(!has(&on_disk(&f), &key()), "the key was never written");
}

#[test]
fn where_secrets_are_refused_nothing_of_the_mark_is_stored() {
    let f = with(SecretPolicy::Refuse);
    let error = f.store.add_feedback(&leaky()).unwrap_err().to_string();
    assert!(
        error.contains("github-token in note") && error.contains("feedback.secrets"),
        "{error}"
    );
    assert!(!error.contains(&key()), "the message does not repeat it");
    assert!(f.store.add_all_feedback(&[mark(Mark::Good, 1), leaky()]).is_err());
    let clean = f.store.add_feedback(&mark(Mark::Fix, 2)).unwrap();
    let edit = FeedbackEdit { fix: Some(key()), ..Default::default() };
    assert!(matches!(f.store.update_feedback(clean.id, &edit), Err(StoreError::HoldsSecret(_))));
    let rows = f.store.list_feedback(&FeedbackFilter::default()).unwrap();
    assert_eq!(rows.len(), 1);
    assert!(!has(&on_disk(&f), &key()));
}

#[test]
fn what_was_stored_unlooked_is_found_by_a_scan_and_not_learned() {
    let f = with(SecretPolicy::Off);
    let row = f.store.add_feedback(&leaky()).unwrap();
    assert_eq!(row.secrets()[3], SecretFound { field: "fix".to_owned(), rule: "github-token" });
    let job = f.store.enqueue_job(&job()).unwrap().id;
    let learned = |f: &Fixture| f.store.learnable_examples(job, ExampleRole::New);
    let (examples, replaced) = learned(&f).unwrap();
    assert!(examples[0].target.contains(&key()) && replaced.is_empty(), "nobody looks");

    let f = Fixture { store: f.store.with_secrets(SecretPolicy::Redact), ..f };
    let (examples, replaced) = learned(&f).unwrap();
    assert_eq!(examples[0].target, "[REDACTED:github-token] is revoked");
    assert!(!examples[0].messages[0].content.contains(&key()));
    assert_eq!((replaced[0].0, replaced[0].1.len()), (row.id, 2));

    let f = Fixture { store: f.store.with_secrets(SecretPolicy::Refuse), ..f };
    let error = learned(&f).unwrap_err().to_string();
    assert!(error.contains("feedback forget 1") && error.contains("target"), "{error}");
}

#[test]
fn what_is_forgotten_is_in_no_byte_of_the_database_and_its_log() {
    let f = fixture();
    // Texts that share a page, fill one, and flow over into others.
    for (number, length) in [20, 3_000, 40_000].into_iter().enumerate() {
        let secret = format!("quokka-{number}-");
        let filler = "x".repeat(length);
        f.add(3);
        let new = NewFeedback {
            messages: vec![Message::user(format!("{secret}question {filler}"))],
            response: format!("{secret}response {filler}"),
            note: Some(format!("{secret}note {filler}")),
            ..mark(Mark::Medium, number)
        };
        let id = f.store.add_feedback(&new).unwrap().id;
        for text in ["first", "second"] {
            let fix = Some(format!("{secret}{text} {filler}"));
            f.store.update_feedback(id, &FeedbackEdit { fix, ..Default::default() }).unwrap();
        }
        let job = f.store.enqueue_job(&job()).unwrap();
        f.store.claim_next().unwrap().unwrap();
        f.store.note_job(job.id, "log_tail", &format!("thread panicked: {secret}")).unwrap();
        f.store.finish_failed(job.id, &format!("panicked at {secret}")).unwrap();
        assert!(has(&on_disk(&f), &secret), "it was there: the test can see it");
        assert!(!f.store.remove_feedback(id).unwrap().still_in_log);
        assert!(!has(&on_disk(&f), &secret), "mark {number} of {length} bytes is gone");
    }
    assert_eq!(f.store.list_feedback(&FeedbackFilter::default()).unwrap().len(), 9);
}

#[test]
fn why_a_job_was_cancelled_outlasts_its_marks() {
    let f = fixture();
    let id = f.store.add_feedback(&mark(Mark::Fix, 1)).unwrap().id;
    let job = f.store.enqueue_job(&job()).unwrap().id;
    f.store.request_cancel(job).unwrap();
    let reason = f.store.job(job).unwrap().error;
    assert!(reason.is_some());
    f.store.remove_feedback(id).unwrap();
    assert_eq!(f.store.job(job).unwrap().error, reason);
}

#[test]
fn a_reader_that_keeps_the_log_is_told() {
    let f = fixture();
    let id = f.add(1)[0];
    let reader = rusqlite::Connection::open(f.home.db()).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM feedback").unwrap();
    let _: i64 = reader.query_row("SELECT count(*) FROM feedback", [], |row| row.get(0)).unwrap();
    assert!(f.store.remove_feedback(id).unwrap().still_in_log);
    drop(reader);
    let other = f.add(1)[0];
    assert!(!f.store.remove_feedback(other).unwrap().still_in_log);
}

#[test]
fn adapters_that_grew_from_one_that_saw_a_mark_are_named_too() {
    let f = fixture();
    let first = f.train("first").id;
    let learned = f.store.list_feedback(&FeedbackFilter::default()).unwrap()[0].id;
    let grown = |name: &str| {
        f.add(1);
        let job = f.measured_job(&NewJob { name: Some(id(name)), replay_limit: 0, ..job() });
        let live = f.live();
        f.store.set_job_parent(job.id, live.as_ref()).unwrap();
        f.succeed(&f.store.job(job.id).unwrap());
    };
    grown("second");
    grown("third");
    f.store.delete_adapter(&first).unwrap();
    assert_eq!(f.store.remove_feedback(learned).unwrap().seen_by, [id("second"), id("third")]);
}

#[test]
fn notes_are_read_without_secrets_that_were_stored_before_anybody_looked() {
    let f = with(SecretPolicy::Off);
    f.store.add_feedback(&leaky()).unwrap();
    let job = f.store.enqueue_job(&job()).unwrap().id;
    let note = |store: &Store| store.job_notes(job).unwrap().into_values().next().unwrap();
    assert_eq!(note(&f.store), format!("not {}!", key()));
    let careful = Store::open(&f.home).unwrap().with_secrets(SecretPolicy::Redact);
    assert_eq!(note(&careful), "not [REDACTED:github-token]!");
}
