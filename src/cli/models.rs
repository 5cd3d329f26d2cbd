//! `shammah models list | pull | inspect | logits`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use super::args::{GlobalArgs, ModelsCommand};
use super::context::Session;
use super::exit::{Exit, UsageError};
use super::output::{self, Table};
use super::{download, interrupt, logits, model};
use crate::config::QuantizeChoice;
use crate::hub::{self, CachedModel, Hub, HubId, Resolved};
use crate::models::{self, ModelInfo, ModelSource};
use crate::plan;
use crate::text::bytes;
use crate::worker::available_memory;

/// The name of the model inside the program.
const BUILTIN: &str = "builtin";
/// Digits of a commit that are shown.
const SHORT_COMMIT: usize = 12;

/// Runs the command.
///
/// # Errors
/// What is no id, a download that fails, files that are no model, a cache that cannot be read.
pub fn run(command: &ModelsCommand, global: &GlobalArgs) -> Result<Exit> {
    let session = Session::open(global, Vec::new())?;
    match command {
        ModelsCommand::List(args) => list(args.json)?,
        ModelsCommand::Pull { id, json } => pull(id, global.quiet, json.json)?,
        ModelsCommand::Inspect { name, json } => inspect(&session, name, json.json)?,
        ModelsCommand::Logits(args) => logits::run(args, &session)?,
    }
    Ok(Exit::Done)
}

fn pull(text: &str, quiet: bool, as_json: bool) -> Result<()> {
    let Some(id) = HubId::parse(text) else {
        return Err(UsageError(format!(
            "\"{text}\" is no id of the hub: write ORG/NAME, ORG/NAME@REVISION or ORG/NAME/FILE.gguf"
        ))
        .into());
    };
    let cancel = Arc::new(AtomicBool::new(false));
    interrupt::sets(&cancel)?;
    let found = download::pull(&Hub::from_env()?, &id, quiet, &cancel)?;
    let path = found.path.display();
    if as_json {
        let value = json!({"id": id.to_string(), "revision": found.commit, "path": found.path});
        return Ok(output::json(&value)?);
    }
    Ok(output::line(&format!("{id} is there: revision {}, {path}", found.commit))?)
}

/// A model that could be chosen, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    revision: Option<String>,
    revisions: Vec<String>,
    path: Option<PathBuf>,
    bytes: u64,
    family: Option<String>,
    usable: bool,
    /// Why it is not usable.
    problem: Option<String>,
}

fn list(as_json: bool) -> Result<()> {
    let mut rows = vec![builtin()];
    // Each needs the time in which its tokenizer is built.
    rows.par_extend(Hub::from_env()?.list()?.into_par_iter().map(listed));
    if as_json {
        return Ok(rows.iter().try_for_each(output::json)?);
    }
    let mut table = Table::new(&["MODEL", "REVISION", "SIZE", "FAMILY", "USABLE"]);
    for row in &rows {
        let commit: String =
            row.revision.iter().flat_map(|r| r.chars().take(SHORT_COMMIT)).collect();
        let names = row.revisions.join(", ");
        table.row(&[
            row.id.clone(),
            if names.is_empty() { commit } else { format!("{commit} ({names})") },
            bytes(row.bytes),
            row.family.clone().unwrap_or_else(|| "-".to_owned()),
            row.problem.as_ref().map_or_else(|| "yes".to_owned(), |why| format!("no: {why}")),
        ]);
    }
    Ok(table.print()?)
}

fn builtin() -> Listed {
    let checked = models::check(&ModelSource::Builtin);
    Listed {
        id: BUILTIN.to_owned(),
        revision: None,
        revisions: Vec::new(),
        path: None,
        bytes: ModelSource::Builtin.weight_bytes().unwrap_or(0),
        family: models::model_type(&ModelSource::Builtin),
        usable: checked.is_ok(),
        problem: checked.err().map(|error| error.to_string()),
    }
}

fn listed(model: CachedModel) -> Listed {
    let source = source_of(&model.path);
    let problem = match model.incomplete {
        Some(why) => Some(format!("{why}: fetch it again with `shammah models pull {}`", model.id)),
        None => models::check(&source).err().map(|error| error.to_string()),
    };
    Listed {
        id: model.id,
        revision: Some(model.commit),
        revisions: model.revisions,
        bytes: model.bytes,
        family: models::model_type(&source),
        usable: problem.is_none(),
        problem,
        path: Some(model.path),
    }
}

