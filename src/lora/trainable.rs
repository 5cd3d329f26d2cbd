//! An adapter that is being trained: its factors are variables.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{Result as TensorResult, Tensor, Var};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::adapter::{Factors, LoraAdapter, LoraConfig, add_delta};
use super::dora::{self, OfWeights};
use super::fused::{self, Dropout};
use super::{JobError, TrainingParams};
use crate::models::{Adapt, Decoder, Gated, Linear, Module, Site};

/// Factors as variables, with dropout on the adapter's input.
pub struct TrainableLora {
    config: LoraConfig,
    sites: BTreeMap<Site, Trained>,
    /// Acts too, and does not learn.
    frozen: Option<Arc<LoraAdapter>>,
    /// Probability that an input is zeroed.
    dropout: f64,
    /// Decides, with part, site and place, which inputs are zeroed; new for every step.
    dropout_seed: AtomicU64,
    /// The part of the step's batch that is computed.
    part: AtomicU64,
}

/// What is trained at a site.
struct Trained {
    a: Var,
    b: Var,
    /// The rows' lengths of a DoRA adapter.
    magnitude: Option<Var>,
    alpha: f64,
    /// The squared lengths of the frozen rows.
    squares: OfWeights,
}

impl Trained {
    /// Copies factors into variables.
    fn from_factors(factors: &Factors) -> TensorResult<Self> {
        let var = |t: &Tensor| Var::from_tensor(&t.copy()?);
        Ok(Self {
            a: var(&factors.a)?,
            b: var(&factors.b)?,
            magnitude: factors.magnitude.as_ref().map(var).transpose()?,
            alpha: factors.alpha,
            squares: OfWeights::default(),
        })
    }

    /// Returns the variables in a fixed order, with the ends of their names.
    fn vars(&self) -> impl Iterator<Item = (&'static str, &Var)> {
        let magnitude = self.magnitude.iter().map(|m| ("lora_magnitude_vector", m));
        [("lora_A", &self.a), ("lora_B", &self.b)].into_iter().chain(magnitude)
    }

    /// Returns the values, made ready by `f`.
    fn factors(&self, f: impl Fn(&Var) -> TensorResult<Tensor>) -> TensorResult<Factors> {
        let magnitude = self.magnitude.as_ref().map(&f).transpose()?;
        Ok(Factors { a: f(&self.a)?, b: f(&self.b)?, magnitude, alpha: self.alpha })
    }
}

/// What acts at a site in one forward.
struct Acting<'a> {
    trained: &'a Trained,
    factors: Factors,
    dropout: Dropout,
    scale: f64,
}

impl Acting<'_> {
    fn project(&self, linear: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        let Self { trained, factors, dropout, scale } = self;
        let Some(magnitude) = &factors.magnitude else {
            return fused::project(linear, factors, *scale, *dropout, x);
        };
        let squares = trained.squares.get(linear, || dora::row_squares(linear))?;
        let lengths = dora::row_lengths(linear, &squares, &factors.a, &factors.b, *scale)?;
        let ratio = (magnitude / lengths)?;
        let dropped = if dropout.is_active() { Some(dropout.of(x)?) } else { None };
        dora::project(linear, factors, *scale, &ratio, x, dropped.as_ref())
    }
}

