//! Workers, streams, store and clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use super::{Checker, Fault, Pace, Report};
use crate::decision::{
    Action, Arrival, Effect, Event, Member, ModeView, Phase, Policy, Predecessor, Standing, State, WorkerId,
};
use crate::plan::MicroBatches;

/// How often the coordinator looks at the clock.
const TICK: Duration = Duration::from_millis(200);

/// Longest wait of a worker before it attaches again, in milliseconds.
const REATTACH_MS: u64 = 2000;

/// The world; see the module.
#[derive(Debug)]
pub struct World {
    pace: Pace,
    policy: Policy,
    cut: MicroBatches,
    rng: ChaCha8Rng,
    now: Duration,
    agenda: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    planned: Vec<Option<Happening>>,
    free: Vec<usize>,
    sequence: u64,
    /// `None` while there is no coordinator.
    state: Option<State>,
    /// The store: the newest claimed generation, and the newest one with members.
    claimed: u64,
    working: Option<(u64, Vec<WorkerId>)>,
    store_fails: bool,
    formed: u64,
    workers: BTreeMap<WorkerId, Worker>,
    /// Who was put out or let go, even if it does not know yet.
    doomed: BTreeSet<WorkerId>,
    collective: Option<Collective>,
    checkpoint: u64,
    newest: u64,
    stopped_since: Option<Duration>,
    connections: u64,
    checker: Checker,
    report: Report,
}

#[derive(Debug)]
struct Worker {
    connection: Option<u64>,
    frozen_until: Option<Duration>,
    standing: Standing,
    generation: u64,
    updates: Option<u64>,
    leaving: bool,
    /// When its stream's fate or messages changed last; a frozen worker hears later.
    inbox: Vec<Message>,
}

#[derive(Debug)]
struct Collective {
    number: u64,
    members: Arc<[Member]>,
    joined: usize,
    stop: bool,
    /// The step under way, by the number of its end on the agenda; `None` before the first.
    stepping: bool,
}

#[derive(Debug, Clone)]
enum Message {
    Form { number: u64, members: Arc<[Member]> },
    Reform { urgent: bool, lost: Vec<WorkerId> },
    Evicted,
    Leave,
    Drained,
}

#[derive(Debug)]
enum Happening {
    Tick,
    Heartbeat(WorkerId),
    /// The event reaches the coordinator, if the worker's stream of then still stands.
    Arrives {
        from: Option<(WorkerId, u64)>,
        event: Event,
    },
    Delivered(WorkerId, Message),
    Attach(WorkerId),
    Ready(WorkerId),
    Thaw(WorkerId),
    Start,
    ConnectDeadline(u64),
    StepEnd(u64),
    Successor,
}

impl World {
    /// A world with `workers` that are about to attach, in which chance is drawn from `seed`.
    pub fn new(policy: Policy, cut: MicroBatches, pace: Pace, workers: usize, seed: u64) -> Self {
        let state = State::new(policy.clone(), cut, 1, None, Duration::ZERO);
        let mut world = Self {
            pace,
            policy,
            cut,
            rng: ChaCha8Rng::seed_from_u64(seed),
            now: Duration::ZERO,
            agenda: BinaryHeap::new(),
            planned: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            state: Some(state),
            claimed: 1,
            working: None,
            store_fails: false,
            formed: 0,
            workers: BTreeMap::new(),
            doomed: BTreeSet::new(),
            collective: None,
            checkpoint: 0,
            newest: 0,
            stopped_since: None,
            connections: 0,
            checker: Checker::new(cut),
            report: Report::default(),
        };
        world.after(TICK, Happening::Tick);
        (0..workers).for_each(|_| world.start());
        world
    }

