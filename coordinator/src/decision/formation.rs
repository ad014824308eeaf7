//! Ending one generation and forming the next.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::event::{Action, Effect, Member, Phase, Standing, WorkerId};
use super::{Formation, Mode, State, Worker, short};
use crate::plan::MicroBatches;

/// How long the store is left alone after a failed claim, and workers after several failed generations.
const PAUSE: Duration = Duration::from_secs(1);

impl State {
    /// Stops the generation: after the step under way, or at once because `lost` or a failure keeps it from ending.
    pub(super) fn reform(
        &mut self,
        urgent: bool,
        reason: &str,
        lost: Vec<WorkerId>,
        now: Duration,
        out: &mut Vec<Effect>,
    ) {
        let awaiting: BTreeSet<WorkerId> = self
            .members()
            .iter()
            .filter(|member| self.workers.get(&member.worker).is_some_and(is_unsettled))
            .map(|member| member.worker)
            .collect();
        let to: Vec<WorkerId> = awaiting.iter().copied().collect();
        let patience = if urgent { self.abort() } else { self.boundary() };
        self.mode = Mode::Reforming { reason: reason.to_owned(), urgent, deadline: now + patience, awaiting };
        out.push(Effect::new(Action::Reform { to, urgent, lost }, reason));
        self.form_if_still(now, out);
    }

    /// A planned stop cannot succeed any more, or more members are lost in an urgent one.
    pub(super) fn make_urgent(
        &mut self,
        why: &str,
        lost: Vec<WorkerId>,
        now: Duration,
        out: &mut Vec<Effect>,
    ) {
        let abort = self.abort();
        let Mode::Reforming { urgent, deadline, awaiting, .. } = &mut self.mode else { return };
        if !*urgent || !lost.is_empty() {
            if !*urgent {
                *deadline = now + abort;
            }
            *urgent = true;
            let to = awaiting.iter().copied().collect();
            out.push(Effect::new(Action::Reform { to, urgent: true, lost }, why));
        }
        self.form_if_still(now, out);
    }

    /// One member less to wait for.
    pub(super) fn still(&mut self, id: WorkerId, now: Duration, out: &mut Vec<Effect>) {
        if let Mode::Reforming { awaiting, .. } = &mut self.mode {
            awaiting.remove(&id);
            self.form_if_still(now, out);
        }
    }

    /// Adopts the members if all have come back, and reforms if all have come back and some of them stand still.
    pub(super) fn resolve_adoption(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Mode::Adopting { .. } = self.mode else { return };
        let (lost, expected): (Vec<WorkerId>, Vec<WorkerId>) =
            self.members().iter().map(|member| member.worker).partition(|id| self.fenced.contains(id));
        let attached = |id: &WorkerId| self.workers.get(id).filter(|worker| worker.connection.is_some());
        let present: Vec<&Worker> = expected.iter().filter_map(attached).collect();
        if present.len() < expected.len() {
            return;
        }
        if !lost.is_empty() {
            let reason = format!("{} members came back, {} are lost", present.len(), lost.len());
            self.reform(true, &reason, lost, now, out);
            return;
        }
        if present.iter().any(|worker| worker.standing == Standing::Idle) {
            self.reform(true, "all members are back, and some of them stand still", Vec::new(), now, out);
            return;
        }
        let number = self.formation.as_ref().map_or(0, |formation| formation.number);
        let reason = format!("all {} members of generation {number} are back and step", present.len());
        self.mode = Mode::Running;
        out.push(Effect::new(Action::Note, reason));
    }

    /// Nobody steps: begins if enough workers are ready.
    pub(super) fn gather(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Mode::Gathering { since } = self.mode else { return };
        let ready = self.candidates(now).len();
        let enough = ready >= self.policy.min_workers;
        let had_enough_time = self.formed_before && now >= since + self.policy.regather;
        if ready > 0 && (enough || had_enough_time) {
            self.claim(&format!("{ready} workers are ready"), now, out);
        }
    }

