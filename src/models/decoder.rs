//! The decoder of all families: attention, MLP, block, model. [`ModelConfig`] states where they differ.
//!
//! One forward serves inference and training; all that training uses of it has a backward.

use std::sync::Arc;

use candle_core::{Device, Result as TensorResult, Tensor, bail};

use super::attention;
use super::gated::{Activation, Gated};
use super::linear::{Adapt, Linear, Module, Site};
use super::packing::Packing;
use super::rotation::Rotation;
use super::unfused::Unfused;
use super::weight::{Quantize, Weight};
use super::{KvCache, ModelConfig, ModelError, ops};

/// Hands out the weight of a name and shape.
///
/// Loading reads them from files; pretraining makes them.
pub type Weights<'a> = dyn FnMut(&str, &[usize]) -> Result<Weight, ModelError> + 'a;

pub(super) struct Attention {
    pub(super) q_proj: Linear,
    pub(super) k_proj: Linear,
    pub(super) v_proj: Linear,
    pub(super) o_proj: Linear,
    /// Norms of the heads of q and k (Qwen3, Gemma 3).
    pub(super) qk_norm: Option<(Tensor, Tensor)>,
}

pub(super) struct Mlp {
    pub(super) gate_proj: Linear,
    pub(super) up_proj: Linear,
    pub(super) down_proj: Linear,
    pub(super) activation: Activation,
}

pub(super) struct Layer {
    pub(super) input_norm: Tensor,
    pub(super) attention: Attention,
    pub(super) mlp_norm: Tensor,
    pub(super) mlp: Mlp,
    /// Norms of what attention and MLP give (Gemma 3).
    pub(super) output_norms: Option<(Tensor, Tensor)>,
}

/// A decoder-only transformer with its weights.
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Linear,
}

/// What all layers share in one forward.
pub struct Pass<'a> {
    config: &'a ModelConfig,
    rotation: Rotation,
    /// That of layers with a window, where it is another one.
    sliding_rotation: Option<Rotation>,
    seen: Seen<'a>,
    /// The rows whose hidden states are asked for; all if none are named.
    wanted: Option<Tensor>,
}

/// The keys and values that a forward's queries see besides their own.
enum Seen<'a> {
    /// Those of their sequences.
    Packed(Arc<Packing>),
    /// Those of the tokens before.
    Cached(&'a KvCache),
}

impl Pass<'_> {
    pub(super) fn rotation(&self, layer: usize) -> &Rotation {
        let sliding =
            self.sliding_rotation.as_ref().filter(|_| self.config.window(layer).is_some());
        sliding.unwrap_or(&self.rotation)
    }

    /// Returns the rows that are asked for: behind the last layer's attention no row needs another.
    fn wanted_of(&self, layer: usize, x: Tensor) -> TensorResult<Tensor> {
        match &self.wanted {
            Some(rows) if layer + 1 == self.config.num_hidden_layers => x.index_select(rows, 0),
            _ => Ok(x),
        }
    }
}

