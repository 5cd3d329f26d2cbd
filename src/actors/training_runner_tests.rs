//! What the runner keeps of a job, and what it leaves.

use super::super::runner::{KillOnDrop, MAX_NOTES, PROGRESS_PAUSE, is_due};
use super::*;
use crate::plan;

/// A job that got worse by what it is measured on.
fn worse() -> Measurements {
    let item = |id, before, after| ItemLoss { id, before, after };
    Measurements {
        rule: false,
        trained: vec![item(1, 1.0, 3.0)],
        heldout: vec![item(2, 1.0, 2.0), item(3, 2.0, 5.0)],
        general: vec![],
        prompted: Vec::new(),
        neighbours: Vec::new(),
        kl: 0.01,
        final_loss: 3.0,
        steps: 30,
        examples: 1,
        exploded_at: None,
    }
}

impl Stage {
    async fn rejected(&self) {
        self.notices.until("rejection", |n| matches!(n, JobNotice::Rejected { .. })).await;
    }

    /// Counts the events of a kind.
    async fn events(&self, job: i64, kind: &'static str) -> usize {
        let events = self.db.call(move |store| store.events(job)).await.unwrap();
        events.iter().filter(|event| event.kind == kind).count()
    }
}

#[actix::test]
async fn a_rejected_job_keeps_its_means_and_its_curve_and_no_checkpoint() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap().id;
    let worker = stage.worker(1).await;
    let checkpoint = stage.home.checkpoint(job);
    fs_err::create_dir_all(&checkpoint).unwrap();
    fs_err::write(checkpoint.join("step"), "x").unwrap();
    // Without a word that it measures: the state is there all the same.
    worker.end(WorkerExit::Finished(Box::new(worse()))).await;
    stage.rejected().await;
    let row = stage.job(job).await;
    assert_eq!((row.heldout_before, row.heldout_after), (Some(1.5), Some(3.5)));
    assert_eq!(stage.events(job, "evaluating").await, 1);
    assert!(!checkpoint.exists());
}

#[actix::test]
async fn a_job_with_nothing_held_out_has_no_means_of_it() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap().id;
    let worker = stage.worker(1).await;
    let measured = Measurements { heldout: Vec::new(), ..worse() };
    worker.end(WorkerExit::Finished(Box::new(measured))).await;
    stage.rejected().await;
    let row = stage.job(job).await;
    assert_eq!((row.heldout_before, row.heldout_after), (None, None));
}

#[actix::test]
async fn of_a_worker_that_never_stops_talking_so_many_notes_are_stored() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap().id;
    let worker = stage.worker(1).await;
    for n in 0..MAX_NOTES + 3 {
        worker.say(WorkerEvent::Note(format!("note {n}"))).await;
    }
    worker.end(WorkerExit::Finished(Box::new(worse()))).await;
    stage.rejected().await;
    assert_eq!(stage.events(job, plan::NOTE).await, MAX_NOTES);
}

#[test]
fn progress_is_stored_at_first_and_again_after_the_pause() {
    let start = tokio::time::Instant::now();
    assert!(is_due(None, start));
    assert!(!is_due(Some(start), start));
    assert!(!is_due(Some(start), start + PROGRESS_PAUSE / 2));
    assert!(is_due(Some(start), start + PROGRESS_PAUSE));
}

#[actix::test]
async fn a_worker_that_nobody_listens_to_is_killed() {
    let stage = stage();
    stage.marks(&["bees"]).await;
    stage.enqueue().await.unwrap();
    let worker = stage.worker(1).await;
    drop(KillOnDrop(Box::new(worker.clone())));
    assert_eq!(*worker.asked.lock().unwrap(), ["kill"]);
}
