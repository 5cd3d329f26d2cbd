use std::sync::{Arc, Mutex};

use super::*;
use crate::actors::test_kit::{Log, probe, temp_store};
use crate::messages::ActorName;

struct Stage {
    ports: Ports,
    notices: Port<Notice>,
    said: Log<Notice>,
    console: Port<CloseConsole>,
    db: Db,
    order: Arc<Mutex<Vec<&'static str>>>,
    _dir: tempfile::TempDir,
}

fn stage() -> Stage {
    let order: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let heard = |what: &'static str| {
        let order = Arc::clone(&order);
        move || order.lock().unwrap().push(what)
    };
    let (answer, worker, closed) = (heard("answer"), heard("worker"), heard("console"));
    let mut ports = Ports::unconnected();
    ports.stop_generating = probe(move |stop: &StopGenerating| {
        assert!(stop.closing);
        answer();
    })
    .0;
    ports.park = probe(move |_: &ParkTraining| worker()).0;
    let (notices, said) = probe(|_: &Notice| ());
    let (console, _) = probe(move |_: &CloseConsole| closed());
    let (dir, store) = temp_store();
    Stage { ports, notices, said, console, db: Db::new(store), order, _dir: dir }
}

impl Stage {
    async fn end(&self, hurry: &mut mpsc::Receiver<Shutdown>) {
        let ending = Ending {
            ports: &self.ports,
            notices: &self.notices,
            console: Some(&self.console),
            db: &self.db,
            hurry,
            holds_queue: true,
        };
        ending.run(&signal()).await;
    }
}

fn signal() -> Shutdown {
    Shutdown { reason: ShutdownReason::Signal("SIGTERM"), code: 130 }
}

#[actix::test]
async fn answers_end_before_the_worker_the_worker_before_the_console_and_the_store_last() {
    let stage = stage();
    let (_keep, mut hurry) = mpsc::channel(1);
    stage.end(&mut hurry).await;
    assert_eq!(*stage.order.lock().unwrap(), ["answer", "worker", "console"]);
    assert_eq!(stage.said.len(), 1, "the user hears why");
    assert!(stage.db.call(|store| store.jobs()).await.is_err(), "the store is closed");
}

#[actix::test]
async fn a_worker_that_does_not_end_is_waited_for_only_so_long() {
    tokio::time::pause();
    let mut stage = stage();
    stage.ports.park = hung();
    let (_keep, mut hurry) = mpsc::channel(1);
    let start = Instant::now();
    stage.end(&mut hurry).await;
    let took = start.elapsed();
    assert!(took >= WORKER_PATIENCE && took < WORKER_PATIENCE * 2, "{took:?}");
    assert!(stage.order.lock().unwrap().contains(&"console"));
}

#[actix::test]
async fn the_job_of_a_worker_that_does_not_end_waits_for_the_next_start_without_a_lost_attempt() {
    let mut stage = stage();
    stage.ports.park = hung();
    let mark = crate::store::NewFeedback {
        messages: crate::actors::test_kit::question("who?"),
        response: "?".to_owned(),
        mark: crate::domain::Mark::Good,
        weight: 1.0,
        note: None,
        fix: None,
        domain: "general".to_owned(),
        adapter: None,
        base: None,
    };
    let config = crate::config::Config::defaults().unwrap();
    let wish = crate::plan::JobWish { domain: "general".to_owned(), ..Default::default() };
    let job = crate::plan::new_job(&config, wish).unwrap();
    let begin = move |store: &crate::store::Store| {
        store.add_feedback(&mark)?;
        store.enqueue_job(&job)?;
        store.claim_next()
    };
    stage.db.call(begin).await.unwrap().unwrap();
    let (again, mut hurry) = mpsc::channel(2);
    again.send(signal()).await.unwrap();
    stage.end(&mut hurry).await;
    let home = crate::store::Home::open_or_create(stage._dir.path().join("home")).unwrap();
    let jobs = crate::store::Store::open(&home).unwrap().jobs().unwrap();
    assert_eq!((jobs[0].state, jobs[0].attempts), (crate::store::JobState::Queued, 0));
}

#[actix::test]
async fn a_second_request_cuts_the_wait_short() {
    tokio::time::pause();
    let mut stage = stage();
    stage.ports.park = hung();
    let (again, mut hurry) = mpsc::channel(1);
    again.send(signal()).await.unwrap();
    let start = Instant::now();
    // The first step may take the request, so there is one for each.
    actix::spawn(async move { while again.send(signal()).await.is_ok() {} });
    stage.end(&mut hurry).await;
    assert!(start.elapsed() < WORKER_PATIENCE);
}

/// A training actor that never answers.
fn hung() -> Port<ParkTraining> {
    use actix::{Actor, Context, Handler, ResponseFuture};
    struct Hung;
    impl Actor for Hung {
        type Context = Context<Self>;
    }
    impl Handler<ParkTraining> for Hung {
        type Result = ResponseFuture<()>;
        fn handle(&mut self, _: ParkTraining, _: &mut Self::Context) -> Self::Result {
            Box::pin(std::future::pending())
        }
    }
    Port::new(ActorName::Training, Hung.start().recipient())
}
