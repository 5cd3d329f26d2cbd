//! `shammah eval`: the gate's numbers by hand.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use serde::Serialize;
use unicode_width::UnicodeWidthChar;

use super::args::{EvalArgs, GlobalArgs};
use super::context::Session;
use super::exit::{Exit, UsageError};
use super::gate_text::{changed, prompt_rows};
use super::output::{self, Table};
use super::{feedback, model};
use crate::domain::{AdapterId, TrainExample};
use crate::eval::{self, Compared, Comparison, GateConfig, ItemLoss};
use crate::lora::{self, LoraAdapter};
use crate::models::{Adapt, LoadedModel, NoAdapter};
use crate::plan;
use crate::store::{FeedbackFilter, NewFeedback};
use crate::text::printable_line;

/// The base as `--against` names it.
const BASE: &str = "base";
/// Columns that a question gets in the table, so that a row has at most 80.
const QUESTION_COLUMNS: usize = 30;

/// What an item is to the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Trained,
    Heldout,
    Given,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Trained => "trained",
            Self::Heldout => "held out",
            Self::Given => "given",
        }
    }
}

/// What is measured on.
#[derive(Default)]
struct Items {
    examples: Vec<TrainExample>,
    kinds: BTreeMap<i64, Kind>,
    notes: BTreeMap<i64, String>,
}

impl Items {
    fn add(&mut self, example: TrainExample, kind: Kind, note: Option<String>) {
        self.kinds.insert(example.id, kind);
        self.notes.extend(note.map(|note| (example.id, note)));
        self.examples.push(example);
    }

    /// Those whose answers the adapter shall give, and to no other questions; a file's are taken for such. Those that teach a
    /// rule for every answer are none, where the adapter holds one.
    fn taught(&self, rule: bool) -> Vec<TrainExample> {
        let taught = |e: &&TrainExample| self.kinds.get(&e.id) != Some(&Kind::Heldout);
        let mut taught: Vec<&TrainExample> = self.examples.iter().filter(taught).collect();
        if let Some(found) = lora::rule(&taught, &self.notes).filter(|_| rule) {
            taught.retain(|example| !found.contains(&example.id));
        }
        taught.into_iter().cloned().collect()
    }
}

/// Runs the command.
///
/// # Errors
/// No such adapter, one of another model, nothing to measure on, or files that cannot be read.
pub fn run(args: &EvalArgs, global: &GlobalArgs) -> Result<Exit> {
    let session = Session::open(global, Vec::new())?;
    let against: Option<AdapterId> = match args.against.as_str() {
        BASE => None,
        id => Some(id.parse().map_err(|e| UsageError(format!("--against: {e}")))?),
    };
    if against.as_ref() == Some(&args.adapter) {
        let message =
            format!("{} is compared with itself: give another to --against", args.adapter);
        return Err(UsageError(message).into());
    }
    let row = session.store.adapter(&args.adapter)?;
    let items = match &args.data {
        Some(file) => given(&session, file)?,
        None => of_domain(&session, &args.adapter, &row.domain)?,
    };
    if items.examples.is_empty() {
        bail!(
            "domain {} has no mark that an adapter was trained or measured on: give some with --data FILE.jsonl",
            row.domain
        );
    }
    let model = model::load(&session)?;
    let adapter = load(&session, &args.adapter, &model)?;
    let other = against.as_ref().map(|id| load(&session, id, &model)).transpose()?;
    let other: &dyn Adapt = other.as_ref().map_or(&NoAdapter, |a| a as &dyn Adapt);
    let source = model::source(&session)?;
    let Items { examples, notes, .. } = &items;
    let rule = lora::holds_rule(&session.home.adapter(&args.adapter));
    let taught = items.taught(rule);
    let compared = eval::compare(&model, &source, examples, notes, &taught, &adapter, other)?;
    if compared.items.is_empty() {
        bail!("no item fits the model: {}", compared.notes.join("; "));
    }
    let config = plan::gate_config(&session.loaded.config.lora);
    let measured = Measured::of(args, row.domain, &items, &compared, &config, rule);
    match args.json.json {
        true => output::json(&measured)?,
        false => {
            compared.notes.iter().for_each(|note| output::complain(note));
            measured.print()?;
        }
    }
    Ok(Exit::Done)
}

fn load(session: &Session, id: &AdapterId, model: &LoadedModel) -> Result<LoraAdapter> {
    session.store.usable_adapter(id, &model.base_hash)?;
    model::load_adapter(session, id, model)
}

/// The marks that the adapter's domain was trained and measured on.
fn of_domain(session: &Session, id: &AdapterId, domain: &str) -> Result<Items> {
    let seen = session.store.seen(id)?;
    let filter =
        FeedbackFilter { domain: Some(domain.to_owned()), unconsumed: false, archived: true };
    let mut items = Items::default();
    for row in session.store.list_feedback(&filter)? {
        let learned = [&seen.learned, &seen.replayed, &seen.inherited];
        let kind = if learned.iter().any(|ids| ids.contains(&row.id)) {
            Kind::Trained
        } else if row.heldout || seen.heldout.contains(&row.id) {
            Kind::Heldout
        } else {
            continue;
        };
        if let Some(example) = row.example() {
            items.add(example, kind, row.note);
        }
    }
    Ok(items)
}

