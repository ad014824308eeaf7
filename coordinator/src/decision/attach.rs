//! Coming and going: streams begin and end, workers join, leave, and are put out.

use std::time::Duration;

use super::event::{Action, Arrival, Effect, Phase, Standing, WorkerId};
use super::{Mode, State, Worker, short};

impl State {
    pub(super) fn attached(&mut self, arrival: Arrival, now: Duration, out: &mut Vec<Effect>) {
        let id = arrival.worker;
        if self.fenced.contains(&id) {
            out.push(Effect::new(Action::Evict(id), format!("worker {} was put out before", short(id))));
            return;
        }
        if self.dismissed.contains(&id) {
            out.push(Effect::new(Action::Drained(id), format!("worker {} was let go before", short(id))));
            return;
        }
        let current = self.formation.as_ref().map_or(0, |formation| formation.number);
        let rank = self.members().iter().position(|member| member.worker == id);
        if arrival.standing == Standing::Stepping && (rank.is_none() || arrival.generation != current) {
            let reason = format!(
                "worker {} works in generation {}, which is over: the newest is {current}",
                short(id),
                arrival.generation
            );
            self.put_out(vec![(id, reason)], now, out);
            return;
        }
        if arrival.standing == Standing::Joining && rank.is_some() {
            self.put_out(vec![(id, format!("worker {} came back without its state", short(id)))], now, out);
            return;
        }
        self.arrivals += 1;
        let known = self.workers.get(&id);
        let worker = Worker {
            address: arrival.address,
            connection: Some(arrival.connection),
            standing: arrival.standing,
            leaving: known.is_some_and(|known| known.leaving),
            updates: arrival.updates,
            heard: now,
            phase: Phase::Idle,
            phase_since: now,
            compute: Duration::ZERO,
            rank,
            arrival: known.map_or(self.arrivals, |known| known.arrival),
        };
        let came = if known.is_some() { "is back" } else { "attached" };
        let at = worker.address.clone();
        self.workers.insert(id, worker);
        self.newest = self.newest.max(arrival.updates.unwrap_or(0));
        out.push(Effect::new(Action::Welcome(id), format!("worker {} at {at} {came}", short(id))));
        match (&self.mode, self.draining) {
            (Mode::Finished { outcome, .. }, _) => {
                out.push(Effect::new(Action::Finish(vec![id]), outcome.clone()));
                return;
            }
            (_, Some(_)) => out.push(Effect::new(Action::Drain(vec![id]), "the run is being stopped")),
            _ => {}
        }
        match (arrival.standing, rank) {
            (Standing::Idle, Some(_)) if arrival.generation < current && self.can_tell_again() => {
                self.tell_again(id, out);
            }
            (Standing::Idle, Some(_)) => {
                let reason = format!("worker {} stands still", short(id));
                self.stands_still(id, false, &reason, now, out);
            }
            (Standing::Idle, None) => self.newcomer(now, out),
            (Standing::Stepping, _) => self.ask_again(id, out),
            (Standing::Joining | Standing::Completed, _) => {}
        }
        self.resolve_adoption(now, out);
    }

    pub(super) fn ready(&mut self, id: WorkerId, now: Duration, out: &mut Vec<Effect>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.heard = now;
        if worker.standing == Standing::Joining {
            worker.standing = Standing::Idle;
            self.newcomer(now, out);
        }
    }

    pub(super) fn detached(&mut self, id: WorkerId, connection: u64, now: Duration, out: &mut Vec<Effect>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.connection != Some(connection) {
            return;
        }
        worker.connection = None;
        worker.heard = now;
        let done = worker.leaving && worker.standing == Standing::Idle;
        let completed = worker.standing == Standing::Completed;
        if worker.rank.is_none() || done {
            // Nothing depends on it. A newcomer that is only cut off says hello again.
            self.workers.remove(&id);
            out.push(Effect::new(Action::Note, format!("worker {} is gone", short(id))));
        } else if self.suspected(id) {
            let reason = format!("worker {} is gone, and others miss it too", short(id));
            self.put_out(vec![(id, reason)], now, out);
        } else {
            out.push(Effect::new(Action::Note, format!("the stream of worker {} ended", short(id))));
            if let (Mode::Reforming { awaiting, .. }, true) = (&mut self.mode, !completed) {
                awaiting.insert(id);
            }
        }
    }

    pub(super) fn leaving(&mut self, id: WorkerId, now: Duration, out: &mut Vec<Effect>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.heard = now;
        worker.leaving = true;
        let reason = format!("worker {} leaves", short(id));
        match worker.rank {
            Some(_) if matches!(self.mode, Mode::Running) => {
                self.reform(false, &reason, Vec::new(), now, out)
            }
            Some(_) => {}
            None => {
                self.let_go(id, &reason, out);
            }
        }
    }

    /// Puts workers out for ever, each for its reason, and draws the consequence for the generation.
    pub(super) fn put_out(&mut self, lost: Vec<(WorkerId, String)>, now: Duration, out: &mut Vec<Effect>) {
        let mut members = Vec::new();
        let mut reasons = Vec::new();
        for (id, reason) in lost {
            let was_member = self.members().iter().any(|member| member.worker == id);
            self.workers.remove(&id);
            self.fenced.insert(id);
            if was_member {
                members.push(id);
                reasons.push(reason.clone());
            }
            out.push(Effect::new(Action::Evict(id), reason));
        }
        if members.is_empty() {
            return;
        }
        let more = reasons.len() - 1;
        let reason = match more {
            0 => reasons.swap_remove(0),
            _ => format!("{}, and {more} more", reasons.swap_remove(0)),
        };
        match &mut self.mode {
            Mode::Running => self.reform(true, &reason, members, now, out),
            // The others are still on their way back.
            Mode::Adopting { .. } => self.resolve_adoption(now, out),
            Mode::Reforming { awaiting, .. } => {
                awaiting.retain(|id| !members.contains(id));
                self.make_urgent(&reason, members, now, out);
            }
            Mode::Gathering { .. } | Mode::Claiming { .. } | Mode::Finished { .. } => {}
        }
    }

    /// A leaver is no longer needed.
    pub(super) fn let_go(&mut self, id: WorkerId, reason: &str, out: &mut Vec<Effect>) {
        self.workers.remove(&id);
        self.dismissed.insert(id);
        out.push(Effect::new(Action::Drained(id), reason));
    }

    /// A member that was away may have missed that it has to stop.
    fn ask_again(&self, id: WorkerId, out: &mut Vec<Effect>) {
        let Mode::Reforming { urgent, awaiting, reason, .. } = &self.mode else { return };
        if awaiting.contains(&id) {
            let action = Action::Reform { to: vec![id], urgent: *urgent, lost: Vec::new() };
            out.push(Effect::new(action, reason.clone()));
        }
    }

    /// Someone new is ready.
    fn newcomer(&mut self, now: Duration, out: &mut Vec<Effect>) {
        self.newcomers_since.get_or_insert(now);
        if matches!(self.mode, Mode::Gathering { .. }) {
            self.gather(now, out);
        }
    }

    pub(super) fn suspected(&self, id: WorkerId) -> bool {
        self.formation.as_ref().is_some_and(|formation| formation.suspicion.contains_key(&id))
    }
}
