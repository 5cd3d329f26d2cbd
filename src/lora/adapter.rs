//! A LoRA adapter (Hu et al. 2021): `base(x) + (α/r) · B(A x)`, in the files of Hugging Face PEFT.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::LoraError;
use super::dora::{self, OfWeights};
use super::peft::{self, AdapterConfig};
use crate::models::{Adapt, Added, Fused, Linear, ModelConfig, Module, Site, Term, hex};

/// The adapter's weights, as PEFT names the file.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The adapter's configuration, as PEFT names the file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// What PEFT puts before every tensor's name.
const PREFIX: &str = "base_model.model.model.layers.";
/// The largest file that is read: far above rank 256 on a model of 8 B parameters.
const MAX_FILE_BYTES: u64 = 4 << 30;
/// The largest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What an adapter has at one site.
#[derive(Debug, Clone)]
pub struct Factors {
    /// `[rank, in]`.
    pub a: Tensor,
    /// `[out, rank]`.
    pub b: Tensor,
    /// The trained length of each row of the weights, `[out]`, of a DoRA adapter.
    pub magnitude: Option<Tensor>,
    /// Scale: the output counts `alpha / rank` times.
    pub alpha: f64,
}

impl Factors {
    /// Returns the rank.
    pub fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or(0)
    }
}

/// The shape of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of the factors, where a site has no rank of its own.
    pub rank: usize,
    /// Scale, where a site has none of its own: the output counts `alpha / rank` times.
    pub alpha: f64,
    /// Divides by √rank instead (rsLoRA, Kalajdzievski 2023).
    #[serde(default)]
    pub rslora: bool,
    /// Learns the length of each row of the weights by itself (DoRA, Liu et al. 2024).
    #[serde(default)]
    pub dora: bool,
    /// Names of the adapted projections.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// Returns the factor on `B(A x)` at a site of this rank and alpha.
    pub fn scale(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Returns the factor on `B(A x)` of these factors.
    pub(super) fn scale_of(&self, factors: &Factors) -> f64 {
        self.scale(factors.rank(), factors.alpha)
    }
}

/// A validated adapter, ready to act; cheap to share, never written to.
#[derive(Debug)]
pub struct LoraAdapter {
    config: LoraConfig,
    sites: BTreeMap<Site, Factors>,
    digest: String,
    /// Where it was read from; empty for one made in memory.
    pub(super) dir: PathBuf,
    /// The factors in f16, where that is close to them.
    halves: BTreeMap<Site, (Tensor, Tensor)>,
    /// At the sites of a DoRA adapter, what it multiplies the rows by.
    ratios: BTreeMap<Site, OfWeights>,
}

impl LoraAdapter {
    /// Reads an adapter of PEFT's layout and checks it against the model it shall act on: names,
    /// shapes, rank, finite values. Its files are read once and what was hashed is what is used.
    ///
    /// # Errors
    /// Whatever does not fit, by file and tensor, and what PEFT can do but this program cannot.
    pub fn load(dir: &Path, model: &ModelConfig, device: &Device) -> Result<Self, LoraError> {
        let config_path = dir.join(CONFIG_FILE);
        let config_bytes = read_capped(&config_path, MAX_CONFIG_BYTES)?;
        let read = AdapterConfig::parse(&config_bytes, &config_path)?;
        let weights_path = dir.join(WEIGHTS_FILE);
        let weights = read_capped(&weights_path, MAX_FILE_BYTES)?;
        let sites = parse_weights(&weights, &weights_path, model, &read, device)?;
        let mut modules: Vec<Module> = sites.keys().map(|site| site.module).collect();
        modules.sort_unstable();
        modules.dedup();
        read.check_targets(&modules, model, &config_path)?;
        let mut config = read.lora;
        config.target_modules = modules.into_iter().map(|m| m.name().to_owned()).collect();
        let mut hasher = Sha256::new();
        for factors in sites.values() {
            hasher.update(config.scale_of(factors).to_le_bytes());
        }
        hasher.update(&weights);
        let digest = hex(&hasher.finalize());
        Ok(Self { digest, dir: dir.to_owned(), ..Self::from_factors(config, sites)? })
    }

