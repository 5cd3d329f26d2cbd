//! Text of others made safe for a terminal and for a log.

use std::borrow::Cow;

/// Removes what could steer a terminal or reorder a line: C0 and C1 controls with their escape sequences, and the
/// controls of bidirectional text. Keeps `\n` and `\t`.
///
/// A sequence that is split over two calls loses only its escape character in the first: what follows is then plain
/// text, never a command to the terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => skip_escape(&mut rest),
            '\u{9b}' => skip_csi(&mut rest),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => skip_string(&mut rest),
            c if is_printable(c) => clean.push(c),
            _ => {}
        }
    }
    Cow::Owned(clean)
}

/// Like [`printable`], on one line: line breaks and tabs become spaces.
pub fn printable_line(text: &str) -> String {
    printable(text).chars().map(|c| if matches!(c, '\n' | '\t') { ' ' } else { c }).collect()
}

/// Writes what could steer a terminal inside of a JSON text as `\u…`, which means the same: JSON leaves C1 controls and those
/// of bidirectional text as they are.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let harmless = is_printable;
    if json.chars().all(harmless) {
        return Cow::Borrowed(json);
    }
    let mut clean = String::with_capacity(json.len());
    for c in json.chars() {
        if harmless(c) {
            clean.push(c);
        } else {
            // All of them lie in the basic plane.
            clean.push_str(&format!("\\u{:04x}", u32::from(c)));
        }
    }
    Cow::Owned(clean)
}

/// Cuts a text to at most `limit` characters, the last of them "…" if something is missing.
pub fn shortened(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Draws `value` of `whole` in at most `columns` eighths of blocks, padded to `columns`.
pub fn bar(value: f64, whole: f64, columns: usize) -> String {
    const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let share =
        if whole > 0.0 && value.is_finite() { (value / whole).clamp(0.0, 1.0) } else { 0.0 };
    let eighths = (share * columns as f64 * 8.0).round() as usize;
    let mut text = "█".repeat(eighths / 8);
    text.extend((eighths % 8).checked_sub(1).map(|rest| EIGHTHS[rest]));
    let drawn = text.chars().count();
    text.push_str(&" ".repeat(columns - drawn));
    text
}

/// Says time and memory in one short line: `40 s, 1.3 GiB`.
pub fn need(ms: u64, bytes: u64) -> String {
    /// Milliseconds in a second, seconds in a minute and in an hour, bytes in a MiB and in a GiB.
    const UNITS: [f64; 5] = [1e3, 60.0, 3600.0, 1_048_576.0, 1_073_741_824.0];
    let (seconds, bytes) = (ms as f64 / UNITS[0], bytes as f64);
    let time = match seconds {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 2.0 * UNITS[1] => format!("{s:.0} s"),
        s if s < 2.0 * UNITS[2] => format!("{:.0} min", s / UNITS[1]),
        s => format!("{:.1} h", s / UNITS[2]),
    };
    let memory = match bytes {
        b if b < UNITS[4] => format!("{:.0} MiB", b / UNITS[3]),
        b => format!("{:.1} GiB", b / UNITS[4]),
    };
    format!("{time}, {memory}")
}

/// Returns a span of time in one unit, rounded to nearest.
pub fn duration(ms: u64) -> String {
    let seconds = (ms + 500) / 1000;
    match seconds {
        0 if ms > 0 => format!("{ms} ms"),
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", (s + 30) / 60),
        s => format!("{} h", (s + 1800) / 3600),
    }
}

/// Says a number of bytes in a few characters: `512 B`, `12 KiB`, `5.4 MiB`, `1.3 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    /// Of one unit in the next smaller one.
    const STEP: f64 = 1024.0;
    if count < STEP as u64 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / STEP, 0);
    while value >= STEP && unit + 1 < UNITS.len() {
        (value, unit) = (value / STEP, unit + 1);
    }
    if value < 9.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

