//! The threads that compute a token together.
//!
//! A token has about a hundred parallel parts of a tenth of a millisecond. Waking a sleeping thread for each takes as
//! long as such a part, so threads of the pool stay for the whole token and wait for the next part awake.

use std::cell::Cell;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};

use parking_lot::Mutex;

/// Looks at the board before the processor is offered to others: meant to be longer than what lies between two parts.
const LOOKS: u32 = 2000;

/// One of the parts; whoever calls it works until nothing is left of it.
type Part<'a> = &'a (dyn Fn() + Sync + 'a);

/// What the helpers watch.
#[derive(Debug, Default)]
struct Board {
    /// The number of the part that may be entered; 0 is none.
    open: AtomicUsize,
    /// Where the open part lies.
    part: AtomicPtr<()>,
    /// Helpers that may be looking at it.
    inside: AtomicUsize,
    /// The token is done.
    over: AtomicBool,
}

impl Board {
    /// Helps with the parts until the token is done.
    fn help(&self) {
        let (mut done, mut looks) = (0, 0);
        while !self.over.load(SeqCst) {
            let open = self.open.load(SeqCst);
            if open == 0 || open == done {
                wait(&mut looks);
                continue;
            }
            let _leave = Leave::enter(self);
            // Entered first and looked again: either this sees the part closed, or who closes it sees this inside.
            if self.open.load(SeqCst) == open {
                // SAFETY: `Team::all` put the address of a part here before it opened it, and keeps the part until it
                // has closed it and nobody is inside any more.
                let part = unsafe { *self.part.load(SeqCst).cast::<Part<'_>>() };
                part();
            }
            (done, looks) = (open, 0);
        }
    }
}

/// Waits a moment, at first without giving the processor away.
fn wait(looks: &mut u32) {
    if *looks < LOOKS {
        *looks += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// A helper inside a part, whether it ends or panics.
struct Leave<'a>(&'a Board);

impl<'a> Leave<'a> {
    fn enter(board: &'a Board) -> Self {
        board.inside.fetch_add(1, SeqCst);
        Self(board)
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, SeqCst);
    }
}

/// An open part; closed, and left by all, when this goes.
struct Close<'a>(&'a Board);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.open.store(0, SeqCst);
        let mut looks = 0;
        while self.0.inside.load(SeqCst) > 0 {
            wait(&mut looks);
        }
    }
}

/// The end of the token for the helpers, whether it ends or panics.
struct Dismiss<'a>(&'a Board);

impl Drop for Dismiss<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, SeqCst);
    }
}

/// The calling thread, and those of the pool that come when it first calls for help.
pub struct Team<'a> {
    board: &'a Board,
    /// Calls the helpers.
    call: &'a dyn Fn(),
    /// With the calling one.
    threads: usize,
    /// Parts so far.
    parts: Cell<usize>,
}

/// Runs `f` with a team, or with the calling thread alone.
pub fn with_team<R>(helpers: bool, f: impl FnOnce(&Team<'_>) -> R) -> R {
    let board = Board::default();
    rayon::in_place_scope(|scope| {
        let _dismiss = Dismiss(&board);
        let call = || {
            for _ in 1..rayon::current_num_threads() {
                scope.spawn(|_| board.help());
            }
        };
        let threads = if helpers { rayon::current_num_threads() } else { 1 };
        f(&Team { board: &board, call: &call, threads, parts: Cell::new(0) })
    })
}

impl Team<'_> {
    /// Calls `f` with each task, on all threads if there are several tasks.
    ///
    /// Which thread takes which task is left to chance.
    pub fn each<T: Send>(&self, tasks: Vec<T>, f: impl Fn(T) + Sync) {
        if tasks.len() < 2 || self.threads < 2 {
            return tasks.into_iter().for_each(f);
        }
        let tasks = Mutex::new(tasks.into_iter());
        // A guard in the loop's head would live as long as the task.
        let next = || tasks.lock().next();
        self.all(&|| {
            while let Some(task) = next() {
                f(task);
            }
        });
    }

    /// Lets all threads call `part`.
    fn all(&self, part: Part<'_>) {
        let board = self.board;
        if self.parts.get() == 0 {
            (self.call)();
        }
        self.parts.set(self.parts.get() + 1);
        board.part.store((&raw const part).cast_mut().cast(), SeqCst);
        board.open.store(self.parts.get(), SeqCst);
        let _close = Close(board);
        part();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn each_task_of_each_part_is_done_once_before_the_next_part() {
        for _ in 0..200 {
            let counts: Vec<AtomicUsize> = (0..37).map(|_| AtomicUsize::new(0)).collect();
            with_team(true, |team| {
                for part in 1..50 {
                    team.each((0..37).collect(), |task: usize| {
                        assert_eq!(counts[task].fetch_add(1, SeqCst) + 1, part);
                    });
                    assert!(counts.iter().all(|count| count.load(SeqCst) == part));
                }
            });
        }
    }

    #[test]
    fn tasks_may_borrow_what_lives_as_long_as_their_part() {
        let sums = with_team(true, |team| {
            let mut sums = Vec::new();
            for n in 0..100 {
                let mut numbers = vec![n; 64];
                team.each(numbers.chunks_mut(5).collect(), |part: &mut [usize]| {
                    part.iter_mut().for_each(|number| *number += 1);
                });
                sums.push(numbers.iter().sum::<usize>());
            }
            sums
        });
        assert_eq!(sums, (0..100).map(|n| 64 * (n + 1)).collect::<Vec<_>>());
    }

    #[test]
    fn a_team_without_helpers_leaves_the_pool_alone() {
        let own = std::thread::current().id();
        with_team(false, |team| {
            team.each((0..100).collect(), |_: usize| assert_eq!(std::thread::current().id(), own));
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_ends_the_team() {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            with_team(true, |team| {
                team.each((0..64).collect(), |task: usize| assert!(task != 40, "task 40"));
            });
        }));
        assert!(caught.is_err());
        let mut done = 0;
        with_team(true, |team| team.each(vec![&mut done], |done| *done += 1));
        assert_eq!(done, 1);
    }

    #[test]
    fn teams_at_the_same_time_do_not_wait_for_each_other() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let total = AtomicUsize::new(0);
                    with_team(true, |team| {
                        for _ in 0..200 {
                            team.each((0..8).collect(), |task: usize| {
                                total.fetch_add(task, SeqCst);
                            });
                        }
                    });
                    assert_eq!(total.load(SeqCst), 200 * 28);
                });
            }
        });
    }
}
