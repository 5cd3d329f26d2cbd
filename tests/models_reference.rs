//! The decoder against transformers (tests/fixtures), and against itself: batched, cached, in chunks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may fall"
)]

mod reference;

use std::path::Path;

use candle_core::{D, Device, IndexOp, Tensor};
use reference::*;
use shammah::models::{
    self, Adapt, Added, Decoder, Linear, ModelConfig, ModelSource, Module, NoAdapter, Site, Term,
};

/// Feeds a sequence `[1, seq]` through a cache in pieces and returns all logits `[1, seq, vocab]`.
fn cached(decoder: &Decoder, ids: &Tensor, pieces: &[usize]) -> Tensor {
    let seq = ids.dim(1).unwrap();
    let mut cache = decoder.new_cache(seq).unwrap();
    let mut parts = Vec::new();
    for &piece in pieces {
        let piece = ids.narrow(1, cache.len(), piece).unwrap();
        let hidden = decoder.hidden(&piece, Some(&mut cache), &NoAdapter).unwrap();
        parts.push(decoder.logits(&hidden).unwrap());
    }
    assert_eq!(cache.len(), seq);
    Tensor::cat(&parts, 1).unwrap()
}

#[test]
fn logits_equal_those_of_transformers() {
    for family in all_models() {
        let reference = &tensors(&format!("{family}/reference.safetensors"))["logits"];
        let logits = logits(&decoder(family), &reference_ids(family), &NoAdapter);
        assert_near(family, &logits, reference, LOGITS);
    }
}

#[test]
fn a_batch_equals_its_rows_alone() {
    for family in all_models() {
        let (decoder, ids) = (decoder(family), reference_ids(family));
        let batch = logits(&decoder, &ids, &NoAdapter);
        for row in 0..2 {
            let alone = logits(&decoder, &ids.narrow(0, row, 1).unwrap(), &NoAdapter);
            let what = format!("{family} row {row}");
            assert_near(&what, &alone, &batch.narrow(0, row, 1).unwrap(), 1e-6);
        }
    }
}

#[test]
fn padding_on_the_right_changes_nothing_before_it() {
    let (decoder, ids) = (decoder("qwen3"), reference_ids("qwen3").narrow(0, 0, 1).unwrap());
    let whole = logits(&decoder, &ids, &NoAdapter);
    let padded = Tensor::cat(
        &[
            &ids.narrow(1, 0, 9).unwrap(),
            &Tensor::zeros((1, 7), ids.dtype(), ids.device()).unwrap(),
        ],
        1,
    );
    let padded = logits(&decoder, &padded.unwrap(), &NoAdapter);
    assert_near(
        "before the padding",
        &padded.narrow(1, 0, 9).unwrap(),
        &whole.narrow(1, 0, 9).unwrap(),
        1e-6,
    );
}

#[test]
fn cached_equals_uncached_token_by_token_and_in_chunks() {
    for family in all_models() {
        let (decoder, ids) = (decoder(family), reference_ids(family).narrow(0, 1, 1).unwrap());
        let whole = logits(&decoder, &ids, &NoAdapter);
        for pieces in [vec![1; 23], vec![23], vec![7, 1, 1, 9, 5], vec![22, 1]] {
            let what = format!("{family} in pieces {pieces:?}");
            assert_near(&what, &cached(&decoder, &ids, &pieces), &whole, 1e-5);
        }
    }
}

#[test]
fn a_truncated_cache_forgets_what_came_behind() {
    let (decoder, ids) = (decoder("qwen3"), reference_ids("qwen3"));
    let (first, second) = (ids.narrow(0, 0, 1).unwrap(), ids.narrow(0, 1, 1).unwrap());
    let mut cache = decoder.new_cache(23).unwrap();
    decoder.hidden(&first, Some(&mut cache), &NoAdapter).unwrap();
    cache.truncate(10);
    decoder.hidden(&second.narrow(1, 10, 13).unwrap(), Some(&mut cache), &NoAdapter).unwrap();
    cache.truncate(10);
    let again = decoder.hidden(&first.narrow(1, 10, 13).unwrap(), Some(&mut cache), &NoAdapter);
    let whole = decoder.hidden(&first, None, &NoAdapter).unwrap().narrow(1, 10, 13).unwrap();
    assert_near("after a truncation", &again.unwrap(), &whole, 1e-5);
}

