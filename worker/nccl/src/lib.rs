//! NVIDIA's collective communication library (NCCL) as a trait, and the unsafe calls behind it; nothing else.
//!
//! No call here waits for another rank: joining and operations only begin, [`Communicator::poll`] and
//! [`Communicator::idle`] say how far they are. Deadlines, and what failures mean, are the caller's (`jrs-worker`). The
//! exceptions are [`Communicator::abort`] and [`Communicator::destroy`], which may hang if the library does.
//!
//! `loaded` is the library itself (feature `library`). Others who implement the traits are simulations in tests.

#[cfg(feature = "library")]
pub mod loaded;

/// NCCL, or what stands for it.
pub trait Library: Send + Sync + 'static {
    /// A rank's end of a group.
    type Communicator: Communicator;

    /// The library's version as it counts itself: 22203 is 2.22.3.
    ///
    /// # Errors
    /// If it does not say.
    fn version(&self) -> Result<i32, Fault>;
    /// A new group's identity, of which this process keeps the meeting point: its first rank makes it for all.
    ///
    /// # Errors
    /// If the network cannot be used.
    fn unique_id(&self) -> Result<UniqueId, Fault>;
    /// Begins to join the group `id` of `size` ranks as `rank`.
    ///
    /// # Errors
    /// What the library noticed at once; the rest comes from [`Communicator::poll`].
    fn join(&self, id: &UniqueId, size: usize, rank: usize) -> Result<Self::Communicator, Fault>;
}

/// What names a group of ranks. Opaque.
#[derive(Clone, PartialEq, Eq)]
pub struct UniqueId(pub [u8; UniqueId::BYTES]);

impl UniqueId {
    /// Its size.
    pub const BYTES: usize = 128;
}

/// A rank's end of a group. Work is done in the order in which it was asked for.
pub trait Communicator: Send + 'static {
    /// Memory on the device.
    type Memory: Send + 'static;

    /// Whether what was asked for last has begun (an operation) or is done (joining, [`finalize`](Self::finalize)). Nothing
    /// else may be asked for before.
    ///
    /// # Errors
    /// What went wrong here or elsewhere since.
    fn poll(&mut self) -> Result<bool, Fault>;
    /// Whether all operations are done.
    ///
    /// # Errors
    /// If the device failed.
    fn idle(&mut self) -> Result<bool, Fault>;

    /// New memory on the device for `bytes` bytes.
    ///
    /// # Errors
    /// If there is no more.
    fn allocate(&mut self, bytes: usize) -> Result<Self::Memory, Fault>;
    /// Copies `bytes` to the beginning of `memory`.
    ///
    /// # Errors
    /// If they do not fit, or the device failed.
    fn upload(&mut self, memory: &mut Self::Memory, bytes: &[u8]) -> Result<(), Fault>;
    /// Fills `bytes` from the beginning of `memory`.
    ///
    /// # Errors
    /// If it is shorter, or the device failed.
    fn download(&mut self, memory: &Self::Memory, bytes: &mut [u8]) -> Result<(), Fault>;
    /// CubeCL's buffer as memory of this library. It stays where it is until the memory is dropped; everything asked of
    /// `client` before is done when this returns.
    ///
    /// # Errors
    /// If it is on another device, or its computation failed.
    #[cfg(feature = "cube")]
    fn lend(
        &mut self,
        client: &cubecl::client::Client,
        handle: &cubecl::server::Handle,
    ) -> Result<Self::Memory, Fault>;

    /// Begins to reduce the `count` numbers of `memory` behind the `first`, over all ranks, in place.
    ///
    /// # Errors
    /// If they are not all there, or the library refuses.
    fn reduce(
        &mut self,
        reduction: Reduction,
        memory: &mut Self::Memory,
        first: usize,
        count: usize,
    ) -> Result<(), Fault>;
    /// Begins to put the first `bytes` bytes of every rank's `own` into `all`, in rank order.
    ///
    /// # Errors
    /// If they are not all there, or the library refuses.
    fn gather(&mut self, own: &Self::Memory, all: &mut Self::Memory, bytes: usize) -> Result<(), Fault>;
    /// Begins to hand the first `bytes` bytes of `root`'s memory on to all ranks.
    ///
    /// # Errors
    /// If they are not all there, or the library refuses.
    fn broadcast(&mut self, root: usize, memory: &mut Self::Memory, bytes: usize) -> Result<(), Fault>;

    /// Begins to end the group in peace: whatever others still need is sent.
    ///
    /// # Errors
    /// If the library refuses.
    fn finalize(&mut self) -> Result<(), Fault>;
    /// Frees the communicator of a finalized group.
    fn destroy(self);
    /// Breaks off whatever is under way and frees the communicator. May take long, and has been seen to hang.
    fn abort(self);
}

/// What is reduced and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Maximum of i32.
    MaxI32,
    /// Sum of i64.
    SumI64,
}

impl Reduction {
    /// Size of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::MaxI32 => 4,
            Self::SumI64 => 8,
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What kind of failure, as far as the library says.
    pub kind: FaultKind,
    /// In words.
    pub message: String,
}

impl Fault {
    /// A fault of `kind`.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Kinds of failure, as NCCL tells them apart (`ncclResult_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The library is not there or cannot be used.
    Missing,
    /// A call of CUDA failed: this process's device.
    Device,
    /// A call of the operating system failed: mostly a connection that broke.
    System,
    /// The library's own logic, or memory that another rank spoiled.
    Internal,
    /// What was asked makes no sense to it, two ranks on one GPU for instance.
    Usage,
    /// Another rank's process ended, or the network to it failed.
    Remote,
    /// A code that this version does not know.
    Unknown,
}
