//! Frames between the program and its worker: a `u32` length (little endian), then that many bytes of bincode.
//!
//! The only user of bincode in the program, and for transient bytes only: nothing that is kept on disk is written in
//! it. Each side first sends a *hello* of fixed layout that names the protocol's version, so that a program whose
//! binary was replaced while it ran says so instead of misreading frames.

use std::io::{self, ErrorKind, Read, Write};

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest frame either side accepts or sends, in bytes: a request with ten thousand long examples fits, and a
/// corrupt length cannot make a reader ask for gigabytes.
pub const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;

/// The version of the messages in [`super::protocol`]; raised with every change of them.
pub const PROTOCOL_VERSION: u32 = 3;

/// The first bytes of a hello: tells a worker's stream from any other program's output.
const MAGIC: [u8; 8] = *b"shammah\0";

/// Bytes of a hello's payload: the magic and the version.
const HELLO_BYTES: usize = MAGIC.len() + size_of::<u32>();

/// What bincode may count while it reads a frame. It counts values at full width, of which a small 64-bit number takes
/// one byte in the frame: so eight times a frame. It stops a length *inside* a frame from reserving memory without end.
const MAX_DECODED_BYTES: usize = size_of::<u64>() * MAX_FRAME_BYTES;

/// bincode's default encoding.
const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_DECODED_BYTES>> =
    bincode::config::standard().with_limit::<MAX_DECODED_BYTES>();

/// Why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The other side closed the stream between two frames.
    #[error("the stream was closed")]
    Closed,
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame: {got} of {expected} bytes arrived")]
    Truncated {
        /// Bytes that the frame (or its length field) has.
        expected: usize,
        /// Bytes that arrived.
        got: usize,
    },
    /// A frame is longer than [`MAX_FRAME_BYTES`].
    #[error("a frame of {bytes} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLarge {
        /// Bytes that the frame has or claims.
        bytes: usize,
    },
    /// A frame holds more than its message.
    #[error("a frame has {bytes} bytes after its message")]
    Trailing {
        /// Bytes after the message.
        bytes: usize,
    },
    /// A frame is no message of this protocol.
    #[error("a frame is no message of this protocol: {0}")]
    Malformed(String),
    /// A message could not be encoded.
    #[error("a message could not be encoded: {0}")]
    Encode(String),
    /// The stream does not begin with a hello.
    #[error("the stream does not begin as a shammah worker's does")]
    NotAWorker,
    /// The other side speaks another version.
    #[error(
        "the other side speaks version {theirs} of the worker protocol, this one version {ours}: the program was \
         replaced while it ran, restart it"
    )]
    Version {
        /// The version of this side.
        ours: u32,
        /// The version of the other side.
        theirs: u32,
    },
    /// Reading or writing failed.
    #[error("reading or writing the stream failed: {0}")]
    Io(#[from] io::Error),
}

/// Returns the frame of `value`, ready to be written in one piece.
///
/// # Errors
/// [`CodecError::TooLarge`] over [`MAX_FRAME_BYTES`], [`CodecError::Encode`] if bincode cannot hold the value.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0; size_of::<u32>()];
    bincode::serde::encode_into_std_write(value, &mut frame, CONFIG)
        .map_err(|e| CodecError::Encode(e.to_string()))?;
    seal(frame)
}

/// Writes `value` as one frame and flushes.
///
/// # Errors
/// Those of [`encode`] (nothing was written then), and [`CodecError::Io`].
pub fn write_frame<T: Serialize>(writer: &mut impl Write, value: &T) -> Result<(), CodecError> {
    let frame = encode(value)?;
    writer.write_all(&frame)?;
    Ok(writer.flush()?)
}

/// Reads one frame and the message in it.
///
/// Memory grows with the bytes that arrive, never with the length that was claimed.
///
/// # Errors
/// [`CodecError::Closed`] at the end of the stream, otherwise the error that says what is wrong with the frame.
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> Result<T, CodecError> {
    let payload = read_payload(reader)?;
    let (value, used) = bincode::serde::decode_from_slice(&payload, CONFIG)
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    match payload.len() - used {
        0 => Ok(value),
        bytes => Err(CodecError::Trailing { bytes }),
    }
}

/// Writes the hello of this side.
///
/// # Errors
/// [`CodecError::Io`].
pub fn write_hello(writer: &mut impl Write) -> Result<(), CodecError> {
    write_hello_of(writer, PROTOCOL_VERSION)
}

/// Writes a hello that names `version`; other versions than [`PROTOCOL_VERSION`] serve tests of the handshake.
///
/// # Errors
/// [`CodecError::Io`].
pub fn write_hello_of(writer: &mut impl Write, version: u32) -> Result<(), CodecError> {
    let mut frame = vec![0; size_of::<u32>()];
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&version.to_le_bytes());
    writer.write_all(&seal(frame)?)?;
    Ok(writer.flush()?)
}

/// Reads the other side's hello and compares the versions.
///
/// # Errors
/// [`CodecError::NotAWorker`] if something else comes first, [`CodecError::Version`] if the versions differ,
/// [`CodecError::Closed`], [`CodecError::Truncated`] or [`CodecError::Io`] as for any frame.
pub fn read_hello(reader: &mut impl Read) -> Result<(), CodecError> {
    let claimed = read_length(reader)?;
    if claimed != HELLO_BYTES {
        return Err(CodecError::NotAWorker);
    }
    let mut hello = [0; HELLO_BYTES];
    let got = fill(reader, &mut hello)?;
    if got < HELLO_BYTES {
        return Err(CodecError::Truncated { expected: HELLO_BYTES, got });
    }
    let (magic, version) = hello.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(CodecError::NotAWorker);
    }
    let theirs = version.iter().rev().fold(0, |sum, &byte| (sum << 8) | u32::from(byte));
    if theirs != PROTOCOL_VERSION {
        return Err(CodecError::Version { ours: PROTOCOL_VERSION, theirs });
    }
    Ok(())
}

/// Writes the payload's length into the four bytes that were left for it.
fn seal(mut frame: Vec<u8>) -> Result<Vec<u8>, CodecError> {
    let bytes = frame.len() - size_of::<u32>();
    if bytes > MAX_FRAME_BYTES {
        return Err(CodecError::TooLarge { bytes });
    }
    let length = u32::try_from(bytes).map_err(|_| CodecError::TooLarge { bytes })?;
    frame[..size_of::<u32>()].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

fn read_payload(reader: &mut impl Read) -> Result<Vec<u8>, CodecError> {
    let expected = read_length(reader)?;
    if expected > MAX_FRAME_BYTES {
        return Err(CodecError::TooLarge { bytes: expected });
    }
    let mut payload = Vec::new();
    reader.take(expected as u64).read_to_end(&mut payload)?;
    if payload.len() < expected {
        return Err(CodecError::Truncated { expected, got: payload.len() });
    }
    Ok(payload)
}

fn read_length(reader: &mut impl Read) -> Result<usize, CodecError> {
    let mut length = [0; size_of::<u32>()];
    match fill(reader, &mut length)? {
        0 => Err(CodecError::Closed),
        got if got < length.len() => Err(CodecError::Truncated { expected: length.len(), got }),
        _ => Ok(u32::from_le_bytes(length) as usize),
    }
}

/// Reads until `buffer` is full or the stream ends; returns how many bytes arrived.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match reader.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}