#[test]
fn a_forward_that_fails_leaves_the_cache_as_it_was() {
    let (decoder, ids) = (decoder("llama"), reference_ids("llama").narrow(0, 0, 1).unwrap());
    let mut cache = decoder.new_cache(10).unwrap();
    decoder.hidden(&ids.narrow(1, 0, 6).unwrap(), Some(&mut cache), &NoAdapter).unwrap();
    let full = decoder.hidden(&ids.narrow(1, 6, 5).unwrap(), Some(&mut cache), &NoAdapter);
    let full = full.unwrap_err().to_string();
    assert!(full.contains("holds 10 tokens, 11 are needed"), "{full}");
    let unknown = Tensor::new(&[[9_999u32]], &Device::Cpu).unwrap();
    decoder.hidden(&unknown, Some(&mut cache), &NoAdapter).unwrap_err();
    assert_eq!(cache.len(), 6);
    let two = reference_ids("llama").narrow(1, 0, 1).unwrap();
    decoder.hidden(&two, Some(&mut cache), &NoAdapter).unwrap_err();
    let rest = decoder.hidden(&ids.narrow(1, 6, 4).unwrap(), Some(&mut cache), &NoAdapter).unwrap();
    let whole = decoder.hidden(&ids.narrow(1, 0, 10).unwrap(), None, &NoAdapter).unwrap();
    assert_near("after the failures", &rest, &whole.narrow(1, 6, 4).unwrap(), 1e-5);
}

/// The rows of an embedding are often padded beyond the tokenizer's ids; beyond the rows there is nothing.
#[test]
fn token_ids_beyond_the_embedding_are_refused_with_and_without_a_cache() {
    let decoder = decoder("llama");
    let forward = |id: u32, cached: bool| {
        let ids = Tensor::new(&[[3u32, id]], &Device::Cpu).unwrap();
        let mut cache = decoder.new_cache(2).unwrap();
        decoder.hidden(&ids, cached.then_some(&mut cache), &NoAdapter).map_err(|e| e.to_string())
    };
    for cached in [false, true] {
        forward(96, cached).unwrap();
        for id in [97, u32::MAX] {
            let error = forward(id, cached).unwrap_err();
            let problem = format!("token id {id} is beyond the 97 rows of the embedding");
            assert!(error.contains(&problem) && error.contains("own tokenizer"), "{error}");
        }
    }
}

/// Beyond the context before stretching LongRoPE has other frequencies for all positions.
#[test]
fn the_context_of_longrope_ends_where_its_frequencies_would_change() {
    assert_eq!(decoder("phi3_longrope").config().max_position_embeddings, 24);
    assert_eq!(decoder("qwen2_yarn").config().max_position_embeddings, 128);
}

/// With one token more transformers takes the long factors, for all positions.
#[test]
fn a_whole_context_of_longrope_equals_transformers_and_one_token_more_is_refused() {
    let (decoder, reference) =
        (decoder("phi3_longrope"), tensors("phi3_longrope/boundary.safetensors"));
    let all = ids(&reference["ids"]);
    let whole = all.narrow(1, 0, 24).unwrap();
    assert_near("at once", &logits(&decoder, &whole, &NoAdapter), &reference["logits"], LOGITS);
    assert_near("by token", &cached(&decoder, &whole, &[1; 24]), &reference["logits"], LOGITS);
    assert!(
        relative(&reference["beyond"], &reference["logits"]) > 1e-2,
        "short factors would be wrong"
    );
    let error = decoder.hidden(&all, None, &NoAdapter).unwrap_err().to_string();
    assert!(error.contains("beyond the context of 24 tokens"), "{error}");
}

/// An adapter whose factors have these shapes.
struct Factors(Tensor, Tensor);

impl Adapt for Factors {
    fn project(&self, _: Site, linear: &Linear, x: &Tensor) -> candle_core::Result<Tensor> {
        linear.forward(x)
    }

    fn added(&self, _: Site) -> Added<'_> {
        Added::LowRank(vec![Term { a: &self.0, b: &self.1, scale: 1.0, halves: None }])
    }
}

#[test]
fn factors_that_do_not_fit_a_projection_are_refused_token_by_token() {
    let decoder = decoder("llama");
    let ids = reference_ids("llama").narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap();
    let (input, output) = decoder.config().projection(Module::QProj);
    let step = |a: (usize, usize), b: (usize, usize)| {
        let zeros = |shape| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let mut cache = decoder.new_cache(1).unwrap();
        let hidden = decoder.hidden(&ids, Some(&mut cache), &Factors(zeros(a), zeros(b)));
        assert_eq!(cache.len(), 0, "nothing is kept of a step that failed");
        hidden.unwrap_err().to_string()
    };
    for (a, b) in [
        ((2, input + 1), (output, 2)),
        ((2, input), (output + 1, 2)),
        ((2, input), (output, 3)),
        ((input, 2), (2, output)),
    ] {
        let error = step(a, b);
        let expected = format!("do not fit [{output}, {input}]");
        assert!(error.contains("factors") && error.contains(&expected), "{a:?} {b:?}: {error}");
    }
}

