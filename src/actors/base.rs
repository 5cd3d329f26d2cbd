//! The model that is in use, as all actors see it.
//!
//! Plain data with closures that load: it outlives every actor, so a restarted one works for the model that is in use and
//! not for the one that the program began with. To change the model is one store of a pointer here.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use super::model_thread::ModelLoader;
use crate::lora::{AdapterSet, LoraError};
use crate::messages::inference::ModelLine;
use crate::plan::TrainedBase;

/// Makes a loader for a new thread.
pub type LoaderFactory = Arc<dyn Fn() -> ModelLoader + Send + Sync>;

/// Reads an adapter from its directory and checks it against the model, smoke forward included.
pub type AdapterLoader = Arc<dyn Fn(&Path) -> Result<AdapterSet, LoraError> + Send + Sync>;

/// Loads the model that a user names; `None` is the one in use, whose hash it gets. One line for the user on failure.
pub type ModelOpener = Arc<dyn Fn(&str, &str) -> Result<Option<Base>, String> + Send + Sync>;

/// A model that can answer, train and judge adapters.
pub struct Base {
    /// What it is, for people.
    pub line: ModelLine,
    /// What a training needs to know of it.
    pub trained: TrainedBase,
    /// Gets it into the thread that answers.
    pub make_loader: LoaderFactory,
    /// Reads its adapters.
    pub load_adapter: AdapterLoader,
}

impl Base {
    /// Returns the hash of its weights, which names it.
    pub fn hash(&self) -> &str {
        &self.trained.base_hash
    }
}

/// The model in use, and perhaps the one that is about to be.
#[derive(Clone)]
pub struct CurrentBase(Arc<RwLock<Slots>>);

struct Slots {
    current: Arc<Base>,
    next: Option<Arc<Base>>,
}

impl CurrentBase {
    /// Begins with this model.
    pub fn new(base: Base) -> Self {
        Self(Arc::new(RwLock::new(Slots { current: Arc::new(base), next: None })))
    }

    /// Returns the model in use.
    pub fn get(&self) -> Arc<Base> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).current)
    }

    /// Puts a model forward; the old one stays in use.
    pub fn propose(&self, next: Base) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).next = Some(Arc::new(next));
    }

    /// Returns the model that was put forward.
    pub fn proposed(&self) -> Option<Arc<Base>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).next.clone()
    }

    /// Takes a proposal back.
    pub fn withdraw(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).next = None;
    }

    /// Brings the model that was put forward into use.
    pub fn accept(&self) {
        let mut slots = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = slots.next.take() {
            slots.current = next;
        }
    }
}
