//! `shammah bench`: how fast this machine decodes, prefills and trains, in numbers that can be compared with others'.

mod decode;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Tensor;
use serde::Serialize;

use super::args::{BenchCommand, BenchTrainArgs, GlobalArgs};
use super::context::Session;
use super::exit::{Exit, UsageError};
use super::{feedback, model, output};
use crate::domain::TrainExample;
use crate::lora::dataset::{self, Sequence};
use crate::lora::preference::Pairs;
use crate::lora::trainer::{self, Batch, MemoryPlan, TrainingData};
use crate::lora::{AdamW, AdamWConfig, TrainableLora};
use crate::models::{LoadedModel, NoAdapter};
use crate::plan;

/// Longest example that is trained on, as in a job.
const MAX_TOKENS: usize = 2048;

/// The figures, as `--json` prints them.
#[derive(Debug, Serialize)]
struct Figures {
    bench: &'static str,
    model: String,
    /// Median over the runs; in training all counted tokens by the time of all counted steps.
    tokens_per_second: f64,
    /// Median over the steps; training only.
    seconds_per_step: Option<f64>,
    peak_rss_bytes: Option<u64>,
    threads: usize,
    dtype: String,
    device: String,
    /// Seconds of each run; of each step in training.
    runs: Vec<f64>,
    #[serde(flatten)]
    decoding: Option<decode::Figures>,
    #[serde(flatten)]
    training: Option<TrainingFigures>,
}

/// What training adds.
#[derive(Debug, Serialize)]
struct TrainingFigures {
    /// Real tokens of the counted steps: no padding; a shared beginning counts in every example.
    tokens: usize,
    answer_tokens: usize,
    /// Of every step, the one that is not counted included.
    losses: Vec<f64>,
    checkpointed_layers: usize,
}

/// Runs the command.
///
/// # Errors
/// A model that cannot be loaded, a file that cannot be read, or a failed tensor operation.
pub fn run(command: &BenchCommand, global: &GlobalArgs) -> Result<Exit> {
    let session = Session::open(global, Vec::new())?;
    let model = model::load(&session)?;
    let (figures, as_json) = match command {
        BenchCommand::Decode(args) => {
            let (seconds, decoding) = decode::run(&session, &model, args)?;
            let mut figures = speed("decode", &model, args.new_tokens, seconds);
            figures.decoding = Some(decoding);
            (figures, args.json.json)
        }
        BenchCommand::Prefill(args) => {
            let seconds = prefill(&model, args.tokens, args.runs)?;
            (speed("prefill", &model, args.tokens, seconds), args.json.json)
        }
        BenchCommand::Train(args) => (train(&session, &model, args)?, args.json.json),
    };
    show(&figures, as_json)?;
    Ok(Exit::Done)
}

