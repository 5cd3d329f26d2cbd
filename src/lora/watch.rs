//! Sees when a loss explodes, so that training can stop before its time.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

/// Steps whose mean counts as the present loss: one batch of hard examples must not end a job.
const RECENT: usize = 5;
/// The present loss is exploded above this multiple of the first epoch's mean…
const FACTOR: f64 = 2.0;
/// …plus this, in nats: a loss that is small already may double without harm.
const MARGIN: f64 = 1.0;

/// The losses that decide; kept in a checkpoint, so that a resumed run stops where an unbroken one does.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LossWatch {
    /// Of the first step.
    first: f64,
    first_sum: f64,
    first_steps: usize,
    first_is_over: bool,
    recent: VecDeque<f64>,
}

impl LossWatch {
    /// Takes a step's loss in; returns the bound if the mean of the last steps is above it: that of twice the first
    /// epoch's mean plus 1 nat, or of 1 nat above guessing, which costs `ln(vocab)`, unless the first step's loss was worse than that.
    pub fn exploded(&mut self, epoch: usize, loss: f64, vocab: usize) -> Option<f64> {
        if self.recent.is_empty() {
            self.first = loss;
        }
        if epoch == 1 {
            self.first_sum += loss;
            self.first_steps += 1;
        } else {
            self.first_is_over = true;
        }
        self.recent.push_back(loss);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        let guess = (vocab as f64).ln();
        // A model that guesses badly from the start tells nothing by it.
        let guessing = if self.first < guess { guess + MARGIN } else { f64::INFINITY };
        let bound = if self.first_is_over && self.first_steps > 0 {
            guessing.min(FACTOR * self.first_sum / self.first_steps as f64 + MARGIN)
        } else {
            guessing
        };
        let mean = self.recent.iter().sum::<f64>() / self.recent.len() as f64;
        (self.recent.len() == RECENT && mean > bound).then_some(bound)
    }
}

impl fmt::Display for LossWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The shortest texts that read back as the same numbers.
        let Self { first, first_sum, first_steps, first_is_over, .. } = self;
        write!(f, "{first} {first_sum} {first_steps} {first_is_over}")?;
        self.recent.iter().try_for_each(|loss| write!(f, " {loss}"))
    }
}

impl FromStr for LossWatch {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or(());
        Ok(Self {
            first: next()?.parse().map_err(drop)?,
            first_sum: next()?.parse().map_err(drop)?,
            first_steps: next()?.parse().map_err(drop)?,
            first_is_over: next()?.parse().map_err(drop)?,
            recent: words.map(|w| w.parse().map_err(drop)).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The step, from 1, at which the watch gives up; epochs of three steps.
    fn stops_at(losses: &[f64], vocab: usize) -> Option<usize> {
        let mut watch = LossWatch::default();
        let at = losses.iter().enumerate().position(|(step, &loss)| {
            // Every step goes through a checkpoint.
            watch = watch.to_string().parse().unwrap();
            watch.exploded(1 + step / 3, loss, vocab).is_some()
        });
        at.map(|step| step + 1)
    }

    #[test]
    fn a_mean_above_twice_the_first_epochs_stops() {
        // The bound is 2 · 3 + 1; (3 + 4 · 8) / 5 is not above it.
        assert_eq!(stops_at(&[&[3.0; 6][..], &[8.0; 6]].concat(), usize::MAX), Some(11));
        assert_eq!(stops_at(&[&[3.0; 6][..], &[9.0; 6]].concat(), usize::MAX), Some(10));
    }

    #[test]
    fn single_spikes_and_small_losses_that_double_go_on() {
        let spiky: Vec<f64> = (0..60).map(|i| if i % 7 == 0 { 12.0 } else { 3.0 }).collect();
        assert_eq!(stops_at(&spiky, usize::MAX), None);
        assert_eq!(stops_at(&[&[0.1; 6][..], &[1.0; 20]].concat(), usize::MAX), None);
        assert_eq!(stops_at(&[5.0; 40], 2048), None);
        assert_eq!(stops_at(&[12.0; 40], 2048), None, "a model that guesses badly from the start");
    }

    #[test]
    fn a_loss_worse_than_guessing_stops_in_the_first_epoch_too() {
        // ln 2048 + 1 is 8.6.
        let mut watch = LossWatch::default();
        let losses = [3.0, 9.0, 9.0, 9.0, 9.0, 9.0];
        let bounds: Vec<_> = losses.into_iter().map(|l| watch.exploded(1, l, 2048)).collect();
        assert_eq!(bounds[..5], [None; 5]);
        assert!(bounds[5].is_some_and(|bound| (bound - 8.62).abs() < 0.01), "{bounds:?}");
    }

    #[test]
    fn a_broken_text_is_no_watch() {
        for text in ["", "1", "1 1 2", "1 1 2 true x", "1 1.5 -2 true"] {
            assert!(text.parse::<LossWatch>().is_err(), "{text}");
        }
    }
}
