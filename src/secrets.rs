//! Secrets in texts: keys and passwords that were pasted into a chat and must be neither stored nor learned.
//!
//! What is looked for is in [`rules`]. A secret is replaced by `[REDACTED:rule]`, so that whoever reads the text later
//! sees that something was there, and what.

mod rules;

use std::ops::Range;
use std::sync::LazyLock;

use regex::{Regex, RegexSet};

use self::rules::{RULES, Rule};

/// What stands before and behind the rule's name in the place of a secret.
const MARKER: (&str, &str) = ("[REDACTED:", "]");

/// Bits per character below which a match is a placeholder: "xxxxxxxx", not a key. gitleaks uses the same bound.
const MIN_ENTROPY: f64 = 3.0;

/// Changes between letters and digits that what was drawn has at least.
const MIXED: usize = 2;

/// What a placeholder of documentation ends in, as `AKIA…EXAMPLE`.
const EXAMPLE: &str = "EXAMPLE";

/// A secret in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The rule that found it.
    pub rule: &'static str,
    /// Where it is, in bytes.
    pub range: Range<usize>,
}

struct Compiled {
    /// One pass that tells which rules are worth a second look: nearly always none.
    set: RegexSet,
    each: Vec<Regex>,
}

static COMPILED: LazyLock<Compiled> = LazyLock::new(|| {
    let patterns = || RULES.iter().map(|rule| rule.pattern);
    #[expect(clippy::expect_used, reason = "the patterns are constants, and a test compiles them")]
    Compiled {
        set: RegexSet::new(patterns()).expect("the rules are sound"),
        each: patterns().map(|p| Regex::new(p).expect("the rules are sound")).collect(),
    }
});

/// Finds the secrets in a text, in their order; of two that overlap the one that begins first.
pub fn scan(text: &str) -> Vec<Hit> {
    let mut hits: Vec<Hit> = Vec::new();
    for index in &COMPILED.set.matches(text) {
        let rule = &RULES[index];
        for captures in COMPILED.each[index].captures_iter(text) {
            // A group, where a rule has one, is the secret inside of what it is recognised by.
            let groups = (1..captures.len()).find_map(|group| captures.get(group));
            let found = groups.or_else(|| captures.get(0));
            hits.extend(
                found
                    .filter(|m| is_secret(rule, m.as_str()))
                    .map(|m| Hit { rule: rule.id, range: m.range() }),
            );
        }
    }
    hits.sort_by_key(|hit| (hit.range.start, usize::MAX - hit.range.end));
    let mut end = 0;
    hits.retain(|hit| {
        let free = hit.range.start >= end;
        if free {
            end = hit.range.end;
        }
        free
    });
    hits
}

/// Replaces the secrets of a text; returns the new text and the rules that found them, or `None` if there is none.
pub fn redact(text: &str) -> Option<(String, Vec<&'static str>)> {
    let hits = scan(text);
    if hits.is_empty() {
        return None;
    }
    let mut clean = String::with_capacity(text.len());
    let mut from = 0;
    for hit in &hits {
        clean.push_str(&text[from..hit.range.start]);
        clean.push_str(MARKER.0);
        clean.push_str(hit.rule);
        clean.push_str(MARKER.1);
        from = hit.range.end;
    }
    clean.push_str(&text[from..]);
    Some((clean, hits.into_iter().map(|hit| hit.rule).collect()))
}

/// Returns the rules whose secrets were replaced in a text, in their order.
pub fn redacted(text: &str) -> Vec<&'static str> {
    let after = text.split(MARKER.0).skip(1);
    let names = after.filter_map(|rest| rest.split_once(MARKER.1).map(|(name, _)| name));
    names.filter_map(|name| RULES.iter().map(|rule| rule.id).find(|id| *id == name)).collect()
}

/// Returns where the format of a rule's secrets is described.
pub fn source(rule: &str) -> Option<&'static str> {
    RULES.iter().find(|known| known.id == rule).map(|known| known.source)
}

/// Tells a secret from the placeholder of an example.
fn is_secret(rule: &Rule, text: &str) -> bool {
    if rule.placeholders.iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return false;
    }
    // Words joined by hyphens have numbers between them more often.
    let least = if text.contains('-') { 2 * MIXED } else { MIXED };
    if rule.mixed && changes(text) < least {
        return false;
    }
    !text.ends_with(EXAMPLE) && entropy(text) >= rule.min_entropy.unwrap_or(MIN_ENTROPY)
}