fn source_of(path: &std::path::Path) -> ModelSource {
    let parsed = path.to_str().and_then(|text| text.parse().ok());
    parsed.unwrap_or_else(|| ModelSource::Dir(path.to_owned()))
}

/// What a model is and needs, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Inspected<'a> {
    model: &'a str,
    revision: Option<String>,
    path: Option<PathBuf>,
    family: String,
    parameters: u64,
    dtype: String,
    context_length: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden_size: usize,
    vocab_size: usize,
    file_bytes: u64,
    quantize: QuantizeChoice,
    weight_bytes: u64,
    cache_bytes_per_token: u64,
    /// With one answer of `generation.max_tokens`.
    needed_bytes: u64,
    /// With a conversation that fills the context.
    needed_bytes_full_context: u64,
    available_bytes: Option<u64>,
    fits: Option<bool>,
}

fn inspect(session: &Session, text: &str, as_json: bool) -> Result<()> {
    let Resolved { source, of_hub } = hub::resolve(text)?;
    let revision = of_hub.map(|(_, commit)| commit);
    let quantize = session.loaded.config.model.quantize;
    let info = models::inspect(&source, plan::quantize(quantize))?;
    let tokens = model::least_tokens(session, &info);
    let inspected = describe(session, text, &source, revision, &info);
    if as_json {
        return Ok(output::json(&inspected)?);
    }
    print(&inspected, tokens)
}

fn describe<'a>(
    session: &Session,
    model: &'a str,
    source: &ModelSource,
    revision: Option<String>,
    info: &ModelInfo,
) -> Inspected<'a> {
    let config = &info.config;
    let (context, available) = (model::context(session, info), available_memory());
    let needed = info.needed(model::least_tokens(session, info));
    Inspected {
        model,
        revision,
        path: (*source != ModelSource::Builtin).then(|| PathBuf::from(source.to_string())),
        family: info.family.clone(),
        parameters: info.parameters,
        dtype: info.dtype.clone(),
        context_length: context,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        hidden_size: config.hidden_size,
        vocab_size: config.vocab_size,
        file_bytes: info.file_bytes,
        quantize: session.loaded.config.model.quantize,
        weight_bytes: info.weight_bytes,
        cache_bytes_per_token: info.cache_bytes_per_token,
        needed_bytes: needed,
        needed_bytes_full_context: info.needed(context),
        available_bytes: available,
        fits: available.map(|available| needed <= available),
    }
}

fn print(m: &Inspected<'_>, tokens: usize) -> Result<()> {
    let context = m.context_length;
    let cache = |tokens: usize| bytes(m.cache_bytes_per_token * tokens as u64);
    let there = m.available_bytes.map_or_else(|| "unknown here".to_owned(), bytes);
    let fits = match (m.fits, m.available_bytes.map(|there| m.needed_bytes_full_context <= there)) {
        (Some(false), _) => "no: set model.quantize, or choose a smaller model",
        (Some(true), Some(false)) => "yes, but not with a full context: lower model.context_length",
        (Some(true), _) => "yes",
        (None, _) => "unknown here",
    };
    let mut rows = vec![("model", m.model.to_owned())];
    rows.extend(m.revision.clone().map(|revision| ("revision", revision)));
    rows.extend(m.path.as_ref().map(|path| ("path", path.display().to_string())));
    rows.extend([
        ("family", m.family.clone()),
        ("parameters", millions(m.parameters)),
        ("type", m.dtype.clone()),
        ("context", format!("{context} tokens")),
        ("layers", m.layers.to_string()),
        ("heads", format!("{} of {}, {} for keys and values", m.heads, m.head_dim, m.kv_heads)),
        (
            "weights",
            format!("{} in memory, {} in files", bytes(m.weight_bytes), bytes(m.file_bytes)),
        ),
        (
            "key/value cache",
            format!("{} for {tokens} tokens, {} for all {context}", cache(tokens), cache(context)),
        ),
        (
            "needed",
            format!(
                "{} with an answer of {tokens} tokens, {} with a full context",
                bytes(m.needed_bytes),
                bytes(m.needed_bytes_full_context)
            ),
        ),
        ("available", there),
        ("fits", fits.to_owned()),
    ]);
    Ok(output::fields(&rows)?)
}

/// Shows a count of parameters.
fn millions(count: u64) -> String {
    const MILLION: f64 = 1e6;
    match count as f64 / MILLION {
        m if m < 1000.0 => format!("{m:.1} million"),
        m => format!("{:.2} billion", m / 1000.0),
    }
}
