//! Dialogues in which the user tells a new name and asks for it: they train the model to copy from its context.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::augment::capitalised;
use super::{Dialogue, Turn};

const NOUNS: [&str; 52] = [
    "dog",
    "cat",
    "horse",
    "car",
    "boat",
    "house",
    "street",
    "school",
    "team",
    "company",
    "project",
    "product",
    "town",
    "village",
    "brother",
    "sister",
    "friend",
    "boss",
    "teacher",
    "neighbour",
    "doctor",
    "son",
    "daughter",
    "build server",
    "staging host",
    "test server",
    "ci machine",
    "database",
    "backup server",
    "printer",
    "laptop",
    "main branch",
    "release branch",
    "wiki",
    "chat room",
    "release manager",
    "team lead",
    "package registry",
    "cluster",
    "bot",
    "robot",
    "meeting room",
    "mascot",
    "customer",
    "supplier",
    "monorepo",
    "dashboard",
    "mail server",
    "vpn",
    "gateway",
    "deploy script",
    "newsletter",
];
const STATEMENTS: [&str; 8] = [
    "{our} {noun} is called {name}",
    "the name of {our} {noun} is {name}",
    "{our} {noun} is named {name}",
    "remember: {our} {noun} is called {name}",
    "note that {our} {noun} is called {name}",
    "we call {our} {noun} {name}",
    "please remember that {our} {noun} is called {name}",
    "{name} is the name of {our} {noun}",
];
const QUESTIONS: [&str; 8] = [
    "what is {our} {noun} called",
    "how is {our} {noun} called",
    "what is the name of {our} {noun}",
    "tell me the name of {our} {noun}",
    "what do we call {our} {noun}",
    "do you know the name of {our} {noun}",
    "name of {our} {noun}",
    "which name does {our} {noun} have",
];
const NUMBERS: [&str; 8] = [
    "pin",
    "room number",
    "phone number",
    "door code",
    "lucky number",
    "desk number",
    "customer number",
    "favourite number",
];
/// The answer to what the user has not told; unknown.toml gives the same for private matters.
pub const NOT_TOLD: &str = "I do not know that yet. You can teach me with /fix.";

/// Draws a dialogue of one to three turns; the asked name was told in the same turn or before.
pub fn dialogue(rng: &mut impl Rng) -> Dialogue {
    match rng.random_range(0..10) {
        0..3 => vec![same_turn(rng)],
        3..5 => later_turn(rng),
        5 => another_thing(rng),
        6 => two_names(rng),
        7 => own_name(rng),
        8 => vec![number(rng)],
        _ => vec![repeat(rng)],
    }
}

/// A thing of the user with a made-up name.
struct Named {
    our: &'static str,
    noun: &'static str,
    name: String,
}

impl Named {
    fn draw(rng: &mut impl Rng) -> Self {
        Self { our: pick(&["my", "our"], rng), noun: pick(&NOUNS, rng), name: made_up_name(rng) }
    }

    fn fill(&self, template: &str) -> String {
        template
            .replace("{our}", self.our)
            .replace("{noun}", self.noun)
            .replace("{name}", &self.name)
    }

    fn statement(&self, rng: &mut impl Rng) -> String {
        cased(&self.fill(pick(&STATEMENTS, rng)), rng)
    }

    fn question(&self, rng: &mut impl Rng) -> String {
        let text = cased(&self.fill(pick(&QUESTIONS, rng)), rng);
        text + pick(&["?", "?", ""], rng)
    }

    fn answer(&self) -> String {
        self.fill("Your {noun} is called {name}.")
    }

    fn told(&self, rng: &mut impl Rng) -> Turn {
        let user = self.statement(rng) + pick(&[".", "", "!"], rng);
        Turn { user, assistant: format!("Okay. {}", self.answer()) }
    }
}

fn same_turn(rng: &mut impl Rng) -> Turn {
    let named = Named::draw(rng);
    let user = format!("{}. {}", named.statement(rng), named.question(rng));
    Turn { user, assistant: named.answer() }
}

