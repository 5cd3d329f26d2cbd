//! Lets tests compose on the CPU what accelerators compute.

use std::cell::Cell;

thread_local!(static ASKED: Cell<bool> = const { Cell::new(false) });

/// Tells whether this thread is one of [`composed`].
pub(super) fn asked() -> bool {
    ASKED.get()
}

/// Runs `f` on threads of its own, on which no operation is fused.
pub(crate) fn composed<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(2).start_handler(|_| ASKED.set(true));
    threads.build().unwrap().install(f)
}
