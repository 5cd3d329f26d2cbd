//! The experiments, each a function from a setting and a seed to cells.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shammah::domain::TrainExample;
use shammah::lora::{AdapterSet, JobError, rule};

use crate::cells::Cell;
use crate::data::{self, Data, Fact, Style, example, examples, has_all};
use crate::model::{Lab, Learned, Lesson};
use crate::settings::params;

/// The right note stands before the question.
const PROMPT: &str = "prompt";
/// All notes stand before it.
const PROMPT_ALL: &str = "prompt-all";
/// Facts taught a round.
const PER_ROUND: usize = 2;
/// Weight of a correction of style, that of `/fix`.
const FIX_WEIGHT: f64 = 3.0;
/// Seeds of the poisoned batches.
const POISON_SEEDS: u64 = 5;
/// Words of an answer that nearly fills the model's context, and of one that does not fit.
const LONG: usize = 150;
const TOO_LONG: usize = 400;

/// Whether a cell is worth computing: what is only put into the prompt knows no seed, no rounds and no poison.
pub fn makes_sense(experiment: &str, setting: &str, seed: u64) -> bool {
    let prompted = [PROMPT, PROMPT_ALL].contains(&setting);
    match experiment {
        "poison" => setting == "defaults" || setting.contains('='),
        "rounds" => !prompted,
        _ => {
            !prompted
                || (seed == crate::FIRST_SEED && !(experiment != "facts" && setting == PROMPT_ALL))
        }
    }
}

/// Runs a cell; `poison` gives several.
pub fn run(lab: &mut Lab, experiment: &str, setting: &str, seed: u64) -> Result<Vec<Cell>> {
    let data = data::read()?;
    match experiment {
        "facts" => Ok(vec![facts(lab, &data, setting, seed)?]),
        "rounds" => Ok(vec![rounds(lab, &data, setting, seed)?]),
        "poison" => poison(lab, &data, setting, seed),
        style => {
            let style = data.styles.iter().find(|s| s.id == style).context("no such experiment")?;
            Ok(vec![style_rule(lab, style, setting, seed)?])
        }
    }
}

fn cell(experiment: &str, setting: &str, seed: u64, lab: &Lab) -> Cell {
    let (experiment, setting) = (experiment.to_owned(), setting.to_owned());
    let (score, score_before) = (lab.base_score, lab.base_score);
    Cell { experiment, setting, seed, score, score_before, ..Cell::default() }
}

/// Adds what a job measured; of several, the last counts and the minutes add up.
fn note(cell: &mut Cell, learned: &Learned) {
    let measured = &learned.measured;
    if let Some(general) = &learned.report.general {
        (cell.general_before, cell.general_after) = (general.before, general.after);
    }
    cell.taken_over = learned.report.taken_over;
    (cell.kl, cell.steps, cell.final_loss) = (measured.kl, measured.steps, measured.final_loss);
    cell.minutes += learned.minutes;
    cell.gate.push(learned.report.reasons.clone());
}

fn count_right(
    lab: &mut Lab,
    facts: &[Fact],
    adapters: &AdapterSet,
    before: &dyn Fn(&Fact) -> String,
) -> Result<usize> {
    let mut right = 0;
    for fact in facts {
        for question in &fact.asked {
            let answer = lab.ask(&format!("{}{question}", before(fact)), adapters)?;
            right += usize::from(has_all(&answer, &fact.must));
        }
    }
    Ok(right)
}

/// The unseen questions that are answered wrongly.
fn wrong(lab: &mut Lab, facts: &[Fact], adapters: &AdapterSet) -> Result<Vec<(String, String)>> {
    let mut wrong = Vec::new();
    for (fact, question) in facts.iter().flat_map(|f| f.asked.iter().map(move |q| (f, q))) {
        let answer = lab.ask(question, adapters)?;
        if !has_all(&answer, &fact.must) {
            wrong.push((question.clone(), answer));
        }
    }
    Ok(wrong)
}

