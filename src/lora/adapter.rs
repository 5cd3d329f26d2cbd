//! A LoRA adapter (Hu et al. 2021): `base(x) + (α/r) · B(A x)`, in the files of Hugging Face PEFT.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::LoraError;
use crate::models::{Adapt, Linear, ModelConfig, Module, Site, hex};

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

/// The two factors at one site.
#[derive(Debug, Clone)]
pub struct Factors {
    /// `[rank, in]`.
    pub a: Tensor,
    /// `[out, rank]`.
    pub b: Tensor,
}

/// The shape of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of the factors.
    pub rank: usize,
    /// Scale: the output counts `alpha / rank` times.
    pub alpha: f64,
    /// Divides by √rank instead (rsLoRA, Kalajdzievski 2023).
    #[serde(default)]
    pub rslora: bool,
    /// Names of the adapted projections.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// Returns the factor on `B(A x)`.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// A validated adapter, ready to act; cheap to share, never written to.
#[derive(Debug)]
pub struct LoraAdapter {
    config: LoraConfig,
    sites: BTreeMap<Site, Factors>,
    digest: String,
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
        let (mut config, targets) = parse_config(&config_bytes, &config_path)?;
        let weights_path = dir.join(WEIGHTS_FILE);
        let weights = read_capped(&weights_path, MAX_FILE_BYTES)?;
        let sites = parse_weights(&weights, &weights_path, model, config.rank, device)?;
        let mut modules: Vec<Module> = sites.keys().map(|site| site.module).collect();
        modules.sort_unstable();
        modules.dedup();
        check_targets(&targets, &modules, &config_path)?;
        config.target_modules = modules.into_iter().map(|m| m.name().to_owned()).collect();
        let mut hasher = Sha256::new();
        hasher.update(config.scale().to_le_bytes());
        hasher.update(&weights);
        Ok(Self { config, sites, digest: hex(&hasher.finalize()) })
    }

    /// Makes an adapter of factors in memory.
    pub(super) fn from_factors(config: LoraConfig, sites: BTreeMap<Site, Factors>) -> Self {
        Self { config, sites, digest: String::new() }
    }

    /// Returns the adapter's shape.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Returns the factors by site.
    pub fn sites(&self) -> &BTreeMap<Site, Factors> {
        &self.sites
    }

    /// Returns the hex SHA-256 of weights and scale, which names the adapter's effect.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl Adapt for LoraAdapter {
    fn project(&self, site: Site, linear: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        let y = linear.forward(x)?;
        match self.sites.get(&site) {
            Some(factors) => add_delta(factors, self.config.scale(), x, &y),
            None => Ok(y),
        }
    }
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
    pub fn weighted(adapters: Vec<(Arc<LoraAdapter>, f64)>) -> Self {
        Self(adapters)
    }

    /// Returns whether no adapter acts.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns digest and weight of each adapter, in order: what names the set's effect.
    pub fn parts(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(adapter, weight)| (adapter.digest(), *weight))
    }
}

impl Adapt for AdapterSet {
    fn project(&self, site: Site, linear: &Linear, x: &Tensor) -> TensorResult<Tensor> {
        let mut y = linear.forward(x)?;
        for (adapter, weight) in &self.0 {
            if let Some(factors) = adapter.sites.get(&site) {
                y = add_delta(factors, adapter.config.scale() * weight, x, &y)?;
            }
        }
        Ok(y)
    }
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

/// The keys of PEFT's `adapter_config.json` that change what an adapter computes.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    target_modules: Targets,
    #[serde(default)]
    init_lora_weights: Value,
    #[serde(flatten)]
    rest: HashMap<String, Value>,
}

/// What `target_modules` may be; a pattern is not looked into.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    #[expect(dead_code, reason = "the tensors say what it matched")]
    Pattern(String),
    #[default]
    Absent,
}

/// Ways of setting the first values that leave the base as it is. The others (PiSSA, OLoRA, CorDA,
/// LoftQ) subtract something from the base's weights, so their adapter fits no other base.
const HARMLESS_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What PEFT can do and this program cannot: an adapter that uses one of them is refused by its name.
const UNSUPPORTED: [&str; 16] = [
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
];

fn parse_config(bytes: &[u8], path: &Path) -> Result<(LoraConfig, Targets), LoraError> {
    let peft: PeftConfig = serde_json::from_slice(bytes).map_err(|e| {
        invalid(path, format!("not a PEFT config: {e}"), "export the adapter again")
    })?;
    if peft.peft_type != "LORA" {
        let problem = format!("peft_type \"{}\" is not supported", peft.peft_type);
        return Err(invalid(path, problem, "only LORA adapters act here"));
    }
    let in_use = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    if let Some(name) = UNSUPPORTED.iter().find(|k| peft.rest.get(**k).is_some_and(in_use)) {
        let problem = format!("its option {name} is not supported");
        return Err(invalid(path, problem, "train it without that option"));
    }
    if peft.rest.get("bias").and_then(Value::as_str).is_some_and(|b| b != "none") {
        return Err(invalid(
            path,
            "trained biases are not supported",
            "train it with bias \"none\"",
        ));
    }
    if let Some(init) = peft.init_lora_weights.as_str().filter(|i| !HARMLESS_INITS.contains(i)) {
        let problem =
            format!("init_lora_weights \"{init}\" belongs to a base with changed weights");
        return Err(invalid(path, problem, "convert it to a plain LoRA adapter with PEFT"));
    }
    if peft.r == 0 || !peft.lora_alpha.is_finite() {
        let problem = format!("rank {} and alpha {} make no adapter", peft.r, peft.lora_alpha);
        return Err(invalid(path, problem, "export the adapter again"));
    }
    let config = LoraConfig {
        rank: peft.r,
        alpha: peft.lora_alpha,
        rslora: peft.use_rslora,
        target_modules: Vec::new(),
    };
    Ok((config, peft.target_modules))
}

