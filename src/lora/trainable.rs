//! An adapter that is being trained: its factors are variables.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Device, Result as TensorResult, Tensor, Var};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::adapter::{Factors, LoraAdapter, LoraConfig};
use super::fused::{self, Dropout};
use super::{JobError, TrainingParams};
use crate::models::{Adapt, Linear, ModelConfig, Module, Site, ops};

/// Factors as variables, with dropout on the adapter's input.
pub struct TrainableLora {
    config: LoraConfig,
    sites: BTreeMap<Site, (Var, Var)>,
    /// Probability that an input is zeroed.
    dropout: f64,
    /// Decides, with site and place, which inputs are zeroed; new for every step.
    dropout_seed: AtomicU64,
}

impl TrainableLora {
    /// Makes a fresh adapter: A uniform in ±1/√in, B zero (PEFT's), so that it changes no logit.
    ///
    /// # Errors
    /// Unknown target modules, no memory.
    pub fn fresh(
        model: &ModelConfig,
        params: &TrainingParams,
        device: &Device,
    ) -> Result<Self, JobError> {
        let mut rng = StdRng::seed_from_u64(params.seed);
        let mut modules = Vec::new();
        for name in &params.target_modules {
            modules.push(Module::from_name(name).ok_or_else(|| {
                JobError::Input(format!("unknown target module \"{name}\" in lora.target_modules"))
            })?);
        }
        if modules.is_empty() {
            return Err(JobError::Input("lora.target_modules is empty: name one at least".into()));
        }
        let mut sites = BTreeMap::new();
        for layer in 0..model.num_hidden_layers {
            for module in Module::ALL.into_iter().filter(|m| modules.contains(m)) {
                let (input, output) = model.projection(module);
                let bound = 1.0 / (input as f32).sqrt();
                let values: Vec<f32> =
                    (0..params.rank * input).map(|_| rng.random_range(-bound..bound)).collect();
                let a = Var::from_vec(values, (params.rank, input), device)?;
                let b = Var::zeros((output, params.rank), candle_core::DType::F32, device)?;
                sites.insert(Site { layer, module }, (a, b));
            }
        }
        let config = LoraConfig {
            rank: params.rank,
            alpha: params.alpha,
            rslora: false,
            target_modules: params.target_modules.clone(),
        };
        Ok(Self::new(config, sites, params.dropout))
    }

    /// Goes on from an adapter, whose rank, scale and sites are kept.
    ///
    /// # Errors
    /// No memory.
    pub fn from_adapter(adapter: &LoraAdapter, dropout: f64) -> TensorResult<Self> {
        let mut sites = BTreeMap::new();
        for (site, factors) in adapter.sites() {
            let a = Var::from_tensor(&factors.a.copy()?)?;
            sites.insert(*site, (a, Var::from_tensor(&factors.b.copy()?)?));
        }
        Ok(Self::new(adapter.config().clone(), sites, dropout))
    }

    fn new(config: LoraConfig, sites: BTreeMap<Site, (Var, Var)>, dropout: f64) -> Self {
        Self { config, sites, dropout, dropout_seed: AtomicU64::new(0) }
    }

    /// Starts the dropout of a step anew, so that a resumed run draws what an unbroken one draws.
    pub fn seed_step(&self, seed: u64, step: usize) {
        let seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(step as u64);
        self.dropout_seed.store(seed, Ordering::Relaxed);
    }

    /// Tells whether sequences may share the computing of their common beginning: with dropout each draws its own.
    pub fn shares_prefixes(&self) -> bool {
        self.dropout == 0.0
    }

    /// Returns the lowest layer that learns.
    pub fn lowest_layer(&self) -> usize {
        self.sites.keys().next().map_or(0, |site| site.layer)
    }

    /// Returns the variables of a layer with their places in [`Self::vars`].
    pub fn layer_vars(&self, layer: usize) -> Vec<(usize, Var)> {
        let sites = self.sites.iter().enumerate().filter(|(_, (site, _))| site.layer == layer);
        sites.flat_map(|(i, (_, (a, b)))| [(2 * i, a.clone()), (2 * i + 1, b.clone())]).collect()
    }

    /// Returns the same adaptation, dropout included, that builds no graph.
    pub fn detached(&self) -> Detached<'_> {
        Detached(self)
    }

    /// What acts at a site; none where nothing does.
    fn at(&self, site: Site, tracked: bool) -> Option<(Factors, Dropout)> {
        let (a, b) = self.sites.get(&site)?;
        let factor = |var: &Var| match tracked {
            true => var.as_tensor().clone(),
            false => var.as_tensor().detach(),
        };
        let place = ((site.layer as u64) << 8 | site.module as u64) + 1;
        let seed =
            self.dropout_seed.load(Ordering::Relaxed) ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let dropout = Dropout { probability: self.dropout, seed };
        Some((Factors { a: factor(a), b: factor(b) }, dropout))
    }

    fn project_with(
        &self,
        site: Site,
        linear: &Linear,
        x: &Tensor,
        tracked: bool,
    ) -> TensorResult<Tensor> {
        match self.at(site, tracked) {
            Some((factors, dropout)) => {
                fused::project(linear, &factors, self.config.scale(), dropout, x)
            }
            None => linear.forward(x),
        }
    }

    fn project_gated_with(
        &self,
        site: Site,
        linear: &Linear,
        (gate, up): (&Tensor, &Tensor),
        tracked: bool,
    ) -> TensorResult<Tensor> {
        match self.at(site, tracked) {
            Some((factors, dropout)) => {
                fused::project_gated(linear, &factors, self.config.scale(), dropout, gate, up)
            }
            None => linear.forward(&ops::swiglu(gate, up)?),
        }
    }

    /// Returns the variables in a fixed order, with a name each.
    pub fn vars(&self) -> Vec<(String, Var)> {
        let named = |(site, (a, b)): (&Site, &(Var, Var))| {
            let at = format!("layer {} {}", site.layer, site.module.name());
            [(format!("{at} lora_A"), a.clone()), (format!("{at} lora_B"), b.clone())]
        };
        self.sites.iter().flat_map(named).collect()
    }

    /// Returns the shape.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Copies the factors out: what is published never changes again.
    ///
    /// # Errors
    /// No memory.
    pub fn publish(&self) -> TensorResult<LoraAdapter> {
        let mut sites = BTreeMap::new();
        for (site, (a, b)) in &self.sites {
            let factors =
                Factors { a: a.as_tensor().copy()?.detach(), b: b.as_tensor().copy()?.detach() };
            sites.insert(*site, factors);
        }
        Ok(LoraAdapter::from_factors(self.config.clone(), sites))
    }
}

/// See [`TrainableLora::detached`].
pub struct Detached<'a>(&'a TrainableLora);

impl Adapt for Detached<'_> {
    fn project(&self, site: Site, linear: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        self.0.project_with(site, linear, x, false)
    }

    fn project_gated(
        &self,
        site: Site,
        linear: &Linear,
        gate: &Tensor,
        up: &Tensor,
    ) -> TensorResult<Tensor> {
        self.0.project_gated_with(site, linear, (gate, up), false)
    }
}

impl Adapt for TrainableLora {
    fn project(&self, site: Site, linear: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        self.project_with(site, linear, x, true)
    }

    fn project_gated(
        &self,
        site: Site,
        linear: &Linear,
        gate: &Tensor,
        up: &Tensor,
    ) -> TensorResult<Tensor> {
        self.project_gated_with(site, linear, (gate, up), true)
    }
}
