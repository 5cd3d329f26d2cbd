//! `shammah models logits`: what a model computes for a token sequence, as a file.

use std::collections::HashMap;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, safetensors};

use super::args::LogitsArgs;
use super::context::Session;
use super::exit::UsageError;
use super::{model, output};
use crate::hub;
use crate::lora;
use crate::models::{Adapt, LoadedModel, NoAdapter};

/// The tensor's name in the file.
const NAME: &str = "logits";

/// Runs the command.
///
/// # Errors
/// Ids that the vocabulary or the context does not hold, a model or an adapter that cannot be loaded, a file that cannot be
/// written.
pub fn run(args: &LogitsArgs, session: &Session) -> Result<()> {
    let model = model::load_from(session, &hub::resolve(&args.name)?.source)?;
    check_ids(&args.ids, &model)?;
    let adapter =
        args.adapter.as_deref().map(|dir| lora::load_verified(dir, &model)).transpose()?;
    let adapt: &dyn Adapt = match &adapter {
        Some(adapter) => adapter,
        None => &NoAdapter,
    };
    let decoder = &model.decoder;
    let ids = Tensor::new(args.ids.as_slice(), decoder.device())?.unsqueeze(0)?;
    let logits = decoder.logits(&decoder.hidden(&ids, None, adapt)?)?.squeeze(0)?;
    let logits = logits.to_device(&Device::Cpu)?;
    let (tokens, vocabulary) = logits.dims2()?;
    safetensors::save(&HashMap::from([(NAME, logits)]), &args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let out = args.out.display();
    Ok(output::line(&format!("{NAME} [{tokens}, {vocabulary}] of {} in {out}", model.name))?)
}

fn check_ids(ids: &[u32], model: &LoadedModel) -> Result<(), UsageError> {
    let (vocabulary, context) = (model.decoder.config().vocab_size, model.context_length);
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        return Err(UsageError(format!(
            "--ids: {id} is no token of {}: they go from 0 to {}",
            model.name,
            vocabulary - 1
        )));
    }
    if ids.len() > context {
        let message = format!("--ids: {} ids, and the context holds {context}", ids.len());
        return Err(UsageError(message));
    }
    Ok(())
}
