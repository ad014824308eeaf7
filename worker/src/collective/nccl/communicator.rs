//! A rank's communicator with its memory, and how to wait with it.

use super::super::tcp::Abort;
use super::super::{Cause, Failure};
use super::{Tether, meaning};
use jrs_nccl::{Communicator, Fault};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// So long a wait only lets other threads go first: most operations take less.
const SPIN: Duration = Duration::from_millis(1);
/// Then it naps.
const NAP: Duration = Duration::from_micros(100);
/// How often it looks at the tether.
const LOOK: Duration = Duration::from_millis(5);

/// A communicator and what it works on. Nothing of this may go while it works.
pub struct Active<C: Communicator> {
    pub communicator: C,
    /// What this rank contributes.
    pub own: C::Memory,
    /// What all ranks do.
    pub all: C::Memory,
    own_bytes: usize,
    all_bytes: usize,
    /// A buffer of CubeCL under way.
    #[cfg_attr(not(feature = "cube"), allow(dead_code, reason = "only devices lend"))]
    pub lent: Option<C::Memory>,
}

/// How a communicator ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// In peace, after its group was finalized.
    Destroy,
    /// Whatever it does.
    Abort,
}

/// The communicator did not end in time.
#[derive(Debug)]
pub struct Hangs;

impl<C: Communicator> Active<C> {
    pub fn new(mut communicator: C, own_bytes: usize, all_bytes: usize) -> Result<Self, (C, Fault)> {
        match (communicator.allocate(own_bytes), communicator.allocate(all_bytes)) {
            (Ok(own), Ok(all)) => Ok(Self { communicator, own, all, own_bytes, all_bytes, lent: None }),
            (Err(fault), _) | (_, Err(fault)) => Err((communicator, fault)),
        }
    }

    /// Makes the memory large enough. Nothing may be under way.
    pub fn make_room(&mut self, own: usize, all: usize) -> Result<(), Fault> {
        if own > self.own_bytes {
            self.own = self.communicator.allocate(own)?;
            self.own_bytes = own;
        }
        if all > self.all_bytes {
            self.all = self.communicator.allocate(all)?;
            self.all_bytes = all;
        }
        Ok(())
    }

    /// Ends the communicator in a thread of its own, which keeps the memory for as long as it takes.
    pub fn finish(self, how: Finish, patience: Duration) -> Result<(), Hangs> {
        let Self { communicator, own, all, lent, .. } = self;
        let memory = (own, all, lent);
        finish_with(communicator, memory, how, patience)
    }
}

/// Ends a communicator in a thread of its own, and drops `memory` behind it.
pub fn finish_with<C: Communicator>(
    communicator: C,
    memory: impl Send + 'static,
    how: Finish,
    patience: Duration,
) -> Result<(), Hangs> {
    let (done, finished) = channel();
    let work = move || {
        match how {
            Finish::Destroy => communicator.destroy(),
            Finish::Abort => communicator.abort(),
        }
        drop(memory);
        let _ = done.send(()); // whoever gave up does not listen
    };
    // Without a thread the communicator is dropped undone; that it did not end is then true as well.
    let started = std::thread::Builder::new().name("nccl-finish".into()).spawn(work);
    started.map_err(|_| Hangs)?;
    finished.recv_timeout(patience).map_err(|_| Hangs)
}

/// Polls until `done`, or until something else ends the wait.
pub fn wait<C: Communicator>(
    communicator: &mut C,
    tether: &mut Option<Box<dyn Tether>>,
    abort: &Abort,
    what: &str,
    deadline: Instant,
    mut done: impl FnMut(&mut C) -> Result<bool, Fault>,
) -> Result<(), Failure> {
    let started = Instant::now();
    let mut looked = started;
    loop {
        if done(communicator).map_err(|fault| meaning(&fault))? {
            return Ok(());
        }
        if abort.pulled() {
            return Err(Failure::aborted());
        }
        let now = Instant::now();
        if now >= deadline {
            let waited = (now - started).as_secs_f64();
            let reason = format!("NCCL waited {waited:.1} s for {what}");
            return Err(Failure { cause: Cause::Late, suspect: None, reason });
        }
        if now - looked >= LOOK {
            looked = now;
            if let Some(failure) = tether.as_mut().and_then(|tether| tether.broken()) {
                return Err(failure);
            }
        }
        if now - started < SPIN {
            std::thread::yield_now();
        } else {
            std::thread::sleep(NAP);
        }
    }
}
