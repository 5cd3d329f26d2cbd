//! What the CPU computes by itself: products with frozen weights, and the functions between them.
//!
//! Work is split into tasks by shapes alone, never by the number of threads, so that the same input gives the same
//! bits on every pool. This is the only module with `unsafe` in it (`gemm.rs`, `avx2/`, `neon/`, `mapping.rs`,
//! `team.rs`).

#[cfg(target_arch = "x86_64")]
mod avx2;
mod dot;
mod format;
pub mod gemm;
mod mapping;
pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod product;
mod rows;
pub mod team;

/// Names the forms that this machine's products with weights of a few bits take.
pub fn forms() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if avx2::Avx2::detect().is_some() {
        return "AVX2, FMA and F16C";
    }
    #[cfg(target_arch = "aarch64")]
    if neon::Neon::detect().is_some() {
        return "NEON";
    }
    "portable"
}

pub use format::Format;
pub use mapping::Mapping;
pub use rows::Rows;
