//! Values that are a word or a number: `"auto"` and `"random"`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

const AUTO: &str = "auto";
const RANDOM: &str = "random";

/// A value that the user gives, or that the program chooses (`"auto"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto<T> {
    /// Chosen by the program, by the model's size.
    Auto,
    /// Given by the user.
    Value(T),
}

impl<T> Auto<T> {
    /// Returns the given value, or what `choose` answers for `"auto"`.
    pub fn resolve(self, choose: impl FnOnce() -> T) -> T {
        match self {
            Auto::Auto => choose(),
            Auto::Value(value) => value,
        }
    }
}

/// The seed of the sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// A new one per answer.
    Random,
    /// Always this one.
    Fixed(u64),
}

impl Seed {
    /// Returns the fixed seed, or what `draw` answers for `"random"`.
    pub fn resolve(self, draw: impl FnOnce() -> u64) -> u64 {
        match self {
            Seed::Random => draw(),
            Seed::Fixed(seed) => seed,
        }
    }
}

/// Numbers that can stand beside a word.
pub trait Number: Sized {
    /// Converts a whole number, if it fits.
    fn from_whole(value: i64) -> Option<Self>;
    /// Converts a fraction, if it fits.
    fn from_fraction(value: f64) -> Option<Self>;
    /// Converts true or false, if it fits.
    fn from_truth(_value: bool) -> Option<Self> {
        None
    }
}

impl Number for f64 {
    fn from_whole(value: i64) -> Option<Self> {
        Some(value as f64)
    }

    fn from_fraction(value: f64) -> Option<Self> {
        Some(value)
    }
}

impl Number for usize {
    fn from_whole(value: i64) -> Option<Self> {
        value.try_into().ok()
    }

    fn from_fraction(_value: f64) -> Option<Self> {
        None
    }
}

impl Number for bool {
    fn from_whole(_value: i64) -> Option<Self> {
        None
    }

    fn from_fraction(_value: f64) -> Option<Self> {
        None
    }

    fn from_truth(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl Number for u64 {
    fn from_whole(value: i64) -> Option<Self> {
        value.try_into().ok()
    }

    fn from_fraction(_value: f64) -> Option<Self> {
        None
    }
}

/// Reads a number or one fixed word (then `None`).
struct WordOr<T>(&'static str, PhantomData<T>);

impl<T: Number> Visitor<'_> for WordOr<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" or a number", self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        if text == self.0 {
            Ok(None)
        } else {
            Err(E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        match T::from_truth(value) {
            Some(truth) => Ok(Some(truth)),
            None => Err(E::invalid_value(de::Unexpected::Bool(value), &self)),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        match T::from_whole(value) {
            Some(number) => Ok(Some(number)),
            None => Err(E::invalid_value(de::Unexpected::Signed(value), &self)),
        }
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        match i64::try_from(value).ok().and_then(T::from_whole) {
            Some(number) => Ok(Some(number)),
            None => Err(E::invalid_value(de::Unexpected::Unsigned(value), &self)),
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        match T::from_fraction(value) {
            Some(number) => Ok(Some(number)),
            None => Err(E::invalid_value(de::Unexpected::Float(value), &self)),
        }
    }
}

impl<'de, T: Number> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(WordOr(AUTO, PhantomData))?;
        Ok(value.map_or(Auto::Auto, Auto::Value))
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Auto::Auto => serializer.serialize_str(AUTO),
            Auto::Value(value) => value.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(WordOr(RANDOM, PhantomData))?;
        Ok(value.map_or(Seed::Random, Seed::Fixed))
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Seed::Random => serializer.serialize_str(RANDOM),
            Seed::Fixed(seed) => serializer.serialize_u64(*seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_survive_a_round_trip() {
        for text in ["\"auto\"", "0.5", "3.0"] {
            let value: Auto<f64> = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&value).unwrap(), text);
        }
        for text in ["\"random\"", "7"] {
            let value: Seed = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&value).unwrap(), text);
        }
        assert_eq!(serde_json::from_str::<Auto<f64>>("2").unwrap(), Auto::Value(2.0));
    }

    #[test]
    fn other_words_and_signs_are_refused() {
        assert!(serde_json::from_str::<Auto<f64>>("\"random\"").is_err());
        assert!(serde_json::from_str::<Auto<usize>>("-1").is_err());
        assert!(serde_json::from_str::<Auto<usize>>("1.5").is_err());
        assert!(serde_json::from_str::<Seed>("\"auto\"").is_err());
    }

    #[test]
    fn auto_asks_and_a_value_does_not() {
        assert_eq!(Auto::Auto.resolve(|| 3), 3);
        assert_eq!(Auto::Value(5).resolve(|| 3), 5);
        assert_eq!(Seed::Fixed(5).resolve(|| 3), 5);
    }
}
