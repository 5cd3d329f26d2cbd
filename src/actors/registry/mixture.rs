//! Several adapters at once: those that the configuration lets answer in a domain, and those that a session asks for.

use super::RegistryParts;
use crate::actors::base::Base;
use crate::config::Term;
use crate::domain::{AdapterId, WeightedAdapter};
use crate::lora::AdapterSet;
use crate::messages::ActorError;
use crate::messages::inference::LiveSet;

impl RegistryParts {
    /// Returns what a domain answers with where `live` is its live adapter, and what cannot be used of its mixture.
    pub(super) async fn mixed(
        &self,
        base: &Base,
        domain: &str,
        live: Option<&(AdapterId, AdapterSet)>,
    ) -> (Option<LiveSet>, Vec<String>) {
        let alone =
            live.map(|(id, set)| LiveSet { ids: vec![(id.clone(), 1.0)], set: set.clone() });
        let Some(terms) = self.mixtures.get(domain) else { return (alone, Vec::new()) };
        let (mut parts, mut problems) = (Vec::new(), Vec::new());
        for Term { adapter, weight } in terms {
            match (adapter, live) {
                (None, Some((id, set))) => parts.push((id.clone(), set.clone(), *weight)),
                (None, None) => {}
                (Some(id), _) => match self.read_one(base, id).await {
                    Ok(set) => parts.push((id.clone(), set, *weight)),
                    Err(error) => problems.push(format!(
                        "domain \"{domain}\" answers without adapter \"{id}\" of its configured mixture: {error}"
                    )),
                },
            }
        }
        match joined(parts) {
            Ok(set) => (set, problems),
            Err(error) => {
                problems.push(format!(
                    "domain \"{domain}\" answers without its configured mixture: {error}"
                ));
                (alone, problems)
            }
        }
    }

    /// Reads adapters of the base in use, to act together.
    pub(super) async fn read_mixture(
        &self,
        wanted: Vec<WeightedAdapter>,
    ) -> Result<LiveSet, ActorError> {
        let base = self.current.get();
        let mut parts = Vec::new();
        for WeightedAdapter { id, weight } in wanted {
            let set = self.read_one(&base, &id).await?;
            parts.push((id, set, weight));
        }
        Ok(joined(parts)?.unwrap_or_default())
    }

    /// Makes the domains whose mixtures have an adapter that is gone answer without it.
    pub(super) async fn leave_out(&self, gone: &AdapterId) {
        let has = |terms: &[Term]| terms.iter().any(|term| term.adapter.as_ref() == Some(gone));
        let domains =
            self.mixtures.iter().filter(|(_, terms)| has(terms)).map(|(domain, _)| domain);
        for domain in domains.filter(|_| self.inference.is_some()) {
            if let Err(error) = self.mix_again(domain).await {
                tracing::warn!(domain, adapter = %gone, %error, "the deleted adapter answers on in the mixture");
            }
        }
    }

    async fn mix_again(&self, domain: &str) -> Result<(), ActorError> {
        let live = match self.live(domain).await? {
            Some(row) => Some((row.id.clone(), self.read(self.home.adapter(&row.id)).await?)),
            None => None,
        };
        self.swap(domain, live).await;
        Ok(())
    }

    async fn read_one(&self, base: &Base, id: &AdapterId) -> Result<AdapterSet, ActorError> {
        let (name, hash) = (id.clone(), base.hash().to_owned());
        self.db.call(move |store| store.usable_adapter(&name, &hash)).await?;
        self.read_for(base, self.home.adapter(id)).await
    }
}

/// Puts adapters together; `None` where there is none.
fn joined(parts: Vec<(AdapterId, AdapterSet, f64)>) -> Result<Option<LiveSet>, ActorError> {
    if parts.is_empty() {
        return Ok(None);
    }
    let ids = parts.iter().map(|(id, _, weight)| (id.clone(), *weight)).collect();
    let sets = parts.into_iter().map(|(_, set, weight)| (set, weight));
    let set = AdapterSet::joined(sets).map_err(|error| ActorError::Adapter(error.to_string()))?;
    Ok(Some(LiveSet { ids, set }))
}
