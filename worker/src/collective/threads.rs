//! The ring between threads of one process: for tests, and for several devices in one process.

use super::ring::{Link, Message, Ring};
use super::{Cause, Failure};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

/// Channels to and from the neighbours.
pub struct ChannelLink {
    rank: usize,
    size: usize,
    next: Sender<Message>,
    before: Receiver<Message>,
}

/// The `size` ends of a new ring, in rank order.
pub fn ring(size: usize) -> Vec<Ring<ChannelLink>> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..size).map(|_| channel()).unzip();
    receivers
        .into_iter()
        .enumerate()
        .map(|(rank, before)| {
            let next = senders[(rank + 1) % size].clone();
            Ring::new(rank, size, ChannelLink { rank, size, next, before })
        })
        .collect()
}

impl Link for ChannelLink {
    fn transport(&self) -> &'static str {
        "threads"
    }

    fn send(&mut self, message: Message) -> Result<(), Failure> {
        let suspect = Some((self.rank + 1) % self.size);
        self.next.send(message).map_err(|_| Failure {
            cause: Cause::Lost,
            suspect,
            reason: "its thread ended".into(),
        })
    }

    fn broken(&mut self) -> Option<Failure> {
        None // a thread that ends is noticed at the next message
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message, Failure> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let suspect = Some((self.rank + self.size - 1) % self.size);
        self.before.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                Failure { cause: Cause::Late, suspect, reason: "it did not answer in time".into() }
            }
            RecvTimeoutError::Disconnected => {
                Failure { cause: Cause::Lost, suspect, reason: "its thread ended".into() }
            }
        })
    }
}
