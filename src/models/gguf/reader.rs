//! The header of a GGUF file, read as if somebody hostile had written it.
//!
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Nothing is allocated before the file was found long
//! enough to hold it, arrays are kept in no more bytes than they have in the file, and every extent is checked against the
//! file's length.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use super::tensor_type::{self, format_of};
use super::value::{Integers, Metadata, Texts, Value};
use crate::models::Format;

/// `GGUF` in the order of the file's bytes.
const MAGIC: [u8; 4] = *b"GGUF";
/// Values that a file may have; real ones have some dozens.
const MAX_VALUES: u64 = 1 << 16;
/// Tensors that a file may have; real ones have some hundreds.
const MAX_TENSORS: u64 = 1 << 16;
/// Bytes of a key; the format's own limit.
const MAX_KEY_BYTES: u64 = (1 << 16) - 1;
/// Bytes of a tensor's name; four times the format's own limit.
const MAX_NAME_BYTES: u64 = 256;
/// Bytes of metadata. The largest vocabularies take 20 MiB.
const MAX_METADATA_BYTES: u64 = 256 << 20;
/// Arrays within arrays.
const MAX_DEPTH: usize = 4;
/// The format's own limit.
const MAX_DIMENSIONS: u32 = 4;
/// Where data begins unless the file says otherwise: at multiples of so many bytes.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest alignment, that of a large page.
const MAX_ALIGNMENT: u64 = 1 << 21;

/// Why a header is refused.
#[derive(Debug)]
pub enum Refusal {
    /// The file is broken or hostile.
    Broken(String),
    /// The file is whole, but this program cannot use it; what, and a remedy.
    Unsupported(String, &'static str),
}

impl From<String> for Refusal {
    fn from(problem: String) -> Self {
        Self::Broken(problem)
    }
}

impl From<&str> for Refusal {
    fn from(problem: &str) -> Self {
        Self::Broken(problem.to_owned())
    }
}

type Parsed<T> = Result<T, Refusal>;

/// A tensor's place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// The shape, rows first: `[out, in]` for a projection.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub kind: Format,
    /// Where it begins, in bytes from the beginning of the file.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Returns the number of its elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// What a file says about itself.
#[derive(Debug)]
pub struct Header {
    /// Key and value pairs.
    pub metadata: Metadata,
    /// The tensors, by the names that the file gives them.
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads the header of a file of `size` bytes from its beginning.
    ///
    /// # Errors
    /// Whatever is broken, contradictory or not supported.
    pub fn read(input: impl Read, size: u64) -> Parsed<Self> {
        let mut input = Input { inner: input, at: 0, size };
        if input.bytes::<4>()? != MAGIC {
            return Err("it does not begin with \"GGUF\"".into());
        }
        match input.u32()? {
            2 | 3 => {}
            version if (1..=3).contains(&version.swap_bytes()) => {
                let what = "a big-endian GGUF file".to_owned();
                return Err(Refusal::Unsupported(what, "choose a little-endian file"));
            }
            version => {
                let what = format!("version {version} of GGUF");
                return Err(Refusal::Unsupported(what, "choose a file of version 2 or 3"));
            }
        }
        let tensors = input.count(MAX_TENSORS, "tensors")?;
        let values = input.count(MAX_VALUES, "values")?;
        let metadata = read_metadata(&mut input, values)?;
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= MAX_ALIGNMENT => *n,
            Some(other) => return Err(format!("general.alignment is {other}").into()),
        };
        let tensors = read_directory(&mut input, tensors, alignment)?;
        Ok(Self { metadata, tensors })
    }
}

/// The rest of a file, of which it is known how long it is.
struct Input<R> {
    inner: R,
    at: u64,
    size: u64,
}

impl<R: Read> Input<R> {
    /// Fails unless so many bytes are left.
    fn need(&self, bytes: u64, what: &str) -> Parsed<()> {
        let left = self.size - self.at;
        if bytes > left {
            return Err(format!("{what} of {bytes} bytes, {left} bytes are left").into());
        }
        Ok(())
    }