    /// Makes an adapter of factors in memory.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub(super) fn from_factors(
        config: LoraConfig,
        sites: BTreeMap<Site, Factors>,
    ) -> TensorResult<Self> {
        let mut halves = BTreeMap::new();
        for (site, factors) in sites.iter().filter(|(_, factors)| factors.a.device().is_cpu()) {
            if let (Some(a), Some(b)) = (half(&factors.a)?, half(&factors.b)?) {
                halves.insert(*site, (a, b));
            }
        }
        let scaled = sites.iter().filter(|(_, factors)| factors.magnitude.is_some());
        let ratios = scaled.map(|(site, _)| (*site, OfWeights::default())).collect();
        Ok(Self { config, sites, digest: String::new(), dir: PathBuf::new(), halves, ratios })
    }

    /// Returns the adapter's shape.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Returns the factors by site.
    pub fn sites(&self) -> &BTreeMap<Site, Factors> {
        &self.sites
    }

    /// Returns the name of its directory; empty for one made in memory.
    pub fn name(&self) -> &str {
        self.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Returns the hex SHA-256 of weights and scales, which names the adapter's effect.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl LoraAdapter {
    pub(super) fn added_times(&self, site: Site, weight: f64) -> Added<'_> {
        match self.sites.get(&site) {
            None => Added::LowRank(Vec::new()),
            Some(factors) if factors.magnitude.is_some() => Added::Otherwise,
            Some(factors) => {
                let scale = (self.config.scale_of(factors) * weight) as f32;
                let halves = self.halves.get(&site).map(|(a, b)| (a, b));
                Added::LowRank(vec![Term { a: &factors.a, b: &factors.b, halves, scale }])
            }
        }
    }
}

impl Adapt for LoraAdapter {
    fn project(&self, site: Site, linear: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        let Some(factors) = self.sites.get(&site) else {
            return linear.forward(x);
        };
        let scale = self.config.scale_of(factors);
        match (&factors.magnitude, self.ratios.get(&site)) {
            (Some(magnitude), Some(known)) => {
                let ratio = known.get(linear, || dora::ratio(linear, factors, magnitude, scale))?;
                dora::project(linear, factors, scale, &ratio, x, None)
            }
            _ => add_delta(factors, scale, x, &linear.forward(x)?),
        }
    }

    fn added(&self, site: Site) -> Added<'_> {
        self.added_times(site, 1.0)
    }
}

/// Returns a factor in f16, unless that would be more than a thousandth off: its numbers may be too large or too small.
fn half(factor: &Tensor) -> TensorResult<Option<Tensor>> {
    let short = factor.to_dtype(DType::F16)?.contiguous()?;
    let squares = |x: &Tensor| x.sqr()?.sum_all()?.to_vec0::<f32>();
    let off = squares(&(short.to_dtype(DType::F32)? - factor)?)?;
    Ok((off <= 1e-6 * squares(factor)?).then_some(short))
}

/// Returns `y + scale · B(A x)`.
pub(super) fn add_delta(
    factors: &Factors,
    scale: f64,
    x: &Tensor,
    y: &Tensor,
) -> TensorResult<Tensor> {
    let delta = x.matmul(&factors.a.t()?)?.matmul(&factors.b.t()?)?;
    y + (delta * scale)?
}

pub(super) fn invalid(path: &Path, problem: impl Into<String>, remedy: &str) -> LoraError {
    LoraError::Invalid { path: path.to_owned(), problem: problem.into(), remedy: remedy.to_owned() }
}

/// Reads a file of an adapter, if it has at most `limit` bytes.
pub(super) fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>, LoraError> {
    let file = fs_err::File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::new();
    if size <= limit {
        file.take(limit + 1).read_to_end(&mut bytes)?;
    }
    if size.max(bytes.len() as u64) > limit {
        let problem = format!("more than the {limit} bytes that are read");
        return Err(invalid(path, problem, "use a smaller adapter"));
    }
    Ok(bytes)
}

