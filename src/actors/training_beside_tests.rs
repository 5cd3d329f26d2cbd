//! Beside the process that runs the queue, and in its place.

use super::*;

#[actix::test]
async fn a_second_instance_enqueues_and_waits_but_runs_nothing() {
    let stage = stage_of(false, |_| ());
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    let mut waited = Box::pin(stage.actor.send(WaitForJobs));
    let early = tokio::time::timeout(QUEUE_POLL * 2, &mut waited).await;
    assert!(early.is_err(), "the job is still open");
    assert_eq!(stage.started(), 0);
    Store::open(&stage.home).unwrap().request_cancel(job.id).unwrap();
    assert_eq!(waited.await.unwrap(), Ok(1));
}

#[actix::test]
async fn a_second_instance_runs_the_queue_when_the_first_is_gone() {
    let mut stage = stage_of(false, |_| ());
    tokio::time::pause();
    stage.marks(&["bees"]).await;
    let job = stage.enqueue().await.unwrap();
    tokio::time::sleep(FOLLOW_POLL * 2).await;
    assert_eq!(stage.started(), 0);
    drop(stage.other.take());
    tokio::time::sleep(FOLLOW_POLL * 3).await;
    assert!(!stage.home.queue_is_held(), "a service that is restarted finds it free");
    stage.worker(1).await.finish(2.0, 0.5).await;
    stage.actor.send(WaitForJobs).await.unwrap().unwrap();
    assert_eq!(stage.job(job.id).await.state, JobState::Succeeded);
    assert!(stage.home.queue_is_held(), "and keeps it");
}
