//! `shammah ask`: one question, one answer.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::answering::Answering;
use super::args::{AskArgs, GlobalArgs};
use super::context::Session;
use super::exit::{Exit, UsageError};
use super::interrupt;
use super::{model, output};
use crate::config::Flag;
use crate::domain::{DEFAULT_DOMAIN, Message, Route, Routes, WeightedAdapter};
use crate::engine::{Engine, FinishReason, Generated, Router};
use crate::eval;
use crate::lora::AdapterSet;
use crate::models::LoadedModel;
use crate::plan;
use crate::store::{NewUsage, UsedAdapter};

/// The answer, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    text: &'a str,
    model: &'a str,
    /// As `--adapter` takes them.
    adapters: Vec<String>,
    domain: &'a str,
    /// To the domain's marks, where there was a choice.
    similarity: Option<f64>,
    prompt_tokens: usize,
    new_tokens: usize,
    prefill_ms: f64,
    decode_ms: f64,
    finish_reason: FinishReason,
}

/// Runs the command.
///
/// # Errors
/// An empty question, an adapter that does not exist or fit, a model that cannot be loaded or does not hold the question.
pub fn run(args: &AskArgs, global: &GlobalArgs) -> Result<Exit> {
    if args.prompt.trim().is_empty() {
        let message = "the question is empty: write it after `ask`, in quotes";
        return Err(UsageError(message.to_owned()).into());
    }
    let cancel = Arc::new(AtomicBool::new(false));
    interrupt::sets(&cancel)?;
    let session = Session::open(global, flags(args))?;
    if let Some(domain) = &args.domain {
        check_domain(&session, domain)?;
    }
    model::fetch(&session, global.quiet, &cancel)?;
    let model = model::load(&session)?;
    let route = route(&session, args, &model)?;
    let Answering { used, set } = choose_adapters(&session, args, &model, &route)?;
    let answered = answer(&session, args, model, &set, &cancel)?;
    record(&session, &answered, &used);
    print_end(args, &answered, &used, &route)?;
    let told = args.json.json || global.quiet;
    if answered.generated.finish_reason == FinishReason::Length && !told {
        output::complain(&cut(&answered.generated, session.loaded.config.generation.max_tokens));
    }
    match answered.generated.finish_reason {
        FinishReason::Cancelled => Ok(Exit::Interrupted),
        FinishReason::Stop | FinishReason::Length => Ok(Exit::Done),
    }
}

fn flags(args: &AskArgs) -> Vec<Flag> {
    let flag =
        |name, key, value: &Option<String>| value.clone().map(|value| Flag { name, key, value });
    let flags = [
        flag("--max-tokens", "generation.max_tokens", &args.max_tokens),
        flag("--seed", "generation.seed", &args.seed),
    ];
    flags.into_iter().flatten().collect()
}

/// Finds the domain: the named one, or the one that the question is closest to.
fn route(session: &Session, args: &AskArgs, model: &LoadedModel) -> Result<Route> {
    let generation = &session.loaded.config.generation;
    if let Some(domain) = &args.domain {
        return Ok(Route::to(domain));
    }
    if args.no_adapter || !args.adapter.is_empty() || !generation.routing {
        return Ok(Route::default());
    }
    let marks = session.store.routed_marks()?;
    let (margin, general) = (generation.routing_margin, eval::routing_prompts());
    let router = Router::new(model, &Routes { margin, general, marks }, None)?;
    Ok(router.map(|router| router.route(model, &args.prompt)).transpose()?.unwrap_or_default())
}

/// A domain that nothing is known of is a slip of the pen.
fn check_domain(session: &Session, domain: &str) -> Result<()> {
    let mut known: BTreeSet<String> = session.store.domains_with_marks()?.into_iter().collect();
    known.extend(session.loaded.config.domains.keys().cloned());
    known.extend(session.store.adapters()?.into_iter().map(|row| row.domain));
    known.insert(DEFAULT_DOMAIN.to_owned());
    if known.contains(domain) {
        return Ok(());
    }
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    let message = format!(
        "--domain: there is no domain \"{domain}\" with marks, with an adapter or in the configuration: use one of {known}"
    );
    Err(UsageError(message).into())
}

