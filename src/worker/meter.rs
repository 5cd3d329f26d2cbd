//! Compares what a job is expected to need with what it takes: the clock and the kernel's figures are read here, because
//! the job knows neither.

use std::time::{Duration, Instant};

use super::machine::{available_memory, figure};
use crate::lora::{Bound, JobEvent, MemoryBudget, PROCESS_RESERVE, Resources};

/// Measures one attempt.
pub struct Meter {
    started: Instant,
    planned: Duration,
    resources: Option<Resources>,
}

impl Meter {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { started: Instant::now(), planned: Duration::ZERO, resources: None }
    }

    /// Takes an event in; returns what is known now if it says something new.
    pub fn see(&mut self, event: &JobEvent) -> Option<Resources> {
        let now = self.started.elapsed();
        match *event {
            JobEvent::Planned { bytes, plan } => {
                self.planned = now;
                let known = Resources { expected_bytes: bytes, plan, ..Resources::default() };
                self.resources = Some(known);
                Some(known)
            }
            JobEvent::Ready { done, left } => {
                let resources = self.resources.as_mut()?;
                resources.expected_ms = expected_ms(self.planned, now, done, left);
                Some(*resources)
            }
            _ => None,
        }
    }

    /// Ends the measuring.
    pub fn finish(self) -> Option<Resources> {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).ok();
        Some(Resources { peak_bytes: peak_rss_bytes(), elapsed_ms, ..self.resources? })
    }
}

/// The time of the whole attempt, at the pace of what was done between `planned` and `now`; no pace, no time.
fn expected_ms(planned: Duration, now: Duration, done: f64, left: f64) -> Option<u64> {
    let seconds = now.checked_sub(planned)?.as_secs_f64();
    let more = Duration::try_from_secs_f64(left * seconds / done).ok()?;
    u64::try_from((now + more).as_millis()).ok()
}

/// Bounds a job's memory by what is left of this process's limit and, where nothing is configured, by what the machine
/// has available.
pub fn bounded(budget: MemoryBudget) -> MemoryBudget {
    let mut budget = budget;
    if budget.bytes == 0
        && let Some(available) = available_memory()
    {
        (budget.bytes, budget.bound) = (available.max(1), Bound::Machine);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Data).current;
    if let Some(limit) = limit {
        let bytes = limit.saturating_sub(PROCESS_RESERVE).max(1);
        if budget.bytes == 0 || bytes < budget.bytes {
            (budget.bytes, budget.bound) = (bytes, Bound::Process);
        }
    }
    budget
}

/// Largest resident set of this process so far; unknown where there is no `/proc`.
fn peak_rss_bytes() -> Option<u64> {
    figure(&fs_err::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::trainer::MemoryPlan;

    #[test]
    fn the_time_goes_by_the_pace_so_far_and_counts_from_the_start() {
        let (planned, now) = (Duration::from_secs(2), Duration::from_secs(4));
        assert_eq!(expected_ms(planned, now, 10.0, 30.0), Some(10_000));
        assert_eq!(expected_ms(planned, now, 10.0, 0.0), Some(4_000));
        assert_eq!(expected_ms(planned, now, 0.0, 30.0), None, "nothing done tells no pace");
        assert_eq!(expected_ms(planned, now, 0.0, 0.0), None);
    }

    #[test]
    fn nothing_is_told_before_it_is_known() {
        let mut meter = Meter::start();
        assert_eq!(meter.see(&JobEvent::Ready { done: 1.0, left: 1.0 }), None);
        let plan = MemoryPlan::default();
        let planned = meter.see(&JobEvent::Planned { bytes: 7, plan }).unwrap();
        assert_eq!(
            (planned.expected_bytes, planned.expected_ms, planned.peak_bytes),
            (7, None, None)
        );
        std::thread::sleep(Duration::from_millis(5));
        let ready = meter.see(&JobEvent::Ready { done: 1.0, left: 1.0 }).unwrap();
        assert!(ready.expected_ms.is_some_and(|ms| ms >= 10), "{ready:?}");
        let end = meter.finish().unwrap();
        assert!(end.elapsed_ms.is_some_and(|ms| ms >= 5), "{end:?}");
        #[cfg(target_os = "linux")]
        assert!(end.peak_bytes.is_some_and(|bytes| bytes > 1 << 20), "{end:?}");
    }
}
