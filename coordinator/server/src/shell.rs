//! The one task that owns the state: inputs become events, decisions become messages, claims and log lines.

use crate::convert;
use crate::leadership::{Ask, Identity, Lead};
use crate::metrics::Metrics;
use crate::record::Record;
use crate::service::{Input, Outgoing};
use crate::status::Status;
use crate::{Job, Outcome};
use jrs_coordinator::decision::{Action, Effect, Ending, Event, State, WorkerId};
use jrs_protocol::message::from_coordinator::Body;
use jrs_protocol::message::{self, FromCoordinator};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

const TICK: Duration = Duration::from_millis(200);

/// Every so many ticks the status is drawn anew.
const PUBLISH_TICKS: u32 = 5;

/// How often workers show that they live.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long the last messages have to leave.
const FLUSH: Duration = Duration::from_millis(300);

/// Time since the start of this process, for decisions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// What a shell is made of.
pub(crate) struct Setup {
    pub(crate) run: String,
    pub(crate) me: Identity,
    pub(crate) job: Job,
    pub(crate) state: State,
    pub(crate) clock: Clock,
    pub(crate) lead: Lead,
    pub(crate) publish: watch::Sender<Arc<Status>>,
    pub(crate) metrics: Arc<Metrics>,
}

pub(crate) struct Shell {
    run: String,
    me: Identity,
    job: Job,
    /// `None` only while a step is being decided.
    state: Option<State>,
    clock: Clock,
    lead: Option<Lead>,
    claims: Option<std::sync::mpsc::Sender<Ask>>,
    streams: HashMap<WorkerId, (u64, Outgoing)>,
    record: Record,
    publish: watch::Sender<Arc<Status>>,
    metrics: Arc<Metrics>,
}

impl Shell {
    pub(crate) fn new(setup: Setup) -> Self {
        let Setup { run, me, job, state, clock, lead, publish, metrics } = setup;
        Self {
            run,
            me,
            job,
            state: Some(state),
            clock,
            lead: Some(lead),
            claims: None,
            streams: HashMap::new(),
            record: Record::default(),
            publish,
            metrics,
        }
    }

