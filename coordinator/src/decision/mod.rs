//! The decisions of the coordinator, as a pure function: `step(state, event, now) -> (state, effects)`.
//!
//! Nothing here talks to a network, a store or a clock, so that random orders of events can be tried by the million
//! ([`crate::simulation`]) and a thousand workers cost nothing but memory. Every effect has its reason in words.
//!
//! A **generation** is a set of workers that step together. It is claimed in the store before anybody hears of it, and
//! its number only grows. Whatever changes the set ends it: members are asked to stop after the step under way (a
//! newcomer, a leaver) or at once (a member is lost, so that no collective can end). Once all of them stand still, the
//! next one is claimed and formed from everyone who is ready. A lost member is **fenced**: its id never comes back.
//!
//! A **successor** of a lost coordinator knows the last generation from the store. Its members step on without a
//! coordinator, re-attach, and are adopted as they are. The same waiting is done when most members seem to vanish
//! at once: then it is this side's network that failed, and putting everybody out would lose committed steps.

mod attach;
mod event;
mod formation;
mod policy;
mod report;
mod view;
mod watch;

pub use event::{Action, Arrival, Effect, Ending, Event, Member, Phase, Standing, WorkerId};
pub use policy::Policy;
pub use view::{ModeView, WorkerView};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::plan::MicroBatches;

/// Steps whose duration is remembered.
const RECENT_STEPS: usize = 15;

/// Everything the decisions depend on.
#[derive(Debug, Clone)]
pub struct State {
    policy: Policy,
    cut: MicroBatches,
    workers: BTreeMap<WorkerId, Worker>,
    fenced: BTreeSet<WorkerId>,
    /// Leavers that were let go.
    dismissed: BTreeSet<WorkerId>,
    /// Newest generation that this coordinator or an earlier one claimed.
    claimed: u64,
    /// Newest generation that was asked for.
    asked: u64,
    /// The generation that works, or did last.
    formation: Option<Formation>,
    /// Whether this run ever had one.
    formed_before: bool,
    mode: Mode,
    /// Since when newcomers wait while others work.
    newcomers_since: Option<Duration>,
    /// Newest committed update.
    newest: u64,
    /// What recent steps took, by the micro-batch of the rank that had most of them.
    recent_work: VecDeque<Duration>,
    /// Hosts whose worker was put out: until when they are left alone, and how often it happened.
    held_off: BTreeMap<String, (Duration, u32)>,
    /// Generations in a row that failed before their first step.
    failures: u32,
    stragglers: BTreeSet<WorkerId>,
    stragglers_judged: Duration,
    draining: Option<Duration>,
    arrivals: u64,
    last_tick: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Worker {
    address: String,
    /// The stream; `None` while it is away.
    connection: Option<u64>,
    standing: Standing,
    leaving: bool,
    /// Updates of the state it holds.
    updates: Option<u64>,
    /// When it was last heard of, or its stream ended.
    heard: Duration,
    phase: Phase,
    phase_since: Duration,
    compute: Duration,
    rank: Option<usize>,
    arrival: u64,
}

#[derive(Debug, Clone)]
struct Formation {
    number: u64,
    /// In order of rank.
    members: Arc<[Member]>,
    /// Adopted from another coordinator: then the members' addresses are not known.
    adopted: bool,
    /// Newest committed update when it was formed.
    start: u64,
    /// Who is suspected by whom.
    suspicion: BTreeMap<WorkerId, BTreeSet<WorkerId>>,
}

#[derive(Debug, Clone)]
enum Mode {
    /// Nobody steps; waits for workers.
    Gathering { since: Duration },
    /// Members of the last generation step or wait somewhere; waits for them to attach.
    Adopting { until: Duration },
    /// A generation steps.
    Running,
    /// Waits for members to stand still.
    Reforming { reason: String, urgent: bool, deadline: Duration, awaiting: BTreeSet<WorkerId> },
    /// Waits for the store.
    Claiming { number: u64, members: Vec<WorkerId>, reason: String, retry: Option<Duration> },
    /// The model is stored.
    Finished { since: Duration, outcome: String },
}

/// What a successor finds in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predecessor {
    /// The generation its workers may still step in.
    pub generation: u64,
    /// Its ranks, in order.
    pub members: Vec<WorkerId>,
}

