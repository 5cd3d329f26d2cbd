//! What the actors' tests share: stores in temporary directories, probes that record messages.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::dev::MessageResponse;
use actix::{Actor, Context, Handler, Message, MessageResult};
use tempfile::TempDir;

use super::base::{AdapterLoader, Base, CurrentBase};
use super::model_thread::ModelLoader;
use crate::domain;
use crate::domain::DeviceChoice;
use crate::lora::AdapterSet;
use crate::messages::inference::ModelLine;
use crate::messages::{ActorName, Port};
use crate::models::ModelSource;
use crate::plan::TrainedBase;
use crate::store::{Home, Store};

/// Longest that a test waits for something to happen, by tokio's clock.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn temp_home() -> (TempDir, Home) {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open_or_create(dir.path().join("home")).unwrap();
    (dir, home)
}

pub(crate) fn temp_store() -> (TempDir, Store) {
    let (dir, home) = temp_home();
    (dir, Store::open(&home).unwrap())
}

/// Messages that a probe got.
pub(crate) struct Log<M>(Arc<Mutex<Vec<M>>>);

impl<M> Clone for Log<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Log<M> {
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(crate) fn take(&self) -> Vec<M> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    pub(crate) fn any(&self, wanted: impl Fn(&M) -> bool) -> bool {
        self.0.lock().unwrap().iter().any(wanted)
    }

    /// Waits until a message like this came.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&M) -> bool) {
        eventually(what, || self.any(&wanted)).await;
    }
}

/// Waits until `done`.
pub(crate) async fn eventually(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

/// What a probe answers to a message.
type Answer<M> = Box<dyn FnMut(&M) -> <M as Message>::Result>;

struct Probe<M: Message> {
    log: Log<M>,
    answer: Answer<M>,
}

impl<M: Message + Unpin + 'static> Actor for Probe<M>
where
    M::Result: 'static,
{
    type Context = Context<Self>;
}

impl<M> Handler<M> for Probe<M>
where
    M: Message + Unpin + Send + 'static,
    M::Result: Send + 'static,
    MessageResult<M>: MessageResponse<Self, M>,
{
    type Result = MessageResult<M>;

    fn handle(&mut self, message: M, _: &mut Self::Context) -> Self::Result {
        let answer = (self.answer)(&message);
        self.log.0.lock().unwrap().push(message);
        MessageResult(answer)
    }
}

/// Makes a port with a recorder behind it that answers with `answer`.
pub(crate) fn probe<M>(answer: impl FnMut(&M) -> M::Result + 'static) -> (Port<M>, Log<M>)
where
    M: Message + Unpin + Send + 'static,
    M::Result: Send + 'static,
{
    let log = Log(Arc::default());
    let probe = Probe { log: log.clone(), answer: Box::new(answer) }.start();
    (Port::new(ActorName::Console, probe.recipient()), log)
}

/// A conversation of one question.
pub(crate) fn question(text: &str) -> Vec<domain::Message> {
    vec![domain::Message::user(text)]
}

/// A base by name with a hash of one letter, which loads its model and adapters like this.
pub(crate) fn base(
    name: &str,
    letter: &str,
    make: impl Fn() -> ModelLoader + Send + Sync + 'static,
    load_adapter: AdapterLoader,
) -> Base {
    Base {
        line: ModelLine { name: name.to_owned(), takes_system: true, ..ModelLine::default() },
        trained: TrainedBase {
            name: name.to_owned(),
            source: ModelSource::Builtin,
            base_hash: letter.repeat(64),
            hash_cache: None,
            quantize: None,
            parameters: 1000,
            device: DeviceChoice::Cpu,
        },
        make_loader: Arc::new(make),
        load_adapter,
    }
}

/// The base `tiny`, which loads nothing and whose adapters are all empty.
pub(crate) fn tiny() -> CurrentBase {
    CurrentBase::new(idle("tiny", "b"))
}

/// A base that loads nothing and whose adapters are all empty.
pub(crate) fn idle(name: &str, letter: &str) -> Base {
    let nothing = || Box::new(|| Err("no file".to_owned())) as ModelLoader;
    base(name, letter, nothing, Arc::new(|_| Ok(AdapterSet::empty())))
}
