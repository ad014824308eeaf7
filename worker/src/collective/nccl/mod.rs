//! NCCL between GPUs, one process for each: the collective of production.
//!
//! A generation first connects its ring over TCP ([`super::tcp`]), whose members have proved run, generation and key.
//! Over it they agree on NCCL and take over the group's identity from rank 0 ([`form`]), so that no identity of an older
//! generation can be met. From then on data goes through NCCL alone; the ring stays as a **tether**: a process that ends
//! closes it, which NCCL itself may never notice, and when time is up it tells who still answers.
//!
//! No call waits inside the library. Joining and operations are begun and then polled, and every wait ends with the
//! operation, an error that NCCL found on any rank, a lost tether, an abort from another thread, or the deadline. After a
//! failure the communicator is aborted by a thread of its own; if that hangs, the failure is [`Cause::Unusable`]: only
//! the end of the process frees the device, and another process can take its place.
//!
//! What the ring over TCP writes into every message, step, number, operation and length, is compared here before each
//! operation in one small gathering, which gathering itself needs anyway to know the lengths.

mod communicator;
mod form;
#[cfg(test)]
pub(super) mod simulated;
#[cfg(test)]
mod tests;

pub use form::{Agreement, Offer, Wanted, agree, form};

#[cfg(feature = "cube")]
use super::device::DeviceValues;
use super::ring::{Link, Operation};
use super::tcp::Abort;
use super::{Cause, Collective, Failure, Ring};
use bytemuck::Pod;
use communicator::{Active, Finish};
use jrs_nccl::{Communicator, Fault, FaultKind, Library, Reduction};
use std::time::{Duration, Instant};

/// Credential, step, number, operation, length; each a little-endian u64.
const HEADER: usize = 5 * 8;
/// What is reduced at once, in bytes: large enough for the links' full speed, small enough for staging host values.
const BUCKET: usize = 16 << 20;
/// How long aborting a communicator may take.
const LET_GO: Duration = Duration::from_secs(10);
/// How long ranks may take to answer over the tether.
const ANSWER: Duration = Duration::from_secs(2);

/// What tells whether the other ranks are alive, without NCCL.
pub trait Tether: Send {
    /// A rank that is gone; never waits.
    fn broken(&mut self) -> Option<Failure>;
    /// Waits until all ranks have called this.
    ///
    /// # Errors
    /// Names a rank that did not within `patience`.
    fn meet(&mut self, patience: Duration) -> Result<(), Failure>;
}

impl<L: Link> Tether for Ring<L> {
    fn broken(&mut self) -> Option<Failure> {
        self.link_mut().broken()
    }

    fn meet(&mut self, patience: Duration) -> Result<(), Failure> {
        self.begin(u64::MAX, patience);
        self.gather(Vec::new()).map(|_| ())
    }
}

/// What can differ between groups.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Bytes reduced at once.
    pub bucket: usize,
    /// How long aborting may take before the process has to end.
    pub let_go: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { bucket: BUCKET, let_go: LET_GO }
    }
}

/// [`Collective`] over NCCL.
pub struct Nccl<L: Library> {
    rank: usize,
    size: usize,
    /// None once the group failed or ended.
    active: Option<Active<L::Communicator>>,
    tether: Option<Box<dyn Tether>>,
    abort: Abort,
    settings: Settings,
    /// Stands for (run, generation, key).
    credential: u64,
    step: u64,
    patience: Duration,
    number: u64,
    failed: Option<Failure>,
}

impl<L: Library> Nccl<L> {
    /// Compares with all ranks what is about to be done; their lengths, in rank order.
    fn exchange(
        &mut self,
        operation: Operation,
        length: usize,
        deadline: Instant,
    ) -> Result<Vec<usize>, Failure> {
        let ours = [self.credential, self.step, self.number, operation as u64, length as u64];
        self.number += 1;
        let bytes: Vec<u8> = ours.iter().flat_map(|field| field.to_le_bytes()).collect();
        let all = self.gather_equal(&bytes, HEADER, deadline)?;
        let mut lengths = Vec::with_capacity(self.size);
        for (rank, theirs) in all.chunks_exact(HEADER).enumerate() {
            let field =
                |i: usize| u64::from_le_bytes(theirs[8 * i..8 * i + 8].try_into().expect("eight bytes"));
            let garbled = |reason| Err(Failure { cause: Cause::Garbled, suspect: Some(rank), reason });
            if field(0) != ours[0] {
                return garbled("it is of another run or generation".to_owned());
            }
            if (1..4).any(|i| field(i) != ours[i]) {
                return garbled(format!(
                    "it is at operation {} number {} of step {} where {operation:?} number {} of step {} was due",
                    field(3),
                    field(2),
                    field(1),
                    ours[2],
                    ours[1]
                ));
            }
            let reduces = matches!(operation, Operation::Max | Operation::Sum);
            if reduces && field(4) != ours[4] {
                return garbled(format!("its part has {} numbers, not {length}", field(4)));
            }
            lengths.push(usize::try_from(field(4)).unwrap_or(usize::MAX));
        }
        Ok(lengths)
    }