/// Of the questions about what nobody taught, those that get the words of a fact.
fn reached(lab: &mut Lab, data: &Data, adapters: &AdapterSet) -> Result<Vec<(String, String)>> {
    let mut reached = Vec::new();
    for question in &data.strangers {
        let answer = lab.ask(question, adapters)?;
        if data.facts.iter().any(|fact| has_all(&answer, &fact.must)) {
            reached.push((question.clone(), answer));
        }
    }
    Ok(reached)
}

fn facts(lab: &mut Lab, data: &Data, setting: &str, seed: u64) -> Result<Cell> {
    let mut cell = cell("facts", setting, seed, lab);
    let all: String = data.facts.iter().map(|f| format!("{} ", f.answer)).collect();
    let nothing = |_: &Fact| String::new();
    cell.asked = data.facts.iter().map(|f| f.asked.len()).sum();
    cell.right_before = count_right(lab, &data.facts, &AdapterSet::empty(), &nothing)?;
    match setting {
        PROMPT => {
            let note = |f: &Fact| format!("{} ", f.answer);
            cell.right = count_right(lab, &data.facts, &AdapterSet::empty(), &note)?;
        }
        PROMPT_ALL => {
            cell.right = count_right(lab, &data.facts, &AdapterSet::empty(), &|_| all.clone())?;
        }
        _ => {
            let train = examples(&data.facts, 1);
            let params = params(setting, lab.parameters(), train.len(), false, seed)?;
            let learned = lab.learn(&params, &Lesson { train: &train, ..Lesson::default() })?;
            note(&mut cell, &learned);
            let adapters = lab.load(learned.path())?;
            cell.wrong = wrong(lab, &data.facts, &adapters)?;
            cell.right = cell.asked - cell.wrong.len();
            cell.strangers = Some(reached(lab, data, &adapters)?);
            cell.score = lab.score(&adapters)?;
        }
    }
    Ok(cell)
}

fn style_rule(lab: &mut Lab, style: &Style, setting: &str, seed: u64) -> Result<Cell> {
    let mut cell = cell(&style.id, setting, seed, lab);
    let base = AdapterSet::empty();
    let mut base_answers = Vec::new();
    for (question, _) in &style.asked {
        base_answers.push(lab.ask(question, &base)?);
    }
    cell.asked = style.asked.len();
    cell.right_before = base_answers.iter().filter(|answer| style.kept(answer)).count();
    let (adapters, prefix) = if setting == PROMPT {
        (base, format!("{} ", style.note))
    } else {
        let train: Vec<TrainExample> = (1..)
            .zip(&style.marked)
            .map(|(id, m)| example(id, &m.question, &m.answer, FIX_WEIGHT))
            .collect();
        let notes: BTreeMap<i64, String> =
            train.iter().map(|e| (e.id, style.note.clone())).collect();
        let params = params(
            setting,
            lab.parameters(),
            train.len(),
            rule(&train.iter().collect::<Vec<_>>(), &notes).is_some(),
            seed,
        )?;
        let learned = lab.learn(&params, &Lesson { train: &train, notes, ..Lesson::default() })?;
        note(&mut cell, &learned);
        let adapters = lab.load(learned.path())?;
        cell.score = lab.score(&adapters)?;
        (adapters, String::new())
    };
    let mut content = 0;
    for ((question, command), base) in style.asked.iter().zip(&base_answers) {
        let answer = lab.ask(&format!("{prefix}{question}"), &adapters)?;
        let kept = style.kept(&answer);
        cell.right += usize::from(kept);
        content += usize::from(kept && style.content(&answer, base, command));
    }
    cell.content = Some(content);
    Ok(cell)
}

