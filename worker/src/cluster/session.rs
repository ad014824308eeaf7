//! The training thread of a worker: one generation after the other.

use super::control::{Control, Order};
use super::status::{Follower, Shared};
use super::sync::{digest, newest_state};
use super::{Exit, Failed, Keeper, Options};
use crate::collective::tcp::{Abort, Group as Members, Rendezvous};
use crate::collective::{Alone, Cause, Collective, Failure};
use crate::config::TrainConfig;
use crate::step::Group;
use crate::trainer::{Committed, IterationReport, Outcome, StepError, Trainer, ValidationReport};
use burn::tensor::Device;
use jrs_protocol::client::Client;
use jrs_protocol::message::from_worker::Body;
use jrs_protocol::message::{
    self, Completed, Generation, Kind, Phase, Ready, Standing, Stopped, Value, Welcome,
};
use libjrs::Error;
use std::collections::VecDeque;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::ops::Range;
use std::time::{Duration, Instant};

/// All ranks of a generation have to connect within this time.
const CONNECT: Duration = Duration::from_secs(8);
/// The least patience with a rank that computes. That its process died is seen at once, that it stopped by the
/// coordinator; this is for one that hangs while its heartbeats go on.
const PATIENCE: Duration = Duration::from_secs(20);
/// Patience grows with the steps: by this factor of the longest so far.
const PATIENCE_FACTOR: u32 = 10;
/// How long a worker that is done, or leaves, waits for the coordinator to say so.
const FAREWELL: Duration = Duration::from_secs(10);
/// Reports kept for the tables, in case this worker becomes the one that keeps them.
const REPORTS: usize = 1000;
const TICK: Duration = Duration::from_millis(100);

/// A worker's life.
pub(super) struct Session<'k> {
    options: Options,
    device: Device,
    keeper: &'k mut dyn Keeper,
    shared: Shared,
    control: Control,
    rendezvous: Rendezvous,
    run: Option<Run>,
    /// Whether this worker keeps the tables.
    leads: bool,
    reports: VecDeque<(IterationReport, Option<ValidationReport>)>,
    longest_step: Duration,
    /// Seconds that training waited for the last copy of its state.
    stall: f64,
    /// Updates in the last checkpoint begun here.
    saved: Option<u64>,
    /// Until when a leaver waits for leave.
    leave_by: Option<Instant>,
}

/// What there is once the coordinator has said what to train.
struct Run {
    trainer: Trainer,
    resume: Option<u64>,
    /// Whether the trainer has a state of the run, or only a fresh one.
    holds: bool,
}

/// How work in a generation ended.
enum End {
    /// Another generation follows.
    Next,
    /// The run is finished.
    Run(Outcome),
}

impl<'k> Session<'k> {
    pub fn start(options: Options, keeper: &'k mut dyn Keeper) -> Result<Self, Failed> {
        let device = crate::device::open(options.device).map_err(Failed::BadConfig)?;
        tracing::info!(device = %options.device, "computing");
        let rendezvous = Rendezvous::listen(options.listen).map_err(|error| {
            Failed::BadConfig(Error::input(
                format!("the collective cannot listen at {}: {error}", options.listen),
                "Choose another --listen address",
            ))
        })?;
        let address = advertised(&options, rendezvous.address())?;
        tracing::info!(address, collective = options.collective.describe(), "listening for other workers");
        let shared =
            Shared::new(address, options.run.clone().unwrap_or_default(), rendezvous.traffic().clone());
        let (coordinator, hello) = (options.coordinator.clone(), shared.clone());
        let attach = move || {
            let hello = hello.clone();
            Client::start(&coordinator, move || hello.hello())
        };
        let control = Control::start(attach, shared.clone(), options.interrupt.clone()).map_err(|error| {
            Failed::BadConfig(Error::input(error.to_string(), "Correct the options of the coordinator"))
        })?;
        Ok(Self {
            options,
            device,
            keeper,
            shared,
            control,
            rendezvous,
            run: None,
            leads: false,
            reports: VecDeque::new(),
            longest_step: Duration::ZERO,
            stall: 0.0,
            saved: None,
            leave_by: None,
        })
    }

