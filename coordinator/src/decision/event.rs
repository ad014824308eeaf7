//! What the decisions are made from, and what they are.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

/// Id of a worker: new with every process and after every eviction.
pub type WorkerId = Uuid;

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Opens its data; cannot take part yet.
    Joining,
    /// Waits for a generation.
    Idle,
    /// Works in its generation.
    Stepping,
    /// Has done the last step of the run.
    Completed,
}

/// Where in a step a worker says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waits for a generation.
    Idle,
    /// Waits for other workers in a collective.
    Reduce,
    /// Loads, computes or applies: ends in a few steps' time.
    Work,
    /// Connects, receives state, validates or saves: may take longer than a step.
    Long,
}

/// One rank of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub worker: WorkerId,
    /// Where its collective listens.
    pub address: String,
    /// The micro-batches of every step that it computes; may be empty.
    pub micro_batches: Range<usize>,
}

/// What a worker says when it attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Who.
    pub worker: WorkerId,
    /// The stream, so that the end of an older one is not mistaken for the end of this one.
    pub connection: u64,
    /// Where its collective listens, `host:port`.
    pub address: String,
    /// What it is doing.
    pub standing: Standing,
    /// Generation it works in, or did last; 0 before its first.
    pub generation: u64,
    /// Updates of the state that it holds, if any.
    pub updates: Option<u64>,
}

/// What happened. Reports of workers name the generation they were made in; those of another one change nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A stream began with a hello.
    Attached(Arrival),
    /// A stream ended.
    Detached {
        /// Whose.
        worker: WorkerId,
        /// Which stream.
        connection: u64,
    },
    /// A joining worker can take part.
    Ready {
        /// Who.
        worker: WorkerId,
    },
    /// A worker is alive.
    Heartbeat {
        /// Who.
        worker: WorkerId,
        /// Its generation.
        generation: u64,
        /// Updates it has committed.
        updates: u64,
        /// What it does.
        phase: Phase,
        /// Since when.
        in_phase: Duration,
        /// Its own work in the last step, without waiting for others; zero if not known.
        compute: Duration,
    },
    /// A step was committed.
    Committed {
        /// By whom it is reported.
        worker: WorkerId,
        /// Its generation.
        generation: u64,
        /// Updates in all.
        updates: u64,
        /// How long the step took.
        took: Duration,
    },
    /// A worker stands at the boundary of a planned change.
    Stopped {
        /// Who.
        worker: WorkerId,
        /// Its generation.
        generation: u64,
        /// Updates it has committed.
        updates: u64,
        /// Whether it leaves.
        leaving: bool,
    },
    /// A worker's collective failed; it is back at the start of the step.
    Failed {
        /// Who.
        worker: WorkerId,
        /// Its generation.
        generation: u64,
        /// Updates it has committed.
        updates: u64,
        /// Whom it lost, or waited for in vain.
        suspects: Vec<WorkerId>,
        /// In words.
        reason: String,
    },
    /// A worker was asked to end and takes part until the next boundary.
    Leaving {
        /// Who.
        worker: WorkerId,
    },
    /// A worker has done the last step; from rank 0: and stored the model.
    Completed {
        /// Who.
        worker: WorkerId,
        /// Its generation.
        generation: u64,
        /// How the run ended, in words.
        outcome: String,
    },
    /// The generation that was asked for is ours.
    Claimed {
        /// Its number.
        number: u64,
    },
    /// Someone else holds this or a later generation.
    ClaimLost {
        /// In words.
        reason: String,
    },
    /// The store could not say.
    ClaimFailed {
        /// In words.
        reason: String,
    },
    /// The operator wants the run to stop.
    Drain {
        /// In words.
        reason: String,
    },
    /// Time passes; a few times a second.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Give the worker what it needs to begin.
    Welcome(WorkerId),
    /// Claim generation `number` in the store, and say what became of it.
    Claim {
        /// The generation.
        number: u64,
        /// Its ranks.
        members: Vec<WorkerId>,
    },
    /// Tell `to` that the generation begins.
    Form {
        /// Who is told: all members, or one that missed it.
        to: Vec<WorkerId>,
        /// The generation.
        number: u64,
        /// All its ranks, in order.
        members: Arc<[Member]>,
    },
    /// Tell `to` to stop: after the step under way, or at once.
    Reform {
        /// Who is told.
        to: Vec<WorkerId>,
        /// At once.
        urgent: bool,
        /// Members that will not answer.
        lost: Vec<WorkerId>,
    },
    /// The worker is fenced for ever; close its stream. It may come back under another id.
    Evict(WorkerId),
    /// Close the worker's stream, without fencing it: it attaches again if it can.
    Hangup(WorkerId),
    /// Ask workers to leave.
    Drain(Vec<WorkerId>),
    /// The leaver may end.
    Drained(WorkerId),
    /// Tell workers that the run is over.
    Finish(Vec<WorkerId>),
    /// End this process.
    Exit(Ending),
    /// Nothing is done; people are told.
    Note,
}

/// How a coordinator ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The run is finished.
    Finished,
    /// Another coordinator leads.
    Superseded,
    /// The operator stopped the run.
    Drained,
}

/// An action with its reason, a clause for logs and people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// What is to be done.
    pub action: Action,
    /// Why.
    pub reason: String,
}
