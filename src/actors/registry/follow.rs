//! Following the rows: what another process of the same data directory made live must answer here too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::RegistryParts;
use crate::actors::db::DbError;
use crate::domain::AdapterId;

/// How often the rows are looked at for changes of other processes: soon enough for a person, and one short read.
pub const LIVE_POLL: Duration = Duration::from_secs(2);

/// What the model answers with, by domain; shared by all incarnations of the registry actor.
#[derive(Clone, Default)]
pub struct Answering(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    live: BTreeMap<String, AdapterId>,
    /// Live rows whose files could not be loaded: reported once, and not tried again until the row changes.
    refused: BTreeMap<String, AdapterId>,
}

/// A domain that the model answers otherwise than its row says.
struct Difference {
    domain: String,
    row: Option<AdapterId>,
}

impl Answering {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the model has taken.
    pub(super) fn took(&self, domain: &str, live: Option<AdapterId>) {
        let mut state = self.state();
        state.refused.remove(domain);
        match live {
            Some(id) => state.live.insert(domain.to_owned(), id),
            None => state.live.remove(domain),
        };
    }

    /// Returns what the model answers with in a domain.
    pub(super) fn of(&self, domain: &str) -> Option<AdapterId> {
        self.state().live.get(domain).cloned()
    }

    /// Notes that a live row's adapter cannot be loaded.
    pub(super) fn refuse(&self, domain: &str, id: AdapterId) {
        self.state().refused.insert(domain.to_owned(), id);
    }

    /// Forgets all: another model is being handed its own.
    pub(super) fn forget(&self) {
        *self.state() = State::default();
    }

    /// Compares with the live rows.
    fn differences(&self, rows: &BTreeMap<String, AdapterId>) -> Vec<Difference> {
        let mut state = self.state();
        state.refused.retain(|domain, id| rows.get(domain) == Some(id));
        let changed = |(domain, id): &(&String, &AdapterId)| {
            state.live.get(*domain) != Some(id) && state.refused.get(*domain) != Some(id)
        };
        let gained = rows.iter().filter(changed);
        let gained = gained.map(|(d, id)| Difference { domain: d.clone(), row: Some(id.clone()) });
        let lost = state.live.keys().filter(|domain| !rows.contains_key(*domain));
        gained.chain(lost.map(|d| Difference { domain: d.clone(), row: None })).collect()
    }
}

impl RegistryParts {
    /// Brings the model to what the rows say, and tells the console about changes of other processes.
    pub(super) async fn follow(&self) {
        let base = self.current.get();
        let rows = match self.live_rows(base.hash()).await {
            Ok(rows) => rows,
            Err(error) => return tracing::debug!(%error, "the live rows could not be read"),
        };
        for Difference { domain, row } in self.answering.differences(&rows) {
            let live = match row {
                None => None,
                Some(id) => match self.read(self.home.adapter(&id)).await {
                    Ok(set) => Some((id, set)),
                    Err(error) => {
                        tracing::warn!(domain, adapter = %id, %error, "made live elsewhere, but cannot be loaded: the old one answers");
                        self.answering.refuse(&domain, id);
                        continue;
                    }
                },
            };
            // A model that is being restarted gets it at the next look.
            self.hand_over(&base, &domain, live.as_ref(), true).await;
        }
    }

    /// Reads which adapters of a base are live, by domain.
    pub(super) async fn live_rows(
        &self,
        base_hash: &str,
    ) -> Result<BTreeMap<String, AdapterId>, DbError> {
        let base_hash = base_hash.to_owned();
        self.db.call(move |store| store.live_ids(&base_hash)).await
    }
}
