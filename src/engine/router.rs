//! Routing: which domain a question belongs to, by the marks of each.
//!
//! A text is the mean of its tokens' states minus the mean over general prompts: uncentred states all point the same way. A
//! domain is as close as the mean cosine of its three nearest questions. To how much closer it is than general prompts comes
//! how many more of the question's tokens its nearest marks have, by rarity. The states are those before the first layer: of
//! the built-in model's layers they separate domains best (docs/ROUTING.md), and they cost no forward.
//!
//! The more marks a domain has, the closer it is to anything, and how close is the model's affair: so the question is measured
//! by what the domain's own marks reach, each without itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::error::EngineError;
use crate::domain::{DEFAULT_DOMAIN, Route, Routes};
use crate::models::LoadedModel;
use crate::models::kernels::math::dot;

/// Nearest questions that count; a domain with fewer different ones takes no part.
const NEIGHBOURS: usize = 3;
/// Nearest questions whose tokens are known: with all of them, a large domain would know every token.
const KNOWN: usize = 15;
/// What the share of known tokens counts beside cosines. It, the number above and the share below were chosen with the
/// margin (docs/ROUTING.md).
const KNOWN_WEIGHT: f64 = 0.6;
/// Which share of a domain's own marks may score lower than a question that belongs to it.
const LOWER: f64 = 0.3;
/// Marks of a domain that are scored for that, at most: each is compared with all others.
const SCORED: usize = 50;
/// Tokens of a text that are looked at, from its beginning: a question says early what it is about.
const LONGEST: usize = 512;

/// Knows where questions belong.
pub struct Router {
    margin: f64,
    /// In how many of the texts a token occurs.
    frequency: HashMap<u32, usize>,
    texts: HashMap<String, Text>,
    mean: Vec<f32>,
    domains: BTreeMap<String, Domain>,
}

/// A text as it was read.
struct Text {
    tokens: BTreeSet<u32>,
    /// The mean of its tokens' states, `[hidden]`.
    state: Vec<f32>,
}

/// What the different questions of a domain are like.
#[derive(Default)]
struct Domain {
    questions: Vec<Question>,
    /// The score that a question of the domain reaches.
    level: f64,
}

struct Question {
    /// Of unit length.
    direction: Vec<f32>,
    tokens: BTreeSet<u32>,
}

