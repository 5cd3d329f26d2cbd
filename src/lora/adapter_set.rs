//! Several adapters at once, each with a weight.

use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};

use super::LoraError;
use super::adapter::{LoraAdapter, add_delta, invalid};
use crate::models::{Adapt, Added, Linear, Site};

/// Adapters with weights, acting together: `base(x) + Σ wᵢ · (αᵢ/rᵢ) · Bᵢ(Aᵢ x)`.
#[derive(Debug, Clone, Default)]
pub struct AdapterSet(Vec<(Arc<LoraAdapter>, f64)>);

impl AdapterSet {
    /// The base model alone.
    pub fn empty() -> Self {
        Self::default()
    }

    /// One adapter at its full weight.
    pub fn single(adapter: Arc<LoraAdapter>) -> Self {
        Self(vec![(adapter, 1.0)])
    }

    /// Several adapters with their weights.
    ///
    /// # Errors
    /// A weight that is no finite number; a DoRA adapter beside another one or at a weight other than 1: it rescales the base's own output, so it is no
    /// term of a sum.
    pub fn weighted(adapters: Vec<(Arc<LoraAdapter>, f64)>) -> Result<Self, LoraError> {
        if let Some((adapter, weight)) = adapters.iter().find(|(_, weight)| !weight.is_finite()) {
            let problem = format!("its weight is {weight}");
            return Err(invalid(&adapter.dir, problem, "give a finite number, as in rust:0.5"));
        }
        let alone = matches!(adapters.as_slice(), [] | [(_, 1.0)]);
        match adapters.iter().find(|(adapter, _)| adapter.config().dora && !alone) {
            Some((adapter, _)) => Err(invalid(
                &adapter.dir,
                "it is a DoRA adapter, which cannot be mixed with others or weighted",
                "use it alone at weight 1",
            )),
            None => Ok(Self(adapters)),
        }
    }

    /// Several sets, each with a factor on its weights.
    ///
    /// # Errors
    /// As [`AdapterSet::weighted`].
    pub fn joined(sets: impl IntoIterator<Item = (Self, f64)>) -> Result<Self, LoraError> {
        let scaled = |(set, factor): (Self, f64)| {
            set.0.into_iter().map(move |(adapter, weight)| (adapter, weight * factor))
        };
        Self::weighted(sets.into_iter().flat_map(scaled).collect())
    }

    /// Returns whether no adapter acts.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the name of each adapter, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(adapter, _)| adapter.name())
    }

    /// Returns digest and weight of each adapter, in order: what names the set's effect.
    pub fn parts(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(adapter, weight)| (adapter.digest(), *weight))
    }
}

impl Adapt for AdapterSet {
    fn project(&self, site: Site, linear: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        if let [(adapter, 1.0)] = self.0.as_slice() {
            return adapter.project(site, linear, x);
        }
        let mut y = linear.forward(x)?;
        for (adapter, weight) in &self.0 {
            if let Some(factors) = adapter.sites().get(&site) {
                y = add_delta(factors, adapter.config().scale_of(factors) * weight, x, &y)?;
            }
        }
        Ok(y)
    }

    fn added(&self, site: Site) -> Added<'_> {
        let mut all = Vec::new();
        for (adapter, weight) in &self.0 {
            match adapter.added_times(site, *weight) {
                Added::LowRank(terms) => all.extend(terms),
                Added::Otherwise => return Added::Otherwise,
            }
        }
        Added::LowRank(all)
    }
}
