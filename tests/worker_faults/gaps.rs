//! The pauses between the pieces of running answers, alone and while workers go wrong. Measured, so not part of a usual run.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr};
use candle_core::Device;
use shammah::actors::base::CurrentBase;
use shammah::actors::inference::{InferenceActor, InferenceParts};
use shammah::actors::model_thread::LiveTable;
use shammah::app::Opened;
use shammah::domain::{DeviceChoice, Message};
use shammah::engine::{ContextOverflow, Limits};
use shammah::messages::inference::{AdapterChoice, Generate, Piece, Sampling, answer_channel};
use shammah::messages::{ActorName, Port};
use shammah::models::{self, ModelSource};

/// How long answers are measured alone, before each fault: so both see the same load of the machine.
const ALONE: Duration = Duration::from_secs(4);
const QUESTIONS: [&str; 4] = [
    "Who are you?",
    "How do I teach you something?",
    "What does /rollback do?",
    "What is the name of our build server?",
];

/// A model that answers on this arbiter, as in the program.
pub struct Chat(Addr<InferenceActor>);

impl Chat {
    pub fn start() -> Self {
        let opened = Opened {
            model: models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap(),
            source: ModelSource::Builtin,
            hash_cache: None,
            device: "cpu".to_owned(),
            choice: DeviceChoice::Cpu,
            limits: Limits { context_overflow: ContextOverflow::Slide, cache_bytes: 0 },
        };
        let parts = InferenceParts {
            routes: shammah::actors::routes::RouteTable::default(),
            current: CurrentBase::new(opened.into()),
            open: Arc::new(|_, _| Err("no other model".to_owned())),
            live: LiveTable::default(),
            usage: Port::unconnected(ActorName::Registry),
            adopt: Port::unconnected(ActorName::Registry),
        };
        Self(InferenceActor::new(parts, None).start())
    }

    /// One answer; the pauses between its pieces, as far as `over` has not come.
    async fn answer(&self, number: usize, gaps: &mut Vec<f64>, over: &Cell<bool>) {
        let (out, mut pieces) = answer_channel();
        // The built-in model's answers are short; a high temperature makes them longer.
        let sampling = Sampling { temperature: 1.5, seed: number as u64, ..Sampling::greedy(200) };
        let generate = Generate {
            messages: vec![Message::user(QUESTIONS[number % QUESTIONS.len()])],
            sampling,
            adapters: AdapterChoice::Base,
            out,
            cancel: Arc::default(),
        };
        self.0.send(generate).await.unwrap().unwrap();
        let mut last: Option<Instant> = None;
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Text(_) => {
                    let now = Instant::now();
                    let gap = last.replace(now).map(|last| now - last);
                    gaps.extend(gap.filter(|_| !over.get()).map(|gap| gap.as_secs_f64() * 1e3));
                }
                Piece::Ended(Err(error)) => panic!("{error}"),
                Piece::Started { .. } | Piece::Ended(Ok(_)) => {}
            }
        }
    }

    /// Answers one question after the other while `work` is done.
    pub async fn during<F: Future>(&self, work: F) -> (F::Output, Gaps) {
        let (mut gaps, over) = (Vec::new(), Cell::new(false));
        let speak = async {
            let mut number = 0;
            while !over.get() {
                self.answer(number, &mut gaps, &over).await;
                number += 1;
            }
        };
        let work = async {
            let output = work.await;
            over.set(true);
            output
        };
        let (output, ()) = futures::join!(work, speak);
        (output, Gaps(gaps))
    }

    pub async fn alone(&self) -> Gaps {
        self.during(tokio::time::sleep(ALONE)).await.1
    }
}

/// Pauses, milliseconds.
#[derive(Default)]
pub struct Gaps(Vec<f64>);

impl Gaps {
    pub fn add(&mut self, other: Gaps) {
        self.0.extend(other.0);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The pause that this share of them does not exceed; 1 is the longest.
    pub fn share(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (share * sorted.len() as f64).ceil() as usize;
        sorted[at.clamp(1, sorted.len()) - 1]
    }

    /// A line of the table, with how many exceed `bound`.
    pub fn line(&self, what: &str, bound: f64) -> String {
        let over = self.0.iter().filter(|gap| **gap > bound).count();
        format!(
            "{what:<34} {:6} gaps  p50 {:7.2}  p99 {:7.2}  longest {:7.2} ms  {over} above",
            self.0.len(),
            self.share(0.5),
            self.share(0.99),
            self.share(1.0),
        )
    }
}
