//! The gate: what decides whether an adapter may go live.

/// Proof that the gate let an adapter pass; nothing else can make one.
#[derive(Debug)]
pub struct Promotion {
    _private: (),
}

impl Promotion {
    /// Makes the proof without a gate, for the tests of the store.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { _private: () }
    }
}