    pub(super) fn claim_succeeded(&mut self, number: u64, now: Duration, out: &mut Vec<Effect>) {
        self.claimed = self.claimed.max(number);
        let Mode::Claiming { number: asked, members, reason, .. } = &self.mode else { return };
        if *asked != number {
            return;
        }
        let (members, reason) = (members.clone(), reason.clone());
        let ready = self.candidates(now);
        if let Some(&missing) = members.iter().find(|id| !ready.contains(id)) {
            let reason = format!("{reason}; worker {} went meanwhile", short(missing));
            self.reform(true, &reason, Vec::new(), now, out);
            return;
        }
        self.form(number, members, &reason, now, out);
    }

    pub(super) fn claim_failed(&mut self, why: &str, now: Duration, out: &mut Vec<Effect>) {
        let Mode::Claiming { number, retry, .. } = &mut self.mode else { return };
        // Whether the number is taken now is not known: the next try is for the next one.
        *retry = Some(now + PAUSE);
        out.push(Effect::new(Action::Note, format!("generation {number} could not be claimed: {why}")));
    }

    /// Asks for the next generation, of everyone who is ready now.
    pub(super) fn claim(&mut self, reason: &str, now: Duration, out: &mut Vec<Effect>) {
        self.dismiss_leavers(reason, out);
        let members = self.candidates(now);
        if members.is_empty() {
            self.formation = None;
            self.workers.values_mut().for_each(|worker| worker.rank = None);
            self.mode = Mode::Gathering { since: now };
            out.push(Effect::new(Action::Note, format!("{reason}; no worker is left to go on")));
            return;
        }
        // An earlier answer of the store may still be on its way.
        self.asked = self.asked.max(self.claimed) + 1;
        let number = self.asked;
        self.mode =
            Mode::Claiming { number, members: members.clone(), reason: reason.to_owned(), retry: None };
        out.push(Effect::new(Action::Claim { number, members }, reason));
    }

    pub(super) fn can_tell_again(&self) -> bool {
        matches!(self.mode, Mode::Running)
            && self.formation.as_ref().is_some_and(|formation| !formation.adopted)
    }

    pub(super) fn tell_again(&self, id: WorkerId, out: &mut Vec<Effect>) {
        let Some(formation) = &self.formation else { return };
        let action =
            Action::Form { to: vec![id], number: formation.number, members: Arc::clone(&formation.members) };
        out.push(Effect::new(action, format!("worker {} was away when it was formed", short(id))));
    }

    /// How long a planned stop may take.
    fn boundary(&self) -> Duration {
        self.policy.boundary.max(5 * self.usual_step().unwrap_or(self.policy.long / 5))
    }

    /// How long an urgent one may take: a worker that computes hears of it between micro-batches.
    fn abort(&self) -> Duration {
        self.usual_step().map_or(self.policy.long, |step| self.policy.abort.max(2 * step + PAUSE))
    }

    fn form_if_still(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Mode::Reforming { awaiting, reason, .. } = &self.mode else { return };
        if !awaiting.is_empty() {
            return;
        }
        let reason = reason.clone();
        // A loss explains the failure, and whoever lets go of its connections for that is suspected without cause.
        let is_whole = self.members().iter().all(|member| self.workers.contains_key(&member.worker));
        let failed = |formation: &&Formation| is_whole && !formation.suspicion.is_empty();
        if let Some(formation) = self.formation.as_ref().filter(failed) {
            // One that stepped and broke is a failure too, which the first step of the next one makes good.
            self.failures += 1;
            if self.newest <= formation.start {
                self.blame(now, out);
            }
        }
        if let Some(formation) = &mut self.formation {
            formation.suspicion.clear();
        }
        self.claim(&reason, now, out);
    }

    fn form(
        &mut self,
        number: u64,
        ranks: Vec<WorkerId>,
        reason: &str,
        now: Duration,
        out: &mut Vec<Effect>,
    ) {
        self.workers.values_mut().for_each(|worker| worker.rank = None);
        let mut addresses = Vec::with_capacity(ranks.len());
        for (rank, id) in ranks.iter().enumerate() {
            let worker = self.workers.get_mut(id).expect("only candidates are formed");
            worker.rank = Some(rank);
            worker.standing = Standing::Stepping;
            (worker.phase, worker.phase_since) = (Phase::Long, now);
            addresses.push((*id, worker.address.clone()));
        }
        let members = assign(&self.cut, addresses);
        let suspicion = std::collections::BTreeMap::new();
        self.formation = Some(Formation {
            number,
            members: Arc::clone(&members),
            adopted: false,
            start: self.newest,
            suspicion,
        });
        self.mode = Mode::Running;
        self.formed_before = true;
        self.newcomers_since = None;
        self.stragglers.clear();
        out.push(Effect::new(Action::Form { to: ranks, number, members }, reason));
        // Those who became ready while the store was asked come next.
        let late = |worker: &Worker| worker.standing == Standing::Idle && worker.rank.is_none();
        if self.workers.values().any(late) {
            self.newcomers_since = Some(now);
        }
    }