/// One of the tensors of a site.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    A,
    B,
    Magnitude,
}

impl Part {
    const ALL: [Self; 3] = [Self::A, Self::B, Self::Magnitude];

    /// Returns the end of its name in PEFT's files.
    fn suffix(self) -> &'static str {
        match self {
            Self::A => "lora_A.weight",
            Self::B => "lora_B.weight",
            Self::Magnitude => "lora_magnitude_vector",
        }
    }
}

/// What PEFT adapts as one matrix: a projection, or several whose rows lie behind each other in the base's files.
struct Matrix {
    layer: usize,
    path: &'static str,
    modules: &'static [Module],
}

impl Matrix {
    /// Splits a PEFT tensor name into its matrix and which of the matrix' tensors it is.
    fn parse(name: &str, model: &ModelConfig) -> Option<(Self, Part)> {
        let (layer, rest) = name.strip_prefix(PREFIX)?.split_once('.')?;
        let (path, _) = rest.rsplit_once(".lora_")?;
        let all: &'static [Module] = &Module::ALL;
        let single = all.iter().position(|m| m.path() == path);
        let single = single.map(|at| (all[at].path(), &all[at..=at]));
        let fused = Fused::all(model).find(|fused| fused.path == path);
        let (path, modules) = single.or(fused.map(|fused| (fused.path, fused.parts)))?;
        let matrix = Self { layer: layer.parse().ok()?, path, modules };
        // Compared as a whole: "+1" and "01" would name layer 1 a second time.
        let part = Part::ALL.into_iter().find(|p| tensor_name(matrix.layer, path, *p) == name)?;
        Some((matrix, part))
    }

    /// Returns the input and output width.
    fn dims(&self, model: &ModelConfig) -> (usize, usize) {
        let dims = self.modules.iter().map(|m| model.projection(*m));
        dims.fold((0, 0), |(_, sum), (input, output)| (input, sum + output))
    }

    /// Returns the tensor that each projection has of one of the whole: A is everyone's, the others have a row for each
    /// row of the weights.
    fn split(
        &self,
        part: Part,
        tensor: &Tensor,
        model: &ModelConfig,
    ) -> TensorResult<Vec<(Module, Tensor)>> {
        let mut from = 0;
        let own = |module: &Module| {
            let (_, rows) = model.projection(*module);
            from += rows;
            let tensor = match part {
                Part::A => tensor.clone(),
                _ if self.modules.len() == 1 => tensor.clone(),
                _ => tensor.narrow(0, from - rows, rows)?.copy()?,
            };
            Ok((*module, tensor))
        };
        self.modules.iter().map(own).collect()
    }
}

/// Returns PEFT's name of a tensor.
fn tensor_name(layer: usize, path: &str, part: Part) -> String {
    format!("{PREFIX}{layer}.{path}.{}", part.suffix())
}

/// The tensors of a site as they are found.
#[derive(Default)]
struct Found {
    a: Option<Tensor>,
    b: Option<Tensor>,
    magnitude: Option<Tensor>,
    alpha: f64,
}

impl Found {
    fn slot(&mut self, part: Part) -> &mut Option<Tensor> {
        match part {
            Part::A => &mut self.a,
            Part::B => &mut self.b,
            Part::Magnitude => &mut self.magnitude,
        }
    }
}

