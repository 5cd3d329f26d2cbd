//! Jobs and the model in use.

use super::*;
use crate::actors::test_kit::idle;

impl Stage {
    /// Stores marks on answers of a base, by the letter of its hash.
    async fn marks_of(&self, base: &'static str, texts: &[&'static str]) {
        let texts = texts.to_vec();
        let add = move |store: &Store| {
            for text in texts {
                store.add_feedback(&NewFeedback {
                    messages: question(text),
                    response: format!("{text} indeed"),
                    mark: Mark::Good,
                    weight: 10.0,
                    note: None,
                    fix: None,
                    domain: "general".to_owned(),
                    adapter: None,
                    base: Some(base.repeat(64)),
                })?;
            }
            Ok(())
        };
        self.db.call(add).await.unwrap();
    }

    fn change_to(&self, name: &str, letter: &str) {
        self.current.propose(idle(name, letter));
        self.current.accept();
    }
}

#[actix::test]
async fn a_job_trains_the_model_it_was_enqueued_for_whatever_is_in_use_when_it_ends() {
    let stage = stage();
    stage.marks_of("b", &["bees", "rivers"]).await;
    let first = stage.enqueue().await.unwrap();
    let worker = stage.worker(1).await;
    assert_eq!(worker.base_hash, "b".repeat(64));
    stage.change_to("other", "c");
    stage.marks_of("c", &["stars"]).await;
    let second = stage.enqueue().await.unwrap();
    assert_eq!(second.examples, 1, "the marks of the other model are its own");
    worker.finish(2.0, 1.0).await;
    let worker = stage.worker(2).await;
    assert_eq!((worker.base_hash.as_str(), worker.examples), ("c".repeat(64).as_str(), 1));
    worker.finish(2.0, 1.0).await;
    stage.notices.until("the end", |n| matches!(n, JobNotice::Succeeded { job: 2, .. })).await;
    let rows = stage.db.call(|store| store.adapters()).await.unwrap();
    let bases: Vec<&str> = rows.iter().map(|row| row.base.as_str()).collect();
    assert_eq!(bases, ["tiny", "other"]);
    assert!(rows.iter().all(|row| row.live), "each is live on its own base");
    assert_eq!(rows[0].id.as_str(), first.name);
}

#[actix::test]
async fn a_queued_job_keeps_its_model_when_another_is_loaded() {
    let stage = stage();
    stage.marks_of("b", &["bees"]).await;
    stage.enqueue().await.unwrap();
    let running = stage.worker(1).await;
    stage.marks_of("b", &["rivers"]).await;
    stage.enqueue().await.unwrap();
    stage.change_to("other", "c");
    running.finish(2.0, 1.0).await;
    assert_eq!(stage.worker(2).await.base_hash, "b".repeat(64));
}

#[actix::test]
async fn a_threshold_counts_only_marks_of_the_model_in_use() {
    let stage = stage();
    stage.marks_of("c", &["bees", "rivers"]).await;
    let domain = "general".to_owned();
    stage.actor.send(ThresholdReached { domain: domain.clone(), threshold: 1 }).await.unwrap();
    let refused = stage.enqueue().await;
    assert!(matches!(refused, Err(ActorError::NothingToTrain(_))), "{refused:?}");
    assert_eq!(stage.started(), 0);
    stage.change_to("other", "c");
    stage.actor.send(ThresholdReached { domain, threshold: 1 }).await.unwrap();
    assert_eq!(stage.worker(1).await.examples, 2);
}
