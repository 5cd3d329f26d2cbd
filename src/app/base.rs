//! From a loaded model to what the actors work with.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::actors::base::{AdapterLoader, Base, LoaderFactory};
use crate::actors::model_thread::{Answerer, ModelLoader};
use crate::domain::{DeviceChoice, Message, Route, Routes};
use crate::engine::{
    Engine, EngineError, Generated, Limits, Revised, RevisionEvent, RevisionRequest, Router,
    Sampling,
};
use crate::lora::{self, AdapterSet};
use crate::messages::inference::ModelLine;
use crate::models::{self, LoadedModel, ModelSource};
use crate::plan::TrainedBase;

/// A model and where it came from.
#[derive(Clone)]
pub struct Opened {
    /// The model, loaded.
    pub model: LoadedModel,
    /// Where it was loaded from, to load it again.
    pub source: ModelSource,
    /// Where hashes of weight files are cached.
    pub hash_cache: Option<PathBuf>,
    /// Where it computes, in words for the user.
    pub device: String,
    /// Where the configuration wants it to.
    pub choice: DeviceChoice,
    /// What its engine goes by.
    pub limits: Limits,
}

impl From<Opened> for Base {
    fn from(opened: Opened) -> Self {
        let model = opened.model.clone();
        let load_adapter: AdapterLoader = Arc::new(move |dir: &Path| {
            let adapter = lora::load_verified(dir, &model)?;
            Ok(AdapterSet::single(Arc::new(adapter)))
        });
        Self {
            line: line(&opened),
            trained: TrainedBase {
                name: opened.model.name.clone(),
                source: opened.source.clone(),
                base_hash: opened.model.base_hash.clone(),
                hash_cache: opened.hash_cache.clone(),
                parameters: opened.model.parameters,
                quantize: opened.model.quantize,
                device: opened.choice,
            },
            make_loader: opened.factory(),
            load_adapter,
        }
    }
}

fn line(opened: &Opened) -> ModelLine {
    let model = &opened.model;
    ModelLine {
        name: model.name.clone(),
        source: opened.source.to_string(),
        family: format!("{:?}", model.decoder.config().family).to_lowercase(),
        parameters: model.parameters,
        format: model.decoder.format(),
        context_length: model.context_length,
        device: opened.device.clone(),
        takes_system: model.tokenizer.takes_system(),
        builtin: opened.source == ModelSource::Builtin,
        adapters: Vec::new(),
        notes: Vec::new(),
    }
}

impl Opened {
    /// Gets the model into a thread: as it was loaded, and read again from its files after a panic.
    fn factory(self) -> LoaderFactory {
        Arc::new(move || {
            let this = self.clone();
            let mut first = Some(this.model.clone());
            let load: ModelLoader = Box::new(move || {
                let model = first.take().map_or_else(|| this.read(), Ok)?;
                Ok(Box::new(Timed::new(model, this.limits)) as Box<dyn Answerer>)
            });
            load
        })
    }

    fn read(&self) -> Result<LoadedModel, String> {
        let device = self.model.decoder.device();
        let (cache, quantize) = (self.hash_cache.as_deref(), self.model.quantize);
        let mut model = models::load_as(&self.source, device, cache, quantize)
            .map_err(|error| error.to_string())?;
        if model.base_hash != self.model.base_hash {
            return Err(format!("{}: its files have changed; start again", model.name));
        }
        model.context_length = self.model.context_length;
        Ok(model)
    }
}

/// An engine with the program's clock.
struct Timed {
    engine: Engine,
    /// What questions were routed by last, and the router of it.
    router: Option<(Arc<Routes>, Option<Router>)>,
}

impl Timed {
    fn new(model: LoadedModel, limits: Limits) -> Self {
        let start = Instant::now();
        let engine = Engine::new(model, limits).with_clock(move || start.elapsed());
        Self { engine, router: None }
    }

    fn find(&mut self, routes: &Arc<Routes>, question: &str) -> Result<Option<Route>, EngineError> {
        let model = self.engine.model();
        if !self.router.as_ref().is_some_and(|(of, _)| Arc::ptr_eq(of, routes)) {
            let before = self.router.take().and_then(|(_, router)| router);
            self.router = Some((Arc::clone(routes), Router::new(model, routes, before)?));
        }
        let router = self.router.as_ref().and_then(|(_, router)| router.as_ref());
        router.map(|router| router.route(model, question)).transpose()
    }
}

impl Answerer for Timed {
    fn answer(
        &mut self,
        messages: &[Message],
        sampling: &Sampling,
        adapters: &AdapterSet,
        cancel: &AtomicBool,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, String> {
        self.engine
            .generate(messages, sampling, adapters, cancel, on_text)
            .map_err(|error| error.to_string())
    }

    fn revise(
        &mut self,
        request: &RevisionRequest,
        adapters: &AdapterSet,
        cancel: &AtomicBool,
        on_event: &mut dyn FnMut(RevisionEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Revised, String> {
        self.engine.revise(request, adapters, cancel, on_event).map_err(|error| error.to_string())
    }

    fn route(&mut self, routes: &Arc<Routes>, question: &str) -> Option<Route> {
        let start = Instant::now();
        let found = self.find(routes, question);
        match &found {
            Ok(Some(Route { domain, similarity })) => {
                tracing::debug!(domain, similarity, took = ?start.elapsed(), "routed");
            }
            Ok(None) => {}
            Err(_) => tracing::warn!("a question could not be routed: the default domain answers"),
        }
        found.ok().flatten()
    }
}
