//! A world for the decisions: workers, streams, a store and a clock, all imagined, so that hours of a thousand workers'
//! failures pass in seconds.
//!
//! Workers behave as real ones do: they step together, notice a dead member, roll back, report, and wait. The world
//! decides who dies, freezes or is cut off, and when. What must hold is checked all along: the [`Checker`] looks at
//! effects, the world at steps (no committed step is done twice by two generations, and none is lost while someone
//! lives who has it).

mod checker;
mod world;

pub use checker::Checker;
pub use world::World;

use std::time::Duration;

/// How fast things are in the world.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    /// A message's way.
    pub message: Duration,
    /// Claiming a generation in the store.
    pub claim: Duration,
    /// Opening a collective and receiving state.
    pub connect: Duration,
    /// One training step.
    pub step: Duration,
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// From the start of a worker's process until it is ready.
    pub start: Duration,
    /// Until a scheduler starts the replacement of a dead one.
    pub replace: Duration,
    /// Members that are missing when a collective opens are given up after this.
    pub connect_deadline: Duration,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            message: Duration::from_millis(2),
            claim: Duration::from_millis(50),
            connect: Duration::from_millis(500),
            step: Duration::from_secs(1),
            heartbeat: Duration::from_secs(1),
            start: Duration::from_secs(5),
            replace: Duration::from_secs(2),
            connect_deadline: Duration::from_secs(5),
            checkpoint_every: 50,
        }
    }
}

/// What can go wrong. Numbers choose among the workers that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A worker's process dies; a replacement is started.
    Kill(usize),
    /// A worker stands still for a while, and then goes on as if nothing had happened.
    Freeze(usize, Duration),
    /// A worker's stream to the coordinator breaks; it attaches again.
    Cut(usize),
    /// A worker is asked to leave; nobody replaces it.
    Leave(usize),
    /// One more worker is started.
    Join,
    /// The coordinator dies; its successor is there after a second.
    Coordinator,
    /// The next claim fails: the store answers with an error.
    Store,
}

/// What happened in the world.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Steps committed, each counted once.
    pub steps: u64,
    /// Steps that were committed and had to be done again, because nobody who had them was left.
    pub lost_steps: u64,
    /// Decisions taken.
    pub decisions: u64,
    /// Real time they took.
    pub deciding: Duration,
    /// Longest single decision.
    pub slowest: Duration,
    /// Generations formed.
    pub generations: u64,
    /// From each fault that stopped the steps to the next committed step.
    pub recoveries: Vec<Duration>,
    /// Imagined time that passed.
    pub elapsed: Duration,
    /// Messages from and to workers.
    pub messages: u64,
}

impl Report {
    /// Share of the time that was spent in steps that counted, for steps of length `step`.
    pub fn goodput(&self, step: Duration) -> f64 {
        (self.steps - self.lost_steps) as f64 * step.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}
