//! Values of a GGUF file's metadata.

use std::collections::BTreeMap;
use std::fmt;

/// Texts behind each other: an array of them takes less memory than it takes of the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Texts {
    bytes: String,
    /// Where each text ends.
    ends: Vec<u32>,
}

impl Texts {
    /// Makes room for so many texts, not for their bytes.
    pub fn with_capacity(count: usize) -> Self {
        Self { bytes: String::new(), ends: Vec::with_capacity(count) }
    }

    /// Adds a text; fails beyond 4 GiB of them.
    pub fn push(&mut self, text: &str) -> Result<(), &'static str> {
        // By an eighth, not twofold as by itself: what is unused counts, too.
        if self.bytes.capacity() - self.bytes.len() < text.len() {
            self.bytes.reserve_exact(text.len().max(self.bytes.len() / 8));
        }
        self.bytes.push_str(text);
        self.ends.push(u32::try_from(self.bytes.len()).map_err(|_| "its texts are too long")?);
        Ok(())
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns a text.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.bytes.get(start..end)
    }

    /// Returns all in their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> + Clone {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

/// Numbers of 32 bits, of one sign or both.
#[derive(Debug, Clone, PartialEq)]
pub struct Integers {
    /// Whether the highest bit means a negative number.
    pub signed: bool,
    /// As the file has them.
    pub bits: Vec<u32>,
}

impl Integers {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.bits.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Returns a number.
    pub fn get(&self, index: usize) -> Option<i64> {
        let bits = *self.bits.get(index)?;
        Some(if self.signed { i64::from(bits as i32) } else { i64::from(bits) })
    }
}

/// A value. Arrays that no model needs are read over and not kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of 8 to 64 bits.
    Unsigned(u64),
    /// Of 8 to 64 bits.
    Signed(i64),
    /// Of 32 or 64 bits.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(String),
    /// Numbers of 32 bits.
    Integers(Integers),
    /// Numbers of 32 bits.
    Floats(Vec<f32>),
    /// Texts.
    Texts(Texts),
    /// Any other array.
    Skipped,
}

impl Value {
    /// Returns an f32 as the f64 that is written with the same digits: 1e-6, not 9.99999997e-7.
    pub fn of_f32(number: f32) -> Self {
        Self::Float(number.to_string().parse().unwrap_or_else(|_| number.into()))
    }

    fn unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::Text(_) => "a text",
            Self::Integers(_) => "an array of integers",
            Self::Floats(_) => "an array of floats",
            Self::Texts(_) => "an array of texts",
            Self::Skipped => "an array",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(n) => n.fmt(f),
            Self::Signed(n) => n.fmt(f),
            Self::Float(n) => n.fmt(f),
            Self::Bool(b) => b.fmt(f),
            Self::Text(text) => write!(f, "{text:?}"),
            array => f.write_str(array.kind()),
        }
    }
}

/// Key and value pairs.
#[derive(Debug, Default)]
pub struct Metadata(BTreeMap<String, Value>);

/// A key that is missing or holds something else; the text names it.
type Found<T> = Result<T, String>;

impl Metadata {
    /// Keeps a value; returns whether the key was there already.
    pub fn insert(&mut self, key: String, value: Value) -> bool {
        self.0.insert(key, value).is_some()
    }

    /// Returns a value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Found<Option<T>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(found) => Ok(Some(found)),
                None => Err(format!("{key} is {value}, not {what}")),
            },
        }
    }

    /// Returns a text, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn text(&self, key: &str) -> Found<Option<&str>> {
        self.typed(key, "a text", |v| match v {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Returns a number, if the key is there.
    ///
    /// # Errors
    /// A value of another type, a negative number.
    pub fn unsigned(&self, key: &str) -> Found<Option<u64>> {
        self.typed(key, "a count", Value::unsigned)
    }

    /// Returns a number that may be given per layer, if it is the same for all.
    ///
    /// # Errors
    /// A value of another type, numbers that differ.
    pub fn uniform(&self, key: &str) -> Found<Option<u64>> {
        self.typed(key, "one count for all layers", |value| match value {
            Value::Integers(n) if n.bits.windows(2).all(|pair| pair[0] == pair[1]) => {
                n.get(0).and_then(|n| u64::try_from(n).ok())
            }
            value => value.unsigned(),
        })
    }

    /// Returns a number, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn float(&self, key: &str) -> Found<Option<f64>> {
        self.typed(key, "a number", |v| match v {
            Value::Float(n) => n.is_finite().then_some(*n),
            v => v.unsigned().map(|n| n as f64),
        })
    }

    /// Returns a flag, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn flag(&self, key: &str) -> Found<Option<bool>> {
        self.typed(key, "a boolean", |v| match v {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// Returns texts, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn texts(&self, key: &str) -> Found<Option<&Texts>> {
        self.typed(key, "an array of texts", |v| match v {
            Value::Texts(texts) => Some(texts),
            _ => None,
        })
    }

    /// Returns integers, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn integers(&self, key: &str) -> Found<Option<&Integers>> {
        self.typed(key, "an array of integers", |v| match v {
            Value::Integers(numbers) => Some(numbers),
            _ => None,
        })
    }

    /// Returns floats, if the key is there.
    ///
    /// # Errors
    /// A value of another type.
    pub fn floats(&self, key: &str) -> Found<Option<&[f32]>> {
        self.typed(key, "an array of floats", |v| match v {
            Value::Floats(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }
}

/// Fails where a key is not there.
pub fn required<T>(key: &str, found: Found<Option<T>>) -> Found<T> {
    found?.ok_or_else(|| format!("{key} is missing"))
}
