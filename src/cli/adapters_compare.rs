//! `shammah adapters compare A B`: what each knows of what the other was taught, and how much they change the same thing.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use serde::Serialize;

use super::args::CompareAdaptersArgs;
use super::context::Session;
use super::exit::UsageError;
use super::model;
use super::output::{self, or_dash};
use crate::actors::console::compare::{Pair, Side};
use crate::domain::{Message, TrainExample, WeightedAdapter};
use crate::engine::Engine;
use crate::lora::{self, AdapterSet, LoraAdapter, dataset, trainer};
use crate::models::LoadedModel;
use crate::plan;
use crate::store::{AdapterRow, Statistics, Tally};
use crate::text::{bar, printable};

/// Stands for the model alone.
const BASE: &str = "base";
/// Taught examples of an adapter that are measured, the newest.
const MEASURED: usize = 100;
/// Columns of a bar.
const BAR: usize = 12;

/// One of the two.
struct Compared {
    name: String,
    row: Option<AdapterRow>,
    adapter: Option<Arc<LoraAdapter>>,
    weight: f64,
    taught: Vec<TrainExample>,
    tally: Option<Tally>,
}

/// Mean losses on what one of the two was taught, nats per answer token.
#[derive(Debug, Serialize)]
struct Losses {
    /// Whose examples.
    of: String,
    examples: usize,
    base: f64,
    a: f64,
    b: f64,
    /// Both at once; `None` where they cannot be mixed.
    both: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    a: &'a str,
    b: &'a str,
    /// Cosine of the two updates.
    overlap: Option<f64>,
    losses: Vec<Losses>,
    /// Why both at once were not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_mixed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<[&'a str; 2]>,
}

/// Runs the command.
///
/// # Errors
/// No such adapter, one of another model, or a model that cannot be loaded or compute.
pub fn run(session: &Session, args: &CompareAdaptersArgs) -> Result<()> {
    let model = model::load(session)?;
    let statistics = session.store.statistics()?;
    let [a, b] = [&args.one, &args.other].map(|name| read(session, &model, &statistics, name));
    let (a, b) = (a?, b?);
    if a.name == b.name {
        let message = format!("{} is given twice: name two adapters, or one and base", a.name);
        return Err(UsageError(message).into());
    }
    let answers = match &args.prompt {
        None => None,
        Some(prompt) => Some(answer_both(session, &model, prompt, [&a, &b])?),
    };
    let (losses, not_mixed) = measure(&model, &a, &b)?;
    let overlap = match (&a.adapter, &b.adapter) {
        (Some(one), Some(other)) => lora::overlap(one, other)?,
        _ => None,
    };
    if args.json.json {
        let answers = answers.as_ref().map(|[one, other]| [one.as_str(), other.as_str()]);
        let (a, b) = (a.name.as_str(), b.name.as_str());
        return Ok(output::json(&Report { a, b, overlap, losses, not_mixed, answers })?);
    }
    output::line(&facts(&a, &b))?;
    if let Some(cosine) = overlap {
        output::line(&format!(
            "\noverlap of their updates  {cosine:+.3} {}",
            bar(cosine.abs(), 1.0, BAR)
        ))?;
    }
    losses.iter().try_for_each(|losses| output::line(&format!("\n{}", table(losses, &a, &b))))?;
    if let Some(why) = not_mixed {
        output::line(&format!("\nnot measured together: {why}"))?;
    }
    if let Some([one, other]) = answers {
        let side = |title: &str, text: &str| Side {
            title: title.to_owned(),
            text: printable(text.trim()).into_owned(),
        };
        let pair = Pair(side(&a.name, &one), side(&b.name, &other));
        output::line(&format!("\n{}", pair.lines(output::columns())))?;
    }
    Ok(())
}

fn read(
    session: &Session,
    model: &LoadedModel,
    statistics: &Statistics,
    name: &str,
) -> Result<Compared> {
    let tally = |name: &str| {
        let found = statistics.adapters.iter().find(|one| one.adapter == name);
        found.map(|found| found.tally.clone())
    };
    if name == BASE {
        let (row, adapter, taught) = (None, None, Vec::new());
        let tally = tally(BASE);
        return Ok(Compared { name: BASE.to_owned(), row, adapter, weight: 1.0, taught, tally });
    }
    let WeightedAdapter { id, weight } = name.parse().map_err(UsageError)?;
    let row = session.store.usable_adapter(&id, &model.base_hash)?;
    let adapter = Arc::new(model::load_adapter(session, &id, model)?);
    let taught = session.store.taught(&id, MEASURED)?;
    let tally = tally(id.as_str());
    let name = WeightedAdapter { id, weight }.to_string();
    Ok(Compared { name, row: Some(row), adapter: Some(adapter), weight, taught, tally })
}

impl Compared {
    fn set(&self) -> Result<AdapterSet> {
        let adapter = self.adapter.iter().map(|adapter| (Arc::clone(adapter), self.weight));
        Ok(AdapterSet::weighted(adapter.collect())?)
    }
}

