//! The registry actor: adapters on disk, their rows, and which one answers.
//!
//! Whatever changes what is live runs alone, from the check over the row to the swap ([`AtomicResponse`]): the database
//! and the model never disagree for longer than one message.

mod damage;
pub mod follow;
mod mixture;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, AsyncContext, AtomicResponse, Context, ContextFutureSpawner, Handler, ResponseFuture,
    WrapFuture,
};
use tracing::Instrument;

use self::follow::{Answering, LIVE_POLL};
use super::base::{Base, CurrentBase};
use super::db::{Db, DbError};
use super::queue_right::QueueRight;
use super::supervisor::{Guard, actor_span};
use super::views;
use crate::config::Term;
use crate::domain::AdapterId;
use crate::lora::{AdapterSet, LoraError};
use crate::messages::console::LiveChanged;
use crate::messages::inference::{LiveSet, SetLive};
use crate::messages::registry::{
    AdapterLine, AdoptBase, DeleteAdapter, ListAdapters, LoadAdapter, PublishAdapter, Published,
    ReadAdapters, RecordUsage, RestoreLive, RollbackAdapter, RolledBack, ShowStats, UnloadAdapter,
};
use crate::messages::{ActorError, ActorName, MAILBOX_CAPACITY, Port};
use crate::store::{
    AdapterRow, Home, NewAdapter, NewUsage, Reconciled, Statistics, Store, UsedAdapter,
};

/// Tries to hand an adapter to an inference actor that is being restarted.
const SWAP_TRIES: usize = 5;
/// The pause between them; together longer than the supervisor's first pauses.
const SWAP_PAUSE: Duration = Duration::from_millis(300);

/// What the registry knows about the process it works in.
#[derive(Clone)]
pub struct RegistryParts {
    /// The data directory.
    pub home: Home,
    /// Its database.
    pub db: Db,
    /// The base in use.
    pub current: CurrentBase,
    /// The model; `None` where nobody chats.
    pub inference: Option<Port<SetLive>>,
    /// Who hears of swaps.
    pub changed: Option<Port<LiveChanged>>,
    /// What the model answers with; survives the actor.
    pub answering: Answering,
    /// What domains answer with besides their live adapters, where that is configured.
    pub mixtures: BTreeMap<String, Vec<Term>>,
    /// Whether this process runs the queue and so may tidy the directory.
    pub right: QueueRight,
}

/// Owns the adapters.
pub struct AdapterRegistryActor {
    parts: RegistryParts,
    _guard: Option<Guard>,
}

impl AdapterRegistryActor {
    /// Makes the actor.
    pub fn new(parts: RegistryParts, guard: Option<Guard>) -> Self {
        Self { parts, _guard: guard }
    }
}

impl Actor for AdapterRegistryActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        if self.parts.inference.is_some() {
            ctx.run_interval(LIVE_POLL, |this, ctx| {
                let parts = this.parts.clone();
                // Alone, like everything that changes what is live.
                async move { parts.follow().await }.into_actor(this).wait(ctx);
            });
        }
    }
}

impl RegistryParts {
    /// Returns the hash of the base in use.
    fn base_hash(&self) -> String {
        self.current.get().hash().to_owned()
    }

    /// Reads an adapter of the base in use off the arbiter.
    async fn read(&self, directory: PathBuf) -> Result<AdapterSet, ActorError> {
        self.read_for(&self.current.get(), directory).await
    }

    async fn read_for(&self, base: &Base, directory: PathBuf) -> Result<AdapterSet, ActorError> {
        let read = self.try_read(base, directory).await;
        read.map_err(|error| ActorError::Adapter(error.to_string()))
    }

    async fn try_read(&self, base: &Base, directory: PathBuf) -> Result<AdapterSet, LoraError> {
        let load = Arc::clone(&base.load_adapter);
        match tokio::task::spawn_blocking(move || load(&directory)).await {
            Ok(result) => result,
            Err(error) => {
                Err(std::io::Error::other(format!("the adapter could not be read: {error}")).into())
            }
        }
    }

    /// Makes the inference actor answer with `live` in `domain`, and tells the console. Returns whether it does.
    async fn swap(&self, domain: &str, live: Option<(AdapterId, AdapterSet)>) -> bool {
        let base = self.current.get();
        self.swap_for(&base, domain, live).await
    }

    async fn swap_for(
        &self,
        base: &Base,
        domain: &str,
        live: Option<(AdapterId, AdapterSet)>,
    ) -> bool {
        // Nobody answers in a service: those that do read the database.
        if self.inference.is_none() {
            return false;
        }
        for _ in 0..SWAP_TRIES {
            if self.hand_over(base, domain, live.as_ref(), false).await {
                return true;
            }
            tokio::time::sleep(SWAP_PAUSE).await;
        }
        tracing::error!(domain, "the model did not take the adapters: they are offered again");
        false
    }