    pub fn run(mut self) -> Result<Exit, Failed> {
        loop {
            if self.control.leaving() && self.may_leave()? {
                return Ok(Exit::Left);
            }
            let Some(order) = self.control.wait(TICK) else { continue };
            let generation = match order {
                Order::Welcome(welcome, run) => {
                    self.prepare(&welcome, run)?;
                    continue;
                }
                Order::Evicted(reason) => {
                    tracing::warn!(reason, "taken for dead; coming back as a new worker");
                    self.forget();
                    continue;
                }
                Order::Drained => return Ok(Exit::Left),
                Order::Finished => return Ok(Exit::Finished),
                Order::Refused(reason, code) => {
                    tracing::error!(reason, "refused by the coordinator");
                    return Ok(Exit::Refused(code));
                }
                Order::Join(generation) => generation,
            };
            match self.work(&generation)? {
                End::Next => {}
                End::Run(outcome) => match self.complete(outcome)? {
                    Some(exit) => return Ok(exit),
                    None => continue,
                },
            }
        }
    }

    /// Makes what is needed to take part, and says so. A worker that attached anew has it already.
    fn prepare(&mut self, welcome: &Welcome, run: String) -> Result<(), Failed> {
        self.control.heartbeat_every(welcome.heartbeat_ms.into());
        if self.run.is_none() {
            self.shared.lock().run.clone_from(&run);
            let config = TrainConfig::parse(&welcome.config_toml).map_err(|problem| {
                Failed::BadConfig(Error::input(
                    format!("the coordinator's configuration cannot be used: {problem}"),
                    "Run the same version of the program everywhere",
                ))
            })?;
            let url = self.options.data.as_deref().unwrap_or(&welcome.data_url);
            let prepared = (self.options.open_data)(url).map_err(Failed::BadConfig)?;
            if prepared.digest != welcome.dataset_digest {
                return Err(Failed::BadConfig(Error::input(
                    format!(
                        "{url} holds data with digest {}, and the run is on {}",
                        prepared.digest, welcome.dataset_digest
                    ),
                    "Give --data the prepared cache that the coordinator was started with",
                )));
            }
            self.keeper.open(&welcome.store_url, &run).map_err(Failed::Retry)?;
            let trainer = Trainer::new(&config, prepared, self.device.clone()).map_err(Failed::BadConfig)?;
            self.run = Some(Run { trainer, resume: welcome.resume_step, holds: false });
            tracing::info!(run, system = config.system.name(), "ready to take part");
        }
        let mut status = self.shared.lock();
        if status.standing == Standing::Joining {
            let ready = Body::Ready(Ready {});
            drop(status);
            self.control.send(self.shared.message(ready));
            status = self.shared.lock();
            status.standing = Standing::Waiting;
        }
        Ok(())
    }

    /// What an evicted worker holds may be older than what the others did without it.
    fn forget(&mut self) {
        if let Some(run) = &mut self.run {
            run.trainer.reset();
            run.holds = false;
        }
        self.leads = false;
        self.reports.clear();
        self.shared.lock().state = None;
    }

    /// Takes part in a generation until it ends.
    fn work(&mut self, generation: &Generation) -> Result<End, Failed> {
        let number = generation.number;
        let worker = self.shared.lock().worker.to_string();
        let rank = generation.members.iter().position(|member| member.worker == worker);
        let (Some(rank), Some(_)) = (rank, &self.run) else {
            tracing::warn!(generation = number, "ignored a generation without this worker");
            return Ok(End::Next);
        };
        if number <= self.shared.lock().generation {
            return Ok(End::Next); // said twice
        }
        let run = self.shared.lock().run.clone();
        let _span = tracing::info_span!("generation", run, generation = number, rank).entered();
        let abort = self.shared.lock().begin(number, rank);
        tracing::info!(size = generation.members.len(), reason = generation.reason, "generation begins");
        let result =
            self.connect(generation, rank, &abort).map_err(StepError::from).and_then(|mut collective| {
                let end = self.steps(generation, rank, collective.as_mut())?;
                match collective.end() {
                    Err(failure) if failure.cause == Cause::Unusable => return Err(failure.into()),
                    // All steps are made; the group is of no more use anyway.
                    Err(failure) => tracing::warn!(%failure, "the group did not end in peace"),
                    Ok(()) => {}
                }
                Ok(end)
            });
        match result {
            Ok(End::Next) => self.stopped(),
            Ok(End::Run(outcome)) => return Ok(End::Run(outcome)),
            Err(StepError::Group(failure)) => {
                self.lost(generation, &failure);
                if failure.cause == Cause::Unusable {
                    return Err(Failed::Stuck(Error::input(
                        failure.to_string(),
                        "Nothing is lost: the others go on, and a new process can take this one's place",
                    )));
                }
            }
            Err(StepError::Run(error @ Error::Io { .. })) => return Err(Failed::Retry(error)),
            Err(StepError::Run(error)) => return Err(Failed::BadConfig(error)),
        }
        Ok(End::Next)
    }

