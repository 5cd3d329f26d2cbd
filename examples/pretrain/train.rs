//! The training loop: batches, loss, step, checkpoint.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use clap::Args;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use shammah::domain::Message;
use shammah::lora::{AdamW, AdamWConfig, Moments, clip_gradients, loss::cross_entropy};
use shammah::models::{NoAdapter, Tokenizer};

use crate::corpus::{Corpus, open_text};
use crate::model::{self, TrainedModel, VOCAB_SIZE};
use crate::{score, tokenizer};

/// Dialogues that the tokenizer learns from.
const TOKENIZER_DIALOGUES: usize = 30_000;
/// Batches whose dialogues are sorted by length together, to pad little.
const BATCHES_PER_POOL: usize = 8;
/// The share of rows that are passages of open text.
const OPEN_TEXT_PERCENT: usize = 4;
/// Weight of the user's tokens in the loss: what is asked helps to understand, less than what is answered.
const USER_WEIGHT: f32 = 0.15;
/// Longest row in tokens.
const MAX_TOKENS: usize = 160;

#[derive(Args)]
pub struct TrainArgs {
    /// Checkpoints and tokenizer.
    #[arg(long, default_value = "target/tiny")]
    out: PathBuf,
    /// Folder whose `data/` holds open text; may be absent.
    #[arg(long, default_value = "../shared")]
    shared: PathBuf,
    /// Optimiser steps in all.
    #[arg(long, default_value_t = 1300)]
    steps: usize,
    /// Rows per step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 100)]
    save_every: usize,
    /// Steps between scores on the held-out questions.
    #[arg(long, default_value_t = 500)]
    score_every: usize,
    /// Seed of weights and data.
    #[arg(long, default_value_t = 17)]
    seed: u64,
}

/// A tokenized row with the loss weight of each token.
struct Row {
    ids: Vec<u32>,
    weights: Vec<f32>,
}

struct Data {
    corpus: Corpus,
    passages: Vec<String>,
    tokenizer: Tokenizer,
}

pub fn train(args: &TrainArgs) -> Result<()> {
    fs_err::create_dir_all(&args.out)?;
    let corpus = Corpus::builtin()?;
    let passages = open_text(&args.shared);
    println!("{} passages of open text", passages.len());
    if !args.out.join("tokenizer.json").exists() {
        make_tokenizer(args, &corpus, &passages)?;
    }
    let data = Data { corpus, passages, tokenizer: model::tokenizer(&args.out)? };
    let saved = model::load(&args.out)?;
    let model = model::build(saved.as_ref().map(|(tensors, _)| tensors), args.seed)?;
    let vars: Vec<_> = model.vars.values().cloned().collect();
    let config = AdamWConfig { beta2: 0.95, weight_decay: 0.05, ..AdamWConfig::default() };
    let mut optimizer = match &saved {
        Some((tensors, step)) => {
            let moment = |kind: &str, name: &String| {
                let key = format!("{kind}.{name}");
                tensors.get(&key).cloned().with_context(|| format!("the checkpoint has no {key}"))
            };
            let moments = model.vars.keys().map(|name| {
                Ok(Moments { first: moment("first", name)?, second: moment("second", name)? })
            });
            AdamW::resume(vars, config, moments.collect::<Result<_>>()?, *step)?
        }
        None => AdamW::new(vars, config)?,
    };
    run(args, &data, &model, &mut optimizer)
}

fn make_tokenizer(args: &TrainArgs, corpus: &Corpus, passages: &[String]) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(args.seed);
    let dialogues: Vec<String> = (0..TOKENIZER_DIALOGUES)
        .flat_map(|_| corpus.dialogue(&mut rng))
        .flat_map(|turn| [turn.user, turn.assistant])
        .collect();
    let texts = dialogues.into_iter().chain(passages.iter().take(3000).cloned());
    let tokenizer = tokenizer::train(texts, VOCAB_SIZE)?;
    tokenizer
        .save(args.out.join("tokenizer.json"), true)
        .map_err(|e| anyhow::anyhow!("cannot write the tokenizer: {e}"))
}

