//! Sees when a loss explodes, so that training can stop before its time.

use std::fmt;
use std::str::FromStr;

/// Steps, in whole epochs, whose mean is compared: one bad step must not end a job.
const LEAST_STEPS: usize = 3;
/// A loss has exploded above this multiple of the first epoch's…
const FACTOR: f64 = 1.5;
/// …plus this, in nats: a loss that is small already may double without harm.
const MARGIN: f64 = 0.5;

/// The losses that decide; kept in a checkpoint, so that a resumed run stops where an unbroken one does.
///
/// Whole epochs are compared, because only they show the same examples with the same weights.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossWatch {
    epoch: usize,
    first: Mean,
    latest: Mean,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Mean {
    sum: f64,
    steps: usize,
}

impl Mean {
    fn add(&mut self, loss: f64) {
        self.sum += loss;
        self.steps += 1;
    }

    fn value(self) -> f64 {
        self.sum / self.steps as f64
    }
}

impl LossWatch {
    /// Takes a step's loss in; at the first step after an epoch returns the mean of the latest epochs and its bound, if
    /// the mean is above it: 1.5 times the first epoch's mean plus half a nat.
    pub fn exploded(&mut self, epoch: usize, loss: f64) -> Option<(f64, f64)> {
        let mut exploded = None;
        if epoch != self.epoch && self.latest.steps >= LEAST_STEPS {
            let (mean, bound) = (self.latest.value(), FACTOR * self.first.value() + MARGIN);
            exploded = (mean > bound).then_some((mean, bound));
            self.latest = Mean::default();
        }
        self.epoch = epoch;
        if epoch == 1 {
            self.first.add(loss)
        } else {
            self.latest.add(loss)
        }
        exploded
    }
}

impl fmt::Display for LossWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, first, latest } = self;
        // The shortest texts that read back as the same numbers.
        write!(f, "{epoch} {} {} {} {}", first.sum, first.steps, latest.sum, latest.steps)
    }
}

impl FromStr for LossWatch {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let [epoch, first_sum, first_steps, latest_sum, latest_steps] = words[..] else {
            return Err(());
        };
        let mean = |sum: &str, steps: &str| {
            let (sum, steps) = (sum.parse().map_err(drop)?, steps.parse().map_err(drop)?);
            Ok::<_, ()>(Mean { sum, steps })
        };
        Ok(Self {
            epoch: epoch.parse().map_err(drop)?,
            first: mean(first_sum, first_steps)?,
            latest: mean(latest_sum, latest_steps)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The step, from 1, at which the watch gives up.
    fn stops_at(losses: &[f64], steps_an_epoch: usize) -> Option<usize> {
        let mut watch = LossWatch::default();
        let at = losses.iter().enumerate().position(|(step, &loss)| {
            // Every step goes through a checkpoint.
            watch = watch.to_string().parse().unwrap();
            watch.exploded(1 + step / steps_an_epoch, loss).is_some()
        });
        at.map(|step| step + 1)
    }

    #[test]
    fn an_epoch_above_the_bound_stops_at_the_next_ones_first_step() {
        // The bound is 1.5 · 3 + 0.5.
        let rising = |to| [&[3.0; 6][..], &[to; 6]].concat();
        assert_eq!(stops_at(&rising(5.1), 3), Some(10));
        assert_eq!(stops_at(&rising(5.0), 3), None);
        assert_eq!(stops_at(&rising(5.1), 2), Some(11), "two epochs of two steps");
        // Of one step each: the second window of three is the first that is bad throughout.
        assert_eq!(stops_at(&rising(5.1), 1), Some(11));
    }

    #[test]
    fn heavy_batches_single_spikes_and_small_losses_go_on() {
        let heavy: Vec<f64> = (0..60).map(|i| if i % 6 < 2 { 9.0 } else { 0.2 }).collect();
        assert_eq!(stops_at(&heavy, 6), None);
        let spiky: Vec<f64> = (0..60).map(|i| if i == 31 { 8.0 } else { 3.0 }).collect();
        assert_eq!(stops_at(&spiky, 1), None);
        assert_eq!(stops_at(&[&[0.1; 6][..], &[0.6; 20]].concat(), 3), None);
    }

    #[test]
    fn a_broken_text_is_no_watch() {
        for text in ["", "1", "1 1 2", "1 1 2 3 x", "1 1.5 -2 1 1", "1 1 1 1 1 1"] {
            assert!(text.parse::<LossWatch>().is_err(), "{text}");
        }
    }
}
