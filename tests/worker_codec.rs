//! The worker's frames: what is written is read again, and nothing hostile does more than give an error.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

use std::io::{self, Read};

use proptest::prelude::*;
use shammah::domain::Confinement;
use shammah::worker::codec::{
    self, CodecError, MAX_FRAME_BYTES, PROTOCOL_VERSION, read_frame, read_hello, write_frame,
};
use shammah::worker::protocol::{Event, JobRequest, Limits, ParentCommand, Request};

/// Hands out one byte at a time, as a slow pipe may.
struct Drip<'a>(&'a [u8]);

impl Read for Drip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(&mut buffer[..1])
    }
}

fn frame_of(payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(payload);
    frame
}

fn events() -> impl Strategy<Value = Event<Vec<String>>> {
    prop_oneof![
        any::<u64>().prop_map(|silent_ms| Event::Heartbeat { silent_ms }),
        (any::<usize>(), any::<usize>(), -1e300..1e300, any::<u64>(), any::<Option<u64>>())
            .prop_map(|(step, total_steps, loss, elapsed_ms, eta_ms)| Event::Progress {
                epoch: 1,
                epochs: 3,
                step,
                total_steps,
                loss,
                elapsed_ms,
                eta_ms
            }),
        any::<usize>().prop_map(|step| Event::Checkpointed { step }),
        Just(Event::Evaluating),
        any::<String>().prop_map(Event::Isolated),
        Just(Event::Cancelled),
        any::<String>().prop_map(Event::Note),
        any::<String>().prop_map(Event::Failed),
        any::<String>().prop_map(Event::Refused),
        any::<(String, String)>()
            .prop_map(|(message, location)| Event::Panicked { message, location }),
        any::<Vec<String>>().prop_map(|output| Event::Finished(Box::new(output))),
    ]
}

fn requests() -> impl Strategy<Value = Request<Vec<(i64, String, f64)>>> {
    (
        any::<u32>(),
        -20..40,
        any::<(usize, u64)>(),
        any::<[String; 2]>(),
        any::<Vec<(i64, String)>>(),
    )
        .prop_map(|(parent_pid, nice, (threads, memory_bytes), [a, b], rows)| Request {
            parent_pid,
            limits: Limits {
                nice,
                idle: nice % 2 == 0,
                threads,
                memory_bytes,
                oom_score_adj: 500,
                core_dumps: nice % 3 == 0,
                confinement: Confinement::Try,
            },
            job: JobRequest {
                checkpoint_dir: a.into(),
                out_dir: b.into(),
                input: rows.into_iter().map(|(id, text)| (id, text, 0.5)).collect(),
            },
        })
}

proptest! {
    #[test]
    fn events_are_read_as_they_were_written(sent in prop::collection::vec(events(), 0..8)) {
        let mut stream = Vec::new();
        for event in &sent {
            write_frame(&mut stream, event).unwrap();
        }
        let mut drip = Drip(&stream);
        for event in sent {
            prop_assert_eq!(read_frame::<Event<Vec<String>>>(&mut drip).unwrap(), event);
        }
        prop_assert!(matches!(read_frame::<Event<Vec<String>>>(&mut drip), Err(CodecError::Closed)));
    }

    #[test]
    fn requests_are_read_as_they_were_written(sent in requests()) {
        let frame = codec::encode(&sent).unwrap();
        prop_assert_eq!(read_frame::<Request<Vec<(i64, String, f64)>>>(&mut frame.as_slice()).unwrap(), sent);
    }

    #[test]
    fn a_cut_frame_is_a_typed_error(event in events(), at in any::<prop::sample::Index>()) {
        let frame = codec::encode(&event).unwrap();
        let cut = at.index(frame.len());
        let error = read_frame::<Event<Vec<String>>>(&mut &frame[..cut]).unwrap_err();
        match cut {
            0 => prop_assert!(matches!(error, CodecError::Closed)),
            1..4 => {
                let told = matches!(error, CodecError::Truncated { expected: 4, got } if got == cut);
                prop_assert!(told, "{error:?}");
            }
            _ => {
                let (whole, there) = (frame.len() - 4, cut - 4);
                let told = matches!(error, CodecError::Truncated { expected, got } if expected == whole && got == there);
                prop_assert!(told, "{error:?}");
            }
        }
    }

    #[test]
    fn trailing_bytes_are_refused(event in events(), rest in prop::collection::vec(any::<u8>(), 1..64)) {
        let mut payload = codec::encode(&event).unwrap()[4..].to_vec();
        payload.extend_from_slice(&rest);
        let error = read_frame::<Event<Vec<String>>>(&mut frame_of(&payload).as_slice()).unwrap_err();
        let told = matches!(error, CodecError::Trailing { bytes } if bytes == rest.len());
        prop_assert!(told, "{error:?}");
    }

    #[test]
    fn hostile_bytes_give_errors_only(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_frame::<Event<Vec<String>>>(&mut bytes.as_slice());
        let _ = read_frame::<Request<Vec<(i64, String, f64)>>>(&mut frame_of(&bytes).as_slice());
        let _ = read_frame::<Event<Vec<String>>>(&mut frame_of(&bytes).as_slice());
        let _ = read_frame::<ParentCommand>(&mut frame_of(&bytes).as_slice());
        let _ = read_hello(&mut bytes.as_slice());
    }
}

