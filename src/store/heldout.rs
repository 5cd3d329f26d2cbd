//! Which marks are kept out of training to measure it: the rule, without a database.
//!
//! A deterministic share of the marks (20 %, drawn by a hash of the id; at least one from a domain's
//! second job on) is held out, but only while another mark that is trained is similar, so that what
//! it asks for is still taught; and never one of weight 10, which a user insists on. Before a
//! domain's first job the ten marks that it waits for are trained on: holding out never delays it.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

/// The share of marks that is drawn.
pub const SHARE: f64 = 0.2;
/// From this weight on a mark is always trained on.
pub const INSISTENT_WEIGHT: f64 = 10.0;
/// So many marks are trained on in a domain's first job before one is held out: the default of
/// `auto_train_threshold`.
pub const FIRST_JOB_MINIMUM: usize = 10;
/// Similar targets share at least this part of their words (Jaccard index). The answers of two
/// marks that teach the same thing nearly agree; "… of France is Paris" and "… of Spain is Madrid"
/// share half.
const SIMILAR_TARGETS: f64 = 0.6;
/// Similar marks share at least this part of the words of question and target together: "yes" to
/// one question teaches nothing about another.
const SIMILAR_MARKS: f64 = 0.4;

/// What the rule needs to know of a mark that has a target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<'a> {
    /// The mark's id.
    pub id: i64,
    /// The mark's weight.
    pub weight: f64,
    /// The question that was answered.
    pub question: &'a str,
    /// The answer to learn.
    pub target: &'a str,
    /// Whether a job has learned it or is about to: too late to hold it out.
    pub taken: bool,
    /// Whether a job that reached the gate was measured on it: it stays held out, so that the
    /// measure does not change and nothing is measured that was learned.
    pub measured: bool,
}

