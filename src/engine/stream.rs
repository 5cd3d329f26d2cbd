//! Turns the bytes of tokens into text that may be shown at once.
//!
//! A token may end in the middle of a character, and a stop string may be spread over tokens. What
//! is not certain yet is held back, so a reader never sees half a character or the beginning of a
//! stop string that completes.

/// Text that may be shown, and whether the answer ends with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The text; may be empty.
    pub text: String,
    /// Whether a stop string was found right behind the text.
    pub stopped: bool,
}

/// The stream of one answer: bytes in, text out.
#[derive(Debug)]
pub struct TextStream {
    utf8: Utf8Stream,
    stops: StopFilter,
}

impl TextStream {
    /// Makes a stream that ends at the first of `stops` to be completed.
    pub fn new(stops: &[String]) -> Self {
        Self { utf8: Utf8Stream::default(), stops: StopFilter::new(stops) }
    }

    /// Takes the bytes of one token. After a piece with `stopped` the stream takes no more.
    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        let text = self.utf8.push(bytes);
        self.stops.push(&text)
    }

    /// Ends the stream and returns what was held back.
    ///
    /// An incomplete character becomes U+FFFD; the beginning of a stop string that did not complete
    /// is text like any other.
    pub fn finish(&mut self) -> Piece {
        let mut last = Piece::default();
        let tail = self.utf8.finish();
        if !tail.is_empty() {
            last = self.stops.push(&tail);
        }
        if !last.stopped {
            last.text.push_str(&self.stops.finish());
        }
        last
    }
}

/// Joins bytes to characters. What it returns over all calls equals
/// [`String::from_utf8_lossy`] of all the bytes, however they were split.
#[derive(Debug, Default)]
struct Utf8Stream {
    /// The beginning of a character whose end has not come yet: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut incomplete = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if chunks.peek().is_none() && may_continue(invalid) {
                incomplete = invalid.len();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - incomplete);
        text
    }

    fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Tells whether more bytes could make `bytes` a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// Finds stop strings in text that comes in pieces.
///
/// The first string to be completed ends the text (of several completed by the same character the
/// longest), so the result does not depend on how the text was split.
#[derive(Debug)]
struct StopFilter {
    stops: Vec<String>,
    /// The longest end of the text so far that a stop string begins with.
    held: String,
}

impl StopFilter {
    fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    fn push(&mut self, text: &str) -> Piece {
        self.held.push_str(text);
        if let Some(start) = self.first_stop() {
            self.held.truncate(start);
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let kept = self.held.split_off(self.held.len() - self.uncertain());
        Piece { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Returns where the stop string that is completed first begins.
    fn first_stop(&self) -> Option<usize> {
        let found = |stop: &String| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        };
        self.stops.iter().filter_map(found).min().map(|(_, start)| start)
    }

    /// Returns the bytes at the end of the held text that may be the beginning of a stop string.
    fn uncertain(&self) -> usize {
        let longest = |stop: &String| {
            let beginnings = stop.char_indices().map(|(end, _)| &stop[..end]).rev();
            beginnings.filter(|part| self.held.ends_with(part)).map(str::len).next()
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `bytes` split after the given positions and returns all text and whether it stopped.
    fn stream(bytes: &[u8], cuts: &[usize], stops: &[String]) -> (String, bool) {
        let mut stream = TextStream::new(stops);
        let mut text = String::new();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            let piece = stream.push(&bytes[start..end]);
            text.push_str(&piece.text);
            if piece.stopped {
                return (text, true);
            }
            start = end;
        }
        let last = stream.finish();
        text.push_str(&last.text);
        (text, last.stopped)
    }

    /// Adds one character after the other and looks for a completed stop string.
    fn reference(text: &str, stops: &[String]) -> (String, bool) {
        let mut seen = String::new();
        for character in text.chars() {
            seen.push(character);
            let done = stops.iter().filter(|stop| seen.ends_with(*stop)).map(String::len).max();
            if let Some(len) = done {
                seen.truncate(seen.len() - len);
                return (seen, true);
            }
        }
        (seen, false)
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_whole_text(text in any::<String>(), cuts in prop::collection::vec(any::<usize>(), 0..40)) {
            prop_assert_eq!(stream(text.as_bytes(), &cuts, &[]), (text, false));
        }

        #[test]
        fn invalid_bytes_become_replacement_characters_wherever_they_are_split(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xe2), Just(0x82), Just(0xf0), Just(0x9f)], 0..40),
            cuts in prop::collection::vec(any::<usize>(), 0..40),
        ) {
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert_eq!(stream(&bytes, &cuts, &[]), (whole, false));
        }

        #[test]
        fn stop_strings_are_found_wherever_the_text_is_split(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<usize>(), 0..24),
        ) {
            prop_assert_eq!(stream(text.as_bytes(), &cuts, &stops), reference(&text, &stops));
        }
    }

    #[test]
    fn nothing_of_a_stop_string_is_shown_before_it_is_certain() {
        let mut stream = TextStream::new(&["</end>".into()]);
        assert_eq!(stream.push(b"done <"), Piece { text: "done ".into(), stopped: false });
        assert_eq!(stream.push(b"/en"), Piece::default());
        assert_eq!(stream.push(b"d> more"), Piece { text: String::new(), stopped: true });

        let mut stream = TextStream::new(&["</end>".into()]);
        assert_eq!(stream.push(b"a </en").text, "a ");
        assert_eq!(stream.push(b"try").text, "</entry", "no stop string after all");
        assert_eq!(stream.push(b" </").text, " ");
        assert_eq!(stream.finish().text, "</", "the end of the answer settles it");
    }

    #[test]
    fn an_unfinished_character_is_held_back_and_then_replaced() {
        let euro = "€".as_bytes();
        let mut stream = TextStream::new(&[]);
        assert_eq!(stream.push(&euro[..1]).text, "");
        assert_eq!(stream.push(&euro[1..2]).text, "");
        assert_eq!(stream.push(&euro[2..]).text, "€");
        assert_eq!(stream.push(&euro[..2]).text, "");
        assert_eq!(stream.finish().text, "\u{fffd}");
    }
}