    /// Works until the run ends, one way or another.
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        sender: mpsc::Sender<Input>,
    ) -> Outcome {
        let lead = self.lead.take().expect("a shell runs once");
        match lead.start(sender) {
            Ok(claims) => self.claims = Some(claims),
            Err(error) => {
                tracing::error!(%error, "cannot lead");
                return Outcome::Ended(Ending::Superseded);
            }
        }
        let (Ok(mut terminate), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            tracing::error!("the system refuses to let this process handle signals");
            return Outcome::Terminated;
        };
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut count = 0_u32;
        loop {
            let ending = tokio::select! {
                Some(input) = inputs.recv() => self.take(input),
                _ = ticks.tick() => {
                    count = count.wrapping_add(1);
                    let ending = self.decide(Event::Tick);
                    if count.is_multiple_of(PUBLISH_TICKS) {
                        self.show();
                    }
                    ending
                }
                _ = interrupt.recv() => self.decide(Event::Drain { reason: "the operator stops the run".to_owned() }),
                _ = terminate.recv() => {
                    tracing::info!(run = self.run, "SIGTERM: the workers go on and wait for the next coordinator");
                    return Outcome::Terminated;
                }
            };
            if let Some(ending) = ending {
                self.show();
                tokio::time::sleep(FLUSH).await;
                return Outcome::Ended(ending);
            }
        }
    }

    fn take(&mut self, input: Input) -> Option<Ending> {
        match input {
            Input::Attached { worker, connection, generation, hello, outgoing } => {
                self.metrics.received("hello");
                self.streams.insert(worker, (connection, outgoing));
                let arrival = convert::arrival(worker, &hello, generation, connection);
                self.record.hello(worker, &hello);
                self.decide(Event::Attached(arrival))
            }
            Input::Said { worker, connection, message } => {
                if self.streams.get(&worker).is_none_or(|(current, _)| *current != connection) {
                    return None;
                }
                let generation = self.state().generation();
                self.metrics.received(kind(&message));
                self.record.said(worker, &message, generation, &self.metrics);
                convert::event(worker, &message).and_then(|event| self.decide(event))
            }
            Input::Gone { worker, connection } => {
                if self.streams.get(&worker).is_some_and(|(current, _)| *current == connection) {
                    self.streams.remove(&worker);
                }
                self.decide(Event::Detached { worker, connection })
            }
            Input::Decided(event) => self.decide(event),
        }
    }

    fn decide(&mut self, event: Event) -> Option<Ending> {
        let state = self.state.take().expect("decisions do not overlap");
        let (state, effects) = state.step(event, self.clock.now());
        self.state = Some(state);
        let mut ending = None;
        for effect in effects {
            self.tell_people(&effect);
            if let Action::Exit(how) = effect.action {
                ending = Some(how);
            } else {
                self.act(effect);
            }
        }
        ending
    }

    fn act(&mut self, Effect { action, reason }: Effect) {
        match action {
            Action::Welcome(worker) => {
                let job = &self.job;
                let welcome = message::Welcome {
                    config_toml: job.config_toml.clone(),
                    dataset_digest: job.dataset_digest.clone(),
                    data_url: job.data_url.clone(),
                    store_url: job.store_url.clone(),
                    heartbeat_ms: HEARTBEAT.as_millis() as u32,
                    resume_step: job.resume_step,
                };
                self.send(&[worker], &Body::Welcome(welcome));
            }
            Action::Claim { number, members } => {
                if let Some(claims) = &self.claims
                    && claims.send(Ask { number, members }).is_err()
                {
                    tracing::error!(run = self.run, "the thread that claims generations is gone");
                }
            }
            Action::Form { to, number, members } => {
                let key = self.record.key(number);
                let formed = convert::generation(number, &members, &key, &reason);
                self.send(&to, &Body::Formed(formed));
            }
            Action::Reform { to, urgent, lost } => {
                let lost = lost.iter().map(ToString::to_string).collect();
                self.send(&to, &Body::Reform(message::Reform { reason, urgent, lost }));
            }
            Action::Evict(worker) => {
                self.send(&[worker], &Body::Evicted(message::Evicted { reason }));
                self.streams.remove(&worker);
                self.record.forget(worker);
            }
            Action::Hangup(worker) => drop(self.streams.remove(&worker)),
            Action::Drain(to) => self.send(&to, &Body::Drain(message::Drain { reason })),
            Action::Drained(worker) => self.send(&[worker], &Body::Drained(message::Drained {})),
            Action::Finish(to) => self.send(&to, &Body::Finished(message::Finished { outcome: reason })),
            Action::Exit(_) | Action::Note => {}
        }
    }

    /// Sends without waiting: a worker that does not read its messages is cut off.
    fn send(&mut self, to: &[WorkerId], body: &Body) {
        let state = self.state();
        let (generation, step) = (state.claimed(), state.newest());
        for worker in to {
            let Some((_, outgoing)) = self.streams.get(worker) else { continue };
            let message =
                FromCoordinator { run: self.run.clone(), generation, step, body: Some(body.clone()) };
            self.metrics.sent(name(body));
            if outgoing.try_send(Ok(message)).is_err() {
                tracing::warn!(%worker, "this worker does not read its messages; its stream is closed");
                self.streams.remove(worker);
            }
        }
    }

    fn tell_people(&mut self, effect: &Effect) {
        let state = self.state();
        let (generation, step) = (state.generation(), state.newest());
        let (run, reason, what) = (&self.run, &effect.reason, what(&effect.action));
        match effect.action {
            Action::Evict(worker) => tracing::warn!(run, generation, step, %worker, what, reason),
            Action::Welcome(worker) | Action::Drained(worker) | Action::Hangup(worker) => {
                tracing::info!(run, generation, step, %worker, what, reason);
            }
            _ => tracing::info!(run, generation, step, what, reason),
        }
        self.metrics.decided(&effect.action);
        self.record.event(generation, step, what, reason);
    }

    fn show(&mut self) {
        let (state, now) = (self.state(), self.clock.now());
        let status = Status::new(&self.run, &self.me, &self.job, state, &self.record, now);
        self.metrics.show(&status);
        let _ = self.publish.send(Arc::new(status));
    }

    fn state(&self) -> &State {
        self.state.as_ref().expect("decisions do not overlap")
    }
}

/// How logs, metrics and the status page call an action.
pub(crate) fn what(action: &Action) -> &'static str {
    match action {
        Action::Welcome(_) => "welcome",
        Action::Claim { .. } => "claim",
        Action::Form { .. } => "form",
        Action::Reform { urgent: true, .. } => "stop now",
        Action::Reform { .. } => "stop",
        Action::Evict(_) => "evict",
        Action::Hangup(_) => "hang up",
        Action::Drain(_) => "drain",
        Action::Drained(_) => "drained",
        Action::Finish(_) => "finish",
        Action::Exit(_) => "exit",
        Action::Note => "note",
    }
}

fn kind(message: &message::FromWorker) -> &'static str {
    use message::from_worker::Body;
    match message.body {
        None => "nothing",
        Some(Body::Hello(_)) => "hello",
        Some(Body::Ready(_)) => "ready",
        Some(Body::Heartbeat(_)) => "heartbeat",
        Some(Body::Committed(_)) => "committed",
        Some(Body::Saved(_)) => "saved",
        Some(Body::Validated(_)) => "validated",
        Some(Body::Stopped(_)) => "stopped",
        Some(Body::Failed(_)) => "failed",
        Some(Body::Leaving(_)) => "leaving",
        Some(Body::Completed(_)) => "completed",
    }
}

fn name(body: &Body) -> &'static str {
    match body {
        Body::Welcome(_) => "welcome",
        Body::Formed(_) => "generation",
        Body::Reform(_) => "reform",
        Body::Drain(_) => "drain",
        Body::Drained(_) => "drained",
        Body::Evicted(_) => "evicted",
        Body::Refused(_) => "refused",
        Body::Finished(_) => "finished",
    }
}