/// Takes the adapters that were named, or those of the domain, or none.
fn choose_adapters(
    session: &Session,
    args: &AskArgs,
    model: &LoadedModel,
    route: &Route,
) -> Result<Answering> {
    match (args.no_adapter, args.adapter.as_slice()) {
        (true, _) => Ok(Answering::default()),
        (false, []) => Answering::of_domain(session, model, &route.domain),
        (false, named) => Answering::named(session, model, named),
    }
}

/// An answer and the model that gave it.
struct Answered {
    generated: Generated,
    model: String,
}

fn answer(
    session: &Session,
    args: &AskArgs,
    model: LoadedModel,
    adapters: &AdapterSet,
    cancel: &AtomicBool,
) -> Result<Answered> {
    let generation = &session.loaded.config.generation;
    let sampling = plan::sampling(generation, rand::random);
    let mut messages = Vec::new();
    if !generation.system.is_empty() {
        messages.push(Message::system(&generation.system));
    }
    messages.push(Message::user(&args.prompt));

    let name = model.name.clone();
    let started = Instant::now();
    let limits = plan::engine_limits(&session.loaded.config.model);
    let mut engine = Engine::new(model, limits).with_clock(move || started.elapsed());
    let mut screen = Screen { failed: None, silent: args.json.json };
    let generated =
        engine.generate(&messages, &sampling, adapters, cancel, &mut |text| screen.show(text))?;
    match screen.failed {
        // Nobody reads any more: the broken pipe is what the user hears of, not a cancelled answer.
        Some(error) if !cancel.load(Ordering::Relaxed) => Err(error.into()),
        _ => Ok(Answered { generated, model: name }),
    }
}

/// Streams an answer to stdout, unless JSON will be printed at the end.
struct Screen {
    failed: Option<io::Error>,
    silent: bool,
}

impl Screen {
    fn show(&mut self, text: &str) -> ControlFlow<()> {
        if self.silent {
            return ControlFlow::Continue(());
        }
        match output::piece(text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }
}

fn print_end(
    args: &AskArgs,
    answered: &Answered,
    used: &[UsedAdapter],
    route: &Route,
) -> io::Result<()> {
    if !args.json.json {
        return output::line("");
    }
    let Generated { text, prompt_tokens, new_tokens, prefill, decode, finish_reason, .. } =
        &answered.generated;
    output::json(&Answer {
        text,
        model: &answered.model,
        adapters: used.iter().map(as_argument).collect(),
        domain: &route.domain,
        similarity: route.similarity,
        prompt_tokens: *prompt_tokens,
        new_tokens: *new_tokens,
        prefill_ms: milliseconds(*prefill),
        decode_ms: milliseconds(*decode),
        finish_reason: *finish_reason,
    })
}

/// Says why an answer ends in the middle.
fn cut(generated: &Generated, max_tokens: usize) -> String {
    if generated.new_tokens < max_tokens {
        return "the answer is cut: the model's context is full".to_owned();
    }
    format!("the answer is cut at {max_tokens} tokens: --max-tokens N allows more")
}

/// Records the answer; a store that cannot be written loses a count, not the answer.
fn record(session: &Session, answered: &Answered, used: &[UsedAdapter]) {
    let generated = &answered.generated;
    let recorded = session.store.add_usage(&NewUsage {
        base: answered.model.clone(),
        adapters: used.to_vec(),
        prompt_tokens: generated.prompt_tokens,
        new_tokens: generated.new_tokens,
        prefill_ms: milliseconds(generated.prefill),
        decode_ms: milliseconds(generated.decode),
        finish_reason: finish_name(generated.finish_reason).to_owned(),
    });
    if let Err(error) = recorded {
        tracing::warn!("the answer is not counted: {error}");
    }
}

/// Writes an adapter as `--adapter` takes it.
fn as_argument(used: &UsedAdapter) -> String {
    WeightedAdapter { id: used.id.clone(), weight: used.weight }.to_string()
}

fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

/// The engine was given a clock, so every answer has its times.
fn milliseconds(time: Option<Duration>) -> f64 {
    time.unwrap_or_default().as_secs_f64() * 1e3
}
