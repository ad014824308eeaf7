//! How a generation's ranks come to a communicator: they agree on NCCL, take over its identity, and join.

use super::communicator::{Active, Finish, finish_with};
use super::{HEADER, Nccl, Settings, Tether, meaning, stuck};
use crate::collective::ring::{Link, Operation};
use crate::collective::tcp::Abort;
use crate::collective::{Cause, Collective, Failure, Ring};
use jrs_nccl::{Fault, FaultKind, Library, UniqueId};
use std::time::{Duration, Instant};

/// The first version whose calls and structures are those used here (non-blocking communicators with their settings).
const OLDEST: i32 = 2_18_00;
/// A next major version may mean anything.
const BEYOND: i32 = 3_00_00;
/// Until a step says how long to wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a worker was told to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// The ring over TCP.
    Tcp,
    /// NCCL and nothing else.
    Nccl,
    /// NCCL between GPUs where all have it, TCP otherwise.
    #[default]
    Auto,
}

/// What a rank brings to the agreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Version of its NCCL, or why it takes part in none.
    pub nccl: Result<i32, String>,
    /// Whether it was told to use nothing else.
    pub required: bool,
}

impl Offer {
    /// What a worker offers that was told `wanted`; `library` is only asked for if that may be NCCL.
    pub fn new<L: Library>(wanted: Wanted, library: impl FnOnce() -> Result<L, Fault>) -> (Self, Option<L>) {
        let required = wanted == Wanted::Nccl;
        if wanted == Wanted::Tcp {
            return (Self { nccl: Err("it was told to use TCP".into()), required }, None);
        }
        let found = library().and_then(|library| {
            let version = library.version()?;
            supported(version)?;
            Ok((library, version))
        });
        match found {
            Ok((library, version)) => (Self { nccl: Ok(version), required }, Some(library)),
            Err(fault) => (Self { nccl: Err(fault.to_string()), required }, None),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let (version, reason) = match &self.nccl {
            Ok(version) => (*version, ""),
            Err(reason) => (0, reason.as_str()),
        };
        [&[u8::from(self.required)][..], &version.to_le_bytes(), reason.as_bytes()].concat()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[required, a, b, c, d], reason) = bytes.split_first_chunk::<5>()?;
        let version = i32::from_le_bytes([a, b, c, d]);
        let reason = String::from_utf8_lossy(reason).into_owned();
        Some(Self { nccl: if version == 0 { Err(reason) } else { Ok(version) }, required: required != 0 })
    }
}

/// Whether calls of this version are those that are made here.
fn supported(version: i32) -> Result<(), Fault> {
    if (OLDEST..BEYOND).contains(&version) {
        return Ok(());
    }
    let words = |v: i32| format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100);
    Err(Fault::new(
        FaultKind::Missing,
        format!(
            "NCCL {} is not a version that this program knows ({} up to 2.x)",
            words(version),
            words(OLDEST)
        ),
    ))
}

/// What a generation's ranks use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreement {
    /// All have the same NCCL.
    Nccl,
    /// Not all do, for this reason.
    Tcp(String),
}

/// The same decision on every rank of `ring`.
///
/// # Errors
/// If the ring fails, or a rank that may use nothing but NCCL is in a group that cannot.
pub fn agree(ring: &mut dyn Collective, offer: &Offer) -> Result<Agreement, Failure> {
    let mut offers = Vec::new();
    for (rank, said) in ring.gather(offer.to_bytes())?.iter().enumerate() {
        offers.push(Offer::parse(said).ok_or_else(|| Failure {
            cause: Cause::Garbled,
            suspect: Some(rank),
            reason: "its offer for the collective cannot be read".into(),
        })?);
    }
    let same = offers[0].nccl.clone().ok();
    let other = offers.iter().enumerate().find_map(|(rank, offer)| match (&offer.nccl, same) {
        (Err(reason), _) => Some((rank, reason.clone())),
        (Ok(version), Some(first)) if *version != first => {
            Some((rank, format!("its NCCL has version {version}, and rank 0's {first}")))
        }
        _ => None,
    });
    let Some((rank, reason)) = other else { return Ok(Agreement::Nccl) };
    match offers.iter().position(|offer| offer.required) {
        Some(required) => Err(Failure {
            cause: Cause::Garbled,
            suspect: Some(rank),
            reason: format!("{reason}; and rank {required} may use nothing but NCCL (--collective nccl)"),
        }),
        None => Ok(Agreement::Tcp(format!("rank {rank}: {reason}"))),
    }
}

/// Joins all ranks of `ring` in a communicator; all must call this before the deadline. `credential` stands for (run,
/// generation, key).
///
/// # Errors
/// [`Cause::Unusable`] if this process's library or device is at fault, or does not let go after a failure.
pub fn form<L: Library>(
    library: &L,
    mut ring: Ring<impl Link + 'static>,
    credential: u64,
    settings: Settings,
    deadline: Instant,
    abort: &Abort,
) -> Result<Nccl<L>, Failure> {
    let (rank, size) = (ring.rank(), ring.size());
    ring.begin(0, deadline.saturating_duration_since(Instant::now()));
    let id = identity(library, &mut ring)?;
    let tether: Box<dyn Tether> = Box::new(ring);
    let communicator = library.join(&id, size, rank).map_err(|fault| meaning(&fault))?;
    let active = Active::new(communicator, settings.bucket.max(HEADER), size * HEADER);
    let active = active.map_err(|(communicator, fault)| {
        let failure = meaning(&fault);
        match finish_with(communicator, (), Finish::Abort, settings.let_go) {
            Ok(()) => failure,
            Err(_) => stuck(&failure, settings.let_go),
        }
    })?;
    let mut nccl = Nccl {
        rank,
        size,
        active: Some(active),
        tether: Some(tether),
        abort: abort.clone(),
        settings,
        credential,
        step: 0,
        patience: PATIENCE,
        number: 0,
        failed: None,
    };
    nccl.whole(|nccl| {
        nccl.wait("all ranks to join", deadline, jrs_nccl::Communicator::poll)?;
        // Whether these are the ranks that the ring has.
        nccl.exchange(Operation::Gather, 0, deadline).map(|_| ())
    })?;
    Ok(nccl)
}

/// The group's identity, made by rank 0.
fn identity<L: Library>(library: &L, ring: &mut dyn Collective) -> Result<UniqueId, Failure> {
    let made = (ring.rank() == 0).then(|| library.unique_id());
    let said = match &made {
        Some(Ok(id)) => id.0.to_vec(),
        Some(Err(fault)) => fault.to_string().into_bytes(),
        None => Vec::new(),
    };
    let said = ring.broadcast(0, said)?;
    if let Some(Err(fault)) = made {
        return Err(meaning(&fault));
    }
    let id = <[u8; UniqueId::BYTES]>::try_from(said).map_err(|said| Failure {
        cause: Cause::Lost,
        suspect: Some(0),
        reason: format!("it has no identity for the group: {}", String::from_utf8_lossy(&said)),
    })?;
    Ok(UniqueId(id))
}
