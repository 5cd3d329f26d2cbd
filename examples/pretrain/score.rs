//! The score: how many of the 100 held-out questions get an answer with all required words.

use std::path::Path;

use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use shammah::domain::Message;
use shammah::models::{Decoder, ModelConfig, NoAdapter, Tokenizer};

use crate::corpus::{self, HeldoutItem};

/// Longest answer in tokens.
const MAX_NEW_TOKENS: usize = 80;

/// Scores an exported model.
pub fn score(assets: &Path, all: bool) -> Result<()> {
    let path = assets.join("tokenizer.json");
    let config = fs_err::read(assets.join("tokenizer_config.json"))?;
    let tokenizer = Tokenizer::new(&fs_err::read(&path)?, Some(&config), &[2], &path)?;
    let path = assets.join("config.json");
    let config = ModelConfig::parse(&fs_err::read_to_string(&path)?, &path)?;
    let weights = candle_core::safetensors::load(assets.join("model.safetensors"), &Device::Cpu)?;
    let decoder = Decoder::new(config, &Device::Cpu, &mut |name, _| {
        let weight = weights.get(name).ok_or_else(|| candle_core::Error::Msg(name.to_owned()))?;
        Ok(weight.to_dtype(DType::F32)?.into())
    })?;
    let right = count(&decoder, &tokenizer, |item, answer, right| {
        if all || !right {
            let verdict = if right { "right" } else { "WRONG" };
            println!(
                "{verdict} ({}): {} -> {answer} (needs {:?})",
                item.fact, item.question, item.required
            );
        }
    })?;
    println!("{right} of 100 held-out questions right");
    Ok(())
}

/// Answers all held-out questions greedily and returns how many are right.
pub fn count(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    mut report: impl FnMut(&HeldoutItem, &str, bool),
) -> Result<usize> {
    let mut right = 0;
    for item in corpus::heldout()? {
        let answer = answer(decoder, tokenizer, &item.question)?;
        let is_right = corpus::grade(&item, &answer);
        report(&item, &answer, is_right);
        right += usize::from(is_right);
    }
    Ok(right)
}

fn answer(decoder: &Decoder, tokenizer: &Tokenizer, question: &str) -> Result<String> {
    let mut next = tokenizer.render_chat(&[Message::user(question)], true)?;
    let mut cache = decoder.new_cache(next.len() + MAX_NEW_TOKENS)?;
    let mut answer = Vec::new();
    while answer.len() < MAX_NEW_TOKENS {
        let ids = Tensor::new(next.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let hidden = decoder.hidden(&ids, Some(&mut cache), &NoAdapter)?;
        let last = hidden.narrow(1, next.len() - 1, 1)?;
        let id = decoder.logits(&last)?.flatten_all()?.argmax(D::Minus1)?.to_scalar::<u32>()?;
        if tokenizer.stop_ids().contains(&id) {
            break;
        }
        answer.push(id);
        next = vec![id];
    }
    Ok(tokenizer.decode(&answer)?)
}
