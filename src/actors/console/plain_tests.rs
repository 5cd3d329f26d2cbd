use std::io::Cursor;

use super::*;
use crate::actors::console::prompt::JobStatus;

/// What the reader makes of an input: texts, and problems with a leading "!".
fn lines(input: &[u8]) -> Vec<String> {
    let mut reader = Cursor::new(input.to_vec());
    let mut lines = Vec::new();
    for number in 1.. {
        match read_line(&mut reader, number).expect("memory can be read") {
            Some(Event::Line { text, .. }) => lines.push(text),
            Some(Event::Unreadable { problem, .. }) => lines.push(format!("!{problem}")),
            Some(other) => panic!("{other:?}"),
            None => break,
        }
    }
    lines
}

#[test]
fn one_line_is_one_input_with_every_line_ending() {
    assert_eq!(lines(b"a\nb\r\n\n c"), ["a", "b", "", " c"]);
    assert_eq!(lines("\u{feff}first\n".as_bytes()), ["first"]);
    assert!(lines(b"").is_empty());
}

#[test]
fn an_endless_line_is_skipped_and_the_next_one_read() {
    let mut input = vec![b'x'; MAX_LINE_BYTES + 10];
    input.extend_from_slice(b"\nnext\n");
    let got = lines(&input);
    assert!(got[0].starts_with("!line 1 of the input has more than 1048576 bytes"), "{}", got[0]);
    assert_eq!(got[1..], ["next"]);
    let mut fits = vec![b'x'; MAX_LINE_BYTES];
    fits.push(b'\n');
    assert_eq!(lines(&fits)[0].len(), MAX_LINE_BYTES);
}

#[test]
fn a_line_that_is_no_text_is_skipped_and_the_next_one_read() {
    let got = lines(b"ok\nab\xff\xfe\nnext");
    assert_eq!(got[1], "!line 2 of the input is not UTF-8 (byte 3) and was skipped: convert it");
    assert_eq!((got[0].as_str(), got[2].as_str()), ("ok", "next"));
}

#[test]
fn errors_go_to_stderr_and_all_else_to_stdout_in_order() {
    let (sender, outputs) = mpsc::channel(16);
    let (done, closed) = tokio::sync::oneshot::channel();
    for output in [
        Output::Status(JobStatus::Starting(1)),
        Output::Piece("The ans".into()),
        Output::Error("the disk is full".into()),
        Output::Piece("wer".into()),
        Output::EndAnswer,
        Output::Say("Job 1 started.".into()),
        Output::Close(done),
    ] {
        sender.try_send(output).expect("there is room");
    }
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    write(outputs, &mut out, &mut errors).expect("memory can be written");
    assert_eq!(String::from_utf8(out).expect("text"), "The ans\nwer\nJob 1 started.\n");
    assert_eq!(String::from_utf8(errors).expect("text"), "error: the disk is full\n");
    assert!(closed.blocking_recv().is_ok());
}

#[test]
fn a_closed_pipe_is_an_error_and_no_panic() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sender, outputs) = mpsc::channel(1);
    sender.try_send(Output::Say("x".into())).expect("there is room");
    assert!(write(outputs, Closed, Vec::new()).is_err());
}

#[test]
fn a_slow_reader_of_the_output_slows_the_script_down_and_loses_nothing() {
    struct Slow(std::sync::mpsc::Sender<u8>);
    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            thread::sleep(std::time::Duration::from_micros(200));
            bytes.iter().for_each(|byte| self.0.send(*byte).expect("somebody reads"));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let input: String = (0..1000).map(|number| format!("line {number}\n")).collect();
    let (written, read) = std::sync::mpsc::channel();
    let mut frontend = Frontend::plain(Cursor::new(input.clone()), Slow(written), io::sink())
        .expect("threads can be started");
    while let Some(Event::Line { text, ticket }) = frontend.events.blocking_recv() {
        frontend.outputs.try_send(Output::Say(text)).expect("there is always room for a reply");
        drop(ticket);
    }
    drop(frontend);
    assert_eq!(String::from_utf8(read.iter().collect()).expect("text"), input);
}