impl TrainableLora {
    /// Makes a fresh adapter: A uniform in ±1/√in, B zero (PEFT's), and for DoRA the rows' own lengths, so that it changes
    /// no logit.
    ///
    /// # Errors
    /// Unknown target modules, no memory.
    pub fn fresh(decoder: &Decoder, params: &TrainingParams) -> Result<Self, JobError> {
        let (model, device) = (decoder.config(), decoder.device());
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
                let site = Site { layer, module };
                let a = Var::from_vec(values, (params.rank, input), device)?;
                let b = Var::zeros((output, params.rank), candle_core::DType::F32, device)?;
                let (magnitude, squares) = (None, OfWeights::default());
                let mut trained = Trained { a, b, magnitude, alpha: params.alpha, squares };
                if let Some(linear) = decoder.linear(site).filter(|_| params.dora) {
                    let squares = trained.squares.get(linear, || dora::row_squares(linear))?;
                    trained.magnitude = Some(Var::from_tensor(&squares.sqrt()?)?);
                }
                sites.insert(site, trained);
            }
        }
        let config = LoraConfig {
            rank: params.rank,
            alpha: params.alpha,
            rslora: params.rslora,
            dora: params.dora,
            target_modules: params.target_modules.clone(),
        };
        Ok(Self::new(config, sites, params.dropout))
    }

    /// Goes on from an adapter, whose kind, ranks, scales and sites are kept.
    ///
    /// # Errors
    /// No memory.
    pub fn from_adapter(adapter: &LoraAdapter, dropout: f64) -> TensorResult<Self> {
        let mut sites = BTreeMap::new();
        for (site, factors) in adapter.sites() {
            sites.insert(*site, Trained::from_factors(factors)?);
        }
        Ok(Self::new(adapter.config().clone(), sites, dropout))
    }

    fn new(config: LoraConfig, sites: BTreeMap<Site, Trained>, dropout: f64) -> Self {
        let (dropout_seed, part) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { config, sites, frozen: None, dropout, dropout_seed, part }
    }

    /// Learns on top of an adapter that stays as it is.
    pub fn on_top_of(mut self, frozen: Arc<LoraAdapter>) -> Self {
        self.frozen = Some(frozen);
        self
    }

    /// Adds what the frozen adapter adds to an output.
    fn with_frozen(&self, site: Site, x: &Tensor, y: Tensor) -> TensorResult<Tensor> {
        let factors = self.frozen.as_ref().and_then(|a| Some((a.sites().get(&site)?, a.config())));
        match factors {
            Some((factors, config)) => add_delta(factors, config.scale_of(factors), x, &y),
            None => Ok(y),
        }
    }

    /// Starts the dropout of a step anew, so that a resumed run draws what an unbroken one draws.
    pub fn seed_step(&self, seed: u64, step: usize) {
        let seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(step as u64);
        self.dropout_seed.store(seed, Ordering::Relaxed);
        self.part.store(0, Ordering::Relaxed);
    }

    /// Says which part of a batch comes next, so that each draws its own dropout.
    pub(super) fn seed_part(&self, part: usize) {
        self.part.store(part as u64, Ordering::Relaxed);
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
        let of_site = |(site, trained): (&Site, &Trained)| {
            let site = *site;
            trained.vars().map(|(_, var)| (site, var.clone())).collect::<Vec<_>>()
        };
        let all = self.sites.iter().flat_map(of_site).enumerate();
        all.filter(|(_, (site, _))| site.layer == layer).map(|(i, (_, var))| (i, var)).collect()
    }

    /// Returns the same adaptation, dropout included, that builds no graph.
    pub fn detached(&self) -> Detached<'_> {
        Detached(self)
    }

    /// What acts at a site; none where nothing does.
    fn at(&self, site: Site, tracked: bool) -> TensorResult<Option<Acting<'_>>> {
        let Some(trained) = self.sites.get(&site) else {
            return Ok(None);
        };
        let factors = trained.factors(|var| match tracked {
            true => Ok(var.as_tensor().clone()),
            false => Ok(var.as_tensor().detach()),
        })?;
        let part = self.part.load(Ordering::Relaxed) << 32;
        let place = (part | (site.layer as u64) << 8 | site.module as u64) + 1;
        let seed =
            self.dropout_seed.load(Ordering::Relaxed) ^ place.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let dropout = Dropout { probability: self.dropout, seed };
        let scale = self.config.scale_of(&factors);
        Ok(Some(Acting { trained, factors, dropout, scale }))
    }

    fn project_with(
        &self,
        site: Site,
        linear: &Linear,
        x: &Tensor,
        tracked: bool,
    ) -> TensorResult<Tensor> {
        let y = match self.at(site, tracked)? {
            Some(acting) => acting.project(linear, x),
            None => linear.forward(x),
        }?;
        self.with_frozen(site, x, y)
    }

    fn project_gated_with(
        &self,
        site: Site,
        linear: &Linear,
        input: Gated<'_>,
        tracked: bool,
    ) -> TensorResult<Tensor> {
        if self.frozen.as_ref().is_some_and(|a| a.sites().contains_key(&site)) {
            return self.project_with(site, linear, &input.product()?, tracked);
        }
        match self.at(site, tracked)? {
            Some(Acting { factors, dropout, scale, .. }) if factors.magnitude.is_none() => {
                fused::project_gated(linear, &factors, scale, dropout, input)
            }
            Some(acting) => acting.project(linear, &input.product()?),
            None => linear.forward(&input.product()?),
        }
    }

    /// Returns the variables in a fixed order, with a name each.
    pub fn vars(&self) -> Vec<(String, Var)> {
        let mut all = Vec::new();
        for (site, trained) in &self.sites {
            let at = format!("layer {} {}", site.layer, site.module.name());
            all.extend(trained.vars().map(|(name, var)| (format!("{at} {name}"), var.clone())));
        }
        all
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
        for (site, trained) in &self.sites {
            sites.insert(*site, trained.factors(|var| Ok(var.as_tensor().copy()?.detach()))?);
        }
        LoraAdapter::from_factors(self.config.clone(), sites)
    }
}

/// See [`TrainableLora::detached`].
pub struct Detached<'a>(&'a TrainableLora);

impl Adapt for Detached<'_> {
    fn project(&self, site: Site, linear: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        self.0.project_with(site, linear, x, false)
    }

    fn project_gated(&self, site: Site, linear: &Linear, input: Gated<'_>) -> TensorResult<Tensor> {
        self.0.project_gated_with(site, linear, input, false)
    }
}

impl Adapt for TrainableLora {
    fn project(&self, site: Site, linear: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        self.project_with(site, linear, x, true)
    }

    fn project_gated(&self, site: Site, linear: &Linear, input: Gated<'_>) -> TensorResult<Tensor> {
        self.project_gated_with(site, linear, input, true)
    }
}
