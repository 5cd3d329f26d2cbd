//! Which adapters answer.

use std::sync::Arc;

use anyhow::Result;

use super::context::Session;
use super::{model, output};
use crate::config::Term;
use crate::domain::{AdapterId, WeightedAdapter};
use crate::lora::{AdapterSet, LoraAdapter};
use crate::models::LoadedModel;
use crate::store::UsedAdapter;

/// Adapters that answer together.
#[derive(Debug, Default)]
pub struct Answering {
    /// Their names.
    pub used: Vec<UsedAdapter>,
    /// What they compute.
    pub set: AdapterSet,
}

impl Answering {
    /// Those that were named.
    ///
    /// # Errors
    /// One that does not exist, is of another model, cannot be read, or cannot be mixed.
    pub fn named(
        session: &Session,
        model: &LoadedModel,
        named: &[WeightedAdapter],
    ) -> Result<Self> {
        let used =
            |given: &WeightedAdapter| UsedAdapter { id: given.id.clone(), weight: given.weight };
        Self::read(session, model, named.iter().map(used).collect())
    }

    /// What the configuration lets answer in a domain. An adapter of its mixture that cannot be used is left out, and
    /// where the others cannot be mixed, the live one answers alone; both are said on stderr.
    ///
    /// # Errors
    /// A store or a live adapter that cannot be read.
    pub fn of_domain(session: &Session, model: &LoadedModel, domain: &str) -> Result<Self> {
        let live = session.store.live(&model.base_hash, domain)?;
        let live = live.map(|row| UsedAdapter { id: row.id, weight: 1.0 });
        let alone =
            |live: Option<UsedAdapter>| Self::read(session, model, live.into_iter().collect());
        let configured = session.loaded.config.domains.get(domain);
        let Some(section) = configured.filter(|section| section.adapters.is_some()) else {
            return alone(live);
        };
        let mut together = Vec::new();
        for Term { adapter, weight } in section.mixture() {
            let Some(id) = adapter.clone().or_else(|| live.as_ref().map(|live| live.id.clone()))
            else {
                continue;
            };
            match usable(session, model, &id) {
                Ok(read) => together.push((UsedAdapter { id, weight }, Arc::new(read))),
                // Where the live one cannot be read, there is nothing to fall back to.
                Err(error) if adapter.is_none() => return Err(error),
                Err(error) => output::complain(&format!(
                    "domain \"{domain}\" answers without adapter \"{id}\" of its configured mixture: {error:#}"
                )),
            }
        }
        let (used, read): (Vec<UsedAdapter>, Vec<_>) = together.into_iter().unzip();
        let weights = used.iter().map(|used| used.weight);
        match AdapterSet::weighted(read.into_iter().zip(weights).collect()) {
            Ok(set) => Ok(Self { used, set }),
            Err(error) => {
                output::complain(&format!(
                    "domain \"{domain}\" answers without its configured mixture: {error}"
                ));
                alone(live)
            }
        }
    }

    fn read(session: &Session, model: &LoadedModel, used: Vec<UsedAdapter>) -> Result<Self> {
        let read =
            |used: &UsedAdapter| Ok((Arc::new(usable(session, model, &used.id)?), used.weight));
        let set = AdapterSet::weighted(used.iter().map(read).collect::<Result<_>>()?)?;
        Ok(Self { used, set })
    }
}

/// Reads an adapter of the model in use.
fn usable(session: &Session, model: &LoadedModel, id: &AdapterId) -> Result<LoraAdapter> {
    session.store.usable_adapter(id, &model.base_hash)?;
    model::load_adapter(session, id, model)
}
