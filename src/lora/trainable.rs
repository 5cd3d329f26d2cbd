//! An adapter that is being trained: its factors are variables.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{Device, Result as TensorResult, Tensor, Var};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::adapter::{Factors, LoraAdapter, LoraConfig, add_delta};
use super::{JobError, TrainingParams};
use crate::models::{Adapt, ModelConfig, Module, Site};

/// Factors as variables, with dropout on the adapter's input.
pub struct TrainableLora {
    config: LoraConfig,
    sites: BTreeMap<Site, (Var, Var)>,
    /// Probability that an input is zeroed; 0 while evaluating.
    dropout: f64,
    /// Drawn from in the order in which the decoder visits the sites, which is fixed.
    rng: Mutex<StdRng>,
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
        Self { config, sites, dropout, rng: Mutex::new(StdRng::seed_from_u64(0)) }
    }

    /// Starts the dropout of a step anew, so that a resumed run draws what an unbroken one draws.
    pub fn seed_step(&self, seed: u64, step: usize) {
        let seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(step as u64);
        *self.rng.lock().unwrap_or_else(|e| e.into_inner()) = StdRng::seed_from_u64(seed);
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

    fn drop_out(&self, x: &Tensor) -> TensorResult<Tensor> {
        let keep = 1.0 - self.dropout;
        let scale = (1.0 / keep) as f32;
        let mut rng = self.rng.lock().unwrap_or_else(|e| e.into_inner());
        let mask: Vec<f32> = (0..x.elem_count())
            .map(|_| if rng.random::<f32>() < keep as f32 { scale } else { 0.0 })
            .collect();
        x * Tensor::from_vec(mask, x.shape(), x.device())?
    }
}

impl Adapt for TrainableLora {
    fn adapt(&self, site: Site, x: &Tensor, y: Tensor) -> TensorResult<Tensor> {
        let Some((a, b)) = self.sites.get(&site) else {
            return Ok(y);
        };
        let factors = Factors { a: a.as_tensor().clone(), b: b.as_tensor().clone() };
        let scale = self.config.scale();
        if self.dropout > 0.0 {
            add_delta(&factors, scale, &self.drop_out(x)?, &y)
        } else {
            add_delta(&factors, scale, x, &y)
        }
    }
}