impl Attention {
    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        pass: &Pass<'_>,
        adapt: &dyn Adapt,
    ) -> TensorResult<Tensor> {
        let tokens = x.dim(0)?;
        let c = pass.config;
        let heads = c.heads(layer);
        let project = |linear: &Linear, module, heads| -> TensorResult<Tensor> {
            adapt.project(Site { layer, module }, linear, x)?.reshape((tokens, heads, c.head_dim))
        };
        let mut q = project(&self.q_proj, Module::QProj, heads.queries)?;
        let mut k = project(&self.k_proj, Module::KProj, heads.keys)?;
        let v = project(&self.v_proj, Module::VProj, heads.keys)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = ops::rms_norm(&q, q_norm, c.rms_norm_eps)?;
            k = ops::rms_norm(&k, k_norm, c.rms_norm_eps)?;
        }
        let Rotation { cos, sin } = pass.rotation(layer);
        let rotated = |t: Tensor| -> TensorResult<Tensor> {
            let turned = ops::rope(&t, cos, sin)?;
            // Rotating back needs the angles alone.
            ops::forget(&t)?;
            Ok(turned)
        };
        let q = rotated(q)?.flatten_from(1)?;
        let k = rotated(k)?;
        let y = match &pass.seen {
            Seen::Packed(packing) => {
                attention::packed(&q, &k.flatten_from(1)?, &v.flatten_from(1)?, heads, packing)?
            }
            Seen::Cached(cache) => {
                let in_cache = |t: &Tensor| t.transpose(0, 1)?.unsqueeze(0);
                let (k, v) = cache.append(layer, &in_cache(&k)?, &in_cache(&v)?)?;
                attention::cached(&q, &k, &v, heads)?
            }
        };
        let y = pass.wanted_of(layer, y)?;
        adapt.project(Site { layer, module: Module::OProj }, &self.o_proj, &y)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor, layer: usize, adapt: &dyn Adapt) -> TensorResult<Tensor> {
        let site = |module| Site { layer, module };
        let gate = adapt.project(site(Module::GateProj), &self.gate_proj, x)?;
        let up = adapt.project(site(Module::UpProj), &self.up_proj, x)?;
        let input = Gated { gate: &gate, up: &up, activation: self.activation };
        adapt.project_gated(site(Module::DownProj), &self.down_proj, input)
    }
}

/// A sum's gradient needs neither part.
fn added(x: &Tensor, y: Tensor) -> TensorResult<Tensor> {
    let sum = (x + &y)?;
    ops::forget(&y)?;
    Ok(sum)
}

impl Layer {
    fn load(
        c: &ModelConfig,
        index: usize,
        weights: &mut Unfused<'_, '_>,
    ) -> Result<Self, ModelError> {
        let prefix = format!("model.layers.{index}.");
        let mut linear = |module: Module, bias: bool| {
            let (_, output) = c.projection(module);
            let weight = weights.projection(&prefix, module)?;
            let name = format!("{prefix}{}.bias", module.path());
            let bias = bias.then(|| weights.vector(&name, output)).transpose()?;
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
            activation: c.activation,
        };
        let mut norm = |name: &str, width| weights.norm(&format!("{prefix}{name}"), width);
        let mut pair = |wanted: bool, [one, other]: [&str; 2], width| {
            let both = || Ok::<_, ModelError>((norm(one, width)?, norm(other, width)?));
            wanted.then(both).transpose()
        };
        let on_heads = ["self_attn.q_norm", "self_attn.k_norm"];
        let qk_norm = pair(c.qk_norm, on_heads, c.head_dim)?;
        let on_outputs = ["post_attention_layernorm", "post_feedforward_layernorm"];
        let output_norms = pair(c.output_norms, on_outputs, c.hidden_size)?;
        // The name means what comes behind attention: its output, or the MLP's input.
        let of_mlp = match c.output_norms {
            true => "pre_feedforward_layernorm",
            false => "post_attention_layernorm",
        };
        Ok(Self {
            input_norm: norm("input_layernorm", c.hidden_size)?,
            mlp_norm: norm(of_mlp, c.hidden_size)?,
            output_norms,
            attention: Attention { q_proj, k_proj, v_proj, o_proj, qk_norm },
            mlp,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        pass: &Pass<'_>,
        adapt: &dyn Adapt,
    ) -> TensorResult<Tensor> {
        let eps = pass.config.rms_norm_eps;
        let (of_attention, of_mlp) = self.output_norms.as_ref().map(|(a, m)| (a, m)).unzip();
        let output = |y: Tensor, norm: Option<&Tensor>| match norm {
            Some(norm) => ops::rms_norm(&y, norm, eps),
            None => Ok(y),
        };
        let normed = ops::rms_norm(x, &self.input_norm, eps)?;
        let attended = self.attention.forward(&normed, layer, pass, adapt)?;
        let x = added(&pass.wanted_of(layer, x.clone())?, output(attended, of_attention)?)?;
        let normed = ops::rms_norm(&x, &self.mlp_norm, eps)?;
        added(&x, output(self.mlp.forward(&normed, layer, adapt)?, of_mlp)?)
    }
}

impl Decoder {
    /// Builds the decoder of `config` from the given weights on `device`: norms and biases f32, the others f32, f16
    /// or bf16.
    ///
    /// # Errors
    /// Whatever `weights` fails with.
    pub fn new(
        config: ModelConfig,
        device: &Device,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let mut weights = Unfused::new(&config, weights);
        let embedding = weights.get("model.embed_tokens.weight", &[vocab, hidden])?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&config, index, &mut weights))
            .collect::<Result<_, _>>()?;
        let norm = weights.norm("model.norm", hidden)?;
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            weights.get("lm_head.weight", &[vocab, hidden])?
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
        let hidden = (batch, seq, self.config.hidden_size);
        let Some(cache) = cache else {
            let rows = ids.to_vec2::<u32>()?;
            let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            let packing = Arc::new(Packing::new(&rows, false)?);
            return Ok(self.hidden_packed(&packing, None, adapt)?.reshape(hidden)?);
        };
        if batch != 1 {
            Err(candle_core::Error::Msg(format!("a cache serves one sequence, not {batch}")))?;
        }
        let start = cache.len() as u32;
        let positions: Vec<u32> = (start..start + seq as u32).collect();
        let pass = self.pass(&positions, Seen::Cached(cache), None)?;
        if let (1, true) = (seq, ops::fused(&self.device)) {
            let id = ids.flatten_all()?.to_vec1::<u32>()?[0];
            let x = self.step(id, &pass, cache, adapt)?;
            cache.advance(1);
            return Ok(Tensor::from_vec(x, hidden, &self.device)?);
        }
        let mut x = self.embed(&ids.flatten_all()?.to_vec1()?)?;
        for layer in 0..self.layers.len() {
            x = self.layer(layer, &x, &pass, adapt)?;
        }
        let x = self.finish(&x)?.reshape(hidden)?;
        cache.advance(seq);
        Ok(x)
    }