fn parse_weights(
    bytes: &[u8],
    path: &Path,
    model: &ModelConfig,
    config: &AdapterConfig,
    device: &Device,
) -> Result<BTreeMap<Site, Factors>, LoraError> {
    let parsed = SafeTensors::deserialize(bytes).map_err(|e| {
        invalid(path, format!("not a whole safetensors file: {e}"), "export the adapter again")
    })?;
    let mut sites: BTreeMap<Site, Found> = BTreeMap::new();
    // By name, so that the same file always gets the same message.
    let mut views: Vec<_> = parsed.iter().collect();
    views.sort_unstable_by_key(|(name, _)| *name);
    for (name, view) in views {
        let known = Matrix::parse(name, model);
        let known = known.filter(|(_, p)| *p != Part::Magnitude || config.lora.dora);
        let Some((matrix, part)) = known else {
            let problem = format!("tensor {name} is unknown");
            return Err(invalid(path, problem, "use a LoRA adapter of this model"));
        };
        let tensor = check_tensor(name, &view, path, model, config, (&matrix, part))?;
        for (module, tensor) in matrix.split(part, &tensor.to_device(device)?, model)? {
            let found = sites.entry(Site { layer: matrix.layer, module }).or_default();
            found.alpha = config.alpha(matrix.layer, matrix.path);
            if found.slot(part).replace(tensor).is_some() {
                let problem = format!("tensor {name} adapts {} a second time", module.name());
                return Err(invalid(path, problem, "use an adapter that names each matrix once"));
            }
        }
    }
    if sites.is_empty() {
        return Err(invalid(path, "holds no tensor", "export the adapter again"));
    }
    let whole = |(site, found): (Site, Found)| {
        let lacking = |what| {
            let problem = format!("layer {} {} has {what}", site.layer, site.module.name());
            Err(invalid(path, problem, "export the adapter again"))
        };
        match found {
            Found { magnitude: None, .. } if config.lora.dora => lacking("no magnitude vector"),
            Found { a: Some(a), b: Some(b), magnitude, alpha } => {
                Ok((site, Factors { a, b, magnitude, alpha }))
            }
            _ => lacking("only one factor"),
        }
    };
    sites.into_iter().map(whole).collect()
}

/// Returns a tensor in f32 if layer, shape, type and values are what this model needs.
fn check_tensor(
    name: &str,
    view: &TensorView<'_>,
    path: &Path,
    model: &ModelConfig,
    config: &AdapterConfig,
    (matrix, part): (&Matrix, Part),
) -> Result<Tensor, LoraError> {
    if matrix.layer >= model.num_hidden_layers {
        let problem =
            format!("tensor {name} is beyond the model's {} layers", model.num_hidden_layers);
        return Err(invalid(path, problem, "load the adapter's own base model"));
    }
    let (input, output) = matrix.dims(model);
    let rank = config.rank(matrix.layer, matrix.path);
    let expected = match part {
        Part::A => vec![rank, input],
        Part::B => vec![output, rank],
        Part::Magnitude => vec![output],
    };
    if view.shape() != expected {
        let problem =
            format!("tensor {name} has shape {:?}, this model needs {expected:?}", view.shape());
        return Err(invalid(path, problem, "load the adapter's own base model"));
    }
    if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
        let problem = format!("tensor {name} has the type {:?}", view.dtype());
        return Err(invalid(path, problem, "export it in f32, f16 or bf16"));
    }
    let tensor = view.load(&Device::Cpu)?.to_dtype(DType::F32)?;
    if !tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
        let problem = format!("tensor {name} holds values that are no numbers");
        return Err(invalid(path, problem, "do not use it"));
    }
    Ok(tensor)
}

/// Writes an adapter in PEFT's layout into `dir`; `base_name` is for people.
///
/// # Errors
/// A directory that cannot be written.
pub fn save(
    dir: &Path,
    config: &LoraConfig,
    dropout: f64,
    base_name: &str,
    sites: &BTreeMap<Site, Factors>,
) -> Result<(), LoraError> {
    let mut tensors: BTreeMap<String, &Tensor> = BTreeMap::new();
    for (site, factors) in sites {
        let name = |part| tensor_name(site.layer, site.module.path(), part);
        tensors.insert(name(Part::A), &factors.a);
        tensors.insert(name(Part::B), &factors.b);
        if let Some(magnitude) = &factors.magnitude {
            tensors.insert(name(Part::Magnitude), magnitude);
        }
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = dir.join(WEIGHTS_FILE);
    let bytes = safetensors::serialize(tensors, Some(metadata))
        .map_err(|e| invalid(&path, format!("cannot be serialised: {e}"), "report this"))?;
    fs_err::write(&path, bytes)?;
    fs_err::write(dir.join(CONFIG_FILE), peft::to_json(config, dropout, base_name, sites))?;
    Ok(())
}

#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;
