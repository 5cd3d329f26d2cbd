//! `shammah bench decode`: one token after the other, with and without an adapter in turn.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::Tensor;
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
    /// How much longer a token takes, in the median, if another adapter acts at each.
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
    // The first of each warms up.
    for run in 0..=args.runs.max(1) {
        let measure = |adapts| one_run(model, &ids, args.prompt_tokens, adapts);
        let times = measure([&NoAdapter; 2])?;
        if run > 0 {
            runs.push(times.iter().sum());
            tokens.extend(times);
        }
        let Some(Sets { first, second, both }) = &sets else { continue };
        let (one, two, by_turns) =
            (measure([first; 2])?, measure([both; 2])?, measure([first, second])?);
        if run > 0 {
            adapted.push(one.iter().sum());
            mixed.push(two.iter().sum());
            steady.extend(one);
            swapped.extend(by_turns);
        }
    }
    tokens.sort_by(f64::total_cmp);
    let adapter = args.adapter_rank.map(|rank| AdapterFigures {
        rank,
        tokens_per_second: args.new_tokens as f64 / median(&adapted),
        two_tokens_per_second: args.new_tokens as f64 / median(&mixed),
        swap_ms: (median(&swapped) - median(&steady)) * 1e3,
        runs: adapted,
    });
    let p95 = tokens.get(tokens.len() * 95 / 100).copied().unwrap_or_default();
    let figures =
        Figures { token_ms_median: median(&tokens) * 1e3, token_ms_p95: p95 * 1e3, adapter };
    Ok((runs, figures))
}

/// Returns the seconds of each token behind the prompt; `adapts` act by turns.
fn one_run(
    model: &LoadedModel,
    ids: &[u32],
    prompt: usize,
    adapts: [&dyn Adapt; 2],
) -> Result<Vec<f64>> {
    let decoder = &model.decoder;
    let mut cache = decoder.new_cache(ids.len())?;
    if prompt > 0 {
        let prompt = Tensor::new(&ids[..prompt], decoder.device())?.unsqueeze(0)?;
        decoder.hidden(&prompt, Some(&mut cache), adapts[0])?;
    }
    let mut seconds = Vec::with_capacity(ids.len() - prompt);
    for (&id, adapt) in ids[prompt..].iter().zip(adapts.into_iter().cycle()) {
        let start = Instant::now();
        advance(decoder, &Tensor::new(&[[id]], decoder.device())?, &mut cache, adapt)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
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
    let mut params = plan::training_params(&session.loaded.config.lora, model.parameters, 0);
    let all = crate::models::Module::ALL;
    params.rank = rank;
    params.target_modules = all.iter().map(|module| module.name().to_owned()).collect();
    Ok(TrainableLora::fresh(&model.decoder, &params)?.publish()?)
}
