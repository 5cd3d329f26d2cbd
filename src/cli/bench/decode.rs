//! `shammah bench decode`: one token after the other, with and without an adapter in turn.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use serde::Serialize;

use super::super::args::BenchDecodeArgs;
use super::super::context::Session;
use super::{median, some_ids};
use crate::lora::{AdapterSet, LoraAdapter, TrainableLora};
use crate::models::{Adapt, Decoder, KvCache, LoadedModel, NoAdapter};
use crate::plan;

/// What decoding adds to the figures: the time between two tokens.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    token_ms_median: f64,
    /// 95 of 100 tokens took less.
    token_ms_p95: f64,
    /// What a plain read of a token's weights by as many threads reaches, median over reads before each run; on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_gb_per_second: Option<f64>,
    /// The time of such a read by the time of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_of_read: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterFigures>,
}

/// The same work with an adapter on all seven projections.
#[derive(Debug, Serialize)]
pub(super) struct AdapterFigures {
    pub rank: usize,
    /// Median over runs, each beside one without it.
    pub tokens_per_second: f64,
    /// The same with two adapters of this rank together, half and half.
    pub two_tokens_per_second: f64,
    /// How much longer a token takes, in the median, if another adapter acted at the one before.
    pub swap_ms: f64,
    runs: Vec<f64>,
}

/// Returns the seconds of each run without an adapter, and the rest of the figures.
pub(super) fn run(
    session: &Session,
    model: &LoadedModel,
    args: &BenchDecodeArgs,
) -> Result<(Vec<f64>, Figures)> {
    let sets = args.adapter_rank.map(|rank| sets(session, model, rank)).transpose()?;
    let ids = some_ids(model, args.prompt_tokens + args.new_tokens)?;
    let (mut runs, mut tokens) = (Vec::new(), Vec::new());
    let (mut adapted, mut mixed) = (Vec::new(), Vec::new());
    let (mut steady, mut swapped) = (Vec::new(), Vec::new());
    let mut reads = Vec::new();
    // The first of each warms up.
    for run in 0..=args.runs.max(1) {
        let measure = |adapts: &[&dyn Adapt]| one_run(model, &ids, args.prompt_tokens, adapts);
        let read = plain_read(&model.decoder)?;
        let times = measure(&[&NoAdapter])?;
        if run > 0 {
            reads.extend(read);
            runs.push(times.iter().sum());
            tokens.extend(times);
        }
        let Some(Sets { first, second, both }) = &sets else { continue };
        let (one, two) = (measure(&[first])?, measure(&[both])?);
        // Each acts twice, so that tokens with a swap before them stand beside tokens without, in one run.
        let by_turns = measure(&[first, first, second, second])?;
        if run > 0 {
            adapted.push(one.iter().sum());
            mixed.push(two.iter().sum());
            // The first token follows the prompt, not a token.
            for (index, seconds) in by_turns.into_iter().enumerate().skip(1) {
                if index % 2 == 0 { &mut swapped } else { &mut steady }.push(seconds);
            }
        }
    }
    tokens.sort_by(f64::total_cmp);
    let token = median(&tokens);
    let read = (!reads.is_empty()).then(|| median(&reads));
    let read_bytes: u64 = model.decoder.linears().map(|linear| linear.weight().bytes()).sum();
    let adapter = args.adapter_rank.map(|rank| AdapterFigures {
        rank,
        tokens_per_second: args.new_tokens as f64 / median(&adapted),
        two_tokens_per_second: args.new_tokens as f64 / median(&mixed),
        swap_ms: (median(&swapped) - median(&steady)) * 1e3,
        runs: adapted,
    });
    let p95 = tokens.get(tokens.len() * 95 / 100).copied().unwrap_or_default();
    let figures = Figures {
        token_ms_median: token * 1e3,
        token_ms_p95: p95 * 1e3,
        read_gb_per_second: read.map(|seconds| read_bytes as f64 / seconds / 1e9),
        share_of_read: read.map(|seconds| seconds / token),
        adapter,
    };
    Ok((runs, figures))
}

/// Returns the seconds of each token behind the prompt; `adapts` act by turns.
fn one_run(
    model: &LoadedModel,
    ids: &[u32],
    prompt: usize,
    adapts: &[&dyn Adapt],
) -> Result<Vec<f64>> {
    let decoder = &model.decoder;
    let mut cache = decoder.new_cache(ids.len())?;
    if prompt > 0 {
        let prompt = Tensor::new(&ids[..prompt], decoder.device())?.unsqueeze(0)?;
        decoder.hidden(&prompt, Some(&mut cache), adapts[0])?;
    }
    let mut seconds = Vec::with_capacity(ids.len() - prompt);
    for (&id, adapt) in ids[prompt..].iter().zip(adapts.iter().cycle()) {
        let start = Instant::now();
        advance(decoder, &Tensor::new(&[[id]], decoder.device())?, &mut cache, *adapt)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// Returns the seconds in which all threads read what a token is multiplied with; none where it is not on the CPU.
fn plain_read(decoder: &Decoder) -> Result<Option<f64>> {
    /// Bytes that a thread reads at a time.
    const PART: usize = 1 << 20;
    if !decoder.device().is_cpu() {
        return Ok(None);
    }
    let start = Instant::now();
    for linear in decoder.linears() {
        linear.weight().with_rows(|rows| {
            let sum = |part: &[u8]| {
                let words = part.chunks_exact(8).filter_map(|word| word.try_into().ok());
                words.map(u64::from_le_bytes).fold(0, u64::wrapping_add)
            };
            let sum = rows.bytes().par_chunks(PART).map(sum).reduce(|| 0, u64::wrapping_add);
            std::hint::black_box(sum);
        })?;
    }
    Ok(Some(start.elapsed().as_secs_f64()))
}

/// What an answer computes for its next token, on a thread of the pool as there.
pub(super) fn advance(
    decoder: &Decoder,
    ids: &Tensor,
    cache: &mut KvCache,
    adapt: &dyn Adapt,
) -> Result<()> {
    rayon::scope(|_| {
        let hidden = decoder.hidden(ids, Some(cache), adapt)?;
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?;
        decoder.logits(&last)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(())
    })
}

/// Two new adapters, each alone and both together.
struct Sets {
    first: AdapterSet,
    second: AdapterSet,
    both: AdapterSet,
}

fn sets(session: &Session, model: &LoadedModel, rank: usize) -> Result<Sets> {
    let adapter = || Ok::<_, anyhow::Error>(Arc::new(adapter(session, model, rank)?));
    let (first, second) = (adapter()?, adapter()?);
    let both = vec![(Arc::clone(&first), 0.5), (Arc::clone(&second), 0.5)];
    let (first, second) = (AdapterSet::single(first), AdapterSet::single(second));
    Ok(Sets { first, second, both: AdapterSet::weighted(both)? })
}

/// A new adapter on all seven projections.
fn adapter(session: &Session, model: &LoadedModel, rank: usize) -> Result<LoraAdapter> {
    let mut params = plan::training_params(&session.loaded.config.lora, model.parameters, 0, false);
    let all = crate::models::Module::ALL;
    params.rank = rank;
    params.target_modules = all.iter().map(|module| module.name().to_owned()).collect();
    Ok(TrainableLora::fresh(&model.decoder, &params)?.publish()?)
}
