//! Varies how a question looks, as users do: case, final punctuation, a polite word, a slip of the finger.

use rand::Rng;
use rand::seq::IndexedRandom;

/// The share of questions with one mistyped word.
const TYPO_SHARE: f64 = 0.05;
/// The shares of questions with something before or after them.
const PREFIX_SHARE: f64 = 0.18;
const SUFFIX_SHARE: f64 = 0.06;
/// Shorter questions stay as they are: "hi, /good?" reads odd.
const MIN_WORDS_FOR_EXTRAS: usize = 4;

/// The share of questions that are asked in other words where other words fit.
const REWORD_SHARE: f64 = 0.35;
/// Beginnings that mean the same; the first of each row is how the corpus writes it.
const SAME_BEGINNING: [(&str, &[&str]); 12] = [
    (
        "how do i ",
        &[
            "how can i ",
            "how to ",
            "how do you ",
            "how does one ",
            "how could i ",
            "how should i ",
            "i want to know how i ",
        ],
    ),
    ("what is ", &["what's ", "what exactly is ", "i wonder what is "]),
    ("what are ", &["what exactly are "]),
    ("what does ", &["what exactly does "]),
    ("can i ", &["could i ", "may i ", "is it possible to ", "am i able to "]),
    ("explain ", &["can you explain ", "please explain ", "could you explain "]),
    ("where is ", &["where's ", "where can i find ", "where do i find "]),
    ("where are ", &["where can i find ", "where do i find "]),
    ("show me ", &["let me see ", "please show me ", "can you show me "]),
    ("tell me ", &["please tell me ", "can you tell me ", "could you tell me "]),
    ("list ", &["please list ", "show me ", "can you list "]),
    ("which ", &["what "]),
];

const GREETINGS: [&str; 7] = ["hi, ", "hello, ", "hey, ", "ok, ", "so ", "sorry, ", "well, "];
const REQUESTS: [&str; 9] = [
    "please tell me ",
    "quick question: ",
    "can you tell me: ",
    "tell me: ",
    "one question: ",
    "please: ",
    "i want to know ",
    "another question: ",
    "question: ",
];
const PLACES: [&str; 3] = ["in shammah, ", "with shammah, ", "about shammah: "];
const SUFFIXES: [&str; 5] = [" please", ", please", " thanks", ", thanks", " shammah"];

/// Words with which a question begins that takes a question mark.
const ASKING: [&str; 30] = [
    "what", "what's", "who", "how", "which", "when", "where", "why", "is", "are", "am", "can",
    "could", "do", "does", "did", "will", "should", "must", "may", "was", "were", "has", "have",
    "on", "at", "in", "shall", "would", "whose",
];

/// How a text may be varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// A question about the program.
    AboutShammah,
    /// Any other question.
    Question,
    /// A greeting or the like: nothing is put around it.
    SmallTalk,
}

/// Varies the surface of `question` and keeps its meaning.
pub fn vary(question: &str, manner: Manner, rng: &mut impl Rng) -> String {
    let mut text = question.to_owned();
    if manner != Manner::SmallTalk && rng.random_bool(REWORD_SHARE) {
        text = reword(&text, rng);
    }
    let asks = text.split(' ').next().is_some_and(|word| ASKING.contains(&word));
    if rng.random_bool(TYPO_SHARE) {
        text = mistype(&text, rng);
    }
    let extras =
        manner != Manner::SmallTalk && asks && text.split(' ').count() >= MIN_WORDS_FOR_EXTRAS;
    if extras && rng.random_bool(PREFIX_SHARE) {
        text = format!("{}{text}", prefix(manner, rng));
    }
    if extras && rng.random_bool(SUFFIX_SHARE) {
        text.push_str(SUFFIXES.choose(rng).copied().unwrap_or_default());
    }
    match rng.random_range(0..100) {
        0..45 => {}
        45..95 => text = capitalised(&text),
        // Names of keys and variables are written as they are, also by people who shout.
        _ if text.contains("__") || text.contains("--") => {}
        _ if manner == Manner::SmallTalk => text = text.to_uppercase(),
        _ => {}
    }
    if text.contains(" i ") && rng.random_bool(0.5) {
        text = text.replace(" i ", " I ");
    }
    text.push_str(ending(&text, asks, manner, rng));
    text
}

/// Writes the first letter large; a command or flag has none.
pub fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn prefix<R: Rng>(manner: Manner, rng: &mut R) -> &'static str {
    let about = manner == Manner::AboutShammah && rng.random_bool(0.3);
    let list: &[&str] = match about {
        true => &PLACES,
        false if rng.random_bool(0.4) => &GREETINGS,
        false => &REQUESTS,
    };
    list.choose(rng).copied().unwrap_or_default()
}

fn ending(text: &str, asks: bool, manner: Manner, rng: &mut impl Rng) -> &'static str {
    if text.ends_with(['?', '.', '!']) {
        return "";
    }
    match rng.random_range(0..10) {
        0..5 if asks => "?",
        5..9 if asks => "",
        0..2 if manner == Manner::SmallTalk => "!",
        0..4 => ".",
        9 => {
            if manner == Manner::SmallTalk {
                ""
            } else {
                "?"
            }
        }
        _ => "",
    }
}

/// Puts another beginning of the same meaning before the rest of the question.
fn reword(text: &str, rng: &mut impl Rng) -> String {
    SAME_BEGINNING
        .iter()
        .find_map(|(usual, others)| {
            let rest = text.strip_prefix(usual)?;
            Some(format!("{}{rest}", others.choose(rng)?))
        })
        .unwrap_or_else(|| text.to_owned())
}

/// Swaps or drops one letter of one longer word; commands, flags and numbers are never touched.
fn mistype(text: &str, rng: &mut impl Rng) -> String {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let long: Vec<usize> = (0..words.len())
        .filter(|&at| {
            words[at].len() >= 4 && words[at].bytes().all(|letter| letter.is_ascii_lowercase())
        })
        .collect();
    if let Some(&at) = long.choose(rng) {
        let mut letters: Vec<char> = words[at].chars().collect();
        // The first letter stays: it is the one that people hit.
        let place = rng.random_range(1..letters.len() - 1);
        if rng.random_bool(0.5) {
            letters.swap(place, place + 1);
        } else {
            letters.remove(place);
        }
        words[at] = letters.into_iter().collect();
    }
    words.join(" ")
}
