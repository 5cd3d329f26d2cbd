//! The decoder of Llama, Qwen2 and Qwen3: attention, MLP, block, model.
//!
//! One forward serves inference and training: every operation in it has a backward.

use candle_core::{DType, Device, Result as TensorResult, Tensor, bail};

use super::linear::{Adapt, Linear, Module, Site};
use super::{KvCache, ModelConfig, ModelError, ops};

/// Hands out the weight of a name and shape.
///
/// Loading reads them from files; pretraining makes them.
pub type Weights<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor, ModelError> + 'a;

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of the heads of q and k (Qwen3).
    qk_norm: Option<(Tensor, Tensor)>,
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

struct Layer {
    input_norm: Tensor,
    attention: Attention,
    post_attention_norm: Tensor,
    mlp: Mlp,
}

/// A decoder-only transformer with its weights.
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
}

/// What all layers share in one forward.
struct Pass<'a> {
    config: &'a ModelConfig,
    /// `[seq, head_dim / 2]` each.
    cos: Tensor,
    sin: Tensor,
    adapt: &'a dyn Adapt,
}

impl Attention {
    fn forward(
        &self,
        x: &Tensor,
        shape: (usize, usize),
        layer: usize,
        pass: &Pass<'_>,
        cache: Option<&KvCache>,
    ) -> TensorResult<Tensor> {
        let (batch, seq) = shape;
        let c = pass.config;
        let project = |linear: &Linear, module, heads| -> TensorResult<Tensor> {
            let y = pass.adapt.project(Site { layer, module }, linear, x)?;
            y.reshape((batch, seq, heads, c.head_dim))
        };
        let mut q = project(&self.q_proj, Module::QProj, c.num_attention_heads)?;
        let mut k = project(&self.k_proj, Module::KProj, c.num_key_value_heads)?;
        let v = project(&self.v_proj, Module::VProj, c.num_key_value_heads)?.transpose(1, 2)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = ops::rms_norm(&q, q_norm, c.rms_norm_eps)?;
            k = ops::rms_norm(&k, k_norm, c.rms_norm_eps)?;
        }
        let q = ops::rope(&q.transpose(1, 2)?, &pass.cos, &pass.sin)?;
        let k = ops::rope(&k.transpose(1, 2)?, &pass.cos, &pass.sin)?;
        let (k, v) = match cache {
            Some(cache) => cache.append(layer, &k, &v)?,
            None => (k, v.contiguous()?),
        };
        // The query heads of a group lie behind each other as rows, so no key is repeated.
        let groups = c.num_attention_heads / c.num_key_value_heads;
        let q = q.reshape((batch, c.num_key_value_heads, groups * seq, c.head_dim))?;
        let scores = q.matmul(&k.transpose(2, 3)?)?;
        let scale = 1.0 / (c.head_dim as f64).sqrt();
        let probs = ops::causal_softmax(&scores, scale, seq)?;
        let width = c.num_attention_heads * c.head_dim;
        let y = probs
            .matmul(&v)?
            .reshape((batch, c.num_attention_heads, seq, c.head_dim))?
            .transpose(1, 2)?
            .reshape((batch * seq, width))?;
        let site = Site { layer, module: Module::OProj };
        pass.adapt.project(site, &self.o_proj, &y)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor, layer: usize, adapt: &dyn Adapt) -> TensorResult<Tensor> {
        let project =
            |linear: &Linear, module, x: &Tensor| adapt.project(Site { layer, module }, linear, x);
        let gate = project(&self.gate_proj, Module::GateProj, x)?;
        let up = project(&self.up_proj, Module::UpProj, x)?;
        project(&self.down_proj, Module::DownProj, &ops::swiglu(&gate, &up)?)
    }
}

