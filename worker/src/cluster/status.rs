//! What a worker is doing, as its two threads and the coordinator see it.

use super::fault::{Fault, Moment};
use crate::collective::tcp::{Abort, Traffic};
use crate::step::{Phase as StepPhase, Watch};
use jrs_protocol::message::from_worker::Body;
use jrs_protocol::message::{FromWorker, Heartbeat, Hello, Phase, Standing};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Shared by the training and the control thread.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Status>>);

/// Where this worker stands.
pub(super) struct Status {
    /// New with every life: process start, or return after an eviction.
    pub worker: Uuid,
    /// Name of the run, once known.
    pub run: String,
    /// Where its collective listens.
    pub address: String,
    pub generation: u64,
    pub rank: usize,
    pub standing: Standing,
    /// Updates and digest of the state in memory.
    pub state: Option<(u64, Vec<u8>)>,
    pub phase: Phase,
    phase_since: Instant,
    /// The next step is a critic update.
    pub critic: bool,
    pub samples_per_second: f64,
    pub compute_seconds: f64,
    pub data_wait_share: f64,
    /// What carries the collective of the generation.
    pub transport: &'static str,
    /// What has passed the collectives' connections.
    traffic: Traffic,
    forward_since: Option<Instant>,
    /// Breaks off the collective of the generation.
    pub abort: Abort,
    /// The newest generation that is to end behind the step under way.
    pub ending: u64,
    /// The newest generation that is to end at once.
    pub aborted: u64,
}

impl Shared {
    pub fn new(address: String, run: String, traffic: Traffic) -> Self {
        Self(Arc::new(Mutex::new(Status {
            worker: Uuid::new_v4(),
            run,
            address,
            generation: 0,
            rank: 0,
            standing: Standing::Joining,
            state: None,
            phase: Phase::Idle,
            phase_since: Instant::now(),
            critic: false,
            samples_per_second: 0.0,
            compute_seconds: 0.0,
            data_wait_share: 0.0,
            transport: "",
            traffic,
            forward_since: None,
            abort: Abort::default(),
            ending: 0,
            aborted: 0,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn enter(&self, phase: Phase) {
        self.lock().enter(phase);
    }

    /// A message of this worker.
    pub fn message(&self, body: Body) -> FromWorker {
        self.lock().message(body)
    }

    pub fn hello(&self) -> FromWorker {
        let status = self.lock();
        let (updates, state_digest) = match &status.state {
            Some((updates, digest)) => (Some(*updates), digest.clone()),
            None => (None, Vec::new()),
        };
        let hello = Hello {
            worker: status.worker.to_string(),
            address: status.address.clone(),
            standing: status.standing.into(),
            updates,
            state_digest,
            version: env!("CARGO_PKG_VERSION").into(),
            host: jrs_telemetry::host_name(),
            process: std::process::id(),
            threads: rayon::current_num_threads() as u32,
        };
        status.message(Body::Hello(hello))
    }

    pub fn heartbeat(&self) -> FromWorker {
        let status = self.lock();
        let heartbeat = Heartbeat {
            phase: status.phase.into(),
            phase_seconds: status.phase_since.elapsed().as_secs_f64(),
            samples_per_second: status.samples_per_second,
            compute_seconds: status.compute_seconds,
            data_wait_share: status.data_wait_share,
            collective: status.transport.into(),
            collective_sent: status.traffic.sent(),
            collective_received: status.traffic.received(),
        };
        status.message(Body::Heartbeat(heartbeat))
    }
}

impl Status {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_since = Instant::now();
    }

    /// The generation in work, and all before it, shall end.
    pub fn end_generation(&mut self) {
        self.ending = self.ending.max(self.generation);
    }

    /// Generations up to this one are broken off, whether they have begun here or not.
    pub fn abort_up_to(&mut self, generation: u64) {
        self.ending = self.ending.max(generation);
        self.aborted = self.aborted.max(generation);
        if self.generation <= generation {
            self.abort.pull();
        }
    }

    /// A generation begins here; it may be over already.
    pub fn begin(&mut self, generation: u64, rank: usize) -> Abort {
        (self.generation, self.rank) = (generation, rank);
        self.standing = Standing::Stepping;
        self.abort = Abort::default();
        self.abort_up_to(self.aborted);
        self.abort.clone()
    }

    fn message(&self, body: Body) -> FromWorker {
        let step = self.state.as_ref().map_or(0, |(updates, _)| *updates);
        FromWorker { run: self.run.clone(), generation: self.generation, step, body: Some(body) }
    }

    /// A step of `generation` was made in `seconds`, of which `wait` were spent waiting for data; `samples` were this
    /// rank's.
    pub fn stepped(&mut self, generation: u64, updates: u64, samples: usize, seconds: f64, wait: Duration) {
        if generation == self.generation {
            // The digest is taken where a generation ends: here it would cost more than it tells.
            self.state = Some((updates, Vec::new()));
        }
        self.samples_per_second = samples as f64 / self.compute_seconds.max(1e-9);
        let share = wait.as_secs_f64() / seconds.max(1e-9);
        self.data_wait_share += 0.05 * (share - self.data_wait_share);
    }
}

/// Follows a step: for heartbeats, and for faults.
pub(super) struct Follower<'f> {
    pub shared: &'f Shared,
    pub faults: &'f [Fault],
}

impl Follower<'_> {
    /// A fault that is due in `phase` happens.
    pub fn strike(&self, phase: &'static str) {
        let (moment, abort) = {
            let status = self.shared.lock();
            let moment = Moment {
                rank: status.rank,
                step: status.state.as_ref().map_or(0, |(updates, _)| *updates),
                phase,
                kind: if status.critic { "critic" } else { "generator" },
            };
            (moment, status.abort.clone())
        };
        self.faults.iter().for_each(|fault| fault.strike(moment, &abort));
    }
}

impl Watch for Follower<'_> {
    fn enter(&self, phase: StepPhase) {
        let (seen, name) = match phase {
            StepPhase::Data => (Phase::Data, "data"),
            StepPhase::Forward => (Phase::Forward, "forward"),
            StepPhase::Reduce => (Phase::Reduce, "reduce"),
            StepPhase::Apply => (Phase::Apply, "apply"),
            StepPhase::Validate => (Phase::Validate, "validate"),
            StepPhase::Commit => (Phase::Commit, "commit"),
        };
        {
            let mut status = self.shared.lock();
            status.enter(seen);
            match phase {
                StepPhase::Forward => status.forward_since = Some(Instant::now()),
                StepPhase::Reduce => {
                    let since = status.forward_since.take();
                    status.compute_seconds = since.map_or(0.0, |since| since.elapsed().as_secs_f64());
                }
                _ => {}
            }
        }
        self.strike(name);
    }

    fn stop(&self) -> bool {
        let status = self.shared.lock();
        status.ending >= status.generation
    }
}
