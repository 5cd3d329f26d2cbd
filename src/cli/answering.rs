//! Which adapters answer.

use std::sync::Arc;

use anyhow::Result;

use super::context::Session;
use super::{model, output};
use crate::config::Term;
use crate::domain::WeightedAdapter;
use crate::lora::AdapterSet;
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
        let find = |given: &WeightedAdapter| {
            let row = session.store.usable_adapter(&given.id, &model.base_hash)?;
            Ok(UsedAdapter { id: row.id, weight: given.weight })
        };
        Self::read(session, model, named.iter().map(find).collect::<Result<_>>()?)
    }

    /// What the configuration lets answer in a domain. An adapter of its mixture that is missing, or of another model, is
    /// left out, and where those that are there cannot be mixed, the live one answers alone; both are said on stderr.
    ///
    /// # Errors
    /// A store or an adapter that cannot be read.
    pub fn of_domain(session: &Session, model: &LoadedModel, domain: &str) -> Result<Self> {
        let live = session.store.live(&model.base_hash, domain)?;
        let live = live.map(|row| UsedAdapter { id: row.id, weight: 1.0 });
        let alone =
            |live: Option<UsedAdapter>| Self::read(session, model, live.into_iter().collect());
        let Some(section) = session.loaded.config.domains.get(domain) else { return alone(live) };
        let mut used = Vec::new();
        for Term { adapter, weight } in section.mixture() {
            match adapter {
                None => used.extend(live.clone().map(|live| UsedAdapter { weight, ..live })),
                Some(id) => match session.store.usable_adapter(&id, &model.base_hash) {
                    Ok(_) => used.push(UsedAdapter { id, weight }),
                    Err(error) => output::complain(&format!(
                        "domain \"{domain}\" answers without adapter \"{id}\" of its configured mixture: {error}"
                    )),
                },
            }
        }
        Self::read(session, model, used).or_else(|error| {
            output::complain(&format!(
                "domain \"{domain}\" answers without its configured mixture: {error}"
            ));
            alone(live)
        })
    }

    fn read(session: &Session, model: &LoadedModel, used: Vec<UsedAdapter>) -> Result<Self> {
        let read = |used: &UsedAdapter| {
            let adapter = model::load_adapter(session, &used.id, model)?;
            Ok((Arc::new(adapter), used.weight))
        };
        let set = AdapterSet::weighted(used.iter().map(read).collect::<Result<_>>()?)?;
        Ok(Self { used, set })
    }
}
