//! Routing: which domain a question belongs to, by the marks of each.
//!
//! A text is the mean of its tokens' states minus the mean over general prompts: uncentred states all point the same way. A
//! domain is as close as the mean cosine of its three nearest questions. A question belongs to it if it is closer than
//! general prompts are and its rare tokens are known from the domain's marks: by states alone, questions of no domain find
//! one. The states are those before the first layer: of the built-in model's layers they separate domains best
//! (docs/ROUTING.md), and they cost no forward.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::error::EngineError;
use crate::domain::{DEFAULT_DOMAIN, Route, Routes};
use crate::models::LoadedModel;
use crate::models::kernels::math::dot;

/// Nearest questions that count; a domain with fewer marks takes no part.
pub const NEIGHBOURS: usize = 3;
/// What the share of known tokens counts beside cosines: chosen with the margin on two sets of questions and checked on a
/// third (docs/ROUTING.md).
const KNOWN_WEIGHT: f64 = 0.3;
/// Tokens of a text that are looked at, from its beginning: a question says early what it is about.
const LONGEST: usize = 512;

/// Knows where questions belong.
pub struct Router {
    margin: f64,
    /// In how many of the texts a token occurs.
    frequency: HashMap<u32, usize>,
    texts: HashMap<String, Text>,
    mean: Vec<f32>,
    known: BTreeMap<String, Known>,
}

/// A text as it was read.
struct Text {
    ids: Vec<u32>,
    /// The mean of its tokens' states, `[hidden]`.
    state: Vec<f32>,
}

/// What the texts of a domain are like.
#[derive(Default)]
struct Known {
    /// Of unit length, one for each text.
    directions: Vec<Vec<f32>>,
    tokens: HashSet<u32>,
}

impl Router {
    /// Reads the marks; `None` where there is no choice, as no domain besides the default one has marks enough.
    ///
    /// What `before`, a router of the same model, has read is not read again.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn new(
        model: &LoadedModel,
        routes: &Routes,
        before: Option<Self>,
    ) -> Result<Option<Self>, EngineError> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for mark in routes.marks.iter().filter(|mark| mark.domain != DEFAULT_DOMAIN) {
            *counts.entry(&mark.domain).or_default() += 1;
        }
        counts.retain(|_, count| *count >= NEIGHBOURS);
        if counts.is_empty() {
            return Ok(None);
        }
        let taking_part = |domain: &str| domain == DEFAULT_DOMAIN || counts.contains_key(domain);
        let general = routes.general.iter().map(|text| (DEFAULT_DOMAIN, text.as_str()));
        let marks = routes.marks.iter().filter(|mark| taking_part(&mark.domain));
        let marks = marks.map(|mark| (mark.domain.as_str(), mark.question.as_str()));
        let all: Vec<(&str, &str)> = general.chain(marks).collect();
        let mut read = before.map_or_else(HashMap::new, |before| before.texts);
        let mut texts = HashMap::new();
        for (_, text) in &all {
            if !texts.contains_key(*text) {
                let known = read.remove(*text).map_or_else(|| Text::read(model, text), Ok)?;
                texts.insert((*text).to_owned(), known);
            }
        }
        let general: Vec<&[f32]> =
            routes.general.iter().map(|text| texts[text].state.as_slice()).collect();
        let mean = mean(&general, model.decoder.config().hidden_size);
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        for (domain, text) in all {
            let known = known.entry(domain.to_owned()).or_default();
            known.directions.push(direction(&texts[text].state, &mean));
            known.tokens.extend(&texts[text].ids);
        }
        let frequency = frequency(texts.values());
        Ok(Some(Self { margin: routes.margin, frequency, texts, mean, known }))
    }

    /// Finds the domain of a question.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn route(&self, model: &LoadedModel, question: &str) -> Result<Route, EngineError> {
        let Text { ids, state } = Text::read(model, question)?;
        let direction = direction(&state, &self.mean);
        let general = self.known.get(DEFAULT_DOMAIN);
        let general = general.map_or(0.0, |known| nearest(&known.directions, &direction));
        let others = self.known.iter().filter(|(domain, _)| *domain != DEFAULT_DOMAIN);
        let best = others
            .map(|(domain, known)| (nearest(&known.directions, &direction), domain, known))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(similarity, _, known)| {
                similarity - general + KNOWN_WEIGHT * self.known_share(&ids, known) >= self.margin
            });
        let (similarity, domain) =
            best.map_or((general, DEFAULT_DOMAIN), |(s, domain, _)| (s, domain.as_str()));
        Ok(Route { domain: domain.to_owned(), similarity: Some(similarity) })
    }

    /// Returns which share of a question's tokens, by rarity, a domain's marks have: 0 to 1.
    fn known_share(&self, ids: &[u32], known: &Known) -> f64 {
        let (mut all, mut found) = (0.0, 0.0);
        for id in ids.iter().collect::<BTreeSet<_>>() {
            let rarity = self.rarity(*id);
            all += rarity;
            found += if known.tokens.contains(id) { rarity } else { 0.0 };
        }
        if all > 0.0 { found / all } else { 0.0 }
    }

    /// Inverse document frequency.
    fn rarity(&self, id: u32) -> f64 {
        let seen = self.frequency.get(&id).copied().unwrap_or(0);
        ((self.texts.len() + 1) as f64 / (seen + 1) as f64).ln()
    }
}

impl Text {
    fn read(model: &LoadedModel, text: &str) -> Result<Self, EngineError> {
        let config = model.decoder.config();
        let mut ids = model.tokenizer.encode_text(text)?;
        ids.truncate(LONGEST);
        // A tokenizer may know more tokens than the model; those say nothing here, and answering refuses them.
        ids.retain(|id| (*id as usize) < config.vocab_size);
        if ids.is_empty() {
            return Ok(Self { ids, state: vec![0.0; config.hidden_size] });
        }
        let states: Vec<f32> = model.decoder.embeddings(&ids)?.flatten_all()?.to_vec1()?;
        let states: Vec<&[f32]> = states.chunks(config.hidden_size).collect();
        Ok(Self { state: mean(&states, config.hidden_size), ids })
    }
}

/// Returns where a state lies from the mean, of unit length.
fn direction(state: &[f32], mean: &[f32]) -> Vec<f32> {
    let centred: Vec<f32> = state.iter().zip(mean).map(|(x, mean)| x - mean).collect();
    let length = dot(&centred, &centred).sqrt();
    if length == 0.0 {
        return centred;
    }
    centred.into_iter().map(|x| x / length).collect()
}

fn frequency<'a>(texts: impl Iterator<Item = &'a Text>) -> HashMap<u32, usize> {
    let mut frequency = HashMap::new();
    for text in texts {
        for id in text.ids.iter().collect::<BTreeSet<_>>() {
            *frequency.entry(*id).or_default() += 1;
        }
    }
    frequency
}

fn mean(states: &[&[f32]], width: usize) -> Vec<f32> {
    let mut mean = vec![0.0; width];
    for state in states {
        mean.iter_mut().zip(*state).for_each(|(mean, x)| *mean += x / states.len() as f32);
    }
    mean
}

/// Returns the mean cosine of the nearest directions.
fn nearest(known: &[Vec<f32>], direction: &[f32]) -> f64 {
    let mut cosines: Vec<f32> = known.iter().map(|other| dot(other, direction)).collect();
    cosines.sort_unstable_by(|a, b| b.total_cmp(a));
    cosines.truncate(NEIGHBOURS);
    f64::from(cosines.iter().sum::<f32>()) / cosines.len().max(1) as f64
}
