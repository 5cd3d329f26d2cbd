use std::sync::{Arc, Mutex};

use actix::{Addr, Message};

use super::*;
use crate::actors::test_kit::{Log, eventually, probe};
use crate::messages::ActorError;

#[derive(Message)]
#[rtype(result = "u32")]
struct Ping;

#[derive(Message)]
#[rtype(result = "()")]
struct Die;

/// An actor that says which incarnation it is.
struct Mortal {
    incarnation: u32,
    _guard: Guard,
}

impl Actor for Mortal {
    type Context = Context<Self>;
}

impl Handler<Ping> for Mortal {
    type Result = u32;

    fn handle(&mut self, _: Ping, _: &mut Self::Context) -> u32 {
        self.incarnation
    }
}

impl Handler<Die> for Mortal {
    type Result = ();

    fn handle(&mut self, _: Die, _: &mut Self::Context) {
        panic!("told to die");
    }
}

struct Stage {
    supervisor: Addr<Supervisor>,
    ping: Port<Ping>,
    die: Port<Die>,
    starts: Arc<Mutex<Vec<Instant>>>,
    notices: Log<Notice>,
    ended: mpsc::Receiver<Shutdown>,
}

fn stage(actor: ActorName) -> Stage {
    let (ping, die) = (Port::unconnected(actor), Port::unconnected(actor));
    let starts: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let (shutdown, ended) = mpsc::channel(SHUTDOWN_QUEUE);
    let (notices, told) = probe(|_: &Notice| ());
    let starter: Starter = {
        let (ping, die, starts) = (ping.clone(), die.clone(), Arc::clone(&starts));
        Box::new(move |guard| {
            starts.lock().unwrap().push(Instant::now());
            let incarnation = guard.down.incarnation;
            let actor = Mortal { incarnation, _guard: guard }.start();
            ping.connect(actor.clone().recipient());
            die.connect(actor.recipient());
            Ok(())
        })
    };
    let supervisor =
        Supervisor::new(RestartPolicy::STANDARD, notices, shutdown).with_child(actor, starter);
    let supervisor = supervisor.start();
    supervisor.do_send(StartChild(actor));
    Stage { supervisor, ping, die, starts, notices: told, ended }
}

impl Stage {
    async fn alive(&self, incarnation: usize) {
        eventually("the actor runs", || self.starts.lock().unwrap().len() == incarnation).await;
    }
}

#[actix::test]
async fn an_actor_that_panics_is_restarted_behind_the_same_port() {
    let stage = stage(ActorName::Feedback);
    stage.alive(1).await;
    assert_eq!(stage.ping.send(Ping).await, Ok(1));
    let restarting = ActorError::Restarting(ActorName::Feedback);
    assert_eq!(stage.die.send(Die).await, Err(restarting.clone()));
    assert_eq!(stage.ping.send(Ping).await, Err(restarting));
    stage.alive(2).await;
    assert_eq!(stage.ping.send(Ping).await, Ok(2));
}

#[actix::test]
async fn restarts_wait_longer_each_time_and_then_the_supervisor_gives_up() {
    tokio::time::pause();
    let mut stage = stage(ActorName::Inference);
    for incarnation in 1..=MAX_RESTARTS + 1 {
        stage.alive(incarnation).await;
        let _ = stage.die.send(Die).await;
    }
    let end = stage.ended.recv().await.unwrap();
    assert_eq!(end, Shutdown { reason: ShutdownReason::GaveUp(ActorName::Inference), code: 1 });
    let starts = stage.starts.lock().unwrap().clone();
    let pauses: Vec<_> = starts.windows(2).map(|two| two[1] - two[0]).collect();
    for (n, pause) in pauses.iter().enumerate() {
        let least = RESTART_PAUSE * 2_u32.pow(u32::try_from(n).unwrap());
        assert!(*pause >= least && *pause < least * 2, "restart {n} after {pause:?}");
    }
}

#[actix::test]
async fn the_user_is_told_of_each_restart_and_of_giving_up() {
    tokio::time::pause();
    let stage = stage(ActorName::Feedback);
    for incarnation in 1..=MAX_RESTARTS + 1 {
        stage.alive(incarnation).await;
        let _ = stage.die.send(Die).await;
    }
    let gave_up = |n: &Notice| n.0.contains("failed more than 5 times in 60 s: giving up");
    stage.notices.until("giving up", gave_up).await;
    let told = stage.notices.take();
    let restarts = told.iter().filter(|n| n.0.contains("is being restarted")).count();
    assert_eq!((restarts, told.len()), (MAX_RESTARTS, MAX_RESTARTS + 1));
}

#[actix::test]
async fn rare_deaths_are_forgiven() {
    tokio::time::pause();
    let mut stage = stage(ActorName::Training);
    for incarnation in 1..=2 * MAX_RESTARTS {
        stage.alive(incarnation).await;
        let _ = stage.die.send(Die).await;
        tokio::time::sleep(RESTART_WINDOW).await;
    }
    assert!(stage.ended.try_recv().is_err());
}

#[actix::test]
async fn a_dead_console_ends_the_program() {
    let mut stage = stage(ActorName::Console);
    stage.alive(1).await;
    let _ = stage.die.send(Die).await;
    let end = stage.ended.recv().await.unwrap();
    assert_eq!((end.reason, end.code), (ShutdownReason::GaveUp(ActorName::Console), 1));
}

#[actix::test]
async fn nothing_is_restarted_once_the_shutdown_was_asked_for() {
    let mut stage = stage(ActorName::Registry);
    stage.alive(1).await;
    let quit = Shutdown { reason: ShutdownReason::Quit, code: 0 };
    stage.supervisor.send(quit.clone()).await.unwrap();
    let _ = stage.die.send(Die).await;
    assert_eq!(stage.ended.recv().await, Some(quit));
    tokio::time::sleep(RESTART_PAUSE * 3).await;
    assert_eq!(stage.starts.lock().unwrap().len(), 1);
}

#[actix::test]
async fn a_report_about_an_earlier_incarnation_changes_nothing() {
    let stage = stage(ActorName::Registry);
    stage.alive(1).await;
    let _ = stage.die.send(Die).await;
    stage.alive(2).await;
    stage.supervisor.send(Down { actor: ActorName::Registry, incarnation: 1 }).await.unwrap();
    tokio::time::sleep(RESTART_PAUSE * 3).await;
    assert_eq!(stage.ping.send(Ping).await, Ok(2));
}

#[test]
fn a_restart_counts_until_the_window_is_over() {
    let policy = RestartPolicy { max_restarts: 1, ..RestartPolicy::STANDARD };
    let mut history = RestartHistory::default();
    let first = Instant::now();
    assert!(history.next(&policy, first).is_some());
    assert_eq!(history.next(&policy, first + RESTART_WINDOW - Duration::from_nanos(1)), None);
    assert!(history.next(&policy, first + RESTART_WINDOW).is_some());
}

#[test]
fn the_pause_never_exceeds_the_longest() {
    let policy = RestartPolicy { max_restarts: 100, ..RestartPolicy::STANDARD };
    let mut history = RestartHistory::default();
    let now = Instant::now();
    let pauses: Vec<_> = (0..100).map(|_| history.next(&policy, now).unwrap()).collect();
    assert!(pauses.is_sorted() && pauses[99] == LONGEST_RESTART_PAUSE);
    assert_eq!(history.next(&policy, now), None);
}
