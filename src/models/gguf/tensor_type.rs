//! The numbers that files give to formats.

use crate::models::Format;

/// Formats that are read.
const READ: [(u32, Format); 9] = [
    (0, Format::F32),
    (1, Format::F16),
    (2, Format::Q4_0),
    (6, Format::Q5_0),
    (8, Format::Q8_0),
    (12, Format::Q4K),
    (13, Format::Q5K),
    (14, Format::Q6K),
    (30, Format::Bf16),
];

/// Formats that are known by name only.
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

/// What to do about any other format.
pub const REMEDY: &str = "choose a file in f32, f16, bf16, Q8_0, Q4_0, Q5_0, Q4_K, Q5_K or Q6_K";

/// Finds a format by its number; an error is the name of one that is not read.
///
/// # Errors
/// A format that is not read here.
pub fn format_of(id: u32) -> Result<Format, String> {
    READ.iter().find(|(read, _)| *read == id).map(|(_, format)| *format).ok_or_else(|| {
        let known = OTHERS.iter().find(|(other, _)| *other == id);
        known.map_or_else(|| format!("number {id}"), |(_, name)| (*name).to_owned())
    })
}