    /// The `bytes`, padded to `length`, of every rank.
    fn gather_equal(&mut self, bytes: &[u8], length: usize, deadline: Instant) -> Result<Vec<u8>, Failure> {
        let size = self.size;
        self.ask("an operation to begin", deadline, |active| {
            active.make_room(length, size * length)?;
            let Active { communicator, own, all, .. } = active;
            communicator.upload(own, bytes)?;
            communicator.gather(own, all, length)
        })?;
        self.finish(deadline)?;
        let mut gathered = vec![0; size * length];
        self.now(|active| active.communicator.download(&active.all, &mut gathered))?;
        Ok(gathered)
    }

    fn reduce<T: Pod>(
        &mut self,
        operation: Operation,
        reduction: Reduction,
        values: &mut [T],
    ) -> Result<(), Failure> {
        self.whole(|nccl| {
            let deadline = Instant::now() + nccl.patience;
            nccl.exchange(operation, values.len(), deadline)?;
            let bucket = (nccl.settings.bucket / reduction.bytes()).max(1);
            for values in values.chunks_mut(bucket) {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
                nccl.ask("a reduction to begin", deadline, |active| {
                    active.make_room(bytes.len(), 0)?;
                    active.communicator.upload(&mut active.own, bytes)?;
                    let count = bytes.len() / reduction.bytes();
                    active.communicator.reduce(reduction, &mut active.own, 0, count)
                })?;
                nccl.finish(deadline)?;
                nccl.now(|active| active.communicator.download(&active.own, bytes))?;
            }
            Ok(())
        })
    }

    /// The buckets of a buffer on the device, one behind the other.
    #[cfg(feature = "cube")]
    fn reduce_on_device(
        &mut self,
        operation: Operation,
        reduction: Reduction,
        values: &DeviceValues,
    ) -> Result<(), Failure> {
        self.whole(|nccl| {
            let deadline = Instant::now() + nccl.patience;
            nccl.exchange(operation, values.len(), deadline)?;
            if values.is_empty() {
                return Ok(());
            }
            nccl.now(|active| {
                active.lent = Some(active.communicator.lend(values.client(), values.handle())?);
                Ok(())
            })?;
            let bucket = (nccl.settings.bucket / reduction.bytes()).max(1);
            for first in (0..values.len()).step_by(bucket) {
                let count = bucket.min(values.len() - first);
                nccl.ask("a reduction to begin", deadline, |active| {
                    let lent = active.lent.as_mut().expect("lent above");
                    active.communicator.reduce(reduction, lent, first, count)
                })?;
            }
            nccl.finish(deadline)?;
            nccl.now(|active| {
                active.lent = None;
                Ok(())
            })
        })
    }

    /// An operation as a whole: after a failure the group lets go of everything, and stays failed.
    fn whole<T>(&mut self, operation: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        operation(self).map_err(|failure| self.fail(failure))
    }

    /// A call that is done when it returns.
    fn now(
        &mut self,
        call: impl FnOnce(&mut Active<L::Communicator>) -> Result<(), Fault>,
    ) -> Result<(), Failure> {
        call(self.active.as_mut().ok_or_else(ended)?).map_err(|fault| meaning(&fault))
    }

    /// A call that begins something; returns when more may be asked for.
    fn ask(
        &mut self,
        what: &str,
        deadline: Instant,
        call: impl FnOnce(&mut Active<L::Communicator>) -> Result<(), Fault>,
    ) -> Result<(), Failure> {
        self.now(call)?;
        self.wait(what, deadline, |communicator| communicator.poll())
    }

    /// Waits until everything that began is done.
    fn finish(&mut self, deadline: Instant) -> Result<(), Failure> {
        self.wait("other ranks", deadline, |communicator| Ok(communicator.poll()? && communicator.idle()?))
    }

    fn wait(
        &mut self,
        what: &str,
        deadline: Instant,
        done: impl FnMut(&mut L::Communicator) -> Result<bool, Fault>,
    ) -> Result<(), Failure> {
        let communicator = &mut self.active.as_mut().ok_or_else(ended)?.communicator;
        communicator::wait(communicator, &mut self.tether, &self.abort, what, deadline, done)
    }

    /// Lets go of everything after `failure`, which may become another: the rank that no longer answers is named, and if
    /// the communicator does not let go, this process cannot go on.
    fn fail(&mut self, mut failure: Failure) -> Failure {
        if failure.cause == Cause::Late
            && let Some(Err(answer)) = self.tether.as_mut().map(|tether| tether.meet(ANSWER))
        {
            failure.suspect = answer.suspect;
        }
        // First of all the others learn of it.
        self.tether = None;
        if let Some(active) = self.active.take()
            && active.finish(Finish::Abort, self.settings.let_go).is_err()
        {
            failure = stuck(&failure, self.settings.let_go);
        }
        self.failed = Some(failure.clone());
        failure
    }
}