    fn fill(&mut self, out: &mut [u8]) -> Parsed<()> {
        self.need(out.len() as u64, "a value")?;
        self.inner.read_exact(out).map_err(|e| format!("it cannot be read: {e}"))?;
        self.at += out.len() as u64;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn count(&mut self, max: u64, what: &str) -> Parsed<u64> {
        match self.u64()? {
            n if n > max => Err(format!("it names {n} {what}, more than {max}").into()),
            n => Ok(n),
        }
    }

    fn text(&mut self, max: u64, what: &str) -> Parsed<String> {
        let length = self.u64()?;
        if length > max {
            return Err(format!("{what} of {length} bytes, more than {max}").into());
        }
        self.need(length, what)?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8").into())
    }

    fn skip(&mut self, bytes: u64) -> Parsed<()> {
        self.need(bytes, "an array")?;
        let mut rest = (&mut self.inner).take(bytes);
        let skipped = std::io::copy(&mut rest, &mut std::io::sink());
        if skipped.map_err(|e| format!("it cannot be read: {e}"))? != bytes {
            return Err("it ends too early".into());
        }
        self.at += bytes;
        Ok(())
    }
}

fn read_metadata(input: &mut Input<impl Read>, values: u64) -> Parsed<Metadata> {
    let mut metadata = Metadata::default();
    for _ in 0..values {
        let key = input.text(MAX_KEY_BYTES, "a key")?;
        let kind = input.u32()?;
        let value = read_value(input, kind, 0).map_err(|refusal| match refusal {
            Refusal::Broken(problem) => Refusal::Broken(format!("{key}: {problem}")),
            other => other,
        })?;
        if input.at > MAX_METADATA_BYTES {
            return Err(format!("more than {MAX_METADATA_BYTES} bytes of metadata").into());
        }
        if metadata.insert(key.clone(), value) {
            return Err(format!("{key} is there twice").into());
        }
    }
    Ok(metadata)
}

/// Returns the bytes of a number of this kind; none for strings and arrays.
fn number_bytes(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

fn read_value(input: &mut Input<impl Read>, kind: u32, depth: usize) -> Parsed<Value> {
    Ok(match kind {
        0 => Value::Unsigned(input.bytes::<1>()?[0].into()),
        1 => Value::Signed(i8::from_le_bytes(input.bytes()?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(input.bytes()?).into()),
        3 => Value::Signed(i16::from_le_bytes(input.bytes()?).into()),
        4 => Value::Unsigned(input.u32()?.into()),
        5 => Value::Signed(i32::from_le_bytes(input.bytes()?).into()),
        6 => Value::of_f32(f32::from_le_bytes(input.bytes()?)),
        7 => match input.bytes::<1>()?[0] {
            flag @ 0..=1 => Value::Bool(flag == 1),
            other => return Err(format!("{other} is no boolean").into()),
        },
        8 => Value::Text(input.text(MAX_METADATA_BYTES, "a text")?),
        9 => read_array(input, depth)?,
        10 => Value::Unsigned(input.u64()?),
        11 => Value::Signed(i64::from_le_bytes(input.bytes()?)),
        12 => Value::Float(f64::from_le_bytes(input.bytes()?)),
        other => return Err(format!("{other} is no type of values").into()),
    })
}

fn read_array(input: &mut Input<impl Read>, depth: usize) -> Parsed<Value> {
    if depth == MAX_DEPTH {
        return Err(format!("arrays within arrays, deeper than {MAX_DEPTH}").into());
    }
    let kind = input.u32()?;
    let length = input.u64()?;
    // What an element takes at least: an empty text its length, an array its kind and length.
    let least = match kind {
        8 => 8,
        9 => 12,
        number => number_bytes(number).ok_or_else(|| format!("{kind} is no type of values"))?,
    };
    let bytes = length.checked_mul(least).filter(|bytes| *bytes <= MAX_METADATA_BYTES);
    let bytes = bytes.ok_or_else(|| format!("an array of {length} elements"))?;
    input.need(bytes, "an array")?;
    match kind {
        4 | 5 => {
            let mut numbers = Vec::with_capacity(length as usize);
            for _ in 0..length {
                numbers.push(input.u32()?);
            }
            Ok(Value::Integers(Integers { signed: kind == 5, bits: numbers }))
        }
        6 => {
            let mut numbers = Vec::with_capacity(length as usize);
            for _ in 0..length {
                numbers.push(f32::from_le_bytes(input.bytes()?));
            }
            Ok(Value::Floats(numbers))
        }
        8 => {
            let mut texts = Texts::with_capacity(length as usize);
            for _ in 0..length {
                texts.push(&input.text(MAX_METADATA_BYTES, "a text")?)?;
            }
            Ok(Value::Texts(texts))
        }
        9 => {
            for _ in 0..length {
                read_array(input, depth + 1)?;
            }
            Ok(Value::Skipped)
        }
        _ => {
            input.skip(bytes)?;
            Ok(Value::Skipped)
        }
    }
}

fn read_directory(
    input: &mut Input<impl Read>,
    count: u64,
    alignment: u64,
) -> Parsed<BTreeMap<String, TensorInfo>> {
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let tensor = read_tensor(input)?;
        if !names.insert(tensor.name.clone()) {
            return Err(format!("tensor {} is there twice", tensor.name).into());
        }
        tensors.push(tensor);
    }
    let start = input.at.next_multiple_of(alignment);
    for tensor in &mut tensors {
        let name = &tensor.name;
        if !tensor.offset.is_multiple_of(alignment) {
            return Err(format!("tensor {name} is not aligned to {alignment} bytes").into());
        }
        let from = start.checked_add(tensor.offset);
        let end = from.and_then(|from| from.checked_add(tensor.bytes));
        match (from, end) {
            (Some(from), Some(end)) if end <= input.size => tensor.offset = from,
            _ => {
                let problem = format!("tensor {name} ends behind the file of {} bytes", input.size);
                return Err(problem.into());
            }
        }
    }
    tensors.sort_unstable_by_key(|t| t.offset);
    for pair in tensors.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(format!("tensors {} and {} overlap", pair[0].name, pair[1].name).into());
        }
    }
    Ok(tensors.into_iter().map(|t| (t.name.clone(), t)).collect())
}

