use std::cell::{Cell, RefCell};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use candle_core::Device;
use proptest::prelude::*;

use super::*;

const STOP: u32 = 256;
/// Bytes for every session of a test.
const PLENTY: u64 = 1 << 20;

/// Every byte at its own index: the texts of the tokens.
const BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut at = 0;
    while at < 256 {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

/// What a [`FakeModel`] has seen: the tokens themselves stand for keys and values.
#[derive(Debug)]
struct FakeCache {
    tokens: Vec<u32>,
    capacity: usize,
}

impl CacheStore for FakeCache {
    fn len(&self) -> usize {
        self.tokens.len()
    }
    fn capacity(&self) -> usize {
        self.capacity
    }
    fn bytes(&self) -> u64 {
        self.capacity as u64
    }
    fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
    }
    fn reserve(&mut self, capacity: usize) -> Result<(), EngineError> {
        self.capacity = self.capacity.max(capacity);
        Ok(())
    }
}

/// From all tokens so far to logits.
type Logits = dyn Fn(&[u32]) -> Vec<f32>;

/// A model whose tokens are bytes and whose logits are a function of all tokens in the cache.
struct FakeModel {
    context_length: usize,
    logits: Box<Logits>,
    cancel: AtomicBool,
    /// Sets `cancel` while the forward of this number runs.
    cancel_in: Option<usize>,
    forwards: Cell<usize>,
    /// The lengths of the inputs.
    chunks: RefCell<Vec<usize>>,
}

impl FakeModel {
    fn new(logits: impl Fn(&[u32]) -> Vec<f32> + 'static) -> Self {
        Self {
            context_length: 4096,
            logits: Box::new(logits),
            cancel: AtomicBool::new(false),
            cancel_in: None,
            forwards: Cell::new(0),
            chunks: RefCell::default(),
        }
    }

    /// Says `bytes` after a prompt of `prompt_len` tokens, then stops.
    fn saying(bytes: &'static [u8], prompt_len: usize) -> Self {
        Self::new(move |seen| {
            let said = seen.len().checked_sub(prompt_len).and_then(|at| bytes.get(at));
            let mut logits = vec![0.0; 257];
            logits[said.map_or(STOP as usize, |&byte| byte as usize)] = 1.0;
            logits
        })
    }

    /// Says letters that depend on every token before them.
    fn hashing() -> Self {
        Self::new(|seen| {
            let logit = |token: u32| {
                let mut hasher = DefaultHasher::new();
                (seen, token).hash(&mut hasher);
                if (97..123).contains(&token) { (hasher.finish() % 64) as f32 / 8.0 } else { -20.0 }
            };
            (0..257).map(logit).collect()
        })
    }
}

impl TokenModel for FakeModel {
    type Cache = FakeCache;

    fn context_length(&self) -> usize {
        self.context_length
    }
    fn new_cache(&self, capacity: usize) -> Result<FakeCache, EngineError> {
        Ok(FakeCache { tokens: Vec::new(), capacity })
    }
    fn cache_bytes(&self, capacity: usize) -> u64 {
        capacity as u64
    }
    fn advance(&self, ids: &[u32], cache: &mut FakeCache) -> Result<Tensor, EngineError> {
        self.forwards.set(self.forwards.get() + 1);
        self.chunks.borrow_mut().push(ids.len());
        if self.cancel_in == Some(self.forwards.get()) {
            self.cancel.store(true, Ordering::Relaxed);
        }
        cache.tokens.extend_from_slice(ids);
        assert!(cache.tokens.len() <= cache.capacity, "the cache must have room");
        assert!(cache.capacity <= self.context_length, "no memory beyond the context");
        Ok(Tensor::new((self.logits)(&cache.tokens), &Device::Cpu)?)
    }
    fn token_bytes(&self, id: u32) -> &[u8] {
        u8::try_from(id).map_or(&[], |byte| std::slice::from_ref(&BYTES[usize::from(byte)]))
    }
    fn is_stop(&self, id: u32) -> bool {
        id == STOP
    }
}

fn key() -> CacheKey {
    CacheKey::new("base", [])
}

