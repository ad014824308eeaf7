//! `/metrics` in Prometheus' text format.

use crate::record::now;
use crate::shell::what;
use crate::status::Status;
use jrs_coordinator::decision::Action;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::borrow::Cow;
use std::sync::atomic::AtomicU64;

type Seconds = Gauge<f64, AtomicU64>;

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    received: Family<Kind, Counter>,
    sent: Family<Kind, Counter>,
    decisions: Family<Kind, Counter>,
    refused: Counter,
    steps: Counter,
    step_seconds: Histogram,
    data_wait_seconds: Counter<f64, AtomicU64>,
    checkpoints: Counter,
    checkpoint_seconds: Histogram,
    stall_seconds: Histogram,
    generation: Gauge,
    step: Gauge,
    iteration: Gauge,
    training: Gauge,
    goodput: Seconds,
    workers: Family<InState, Gauge>,
    samples_per_second: Family<Rank, Seconds>,
    data_wait_share: Family<Rank, Seconds>,
    collective_bytes: Family<Direction, Counter>,
    stragglers: Gauge,
    last_step: Seconds,
    last_checkpoint: Seconds,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rank {
    rank: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

impl Metrics {
    pub(crate) fn new(run: &str) -> Self {
        let label = (Cow::Borrowed("run"), Cow::Owned(run.to_owned()));
        let registry = Registry::with_prefix_and_labels("jrs", [label].into_iter());
        let histogram = |least| Histogram::new(exponential_buckets(least, 2.0, 16));
        let mut metrics = Self {
            registry,
            received: Family::default(),
            sent: Family::default(),
            decisions: Family::default(),
            refused: Counter::default(),
            steps: Counter::default(),
            step_seconds: histogram(0.01),
            data_wait_seconds: Counter::default(),
            checkpoints: Counter::default(),
            checkpoint_seconds: histogram(0.01),
            stall_seconds: histogram(0.001),
            generation: Gauge::default(),
            step: Gauge::default(),
            iteration: Gauge::default(),
            training: Gauge::default(),
            goodput: Gauge::default(),
            workers: Family::default(),
            samples_per_second: Family::default(),
            data_wait_share: Family::default(),
            collective_bytes: Family::default(),
            stragglers: Gauge::default(),
            last_step: Gauge::default(),
            last_checkpoint: Gauge::default(),
        };
        // What was before is not known: ages count from here.
        metrics.last_step.set(now());
        metrics.last_checkpoint.set(now());
        metrics.register();
        metrics
    }

    pub(crate) fn received(&self, kind: &'static str) {
        self.received.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn sent(&self, kind: &'static str) {
        self.sent.get_or_create(&Kind { kind }).inc();
    }

    pub(crate) fn refused(&self) {
        self.refused.inc();
    }

    pub(crate) fn decided(&self, action: &Action) {
        self.decisions.get_or_create(&Kind { kind: what(action) }).inc();
    }

    pub(crate) fn committed(&self, seconds: f64, data_wait: f64) {
        self.steps.inc();
        self.last_step.set(now());
        self.step_seconds.observe(seconds);
        self.data_wait_seconds.inc_by(data_wait);
    }

    pub(crate) fn saved(&self, seconds: f64, stall: f64) {
        self.checkpoints.inc();
        self.last_checkpoint.set(now());
        self.checkpoint_seconds.observe(seconds);
        self.stall_seconds.observe(stall);
    }

    /// Bytes that a worker's collectives sent and received since it last said so.
    pub(crate) fn collective(&self, sent: u64, received: u64) {
        for (direction, bytes) in [("sent", sent), ("received", received)] {
            self.collective_bytes.get_or_create(&Direction { direction }).inc_by(bytes);
        }
    }

    /// Takes over what the status says.
    pub(crate) fn show(&self, status: &Status) {
        self.generation.set(status.generation as i64);
        self.step.set(status.step as i64);
        self.iteration.set(status.iteration as i64);
        self.training.set(i64::from(status.mode == "training"));
        self.goodput.set(status.goodput.unwrap_or(0.0));
        self.workers.clear();
        self.samples_per_second.clear();
        self.data_wait_share.clear();
        for worker in &status.workers {
            self.workers.get_or_create(&InState { state: worker.state }).inc();
            let Some(rank) = worker.rank else { continue };
            let rank = Rank { rank: rank as u32 };
            self.samples_per_second.get_or_create(&rank).set(worker.samples_per_second);
            self.data_wait_share.get_or_create(&rank).set(worker.data_wait_share);
        }
        self.stragglers.set(status.workers.iter().filter(|worker| worker.straggler).count() as i64);
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes whatever is written");
        text
    }

    fn register(&mut self) {
        let Self { registry: r, .. } = self;
        r.register("messages_received", "Messages from workers", self.received.clone());
        r.register("messages_sent", "Messages to workers", self.sent.clone());
        r.register("decisions", "What the coordinator decided", self.decisions.clone());
        r.register(
            "messages_refused",
            "Messages and streams that were malformed or unwanted",
            self.refused.clone(),
        );
        r.register("steps", "Steps committed while this coordinator led", self.steps.clone());
        r.register("step_seconds", "Duration of a step", self.step_seconds.clone());
        r.register("data_wait_seconds", "Time that steps waited for data", self.data_wait_seconds.clone());
        r.register("checkpoints", "Checkpoints stored", self.checkpoints.clone());
        r.register("checkpoint_seconds", "Until a checkpoint was stored", self.checkpoint_seconds.clone());
        r.register(
            "checkpoint_stall_seconds",
            "Time that a checkpoint kept training waiting",
            self.stall_seconds.clone(),
        );
        r.register("generation", "The generation that works", self.generation.clone());
        r.register("step", "Newest committed step", self.step.clone());
        r.register("iteration", "Generator iterations done", self.iteration.clone());
        r.register("training", "1 while a generation steps", self.training.clone());
        r.register(
            "goodput_ratio",
            "Share of the time that was spent in steps that counted",
            self.goodput.clone(),
        );
        r.register("workers", "Workers by what they do", self.workers.clone());
        r.register("worker_samples_per_second", "Speed of a rank", self.samples_per_second.clone());
        r.register(
            "worker_data_wait_ratio",
            "Share of its time that a rank waits for data",
            self.data_wait_share.clone(),
        );
        r.register(
            "collective_bytes",
            "Bytes that passed the TCP connections of all workers' collectives, counted at the sockets",
            self.collective_bytes.clone(),
        );
        r.register("stragglers", "Workers much slower than the median", self.stragglers.clone());
        r.register(
            "last_step_timestamp_seconds",
            "Unix time of the newest committed step, or since when this coordinator leads",
            self.last_step.clone(),
        );
        r.register(
            "last_checkpoint_timestamp_seconds",
            "Unix time of the newest checkpoint, or since when this coordinator leads",
            self.last_checkpoint.clone(),
        );
    }
}
