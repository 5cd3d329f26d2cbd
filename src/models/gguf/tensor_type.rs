//! The formats of tensors that are read.

use std::fmt;

/// How a tensor's numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 8 bits and a scale for each 32 weights.
    Q8_0,
    /// 4 bits and a scale for each 32 weights.
    Q4_0,
    /// 5 bits and a scale for each 32 weights.
    Q5_0,
    /// 4 bits, with scales and minima for each 32 of 256 weights.
    Q4K,
    /// 5 bits, with scales and minima for each 32 of 256 weights.
    Q5K,
    /// 6 bits, with scales for each 16 of 256 weights.
    Q6K,
}

/// Formats that are known by name only, with the numbers that files give them.
const OTHERS: [(u32, &str); 20] = [
    (3, "q4_1"),
    (7, "q5_1"),
    (10, "q2_k"),
    (11, "q3_k"),
    (16, "iq2_xxs"),
    (17, "iq2_xs"),
    (18, "iq3_xxs"),
    (19, "iq1_s"),
    (20, "iq4_nl"),
    (21, "iq3_s"),
    (22, "iq2_s"),
    (23, "iq4_xs"),
    (24, "i8"),
    (26, "i32"),
    (28, "f64"),
    (29, "iq1_m"),
    (34, "tq1_0"),
    (35, "tq2_0"),
    (39, "mxfp4"),
    (40, "nvfp4"),
];

impl TensorType {
    const ALL: [Self; 9] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q5_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// What to do about any other type.
    pub const REMEDY: &'static str =
        "choose a file in f32, f16, bf16, Q8_0, Q4_0, Q5_0, Q4_K, Q5_K or Q6_K";

    /// Finds the type by the number that files give it; an error is the name of an unsupported one.
    ///
    /// # Errors
    /// A type that is not read here.
    pub fn from_id(id: u32) -> Result<Self, String> {
        Self::ALL.into_iter().find(|t| t.id() == id).ok_or_else(|| {
            let known = OTHERS.iter().find(|(other, _)| *other == id);
            known.map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned())
        })
    }

    fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 30,
            Self::Q8_0 => 8,
            Self::Q4_0 => 2,
            Self::Q5_0 => 6,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
        }
    }

    /// Returns the weights of a block, and its bytes.
    pub fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q5_0 => (32, 22),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Returns the name in small letters, as this program spells formats.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q5_0 => "q5_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