impl State {
    /// A coordinator that claimed generation `claimed` at `now`: the first of its run, or a successor. `cut` is how the
    /// run cuts its steps into micro-batches.
    pub fn new(
        policy: Policy,
        cut: MicroBatches,
        claimed: u64,
        predecessor: Option<Predecessor>,
        now: Duration,
    ) -> Self {
        let mode = match &predecessor {
            Some(_) => Mode::Adopting { until: now + policy.adoption },
            None => Mode::Gathering { since: now },
        };
        let formed_before = predecessor.is_some();
        let formation = predecessor.map(|before| {
            let ids: Vec<(WorkerId, String)> =
                before.members.into_iter().map(|worker| (worker, String::new())).collect();
            Formation {
                number: before.generation,
                members: formation::assign(&cut, ids),
                adopted: true,
                start: 0,
                suspicion: BTreeMap::new(),
            }
        });
        Self {
            policy,
            cut,
            workers: BTreeMap::new(),
            fenced: BTreeSet::new(),
            dismissed: BTreeSet::new(),
            claimed,
            asked: claimed,
            formation,
            formed_before,
            mode,
            newcomers_since: None,
            newest: 0,
            recent_work: VecDeque::new(),
            held_off: BTreeMap::new(),
            failures: 0,
            stragglers: BTreeSet::new(),
            stragglers_judged: now,
            draining: None,
            arrivals: 0,
            last_tick: None,
        }
    }

    /// What follows from `event` at `now`, a time that never goes back.
    pub fn step(mut self, event: Event, now: Duration) -> (Self, Vec<Effect>) {
        let mut effects = Vec::new();
        let out = &mut effects;
        match event {
            Event::Attached(arrival) => self.attached(arrival, now, out),
            Event::Detached { worker, connection } => self.detached(worker, connection, now, out),
            Event::Ready { worker } => self.ready(worker, now, out),
            Event::Leaving { worker } => self.leaving(worker, now, out),
            Event::Heartbeat { worker, generation, updates, phase, in_phase, compute } => {
                self.heard(worker, now);
                self.heartbeat(worker, generation, updates, phase, now.saturating_sub(in_phase), compute);
            }
            Event::Committed { worker, generation, updates, took } => {
                self.heard(worker, now);
                self.committed(worker, generation, updates, took);
            }
            Event::Stopped { worker, generation, updates, leaving } => {
                self.heard(worker, now);
                self.stopped(worker, generation, updates, leaving, now, out);
            }
            Event::Failed { worker, generation, updates, suspects, reason } => {
                self.heard(worker, now);
                self.failed(worker, generation, updates, &suspects, &reason, now, out);
            }
            Event::Completed { worker, generation, outcome } => {
                self.heard(worker, now);
                self.completed(worker, generation, &outcome, now, out);
            }
            Event::Claimed { number } => self.claim_succeeded(number, now, out),
            Event::ClaimLost { reason } => out.push(Effect::new(Action::Exit(Ending::Superseded), reason)),
            Event::ClaimFailed { reason } => self.claim_failed(&reason, now, out),
            Event::Drain { reason } => self.drain(&reason, now, out),
            Event::Tick => self.tick(now, out),
        }
        (self, effects)
    }

    fn heard(&mut self, worker: WorkerId, now: Duration) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.heard = now;
        }
    }

    /// The worker, if it is a member of the generation that the report names: the fence for late reports.
    fn member(&mut self, worker: WorkerId, generation: u64) -> Option<&mut Worker> {
        let current = self.formation.as_ref().map(|formation| formation.number);
        let worker = self.workers.get_mut(&worker)?;
        (current == Some(generation) && worker.rank.is_some()).then_some(worker)
    }

    fn drain(&mut self, reason: &str, now: Duration, out: &mut Vec<Effect>) {
        if self.draining.is_some() {
            return;
        }
        self.draining = Some(now);
        out.push(Effect::new(Action::Drain(self.attached_ids()), reason));
    }

    fn attached_ids(&self) -> Vec<WorkerId> {
        let attached = |(id, worker): (&WorkerId, &Worker)| worker.connection.map(|_| *id);
        self.workers.iter().filter_map(attached).collect()
    }

    fn members(&self) -> &[Member] {
        self.formation.as_ref().map_or(&[], |formation| &formation.members)
    }
}

impl Effect {
    fn new(action: Action, reason: impl Into<String>) -> Self {
        Self { action, reason: reason.into() }
    }
}

/// How messages call a worker: the first eight digits of its id.
fn short(worker: WorkerId) -> String {
    worker.simple().to_string()[..8].to_owned()
}