/// Counts how often letters and digits follow each other in a text, whatever stands between them.
fn changes(text: &str) -> usize {
    let kinds: Vec<bool> =
        text.bytes().filter(u8::is_ascii_alphanumeric).map(|b| b.is_ascii_digit()).collect();
    kinds.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

/// Shannon's entropy of the characters of a text, in bits per character.
fn entropy(text: &str) -> f64 {
    let mut counts = std::collections::HashMap::new();
    text.chars().for_each(|c| *counts.entry(c).or_insert(0_u32) += 1);
    let total: f64 = counts.values().map(|&n| f64::from(n)).sum();
    counts.values().map(|&n| f64::from(n) / total).map(|share| -share * share.log2()).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::rules::tests::{filler, samples};
    use super::*;

    #[test]
    fn what_stands_around_a_secret_stays() {
        let key = format!("ghp_{}", filler(36));
        let text = format!("push with {key}, then {key}.");
        let (clean, rules) = redact(&text).unwrap();
        assert_eq!(clean, "push with [REDACTED:github-token], then [REDACTED:github-token].");
        assert_eq!(rules, ["github-token", "github-token"]);
        assert_eq!(redacted(&clean), rules);
        assert_eq!(redact(&clean), None, "what was redacted is clean");
    }

    #[test]
    fn only_the_password_of_an_address_goes() {
        let text = "git clone https://bob:hunter2seven@git.firm.net/x.git";
        let (clean, _) = redact(text).unwrap();
        assert_eq!(clean, "git clone https://bob:[REDACTED:url-password]@git.firm.net/x.git");
    }

    #[test]
    fn what_a_secret_is_assigned_to_stays() {
        for (text, clean) in [
            ("password=hunter2seven", "password=[REDACTED:assigned-secret]"),
            ("{\"api_key\": \"a1b2c3d4e5f6\"}", "{\"api_key\": \"[REDACTED:assigned-secret]\"}"),
            ("DB_PASSWORD: Tr0ub4dor\n", "DB_PASSWORD: [REDACTED:assigned-secret]\n"),
            ("token: ghp_kQ7xW2mR9tZ4pL8vB3nJ6hY5cD1fG0sAkQ7x", "token: [REDACTED:github-token]"),
            ("mysql --password hunter2seven x", "mysql --password [REDACTED:assigned-secret] x"),
            ("DB_PASS=hunter2seven", "DB_PASS=[REDACTED:assigned-secret]"),
            ("my password: hunter2seven.\n", "my password: [REDACTED:assigned-secret].\n"),
            ("?token=q1w2e3r4t5&x=1", "?token=[REDACTED:assigned-secret]&x=1"),
        ] {
            assert_eq!(redact(text).unwrap().0, clean);
        }
    }

    #[test]
    fn a_marker_that_somebody_typed_is_no_redaction() {
        assert!(redacted("[REDACTED:nothing] [REDACTED:").is_empty());
    }

    #[test]
    fn ordinary_texts_hold_no_secret() {
        for text in [
            "What is a SHA-256? e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "commit 4969646a1b2c3d4e5f60718293a4b5c6d7e8f901, uuid 550e8400-e29b-41d4-a716-446655440000",
            "export AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE",
            "token = \"ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"",
            "postgres://user:password@localhost/db and https://host:8080/@me and http://a/b:c@d",
            "password: correcthorse, token: String, secret = load_secret_2(path), api_key: Option<Key2>",
            "fn f(token: uint64_t, key: u8, secret_key: bytes32Array) { let token = parse_token2; }",
            "private_key: Ed25519PrivateKey,\ntoken: Base64Url,\ntoken = input_ids_0\napi_key = api_key_2",
            "auth_key=AES256-GCM\nexistingSecret: redis-auth-v1\nsecret: db-credentials-v2\npwd: project-2024",
            "password = password1 and password=changeme123; token = \"next_token2\", secret: chapter-12\nsecret: k8s-secret-name1",
            "let token: TokenKind2<'a> = next; the secret: practise twice a day",
            "max_tokens=1024, tokens: 128000000, password = \"<your password 1>\"",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPq1 a public key",
            "-----BEGIN PUBLIC KEY----- MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE",
        ] {
            assert_eq!(scan(text), [], "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_redacted_twice_and_none_makes_it_fall(before in ".{0,40}", after in ".{0,40}", n in 0_usize..1000) {
            let samples = samples();
            let text = format!("{before} {} {after}", samples[n % samples.len()].1);
            let clean = redact(&text).map_or(text, |(clean, _)| clean);
            prop_assert_eq!(redact(&clean), None);
        }
    }
}