    /// Offers the inference actor `live` once, and tells the console when it took it.
    async fn hand_over(
        &self,
        base: &Base,
        domain: &str,
        live: Option<&(AdapterId, AdapterSet)>,
        elsewhere: bool,
    ) -> bool {
        let Some(inference) = &self.inference else { return false };
        let (set, problems) = self.mixed(base, domain, live).await;
        problems.iter().for_each(|problem| tracing::warn!("{problem}"));
        let adapters = set.iter().flat_map(|set| &set.ids).map(|(id, _)| id.clone()).collect();
        let message =
            SetLive { base: base.hash().to_owned(), domain: domain.to_owned(), live: set };
        if inference.send(message).await.is_err() {
            return false;
        }
        let id = live.map(|(id, _)| id.clone());
        self.answering.took(domain, id);
        self.tell(LiveChanged { domain: domain.to_owned(), adapters, elsewhere });
        true
    }

    fn tell(&self, event: LiveChanged) {
        let Some(changed) = &self.changed else { return };
        if let Err(error) = changed.try_send(event) {
            tracing::debug!(%error, "nobody heard of the swap");
        }
    }

    async fn row(&self, id: &AdapterId) -> Result<AdapterRow, DbError> {
        let id = id.clone();
        self.db.call(move |store| store.adapter(&id)).await
    }

    async fn live(&self, domain: &str) -> Result<Option<AdapterRow>, DbError> {
        let (base_hash, domain) = (self.base_hash(), domain.to_owned());
        self.db.call(move |store| store.live(&base_hash, &domain)).await
    }

    async fn set_live(&self, id: &AdapterId) -> Result<AdapterRow, DbError> {
        let (id, base_hash) = (id.clone(), self.base_hash());
        self.db.call(move |store| store.set_live(&id, &base_hash)).await
    }

    fn line(&self, row: AdapterRow) -> AdapterLine {
        let path = self.home.adapter(&row.id);
        views::adapter_line(row, path, self.current.get().hash())
    }

    async fn publish(&self, message: PublishAdapter) -> Result<Published, ActorError> {
        let base = self.current.get();
        let set = match base.hash() == message.base_hash {
            true => Some(self.read_for(&base, message.dir.clone()).await?),
            false => None,
        };
        let (id, domain) = (message.id.clone(), message.domain.clone());
        let new = NewAdapter {
            id: message.id,
            domain: message.domain,
            base: message.base,
            base_hash: message.base_hash,
            rank: message.rank,
            target_modules: message.target_modules,
            examples: message.examples,
            dir: message.dir,
        };
        let (job, metrics, promotion) = (message.job, message.metrics, message.promotion);
        self.db.call(move |store| store.finish_succeeded(job, &new, &metrics, &promotion)).await?;
        let live = match set {
            Some(set) => self.swap_for(&base, &domain, Some((id.clone(), set))).await,
            None => false,
        };
        Ok(Published { path: self.home.adapter(&id), live })
    }

    async fn load(&self, id: &AdapterId) -> Result<AdapterLine, ActorError> {
        let row = self.row(id).await?;
        // The base is compared before the files: a message about shapes would hide the reason.
        let set = match row.base_hash == self.base_hash() {
            true => Some(self.read(self.home.adapter(id)).await?),
            false => None,
        };
        let row = self.set_live(id).await?;
        if let Some(set) = set {
            self.swap(&row.domain, Some((id.clone(), set))).await;
        }
        Ok(self.line(row))
    }

    async fn unload(
        &self,
        id: Option<AdapterId>,
        domain: &str,
    ) -> Result<Vec<AdapterId>, ActorError> {
        let id = match id {
            Some(id) => id,
            None => match self.live(domain).await? {
                Some(row) => row.id,
                None => {
                    return Err(ActorError::Refused("the base model is live already".to_owned()));
                }
            },
        };
        let row = {
            let id = id.clone();
            self.db.call(move |store| store.unload(&id)).await?
        };
        if row.base_hash == self.base_hash() {
            self.swap(&row.domain, None).await;
        }
        Ok(vec![id])
    }

    async fn rollback(&self, domain: &str) -> Result<RolledBack, ActorError> {
        let before = self.live(domain).await?;
        let (base_hash, name) = (self.base_hash(), domain.to_owned());
        let to = self.db.call(move |store| store.rollback(&base_hash, &name)).await?;
        let Some(from) = before.map(|row| row.id) else {
            return Err(ActorError::Refused("the base model is live already".to_owned()));
        };
        let set = match &to {
            None => None,
            Some(id) => match self.read(self.home.adapter(id)).await {
                Ok(set) => Some((id.clone(), set)),
                Err(error) => {
                    self.set_live(&from).await?;
                    return Err(error);
                }
            },
        };
        self.swap(domain, set).await;
        Ok(RolledBack { from, to })
    }

    /// Deletes an adapter that is not live; where a configured mixture has it, the others of that answer from now on.
    async fn delete(&self, id: AdapterId) -> Result<u64, ActorError> {
        let gone = id.clone();
        let work = move |store: &Store| {
            let bytes = store.adapter(&gone)?.bytes;
            store.delete_adapter(&gone)?;
            Ok(bytes)
        };
        let bytes = self.db.call(work).await?;
        self.leave_out(&id).await;
        Ok(bytes)
    }

