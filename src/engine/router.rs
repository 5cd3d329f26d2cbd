//! Routing: which domain a question belongs to, by the marks of each.
//!
//! A text is the mean of its tokens' states, weighted by how rare each token is among all that is compared (tf-idf), minus
//! the mean over general prompts: uncentred states all point the same way. A domain is as close as the mean cosine of its
//! three nearest questions, and must be closer than general prompts are. The states are those before the first layer: of
//! the built-in model's layers they separate domains best (docs/ROUTING.md), and they cost no forward.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::error::EngineError;
use crate::domain::{DEFAULT_DOMAIN, Route, Routes};
use crate::models::LoadedModel;

/// Nearest questions that count; a domain with fewer marks takes no part.
pub const NEIGHBOURS: usize = 3;
/// Tokens of a text that are looked at, from its beginning: a question says early what it is about.
const LONGEST: usize = 512;

/// Knows where questions belong.
pub struct Router {
    margin: f64,
    /// In how many texts a token occurs, and the number of texts.
    frequency: HashMap<u32, usize>,
    texts: usize,
    mean: Vec<f32>,
    /// Directions of unit length, by domain.
    directions: BTreeMap<String, Vec<Vec<f32>>>,
}

impl Router {
    /// Reads the marks; `None` where there is no choice, as no domain besides the default one has marks enough.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn new(model: &LoadedModel, routes: &Routes) -> Result<Option<Self>, EngineError> {
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
        let texts: Vec<(&str, Vec<u32>)> = general
            .chain(marks)
            .map(|(domain, text)| Ok((domain, ids(model, text)?)))
            .collect::<Result<_, EngineError>>()?;
        let mut router = Self {
            margin: routes.margin,
            frequency: frequency(&texts),
            texts: texts.len(),
            mean: vec![0.0; model.decoder.config().hidden_size],
            directions: BTreeMap::new(),
        };
        let pooled: Vec<Vec<f32>> = texts
            .iter()
            .map(|(_, ids)| router.pooled(model, ids))
            .collect::<Result<_, EngineError>>()?;
        router.mean = mean(&pooled[..routes.general.len()], router.mean.len());
        for ((domain, _), state) in texts.iter().zip(&pooled) {
            let direction = router.direction(state);
            router.directions.entry((*domain).to_owned()).or_default().push(direction);
        }
        Ok(Some(router))
    }

    /// Finds the domain of a question.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn route(&self, model: &LoadedModel, question: &str) -> Result<Route, EngineError> {
        let direction = self.direction(&self.pooled(model, &ids(model, question)?)?);
        let closeness = |domain: &str| {
            self.directions.get(domain).map_or(0.0, |known| nearest(known, &direction))
        };
        let general = closeness(DEFAULT_DOMAIN);
        let others = self.directions.keys().filter(|domain| *domain != DEFAULT_DOMAIN);
        let best = others
            .map(|domain| (closeness(domain), domain))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(similarity, _)| *similarity >= general + self.margin);
        let (similarity, domain) =
            best.map_or((general, DEFAULT_DOMAIN), |(s, domain)| (s, domain.as_str()));
        Ok(Route { domain: domain.to_owned(), similarity: Some(similarity) })
    }

    /// Returns the weighted mean of the tokens' states, `[hidden]`.
    fn pooled(&self, model: &LoadedModel, ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        let width = model.decoder.config().hidden_size;
        let mut sum = vec![0.0; width];
        if ids.is_empty() {
            return Ok(sum);
        }
        let states: Vec<f32> = model.decoder.embeddings(ids)?.flatten_all()?.to_vec1()?;
        let mut total = 0.0;
        for (id, state) in ids.iter().zip(states.chunks(width)) {
            let weight = self.rarity(*id);
            total += weight;
            sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += weight * x);
        }
        if total > 0.0 {
            sum.iter_mut().for_each(|x| *x /= total);
        }
        Ok(sum)
    }

    /// Inverse document frequency.
    fn rarity(&self, id: u32) -> f32 {
        let seen = self.frequency.get(&id).copied().unwrap_or(0);
        ((self.texts + 1) as f32 / (seen + 1) as f32).ln()
    }

    fn direction(&self, state: &[f32]) -> Vec<f32> {
        let centred: Vec<f32> = state.iter().zip(&self.mean).map(|(x, mean)| x - mean).collect();
        let length = dot(&centred, &centred).sqrt();
        if length == 0.0 {
            return centred;
        }
        centred.into_iter().map(|x| x / length).collect()
    }
}

fn ids(model: &LoadedModel, text: &str) -> Result<Vec<u32>, EngineError> {
    let mut ids = model.tokenizer.encode_text(text)?;
    ids.truncate(LONGEST);
    // A tokenizer may know more tokens than the model; those say nothing here, and answering refuses them.
    ids.retain(|id| (*id as usize) < model.decoder.config().vocab_size);
    Ok(ids)
}

fn frequency(texts: &[(&str, Vec<u32>)]) -> HashMap<u32, usize> {
    let mut frequency = HashMap::new();
    for (_, ids) in texts {
        for id in ids.iter().collect::<BTreeSet<_>>() {
            *frequency.entry(*id).or_default() += 1;
        }
    }
    frequency
}

fn mean(states: &[Vec<f32>], width: usize) -> Vec<f32> {
    let mut mean = vec![0.0; width];
    for state in states {
        mean.iter_mut().zip(state).for_each(|(mean, x)| *mean += x / states.len() as f32);
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

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
