//! Events on their way from a worker's monitor to whoever asked for the job.
//!
//! The monitor must not wait for a busy receiver, or it could not watch the clock. So what the receiver's channel does
//! not hold waits here, bounded: of the running figures only the newest, and no more notes than [`MAX_WAITING`].

use std::collections::VecDeque;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::parent::WorkerEvent;

/// The most events that wait for a receiver; further notes are dropped, the turns of a job never are (it has few).
const MAX_WAITING: usize = 64;

/// Whether the receiver still listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// It does.
    Listens,
    /// It was dropped.
    Gone,
}

/// The events that wait, and the channel they wait for.
pub struct Outbox<O> {
    to: Sender<WorkerEvent<O>>,
    waiting: VecDeque<WorkerEvent<O>>,
}

impl<O> Outbox<O> {
    /// Makes an empty outbox.
    pub fn new(to: Sender<WorkerEvent<O>>) -> Self {
        Self { to, waiting: VecDeque::new() }
    }

    /// Puts an event behind those that wait; running figures replace older ones that still wait.
    pub fn push(&mut self, event: WorkerEvent<O>) {
        let full = self.waiting.len() >= MAX_WAITING;
        match (&event, self.waiting.back_mut()) {
            (WorkerEvent::Progress { .. }, Some(last @ WorkerEvent::Progress { .. }))
            | (WorkerEvent::Checkpointed { .. }, Some(last @ WorkerEvent::Checkpointed { .. })) => {
                *last = event;
            }
            (
                WorkerEvent::Note(_)
                | WorkerEvent::Progress { .. }
                | WorkerEvent::Checkpointed { .. },
                _,
            ) if full => {}
            _ => self.waiting.push_back(event),
        }
    }

    /// Hands over what the receiver's channel can hold now.
    pub fn flush(&mut self) -> Receiver {
        while let Some(event) = self.waiting.pop_front() {
            match self.to.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    self.waiting.push_front(event);
                    break;
                }
                Err(TrySendError::Closed(_)) => return Receiver::Gone,
            }
        }
        if self.to.is_closed() { Receiver::Gone } else { Receiver::Listens }
    }

    /// Hands over everything, the last event included, waiting for the receiver as long as it lives.
    pub fn close(self, last: WorkerEvent<O>) {
        for event in self.waiting.into_iter().chain([last]) {
            if self.to.blocking_send(event).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    fn progress(step: usize) -> WorkerEvent<()> {
        let (epoch, epochs, total_steps, loss) = (1, 1, 1_000, 0.5);
        WorkerEvent::Progress {
            epoch,
            epochs,
            step,
            total_steps,
            loss,
            elapsed_ms: 0,
            eta_ms: None,
        }
    }

    #[test]
    fn a_full_channel_keeps_the_newest_figures_and_every_turn() {
        let (to, mut from) = mpsc::channel(1);
        let mut outbox = Outbox::new(to);
        outbox.push(WorkerEvent::Started { pid: 7 });
        for step in 1..=1_000 {
            outbox.push(progress(step));
            assert_eq!(outbox.flush(), Receiver::Listens);
        }
        outbox.push(WorkerEvent::Evaluating);
        for n in 0..10 * MAX_WAITING {
            outbox.push(WorkerEvent::Note(n.to_string()));
        }
        assert!(outbox.waiting.len() <= MAX_WAITING);
        let drained = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some(event) = from.blocking_recv() {
                seen.push(event);
            }
            seen
        });
        outbox.close(WorkerEvent::Checkpointed { step: 1_000 });
        let seen = drained.join().unwrap();
        assert_eq!(
            seen[..3],
            [WorkerEvent::Started { pid: 7 }, progress(1_000), WorkerEvent::Evaluating]
        );
        assert_eq!(seen.last(), Some(&WorkerEvent::Checkpointed { step: 1_000 }));
    }

    #[test]
    fn a_dropped_receiver_is_noticed_without_an_event() {
        let (to, from) = mpsc::channel::<WorkerEvent<()>>(1);
        let mut outbox = Outbox::new(to);
        assert_eq!(outbox.flush(), Receiver::Listens);
        drop(from);
        assert_eq!(outbox.flush(), Receiver::Gone);
    }
}
