//! What members report: progress, standing still, failure, the end.

use std::time::Duration;

use super::event::{Action, Effect, Phase, Standing, WorkerId};
use super::{Mode, RECENT_STEPS, State, short};

impl State {
    pub(super) fn heartbeat(
        &mut self,
        id: WorkerId,
        generation: u64,
        updates: u64,
        phase: Phase,
        phase_since: Duration,
        compute: Duration,
    ) {
        let Some(worker) = self.member(id, generation) else { return };
        (worker.phase, worker.phase_since, worker.compute) = (phase, phase_since, compute);
        if worker.updates.is_none_or(|known| known < updates) {
            worker.updates = Some(updates);
        }
        self.progressed(updates);
    }

    pub(super) fn committed(&mut self, id: WorkerId, generation: u64, updates: u64, took: Duration) {
        if self.member(id, generation).is_none() {
            return;
        }
        if self.recent_work.len() == RECENT_STEPS {
            self.recent_work.pop_front();
        }
        self.recent_work.push_back(took / self.largest_share());
        self.progressed(updates);
    }

    pub(super) fn stopped(
        &mut self,
        id: WorkerId,
        generation: u64,
        updates: u64,
        leaving: bool,
        now: Duration,
        out: &mut Vec<Effect>,
    ) {
        let Some(worker) = self.member(id, generation) else { return };
        worker.updates = Some(updates);
        worker.leaving |= leaving;
        self.progressed(updates);
        let reason = format!("worker {} stopped at step {updates}", short(id));
        self.stands_still(id, false, &reason, now, out);
    }

    pub(super) fn failed(
        &mut self,
        id: WorkerId,
        generation: u64,
        updates: u64,
        suspects: &[WorkerId],
        why: &str,
        now: Duration,
        out: &mut Vec<Effect>,
    ) {
        let Some(worker) = self.member(id, generation) else { return };
        worker.updates = Some(updates);
        self.progressed(updates);
        let formation = self.formation.as_mut().expect("it has a member");
        let others = |suspect: &&WorkerId| {
            **suspect != id && formation.members.iter().any(|member| member.worker == **suspect)
        };
        let suspects: Vec<WorkerId> = suspects.iter().filter(others).copied().collect();
        for &suspect in &suspects {
            formation.suspicion.entry(suspect).or_default().insert(id);
        }
        let reason = format!("worker {} failed after step {updates}: {why}", short(id));
        self.stands_still(id, true, &reason, now, out);
        // A suspect whose stream is gone as well is dead: no need to wait for it.
        let gone =
            |suspect: &&WorkerId| self.workers.get(suspect).is_some_and(|worker| worker.connection.is_none());
        let lost: Vec<(WorkerId, String)> = suspects
            .iter()
            .filter(gone)
            .map(|&suspect| (suspect, format!("worker {} is gone, and others miss it too", short(suspect))))
            .collect();
        self.put_out(lost, now, out);
    }

    pub(super) fn completed(
        &mut self,
        id: WorkerId,
        generation: u64,
        outcome: &str,
        now: Duration,
        out: &mut Vec<Effect>,
    ) {
        let Some(worker) = self.member(id, generation) else { return };
        worker.standing = Standing::Completed;
        worker.phase = Phase::Idle;
        let first = worker.rank == Some(0);
        if first && !matches!(self.mode, Mode::Finished { .. }) {
            self.mode = Mode::Finished { since: now, outcome: outcome.to_owned() };
            let reason = format!("rank 0 stored the model at step {}: {outcome}", self.newest);
            out.push(Effect::new(Action::Finish(self.attached_ids()), reason));
            return;
        }
        self.still(id, now, out);
        self.resolve_adoption(now, out);
    }

    /// A member stopped working, and waits.
    pub(super) fn stands_still(
        &mut self,
        id: WorkerId,
        urgent: bool,
        reason: &str,
        now: Duration,
        out: &mut Vec<Effect>,
    ) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.standing = Standing::Idle;
            (worker.phase, worker.phase_since) = (Phase::Idle, now);
        }
        match &self.mode {
            Mode::Running => self.reform(urgent, reason, Vec::new(), now, out),
            Mode::Reforming { .. } => {
                out.push(Effect::new(Action::Note, reason));
                self.still(id, now, out);
                if urgent {
                    self.make_urgent(reason, Vec::new(), now, out);
                }
            }
            Mode::Adopting { .. } => {
                out.push(Effect::new(Action::Note, reason));
                self.resolve_adoption(now, out);
            }
            Mode::Gathering { .. } | Mode::Claiming { .. } | Mode::Finished { .. } => {}
        }
    }

    fn progressed(&mut self, updates: u64) {
        self.newest = self.newest.max(updates);
        let start = self.formation.as_ref().map_or(0, |formation| formation.start);
        if self.newest > start {
            self.failures = 0;
        }
    }
}