fn read_tensor(input: &mut Input<impl Read>) -> Parsed<TensorInfo> {
    let name = input.text(MAX_NAME_BYTES, "a tensor's name")?;
    let dimensions = input.u32()?;
    if dimensions == 0 || dimensions > MAX_DIMENSIONS {
        return Err(format!("tensor {name} has {dimensions} dimensions").into());
    }
    // The file names the dimension that runs fastest first.
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        let length = input.u64()?;
        shape.push(usize::try_from(length).map_err(|_| format!("tensor {name} is too large"))?);
    }
    shape.reverse();
    let id = input.u32()?;
    let kind = format_of(id).map_err(|unknown| {
        let what = format!("tensor {name} of type {unknown}");
        Refusal::Unsupported(what, tensor_type::REMEDY)
    })?;
    let bytes = shape_bytes(&shape, kind).map_err(|e| format!("tensor {name} {e}"))?;
    Ok(TensorInfo { name, shape, kind, offset: input.u64()?, bytes })
}

fn shape_bytes(shape: &[usize], kind: Format) -> Result<u64, String> {
    let (block, block_bytes) = (kind.block() as u64, kind.block_bytes() as u64);
    let elements = shape.iter().try_fold(1u64, |all, &n| all.checked_mul(n as u64));
    let elements = elements.filter(|n| *n > 0).ok_or_else(|| format!("has the shape {shape:?}"))?;
    if !shape.last().is_some_and(|row| (*row as u64).is_multiple_of(block)) {
        return Err(format!("has rows that are no multiple of {block}, as {kind} needs them"));
    }
    (elements / block).checked_mul(block_bytes).ok_or_else(|| format!("has the shape {shape:?}"))
}
