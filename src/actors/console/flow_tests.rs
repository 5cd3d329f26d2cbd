use proptest::prelude::*;

use super::*;

/// What a screen shows after these chunks.
fn screen(chunks: &[String]) -> String {
    chunks.concat()
}

fn streamed(wrap: Wrap, pieces: &[&str]) -> String {
    let mut flow = Flow::new(wrap);
    let mut chunks: Vec<String> = pieces.iter().flat_map(|piece| flow.piece(piece)).collect();
    chunks.extend(flow.end());
    screen(&chunks)
}

#[test]
fn words_are_never_torn_by_pieces() {
    let shown = streamed(Wrap::Words(10), &["The qu", "ick bro", "wn fox ju", "mps."]);
    assert_eq!(shown, "The quick\nbrown fox\njumps.\n");
}

#[test]
fn a_word_longer_than_the_screen_is_broken_at_its_edge() {
    assert_eq!(
        streamed(Wrap::Words(8), &["aaaaaaaaaaaaaaaaaaaa b"]),
        "aaaaaaaa\naaaaaaaa\naaaa b\n"
    );
}

#[test]
fn wide_characters_count_two_columns_and_break_anywhere() {
    assert_eq!(streamed(Wrap::Words(9), &["世界世界世界"]), "世界世界\n世界\n");
    assert_eq!(streamed(Wrap::Words(8), &["👩\u{200d}🔬👩\u{200d}🔬"]).lines().count(), 1);
}

#[test]
fn indents_and_empty_lines_stay() {
    assert_eq!(streamed(Wrap::Words(20), &["a\n\n\tb\n  c"]), "a\n\n    b\n  c\n");
}

#[test]
fn a_notice_in_the_middle_closes_the_line_and_the_answer_goes_on() {
    let mut flow = Flow::new(Wrap::Words(40));
    let mut chunks = flow.piece("The answer is for");
    assert!(flow.is_open());
    chunks.extend(flow.lines("Job 3 started."));
    assert!(!flow.is_open());
    chunks.extend(flow.piece("ty-two, of course."));
    chunks.extend(flow.end());
    assert_eq!(screen(&chunks), "The answer is\nJob 3 started.\nforty-two, of course.\n");
}

#[test]
fn a_notice_of_several_lines_keeps_its_empty_ones() {
    let mut flow = Flow::new(Wrap::Words(20));
    assert_eq!(flow.lines("a\n\nb\n"), ["a\n", "\n", "b\n"]);
    assert_eq!(flow.lines(""), ["\n"]);
    assert_eq!(flow.lines("one two three four five six"), ["one two three four\n", "five six\n"]);
}

#[test]
fn another_width_closes_the_open_line() {
    let mut flow = Flow::new(Wrap::for_terminal(80, true));
    let mut chunks = flow.piece("some words and ");
    chunks.extend(flow.rewrap(Wrap::for_terminal(50, true)));
    assert!(flow.rewrap(Wrap::for_terminal(50, true)).is_empty());
    chunks.extend(flow.piece("more"));
    chunks.extend(flow.end());
    assert_eq!(screen(&chunks), "some words and\nmore\n");
}

#[test]
fn a_pipe_gets_the_text_as_it_is() {
    assert_eq!(streamed(Wrap::Never, &["a  b\t", "c \n", " d"]), "a  b\tc \n d\n");
    assert_eq!(streamed(Wrap::Never, &[]), "");
}

fn wraps() -> impl Strategy<Value = Wrap> {
    (8_usize..60, any::<bool>())
        .prop_map(|(limit, words)| if words { Wrap::Words(limit) } else { Wrap::Hard(limit) })
}

proptest! {
    #[test]
    fn no_line_reaches_the_edge_however_the_text_is_cut(
        wrap in wraps(),
        pieces in prop::collection::vec("[a-z世🦀é \n]{0,30}", 0..12),
    ) {
        let mut flow = Flow::new(wrap);
        let mut chunks = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            chunks.extend(flow.piece(piece));
            if index % 4 == 3 {
                chunks.extend(flow.lines("a notice in between"));
            }
        }
        chunks.extend(flow.end());
        for chunk in &chunks {
            prop_assert!(!chunk.is_empty());
            prop_assert!(!chunk.trim_end_matches('\n').contains('\n'));
        }
        for line in screen(&chunks).lines() {
            prop_assert!(line.width() <= wrap.limit(), "{line:?}");
        }
    }

    #[test]
    fn no_letter_is_lost_and_pieces_do_not_matter(
        wrap in wraps(),
        pieces in prop::collection::vec("[a-z世 \n]{0,20}", 0..8),
    ) {
        let parts: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let whole = pieces.concat();
        let shown = streamed(wrap, &parts);
        prop_assert_eq!(&shown, &streamed(wrap, &[&whole]));
        let letters = |text: &str| text.split_whitespace().collect::<String>();
        prop_assert_eq!(letters(&shown), letters(&whole));
    }
}
