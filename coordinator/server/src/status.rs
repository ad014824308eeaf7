//! `/status`: everything about the run as one JSON document, which the page draws too.

use crate::Job;
use crate::leadership::Identity;
use crate::record::{EventRow, Record, SavedRow, ValidatedRow, now};
use jrs_coordinator::decision::{ModeView, Standing, State, WorkerView};
use serde::Serialize;
use std::time::Duration;

/// The document. Times are seconds since 1970, durations seconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Status {
    run: String,
    coordinator: String,
    address: String,
    pub(crate) at: f64,
    pub(crate) mode: &'static str,
    pub(crate) generation: u64,
    pub(crate) claimed: u64,
    pub(crate) step: u64,
    steps: u64,
    pub(crate) iteration: u64,
    iterations: u64,
    samples: u64,
    steps_per_second: Option<f64>,
    pub(crate) goodput: Option<f64>,
    eta_seconds: Option<f64>,
    pub(crate) workers: Vec<WorkerRow>,
    losses: LossRows,
    checkpoints: Vec<SavedRow>,
    validations: Vec<ValidatedRow>,
    events: Vec<EventRow>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct WorkerRow {
    id: String,
    pub(crate) rank: Option<usize>,
    host: String,
    process: u32,
    address: String,
    pub(crate) state: &'static str,
    phase: &'static str,
    step: Option<u64>,
    pub(crate) samples_per_second: f64,
    pub(crate) data_wait_share: f64,
    collective: String,
    compute_seconds: f64,
    micro_batches: usize,
    pub(crate) straggler: bool,
    heard_seconds_ago: f64,
}

#[derive(Debug, Clone, Default, Serialize)]
struct LossRows {
    names: Vec<String>,
    rows: Vec<(u64, Vec<Option<f64>>)>,
}

impl Status {
    /// Before the first decision.
    pub(crate) fn starting(run: &str, me: &Identity, job: &Job) -> Self {
        Self {
            run: run.to_owned(),
            coordinator: me.id.clone(),
            address: me.address.clone(),
            at: now(),
            mode: "starting",
            generation: 0,
            claimed: 0,
            step: 0,
            steps: job.updates,
            iteration: 0,
            iterations: job.iterations,
            samples: 0,
            steps_per_second: None,
            goodput: None,
            eta_seconds: None,
            workers: Vec::new(),
            losses: LossRows::default(),
            checkpoints: Vec::new(),
            validations: Vec::new(),
            events: Vec::new(),
        }
    }

    pub(crate) fn new(
        run: &str,
        me: &Identity,
        job: &Job,
        state: &State,
        record: &Record,
        now: Duration,
    ) -> Self {
        let step = state.newest();
        let steps_per_second = record.progress.steps_per_second();
        let left = job.updates.saturating_sub(step) as f64;
        Self {
            mode: mode(state.mode()),
            generation: state.generation(),
            claimed: state.claimed(),
            step,
            iteration: record.iteration,
            samples: step * job.cut.batch(),
            steps_per_second,
            goodput: record.progress.goodput(),
            eta_seconds: steps_per_second.filter(|rate| *rate > 0.0).map(|rate| left / rate),
            workers: state.workers().into_iter().map(|worker| WorkerRow::new(worker, record, now)).collect(),
            losses: LossRows { names: record.losses.names.clone(), rows: record.losses.rows.clone() },
            checkpoints: record.checkpoints.iter().cloned().collect(),
            validations: record.validations.iter().cloned().collect(),
            events: record.events.iter().rev().cloned().collect(),
            ..Self::starting(run, me, job)
        }
    }
}

impl WorkerRow {
    fn new(worker: WorkerView, record: &Record, now: Duration) -> Self {
        let reported = record.workers.get(&worker.id).cloned().unwrap_or_default();
        Self {
            id: worker.id.to_string(),
            rank: worker.rank,
            host: reported.host,
            process: reported.process,
            address: worker.address.clone(),
            state: standing(&worker),
            phase: reported.phase,
            step: worker.updates,
            samples_per_second: reported.samples_per_second,
            data_wait_share: reported.data_wait_share,
            collective: reported.collective,
            compute_seconds: worker.compute.as_secs_f64(),
            micro_batches: worker.micro_batches,
            straggler: worker.straggler,
            heard_seconds_ago: now.saturating_sub(worker.heard).as_secs_f64(),
        }
    }
}

fn mode(mode: ModeView) -> &'static str {
    match mode {
        ModeView::Gathering => "waiting for workers",
        ModeView::Adopting => "waiting for known workers to come back",
        ModeView::Running => "training",
        ModeView::Reforming => "changing members",
        ModeView::Claiming => "claiming a generation",
        ModeView::Finished => "finished",
    }
}

fn standing(worker: &WorkerView) -> &'static str {
    match (worker.attached, worker.leaving, worker.standing) {
        (false, ..) => "away",
        (_, true, _) => "leaving",
        (_, _, Standing::Joining) => "joining",
        (_, _, Standing::Idle) => "waiting",
        (_, _, Standing::Stepping) => "stepping",
        (_, _, Standing::Completed) => "done",
    }
}