fn run(args: &TrainArgs, data: &Data, model: &TrainedModel, optimizer: &mut AdamW) -> Result<()> {
    let start = Instant::now();
    let (mut tokens, mut losses) = (0, Vec::new());
    let mut pool: (usize, Vec<Vec<Row>>) = (usize::MAX, Vec::new());
    for step in optimizer.step_count()..args.steps {
        let index = step / BATCHES_PER_POOL;
        if pool.0 != index {
            pool = (index, make_pool(args, data, index)?);
        }
        let batch = &pool.1[step % BATCHES_PER_POOL];
        tokens += batch.iter().map(|row| row.ids.len()).sum::<usize>();
        let loss = loss(model, batch)?;
        let gradients = loss.backward()?;
        let mut gradients: Vec<Tensor> = model
            .vars
            .iter()
            .map(|(name, var)| {
                gradients.get(var).cloned().with_context(|| format!("{name} has no gradient"))
            })
            .collect::<Result<_>>()?;
        clip_gradients(&mut gradients, 1.0)?;
        optimizer.step(&gradients, args.learning_rate * schedule(step, args.steps))?;
        losses.push(loss.to_scalar::<f32>()?);
        let done = step + 1;
        if done % 20 == 0 {
            let mean = losses.iter().sum::<f32>() / losses.len() as f32;
            let speed = tokens as f64 / start.elapsed().as_secs_f64();
            println!("step {done}/{} loss {mean:.4} {speed:.0} tokens/s", args.steps);
            losses.clear();
        }
        if done % args.save_every == 0 || done == args.steps {
            model::save(&args.out, model, optimizer.moments(), done)?;
        }
        if done % args.score_every == 0 || done == args.steps {
            let right = score::count(&model.decoder, &data.tokenizer, |_, _, _| {})?;
            println!("step {done}: {right} of 100 held-out questions right");
        }
    }
    Ok(())
}

/// Warm-up, a long plateau, then a linear decay over the last 30 %: a run can be prolonged before it decays.
fn schedule(step: usize, total: usize) -> f64 {
    let warmup = ((step + 1) as f64 / 100.0).min(1.0);
    let decay = (total - step) as f64 / (0.3 * total as f64);
    warmup * decay.min(1.0)
}

fn make_pool(args: &TrainArgs, data: &Data, index: usize) -> Result<Vec<Vec<Row>>> {
    let mut rng =
        StdRng::seed_from_u64(args.seed.wrapping_mul(1_000_003).wrapping_add(index as u64));
    let count = args.batch * BATCHES_PER_POOL;
    let mut rows = Vec::with_capacity(count);
    for i in 0..count {
        let passage =
            data.passages.choose(&mut rng).filter(|_| i * 100 / count < OPEN_TEXT_PERCENT);
        let row = match passage {
            Some(text) => passage_row(&data.tokenizer, text)?,
            None => dialogue_row(data, &mut rng)?,
        };
        rows.push(row);
    }
    rows.sort_by_key(|row| row.ids.len());
    let mut rows = rows.into_iter();
    let mut batches: Vec<Vec<Row>> =
        (0..BATCHES_PER_POOL).map(|_| rows.by_ref().take(args.batch).collect()).collect();
    batches.shuffle(&mut rng);
    Ok(batches)
}

fn passage_row(tokenizer: &Tokenizer, text: &str) -> Result<Row> {
    let mut ids = tokenizer.encode_text(text)?;
    ids.truncate(MAX_TOKENS);
    Ok(Row { weights: vec![USER_WEIGHT; ids.len()], ids })
}

fn dialogue_row(data: &Data, rng: &mut StdRng) -> Result<Row> {
    let mut messages = Vec::new();
    let mut row = Row { ids: Vec::new(), weights: Vec::new() };
    for turn in data.corpus.dialogue(rng) {
        messages.push(Message::user(turn.user));
        let (ids, answer) = data.tokenizer.encode_answer(&messages, &turn.assistant)?;
        row.weights.resize(answer, USER_WEIGHT);
        row.weights.resize(ids.len(), 1.0);
        row.ids = ids;
        messages.push(Message::assistant(turn.assistant));
    }
    row.ids.truncate(MAX_TOKENS);
    row.weights.truncate(MAX_TOKENS);
    Ok(row)
}

/// Mean weighted cross-entropy per token; rows are padded on the right, where nothing looks at them.
fn loss(model: &TrainedModel, batch: &[Row]) -> Result<Tensor> {
    let seq = batch.iter().map(|row| row.ids.len()).max().unwrap_or(1) - 1;
    let (mut ids, mut positions) = (Vec::new(), Vec::new());
    let (mut targets, mut weights) = (Vec::new(), Vec::new());
    for (i, row) in batch.iter().enumerate() {
        for at in 0..seq {
            ids.push(row.ids.get(at).copied().filter(|_| at + 1 < row.ids.len()).unwrap_or(0));
            if at + 1 < row.ids.len() {
                positions.push(u32::try_from(i * seq + at)?);
                targets.push(row.ids[at + 1]);
                weights.push(row.weights[at + 1]);
            }
        }
    }
    let total: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= total);
    let ids = Tensor::from_vec(ids, (batch.len(), seq), &Device::Cpu)?;
    let hidden = model.decoder.hidden(&ids, None, &NoAdapter)?.flatten(0, 1)?;
    let positions = Tensor::new(positions, &Device::Cpu)?;
    let logits = model.decoder.logits(&hidden.index_select(&positions, 0)?)?;
    Ok(cross_entropy(&logits, &targets, &weights)?)
}