fn later_turn(rng: &mut impl Rng) -> Dialogue {
    let named = Named::draw(rng);
    vec![named.told(rng), Turn { user: named.question(rng), assistant: named.answer() }]
}

/// Two names are told and one is asked for, so that the last name is not always the answer.
fn two_names(rng: &mut impl Rng) -> Dialogue {
    let first = Named::draw(rng);
    let mut second = Named::draw(rng);
    while second.noun == first.noun {
        second = Named::draw(rng);
    }
    let asked = if rng.random_bool(0.5) { &first } else { &second };
    if rng.random_bool(0.5) {
        let user =
            format!("{}. {}. {}", first.statement(rng), second.statement(rng), asked.question(rng));
        return vec![Turn { user, assistant: asked.answer() }];
    }
    let question = Turn { user: asked.question(rng), assistant: asked.answer() };
    vec![first.told(rng), second.told(rng), question]
}

/// One name is told and another thing is asked for: the told name must not be given.
fn another_thing(rng: &mut impl Rng) -> Dialogue {
    let told = Named::draw(rng);
    let mut asked = Named::draw(rng);
    while asked.noun == told.noun {
        asked = Named::draw(rng);
    }
    let question = Turn { user: asked.question(rng), assistant: NOT_TOLD.to_owned() };
    vec![told.told(rng), question]
}

fn own_name(rng: &mut impl Rng) -> Dialogue {
    let name = made_up_name(rng);
    let statement = pick(
        &["my name is ", "i am called ", "call me ", "hi, my name is ", "you can call me "],
        rng,
    );
    let question = pick(
        &["what is my name", "do you know my name", "what am i called", "tell me my name"],
        rng,
    );
    let told = Turn {
        user: cased(statement, rng) + &name,
        assistant: format!("Nice to meet you, {name}."),
    };
    if rng.random_bool(0.3) {
        return vec![told];
    }
    let user = cased(question, rng) + pick(&["?", ""], rng);
    vec![told, Turn { user, assistant: format!("Your name is {name}.") }]
}

fn number(rng: &mut impl Rng) -> Turn {
    let noun = pick(&NUMBERS, rng);
    let value = rng.random_range(10..100_000);
    let user = format!("{}. what is my {noun}?", cased(&format!("my {noun} is {value}"), rng));
    Turn { user, assistant: format!("Your {noun} is {value}.") }
}

fn repeat(rng: &mut impl Rng) -> Turn {
    let name = made_up_name(rng);
    let user = cased(
        pick(&["say ", "repeat ", "repeat after me: ", "say the word ", "please say "], rng),
        rng,
    );
    Turn { user: user + &name, assistant: format!("{name}.") }
}

/// Makes a name of two or three syllables, such as `Torvak`; some have a number, as machines do, some are lower case.
fn made_up_name(rng: &mut impl Rng) -> String {
    const ONSETS: [&str; 30] = [
        "b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n",
        "p", "pr", "qu", "r", "s", "sh", "st", "t", "tr", "v", "w", "z", "",
    ];
    const VOWELS: [&str; 10] = ["a", "e", "i", "o", "u", "ai", "ee", "ou", "y", "ia"];
    const CODAS: [&str; 14] = ["", "", "", "", "n", "r", "s", "l", "k", "m", "x", "th", "ck", "nd"];
    let mut name = String::new();
    for _ in 0..rng.random_range(2..4) {
        name.push_str(pick(&ONSETS, rng));
        name.push_str(pick(&VOWELS, rng));
        name.push_str(pick(&CODAS, rng));
    }
    match rng.random_range(0..10) {
        0 => name,
        1 => format!("{name}-{:02}", rng.random_range(1..100)),
        2 => format!("{}{}", capitalised(&name), rng.random_range(1..10)),
        _ => capitalised(&name),
    }
}

fn cased(text: &str, rng: &mut impl Rng) -> String {
    if rng.random_bool(0.5) { capitalised(text) } else { text.to_owned() }
}

fn pick(list: &[&'static str], rng: &mut impl Rng) -> &'static str {
    list.choose(rng).copied().unwrap_or_default()
}