fn collect(
    model: &FakeModel,
    sampling: &Sampling,
    prompt: &[u32],
    sessions: &mut PrefixCache<FakeCache>,
) -> (Result<Generated, EngineError>, Vec<String>) {
    let mut pieces = Vec::new();
    let generation = Generation { model, sampling, cancel: &model.cancel, clock: None };
    let result = generation.run(key(), prompt, sessions, &mut |text| {
        pieces.push(text.to_owned());
        ControlFlow::Continue(())
    });
    (result, pieces)
}

fn answer(model: &FakeModel, sampling: &Sampling, prompt: &[u32]) -> (Generated, Vec<String>) {
    let (result, pieces) = collect(model, sampling, prompt, &mut PrefixCache::new(PLENTY));
    (result.expect("generated"), pieces)
}

fn random(seed: u64, max_tokens: usize) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::greedy(max_tokens) }
}

#[test]
fn characters_arrive_whole_and_the_end_token_ends_the_answer() {
    let model = FakeModel::saying("a€ü".as_bytes(), 3);
    let (generated, pieces) = answer(&model, &Sampling::greedy(50), &[1, 2, 3]);
    assert_eq!(pieces, ["a", "€", "ü"]);
    assert_eq!(generated.text, "a€ü");
    assert_eq!(generated.finish_reason, FinishReason::Stop);
    assert_eq!((generated.prompt_tokens, generated.new_tokens), (3, 7));
}

#[test]
fn max_tokens_bounds_the_answer_even_inside_a_character() {
    let model = FakeModel::saying("ab€".as_bytes(), 1);
    let (generated, _) = answer(&model, &Sampling::greedy(3), &[1]);
    assert_eq!(generated.text, "ab\u{fffd}");
    assert_eq!((generated.new_tokens, generated.finish_reason), (3, FinishReason::Length));
    let forwards = model.forwards.get();
    assert_eq!(forwards, 3, "the last token needs no forward");
}

#[test]
fn a_stop_string_over_several_tokens_ends_the_answer_and_is_not_shown() {
    let model = FakeModel::saying(b"one END two", 1);
    let sampling = Sampling { stop: vec!["END".into()], ..Sampling::greedy(50) };
    let (generated, pieces) = answer(&model, &sampling, &[1]);
    assert_eq!(generated.text, "one ");
    assert_eq!(pieces.concat(), "one ");
    assert_eq!((generated.new_tokens, generated.finish_reason), (7, FinishReason::Stop));
}

#[test]
fn the_beginning_of_a_stop_string_at_the_end_is_text() {
    let model = FakeModel::saying(b"one EN", 1);
    let sampling = Sampling { stop: vec!["END".into()], ..Sampling::greedy(50) };
    let (generated, pieces) = answer(&model, &sampling, &[1]);
    assert_eq!((generated.text.as_str(), pieces.concat().as_str()), ("one EN", "one EN"));
}