    /// Computes the hidden states `[rows, hidden]`, final norm applied, of packed sequences: those of the rows that are
    /// `wanted`, or of all.
    ///
    /// # Errors
    /// Ids beyond the vocabulary, positions beyond the context, a failed tensor operation.
    pub fn hidden_packed(
        &self,
        packing: &Arc<Packing>,
        wanted: Option<&[u32]>,
        adapt: &dyn Adapt,
    ) -> Result<Tensor, ModelError> {
        let (pass, mut x) = self.begin(packing, wanted)?;
        for layer in 0..self.layers.len() {
            x = self.layer(layer, &x, &pass, adapt)?;
        }
        self.finish(&x)
    }

    /// Begins a forward of packed sequences: what all layers share, and the first one's input `[tokens, hidden]`.
    /// [`Self::layer`] goes on layer by layer, [`Self::finish`] ends it. The last layer returns only the rows that are
    /// `wanted`, in that order.
    ///
    /// # Errors
    /// Ids beyond the vocabulary, positions beyond the context.
    pub fn begin(
        &self,
        packing: &Arc<Packing>,
        wanted: Option<&[u32]>,
    ) -> Result<(Pass<'_>, Tensor), ModelError> {
        let wanted = wanted.map(|rows| Tensor::new(rows, &self.device)).transpose()?;
        let pass = self.pass(packing.positions(), Seen::Packed(Arc::clone(packing)), wanted)?;
        Ok((pass, self.embed(packing.ids())?))
    }

