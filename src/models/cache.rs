//! Keys and values of the tokens that a decoder has seen.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{ModelConfig, with_elements};

/// The attention cache of one sequence, in buffers that are appended to in place.
///
/// It is not `Clone`: a cloned tensor shares its storage, and two sequences appending to one buffer
/// would corrupt each other.
#[derive(Debug)]
pub struct KvCache {
    /// Per layer: keys and values, each `[1, kv_heads, capacity, head_dim]`.
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// Allocates a cache for `capacity` tokens.
    pub(super) fn new(config: &ModelConfig, capacity: usize, device: &Device) -> Result<Self> {
        let shape = (1, config.num_key_value_heads, capacity, config.head_dim);
        let buffer = || Tensor::zeros(shape, DType::F32, device);
        let layers = (0..config.num_hidden_layers)
            .map(|_| Ok((buffer()?, buffer()?)))
            .collect::<Result<_>>()?;
        Ok(Self { layers, len: 0, capacity })
    }

    /// Returns the bytes of a cache for `capacity` tokens.
    pub fn bytes_for(config: &ModelConfig, capacity: usize) -> u64 {
        let values = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers;
        (values * DType::F32.size_in_bytes()) as u64 * capacity as u64
    }

    /// Returns the bytes of the buffers.
    pub fn bytes(&self) -> u64 {
        let of = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        self.layers.iter().map(|(keys, values)| of(keys) + of(values)).sum()
    }

    /// Returns the number of tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all tokens from position `len` on; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Grows to `capacity` tokens, keeping those held; a smaller `capacity` changes nothing.
    ///
    /// # Errors
    /// No memory on the device; the cache is then as it was.
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        if capacity <= self.capacity {
            return Ok(());
        }
        let grow = |held: &Tensor| -> Result<Tensor> {
            let (batch, heads, _, head_dim) = held.dims4()?;
            let shape = (batch, heads, capacity, head_dim);
            let grown = Tensor::zeros(shape, held.dtype(), held.device())?;
            if self.len > 0 {
                grown.slice_set(&held.narrow(2, 0, self.len)?.contiguous()?, 2, 0)?;
            }
            Ok(grown)
        };
        let grown = self.layers.iter().map(|(k, v)| Ok((grow(k)?, grow(v)?)));
        self.layers = grown.collect::<Result<_>>()?;
        self.capacity = capacity;
        Ok(())
    }

    /// Writes keys and values `[1, kv_heads, seq, head_dim]` behind those held and returns all of
    /// them as views `[1, kv_heads, len + seq, head_dim]`. The length grows in [`Self::advance`].
    pub(super) fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let end = self.len + k.dim(2)?;
        if end > self.capacity {
            bail!("the attention cache holds {} tokens, {end} are needed", self.capacity);
        }
        let (keys, values) = &self.layers[layer];
        keys.slice_set(&k.contiguous()?, 2, self.len)?;
        values.slice_set(&v.contiguous()?, 2, self.len)?;
        Ok((keys.narrow(2, 0, end)?, values.narrow(2, 0, end)?))
    }

    /// Writes one token's keys and values `[kv_heads · head_dim]` behind those held and calls `f` with all keys and values
    /// of the layer, `[kv_heads, capacity, head_dim]`, and the number of tokens in them. On the CPU.
    pub(super) fn with_token<R>(
        &self,
        layer: usize,
        k: &[f32],
        v: &[f32],
        f: impl FnOnce(&[f32], &[f32], usize) -> R,
    ) -> Result<R> {
        let (keys, values) = &self.layers[layer];
        let (_, heads, _, head_dim) = keys.dims4()?;
        let of_token = |x| Tensor::from_slice(x, (1, heads, 1, head_dim), keys.device());
        self.append(layer, &of_token(k)?, &of_token(v)?)?;
        with_elements([keys, values], |[keys, values]| f(keys, values, self.len + 1))
    }

    /// Counts the tokens that every layer has appended.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
