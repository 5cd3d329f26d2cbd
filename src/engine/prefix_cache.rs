//! Keeps what the model computed for earlier conversations, so that the next turn of one prefills
//! only what is new.
//!
//! A session is checked out while it is used and returned when the generation ended well: a failed
//! or panicked generation takes its session with it, so what is kept is always consistent.

use super::error::EngineError;

/// The most conversations that are kept: the chat itself, a side question or comparison with the
/// base, and one more; each costs memory in proportion to its length.
pub const MAX_SESSIONS: usize = 4;

/// What a session's keys and values depend on besides the tokens: one adapter never reads
/// another's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey {
    base_hash: String,
    /// Digest and weight (as bits) of each adapter, in the order they are applied.
    adapters: Vec<(String, u64)>,
}

impl CacheKey {
    /// Makes the key of a base model with adapters given as digest and weight.
    pub fn new<'a>(base_hash: &str, adapters: impl IntoIterator<Item = (&'a str, f64)>) -> Self {
        let part = |(digest, weight): (&str, f64)| (digest.to_owned(), weight.to_bits());
        let adapters = adapters.into_iter().map(part).collect();
        Self { base_hash: base_hash.to_owned(), adapters }
    }

    /// Tells whether every adapter has a digest. One made in memory has none, and two of those
    /// must not be taken for each other.
    fn is_certain(&self) -> bool {
        self.adapters.iter().all(|(digest, _)| !digest.is_empty())
    }
}

/// What the bookkeeping needs to know of a key-value cache.
pub trait CacheStore {
    /// Returns the number of positions that are filled.
    fn len(&self) -> usize;
    /// Returns the number of positions that there is memory for.
    fn capacity(&self) -> usize;
    /// Returns the bytes of that memory.
    fn bytes(&self) -> u64;
    /// Forgets all positions from `len` on.
    fn truncate(&mut self, len: usize);
    /// Grows to `capacity` positions and keeps those that are filled; never shrinks.
    ///
    /// # Errors
    /// No memory on the device.
    fn reserve(&mut self, capacity: usize) -> Result<(), EngineError>;
}

/// A cache and the tokens whose keys and values are in it.
#[derive(Debug)]
pub struct Session<C> {
    key: CacheKey,
    /// One token per filled position.
    pub tokens: Vec<u32>,
    /// The tokens from the start that were given, not generated.
    prompt_len: usize,
    /// The keys and values.
    pub cache: C,
}

impl<C: CacheStore> Session<C> {
    /// Makes a session for an empty cache.
    pub fn new(key: CacheKey, cache: C, prompt_len: usize) -> Self {
        Self { key, tokens: Vec::new(), prompt_len, cache }
    }

    /// Returns how many tokens of `prompt` need not be computed again. At least the last one is,
    /// for its logits.
    fn shared(&self, prompt: &[u32]) -> usize {
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        same.min(prompt.len().saturating_sub(1))
    }

    /// Tells whether cutting the session to `shared` tokens loses no more than it saves.
    ///
    /// Two conversations often begin alike (the same system message): the second should not destroy
    /// the first for that. An answer at the end does not count, it is replaced by a retry anyway.
    fn worth_cutting(&self, shared: usize) -> bool {
        shared > 0 && self.prompt_len.min(self.tokens.len()).saturating_sub(shared) <= shared
    }
}

/// The sessions that are kept, the one used longest ago first, within a number of bytes. The one in use counts too: the
/// others make room for it, and only alone may it be larger.
#[derive(Debug)]
pub struct PrefixCache<C> {
    sessions: Vec<Session<C>>,
    max_sessions: usize,
    max_bytes: u64,
}

