//! Projections that files keep as one matrix (Phi-3), handed out one by one.

use std::collections::HashMap;

use candle_core::Tensor;

use super::{ModelConfig, ModelError, Module, Weight, Weights};

/// Projections whose rows lie behind each other in one matrix of a file.
pub(crate) struct Fused {
    /// Its path inside a layer.
    pub path: &'static str,
    /// Its parts, in the order of their rows.
    pub parts: &'static [Module],
}

/// The matrices that hold several projections.
static FUSED: [Fused; 2] = [
    Fused { path: "self_attn.qkv_proj", parts: &[Module::QProj, Module::KProj, Module::VProj] },
    Fused { path: "mlp.gate_up_proj", parts: &[Module::GateProj, Module::UpProj] },
];

impl Fused {
    /// Returns those of a model.
    pub fn all(config: &ModelConfig) -> impl Iterator<Item = &'static Self> {
        FUSED.iter().filter(move |_| config.fused_projections)
    }

    /// Returns the matrix's name, as in `target_modules`.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// Returns each part with its first row and its number of rows.
    pub fn rows(&self, config: &ModelConfig) -> Vec<(Module, usize, usize)> {
        let mut from = 0;
        let part = |module: &Module| {
            let (_, rows) = config.projection(*module);
            from += rows;
            (*module, from - rows, rows)
        };
        self.parts.iter().map(part).collect()
    }
}

/// The weights of a model whose fused matrices are split by rows; each is fetched once and shares its storage.
pub(super) struct Unfused<'a, 'b> {
    config: &'a ModelConfig,
    weights: &'a mut Weights<'b>,
    /// Fused matrices in use, by name.
    held: HashMap<String, Weight>,
}

impl<'a, 'b> Unfused<'a, 'b> {
    pub fn new(config: &'a ModelConfig, weights: &'a mut Weights<'b>) -> Self {
        Self { config, weights, held: HashMap::new() }
    }

    /// Returns the weights `[out, in]` of a projection; `prefix` is its layer's.
    pub fn projection(&mut self, prefix: &str, module: Module) -> Result<Weight, ModelError> {
        let (input, output) = self.config.projection(module);
        let Some(fused) = Fused::all(self.config).find(|f| f.parts.contains(&module)) else {
            return self.get(&format!("{prefix}{}.weight", module.path()), &[output, input]);
        };
        let name = format!("{prefix}{}.weight", fused.path);
        let rows = fused.rows(self.config);
        let whole = match self.held.remove(&name) {
            Some(whole) => whole,
            None => {
                let all = rows.iter().map(|(_, _, rows)| rows).sum();
                (self.weights)(&name, &[all, input])?
            }
        };
        let from = rows.iter().find(|(m, ..)| *m == module).map_or(0, |(_, from, _)| *from);
        let part = whole.part(from..from + output)?;
        if fused.parts.last() != Some(&module) {
            self.held.insert(name, whole);
        }
        Ok(part)
    }

    /// Returns any other weight.
    pub fn get(&mut self, name: &str, shape: &[usize]) -> Result<Weight, ModelError> {
        (self.weights)(name, shape)
    }

    /// Returns one of a single dimension.
    pub fn vector(&mut self, name: &str, width: usize) -> Result<Tensor, ModelError> {
        Ok(self.get(name, &[width])?.into_tensor()?)
    }

    /// Returns a norm's weights, whole also where files have them less 1.
    pub fn norm(&mut self, name: &str, width: usize) -> Result<Tensor, ModelError> {
        let weight = self.vector(&format!("{name}.weight"), width)?;
        Ok(if self.config.norm_offset { (weight + 1.0)? } else { weight })
    }
}