impl<L: Library> Collective for Nccl<L> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn transport(&self) -> &'static str {
        "NCCL"
    }

    fn begin(&mut self, step: u64, patience: Duration) {
        (self.step, self.patience) = (step, patience);
    }

    fn check(&mut self) -> Result<(), Failure> {
        if self.abort.pulled() {
            return Err(Failure::aborted());
        }
        self.tether.as_mut().and_then(|tether| tether.broken()).map_or(Ok(()), Err)
    }

    fn max(&mut self, values: &mut [i32]) -> Result<(), Failure> {
        self.reduce(Operation::Max, Reduction::MaxI32, values)
    }

    fn sum(&mut self, values: &mut [i64]) -> Result<(), Failure> {
        self.reduce(Operation::Sum, Reduction::SumI64, values)
    }

    fn gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, Failure> {
        self.whole(|nccl| {
            let deadline = Instant::now() + nccl.patience;
            let lengths = nccl.exchange(Operation::Gather, bytes.len(), deadline)?;
            let longest = *lengths.iter().max().expect("a group has ranks");
            if longest == 0 {
                return Ok(vec![Vec::new(); nccl.size]);
            }
            let all = nccl.gather_equal(&bytes, longest, deadline)?;
            Ok(all
                .chunks_exact(longest)
                .zip(lengths)
                .map(|(bytes, length)| bytes[..length].to_vec())
                .collect())
        })
    }

    fn broadcast(&mut self, root: usize, mut bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
        self.whole(|nccl| {
            let deadline = Instant::now() + nccl.patience;
            let lengths = nccl.exchange(Operation::Broadcast, bytes.len(), deadline)?;
            bytes.resize(lengths[root], 0);
            if bytes.is_empty() {
                return Ok(bytes);
            }
            let mine = root == nccl.rank;
            nccl.ask("an operation to begin", deadline, |active| {
                active.make_room(bytes.len(), 0)?;
                if mine {
                    active.communicator.upload(&mut active.own, &bytes)?;
                }
                active.communicator.broadcast(root, &mut active.own, bytes.len())
            })?;
            nccl.finish(deadline)?;
            if !mine {
                nccl.now(|active| active.communicator.download(&active.own, &mut bytes))?;
            }
            Ok(bytes)
        })
    }

    #[cfg(feature = "cube")]
    fn max_on_device(&mut self, values: &DeviceValues) -> Result<(), Failure> {
        self.reduce_on_device(Operation::Max, Reduction::MaxI32, values)
    }

    #[cfg(feature = "cube")]
    fn sum_on_device(&mut self, values: &DeviceValues) -> Result<(), Failure> {
        self.reduce_on_device(Operation::Sum, Reduction::SumI64, values)
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.whole(|nccl| {
            // A rank that is through may not take its end away from one that is not.
            nccl.tether.as_mut().map_or(Ok(()), |tether| tether.meet(nccl.patience))?;
            nccl.tether = None;
            let deadline = Instant::now() + nccl.settings.let_go;
            nccl.ask("the group to end", deadline, |active| active.communicator.finalize())?;
            let active = nccl.active.take().ok_or_else(ended)?;
            active
                .finish(Finish::Destroy, nccl.settings.let_go)
                .map_err(|_| stuck(&ended(), nccl.settings.let_go))?;
            nccl.failed = Some(ended());
            Ok(())
        })
    }
}

impl<L: Library> Drop for Nccl<L> {
    fn drop(&mut self) {
        self.tether = None;
        if let Some(active) = self.active.take() {
            // Nobody is left to act on it: the next generation would find out.
            if active.finish(Finish::Abort, self.settings.let_go).is_err() {
                tracing::error!("NCCL did not let go of a communicator that is no longer needed");
            }
        }
    }
}

/// What a fault of the library means for the group.
fn meaning(fault: &Fault) -> Failure {
    let cause = match fault.kind {
        FaultKind::Remote | FaultKind::System | FaultKind::Internal | FaultKind::Unknown => Cause::Lost,
        // Another group would fail in the same way.
        FaultKind::Missing | FaultKind::Device | FaultKind::Usage => Cause::Unusable,
    };
    Failure { cause, suspect: None, reason: format!("NCCL: {fault}") }
}

fn ended() -> Failure {
    Failure { cause: Cause::Aborted, suspect: None, reason: "the group has ended".into() }
}

fn stuck(after: &Failure, waited: Duration) -> Failure {
    let reason = format!(
        "NCCL did not let go of its communicator within {} s after: {after}. Only the end of this process frees the device",
        waited.as_secs_f64()
    );
    Failure { cause: Cause::Unusable, suspect: after.suspect, reason }
}