#[test]
fn a_length_over_the_cap_is_refused_before_a_byte_is_read() {
    for bytes in [MAX_FRAME_BYTES + 1, u32::MAX as usize] {
        let mut stream = (bytes as u32).to_le_bytes().to_vec();
        stream.extend_from_slice(&[7; 16]);
        let mut reader = stream.as_slice();
        let error = read_frame::<String>(&mut reader).unwrap_err();
        assert!(
            matches!(error, CodecError::TooLarge { bytes: told } if told == bytes),
            "{error:?}"
        );
        assert_eq!(reader.len(), 16, "nothing behind the length was read");
    }
}

#[test]
fn a_length_inside_a_frame_reserves_no_memory() {
    // 253 announces a 64-bit varint: a text, and a list, of 2^60 entries.
    let mut payload = vec![253];
    payload.extend_from_slice(&(1_u64 << 60).to_le_bytes());
    let text = read_frame::<String>(&mut frame_of(&payload).as_slice()).unwrap_err();
    assert!(matches!(text, CodecError::Malformed(_)), "{text:?}");
    let list = read_frame::<Vec<f64>>(&mut frame_of(&payload).as_slice()).unwrap_err();
    assert!(matches!(list, CodecError::Malformed(_)), "{list:?}");
}

#[test]
fn a_message_over_the_cap_is_not_written() {
    let mut stream = Vec::new();
    let error = write_frame(&mut stream, &"x".repeat(MAX_FRAME_BYTES)).unwrap_err();
    assert!(matches!(error, CodecError::TooLarge { .. }), "{error:?}");
    assert!(stream.is_empty());
}

#[test]
fn the_largest_messages_are_read_again() {
    // bincode's own length takes five bytes here.
    let text = "x".repeat(MAX_FRAME_BYTES - 5);
    let frame = codec::encode(&text).unwrap();
    assert_eq!(frame.len(), 4 + MAX_FRAME_BYTES);
    assert_eq!(read_frame::<String>(&mut frame.as_slice()).unwrap(), text);
    let numbers = vec![1_u64; MAX_FRAME_BYTES - 5];
    let frame = codec::encode(&numbers).unwrap();
    assert_eq!(frame.len(), 4 + MAX_FRAME_BYTES);
    assert_eq!(read_frame::<Vec<u64>>(&mut frame.as_slice()).unwrap(), numbers);
}

#[test]
fn the_handshake_tells_versions_and_strangers_apart() {
    let hello_of = |version| {
        let mut stream = Vec::new();
        codec::write_hello_of(&mut stream, version).unwrap();
        stream
    };
    assert!(read_hello(&mut Drip(&hello_of(PROTOCOL_VERSION))).is_ok());
    let error = read_hello(&mut hello_of(0xA1B2_C3D4).as_slice()).unwrap_err();
    let told = matches!(error, CodecError::Version { ours: PROTOCOL_VERSION, theirs: 0xA1B2_C3D4 });
    assert!(told, "{error:?}");
    assert!(matches!(read_hello(&mut &b""[..]), Err(CodecError::Closed)));
    assert!(matches!(read_hello(&mut &b"hello, world\n"[..]), Err(CodecError::NotAWorker)));
    assert!(matches!(read_hello(&mut frame_of(&[0; 12]).as_slice()), Err(CodecError::NotAWorker)));
    let cut = &hello_of(PROTOCOL_VERSION)[..9];
    let told =
        matches!(read_hello(&mut &*cut), Err(CodecError::Truncated { expected: 12, got: 5 }));
    assert!(told);
}
