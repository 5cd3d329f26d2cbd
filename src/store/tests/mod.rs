//! Tests of the store that need a promotion, which only this crate can make.
