//! Short plain passages for variety of language, read from the shared data where it is present.

use std::fs;
use std::path::Path;

use serde::Deserialize;

/// The longest passage, in bytes: a few hundred tokens of the small vocabulary.
const MAX_PASSAGE: usize = 500;
/// Shorter passages are headings and fragments.
const MIN_PASSAGE: usize = 60;
/// The most passages of one file, so that no source drowns the others.
const MAX_OF_ONE_SOURCE: usize = 4_000;

/// Beginnings of words that a polite assistant does not learn; the chats have a few.
const COARSE: [&str; 12] = [
    "fuck", "shit", "bitch", "damn", "crap", "asshole", "sex", "porn", "rape", "nigg", "whore",
    "kill",
];

/// Reads passages of plain English from `shared/data`; a file that is absent or unreadable gives none.
pub fn open_text(shared: &Path) -> Vec<String> {
    let read = |name: &str| fs::read_to_string(shared.join("data").join(name)).unwrap_or_default();
    let sources = [
        markdown(&read("rust_book.md")),
        self_dialogues(&read("self_dialogue.jsonl")),
        chatterbot(&read("chatterbot_english.yml")),
        tldr(&read("tldr_en.md")),
    ];
    sources
        .into_iter()
        .flat_map(|passages| {
            passages
                .into_iter()
                .filter_map(|text| clean(&text))
                .filter(|text| (MIN_PASSAGE..=MAX_PASSAGE).contains(&text.len()))
                .take(MAX_OF_ONE_SOURCE)
        })
        .collect()
}

/// Takes the paragraphs of prose: no headings, code, lists, tables or markup.
fn markdown(text: &str) -> Vec<String> {
    let mut passages = Vec::new();
    let (mut paragraph, mut in_code) = (String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let prose = !in_code && line.starts_with(|first: char| first.is_ascii_alphabetic());
        if prose {
            paragraph.push_str(line);
            paragraph.push(' ');
        } else if !paragraph.is_empty() {
            passages.push(std::mem::take(&mut paragraph));
        }
    }
    passages.push(paragraph);
    // Links, tables and quoted markup would teach syntax that the model never needs.
    // A passage that ends in the middle went on in a list or in code.
    passages.retain(|passage| {
        !passage.contains(['[', '<', '|', '{', '#', '*', '_']) && passage.trim_end().ends_with('.')
    });
    passages
}

/// Joins the turns of a chat into one passage, as many whole turns as fit.
fn self_dialogues(text: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct Chat {
        turns: Vec<String>,
    }
    let join = |chat: Chat| {
        let mut passage = String::new();
        for turn in &chat.turns {
            if passage.len() + turn.len() >= MAX_PASSAGE {
                break;
            }
            passage.push_str(turn);
            passage.push(' ');
        }
        passage
    };
    // Every third chat: the file is sorted by topic.
    text.lines().step_by(3).filter_map(|line| serde_json::from_str(line).ok()).map(join).collect()
}

/// Joins question and answer of each pair.
fn chatterbot(text: &str) -> Vec<String> {
    let mut passages: Vec<String> = Vec::new();
    for line in text.lines() {
        if let Some(first) = line.strip_prefix("- - ") {
            passages.push(format!("{first} "));
        } else if let (Some(next), Some(passage)) = (line.strip_prefix("  - "), passages.last_mut())
        {
            passage.push_str(next);
            passage.push(' ');
        }
    }
    passages
}

/// Takes what a command does, without the command lines.
fn tldr(text: &str) -> Vec<String> {
    let mut passages = Vec::new();
    let mut passage = String::new();
    for line in text.lines() {
        if line.starts_with("# ") {
            passages.push(std::mem::take(&mut passage));
        }
        let said = line
            .strip_prefix("> ")
            .or_else(|| line.strip_prefix("- ").and_then(|item| item.strip_suffix(':')));
        if let Some(said) = said.filter(|said| !said.contains("<http")) {
            // [n]ame marks a letter of a flag.
            passage.push_str(&said.replace(['[', ']', '`'], ""));
            passage.push_str(if said.ends_with('.') { " " } else { ". " });
        }
    }
    passages.push(passage);
    passages
}

/// Maps typographic characters to ASCII and joins white space; `None` when other characters remain or
/// a word is coarse.
fn clean(text: &str) -> Option<String> {
    let text: String = text
        .chars()
        .map(|letter| match letter {
            '\u{2018}' | '\u{2019}' => '\'',
            '\u{201c}' | '\u{201d}' => '"',
            '\u{2013}' | '\u{2014}' => '-',
            '\u{a0}' => ' ',
            other => other,
        })
        .filter(|letter| *letter != '`')
        .collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ").replace('\u{2026}', "...");
    let lower = text.to_ascii_lowercase();
    let coarse = lower.split(' ').any(|word| COARSE.iter().any(|start| word.starts_with(start)));
    (text.is_ascii() && !coarse).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_shared_folder_gives_no_text() {
        assert!(open_text(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn passages_are_short_ascii_prose() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let book = "# Title\n\nRust\u{2019}s standard library has a great number of useful\ntypes, and `Vec` is one of them.\n\n```\nlet x = 1;\n```\n";
        fs::write(data.join("rust_book.md"), book).unwrap();
        let chat = r#"{"topic": "a", "turns": ["have you seen the new film about the sea?", "yes, i liked it a lot!"]}"#;
        fs::write(data.join("self_dialogue.jsonl"), chat).unwrap();
        let expected = [
            "Rust's standard library has a great number of useful types, and Vec is one of them.",
            "have you seen the new film about the sea? yes, i liked it a lot!",
        ];
        assert_eq!(open_text(folder.path()), expected);
    }

    #[test]
    fn a_tldr_page_becomes_its_descriptions() {
        let page = "# am\n\n> Android activity manager.\n> More information: <https://x>.\n\n- Start the [a]ctivity:\n\n`am start`\n";
        assert_eq!(tldr(page).concat(), "Android activity manager. Start the activity. ");
    }
}