/// Checks that the config names the modules that the weights adapt, and no others.
fn check_targets(targets: &Targets, modules: &[Module], path: &Path) -> Result<(), LoraError> {
    let Targets::Names(names) = targets else {
        return Ok(());
    };
    // A name may be a whole path; its end is the module.
    let named = |name: &str| name.rsplit('.').next().and_then(Module::from_name);
    let problem = modules
        .iter()
        .find(|m| !names.iter().any(|n| named(n) == Some(**m)))
        .map(|m| format!("the weights adapt {}, target_modules does not name it", m.name()))
        .or_else(|| {
            let lacking = names.iter().find(|n| !named(n).is_some_and(|m| modules.contains(&m)));
            lacking.map(|n| format!("target_modules names \"{n}\", the weights hold none of it"))
        });
    match problem {
        Some(problem) => Err(invalid(path, problem, "take config and weights of one adapter")),
        None => Ok(()),
    }
}

/// Splits a PEFT tensor name into its site and whether it is `lora_A`.
fn parse_name(name: &str) -> Option<(Site, bool)> {
    let (layer, rest) = name.strip_prefix(PREFIX)?.split_once('.')?;
    let (path, factor) = rest.rsplit_once(".lora_")?;
    let module = Module::ALL.into_iter().find(|m| m.path() == path)?;
    let is_a = match factor {
        "A.weight" => true,
        "B.weight" => false,
        _ => return None,
    };
    let site = Site { layer: layer.parse().ok()?, module };
    // "+1" and "01" would name layer 1 a second time.
    (tensor_name(site, if is_a { 'A' } else { 'B' }) == name).then_some((site, is_a))
}

/// Returns PEFT's name of a factor.
pub(super) fn tensor_name(site: Site, factor: char) -> String {
    format!("{PREFIX}{}.{}.lora_{factor}.weight", site.layer, site.module.path())
}

fn parse_weights(
    bytes: &[u8],
    path: &Path,
    model: &ModelConfig,
    rank: usize,
    device: &Device,
) -> Result<BTreeMap<Site, Factors>, LoraError> {
    let parsed = SafeTensors::deserialize(bytes).map_err(|e| {
        invalid(path, format!("not a whole safetensors file: {e}"), "export the adapter again")
    })?;
    let mut halves: BTreeMap<Site, (Option<Tensor>, Option<Tensor>)> = BTreeMap::new();
    // By name, so that the same file always gets the same message.
    let mut views: Vec<_> = parsed.iter().collect();
    views.sort_unstable_by_key(|(name, _)| *name);
    for (name, view) in views {
        let Some((site, is_a)) = parse_name(name) else {
            return Err(invalid(
                path,
                format!("tensor {name} is unknown"),
                "use a LoRA adapter of this model",
            ));
        };
        if site.layer >= model.num_hidden_layers {
            let problem =
                format!("tensor {name} is beyond the model's {} layers", model.num_hidden_layers);
            return Err(invalid(path, problem, "load the adapter's own base model"));
        }
        let (input, output) = model.projection(site.module);
        let expected = if is_a { [rank, input] } else { [output, rank] };
        if view.shape() != expected {
            let problem = format!(
                "tensor {name} has shape {:?}, this model needs {expected:?}",
                view.shape()
            );
            return Err(invalid(path, problem, "load the adapter's own base model"));
        }
        if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
            let problem = format!("tensor {name} has the type {:?}", view.dtype());
            return Err(invalid(path, problem, "export it in f32, f16 or bf16"));
        }
        let tensor = view.load(&Device::Cpu)?.to_dtype(DType::F32)?;
        if !tensor.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(invalid(
                path,
                format!("tensor {name} holds values that are no numbers"),
                "do not use it",
            ));
        }
        let half = halves.entry(site).or_default();
        *if is_a { &mut half.0 } else { &mut half.1 } = Some(tensor.to_device(device)?);
    }
    if halves.is_empty() {
        return Err(invalid(path, "holds no tensor", "export the adapter again"));
    }
    let whole = |(site, halves): (Site, (Option<Tensor>, Option<Tensor>))| match halves {
        (Some(a), Some(b)) => Ok((site, Factors { a, b })),
        _ => {
            let problem =
                format!("layer {} {} has only one factor", site.layer, site.module.name());
            Err(invalid(path, problem, "export the adapter again"))
        }
    };
    halves.into_iter().map(whole).collect()
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
    let tensors: BTreeMap<String, Tensor> = sites
        .iter()
        .flat_map(|(site, f)| {
            [(tensor_name(*site, 'A'), f.a.clone()), (tensor_name(*site, 'B'), f.b.clone())]
        })
        .collect();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = dir.join(WEIGHTS_FILE);
    let bytes = safetensors::serialize(&tensors, Some(metadata))
        .map_err(|e| invalid(&path, format!("cannot be serialised: {e}"), "report this"))?;
    fs_err::write(&path, bytes)?;
    let json = serde_json::json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": dropout,
        "use_rslora": config.rslora,
        "target_modules": config.target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": false
    });
    fs_err::write(dir.join(CONFIG_FILE), format!("{json:#}\n"))?;
    Ok(())
}
