//! The state as people may see it.

use std::time::Duration;

use super::event::{Phase, Standing, WorkerId};
use super::{Mode, State};

/// What the cluster as a whole is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeView {
    /// Waits for workers.
    Gathering,
    /// Waits for the workers of a lost coordinator.
    Adopting,
    /// Steps.
    Running,
    /// Stops, to form another generation.
    Reforming,
    /// Waits for the store.
    Claiming,
    /// Is done.
    Finished,
}

/// One worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerView {
    /// Who.
    pub id: WorkerId,
    /// Its rank in the generation, if it is a member.
    pub rank: Option<usize>,
    /// Where its collective listens.
    pub address: String,
    /// Whether its stream stands.
    pub attached: bool,
    /// What it is doing.
    pub standing: Standing,
    /// Whether it leaves.
    pub leaving: bool,
    /// Updates it has committed.
    pub updates: Option<u64>,
    /// Where it is in its step, and since when.
    pub phase: (Phase, Duration),
    /// Its own work in the last step.
    pub compute: Duration,
    /// When it was last heard.
    pub heard: Duration,
    /// Whether it is much slower than the others.
    pub straggler: bool,
    /// Micro-batches of a step that it computes.
    pub micro_batches: usize,
}

impl State {
    /// What the cluster is doing.
    pub fn mode(&self) -> ModeView {
        match self.mode {
            Mode::Gathering { .. } => ModeView::Gathering,
            Mode::Adopting { .. } => ModeView::Adopting,
            Mode::Running => ModeView::Running,
            Mode::Reforming { .. } => ModeView::Reforming,
            Mode::Claiming { .. } => ModeView::Claiming,
            Mode::Finished { .. } => ModeView::Finished,
        }
    }

    /// The generation that works, or did last; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.formation.as_ref().map_or(0, |formation| formation.number)
    }

    /// The newest generation claimed.
    pub fn claimed(&self) -> u64 {
        self.claimed
    }

    /// Newest committed update known of.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// The workers of the generation, in order of rank.
    pub fn ranks(&self) -> Vec<WorkerId> {
        self.members().iter().map(|member| member.worker).collect()
    }

    /// Whether the worker was put out.
    pub fn is_fenced(&self, worker: WorkerId) -> bool {
        self.fenced.contains(&worker)
    }

    /// Every worker: members in order of rank, then the others as they arrived.
    pub fn workers(&self) -> Vec<WorkerView> {
        let mut order: Vec<_> = self.workers.iter().collect();
        order.sort_by_key(|(_, worker)| (worker.rank.unwrap_or(usize::MAX), worker.arrival));
        let view = |(id, worker): (&WorkerId, &super::Worker)| WorkerView {
            id: *id,
            rank: worker.rank,
            address: worker.address.clone(),
            attached: worker.connection.is_some(),
            standing: worker.standing,
            leaving: worker.leaving,
            updates: worker.updates,
            phase: (worker.phase, worker.phase_since),
            compute: worker.compute,
            heard: worker.heard,
            straggler: self.stragglers.contains(id),
            micro_batches: worker
                .rank
                .and_then(|rank| self.members().get(rank))
                .map_or(0, |member| member.micro_batches.len()),
        };
        order.into_iter().map(view).collect()
    }
}