    fn connect(
        &self,
        generation: &Generation,
        rank: usize,
        abort: &Abort,
    ) -> Result<Box<dyn Collective>, Failure> {
        self.shared.enter(Phase::Connect);
        if generation.members.len() == 1 {
            self.shared.lock().transport = Alone.transport();
            return Ok(Box::new(Alone));
        }
        let members = Members {
            run: self.shared.lock().run.clone(),
            generation: generation.number,
            key: generation.key.clone(),
            rank,
            addresses: generation.members.iter().map(|member| member.address.clone()).collect(),
        };
        let ring = self.rendezvous.join(&members, Instant::now() + CONNECT, abort)?;
        let credential = u64::from_le_bytes(members.credential());
        let collective = self.options.collective.connect(ring, credential, abort)?;
        let transport = collective.transport();
        self.shared.lock().transport = transport;
        tracing::info!(transport, "collective connected");
        Ok(collective)
    }

    /// Steps until the generation or the run ends.
    fn steps(
        &mut self,
        generation: &Generation,
        rank: usize,
        collective: &mut dyn Collective,
    ) -> Result<End, StepError> {
        self.shared.enter(Phase::Sync);
        let run = self.run.as_mut().expect("checked before");
        let jumped = newest_state(&mut run.trainer, run.holds, run.resume, collective, self.keeper)?;
        run.holds = true;
        if jumped {
            self.leads = false;
            self.reports.clear();
        }
        self.note_state();
        if rank == 0 {
            self.lead(generation.number)?;
        } else {
            self.leads = false;
        }
        let member = &generation.members[rank];
        let mine = member.first_micro_batch as usize..member.end_micro_batch as usize;
        loop {
            let run = self.run.as_mut().expect("checked before");
            if let Some(outcome) = run.trainer.ended() {
                return Ok(End::Run(outcome));
            }
            let committed = self.step(generation.number, mine.clone(), collective)?;
            if rank == 0 {
                self.keep(&committed)?;
            }
            if committed.stop {
                return Ok(End::Next);
            }
        }
    }

    fn step(
        &mut self,
        generation: u64,
        mine: Range<usize>,
        collective: &mut dyn Collective,
    ) -> Result<Committed, StepError> {
        let run = self.run.as_mut().expect("a generation begins with a run");
        let before = run.trainer.cursor();
        let _span = tracing::info_span!("step", step = before.updates).entered();
        self.shared.lock().critic = run.trainer.critic_is_next();
        let patience = PATIENCE.max(self.longest_step * PATIENCE_FACTOR);
        collective.begin(before.updates, patience);
        let clock = Instant::now();
        let follower = Follower { shared: &self.shared, faults: &self.options.faults };
        let positions = run.trainer.positions(&mine);
        let samples = mine.len() * run.trainer.micro_batch();
        let committed = run.trainer.step(mine, &mut Group { collective, watch: &follower })?;
        let took = clock.elapsed();
        if committed.validation.is_none() {
            self.longest_step = self.longest_step.max(took);
        }
        let seconds = took.as_secs_f64();
        let updates = committed.cursor.updates;
        self.shared.lock().stepped(generation, updates, samples, seconds, committed.data_wait);
        if let Some(report) = committed.iteration {
            if self.reports.len() == REPORTS {
                self.reports.pop_front();
            }
            self.reports.push_back((report, committed.validation));
        }
        let (wait, first, end) = (committed.data_wait.as_secs_f64(), positions.start, positions.end);
        tracing::debug!(updates, seconds, wait, first, end, "step committed");
        if collective.rank() == 0 {
            self.control.send(self.shared.message(Body::Committed(told(&committed, seconds))));
            if let Some(validation) = committed.validation {
                let ValidationReport { iteration, msd_mm, best } = validation;
                let validated = message::Validated { iteration, msd_mm, best };
                self.control.send(self.shared.message(Body::Validated(validated)));
            }
        }
        Ok(committed)
    }

