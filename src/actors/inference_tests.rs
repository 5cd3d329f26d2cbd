use std::ops::ControlFlow;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use actix::Addr;
use tokio::sync::mpsc::Receiver;

use super::super::model_thread::Answerer;
use super::*;
use crate::actors::test_kit::{Log, probe, question};
use crate::domain::Message;
use crate::engine::{FinishReason, Generated, Sampling};
use crate::lora::AdapterSet;
use crate::messages::ActorName;
use crate::messages::inference::{
    ANSWER_CAPACITY, AdapterChoice, Answer, LiveSet, Piece, answer_channel,
};

/// A model that does what the question says.
struct Script {
    go_on: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Answerer for Script {
    fn answer(
        &mut self,
        messages: &[Message],
        _: &Sampling,
        _: &AdapterSet,
        cancel: &AtomicBool,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, String> {
        let mut finish_reason = FinishReason::Stop;
        let mut new_tokens = 1;
        match messages[0].content.as_str() {
            "panic" => panic!("out of luck"),
            "refuse" => return Err("the conversation is too long".to_owned()),
            "wait" => drop(self.go_on.lock().unwrap().recv()),
            "for ever" => {
                while !cancel.load(Ordering::Relaxed) && on_text("la ").is_continue() {
                    new_tokens += 1;
                }
                finish_reason = FinishReason::Cancelled;
            }
            _ => drop((on_text("Hello"), on_text(" there"))),
        }
        let text = "Hello there".to_owned();
        let (prompt_tokens, cached_tokens) = (3, 0);
        let (prefill, decode) = (Some(Duration::from_millis(7)), None);
        Ok(Generated {
            text,
            prompt_tokens,
            cached_tokens,
            new_tokens,
            prefill,
            decode,
            finish_reason,
        })
    }
}

struct Stage {
    actor: Addr<InferenceActor>,
    loads: Arc<AtomicUsize>,
    go: mpsc::Sender<()>,
    usage: Log<RecordUsage>,
}

fn stage() -> Stage {
    let loads = Arc::new(AtomicUsize::new(0));
    let (go, go_on) = mpsc::channel();
    let go_on = Arc::new(Mutex::new(go_on));
    let count = Arc::clone(&loads);
    let factory: LoaderFactory = Box::new(move || {
        let (count, go_on) = (Arc::clone(&count), Arc::clone(&go_on));
        Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Script { go_on: Arc::clone(&go_on) }) as Box<dyn Answerer>)
        })
    });
    let (port, usage) = probe(|_: &RecordUsage| ());
    let actor = InferenceActor::new(factory, LiveTable::default(), port, None).start();
    Stage { actor, loads, go, usage }
}

impl Stage {
    async fn ask(&self, text: &str) -> (Result<(), ActorError>, Receiver<Piece>, Arc<AtomicBool>) {
        let (out, pieces) = answer_channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let generate = Generate {
            messages: question(text),
            sampling: Sampling::greedy(16),
            adapters: AdapterChoice::Live { domain: "general".to_owned() },
            out,
            cancel: Arc::clone(&cancel),
        };
        (self.actor.send(generate).await.unwrap(), pieces, cancel)
    }

    async fn answer(&self, text: &str) -> Result<Answer, ActorError> {
        let (taken, pieces, _) = self.ask(text).await;
        taken?;
        end(pieces).await
    }

    async fn live(&self, id: &str) {
        let ids = vec![(id.parse().unwrap(), 1.0)];
        let live = Some(LiveSet { ids, set: AdapterSet::empty() });
        self.actor.send(SetLive { domain: "general".to_owned(), live }).await.unwrap();
    }
}

async fn end(mut pieces: Receiver<Piece>) -> Result<Answer, ActorError> {
    while let Some(piece) = pieces.recv().await {
        if let Piece::Ended(result) = piece {
            assert_eq!(pieces.recv().await, None, "the end is the last piece");
            return result;
        }
    }
    panic!("an answer without an end");
}

#[actix::test]
async fn an_answer_starts_streams_ends_and_is_counted() {
    let stage = stage();
    let (taken, mut pieces, _) = stage.ask("hi").await;
    assert_eq!(taken, Ok(()));
    assert_eq!(pieces.recv().await, Some(Piece::Started { adapters: vec![] }));
    assert_eq!(pieces.recv().await, Some(Piece::Text("Hello".to_owned())));
    assert_eq!(pieces.recv().await, Some(Piece::Text(" there".to_owned())));
    let answer = end(pieces).await.unwrap();
    assert_eq!((answer.text.as_str(), answer.prefill_ms, answer.decode_ms), ("Hello there", 7, 0));
    stage.usage.until("usage", |row| row.prompt_tokens == 3).await;
}

