//! When a job whose worker died is tried again.

use std::time::Duration;

use crate::config::QueueSection;

/// The least share of a pause that jitter leaves: two processes that failed together do not come back together.
const LEAST_SHARE: f64 = 0.5;

/// Attempts and the pauses between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts before a job counts as failed.
    pub max_attempts: usize,
    /// The pause before the second attempt.
    pub base: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl RetryPolicy {
    /// Returns the policy of a configuration.
    pub fn of(queue: &QueueSection) -> Self {
        Self {
            max_attempts: usize::try_from(queue.max_attempts).unwrap_or(usize::MAX),
            base: Duration::from_millis(queue.backoff_base_ms),
            longest: Duration::from_millis(queue.backoff_max_ms),
        }
    }

    /// Returns the pause after `attempt` (from 1) failed: doubled each time up to the longest, then shortened by jitter,
    /// a random number in `[0, 1]`.
    pub fn pause(&self, attempt: usize, jitter: f64) -> Duration {
        let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
        let pause = self.base.saturating_mul(factor).min(self.longest);
        pause.mul_f64(LEAST_SHARE + (1.0 - LEAST_SHARE) * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 3,
        base: Duration::from_millis(500),
        longest: Duration::from_secs(30),
    };

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses: Vec<_> = (1..=9).map(|n| POLICY.pause(n, 1.0).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!(POLICY.pause(usize::MAX, 1.0), POLICY.longest);
    }

    #[test]
    fn jitter_takes_at_most_half() {
        assert_eq!(POLICY.pause(1, 0.0).as_millis(), 250);
        assert_eq!(POLICY.pause(1, -7.0).as_millis(), 250);
        assert_eq!(POLICY.pause(1, 7.0).as_millis(), 500);
    }
}