#[test]
fn a_listener_that_breaks_ends_the_generation() {
    let model = FakeModel::hashing();
    let sampling = Sampling::greedy(1000);
    let generation =
        Generation { model: &model, sampling: &sampling, cancel: &model.cancel, clock: None };
    let mut pieces = 0;
    let generated = generation
        .run(key(), &[1], &mut PrefixCache::new(PLENTY), &mut |_| {
            pieces += 1;
            if pieces == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("generated");
    assert_eq!((pieces, generated.new_tokens), (3, 3));
    assert_eq!(generated.finish_reason, FinishReason::Cancelled);
    assert_eq!(model.forwards.get(), 3, "no forward after the break");
}

#[test]
fn cancelling_takes_effect_within_one_token() {
    let model = FakeModel { cancel_in: Some(4), ..FakeModel::hashing() };
    let (generated, pieces) = answer(&model, &Sampling::greedy(1000), &[1]);
    assert_eq!(generated.finish_reason, FinishReason::Cancelled);
    assert_eq!((pieces.len(), model.forwards.get()), (3, 4), "nothing after the running forward");

    // Cancelled while the third piece is shown: there is no fourth forward.
    let model = FakeModel::hashing();
    let sampling = Sampling::greedy(1000);
    let generation =
        Generation { model: &model, sampling: &sampling, cancel: &model.cancel, clock: None };
    let mut pieces = 0;
    let generated = generation
        .run(key(), &[1], &mut PrefixCache::new(PLENTY), &mut |_| {
            pieces += 1;
            model.cancel.store(pieces == 3, Ordering::Relaxed);
            ControlFlow::Continue(())
        })
        .expect("generated");
    assert_eq!(generated.finish_reason, FinishReason::Cancelled);
    assert_eq!((pieces, model.forwards.get()), (3, 3));
}

#[test]
fn cancelling_takes_effect_between_prefill_chunks_and_what_was_computed_stays_usable() {
    let prompt: Vec<u32> = (0..5 * PREFILL_CHUNK as u32).collect();
    let model = FakeModel { cancel_in: Some(2), ..FakeModel::hashing() };
    let mut sessions = PrefixCache::new(PLENTY);
    let (result, pieces) = collect(&model, &Sampling::greedy(8), &prompt, &mut sessions);
    let generated = result.expect("generated");
    assert_eq!(generated.finish_reason, FinishReason::Cancelled);
    assert_eq!((generated.new_tokens, pieces.len(), model.forwards.get()), (0, 0, 2));

    let model = FakeModel::hashing();
    let (again, _) = collect(&model, &Sampling::greedy(8), &prompt, &mut sessions);
    let again = again.expect("generated");
    assert_eq!(again.cached_tokens, 2 * PREFILL_CHUNK);
    assert_eq!(again.text, answer(&model, &Sampling::greedy(8), &prompt).0.text);
}

#[test]
fn a_flag_that_is_already_set_costs_no_forward() {
    let model = FakeModel::hashing();
    model.cancel.store(true, Ordering::Relaxed);
    let (generated, _) = answer(&model, &Sampling::greedy(8), &[1, 2]);
    assert_eq!((model.forwards.get(), generated.new_tokens), (0, 0));
    assert_eq!(generated.finish_reason, FinishReason::Cancelled);
}

#[test]
fn a_prompt_without_room_for_an_answer_is_refused_with_a_remedy() {
    let model = FakeModel { context_length: 16, ..FakeModel::hashing() };
    for len in [16, 17, 100_000] {
        let (result, _) =
            collect(&model, &Sampling::greedy(8), &vec![1; len], &mut PrefixCache::new(PLENTY));
        let error = result.expect_err("overflow");
        assert!(
            matches!(error, EngineError::ContextOverflow { prompt_tokens, context_length: 16, .. } if prompt_tokens == len)
        );
        assert!(error.to_string().contains("shorten"), "{error}");
    }
    assert_eq!(model.forwards.get(), 0);
    let (generated, _) = answer(&model, &Sampling::greedy(1000), &[1; 12]);
    assert_eq!((generated.new_tokens, generated.finish_reason), (4, FinishReason::Length));
}

#[test]
fn an_empty_prompt_and_wrong_settings_are_refused() {
    let model = FakeModel::hashing();
    let mut sessions = PrefixCache::new(PLENTY);
    let (result, _) = collect(&model, &Sampling::greedy(8), &[], &mut sessions);
    assert!(matches!(result, Err(EngineError::EmptyPrompt)));
    let (result, _) = collect(&model, &Sampling::greedy(0), &[1], &mut sessions);
    assert!(matches!(result, Err(EngineError::InvalidSampling { name: "max_tokens", .. })));
}

#[test]
fn a_failed_generation_leaves_the_other_sessions_as_they_were() {
    let mut sessions = PrefixCache::new(PLENTY);
    let prompt: Vec<u32> = (0..40).collect();
    let other: Vec<u32> = (100..140).collect();
    let good = FakeModel::hashing();
    collect(&good, &Sampling::greedy(4), &prompt, &mut sessions).0.expect("generated");
    collect(&good, &Sampling::greedy(4), &other, &mut sessions).0.expect("generated");

    let bad = FakeModel::new(|_| vec![f32::NAN; 257]);
    let (result, pieces) = collect(&bad, &Sampling::greedy(4), &prompt, &mut sessions);
    assert!(matches!(result, Err(EngineError::NonFiniteLogits { token: 0, .. })));
    assert!(pieces.is_empty());

    let (kept, _) = collect(&good, &Sampling::greedy(4), &other, &mut sessions);
    assert_eq!(kept.expect("generated").cached_tokens, 39);
    let (dropped, _) = collect(&good, &Sampling::greedy(4), &prompt, &mut sessions);
    let dropped = dropped.expect("generated");
    assert_eq!(dropped.cached_tokens, 0);
    assert_eq!(dropped.text, answer(&good, &Sampling::greedy(4), &prompt).0.text);
}

#[test]
fn a_long_prompt_is_prefilled_in_chunks_of_bounded_size() {
    let model = FakeModel::hashing();
    answer(&model, &Sampling::greedy(1), &vec![7; 3 * PREFILL_CHUNK + 5]);
    assert_eq!(*model.chunks.borrow(), [PREFILL_CHUNK, PREFILL_CHUNK, PREFILL_CHUNK, 5]);
}

#[test]
fn timings_come_from_the_callers_clock_only() {
    let model = FakeModel::saying(b"hi", 1);
    let ticks = Cell::new(0);
    let clock = || {
        ticks.set(ticks.get() + 1);
        Duration::from_millis(ticks.get() * ticks.get())
    };
    let sampling = Sampling::greedy(5);
    let generation = Generation {
        model: &model,
        sampling: &sampling,
        cancel: &model.cancel,
        clock: Some(&clock),
    };
    let generated = generation
        .run(key(), &[1], &mut PrefixCache::new(PLENTY), &mut |_| ControlFlow::Continue(()))
        .expect("generated");
    assert_eq!(generated.prefill, Some(Duration::from_millis(3)));
    assert_eq!(generated.decode, Some(Duration::from_millis(5)));
    assert_eq!(answer(&model, &sampling, &[1]).0.prefill, None);
}

#[test]
fn the_end_token_is_never_penalised() {
    // The end token stands in the prompt, as in every chat; its logit beats the letter's by little.
    let model = FakeModel::new(|_| {
        let mut logits = vec![0.0; 257];
        (logits[97], logits[STOP as usize]) = (1.0, 1.1);
        logits
    });
    let sampling = Sampling { repetition_penalty: 1.5, ..Sampling::greedy(5) };
    let (generated, _) = answer(&model, &sampling, &[1, STOP, 2]);
    assert_eq!((generated.text.as_str(), generated.new_tokens), ("", 1));
}

proptest! {
    #[test]
    fn the_same_seed_gives_the_same_text(seed in any::<u64>(), prompt in prop::collection::vec(0u32..256, 1..20)) {
        let model = FakeModel::hashing();
        let first = answer(&model, &random(seed, 24), &prompt).0;
        prop_assert_eq!(&first, &answer(&model, &random(seed, 24), &prompt).0);
        prop_assert_eq!(first.new_tokens, 24);
    }

    /// Conversations that grow, branch, are retried and are cancelled, over one set of sessions.
    #[test]
    fn cached_answers_equal_uncached_ones(
        turns in prop::collection::vec((0usize..3, 0usize..40, prop::collection::vec(0u32..4, 1..30), any::<bool>()), 1..12),
        // Room for all three conversations, for one or two, for none.
        limit in prop::sample::select(vec![PLENTY, 1100, 600, 10]),
    ) {
        let mut sessions = PrefixCache::new(limit);
        let mut chats = [vec![1u32; 10], vec![1u32; 10], vec![2u32; 3]];
        for (chat, keep, message, cancelled) in turns {
            let chat = &mut chats[chat];
            chat.truncate(keep.max(1));
            chat.extend(message);
            let mut model = FakeModel::hashing();
            model.cancel_in = cancelled.then_some(3);
            let sampling = random(keep as u64, 6);
            let cached = collect(&model, &sampling, chat, &mut sessions).0.expect("generated");
            prop_assert!(cached.cached_tokens < chat.len());
            if !cancelled {
                let uncached = answer(&FakeModel::hashing(), &sampling, chat).0;
                prop_assert_eq!(&cached.text, &uncached.text);
                chat.extend(cached.text.bytes().map(u32::from));
            }
        }
    }
}