    /// Becomes the keeper of the tables. Rows that an earlier one may not have written are written again.
    fn lead(&mut self, generation: u64) -> Result<(), Error> {
        let run = self.run.as_ref().expect("a generation begins with a run");
        if self.leads {
            return Ok(());
        }
        let next = self.reports.front().map_or(run.trainer.cursor().iteration + 1, |(r, _)| r.iteration);
        self.keeper.lead(generation, next)?;
        for (report, validation) in &self.reports {
            self.keeper.iteration(report)?;
            validation.as_ref().map_or(Ok(()), |report| self.keeper.validated(report))?;
        }
        self.leads = true;
        Ok(())
    }

    /// Rank 0 writes down what was committed.
    fn keep(&mut self, committed: &Committed) -> Result<(), Error> {
        if let Some(report) = &committed.iteration {
            self.keeper.iteration(report)?;
        }
        if let Some(report) = &committed.validation {
            self.keeper.validated(report)?;
        }
        if committed.checkpoint_due {
            self.save();
        }
        self.tell_saved();
        Ok(())
    }

    /// Begins a checkpoint. A store that fails costs a checkpoint, not the run.
    fn save(&mut self) {
        self.shared.enter(Phase::Save);
        Follower { shared: &self.shared, faults: &self.options.faults }.strike("save");
        let run = self.run.as_ref().expect("a generation begins with a run");
        let clock = Instant::now();
        let saving = self.keeper.save(run.trainer.cursor(), run.trainer.state());
        self.stall = clock.elapsed().as_secs_f64();
        match saving {
            Ok(()) => self.saved = Some(run.trainer.cursor().updates),
            Err(error) => {
                tracing::error!(%error, "a checkpoint could not be saved; training goes on and will try again");
            }
        }
        tracing::debug!(seconds = self.stall, "training waited for the copy of its state");
    }

    fn tell_saved(&mut self) {
        if let Some(saved) = self.keeper.saved() {
            let saved = message::Saved {
                seconds: saved.seconds,
                stall_seconds: self.stall,
                bytes: saved.bytes,
                last: false,
            };
            self.control.send(self.shared.message(Body::Saved(saved)));
        }
    }

    /// The generation ended behind a step, on all ranks.
    fn stopped(&mut self) {
        self.note_state();
        let leaving = self.control.leaving();
        tracing::info!(leaving, "generation ends behind a step");
        let mut status = self.shared.lock();
        status.standing = Standing::Waiting;
        let state_digest = status.state.as_ref().map(|(_, digest)| digest.clone()).unwrap_or_default();
        drop(status);
        self.shared.enter(Phase::Idle);
        self.control.send(self.shared.message(Body::Stopped(Stopped { state_digest, leaving })));
    }

    /// The generation broke: the step under way never happened.
    fn lost(&mut self, generation: &Generation, failure: &Failure) {
        tracing::warn!(%failure, cause = ?failure.cause, "the collective failed; the step is undone");
        let phase = self.shared.lock().phase;
        self.note_state();
        let mut status = self.shared.lock();
        status.standing = Standing::Waiting;
        drop(status);
        self.shared.enter(Phase::Idle);
        if failure.cause == Cause::Aborted && self.shared.lock().generation != generation.number {
            return; // evicted: the coordinator knows
        }
        let suspect = failure.suspect.and_then(|rank| generation.members.get(rank));
        let failed = message::Failed {
            phase: phase.into(),
            suspects: suspect.map(|member| member.worker.clone()).into_iter().collect(),
            reason: failure.to_string(),
        };
        self.control.send(self.shared.message(Body::Failed(failed)));
    }

    /// Writes down what state is in memory.
    fn note_state(&self) {
        let Some(run) = self.run.as_ref().filter(|run| run.holds) else { return };
        let state = (run.trainer.cursor().updates, digest(&run.trainer.state()).to_vec());
        let mut status = self.shared.lock();
        if status.generation != 0 {
            status.state = Some(state);
        }
    }

    /// Asked to leave, and between two steps: whether to go now. The keeper of the run saves it first, in case the others
    /// leave too. A member waits, for a while, until the coordinator has taken it off the list.
    fn may_leave(&mut self) -> Result<bool, Failed> {
        let by = match self.leave_by {
            Some(by) => by,
            None => {
                if self.leads {
                    self.save();
                    self.keeper.settle().map_err(Failed::Retry)?;
                }
                *self.leave_by.insert(Instant::now() + FAREWELL)
            }
        };
        let member = self.shared.lock().generation != 0;
        Ok(!member || !self.control.attached() || Instant::now() >= by)
    }

