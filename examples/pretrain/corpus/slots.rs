//! Questions made from templates: every value of a slot goes into every template.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde::Deserialize;

/// Names that users often write with a capital.
const PROPER_NAMES: [&str; 2] = ["country", "person"];

/// Whose knowledge a group asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    World,
    Private,
}

/// Templates that share their slots and their answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    kind: Kind,
    answer: String,
    templates: Vec<String>,
    slots: BTreeMap<String, Vec<String>>,
}

impl Group {
    /// Tells whether the group asks for what only the user can know.
    pub fn is_private(&self) -> bool {
        self.kind == Kind::Private
    }

    /// Counts the questions of the group, values given twice counted twice.
    fn len(&self) -> usize {
        let values =
            |template: &str| names(template).map(|name| self.slots[name].len()).product::<usize>();
        self.templates.iter().map(|template| values(template)).sum()
    }

    fn check(&self) -> Result<()> {
        for template in &self.templates {
            for name in names(template) {
                let Some(values) = self.slots.get(name) else {
                    bail!("unknown.toml: the template \"{template}\" has no slot list {name}");
                };
                ensure!(!values.is_empty(), "unknown.toml: the slot list {name} is empty");
            }
        }
        ensure!(!self.templates.is_empty(), "unknown.toml: a group has no templates");
        Ok(())
    }

    fn draw(&self, rng: &mut impl Rng) -> String {
        let mut question = self.templates.choose(rng).cloned().unwrap_or_default();
        for (name, values) in &self.slots {
            let mark = format!("{{{name}}}");
            if let (true, Some(value)) = (question.contains(&mark), values.choose(rng)) {
                let capital = PROPER_NAMES.contains(&name.as_str()) && rng.random_bool(0.4);
                question = question
                    .replace(&mark, &if capital { title_case(value) } else { value.clone() });
            }
        }
        question
    }

    #[cfg(test)]
    fn expand(&self) -> Vec<String> {
        let mut done = self.templates.clone();
        for (name, values) in &self.slots {
            let mark = format!("{{{name}}}");
            done = done
                .into_iter()
                .flat_map(|question| match question.contains(&mark) {
                    true => values.iter().map(|value| question.replace(&mark, value)).collect(),
                    false => vec![question],
                })
                .collect();
        }
        done
    }
}

/// Groups of one kind, drawn by size.
#[derive(Debug)]
pub struct Groups {
    groups: Vec<(Group, f64)>,
}

impl Groups {
    /// Checks the templates and weighs each group by the root of its number of questions, so that a small group is not
    /// drowned by a large one.
    ///
    /// # Errors
    /// When there is no group, or a template names a slot without values.
    pub fn new(groups: Vec<Group>) -> Result<Self> {
        ensure!(!groups.is_empty(), "unknown.toml needs groups of both kinds");
        for group in &groups {
            group.check()?;
        }
        let groups = groups.into_iter().map(|group| {
            let weight = (group.len() as f64).sqrt();
            (group, weight)
        });
        Ok(Self { groups: groups.collect() })
    }

    /// Draws a question and its answer.
    pub fn draw(&self, rng: &mut impl Rng) -> (String, String) {
        let drawn = self.groups.choose_weighted(rng, |(_, weight)| *weight);
        drawn.map_or_else(
            |_| Default::default(),
            |(group, _)| (group.draw(rng), group.answer.clone()),
        )
    }

    /// Lists every question.
    #[cfg(test)]
    pub fn expand(&self) -> impl Iterator<Item = String> + '_ {
        self.groups.iter().flat_map(|(group, _)| group.expand())
    }

    /// Lists the answers, one for each group.
    #[cfg(test)]
    pub fn answers(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().map(|(group, _)| group.answer.as_str())
    }
}

/// Lists the slot names in a template such as `what is {number} plus {other}`.
fn names(template: &str) -> impl Iterator<Item = &str> {
    template.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name)
}

/// Writes the first letter of each word large.
fn title_case(value: &str) -> String {
    let words: Vec<String> = value.split(' ').map(super::augment::capitalised).collect();
    words.join(" ")
}