    /// Lets `span` pass.
    pub fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(Reverse((at, _, slot))) = self.agenda.peek().copied() {
            if at > until {
                break;
            }
            self.agenda.pop();
            self.now = at;
            let happening = self.planned[slot].take().expect("planned once, taken once");
            self.free.push(slot);
            self.happen(happening);
        }
        self.now = until;
        self.report.elapsed = self.now;
    }

    /// Something goes wrong now. The last worker that can work is left alone, so that there is always a survivor.
    pub fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(which) => {
                if let Some(id) = self.victim(which) {
                    self.steps_are_disturbed(id);
                    self.kill(id);
                    self.after(self.pace.replace, Happening::Start);
                }
            }
            Fault::Freeze(which, span) => {
                if let Some(id) = self.victim(which) {
                    self.steps_are_disturbed(id);
                    self.workers.get_mut(&id).expect("chosen").frozen_until = Some(self.now + span);
                    self.after(span, Happening::Thaw(id));
                }
            }
            Fault::Cut(which) => {
                if let Some(id) = self.some_worker(which) {
                    self.lose_stream(id);
                }
            }
            Fault::Leave(which) => {
                if let Some(id) = self.victim(which) {
                    self.after(self.pace.message, Happening::Delivered(id, Message::Leave));
                }
            }
            Fault::Join => self.start(),
            Fault::Store => self.store_fails = true,
            Fault::Coordinator => {
                if self.state.take().is_some() {
                    let all: Vec<WorkerId> = self.workers.keys().copied().collect();
                    all.into_iter().for_each(|id| self.lose_stream(id));
                    self.after(Duration::from_secs(1), Happening::Successor);
                }
            }
        }
    }

    /// A number below `bound`, drawn from the world's chance.
    pub fn draw(&mut self, bound: f64) -> f64 {
        self.rng.random::<f64>() * bound
    }

    /// What happened so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Everything that should not have happened.
    pub fn violations(&self) -> &[String] {
        &self.checker.violations
    }

    /// Workers put out so far.
    pub fn evictions(&self) -> usize {
        self.checker.evictions()
    }

    /// Whether every worker that lives is a member of a generation that steps.
    pub fn is_whole(&self) -> bool {
        let Some(state) = &self.state else { return false };
        let ranks = state.ranks();
        state.mode() == ModeView::Running && self.workers.keys().all(|id| ranks.contains(id))
    }

    /// The coordinator's state, for messages of tests.
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    fn after(&mut self, span: Duration, happening: Happening) {
        self.sequence += 1;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.planned[slot] = Some(happening);
                slot
            }
            None => {
                self.planned.push(Some(happening));
                self.planned.len() - 1
            }
        };
        self.agenda.push(Reverse((self.now + span, self.sequence, slot)));
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick => {
                self.decide(Event::Tick);
                self.after(TICK, Happening::Tick);
            }
            Happening::Heartbeat(id) => self.heartbeat(id),
            Happening::Arrives { from, event } => {
                let stands = |(id, connection): (WorkerId, u64)| {
                    self.workers.get(&id).is_some_and(|w| w.connection == Some(connection))
                };
                if from.is_none_or(stands) {
                    self.decide(event);
                }
            }
            Happening::Delivered(id, message) => self.deliver(id, message),
            Happening::Attach(id) => self.attach(id),
            Happening::Ready(id) => {
                if let Some(worker) = self.workers.get_mut(&id).filter(|w| w.standing == Standing::Joining) {
                    worker.standing = Standing::Idle;
                    self.say(id, Event::Ready { worker: id });
                }
            }
            Happening::Thaw(id) => self.thaw(id),
            Happening::Start => self.start(),
            Happening::ConnectDeadline(number) => self.connect_deadline(number),
            Happening::StepEnd(number) => self.step_end(number),
            Happening::Successor => self.successor(),
        }
    }

    fn decide(&mut self, event: Event) {
        let Some(state) = self.state.take() else { return };
        let began = Instant::now();
        let (state, effects) = state.step(event, self.now);
        let took = began.elapsed();
        self.state = Some(state);
        self.report.decisions += 1;
        self.report.deciding += took;
        self.report.slowest = self.report.slowest.max(took);
        for effect in effects {
            self.checker.observe(&effect);
            self.act(effect);
        }
    }

    fn act(&mut self, effect: Effect) {
        match effect.action {
            Action::Claim { number, members } => {
                let event = if std::mem::take(&mut self.store_fails) {
                    Event::ClaimFailed { reason: "the store answered 503".to_owned() }
                } else if number <= self.claimed {
                    Event::ClaimLost { reason: format!("generation {} is taken", self.claimed) }
                } else {
                    self.claimed = number;
                    self.working = Some((number, members));
                    self.checker.claimed(number);
                    Event::Claimed { number }
                };
                self.after(self.pace.claim, Happening::Arrives { from: None, event });
            }
            Action::Form { to, number, members } => {
                if number > self.formed {
                    self.formed = number;
                    self.report.generations += 1;
                }
                for id in to {
                    self.tell(id, Message::Form { number, members: Arc::clone(&members) });
                }
            }
            Action::Reform { to, urgent, lost } => {
                to.into_iter().for_each(|id| self.tell(id, Message::Reform { urgent, lost: lost.clone() }));
            }
            Action::Evict(id) => {
                self.doomed.insert(id);
                self.tell(id, Message::Evicted);
            }
            Action::Hangup(id) => self.lose_stream(id),
            Action::Drained(id) => {
                self.doomed.insert(id);
                self.tell(id, Message::Drained);
            }
            Action::Drain(to) => to.into_iter().for_each(|id| self.tell(id, Message::Leave)),
            Action::Exit(ending) => self.checker.violations.push(format!("the coordinator ends: {ending:?}")),
            Action::Welcome(_) | Action::Finish(_) | Action::Note => {}
        }
    }

    fn tell(&mut self, id: WorkerId, message: Message) {
        if self.workers.get(&id).is_some_and(|worker| worker.connection.is_some()) {
            self.report.messages += 1;
            self.after(self.pace.message, Happening::Delivered(id, message));
        }
    }

    fn say(&mut self, id: WorkerId, event: Event) {
        let Some(connection) = self.workers.get(&id).and_then(|worker| worker.connection) else { return };
        self.report.messages += 1;
        self.after(self.pace.message, Happening::Arrives { from: Some((id, connection)), event });
    }

    fn start(&mut self) {
        let id = Uuid::from_u128(self.rng.random());
        let worker = Worker {
            connection: None,
            frozen_until: None,
            standing: Standing::Joining,
            generation: 0,
            updates: None,
            leaving: false,
            inbox: Vec::new(),
        };
        self.workers.insert(id, worker);
        let wait = Duration::from_millis(self.rng.random_range(0..1000));
        self.after(wait, Happening::Attach(id));
        self.after(self.pace.heartbeat, Happening::Heartbeat(id));
    }

    fn attach(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.connection.is_some() || worker.frozen_until.is_some() {
            return;
        }
        if self.state.is_none() {
            let wait = Duration::from_millis(self.rng.random_range(0..REATTACH_MS));
            self.after(wait, Happening::Attach(id));
            return;
        }
        self.connections += 1;
        worker.connection = Some(self.connections);
        let arrival = Arrival {
            worker: id,
            connection: self.connections,
            address: format!("{}:7000", id.simple()),
            standing: worker.standing,
            generation: worker.generation,
            updates: worker.updates,
        };
        let joining = worker.standing == Standing::Joining;
        self.say(id, Event::Attached(arrival));
        if joining {
            self.after(self.pace.start, Happening::Ready(id));
        }
    }

    fn heartbeat(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(&id) else { return };
        if worker.frozen_until.is_none() {
            let phase = if worker.standing == Standing::Stepping { Phase::Reduce } else { Phase::Idle };
            let event = Event::Heartbeat {
                worker: id,
                generation: worker.generation,
                updates: worker.updates.unwrap_or(0),
                phase,
                in_phase: Duration::ZERO,
                compute: self.pace.step,
            };
            self.say(id, event);
        }
        self.after(self.pace.heartbeat, Happening::Heartbeat(id));
    }

    fn deliver(&mut self, id: WorkerId, message: Message) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.frozen_until.is_some() {
            worker.inbox.push(message);
            return;
        }
        match message {
            Message::Form { number, members } => self.enter(id, number, members),
            Message::Reform { urgent: false, .. } => {
                if let Some(collective) = self.collective_of(id) {
                    collective.stop = true;
                }
            }
            Message::Reform { urgent: true, lost } => {
                if self.collective_of(id).is_some() {
                    self.abort(&lost);
                } else if worker_steps(&self.workers, id) {
                    self.fail(id, lost);
                }
            }
            Message::Evicted => {
                self.workers.remove(&id);
                // It comes back under another id, without its state.
                self.after(self.pace.message, Happening::Start);
            }
            Message::Leave => {
                worker.leaving = true;
                self.say(id, Event::Leaving { worker: id });
                if let Some(collective) = self.collective_of(id) {
                    collective.stop = true;
                }
            }
            Message::Drained => drop(self.workers.remove(&id)),
        }
    }

    fn enter(&mut self, id: WorkerId, number: u64, members: Arc<[Member]>) {
        let worker = self.workers.get_mut(&id).expect("it was told");
        if number <= worker.generation || !members.iter().any(|member| member.worker == id) {
            return;
        }
        (worker.generation, worker.standing) = (number, Standing::Stepping);
        if self.collective.as_ref().is_none_or(|c| c.number < number) {
            self.collective = Some(Collective { number, members, joined: 0, stop: false, stepping: false });
            self.after(self.pace.connect_deadline, Happening::ConnectDeadline(number));
        }
        let collective = self.collective.as_mut().expect("just made");
        collective.joined += usize::from(collective.number == number);
        if collective.number == number && collective.joined == collective.members.len() {
            collective.stepping = true;
            self.synchronise();
            self.after(self.pace.connect + self.pace.step, Happening::StepEnd(number));
        }
    }

    /// All members take over the newest state that one of them has, or the checkpoint.
    fn synchronise(&mut self) {
        let ids = self.members();
        let held = ids.iter().filter_map(|id| self.workers.get(id)?.updates).max();
        let newest = held.unwrap_or(self.checkpoint).max(self.checkpoint.min(held.unwrap_or(u64::MAX)));
        if newest < self.newest {
            self.report.lost_steps += self.newest - newest;
            self.newest = newest;
        }
        for id in ids {
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.updates = Some(newest);
            }
        }
    }

    fn step_end(&mut self, number: u64) {
        let Some(collective) = &self.collective else { return };
        if collective.number != number || !collective.stepping {
            return;
        }
        let ids = self.members();
        let stands = |id: &WorkerId| self.workers.get(id).is_none_or(|w| w.frozen_until.is_some());
        if ids.iter().any(stands) {
            // A dead member aborts the collective; a frozen one holds it up.
            self.after(Duration::from_millis(100), Happening::StepEnd(number));
            return;
        }
        let (stop, first) = (collective.stop, ids[0]);
        for id in &ids {
            let worker = self.workers.get_mut(id).expect("looked at");
            worker.updates = worker.updates.map(|updates| updates + 1);
        }
        let updates = self.workers[&first].updates.expect("synchronised");
        if updates != self.newest + 1 {
            self.checker.violations.push(format!("step {updates} is committed after step {}", self.newest));
        }
        self.newest = updates;
        self.report.steps += 1;
        if updates.is_multiple_of(self.pace.checkpoint_every) {
            self.checkpoint = updates;
        }
        if let Some(since) = self.stopped_since.take() {
            self.report.recoveries.push(self.now - since);
        }
        let took = self.pace.step;
        self.say(first, Event::Committed { worker: first, generation: number, updates, took });
        if stop {
            self.collective = None;
            for id in ids {
                let worker = self.workers.get_mut(&id).expect("looked at");
                worker.standing = Standing::Idle;
                let leaving = worker.leaving;
                self.say(id, Event::Stopped { worker: id, generation: number, updates, leaving });
            }
        } else {
            self.after(self.pace.step, Happening::StepEnd(number));
        }
    }

    fn connect_deadline(&mut self, number: u64) {
        let Some(collective) = self.collective.as_ref().filter(|c| c.number == number && !c.stepping) else {
            return;
        };
        let absent = |member: &&Member| {
            self.workers.get(&member.worker).is_none_or(|worker| worker.generation != number)
        };
        let missing: Vec<WorkerId> =
            collective.members.iter().filter(absent).map(|member| member.worker).collect();
        self.abort(&missing);
    }

    /// The collective ends: every member that can report does.
    fn abort(&mut self, suspects: &[WorkerId]) {
        let ids = self.members();
        let number = self.collective.take().map_or(0, |collective| collective.number);
        for id in ids {
            let Some(worker) = self.workers.get(&id) else { continue };
            let inside = worker.generation == number && worker.standing == Standing::Stepping;
            // A frozen one finds out when it wakes up.
            if inside && worker.frozen_until.is_none() {
                self.fail(id, suspects.to_vec());
            }
        }
    }

    fn fail(&mut self, id: WorkerId, suspects: Vec<WorkerId>) {
        let worker = self.workers.get_mut(&id).expect("it reports");
        worker.standing = Standing::Idle;
        let (generation, updates) = (worker.generation, worker.updates.unwrap_or(0));
        let reason = "the collective ended".to_owned();
        self.say(id, Event::Failed { worker: id, generation, updates, suspects, reason });
    }

    fn kill(&mut self, id: WorkerId) {
        let connection = self.workers.remove(&id).and_then(|worker| worker.connection);
        if let Some(connection) = connection {
            let event = Event::Detached { worker: id, connection };
            self.after(self.pace.message, Happening::Arrives { from: None, event });
        }
        if self.members().contains(&id) && self.collective.as_ref().is_some_and(|c| c.stepping) {
            self.abort(&[id]);
        }
    }

    fn thaw(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.frozen_until = None;
        let inbox = std::mem::take(&mut worker.inbox);
        let connected = worker.connection.is_some();
        inbox.into_iter().for_each(|message| self.deliver(id, message));
        let Some(worker) = self.workers.get(&id) else { return };
        let alone = self.collective.as_ref().is_none_or(|c| c.number != worker.generation);
        if worker.standing == Standing::Stepping && alone {
            self.fail(id, Vec::new());
        }
        if !connected {
            self.after(self.pace.message, Happening::Attach(id));
        }
    }

    fn lose_stream(&mut self, id: WorkerId) {
        let Some(connection) = self.workers.get_mut(&id).and_then(|worker| worker.connection.take()) else {
            return;
        };
        let event = Event::Detached { worker: id, connection };
        self.after(self.pace.message, Happening::Arrives { from: None, event });
        let wait = Duration::from_millis(100 + self.rng.random_range(0..1000));
        self.after(wait, Happening::Attach(id));
    }

    fn successor(&mut self) {
        self.claimed += 1;
        self.checker.claimed(self.claimed);
        self.checker.succeeded();
        let predecessor =
            self.working.clone().map(|(generation, members)| Predecessor { generation, members });
        self.state = Some(State::new(self.policy.clone(), self.cut, self.claimed, predecessor, self.now));
    }

    fn steps_are_disturbed(&mut self, id: WorkerId) {
        if self.members().contains(&id) {
            self.stopped_since.get_or_insert(self.now);
        }
    }

    fn collective_of(&mut self, id: WorkerId) -> Option<&mut Collective> {
        let generation = self.workers.get(&id)?.generation;
        self.collective.as_mut().filter(|collective| collective.number == generation)
    }

    fn members(&self) -> Vec<WorkerId> {
        let members = self.collective.iter().flat_map(|collective| collective.members.iter());
        members.map(|member| member.worker).collect()
    }

    /// A worker to harm: never the last one with a state that could go on.
    fn victim(&self, which: usize) -> Option<WorkerId> {
        let members = match (&self.state, &self.working) {
            (Some(state), _) => state.ranks(),
            (None, Some((_, members))) => members.clone(),
            (None, None) => Vec::new(),
        };
        let survives = |id: &WorkerId, worker: &Worker| {
            let awake = worker.frozen_until.is_none() && !worker.leaving;
            awake && worker.updates.is_some() && members.contains(id) && !self.doomed.contains(id)
        };
        let id = self.some_worker(which)?;
        self.workers.iter().any(|(other, worker)| *other != id && survives(other, worker)).then_some(id)
    }

    fn some_worker(&self, which: usize) -> Option<WorkerId> {
        let awake: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.frozen_until.is_none())
            .map(|(id, _)| *id)
            .collect();
        (!awake.is_empty()).then(|| awake[which % awake.len()])
    }
}

fn worker_steps(workers: &BTreeMap<WorkerId, Worker>, id: WorkerId) -> bool {
    workers.get(&id).is_some_and(|worker| worker.standing == Standing::Stepping)
}