    async fn restore(&self) -> Result<Vec<String>, ActorError> {
        let mut lines = Vec::new();
        if self.right.is_held() {
            lines.extend(describe(&self.db.call(|store| store.reconcile()).await?));
        }
        if self.inference.is_none() {
            return Ok(lines);
        }
        let base = self.current.get();
        let rows = self.live_rows(base.hash()).await?;
        lines.extend(self.bring_live(&base, rows).await);
        Ok(lines)
    }

    /// Changes to the base that was put forward.
    async fn adopt(&self) -> Result<Vec<String>, ActorError> {
        let Some(next) = self.current.proposed() else {
            return Err(ActorError::Refused("there is no other model to change to".to_owned()));
        };
        let rows = self.live_rows(next.hash()).await?;
        self.answering.forget();
        let lines = self.bring_live(&next, rows).await;
        self.current.accept();
        Ok(lines)
    }
}

/// Says what tidying found, one line each.
pub(super) fn describe(found: &Reconciled) -> Vec<String> {
    let removed = found
        .removed
        .iter()
        .map(|path| format!("removed {}: an adapter that was never finished", path.display()));
    let set_aside = found.set_aside.iter().map(|(from, to)| {
        let name = from.file_name().unwrap_or_default().to_string_lossy();
        format!(
            "\"{name}\" lay among the adapters and is none of them: moved to {} (`shammah adapters import` checks and takes one)",
            to.display()
        )
    });
    let quarantined = found.quarantined.iter().map(|(id, _)| {
        format!(
            "adapter \"{id}\" is quarantined: its files are missing; put them back or delete it"
        )
    });
    let restored = found.restored.iter().map(|id| format!("adapter \"{id}\" has its files back"));
    removed.chain(set_aside).chain(quarantined).chain(restored).collect()
}

/// Implements a handler that runs alone: nothing else is handled until its future is done.
macro_rules! alone {
    ($message:ty => $output:ty, |$parts:ident, $it:ident| $work:expr) => {
        impl Handler<$message> for AdapterRegistryActor {
            type Result = AtomicResponse<Self, Result<$output, ActorError>>;

            fn handle(&mut self, $it: $message, _: &mut Self::Context) -> Self::Result {
                let $parts = self.parts.clone();
                let work = async move { $work.await }.instrument(actor_span(ActorName::Registry));
                AtomicResponse::new(Box::pin(work.into_actor(self)))
            }
        }
    };
}

alone!(PublishAdapter => Published, |parts, it| parts.publish(it));
alone!(LoadAdapter => AdapterLine, |parts, it| parts.load(&it.id));
alone!(UnloadAdapter => Vec<AdapterId>, |parts, it| parts.unload(it.id, &it.domain));
alone!(RollbackAdapter => RolledBack, |parts, it| parts.rollback(&it.domain));
alone!(DeleteAdapter => u64, |parts, it| parts.delete(it.id));
alone!(RestoreLive => Vec<String>, |parts, _it| parts.restore());
alone!(ReadAdapters => LiveSet, |parts, it| parts.read_mixture(it.adapters));
alone!(AdoptBase => Vec<String>, |parts, _it| parts.adopt());

impl Handler<ListAdapters> for AdapterRegistryActor {
    type Result = ResponseFuture<Result<Vec<AdapterLine>, ActorError>>;

    fn handle(&mut self, _: ListAdapters, _: &mut Self::Context) -> Self::Result {
        let parts = self.parts.clone();
        Box::pin(async move {
            let rows = parts.db.call(|store| store.adapters()).await?;
            Ok(rows.into_iter().rev().map(|row| parts.line(row)).collect())
        })
    }
}

impl Handler<ShowStats> for AdapterRegistryActor {
    type Result = ResponseFuture<Result<Statistics, ActorError>>;

    fn handle(&mut self, _: ShowStats, _: &mut Self::Context) -> Self::Result {
        let db = self.parts.db.clone();
        Box::pin(async move { Ok(db.call(|store| store.statistics()).await?) })
    }
}

impl Handler<RecordUsage> for AdapterRegistryActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, message: RecordUsage, _: &mut Self::Context) -> Self::Result {
        let usage = NewUsage {
            base: message.base,
            adapters: used(message.adapters),
            prompt_tokens: message.prompt_tokens,
            new_tokens: message.new_tokens,
            prefill_ms: message.prefill_ms as f64,
            decode_ms: message.decode_ms as f64,
            finish_reason: views::finish_name(message.finish_reason).to_owned(),
        };
        let db = self.parts.db.clone();
        Box::pin(async move {
            if let Err(error) = db.call(move |store| store.add_usage(&usage)).await {
                tracing::warn!(%error, "a usage row was lost");
            }
        })
    }
}

fn used(adapters: Vec<(AdapterId, f64)>) -> Vec<UsedAdapter> {
    adapters.into_iter().map(|(id, weight)| UsedAdapter { id, weight }).collect()
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
