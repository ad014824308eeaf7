//! What workers do together: maxima, exact sums, gathering, handing the state on.
//!
//! [`Collective`] is all that training knows of other workers. [`Alone`] is one worker, whose training runs the same code.
//! [`Ring`] is several, over any [`ring::Link`]: TCP between processes ([`tcp`]), channels between threads ([`threads`]).
//! Between GPUs it is NCCL ([`nccl`]).
//! Every implementation passes the same suite (`conformance`).

mod choice;
#[cfg(feature = "cube")]
pub mod device;
pub mod nccl;
pub mod ring;
pub mod tcp;
pub mod threads;

#[cfg(test)]
mod conformance;

pub use choice::Choice;
pub use jrs_kernels::exact_sum;
pub use nccl::Wanted;
pub use ring::Ring;
use std::time::Duration;

/// Operations over all ranks of one generation. All ranks call the same operations in the same order, each with buffers
/// of the same length. After a failure the group is of no more use: form another one.
pub trait Collective: Send {
    /// This worker's number in `0..size`.
    fn rank(&self) -> usize;
    /// Number of workers.
    fn size(&self) -> usize;
    /// What carries the data, for logs.
    fn transport(&self) -> &'static str;
    /// The step that the operations from here on belong to; a peer in another step is refused. `patience` is the longest
    /// that a peer may keep this rank waiting.
    fn begin(&mut self, step: u64, patience: Duration);
    /// Whether the group still stands, as far as can be told without waiting. Asked between micro-batches: what is computed for a
    /// group that is gone is computed for nothing, and the next group waits for it.
    ///
    /// # Errors
    /// What broke it.
    fn check(&mut self) -> Result<(), Failure> {
        Ok(())
    }
    /// Element-wise maximum over all ranks.
    fn max(&mut self, values: &mut [i32]) -> Result<(), Failure>;
    /// Element-wise sum over all ranks; the caller sees to it that it fits.
    fn sum(&mut self, values: &mut [i64]) -> Result<(), Failure>;
    /// What every rank contributes, in rank order; contributions may differ in length.
    fn gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, Failure>;
    /// `root`'s bytes, on every rank; what others pass is ignored.
    fn broadcast(&mut self, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>, Failure>;
    /// Ends the group behind its last operation; all ranks call it. Without it, ranks that still wait see this one go.
    ///
    /// # Errors
    /// If the group fails meanwhile; what was done before stays done.
    fn end(&mut self) -> Result<(), Failure> {
        Ok(())
    }
    /// [`max`](Self::max) over i32 on a device, in place.
    #[cfg(feature = "cube")]
    fn max_on_device(&mut self, values: &device::DeviceValues) -> Result<(), Failure> {
        values.through_host(|values| self.max(values))
    }
    /// [`sum`](Self::sum) over i64 on a device, in place.
    #[cfg(feature = "cube")]
    fn sum_on_device(&mut self, values: &device::DeviceValues) -> Result<(), Failure> {
        values.through_host(|values| self.sum(values))
    }
}

/// Why a collective operation ended without a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", self.who())]
pub struct Failure {
    /// What happened.
    pub cause: Cause,
    /// The rank it was noticed at. Not necessarily the one that failed first: a failure runs around the ring.
    pub suspect: Option<usize>,
    /// In words.
    pub reason: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The connection is gone: the peer's process ended, or it gave up.
    Lost,
    /// The peer kept this rank waiting for longer than allowed.
    Late,
    /// What came is not what was expected: damaged, or of another run, generation or step.
    Garbled,
    /// This rank was told to stop waiting.
    Aborted,
    /// This process's own device or library failed or is stuck: it cannot be in another group either. It has to end, and a new
    /// process may take its place.
    Unusable,
}

impl Failure {
    fn aborted() -> Self {
        Self { cause: Cause::Aborted, suspect: None, reason: "the collective was aborted".to_owned() }
    }

    fn who(&self) -> String {
        self.suspect.map_or_else(|| "the group of workers".to_owned(), |rank| format!("rank {rank}"))
    }
}

/// A group of one: every operation is already done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn transport(&self) -> &'static str {
        "none"
    }

    fn begin(&mut self, _: u64, _: Duration) {}

    fn max(&mut self, _: &mut [i32]) -> Result<(), Failure> {
        Ok(())
    }

    fn sum(&mut self, _: &mut [i64]) -> Result<(), Failure> {
        Ok(())
    }

    fn gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, Failure> {
        Ok(vec![bytes])
    }

    fn broadcast(&mut self, _: usize, bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
        Ok(bytes)
    }

    #[cfg(feature = "cube")]
    fn max_on_device(&mut self, _: &device::DeviceValues) -> Result<(), Failure> {
        Ok(())
    }

    #[cfg(feature = "cube")]
    fn sum_on_device(&mut self, _: &device::DeviceValues) -> Result<(), Failure> {
        Ok(())
    }
}