fn is_printable(c: char) -> bool {
    if matches!(c, '\n' | '\t') {
        return true;
    }
    let reorders = matches!(c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    // Line and paragraph separator, and the byte order mark, are invisible breaks.
    let invisible = matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    !c.is_control() && !reorders && !invisible
}

type Rest<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Skips what follows ESC (ECMA-48, 5.3): a control sequence, a control string, or one final character.
fn skip_escape(rest: &mut Rest<'_>) {
    match rest.peek() {
        Some('[') => {
            rest.next();
            skip_csi(rest);
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            rest.next();
            skip_string(rest);
        }
        _ => {
            while rest.next_if(|c| matches!(c, ' '..='/')).is_some() {}
            rest.next_if(|c| matches!(c, '0'..='~'));
        }
    }
}

/// Skips parameters, intermediates and the final character of a control sequence.
fn skip_csi(rest: &mut Rest<'_>) {
    while rest.next_if(|c| matches!(c, ' '..='?')).is_some() {}
    rest.next_if(|c| matches!(c, '@'..='~'));
}

/// Skips a control string up to its end (BEL or ST), or to the end of the line: a forgotten end must not eat an answer.
fn skip_string(rest: &mut Rest<'_>) {
    while let Some(c) = rest.next_if(|&c| c != '\n') {
        match c {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' => {
                rest.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_text_is_untouched() {
        let text = "Grüße,\n\tκόσμε 🦀 [0m 100 %";
        assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
    }

    #[test]
    fn time_and_memory_are_one_short_line() {
        for (ms, bytes, text) in [
            (1_240, 90 << 20, "1.2 s, 90 MiB"),
            (40_400, 1_400_000_000, "40 s, 1.3 GiB"),
            (600_000, 1 << 30, "10 min, 1.0 GiB"),
            (9_000_000, 1 << 34, "2.5 h, 16.0 GiB"),
        ] {
            assert_eq!(need(ms, bytes), text);
        }
    }

    #[test]
    fn escape_sequences_go_with_their_parameters() {
        for (dirty, clean) in [
            ("a\u{1b}[31mred\u{1b}[0m", "ared"),
            ("\u{1b}]0;title\u{7}x", "x"),
            ("\u{1b}]8;;http://x\u{1b}\\link", "link"),
            ("\u{1b}Pq#0\u{9c}x", "x"),
            ("\u{9b}2Jx", "x"),
            ("\u{1b}(Bx\u{1b}cy", "xy"),
            ("bell\u{7} back\u{8} del\u{7f} cr\r.", "bell back del cr."),
            ("user\u{202e}txt.exe\u{2069}", "usertxt.exe"),
            ("\u{1b}]0;never closed\nnext line", "\nnext line"),
            ("\u{1b}", ""),
        ] {
            assert_eq!(printable(dirty), clean, "{dirty:?}");
        }
    }

    #[test]
    fn one_line_stays_one_line() {
        assert_eq!(printable_line("a\nb\tc\u{1b}[2Jd"), "a b cd");
    }

    #[test]
    fn json_means_the_same_and_steers_nothing() {
        let text = "a\u{9b}2Jb\u{7f}c\u{202e}d\u{1b}[31m ü 🦀\n";
        let json = serde_json::to_string(text).unwrap();
        let clean = printable_json(&json);
        assert!(clean.chars().all(is_printable), "{clean:?}");
        assert_eq!(serde_json::from_str::<String>(&clean).unwrap(), text);
        assert!(matches!(printable_json("{\"a\": \"ü\"}"), Cow::Borrowed(_)));
    }

    #[test]
    fn shortened_counts_characters() {
        assert_eq!(shortened("äöü", 3), "äöü");
        assert_eq!(shortened("äöüß", 3), "äö…");
    }

    proptest! {
        #[test]
        fn nothing_that_steers_a_terminal_is_left(text in ".*") {
            let clean = printable(&text).into_owned();
            prop_assert!(clean.chars().all(is_printable));
            prop_assert_eq!(printable(&clean).into_owned(), clean.clone());
        }
    }
}
