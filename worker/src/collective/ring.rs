//! Collective operations around a ring: every rank sends to the next and receives from the one before.
//!
//! Sums and maxima are reduced in parts that travel around once and, finished, once more: a rank sends 2 (N-1)/N of the
//! buffer, whatever N is, which no other scheme undercuts (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009).

use super::{Cause, Collective, Failure};
use std::ops::Range;
use std::time::{Duration, Instant};

/// A one-way connection to the next rank and one from the rank before.
pub trait Link: Send {
    /// What carries the data, for logs.
    fn transport(&self) -> &'static str;
    /// Hands a message over for sending, without waiting for the receiver.
    fn send(&mut self, message: Message) -> Result<(), Failure>;
    /// The next message of the rank before.
    fn receive(&mut self, deadline: Instant) -> Result<Message, Failure>;
    /// A neighbour that is gone, as far as can be told without waiting or taking messages.
    fn broken(&mut self) -> Option<Failure>;
}

/// What travels between neighbours. The receiver compares all but the content with what it expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The step it belongs to.
    pub step: u64,
    /// Running number within the generation.
    pub number: u64,
    /// What is being done.
    pub operation: Operation,
    /// The content.
    pub content: Vec<u8>,
}

/// The collective operations, as messages name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// [`Collective::max`].
    Max = 1,
    /// [`Collective::sum`].
    Sum = 2,
    /// [`Collective::gather`].
    Gather = 3,
    /// [`Collective::broadcast`].
    Broadcast = 4,
}

/// [`Collective`] over a [`Link`].
pub struct Ring<L> {
    rank: usize,
    size: usize,
    link: L,
    step: u64,
    patience: Duration,
    sent: u64,
    received: u64,
}

impl<L: Link> Ring<L> {
    /// The ring in which this worker is `rank` of `size` (at least 2).
    pub fn new(rank: usize, size: usize, link: L) -> Self {
        assert!(size > 1 && rank < size, "rank {rank} of {size} is no ring");
        Self { rank, size, link, step: 0, patience: Duration::from_secs(60), sent: 0, received: 0 }
    }

    /// Its connections.
    pub(super) fn link_mut(&mut self) -> &mut L {
        &mut self.link
    }

    fn send(&mut self, operation: Operation, content: Vec<u8>) -> Result<(), Failure> {
        let message = Message { step: self.step, number: self.sent, operation, content };
        self.sent += 1;
        self.link.send(message)
    }

    fn receive(&mut self, operation: Operation, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let message = self.link.receive(deadline)?;
        let expected = (self.step, self.received, operation);
        if (message.step, message.number, message.operation) != expected {
            return Err(self.garbled(format!(
                "it sent {:?} number {} of step {} where {:?} number {} of step {} was due",
                message.operation, message.number, message.step, operation, self.received, self.step
            )));
        }
        self.received += 1;
        Ok(message.content)
    }

    fn garbled(&self, reason: String) -> Failure {
        Failure { cause: Cause::Garbled, suspect: Some(self.before()), reason }
    }

    fn before(&self) -> usize {
        (self.rank + self.size - 1) % self.size
    }

    /// The part of `n` values that is `steps` behind this rank's own.
    fn part(&self, n: usize, steps: usize) -> Range<usize> {
        let i = (self.rank + 2 * self.size - steps) % self.size;
        i * n / self.size..(i + 1) * n / self.size
    }

    fn reduce<T: Element>(
        &mut self,
        operation: Operation,
        values: &mut [T],
        combine: impl Fn(T, T) -> T,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + self.patience;
        let n = values.len();
        for s in 0..self.size - 1 {
            self.send(operation, T::to_bytes(&values[self.part(n, s)]))?;
            let part = self.part(n, s + 1);
            let theirs = self.part_of::<T>(operation, part.len(), deadline)?;
            for (ours, theirs) in values[part].iter_mut().zip(theirs.chunks_exact(T::BYTES)) {
                *ours = combine(*ours, T::from_bytes(theirs));
            }
        }
        // Now the part behind this rank's is finished here; pass finished parts on.
        for s in 0..self.size - 1 {
            self.send(operation, T::to_bytes(&values[self.part(n, self.size - 1 + s)]))?;
            let part = self.part(n, self.size + s);
            let theirs = self.part_of::<T>(operation, part.len(), deadline)?;
            for (ours, theirs) in values[part].iter_mut().zip(theirs.chunks_exact(T::BYTES)) {
                *ours = T::from_bytes(theirs);
            }
        }
        Ok(())
    }

    fn part_of<T: Element>(
        &mut self,
        operation: Operation,
        values: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let bytes = self.receive(operation, deadline)?;
        if bytes.len() != values * T::BYTES {
            return Err(self.garbled(format!(
                "its part has {} bytes, not {}",
                bytes.len(),
                values * T::BYTES
            )));
        }
        Ok(bytes)
    }
}

impl<L: Link> Collective for Ring<L> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn transport(&self) -> &'static str {
        self.link.transport()
    }

    fn begin(&mut self, step: u64, patience: Duration) {
        (self.step, self.patience) = (step, patience);
    }

    fn check(&mut self) -> Result<(), Failure> {
        self.link.broken().map_or(Ok(()), Err)
    }

    fn max(&mut self, values: &mut [i32]) -> Result<(), Failure> {
        self.reduce(Operation::Max, values, i32::max)
    }

    fn sum(&mut self, values: &mut [i64]) -> Result<(), Failure> {
        self.reduce(Operation::Sum, values, i64::wrapping_add)
    }

    fn gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, Failure> {
        let deadline = Instant::now() + self.patience;
        let mut all = vec![Vec::new(); self.size];
        let mut newest = bytes.clone();
        all[self.rank] = bytes;
        for s in 1..self.size {
            self.send(Operation::Gather, newest)?;
            newest = self.receive(Operation::Gather, deadline)?;
            all[(self.rank + self.size - s) % self.size] = newest.clone();
        }
        Ok(all)
    }

    fn broadcast(&mut self, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + self.patience;
        let distance = (self.rank + self.size - root) % self.size;
        let bytes = if distance == 0 { bytes } else { self.receive(Operation::Broadcast, deadline)? };
        // Numbers stay in step although the ends of the chain only send or only receive.
        if distance == 0 {
            self.received += 1;
        }
        if distance + 1 < self.size {
            self.send(Operation::Broadcast, bytes.clone())?;
        } else {
            self.sent += 1;
        }
        Ok(bytes)
    }
}

/// A number on the wire, little-endian.
trait Element: Copy {
    const BYTES: usize;
    fn put(self, bytes: &mut [u8]);
    fn from_bytes(bytes: &[u8]) -> Self;

    fn to_bytes(values: &[Self]) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * Self::BYTES];
        bytes.chunks_exact_mut(Self::BYTES).zip(values).for_each(|(bytes, value)| value.put(bytes));
        bytes
    }
}

impl Element for i32 {
    const BYTES: usize = 4;

    fn put(self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("chunks of four bytes"))
    }
}

impl Element for i64 {
    const BYTES: usize = 8;

    fn put(self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self::from_le_bytes(bytes.try_into().expect("chunks of eight bytes"))
    }
}