/// How a question stands to a domain.
struct Likeness {
    /// Mean cosine to the nearest questions.
    closeness: f64,
    /// Share of the question's tokens, by rarity, that they have: 0 to 1.
    known: f64,
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
        let mut questions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for mark in &routes.marks {
            questions.entry(&mark.domain).or_default().insert(&mark.question);
        }
        questions.retain(|domain, all| *domain == DEFAULT_DOMAIN || all.len() >= NEIGHBOURS);
        if questions.keys().all(|domain| *domain == DEFAULT_DOMAIN) {
            return Ok(None);
        }
        let general = routes.general.iter().map(String::as_str);
        questions.entry(DEFAULT_DOMAIN).or_default().extend(general);
        let mut read = before.map_or_else(HashMap::new, |before| before.texts);
        let mut texts = HashMap::new();
        for text in questions.values().flatten() {
            if !texts.contains_key(*text) {
                let known = read.remove(*text).map_or_else(|| Text::read(model, text), Ok)?;
                texts.insert((*text).to_owned(), known);
            }
        }
        let general: Vec<&[f32]> =
            routes.general.iter().map(|text| texts[text].state.as_slice()).collect();
        let mean = mean(&general, model.decoder.config().hidden_size);
        let domains = questions.into_iter().map(|(domain, all)| {
            let questions =
                all.into_iter().map(|text| Question::new(&texts[text], &mean)).collect();
            (domain.to_owned(), Domain { questions, level: 0.0 })
        });
        let domains = domains.collect();
        let frequency = frequency(texts.values());
        let mut router = Self { margin: routes.margin, frequency, texts, mean, domains };
        let levels: Vec<f64> = router.domains.values().map(|domain| router.level(domain)).collect();
        router.domains.values_mut().zip(levels).for_each(|(domain, level)| domain.level = level);
        Ok(Some(router))
    }

    /// Finds the domain of a question.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn route(&self, model: &LoadedModel, question: &str) -> Result<Route, EngineError> {
        let question = Question::new(&Text::read(model, question)?, &self.mean);
        let general = self.general(&question);
        let others = self.domains.iter().filter(|(domain, _)| *domain != DEFAULT_DOMAIN);
        let best = others
            .map(|(name, domain)| (self.likeness(domain, &question, None), name, domain.level))
            .max_by(|a, b| a.0.closeness.total_cmp(&b.0.closeness))
            .filter(|(like, _, level)| like.score(&general) >= level + self.margin);
        let (similarity, domain) = best
            .map_or((general.closeness, DEFAULT_DOMAIN), |(like, name, _)| (like.closeness, name));
        Ok(Route { domain: domain.to_owned(), similarity: Some(similarity) })
    }

    /// Returns what most of a domain's own questions score, each without itself.
    fn level(&self, domain: &Domain) -> f64 {
        let count = domain.questions.len();
        let scored = (0..count).step_by(count.div_ceil(SCORED).max(1)).map(|at| {
            let question = &domain.questions[at];
            self.likeness(domain, question, Some(at)).score(&self.general(question))
        });
        let mut scores: Vec<f64> = scored.collect();
        scores.sort_unstable_by(f64::total_cmp);
        scores.get((LOWER * scores.len() as f64) as usize).copied().unwrap_or(0.0)
    }

    fn general(&self, question: &Question) -> Likeness {
        let general = self.domains.get(DEFAULT_DOMAIN);
        general.map_or(Likeness { closeness: 0.0, known: 0.0 }, |domain| {
            self.likeness(domain, question, None)
        })
    }

    /// Compares a question with those of a domain, but for the one at `without`.
    fn likeness(&self, domain: &Domain, question: &Question, without: Option<usize>) -> Likeness {
        let others = domain.questions.iter().enumerate().filter(|(at, _)| Some(*at) != without);
        let mut near: Vec<(f32, &Question)> =
            others.map(|(_, other)| (dot(&other.direction, &question.direction), other)).collect();
        near.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        near.truncate(KNOWN);
        let nearest = &near[..near.len().min(NEIGHBOURS)];
        let sum: f32 = nearest.iter().map(|(cosine, _)| cosine).sum();
        let (mut all, mut known) = (0.0, 0.0);
        for token in &question.tokens {
            let rarity = self.rarity(*token);
            all += rarity;
            if near.iter().any(|(_, other)| other.tokens.contains(token)) {
                known += rarity;
            }
        }
        let closeness = f64::from(sum) / nearest.len().max(1) as f64;
        Likeness { closeness, known: if all > 0.0 { known / all } else { 0.0 } }
    }

    /// Inverse document frequency.
    fn rarity(&self, id: u32) -> f64 {
        let seen = self.frequency.get(&id).copied().unwrap_or(0);
        ((self.texts.len() + 1) as f64 / (seen + 1) as f64).ln()
    }
}

impl Likeness {
    /// Returns by how much a domain is likelier than general prompts.
    fn score(&self, general: &Self) -> f64 {
        self.closeness - general.closeness + KNOWN_WEIGHT * (self.known - general.known)
    }
}

impl Question {
    fn new(text: &Text, mean: &[f32]) -> Self {
        Self { direction: direction(&text.state, mean), tokens: text.tokens.clone() }
    }
}

impl Text {
    fn read(model: &LoadedModel, text: &str) -> Result<Self, EngineError> {
        let config = model.decoder.config();
        let mut ids = model.tokenizer.encode_text(text)?;
        ids.truncate(LONGEST);
        // A tokenizer may know more tokens than the model; those say nothing here, and answering refuses them.
        ids.retain(|id| (*id as usize) < config.vocab_size);
        let state = match ids.as_slice() {
            [] => vec![0.0; config.hidden_size],
            ids => {
                let states: Vec<f32> = model.decoder.embeddings(ids)?.flatten_all()?.to_vec1()?;
                let states: Vec<&[f32]> = states.chunks(config.hidden_size).collect();
                mean(&states, config.hidden_size)
            }
        };
        Ok(Self { tokens: ids.into_iter().collect(), state })
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
        for id in &text.tokens {
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