#[test]
fn positions_beyond_the_context_are_refused() {
    let decoder = decoder("llama");
    let ids = Tensor::zeros((1, 129), candle_core::DType::U32, &Device::Cpu).unwrap();
    let error = decoder.hidden(&ids, None, &NoAdapter).unwrap_err().to_string();
    assert!(error.contains("beyond the context of 128 tokens"), "{error}");
}

#[test]
fn configs_of_transformers_4_and_5_describe_the_same_model() {
    for model in all_models() {
        let parsed = |file: &str| {
            let path = fixture(&format!("{model}/{file}"));
            ModelConfig::parse(&fs_err::read_to_string(&path).unwrap(), &path).unwrap()
        };
        assert_eq!(parsed("config.json"), parsed("config_v5.json"), "{model}");
    }
}

/// The keys that the files of a family leave to transformers.
#[test]
fn keys_that_a_config_leaves_out_are_those_of_transformers() {
    let text = r#"{"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912,
        "num_hidden_layers": 26, "sliding_window": 512}"#;
    let gemma = ModelConfig::parse(text, Path::new("config.json")).unwrap();
    assert_eq!((gemma.num_attention_heads, gemma.num_key_value_heads, gemma.head_dim), (8, 4, 256));
    assert!(gemma.tie_word_embeddings && gemma.eos_token_ids == [1]);
    let full: Vec<usize> = (0..26).filter(|layer| gemma.window(*layer).is_none()).collect();
    assert_eq!(full, [5, 11, 17, 23]);
    let thetas = (gemma.rope.theta, gemma.sliding_rope.unwrap().theta);
    assert_eq!((thetas, gemma.attention_scale), ((1e6, 1e4), 1.0 / 16.0));
    let text = r#"{"model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 32768}"#;
    let mistral = ModelConfig::parse(text, Path::new("config.json")).unwrap();
    assert_eq!((mistral.num_key_value_heads, mistral.window(0)), (8, Some(4096)));
}

/// Qwen2 has its biases whatever the config says, as in transformers.
#[test]
fn attention_bias_of_a_config_does_not_take_the_biases_of_qwen2() {
    let path = fixture("qwen2/config.json");
    let mut config = json("qwen2/config.json");
    config["attention_bias"] = false.into();
    assert!(ModelConfig::parse(&config.to_string(), &path).unwrap().qkv_bias);
}

#[test]
fn stories260k_equals_transformers_and_tells_the_same_story() {
    let Some(shared) = shared() else { return };
    let source = ModelSource::Dir(shared.join("models/stories260k"));
    let model = models::load(&source, &Device::Cpu, None).unwrap();
    let reference = tensors("stories260k_reference.safetensors");
    let prompt = ids(&reference["ids"]);
    let mut cache = model.decoder.new_cache(64).unwrap();
    let hidden = model.decoder.hidden(&prompt, Some(&mut cache), &NoAdapter).unwrap();
    let mut logits = model.decoder.logits(&hidden).unwrap();
    assert_near("stories260k", &logits, &reference["logits"], LOGITS);

    let mut story = Vec::new();
    for _ in 0..40 {
        let last = logits.i((.., logits.dim(1).unwrap() - 1)).unwrap();
        let next = last.argmax_keepdim(D::Minus1).unwrap();
        story.push(next.flatten_all().unwrap().to_vec1::<u32>().unwrap()[0]);
        let hidden = model.decoder.hidden(&next, Some(&mut cache), &NoAdapter).unwrap();
        logits = model.decoder.logits(&hidden).unwrap();
    }
    assert_eq!(story, ids(&reference["greedy"]).flatten_all().unwrap().to_vec1::<u32>().unwrap());
    let text = model.tokenizer.decode(&story).unwrap();
    assert!(text.starts_with(", there was a little girl named Lily."), "{text}");
}

#[test]
fn stories260k_encodes_as_transformers() {
    let Some(shared) = shared() else { return };
    let source = ModelSource::Dir(shared.join("models/stories260k"));
    let model = models::load(&source, &Device::Cpu, None).unwrap();
    let messages = [shammah::domain::Message::user("Once upon a time")];
    let encoded = model.tokenizer.render_chat(&messages, false).unwrap();
    let reference = ids(&tensors("stories260k_reference.safetensors")["ids"]);
    assert_eq!(encoded, reference.flatten_all().unwrap().to_vec1::<u32>().unwrap());
}