impl<C: CacheStore> PrefixCache<C> {
    /// Keeps nothing yet, and later at most `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        Self::with_limits(MAX_SESSIONS, max_bytes)
    }

    fn with_limits(max_sessions: usize, max_bytes: u64) -> Self {
        Self { sessions: Vec::new(), max_sessions, max_bytes }
    }

    /// Takes out the session with the same key that shares the longest prefix with `prompt`, cut to
    /// that prefix.
    pub fn check_out(&mut self, key: &CacheKey, prompt: &[u32]) -> Option<Session<C>> {
        let usable = |(index, session): (usize, &Session<C>)| {
            let shared = session.shared(prompt);
            let same = session.key == *key;
            (same && session.worth_cutting(shared)).then_some((shared, index))
        };
        let (shared, index) = self.sessions.iter().enumerate().filter_map(usable).max()?;
        let mut session = self.sessions.remove(index);
        session.cache.truncate(shared);
        session.tokens.truncate(shared);
        session.prompt_len = prompt.len();
        Some(session)
    }

    /// Returns a session after a generation that ended well (or was cancelled).
    ///
    /// One whose tokens and cache do not agree, whose adapter has no digest or that alone is larger than the limit is
    /// dropped, and so are sessions that it contains.
    pub fn check_in(&mut self, session: Session<C>) {
        let agrees = session.tokens.len() == session.cache.len();
        if session.tokens.is_empty() || !agrees || !session.key.is_certain() {
            return;
        }
        self.sessions
            .retain(|old| old.key != session.key || !session.tokens.starts_with(&old.tokens));
        let bytes = session.cache.bytes();
        self.make_room(bytes);
        if bytes <= self.max_bytes {
            self.sessions.push(session);
        }
    }

    /// Drops the sessions used longest ago until one more of `bytes` fits.
    pub fn make_room(&mut self, bytes: u64) {
        let fits = |sessions: &[Session<C>]| {
            let held: u64 = sessions.iter().map(|session| session.cache.bytes()).sum();
            sessions.len() < self.max_sessions && held + bytes <= self.max_bytes
        };
        let dropped = (0..self.sessions.len()).find(|&first| fits(&self.sessions[first..]));
        self.sessions.drain(..dropped.unwrap_or(self.sessions.len()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of a position.
    const POSITION: u64 = 10;
    const PLENTY: u64 = 1 << 20;

    /// A cache that counts positions only.
    #[derive(Debug)]
    struct Counter {
        len: usize,
        capacity: usize,
    }

    impl CacheStore for Counter {
        fn len(&self) -> usize {
            self.len
        }
        fn capacity(&self) -> usize {
            self.capacity
        }
        fn bytes(&self) -> u64 {
            self.capacity as u64 * POSITION
        }
        fn truncate(&mut self, len: usize) {
            self.len = self.len.min(len);
        }
        fn reserve(&mut self, capacity: usize) -> Result<(), EngineError> {
            self.capacity = self.capacity.max(capacity);
            Ok(())
        }
    }

    fn key(adapters: &[(&str, f64)]) -> CacheKey {
        CacheKey::new("base", adapters.iter().copied())
    }

    fn session(key: &CacheKey, tokens: &[u32], prompt_len: usize) -> Session<Counter> {
        let cache = Counter { len: tokens.len(), capacity: tokens.len() };
        Session { tokens: tokens.to_vec(), ..Session::new(key.clone(), cache, prompt_len) }
    }

    fn taken(cache: &mut PrefixCache<Counter>, key: &CacheKey, prompt: &[u32]) -> Option<Vec<u32>> {
        let session = cache.check_out(key, prompt)?;
        assert_eq!(session.tokens.len(), session.cache.len);
        Some(session.tokens)
    }

    #[test]
    fn an_adapter_never_reads_the_cache_of_another() {
        let mine = key(&[("a", 1.0), ("b", 0.5)]);
        let others = [
            key(&[]),
            key(&[("a", 1.0)]),
            key(&[("a", 1.0), ("b", 0.25)]),
            key(&[("b", 0.5), ("a", 1.0)]),
            key(&[("a", 1.0), ("c", 0.5)]),
            CacheKey::new("other base", [("a", 1.0), ("b", 0.5)]),
        ];
        for other in others {
            let mut cache = PrefixCache::new(PLENTY);
            cache.check_in(session(&mine, &[1, 2, 3], 3));
            assert_eq!(taken(&mut cache, &other, &[1, 2, 3, 4]), None, "{other:?}");
            assert_eq!(taken(&mut cache, &mine, &[1, 2, 3, 4]), Some(vec![1, 2, 3]));
        }
    }

    #[test]
    fn the_longest_common_prefix_wins_and_the_last_token_is_computed_again() {
        let key = key(&[]);
        let mut cache = PrefixCache::new(PLENTY);
        cache.check_in(session(&key, &[1, 2, 3, 9], 2));
        cache.check_in(session(&key, &[1, 2, 8], 2));
        cache.check_in(session(&key, &[7], 1));
        assert_eq!(taken(&mut cache, &key, &[1, 2, 3, 4]), Some(vec![1, 2, 3]));
        assert_eq!(taken(&mut cache, &key, &[1, 2, 8]), Some(vec![1, 2]));
        assert_eq!(taken(&mut cache, &key, &[7]), None, "one token has nothing to save");
    }

    #[test]
    fn a_common_beginning_does_not_cost_another_conversation_its_cache() {
        let key = key(&[]);
        let mut cache = PrefixCache::new(PLENTY);
        cache.check_in(session(&key, &[1, 2, 3, 4, 5, 6, 7], 7));
        assert_eq!(taken(&mut cache, &key, &[1, 2, 9, 9]), None, "two saved, five lost");
        assert_eq!(taken(&mut cache, &key, &[1, 2, 3, 4, 9]), Some(vec![1, 2, 3, 4]));
        cache.check_in(session(&key, &[1, 2, 3, 4, 5, 6, 7], 2));
        assert_eq!(taken(&mut cache, &key, &[1, 2, 9]), Some(vec![1, 2]), "a retried answer");
    }

    #[test]
    fn the_session_used_longest_ago_goes_first() {
        let key = key(&[]);
        let mut cache = PrefixCache::with_limits(3, PLENTY);
        for first in [10, 20, 30] {
            cache.check_in(session(&key, &[first, 1, 2], 3));
        }
        let used = cache.check_out(&key, &[10, 1, 2, 3]).expect("kept");
        cache.check_in(used);
        cache.check_in(session(&key, &[40, 1, 2], 3));
        assert_eq!(cache.sessions.len(), 3);
        assert_eq!(taken(&mut cache, &key, &[20, 1, 2]), None);
        assert!(taken(&mut cache, &key, &[10, 1, 2]).is_some());
        assert!(taken(&mut cache, &key, &[30, 1, 2]).is_some());
    }

    /// What is kept, and what of the one in use the others leave room for.
    fn held(cache: &PrefixCache<Counter>) -> u64 {
        cache.sessions.iter().map(|session| session.cache.bytes()).sum()
    }

    proptest! {
        #[test]
        fn the_bytes_of_all_sessions_never_pass_the_limit(
            limit in 0..600u64,
            prompts in prop::collection::vec((0..3u32, 1..30usize, 0..40usize), 1..40),
        ) {
            let key = key(&[]);
            let mut cache = PrefixCache::new(limit);
            for (first, len, answer) in prompts {
                let prompt: Vec<u32> = (0..len as u32).map(|n| first * 1000 + n).collect();
                let mut used = cache.check_out(&key, &prompt).unwrap_or_else(|| {
                    cache.make_room(len as u64 * POSITION);
                    Session::new(key.clone(), Counter { len: 0, capacity: len }, len)
                });
                let total = len + answer;
                if used.cache.capacity() < total {
                    cache.make_room(used.cache.bytes() + total as u64 * POSITION);
                    used.cache.reserve(total).unwrap();
                }
                let in_use = used.cache.bytes();
                prop_assert!(held(&cache) + in_use <= limit.max(in_use));
                used.tokens = prompt.iter().copied().chain((0..answer as u32).map(|n| 9000 + n)).collect();
                used.cache.len = total;
                cache.check_in(used);
                prop_assert!(held(&cache) <= limit);
                prop_assert_eq!(cache.sessions.last().is_some_and(|last| last.cache.len == total), in_use <= limit);
            }
        }
    }

    #[test]
    fn a_session_larger_than_the_limit_is_not_kept_and_the_least_used_make_room() {
        let key = key(&[]);
        let mut cache = PrefixCache::with_limits(10, 10 * POSITION);
        for first in 0..6 {
            cache.check_in(session(&key, &[first, 1, 2, 3], 4));
        }
        assert_eq!(cache.sessions.len(), 2);
        assert_eq!(taken(&mut cache, &key, &[3, 1, 2, 3]), None, "the two used last are kept");
        cache.check_in(session(&key, &[9; 25], 25));
        assert!(cache.sessions.is_empty());
    }

    #[test]
    fn what_does_not_agree_or_is_contained_is_not_kept() {
        let key = key(&[]);
        let mut cache = PrefixCache::new(PLENTY);
        let mut torn = session(&key, &[1, 2, 3], 3);
        torn.cache.len = 2;
        cache.check_in(torn);
        cache.check_in(session(&key, &[], 0));
        cache.check_in(session(&CacheKey::new("base", [("", 1.0)]), &[1, 2, 3], 3));
        assert!(cache.sessions.is_empty());
        cache.check_in(session(&key, &[1, 2], 2));
        cache.check_in(session(&key, &[1, 2, 3], 3));
        assert_eq!(cache.sessions.len(), 1);
    }
}