    /// All steps are done. The keeper stores what is left; everyone waits until the coordinator knows, because the keeper
    /// may die before it is through.
    fn complete(&mut self, outcome: Outcome) -> Result<Option<Exit>, Failed> {
        self.shared.enter(Phase::Save);
        let outcome = match outcome {
            Outcome::Finished => "finished",
            Outcome::EarlyStop => "early stop",
            Outcome::Interrupted => unreachable!("only a worker alone is interrupted"),
        };
        let run = self.run.as_ref().expect("a run was trained");
        let model = run.trainer.model();
        if self.leads {
            self.keeper.settle().map_err(Failed::Retry)?;
            if self.saved != Some(run.trainer.cursor().updates) {
                self.keeper.save(run.trainer.cursor(), run.trainer.state()).map_err(Failed::Retry)?;
                self.keeper.settle().map_err(Failed::Retry)?;
            }
            self.keeper.keep_model(&model).map_err(Failed::Retry)?;
        }
        self.note_state();
        self.shared.lock().standing = Standing::Completed;
        self.shared.enter(Phase::Idle);
        tracing::info!(outcome, model_sha256 = model.sha256(), "the run is done");
        let completed = Completed { outcome: outcome.into(), model_sha256: model.sha256() };
        let tell = || self.control.send(self.shared.message(Body::Completed(completed.clone())));
        tell();
        let mut away = Instant::now();
        loop {
            if self.control.attached() {
                away = Instant::now();
            } else if away.elapsed() > FAREWELL {
                return Ok(Some(Exit::Finished));
            }
            match self.control.wait(TICK) {
                Some(Order::Finished | Order::Drained) => return Ok(Some(Exit::Finished)),
                Some(Order::Refused(_, code)) => return Ok(Some(Exit::Refused(code))),
                Some(Order::Evicted(_)) => {
                    self.forget();
                    return Ok(None);
                }
                Some(Order::Join(generation)) => {
                    return match self.work(&generation)? {
                        End::Run(outcome) => self.complete(outcome),
                        End::Next => Ok(None),
                    };
                }
                // A coordinator that attaches anew may not have heard it.
                Some(Order::Welcome(..)) => tell(),
                None => {}
            }
        }
    }
}

fn told(committed: &Committed, seconds: f64) -> message::Committed {
    let mut values = Vec::new();
    let mut value = |name: &str, value: f64| values.push(Value { name: name.into(), value });
    if let Some(w) = committed.wasserstein {
        value("wasserstein", w.into());
    }
    if let Some(report) = &committed.iteration {
        let l = &report.losses;
        value("total", l.total.into());
        value("one_minus_dsc", l.dice.into());
        value("one_minus_ncc", l.ncc.into());
        value("bending_energy", l.smoothness.into());
        value("adversarial", l.adversarial.into());
        value("adversarial_ratio", l.adversarial_ratio.into());
        value("gradient_norm", l.gradient_norm.into());
        value("max_displacement_mm", l.max_displacement.into());
        value("learning_rate", report.learning_rate);
    }
    let kind = if committed.iteration.is_some() { Kind::Generator } else { Kind::Critic };
    message::Committed {
        kind: kind.into(),
        iteration: committed.cursor.iteration,
        seconds,
        data_wait_seconds: committed.data_wait.as_secs_f64(),
        values,
    }
}

/// What other workers connect to: as told, or this machine's address on the way to the coordinator.
fn advertised(options: &Options, listening: SocketAddr) -> Result<String, Failed> {
    let port = listening.port();
    if let Some(given) = &options.advertise {
        return Ok(if given.contains(':') { given.clone() } else { format!("{given}:{port}") });
    }
    if !listening.ip().is_unspecified() {
        return Ok(listening.to_string());
    }
    let url = &options.coordinator.url;
    let coordinator = url.split_once("://").map_or(&url[..], |(_, rest)| rest).trim_end_matches('/');
    let towards = |target: SocketAddr| {
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?; // sends nothing: it only chooses a route
        socket.local_addr()
    };
    let found = coordinator.to_socket_addrs().ok().and_then(|mut all| all.next());
    found
        .and_then(|target| towards(target).ok())
        .map(|own| SocketAddr::new(own.ip(), port).to_string())
        .ok_or_else(|| {
            Failed::Retry(Error::input(
                format!("no way to the coordinator at {coordinator} was found"),
                "Check the address, or give --advertise this machine's own",
            ))
        })
}
