//! The corpus of the built-in model: facts about shammah, small talk, what it must not know, and copying of new names.
//!
//! Dialogues are drawn at random, so the trainer never sees the same stream twice; the answers never vary.

mod augment;
mod open_text;
mod slots;
mod teach;

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde::Deserialize;

use augment::Manner;
pub use open_text::open_text;
use slots::{Group, Groups};

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// What the user types.
    pub user: String,
    /// What the model answers.
    pub assistant: String,
}

/// The turns of one conversation, in order.
pub type Dialogue = Vec<Turn>;

/// The share of dialogues in which the user tells a name and asks for it.
const TEACH_SHARE: f64 = 0.06;
/// The shares of turns, out of 100: facts, then small talk; the rest is unknown.
const FACT_SHARE: u32 = 60;
const SMALLTALK_SHARE: u32 = 12;
/// The share of the user's private matters among the unknown: more than half, because users teach these later.
const PRIVATE_SHARE: f64 = 0.55;

/// One fact with the ways to ask for it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// A short unique name.
    pub id: String,
    /// The only answer.
    pub answer: String,
    /// The phrasings that are trained.
    pub questions: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FactFile {
    fact: Vec<Fact>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnknownFile {
    group: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeldoutFile {
    item: Vec<HeldoutItem>,
}

/// Everything that dialogues are drawn from.
#[derive(Debug)]
pub struct Corpus {
    facts: Vec<Fact>,
    smalltalk: Vec<Fact>,
    world: Groups,
    private: Groups,
    /// Normalised phrasings of the score key.
    held: Vec<String>,
}

impl Corpus {
    /// Reads the corpus that is built into this program.
    ///
    /// # Errors
    /// When a file is no valid TOML, is empty, or has a template without its slot.
    pub fn builtin() -> Result<Self> {
        let facts: FactFile = toml::from_str(include_str!("facts.toml")).context("facts.toml")?;
        let smalltalk: FactFile =
            toml::from_str(include_str!("smalltalk.toml")).context("smalltalk.toml")?;
        let unknown: UnknownFile =
            toml::from_str(include_str!("unknown.toml")).context("unknown.toml")?;
        for fact in facts.fact.iter().chain(&smalltalk.fact) {
            if fact.questions.is_empty() {
                bail!("the fact {} has no questions", fact.id);
            }
        }
        if facts.fact.is_empty() || smalltalk.fact.is_empty() {
            bail!("facts.toml and smalltalk.toml need at least one entry each");
        }
        let (private, world) = unknown.group.into_iter().partition(Group::is_private);
        Ok(Self {
            facts: facts.fact,
            smalltalk: smalltalk.fact,
            world: Groups::new(world)?,
            private: Groups::new(private)?,
            held: heldout()?.iter().map(|item| normalised(&item.question)).collect(),
        })
    }

    /// Draws one dialogue of one to three turns.
    pub fn dialogue(&self, rng: &mut impl Rng) -> Dialogue {
        if rng.random_bool(TEACH_SHARE) {
            return teach::dialogue(rng);
        }
        let turns = match rng.random_range(0..100) {
            0..78 => 1,
            78..94 => 2,
            _ => 3,
        };
        (0..turns).map(|_| self.fresh_turn(rng)).collect()
    }

    /// Draws distinct single turns for the gate: facts, small talk, then things of the world and of the user that
    /// it must not know. `facts`, `smalltalk` and `unknown` say how many.
    pub fn general(&self, counts: [usize; 3], rng: &mut impl Rng) -> Vec<Turn> {
        let mut turns: Vec<Turn> = Vec::new();
        let told = |facts: &[Fact], rng: &mut _| told(facts, rng, |_| Manner::SmallTalk);
        let [facts, smalltalk, unknown] = counts;
        while turns.len() < facts + smalltalk + unknown {
            let at = turns.len();
            let turn = if at < facts {
                told(&self.facts, rng)
            } else if at < facts + smalltalk {
                told(&self.smalltalk, rng)
            } else {
                let groups = if at.is_multiple_of(3) { &self.world } else { &self.private };
                let (user, assistant) = groups.draw(rng);
                Turn { user, assistant }
            };
            let asked_twice = |t: &Turn| {
                normalised(&t.user) == normalised(&turn.user)
                    || (at < facts && t.assistant == turn.assistant)
            };
            if !turns.iter().any(asked_twice) && !self.is_held_out(&turn.user) {
                turns.push(turn);
            }
        }
        turns
    }

    /// Draws turns until one does not ask what the score key asks: a varied question could hit it by chance.
    fn fresh_turn(&self, rng: &mut impl Rng) -> Turn {
        loop {
            let turn = self.turn(rng);
            if !self.is_held_out(&turn.user) {
                return turn;
            }
        }
    }

    /// Tells whether `question` is a phrasing of the score key, or contains one of three words or more.
    fn is_held_out(&self, question: &str) -> bool {
        let question = normalised(question);
        let padded = format!(" {question} ");
        self.held.iter().any(|held| {
            *held == question
                || (held.split(' ').count() >= 3 && padded.contains(&format!(" {held} ")))
        })
    }

    /// Lists every trained phrasing once, before its surface is varied.
    #[cfg(test)]
    fn training_questions(&self) -> impl Iterator<Item = String> + '_ {
        let told = self
            .facts
            .iter()
            .chain(&self.smalltalk)
            .flat_map(|fact| fact.questions.iter().cloned());
        told.chain(self.world.expand()).chain(self.private.expand())
    }

    fn turn(&self, rng: &mut impl Rng) -> Turn {
        let share = rng.random_range(0..100);
        if share < FACT_SHARE {
            return told(&self.facts, rng, |fact| {
                if fact.id.starts_with("id_") { Manner::Question } else { Manner::AboutShammah }
            });
        }
        if share < FACT_SHARE + SMALLTALK_SHARE {
            return told(&self.smalltalk, rng, |_| Manner::SmallTalk);
        }
        let groups = if rng.random_bool(PRIVATE_SHARE) { &self.private } else { &self.world };
        let (question, answer) = groups.draw(rng);
        Turn { user: augment::vary(&question, Manner::Question, rng), assistant: answer }
    }
}

/// Draws a fact and one of its questions.
fn told<R: Rng>(facts: &[Fact], rng: &mut R, manner: impl Fn(&Fact) -> Manner) -> Turn {
    // Both lists were checked not to be empty when they were read.
    let drawn = facts.choose(rng).and_then(|fact| Some((fact, fact.questions.choose(rng)?)));
    drawn.map_or_else(
        || Turn { user: String::new(), assistant: String::new() },
        |(fact, question)| Turn {
            user: augment::vary(question, manner(fact), rng),
            assistant: fact.answer.clone(),
        },
    )
}

/// Writes `text` in lower case without punctuation, so that "Rollback?" is "rollback".
fn normalised(text: &str) -> String {
    let letters: String = text
        .chars()
        .map(
            |letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { ' ' },
        )
        .collect();
    letters.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A phrasing that is never trained, and what its answer must contain.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldoutItem {
    /// The id of the fact asked for, or `world` or `private`.
    pub fact: String,
    /// What the user types.
    pub question: String,
    /// Words that a right answer has, in any case.
    pub required: Vec<String>,
}

/// Reads the score key.
///
/// # Errors
/// When the file is no valid TOML.
pub fn heldout() -> Result<Vec<HeldoutItem>> {
    let file: HeldoutFile = toml::from_str(include_str!("heldout.toml")).context("heldout.toml")?;
    Ok(file.item)
}

/// Tells whether `answer` has all words that `item` requires.
pub fn grade(item: &HeldoutItem, answer: &str) -> bool {
    let answer = answer.to_lowercase();
    item.required.iter().all(|word| answer.contains(&word.to_lowercase()))
}

#[cfg(test)]
mod tests;