    /// Everyone who can be a member now: those who were, in their order, and then newcomers as they arrived.
    pub(super) fn candidates(&self, now: Duration) -> Vec<WorkerId> {
        let mut ready: Vec<(Option<usize>, u64, WorkerId)> = self
            .workers
            .iter()
            .filter(|(_, worker)| self.can_work(worker, now))
            .map(|(id, worker)| (worker.rank, worker.arrival, *id))
            .collect();
        ready.sort_by_key(|&(rank, arrival, _)| (rank.unwrap_or(usize::MAX), arrival));
        ready.into_iter().map(|(_, _, id)| id).collect()
    }

    fn can_work(&self, worker: &Worker, now: Duration) -> bool {
        worker.connection.is_some()
            && !worker.leaving
            && self.draining.is_none()
            && match worker.standing {
                Standing::Idle => worker.rank.is_some() || !self.is_held_off(&worker.address, now),
                Standing::Completed => worker.rank.is_some(),
                Standing::Joining | Standing::Stepping => false,
            }
    }

    pub(super) fn is_held_off(&self, address: &str, now: Duration) -> bool {
        self.held_off.get(host(address)).is_some_and(|(until, _)| now < *until)
    }

    /// After several generations that never made a step, the member that most others suspect is put out, and its
    /// host left alone for a while: a machine that cannot be reached must not hold up the others for ever.
    fn blame(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if self.failures < self.policy.strikes {
            return;
        }
        let Some(formation) = &self.formation else { return };
        let others = formation.members.len() - 1;
        let accused = formation
            .suspicion
            .iter()
            .filter(|(id, _)| self.workers.contains_key(id))
            .map(|(id, by)| (by.len(), self.workers[id].rank, *id))
            .filter(|(by, ..)| 2 * by >= others)
            .max();
        let Some((by, _, id)) = accused else { return };
        let address = self.workers[&id].address.clone();
        let times = self.held_off.get(host(&address)).map_or(0, |(_, times)| *times);
        let wait = self.policy.hold_off * 2_u32.pow(times.min(5));
        self.held_off.insert(host(&address).to_owned(), (now + wait, times + 1));
        self.failures = 0;
        self.workers.remove(&id);
        self.fenced.insert(id);
        let reason = format!(
            "worker {} could not be reached by {by} of {others} others, {} times in a row",
            short(id),
            self.policy.strikes
        );
        out.push(Effect::new(Action::Evict(id), reason));
    }

    fn dismiss_leavers(&mut self, reason: &str, out: &mut Vec<Effect>) {
        let leavers: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.leaving && worker.standing != Standing::Stepping)
            .map(|(id, _)| *id)
            .collect();
        leavers.into_iter().for_each(|id| self.let_go(id, reason, out));
    }
}

/// A member that still steps, or is away for a moment and may hold the only newest state: not yet to be left behind.
fn is_unsettled(worker: &Worker) -> bool {
    match worker.standing {
        Standing::Stepping => true,
        Standing::Idle => worker.connection.is_none(),
        Standing::Joining | Standing::Completed => false,
    }
}

/// The ranks of a generation with their share of every step.
pub(super) fn assign(cut: &MicroBatches, ranks: Vec<(WorkerId, String)>) -> Arc<[Member]> {
    let Some(count) = NonZeroUsize::new(ranks.len()) else { return Arc::from([]) };
    let shares = cut.assign(count);
    let member = |((worker, address), micro_batches)| Member { worker, address, micro_batches };
    ranks.into_iter().zip(shares).map(member).collect()
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}
