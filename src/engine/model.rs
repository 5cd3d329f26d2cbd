//! A loaded model with adapters, as the loop of a generation sees it.

use candle_core::Tensor;

use super::error::EngineError;
use super::generation::TokenModel;
use super::prefix_cache::CacheStore;
use crate::lora::AdapterSet;
use crate::models::{KvCache, LoadedModel};

/// A base model and the adapters of one answer.
pub struct AdaptedModel<'a> {
    /// The base.
    pub base: &'a LoadedModel,
    /// The adapters; they are added to the base's projections, never merged.
    pub adapters: &'a AdapterSet,
}

impl TokenModel for AdaptedModel<'_> {
    type Cache = KvCache;

    fn context_length(&self) -> usize {
        self.base.context_length
    }

    fn new_cache(&self, capacity: usize) -> Result<KvCache, EngineError> {
        Ok(self.base.decoder.new_cache(capacity)?)
    }

    fn cache_bytes(&self, capacity: usize) -> u64 {
        KvCache::bytes_for(self.base.decoder.config(), capacity)
    }

    fn advance(&self, ids: &[u32], cache: &mut KvCache) -> Result<Tensor, EngineError> {
        let decoder = &self.base.decoder;
        let ids = Tensor::new(ids, decoder.device())?.unsqueeze(0)?;
        // On a thread of the pool, which saves waking one from outside at every operation.
        rayon::scope(|_| {
            let hidden = decoder.hidden(&ids, Some(cache), self.adapters)?;
            // Only the last position is sampled from, and the head is a large part of a small model.
            let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?;
            Ok(decoder.logits(&last)?.flatten_all()?)
        })
    }

    fn token_bytes(&self, id: u32) -> &[u8] {
        self.base.tokenizer.token_bytes(id)
    }

    fn is_stop(&self, id: u32) -> bool {
        self.base.tokenizer.stop_ids().contains(&id)
    }
}

impl CacheStore for KvCache {
    fn len(&self) -> usize {
        KvCache::len(self)
    }

    fn capacity(&self) -> usize {
        KvCache::capacity(self)
    }

    fn bytes(&self) -> u64 {
        KvCache::bytes(self)
    }

    fn truncate(&mut self, len: usize) {
        KvCache::truncate(self, len);
    }

    fn reserve(&mut self, capacity: usize) -> Result<(), EngineError> {
        Ok(KvCache::reserve(self, capacity)?)
    }
}