#[actix::test]
async fn after_a_panic_of_the_model_the_chat_goes_on() {
    let stage = stage();
    assert!(stage.answer("hi").await.is_ok());
    let failed = stage.answer("panic").await;
    assert_eq!(failed, Err(ActorError::ModelPanicked("out of luck".to_owned())));
    assert!(stage.answer("hi").await.is_ok());
    assert_eq!(stage.loads.load(Ordering::Relaxed), 2, "loaded anew once");
    assert!(stage.answer("hi").await.is_ok());
    assert_eq!(stage.loads.load(Ordering::Relaxed), 2);
}

#[actix::test]
async fn a_refusal_of_the_engine_ends_the_answer_with_its_words() {
    let stage = stage();
    let refused = stage.answer("refuse").await;
    assert_eq!(refused, Err(ActorError::Engine("the conversation is too long".to_owned())));
    assert!(stage.answer("hi").await.is_ok());
    assert_eq!(stage.loads.load(Ordering::Relaxed), 1);
}

#[actix::test]
async fn a_full_queue_answers_busy_and_takes_work_again_later() {
    let stage = stage();
    let (_, mut running, _) = stage.ask("wait").await;
    running.recv().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..INFERENCE_QUEUE {
        let (taken, pieces, _) = stage.ask("hi").await;
        assert_eq!(taken, Ok(()));
        waiting.push(pieces);
    }
    let (refused, mut pieces, _) = stage.ask("hi").await;
    assert_eq!(refused, Err(ActorError::Busy { what: "the model", limit: INFERENCE_QUEUE }));
    assert_eq!(pieces.recv().await, None, "nothing is sent for a refused question");
    stage.go.send(()).unwrap();
    for pieces in waiting {
        assert!(end(pieces).await.is_ok());
    }
    assert!(stage.answer("hi").await.is_ok());
}

#[actix::test]
async fn a_dropped_receiver_ends_the_answer() {
    let stage = stage();
    let (_, pieces, _) = stage.ask("for ever").await;
    drop(pieces);
    assert!(stage.answer("hi").await.is_ok(), "the model is free again");
}

#[actix::test]
async fn a_cancelled_answer_ends_even_if_its_reader_is_behind() {
    let stage = stage();
    let (_, mut pieces, cancel) = stage.ask("for ever").await;
    while pieces.len() < ANSWER_CAPACITY {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    cancel.store(true, Ordering::Relaxed);
    pieces.recv().await.unwrap();
    let answer = end(pieces).await.unwrap();
    assert_eq!(answer.finish_reason, FinishReason::Cancelled);
}

#[actix::test]
async fn an_answer_in_flight_keeps_its_adapter_and_the_next_takes_the_new_one() {
    let stage = stage();
    stage.live("old").await;
    let (_, mut in_flight, _) = stage.ask("wait").await;
    in_flight.recv().await.unwrap();
    stage.live("new").await;
    stage.go.send(()).unwrap();
    let name = |answer: Answer| answer.adapters[0].0.to_string();
    assert_eq!(name(end(in_flight).await.unwrap()), "old");
    assert_eq!(name(stage.answer("hi").await.unwrap()), "new");
    stage.actor.send(SetLive { domain: "general".to_owned(), live: None }).await.unwrap();
    assert_eq!(stage.answer("hi").await.unwrap().adapters, vec![]);
}

#[actix::test]
async fn stopping_cancels_all_answers_waits_for_them_and_refuses_new_ones() {
    let stage = stage();
    let (_, running, _) = stage.ask("for ever").await;
    let (_, queued, _) = stage.ask("for ever").await;
    let readers = tokio::spawn(async { (end(running).await, end(queued).await) });
    stage.actor.send(StopGenerating { closing: true }).await.unwrap();
    let (running, queued) = readers.await.unwrap();
    assert_eq!(running.unwrap().finish_reason, FinishReason::Cancelled);
    assert_eq!(queued.unwrap().finish_reason, FinishReason::Cancelled);
    assert_eq!(stage.answer("hi").await, Err(ActorError::Closing));
}

#[actix::test]
async fn a_restarted_actor_answers_with_the_adapters_that_were_live() {
    let live = LiveTable::default();
    let ids = vec![("kept".parse().unwrap(), 1.0)];
    live.set("general".to_owned(), Some(LiveSet { ids, set: AdapterSet::empty() }));
    let factory: LoaderFactory = Box::new(|| Box::new(|| Err("no file".to_owned())));
    let usage = Port::unconnected(ActorName::Registry);
    let actor = InferenceActor::new(factory, live.clone(), usage, None).start();
    assert_eq!(live.get("general").ids.len(), 1);
    let (out, pieces) = answer_channel();
    let generate = Generate {
        messages: question("hi"),
        sampling: Sampling::greedy(1),
        adapters: AdapterChoice::Base,
        out,
        cancel: Arc::default(),
    };
    actor.send(generate).await.unwrap().unwrap();
    let unavailable = ActorError::ModelUnavailable("no file".to_owned());
    assert_eq!(end(pieces).await, Err(unavailable));
}