/// The marks of a file that have a target, by line.
fn given(session: &Session, file: &Path) -> Result<Items> {
    let mut items = Items::default();
    for (id, mark) in (1..).zip(feedback::read_file(session, file, None)?) {
        if let Some(target) = mark.target().map(str::to_owned) {
            let NewFeedback { messages, weight, note, .. } = mark;
            items.add(TrainExample { id, messages, target, weight }, Kind::Given, note);
        }
    }
    if items.examples.is_empty() {
        bail!("{} has no mark with an answer to measure on: /good or fix", file.display());
    }
    Ok(items)
}

/// An item with all that was measured of it; losses in nats per token.
#[derive(Serialize)]
struct Row {
    id: i64,
    kind: Kind,
    question: String,
    before: f64,
    after: f64,
    /// The base with the note in its prompt.
    prompted: Option<f64>,
    result: &'static str,
}

/// What was measured.
#[derive(Serialize)]
struct Measured<'a> {
    adapter: &'a AdapterId,
    against: &'a str,
    domain: String,
    items: Vec<Row>,
    trained: Option<Comparison>,
    heldout: Option<Comparison>,
    given: Option<Comparison>,
    prompted: Option<Comparison>,
    general: Option<Comparison>,
    kl: f64,
    max_kl: f64,
    /// Questions about something else that begin with a taught answer, of all that were asked.
    taken_over: Option<(usize, usize)>,
    max_taken_over: f64,
}

impl<'a> Measured<'a> {
    fn of(
        args: &'a EvalArgs,
        domain: String,
        items: &Items,
        compared: &Compared,
        config: &GateConfig,
        rule: bool,
    ) -> Self {
        let some =
            |losses: &[ItemLoss]| (!losses.is_empty()).then(|| Comparison::of(losses, config));
        let of_kind = |kind: Kind| {
            let losses =
                compared.items.iter().filter(|item| items.kinds.get(&item.id) == Some(&kind));
            some(&losses.copied().collect::<Vec<_>>())
        };
        let told: BTreeMap<i64, f64> = compared.prompted.iter().map(|i| (i.id, i.before)).collect();
        let row = |item: &ItemLoss| {
            let example = items.examples.iter().find(|e| e.id == item.id)?;
            let alone = Comparison::of(&[*item], config);
            Some(Row {
                id: item.id,
                kind: *items.kinds.get(&item.id)?,
                question: example.messages.last()?.content.clone(),
                before: item.before,
                after: item.after,
                prompted: told.get(&item.id).copied(),
                result: match (alone.better, alone.worse) {
                    (1, _) => "better",
                    (_, 1) => "worse",
                    _ => "equal",
                },
            })
        };
        Self {
            adapter: &args.adapter,
            against: &args.against,
            domain,
            items: compared.items.iter().filter_map(row).collect(),
            trained: of_kind(Kind::Trained),
            heldout: of_kind(Kind::Heldout),
            given: of_kind(Kind::Given),
            prompted: some(&compared.prompted),
            general: some(&compared.general),
            kl: compared.kl,
            max_kl: config.ceiling(rule),
            taken_over: compared.taken_over,
            max_taken_over: config.max_taken_over,
        }
    }

    fn print(&self) -> Result<()> {
        output::line(&format!(
            "{} against {}, domain {}",
            self.adapter, self.against, self.domain
        ))?;
        let mut table =
            Table::new(&["ID", "ITEM", "BEFORE", "AFTER", "PROMPT", "RESULT", "QUESTION"]);
        for row in &self.items {
            let loss = |loss: f64| format!("{loss:.3}");
            table.row(&[
                row.id.to_string(),
                row.kind.as_str().to_owned(),
                loss(row.before),
                loss(row.after),
                output::or_dash(row.prompted.map(loss)),
                row.result.to_owned(),
                cut(&printable_line(&row.question), QUESTION_COLUMNS),
            ]);
        }
        table.print()?;
        let mut rows = Vec::new();
        for (name, items) in
            [("trained", &self.trained), ("held out", &self.heldout), ("given", &self.given)]
        {
            rows.extend(items.as_ref().map(|items| (name, changed(items))));
        }
        if let Some(general) = &self.general {
            let (base, after) = (general.before, general.after);
            rows.push(("general", format!("loss {base:.3} (the base's) → {after:.3}")));
        }
        rows.push(("KL to base", format!("{:.4} (the gate allows {})", self.kl, self.max_kl)));
        if let Some((taken, asked)) = self.taken_over {
            let most = (self.max_taken_over * asked as f64) as usize;
            let text = format!("{taken} of {asked} other questions (the gate allows {most})");
            rows.push(("taken over", text));
        }
        if let Some(prompted) = &self.prompted {
            rows.extend(prompt_rows("in the prompt", prompted));
        }
        Ok(output::fields(&rows)?)
    }
}

/// Cuts a text to so many columns.
fn cut(text: &str, columns: usize) -> String {
    let width = |c: char| c.width().unwrap_or(0);
    if text.chars().map(width).sum::<usize>() <= columns {
        return text.to_owned();
    }
    let mut kept = 1;
    let fits = |c: &char| {
        kept += width(*c);
        kept <= columns
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_cut_by_columns_not_by_letters() {
        assert_eq!(cut("short", 10), "short");
        assert_eq!(cut("a longer question", 10), "a longer …");
        assert_eq!(cut("日本語の質問です", 7), "日本語…");
    }
}