/// Computes the losses on what each was taught; also says why both at once could not be measured.
fn measure(
    model: &LoadedModel,
    a: &Compared,
    b: &Compared,
) -> Result<(Vec<Losses>, Option<String>)> {
    let (one, other) = (a.set()?, b.set()?);
    let (both, not_mixed) = match AdapterSet::joined([(one.clone(), 1.0), (other.clone(), 1.0)]) {
        Ok(both) => (Some(both), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let mut all = Vec::new();
    for compared in [a, b] {
        let encoded = dataset::encode(&compared.taught, &model.tokenizer, model.context_length)?;
        let sequences = encoded.sequences;
        if sequences.is_empty() {
            continue;
        }
        let mean = |set: &AdapterSet| -> Result<f64> {
            let losses = trainer::evaluate(&model.decoder, &sequences, set)?;
            Ok(losses.iter().sum::<f64>() / losses.len() as f64)
        };
        all.push(Losses {
            of: compared.name.clone(),
            examples: sequences.len(),
            base: mean(&AdapterSet::empty())?,
            a: mean(&one)?,
            b: mean(&other)?,
            both: both.as_ref().map(mean).transpose()?,
        });
    }
    Ok((all, not_mixed))
}

fn answer_both(
    session: &Session,
    model: &LoadedModel,
    prompt: &str,
    sides: [&Compared; 2],
) -> Result<[String; 2]> {
    let config = &session.loaded.config;
    // The same draws for both: what differs comes from the adapters.
    let sampling = plan::sampling(&config.generation, rand::random);
    let mut engine = Engine::new(model.clone(), plan::engine_limits(&config.model));
    let mut messages = Vec::new();
    if !config.generation.system.is_empty() {
        messages.push(Message::system(&config.generation.system));
    }
    messages.push(Message::user(prompt));
    let never = AtomicBool::new(false);
    let mut answer = |side: &Compared| -> Result<String> {
        let set = side.set()?;
        let go_on = &mut |_: &str| ControlFlow::Continue(());
        Ok(engine.generate(&messages, &sampling, &set, &never, go_on)?.text)
    };
    Ok([answer(sides[0])?, answer(sides[1])?])
}

/// What is known of both without computing.
fn facts(a: &Compared, b: &Compared) -> String {
    let row =
        |side: &Compared, of: &dyn Fn(&AdapterRow) -> String| or_dash(side.row.as_ref().map(of));
    let gate = |key: &'static str| {
        move |row: &AdapterRow| {
            let number = row.gate.pointer(key).and_then(serde_json::Value::as_f64);
            or_dash(number.map(|number| format!("{number:.4}")))
        }
    };
    let tally =
        |side: &Compared, of: &dyn Fn(&Tally) -> String| or_dash(side.tally.as_ref().map(of));
    let right = |tally: &Tally| {
        or_dash(tally.weighted_share().map(|share| format!("{:.0} %", share * 100.0)))
    };
    type Cell<'a> = Box<dyn Fn(&Compared) -> String + 'a>;
    let lines: [(&str, Cell<'_>); 9] = [
        ("domain", Box::new(|side| row(side, &|row| row.domain.clone()))),
        ("parent", Box::new(|side| row(side, &|row| or_dash(row.parent.as_ref())))),
        ("rank", Box::new(|side| row(side, &|row| row.rank.to_string()))),
        ("examples", Box::new(|side| row(side, &|row| row.examples.to_string()))),
        ("trained loss", Box::new(move |side| row(side, &gate("/trained/after")))),
        ("KL to the base", Box::new(move |side| row(side, &gate("/kl")))),
        ("answers", Box::new(|side| tally(side, &|tally| tally.answers.to_string()))),
        ("marks", Box::new(|side| tally(side, &|tally| tally.marks().to_string()))),
        ("right, by weight", Box::new(|side| tally(side, &right))),
    ];
    let mut table = output::Table::new(&["", &a.name, &b.name]);
    for (name, of) in &lines {
        table.row(&[(*name).to_owned(), of(a), of(b)]);
    }
    table.render()
}

/// The losses on what one of them was taught, as bars.
fn table(losses: &Losses, a: &Compared, b: &Compared) -> String {
    let mut rows = vec![
        (BASE.to_owned(), losses.base),
        (a.name.clone(), losses.a),
        (b.name.clone(), losses.b),
    ];
    rows.extend(losses.both.map(|both| ("both".to_owned(), both)));
    // Where one of the two is the base, it is a row already.
    let mut seen = HashSet::new();
    rows.retain(|(name, _)| seen.insert(name.clone()));
    let most = rows.iter().map(|(_, loss)| *loss).fold(0.0, f64::max);
    let mut table = output::Table::new(&["loss", "", "nats/token"]);
    for (name, loss) in rows {
        table.row(&[name, bar(loss, most, BAR), format!("{loss:.3}")]);
    }
    let noun = if losses.examples == 1 { "example" } else { "examples" };
    format!("on the {} {noun} that {} was taught\n{}", losses.examples, losses.of, table.render())
}
