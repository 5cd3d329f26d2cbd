use std::ops::ControlFlow;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use actix::Addr;
use tokio::sync::mpsc::Receiver;

use super::super::base::AdapterLoader;
use super::super::model_thread::{Answerer, ModelLoader};
use super::*;
use crate::actors::test_kit::{Log, base, probe, question, tiny};
use crate::domain::Message;
use crate::engine::{
    Candidate, FinishReason, Generated, Revised, RevisionEvent, RevisionRequest, Sampling,
};
use crate::lora::AdapterSet;
use crate::messages::ActorName;
use crate::messages::inference::{
    ANSWER_CAPACITY, AdapterChoice, Answer, LiveSet, Piece, Revise, RevisionPiece, answer_channel,
    revision_channel,
};

/// A model that does what the question, or the note, says.
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
            dropped_turns: 0,
        })
    }

    fn revise(
        &mut self,
        request: &RevisionRequest,
        _: &AdapterSet,
        cancel: &AtomicBool,
        on_event: &mut dyn FnMut(RevisionEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Revised, String> {
        match request.note.as_str() {
            "panic" => panic!("out of luck"),
            "refuse" => return Err("the note is too long".to_owned()),
            "for ever" => {
                let text = RevisionEvent::Text { candidate: 1, text: "la " };
                while !cancel.load(Ordering::Relaxed) && on_event(text).is_continue() {}
                return Ok(revised(Vec::new(), true));
            }
            _ => {}
        }
        for candidate in 0..request.candidates {
            let text = ["first", "second"][candidate % 2];
            let _ = on_event(RevisionEvent::Text { candidate, text });
            let _ = on_event(RevisionEvent::Answered { candidate });
        }
        let best = Candidate { text: "second".to_owned(), score: 0.5, index: 1 };
        Ok(revised(vec![best], false))
    }
}

fn revised(candidates: Vec<Candidate>, cancelled: bool) -> Revised {
    Revised { candidates, criticised: None, answers: 2, cancelled }
}

struct Stage {
    actor: Addr<InferenceActor>,
    loads: Arc<AtomicUsize>,
    go: mpsc::Sender<()>,
    usage: Log<RecordUsage>,
    current: CurrentBase,
    /// What the slow model waits for.
    doors: Arc<Mutex<mpsc::Receiver<()>>>,
}

fn stage() -> Stage {
    let loads = Arc::new(AtomicUsize::new(0));
    let (go, go_on) = mpsc::channel();
    let go_on = Arc::new(Mutex::new(go_on));
    let count = Arc::clone(&loads);
    let make = move || {
        let (count, go_on) = (Arc::clone(&count), Arc::clone(&go_on));
        let load: ModelLoader = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Script { go_on: Arc::clone(&go_on) }) as Box<dyn Answerer>)
        });
        load
    };
    let (port, usage) = probe(|_: &RecordUsage| ());
    let no_adapter: AdapterLoader = Arc::new(|_| Ok(AdapterSet::empty()));
    let current = CurrentBase::new(base("tiny", "b", make.clone(), Arc::clone(&no_adapter)));
    let doors = Arc::new(Mutex::new(mpsc::channel().1));
    let (inside, seen) = (Arc::clone(&doors), current.clone());
    let open: ModelOpener = Arc::new(move |name, in_use| {
        assert_eq!(in_use, seen.get().hash());
        match name {
            "slow" => drop(inside.lock().unwrap().recv()),
            "broken" => return Err("/models/broken/config.json: no such file".to_owned()),
            "same" => return Ok(None),
            "hostile" => panic!("a bug in the loader"),
            _ => {}
        }
        Ok(Some(base(name, "c", make.clone(), Arc::clone(&no_adapter))))
    });
    let adopting = current.clone();
    let (adopt, _) = probe(move |_: &AdoptBase| {
        adopting.accept();
        Ok(vec!["a note".to_owned()])
    });
    let parts = InferenceParts {
        routes: RouteTable::default(),
        current: current.clone(),
        open,
        live: LiveTable::default(),
        usage: port,
        adopt,
    };
    let actor = InferenceActor::new(parts, None).start();
    Stage { actor, loads, go, usage, current, doors }
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

    async fn revise(&self, note: &str) -> (Receiver<RevisionPiece>, Arc<AtomicBool>) {
        let (out, pieces) = revision_channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let request = RevisionRequest {
            messages: question("hi"),
            criticised: "Hello".to_owned(),
            note: note.to_owned(),
            candidates: 2,
            sampling: Sampling::greedy(16),
        };
        let adapters = AdapterChoice::Live { domain: "general".to_owned() };
        let revise = Revise { request, adapters, out, cancel: Arc::clone(&cancel) };
        self.actor.send(revise).await.unwrap().unwrap();
        (pieces, cancel)
    }

    async fn live(&self, id: &str) {
        let ids = vec![(id.parse().unwrap(), 1.0)];
        let live = Some(LiveSet { ids, set: AdapterSet::empty() });
        let base = self.current.get().hash().to_owned();
        self.actor.send(SetLive { base, domain: "general".to_owned(), live }).await.unwrap();
    }

    async fn switch(&self, source: &str) -> Result<ModelLine, ActorError> {
        self.actor.send(SwitchModel { source: source.to_owned() }).await.unwrap()
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
    let base = "b".repeat(64);
    stage.actor.send(SetLive { base, domain: "general".to_owned(), live: None }).await.unwrap();
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
    let set = Some(LiveSet { ids, set: AdapterSet::empty() });
    live.set("b".repeat(64), "general".to_owned(), set);
    let parts = InferenceParts {
        routes: RouteTable::default(),
        current: tiny(),
        open: Arc::new(|_, _| Err("no file".to_owned())),
        live: live.clone(),
        usage: Port::unconnected(ActorName::Registry),
        adopt: Port::unconnected(ActorName::Registry),
    };
    let actor = InferenceActor::new(parts, None).start();
    assert_eq!(actor.send(ShowModel).await.unwrap().unwrap().adapters.len(), 1);
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

#[actix::test]
async fn another_model_answers_once_it_is_loaded_and_the_old_one_until_then() {
    let stage = stage();
    let (open_door, door) = mpsc::channel();
    *stage.doors.lock().unwrap() = door;
    stage.live("ours").await;
    assert_eq!(stage.answer("hi").await.unwrap().base, "b".repeat(64));
    let waiting = tokio::spawn(stage.actor.send(SwitchModel { source: "slow".to_owned() }));
    let during = stage.answer("hi").await.unwrap();
    assert_eq!((during.base, during.adapters.len()), ("b".repeat(64), 1));
    let second = stage.switch("other").await.unwrap_err().to_string();
    assert!(second.contains("another model is being loaded"), "{second}");
    open_door.send(()).unwrap();
    let line = waiting.await.unwrap().unwrap().unwrap();
    assert_eq!((line.name.as_str(), line.notes.len(), line.adapters.len()), ("slow", 1, 0));
    let after = stage.answer("hi").await.unwrap();
    assert_eq!((after.base, after.adapters), ("c".repeat(64), vec![]));
    stage.usage.until("usage of the new one", |row| row.base == "slow").await;
}

#[actix::test]
async fn an_answer_in_flight_ends_on_the_old_model() {
    let stage = stage();
    stage.live("ours").await;
    let (_, mut in_flight, _) = stage.ask("wait").await;
    in_flight.recv().await.unwrap();
    let (_, queued, _) = stage.ask("hi").await;
    stage.switch("other").await.unwrap();
    assert_eq!(
        stage.answer("hi").await.unwrap().base,
        "c".repeat(64),
        "the new one waits for nobody"
    );
    stage.go.send(()).unwrap();
    for pieces in [in_flight, queued] {
        let answer = end(pieces).await.unwrap();
        assert_eq!((answer.base, answer.adapters.len()), ("b".repeat(64), 1));
    }
}

#[actix::test]
async fn a_model_that_cannot_be_loaded_leaves_the_old_one() {
    let stage = stage();
    for (name, words) in [
        ("broken", "config.json: no such file"),
        ("hostile", "a bug in the loader"),
        ("same", "in use already"),
    ] {
        let error = stage.switch(name).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(stage.answer("hi").await.unwrap().base, "b".repeat(64));
    }
    assert_eq!(stage.switch("other").await.unwrap().name, "other", "and another try is possible");
    stage.actor.send(StopGenerating { closing: true }).await.unwrap();
    assert_eq!(stage.switch("more").await, Err(ActorError::Closing));
}

async fn all(mut pieces: Receiver<RevisionPiece>) -> Vec<RevisionPiece> {
    let mut all = Vec::new();
    while let Some(piece) = pieces.recv().await {
        all.push(piece);
    }
    all
}

#[actix::test]
async fn a_revision_streams_its_first_candidate_and_ends_with_the_best() {
    let stage = stage();
    let (pieces, _) = stage.revise("be brief").await;
    let best = Candidate { text: "second".to_owned(), score: 0.5, index: 1 };
    let expected = [
        RevisionPiece::Text("first".to_owned()),
        RevisionPiece::Answered(1),
        RevisionPiece::Answered(2),
        RevisionPiece::Ended(Ok(revised(vec![best], false))),
    ];
    assert_eq!(all(pieces).await, expected);
    assert!(stage.answer("hi").await.is_ok());
    // A row comes behind its answer.
    stage.usage.until("the answer's row", |_| true).await;
    assert_eq!(stage.usage.len(), 1, "a revision is no answer to count");
}

#[actix::test]
async fn a_revision_that_is_stopped_lets_the_next_answer_through() {
    let stage = stage();
    let (pieces, cancel) = stage.revise("for ever").await;
    cancel.store(true, Ordering::Relaxed);
    assert_eq!(all(pieces).await, [RevisionPiece::Ended(Ok(revised(Vec::new(), true)))]);
    let (abandoned, _) = stage.revise("for ever").await;
    drop(abandoned);
    assert!(stage.answer("hi").await.is_ok(), "nobody listens to it any more");
}

#[actix::test]
async fn what_goes_wrong_in_a_revision_ends_it_and_nothing_else() {
    let stage = stage();
    let refused = RevisionPiece::Ended(Err(ActorError::Engine("the note is too long".to_owned())));
    assert_eq!(all(stage.revise("refuse").await.0).await, [refused]);
    let panicked = RevisionPiece::Ended(Err(ActorError::ModelPanicked("out of luck".to_owned())));
    assert_eq!(all(stage.revise("panic").await.0).await, [panicked]);
    assert!(stage.answer("hi").await.is_ok());
}