/// Returns the ids of the marks that are held out of the next job of a domain.
///
/// `candidates` are the domain's marks with a target; `earlier_jobs` whether the domain has had a
/// job that reached the gate. The answer depends on nothing else and not on the candidates' order.
pub fn held_out(candidates: &[Candidate<'_>], earlier_jobs: bool) -> BTreeSet<i64> {
    let words = Words::of_all(candidates);
    let mut order: Vec<usize> =
        (0..candidates.len()).filter(|&i| may_be_held_out(&candidates[i])).collect();
    // Those that measured before come first: a new one must not take away what teaches them.
    order.sort_by_key(|&i| {
        let Candidate { id, measured, .. } = candidates[i];
        (!measured, mix(id as u64), id)
    });
    let free = candidates.iter().filter(|c| !c.taken).count();
    // Marks that a waiting job has taken are trained on, and count among the ten.
    let spare = candidates.len().saturating_sub(FIRST_JOB_MINIMUM).min(free);
    let most = if earlier_jobs { free } else { spare };
    let mut held = BTreeSet::new();
    for &index in &order {
        let Candidate { id, measured, .. } = candidates[index];
        let drawn = measured || draw(id) < SHARE;
        if held.len() < most && drawn && has_similar(index, candidates, &words, &held) {
            held.insert(id);
        }
    }
    if earlier_jobs && held.is_empty() && free > 1 {
        // Nobody was drawn: whoever was nearest to it, but not the only one to learn from.
        let nearest = order.iter().find(|&&i| has_similar(i, candidates, &words, &held));
        held.extend(nearest.map(|&i| candidates[i].id));
    }
    held
}

fn may_be_held_out(candidate: &Candidate<'_>) -> bool {
    !candidate.taken && candidate.weight < INSISTENT_WEIGHT
}

/// Whether a mark that stays in training is similar to that at `index`, and would stay so for
/// those already held out.
fn has_similar(
    index: usize,
    candidates: &[Candidate<'_>],
    words: &[Words],
    held: &BTreeSet<i64>,
) -> bool {
    let this = candidates[index].id;
    let taught = |except: i64, of: usize| {
        candidates.iter().enumerate().any(|(other, c)| {
            other != of
                && c.id != except
                && !held.contains(&c.id)
                && words[of].similar_to(&words[other])
        })
    };
    taught(this, index)
        && candidates
            .iter()
            .enumerate()
            .filter(|(_, c)| held.contains(&c.id))
            .all(|(other, _)| taught(this, other))
}

/// Draws a number in [0, 1) for an id: the finaliser of SplitMix64 (Steele et al. 2014), so that
/// neighbouring ids are independent and every version and machine agrees.
pub fn draw(id: i64) -> f64 {
    /// 2⁵³, the number of values that a double holds evenly in [0, 1).
    const STEPS: f64 = (1u64 << 53) as f64;
    (mix(id as u64) >> 11) as f64 / STEPS
}

/// Mixes the bits of a number.
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The words of all marks, each with a number.
#[derive(Default)]
struct Dictionary(HashMap<String, u32>);

impl Dictionary {
    /// Returns the numbers of a text's words, sorted, each once.
    fn numbers(&mut self, text: &str) -> Vec<u32> {
        let mut numbers = Vec::new();
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
            let next = self.0.len() as u32;
            numbers.push(*self.0.entry(word.to_lowercase()).or_insert(next));
        }
        sorted(numbers)
    }
}

/// The words of a mark, as sorted numbers.
struct Words {
    target: Vec<u32>,
    all: Vec<u32>,
}

impl Words {
    fn of_all(candidates: &[Candidate<'_>]) -> Vec<Self> {
        let mut dictionary = Dictionary::default();
        let mut words = |c: &Candidate<'_>| {
            let target = dictionary.numbers(c.target);
            let mut all = dictionary.numbers(c.question);
            all.extend(&target);
            Self { target, all: sorted(all) }
        };
        candidates.iter().map(&mut words).collect()
    }

    fn similar_to(&self, other: &Self) -> bool {
        jaccard(&self.target, &other.target) >= SIMILAR_TARGETS
            && jaccard(&self.all, &other.all) >= SIMILAR_MARKS
    }
}

fn sorted(mut numbers: Vec<u32>) -> Vec<u32> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// The share of two sorted sets that they have in common; two empty ones have nothing in common.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut common) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            Ordering::Less => i += 1,
            Ordering::Greater => j += 1,
            Ordering::Equal => (i, j, common) = (i + 1, j + 1, common + 1),
        }
    }
    let all = a.len() + b.len() - common;
    if all == 0 { 0.0 } else { common as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TARGETS: [&str; 4] = [
        "The build server is called Kestrel.",
        "Use thiserror in libraries and anyhow in binaries.",
        "Yes.",
        "The capital of Spain is Madrid.",
    ];
    const QUESTIONS: [&str; 4] = [
        "What is the build server called?",
        "Tell me the name of the build server",
        "Which error crate should I use in libraries?",
        "What is the capital of Spain?",
    ];

    prop_compose! {
        fn marks()(rows in prop::collection::vec((0..4usize, 0..4usize, 0..4usize, any::<bool>(), any::<bool>()), 0..40))
            -> Vec<Candidate<'static>> {
            let weights = [1.0, 3.0, 10.0, 12.0];
            rows.iter().enumerate().map(|(i, &(q, t, w, taken, measured))| Candidate {
                id: i as i64 + 1, weight: weights[w], question: QUESTIONS[q], target: TARGETS[t],
                taken, measured,
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn what_is_held_out_is_taught_by_a_similar_mark(m in marks(), earlier: bool) {
            let words = Words::of_all(&m);
            let held = held_out(&m, earlier);
            for (i, c) in m.iter().enumerate().filter(|(_, c)| held.contains(&c.id)) {
                prop_assert!(c.weight < INSISTENT_WEIGHT, "weight 10 is never held out");
                prop_assert!(!c.taken, "what was learned cannot be held out");
                prop_assert!(m.iter().enumerate().any(|(j, o)| j != i
                    && !held.contains(&o.id) && words[i].similar_to(&words[j])));
            }
        }

        #[test]
        fn the_order_of_marks_does_not_matter(m in marks(), earlier: bool) {
            let mut reversed = m.clone();
            reversed.reverse();
            prop_assert_eq!(held_out(&m, earlier), held_out(&reversed, earlier));
        }

        #[test]
        fn holding_out_never_delays_the_first_job(m in marks()) {
            let held = held_out(&m, false).len();
            prop_assert!(held == 0 || m.len() - held >= FIRST_JOB_MINIMUM);
        }

        #[test]
        fn what_was_measured_stays_held_out(m in marks()) {
            let held = held_out(&m, true);
            let next: Vec<_> =
                m.iter().map(|c| Candidate { measured: held.contains(&c.id), ..*c }).collect();
            let learned: Vec<_> = next
                .iter()
                .map(|c| Candidate { taken: !held.contains(&c.id), ..*c })
                .collect();
            prop_assert_eq!(held_out(&next, true), held.clone());
            prop_assert_eq!(held_out(&learned, true), held, "also when all others were learned");
        }
    }

    fn alike(count: i64) -> Vec<Candidate<'static>> {
        let one = |id| Candidate {
            id,
            weight: 3.0,
            question: QUESTIONS[0],
            target: TARGETS[0],
            taken: false,
            measured: false,
        };
        (1..=count).map(one).collect()
    }

    #[test]
    fn about_a_fifth_is_held_out() {
        let held = held_out(&alike(2000), true).len();
        assert!((340..=460).contains(&held), "{held} of 2000");
    }

    #[test]
    fn from_the_second_job_on_at_least_one_is_held_out() {
        for count in 2..40 {
            assert!(!held_out(&alike(count), true).is_empty(), "{count} marks");
        }
    }

    #[test]
    fn the_only_mark_is_held_out_only_when_it_is_drawn() {
        for id in 1..200 {
            let learned = Candidate { id: 1000, taken: true, ..alike(1)[0] };
            let held = held_out(&[Candidate { id, ..alike(1)[0] }, learned], true);
            assert_eq!(held.contains(&id), draw(id) < SHARE, "mark {id}");
        }
    }

    #[test]
    fn ten_marks_are_enough_for_the_first_job() {
        assert!(held_out(&alike(10), false).is_empty());
        assert!(!held_out(&alike(60), false).is_empty());
    }

    #[test]
    fn the_same_answer_to_another_question_is_not_similar() {
        let one = |id, question, target| Candidate {
            id,
            weight: 1.0,
            question,
            target,
            taken: false,
            measured: false,
        };
        let similar = |a, b| {
            let words = Words::of_all(&[a, b]);
            words[0].similar_to(&words[1])
        };
        assert!(!similar(
            one(1, "Is Rust memory safe?", "Yes."),
            one(2, "May I delete it now?", "Yes.")
        ));
        assert!(!similar(
            one(1, "What is the capital of France?", "The capital of France is Paris."),
            one(2, "What is the capital of Spain?", "The capital of Spain is Madrid."),
        ));
        assert!(similar(one(1, QUESTIONS[0], TARGETS[0]), one(2, QUESTIONS[1], TARGETS[0])));
    }

    #[test]
    fn draws_are_fixed_for_ever() {
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF, "first output of SplitMix64 with seed 0");
        assert!((0..10_000).all(|id| (0.0..1.0).contains(&draw(id))));
    }
}