impl Layer {
    fn load(c: &ModelConfig, index: usize, weights: &mut Weights<'_>) -> Result<Self, ModelError> {
        let prefix = format!("model.layers.{index}.");
        let mut linear = |module: Module, bias: bool| {
            let (input, output) = c.projection(module);
            let name = format!("{prefix}{}", module.path());
            let weight = weights(&format!("{name}.weight"), &[output, input])?;
            let bias = bias.then(|| weights(&format!("{name}.bias"), &[output])).transpose()?;
            Ok::<_, ModelError>(Linear::new(weight, bias))
        };
        let q_proj = linear(Module::QProj, c.qkv_bias)?;
        let k_proj = linear(Module::KProj, c.qkv_bias)?;
        let v_proj = linear(Module::VProj, c.qkv_bias)?;
        let o_proj = linear(Module::OProj, c.o_bias)?;
        let mlp = Mlp {
            gate_proj: linear(Module::GateProj, c.mlp_bias)?,
            up_proj: linear(Module::UpProj, c.mlp_bias)?,
            down_proj: linear(Module::DownProj, c.mlp_bias)?,
        };
        let mut norm = |name: &str, width| weights(&format!("{prefix}{name}.weight"), &[width]);
        let qk_norm = if c.qk_norm {
            Some((norm("self_attn.q_norm", c.head_dim)?, norm("self_attn.k_norm", c.head_dim)?))
        } else {
            None
        };
        Ok(Self {
            input_norm: norm("input_layernorm", c.hidden_size)?,
            post_attention_norm: norm("post_attention_layernorm", c.hidden_size)?,
            attention: Attention { q_proj, k_proj, v_proj, o_proj, qk_norm },
            mlp,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        shape: (usize, usize),
        layer: usize,
        pass: &Pass<'_>,
        cache: Option<&KvCache>,
    ) -> TensorResult<Tensor> {
        let eps = pass.config.rms_norm_eps;
        let normed = ops::rms_norm(x, &self.input_norm, eps)?;
        let x = (x + self.attention.forward(&normed, shape, layer, pass, cache)?)?;
        let normed = ops::rms_norm(&x, &self.post_attention_norm, eps)?;
        &x + self.mlp.forward(&normed, layer, pass.adapt)?
    }
}

impl Decoder {
    /// Builds the decoder of `config` from the given weights, which must be f32 on `device`.
    ///
    /// # Errors
    /// Whatever `weights` fails with.
    pub fn new(
        config: ModelConfig,
        device: &Device,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = weights("model.embed_tokens.weight", &[vocab, hidden])?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&config, index, weights))
            .collect::<Result<_, _>>()?;
        let norm = weights("model.norm.weight", &[hidden])?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            weights("lm_head.weight", &[vocab, hidden])?
        };
        let head = Linear::new(head, None);
        Ok(Self { config, device: device.clone(), embedding, layers, norm, head })
    }

    /// Allocates a cache for `capacity` tokens.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn new_cache(&self, capacity: usize) -> Result<KvCache, ModelError> {
        Ok(KvCache::new(&self.config, capacity, &self.device)?)
    }

    /// Computes the hidden states `[batch, seq, hidden]`, final norm applied, of `ids`
    /// `[batch, seq]` (u32).
    ///
    /// With a cache the batch must be 1; positions go on at its length and it takes the tokens in.
    /// If this fails, the cache is as it was.
    ///
    /// # Errors
    /// Ids beyond the vocabulary, a full cache, a failed tensor operation.
    pub fn hidden(
        &self,
        ids: &Tensor,
        cache: Option<&mut KvCache>,
        adapt: &dyn Adapt,
    ) -> Result<Tensor, ModelError> {
        let (batch, seq) = ids.dims2()?;
        if cache.is_some() && batch != 1 {
            Err(candle_core::Error::Msg(format!("a cache serves one sequence, not {batch}")))?;
        }
        let start = cache.as_ref().map_or(0, |c| c.len());
        let (cos, sin) = self.rotations(start, seq)?;
        let pass = Pass { config: &self.config, cos, sin, adapt };
        let hidden = self.config.hidden_size;
        let mut x = self.embedding.index_select(&ids.flatten_all()?, 0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, (batch, seq), index, &pass, cache.as_deref())?;
        }
        if let Some(cache) = cache {
            cache.advance(seq);
        }
        let x = ops::rms_norm(&x, &self.norm, self.config.rms_norm_eps)?;
        Ok(x.reshape((batch, seq, hidden))?)
    }

    /// Computes logits `[.., vocab]` (f32) of hidden states `[.., hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let mut shape = hidden.dims().to_vec();
        let Some(last) = shape.last_mut() else {
            return Err(candle_core::Error::Msg("hidden states have no dimension".into()).into());
        };
        let rows = hidden.reshape(((), *last))?;
        *last = self.config.vocab_size;
        Ok(self.head.forward(&rows)?.reshape(shape)?)
    }

    /// Returns the projection at a site of this model.
    pub fn linear(&self, site: Site) -> Option<&Linear> {
        let layer = self.layers.get(site.layer)?;
        Some(match site.module {
            Module::QProj => &layer.attention.q_proj,
            Module::KProj => &layer.attention.k_proj,
            Module::VProj => &layer.attention.v_proj,
            Module::OProj => &layer.attention.o_proj,
            Module::GateProj => &layer.mlp.gate_proj,
            Module::UpProj => &layer.mlp.up_proj,
            Module::DownProj => &layer.mlp.down_proj,
        })
    }

    /// Returns the model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Cosines and sines `[seq, head_dim / 2]` of the positions from `start` on.
    fn rotations(&self, start: usize, seq: usize) -> TensorResult<(Tensor, Tensor)> {
        let half = self.config.head_dim / 2;
        let end = start + seq;
        if end > self.config.max_position_embeddings {
            bail!(
                "position {end} is beyond the context of {} tokens",
                self.config.max_position_embeddings
            );
        }
        // In f32, as transformers computes them.
        let frequency: Vec<f32> = (0..half)
            .map(|i| 1.0 / (self.config.rope_theta as f32).powf(i as f32 / half as f32))
            .collect();
        let angles: Vec<f32> = (start..end)
            .flat_map(|position| frequency.iter().map(move |f| position as f32 * f))
            .collect();
        let angles = Tensor::from_vec(angles, (seq, half), &self.device)?.to_dtype(DType::F32)?;
        Ok((angles.cos()?, angles.sin()?))
    }
}