    fn pass<'a>(
        &'a self,
        positions: &[u32],
        seen: Seen<'a>,
        wanted: Option<Tensor>,
    ) -> TensorResult<Pass<'a>> {
        let config = &self.config;
        let end = positions.iter().max().map_or(0, |&last| last as usize + 1);
        if end > config.max_position_embeddings {
            let context = config.max_position_embeddings;
            bail!("position {end} is beyond the context of {context} tokens");
        }
        let of = |rope| Rotation::new(rope, positions, &self.device);
        let rotation = of(&config.rope)?;
        let sliding_rotation = config.sliding_rope.as_ref().map(of).transpose()?;
        Ok(Pass { config, rotation, sliding_rotation, seen, wanted })
    }

    /// Computes the output `[tokens, hidden]` of one layer.
    ///
    /// # Errors
    /// A full cache, a failed tensor operation.
    pub fn layer(
        &self,
        index: usize,
        x: &Tensor,
        pass: &Pass<'_>,
        adapt: &dyn Adapt,
    ) -> Result<Tensor, ModelError> {
        Ok(self.layers[index].forward(x, index, pass, adapt)?)
    }

    /// Applies the final norm to the last layer's output `[tokens, hidden]`.
    ///
    /// # Errors
    /// A failed tensor operation.
    pub fn finish(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(ops::rms_norm(x, &self.norm, self.config.rms_norm_eps)?)
    }

    pub(super) fn embed(&self, ids: &[u32]) -> TensorResult<Tensor> {
        let rows = self.config.vocab_size;
        // Accelerators would read whatever lies there.
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            bail!(
                "token id {id} is beyond the {rows} rows of the embedding: take the model's own tokenizer"
            );
        }
        let ids = Tensor::new(ids, &self.device)?;
        let x = self.embedding.select(&ids)?;
        if self.config.scaled_embedding { x * self.embedding_scale() } else { Ok(x) }
    }

    /// √hidden, in the type of the embedding's weights: so the model was trained.
    fn embedding_scale(&self) -> f64 {
        let scale = (self.config.hidden_size as f64).sqrt();
        match self.embedding.format() {
            "bf16" => half::bf16::from_f64(scale).to_f64(),
            "f16" => half::f16::from_f64(scale).to_f64(),
            _ => scale,
        }
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

    /// Brings the matrices to a format of a few bits. Embedding and head keep 8 bits: they are a large part of a small
    /// model's reading, and the part that bears fewer bits worst.
    ///
    /// # Errors
    /// Weights that are not on the CPU, rows that do not divide into blocks.
    pub fn quantised(mut self, format: Quantize) -> Result<Self, ModelError> {
        for layer in &mut self.layers {
            let Attention { q_proj, k_proj, v_proj, o_proj, .. } = &mut layer.attention;
            let Mlp { gate_proj, up_proj, down_proj, .. } = &mut layer.mlp;
            for linear in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] {
                *linear = linear.clone().quantised(format)?;
            }
        }
        self.embedding = self.embedding.quantised(Quantize::Q8_0)?;
        self.head = if self.config.tie_word_embeddings {
            Linear::new(self.embedding.clone(), None)
        } else {
            self.head.quantised(Quantize::Q8_0)?
        };
        Ok(self)
    }

    /// Returns the names of the formats of the projections, such as `bf16` or `q4_k, q8_0`.
    pub fn format(&self) -> String {
        let mut names: Vec<&str> = Module::ALL
            .into_iter()
            .filter_map(|module| self.linear(Site { layer: 0, module }))
            .map(|linear| linear.weight().format())
            .collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }

    /// Returns the bytes of all matrices, as they are kept; norms and biases are too few to count.
    pub fn weight_bytes(&self) -> u64 {
        let embedding = if self.config.tie_word_embeddings { 0 } else { self.embedding.bytes() };
        self.linears().map(|linear| linear.weight().bytes()).sum::<u64>() + embedding
    }

    /// Returns all that a token is multiplied with: the projections and the head.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let layers = (0..self.layers.len()).flat_map(move |layer| {
            Module::ALL.into_iter().filter_map(move |module| self.linear(Site { layer, module }))
        });
        layers.chain([&self.head])
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(super) fn norm(&self) -> &Tensor {
        &self.norm
    }

    /// Returns the layer that turns hidden states into logits.
    pub fn head(&self) -> &Linear {
        &self.head
    }

    /// Returns the model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