fn show(figures: &Figures, as_json: bool) -> Result<()> {
    if as_json {
        return Ok(output::json(figures)?);
    }
    let memory = figures.peak_rss_bytes.map_or_else(
        || "memory unknown here".to_owned(),
        |bytes| format!("peak memory {:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    );
    let step = figures.seconds_per_step.map(|s| format!(", {s:.3} s a step")).unwrap_or_default();
    let adapted = figures.decoding.as_ref().and_then(|decoding| decoding.adapter.as_ref());
    let adapted = adapted
        .map(|a| {
            format!(
                ", {:.1} with an adapter of rank {} ({:+.2} ms for a swap)",
                a.tokens_per_second, a.rank, a.swap_ms
            )
        })
        .unwrap_or_default();
    let share = figures.decoding.as_ref().and_then(|decoding| decoding.share_of_read);
    let share = share.map(|s| format!(", {:.0} % of a plain read", s * 100.0)).unwrap_or_default();
    Ok(output::line(&format!(
        "{} of {} on {} ({}, {} threads): {:.1} tokens/s{share}{adapted}{step} ({} measured); {memory}",
        figures.bench,
        figures.model,
        figures.device,
        figures.dtype,
        figures.threads,
        figures.tokens_per_second,
        figures.runs.len(),
    ))?)
}

/// The figures of runs that each took the same number of tokens.
fn speed(bench: &'static str, model: &LoadedModel, tokens: usize, runs: Vec<f64>) -> Figures {
    let rate = tokens as f64 / median(&runs);
    figures(bench, model, rate, runs)
}

fn figures(bench: &'static str, model: &LoadedModel, rate: f64, runs: Vec<f64>) -> Figures {
    Figures {
        bench,
        model: model.name.clone(),
        tokens_per_second: rate,
        seconds_per_step: None,
        peak_rss_bytes: peak_rss_bytes(),
        threads: rayon::current_num_threads(),
        dtype: model.decoder.format(),
        device: model::name_of(model.decoder.device()),
        runs,
        decoding: None,
        training: None,
    }
}

/// The middle value; of an even number the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Largest resident set of this process so far.
fn peak_rss_bytes() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Token ids that mean nothing: speed does not depend on them.
fn some_ids(model: &LoadedModel, tokens: usize) -> Result<Vec<u32>> {
    let config = model.decoder.config();
    if tokens == 0 || tokens > model.context_length {
        let message =
            format!("{tokens} tokens: give 1 to {}, the model's context", model.context_length);
        return Err(UsageError(message).into());
    }
    let vocab = config.vocab_size as u32;
    Ok((0..tokens as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect())
}

fn prefill(model: &LoadedModel, tokens: usize, runs: usize) -> Result<Vec<f64>> {
    let ids = some_ids(model, tokens)?;
    let decoder = &model.decoder;
    let ids = Tensor::from_vec(ids, (1, tokens), decoder.device())?;
    timed(runs, || {
        let mut cache = decoder.new_cache(tokens)?;
        decode::advance(decoder, &ids, &mut cache, &NoAdapter)
    })
}

/// Runs `f` once to warm up, then so many times against the clock.
fn timed(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    f()?;
    let run = |_| {
        let start = Instant::now();
        f()?;
        Ok(start.elapsed().as_secs_f64())
    };
    (0..runs.max(1)).map(run).collect()
}

/// All seven layers, as configured, batches in the order of the file, unweighted, without an anchor.
fn train(session: &Session, model: &LoadedModel, args: &BenchTrainArgs) -> Result<Figures> {
    let config = &session.loaded.config.lora;
    let params = plan::training_params(config, model.parameters, 0, false);
    let (sequences, batch_size) = sequences(session, model, args, params.batch_size)?;
    let lora = TrainableLora::fresh(&model.decoder, &params)?;
    let vars = lora.vars().into_iter().map(|(_, var)| var).collect();
    let mut optimizer = AdamW::new(vars, AdamWConfig::default())?;
    let data = TrainingData {
        train: &sequences,
        weights: vec![1.0; sequences.len()],
        anchors: &[],
        pairs: Pairs::NONE,
    };
    let layers = model.decoder.config().num_hidden_layers;
    let memory = MemoryPlan {
        checkpointed_layers: if args.checkpointing { layers } else { 0 },
        micro_batch: 0,
    };
    let (mut runs, mut losses, mut tokens, mut answers) = (Vec::new(), Vec::new(), 0, 0);
    let steps = usize::from(args.steps);
    for step in 0..=steps {
        let items: Vec<usize> =
            (0..batch_size).map(|i| (step * batch_size + i) % sequences.len()).collect();
        let counted = items.iter().map(|&i| &sequences[i]);
        let batch = Batch { epoch: 1, items: items.clone(), anchors: Vec::new() };
        lora.seed_step(params.seed, step);
        let start = Instant::now();
        let gradients = trainer::gradients(&model.decoder, &lora, &data, &batch, 0.0, memory)?;
        losses.push(gradients.loss);
        trainer::step(
            gradients,
            &lora,
            &mut optimizer,
            params.learning_rate,
            params.max_grad_norm,
            false,
        )?;
        // The first step warms up: pages, pools, caches.
        if step > 0 {
            runs.push(start.elapsed().as_secs_f64());
            tokens += counted.clone().map(|s| s.ids.len()).sum::<usize>();
            answers += counted.map(Sequence::answer_tokens).sum::<usize>();
        }
    }
    let total: f64 = runs.iter().sum();
    let step = median(&runs);
    let mut figures = figures("train", model, tokens as f64 / total, runs);
    figures.seconds_per_step = Some(step);
    figures.training = Some(TrainingFigures {
        tokens,
        answer_tokens: answers,
        losses,
        checkpointed_layers: memory.checkpointed_layers,
    });
    Ok(figures)
}

/// The sequences, and how many of them make a step.
fn sequences(
    session: &Session,
    model: &LoadedModel,
    args: &BenchTrainArgs,
    batch_size: usize,
) -> Result<(Vec<Sequence>, usize)> {
    if let Some(shape) = &args.uniform {
        return uniform(model, shape, usize::from(args.steps));
    }
    let Some(file) = &args.data else {
        return Err(
            UsageError("give --data FILE.jsonl or --uniform BATCHxTOKENS".to_owned()).into()
        );
    };
    let sequences = encode(session, model, file)?;
    if sequences.is_empty() {
        return Err(UsageError(format!("{} has no example with an answer", file.display())).into());
    }
    Ok((sequences, batch_size))
}

fn encode(session: &Session, model: &LoadedModel, file: &Path) -> Result<Vec<Sequence>> {
    let rows = feedback::read_file(session, file, None)?;
    let examples: Vec<TrainExample> = rows
        .into_iter()
        .enumerate()
        .map(|(id, row)| TrainExample {
            id: id as i64,
            messages: row.messages,
            target: row.fix.unwrap_or(row.response),
            weight: 1.0,
        })
        .collect();
    let limit = model.context_length.min(MAX_TOKENS);
    Ok(dataset::encode(&examples, &model.tokenizer, limit)?.sequences)
}

/// Sequences of one length, every token but the first a target.
fn uniform(model: &LoadedModel, shape: &str, steps: usize) -> Result<(Vec<Sequence>, usize)> {
    let parsed = shape.split_once('x').and_then(|(b, t)| Some((b.parse().ok()?, t.parse().ok()?)));
    let Some((batch, tokens)) = parsed.filter(|&(b, t): &(usize, usize)| b > 0 && t > 1) else {
        return Err(
            UsageError(format!("--uniform {shape}: give BATCHxTOKENS, such as 4x256")).into()
        );
    };
    let count = batch.checked_mul(steps + 1).context("too many steps")?;
    let sequence = |i: usize| {
        let ids = some_ids(model, tokens)?;
        let vocab = model.decoder.config().vocab_size as u32;
        let ids = ids.into_iter().map(|id| (id + 7919 * i as u32) % vocab).collect();
        Ok(Sequence { id: i as i64, ids, answer_start: 1, weight: 1.0 })
    };
    Ok(((0..count).map(sequence).collect::<Result<_>>()?, batch))
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