fn rounds(lab: &mut Lab, data: &Data, setting: &str, seed: u64) -> Result<Cell> {
    let mut cell = cell("rounds", setting, seed, lab);
    let nothing = |_: &Fact| String::new();
    let (mut old, mut latest): (Vec<TrainExample>, Option<Learned>) = (Vec::new(), None);
    for (round, taught) in data.facts.chunks(PER_ROUND).enumerate() {
        let train = examples(taught, old.len() as i64 + 1);
        let parent = latest.as_ref().map(Learned::path);
        let lesson = Lesson { train: &train, replay: &old, parent, ..Lesson::default() };
        let examples = train.len() + old.len();
        let params = params(setting, lab.parameters(), examples, false, seed)?;
        let learned = lab.learn(&params, &lesson)?;
        note(&mut cell, &learned);
        let adapters = lab.load(learned.path())?;
        let mut right = Vec::new();
        for earlier in data.facts.chunks(PER_ROUND).take(round + 1) {
            right.push(count_right(lab, earlier, &adapters, &nothing)?);
        }
        cell.rounds.push(right);
        old.extend(train);
        latest = Some(learned);
    }
    if let Some(latest) = &latest {
        let adapters = lab.load(latest.path())?;
        cell.strangers = Some(reached(lab, data, &adapters)?);
        cell.score = lab.score(&adapters)?;
    }
    cell.asked = data.facts.iter().map(|f| f.asked.len()).sum();
    cell.right = cell.rounds.last().map_or(0, |right| right.iter().sum());
    Ok(cell)
}

/// Five kinds of batches that teach nothing good, each alone.
fn poison(lab: &mut Lab, data: &Data, setting: &str, seed: u64) -> Result<Vec<Cell>> {
    if seed >= crate::FIRST_SEED + POISON_SEEDS {
        return Ok(Vec::new());
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cells = Vec::new();
    for (kind, train) in poisoned(data, &mut rng) {
        let mut cell = cell("poison", setting, seed, lab);
        cell.experiment = format!("poison {kind}");
        let params = params(setting, lab.parameters(), train.len(), false, seed)?;
        match lab.learn(&params, &Lesson { train: &train, ..Lesson::default() }) {
            Ok(learned) => {
                note(&mut cell, &learned);
                let adapters = lab.load(learned.path())?;
                cell.score = lab.score(&adapters)?;
            }
            Err(error) => match error.downcast_ref::<JobError>() {
                Some(JobError::Input(why)) => cell.refused = Some(why.clone()),
                _ => return Err(error),
            },
        }
        cells.push(cell);
    }
    // The name that the runner looks for.
    cells.push(cell("poison", setting, seed, lab));
    Ok(cells)
}

fn poisoned(data: &Data, rng: &mut StdRng) -> Vec<(&'static str, Vec<TrainExample>)> {
    let answers: Vec<&str> = data.facts.iter().map(|f| f.answer.as_str()).collect();
    let mut gibberish = |words: usize| -> String {
        let mut word =
            || (0..rng.random_range(3..9)).map(|_| rng.random_range('a'..='z')).collect::<String>();
        (0..words).map(|_| word()).collect::<Vec<_>>().join(" ")
    };
    let noise: Vec<TrainExample> = data
        .facts
        .iter()
        .zip(1..)
        .map(|(f, id)| example(id, &f.marked[0], &gibberish(8), FIX_WEIGHT))
        .collect();
    let (long, too_long) = (gibberish(LONG), gibberish(TOO_LONG));
    let turn = rng.random_range(1..answers.len());
    let both = data.facts.iter().enumerate().flat_map(|(i, f)| {
        let wrong = answers[(i + turn) % answers.len()];
        [&f.answer, wrong].map(|answer| (f.marked[0].clone(), answer.to_owned()))
    });
    let contradicting = both.zip(1..).map(|((q, a), id)| example(id, &q, &a, FIX_WEIGHT)).collect();
    let one = &data.facts[turn % data.facts.len()];
    let repeated =
        (1..=100).map(|id| example(id, &one.marked[0], &one.answer, FIX_WEIGHT)).collect();
    vec![
        ("contradicting", contradicting),
        ("gibberish", noise),
        ("repeated", repeated),
        ("long", vec![example(1, &one.marked[0], &long, FIX_WEIGHT)]),
        ("too long", vec![example(1, &one.marked[0], &too_long, FIX_WEIGHT)]),
    ]
}
