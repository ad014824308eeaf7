//! What follows from time alone: silence, hanging, overdue stops, newcomers that waited long enough.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::event::{Action, Effect, Ending, Phase, Standing, WorkerId};
use super::{Mode, State, Worker, short};

/// If no time was seen passing for so long, it was this process that slept, not the workers.
const SLEPT: Duration = Duration::from_secs(3);

/// How long workers have to end after the run.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long they have to leave when the operator stops the run.
const DRAIN: Duration = Duration::from_secs(60);

const STRAGGLERS_EVERY: Duration = Duration::from_secs(5);

impl State {
    pub(super) fn tick(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let slept = self.last_tick.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        self.last_tick = Some(now);
        if slept > SLEPT {
            self.forgive(slept, now, out);
        }
        if self.ending(now, out) {
            return;
        }
        self.lose_the_missing(now, out);
        match &self.mode {
            Mode::Running => {
                self.lose_the_hanging(now, out);
                self.welcome_newcomers(now, out);
                self.judge_stragglers(now, out);
            }
            Mode::Adopting { until } if now >= *until => self.end_adoption(now, out),
            Mode::Reforming { deadline, urgent, .. } if now >= *deadline => self.overdue(*urgent, now, out),
            Mode::Claiming { retry: Some(at), reason, .. } if now >= *at => {
                let reason = reason.clone();
                self.reform(true, &reason, Vec::new(), now, out);
            }
            Mode::Gathering { .. } => self.gather(now, out),
            _ => {}
        }
    }

    /// What a step takes in this generation, by the recent ones. Fewer members have more work each.
    pub(super) fn usual_step(&self) -> Option<Duration> {
        Some(median(self.recent_work.iter().copied())? * self.largest_share())
    }

    /// Micro-batches of the member that has most of them.
    pub(super) fn largest_share(&self) -> u32 {
        let shares = self.members().iter().map(|member| member.micro_batches.len());
        u32::try_from(shares.max().unwrap_or(1).max(1)).unwrap_or(u32::MAX)
    }

    /// This process was stopped or starved: nobody's silence during that time counts.
    fn forgive(&mut self, slept: Duration, now: Duration, out: &mut Vec<Effect>) {
        for worker in self.workers.values_mut() {
            worker.heard = now;
            worker.phase_since = now;
        }
        if let Mode::Reforming { deadline, .. } | Mode::Adopting { until: deadline } = &mut self.mode {
            *deadline += slept;
        }
        let reason =
            format!("the coordinator stood still for {:.1} s; nobody is blamed", slept.as_secs_f64());
        out.push(Effect::new(Action::Note, reason));
    }

    fn ending(&self, now: Duration, out: &mut Vec<Effect>) -> bool {
        let alone = self.workers.values().all(|worker| worker.connection.is_none());
        let (ending, reason) = match (&self.mode, self.draining) {
            (Mode::Finished { since, outcome }, _) if alone || now >= *since + FAREWELL => {
                (Ending::Finished, outcome.clone())
            }
            (Mode::Finished { .. }, _) | (_, None) => return false,
            (_, Some(since)) if alone || now >= since + DRAIN => {
                (Ending::Drained, "the run was stopped and its workers have left".to_owned())
            }
            _ => return false,
        };
        out.push(Effect::new(Action::Exit(ending), reason));
        true
    }

    /// Puts out who is silent or did not come back; unless that is most of the members, which speaks for a fault on this
    /// side: then all of them are waited for.
    fn lose_the_missing(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if matches!(self.mode, Mode::Finished { .. } | Mode::Adopting { .. }) {
            return;
        }
        let missing: Vec<(WorkerId, String)> = self
            .workers
            .iter()
            .filter_map(|(id, worker)| Some((*id, self.missing(*id, worker, now)?)))
            .collect();
        if missing.is_empty() {
            return;
        }
        let is_member = |(id, _): &&(WorkerId, String)| self.workers[id].rank.is_some();
        let lost_members = missing.iter().filter(is_member).count();
        let unsuspected = missing.iter().filter(is_member).all(|(id, _)| !self.suspected(*id));
        if 2 * lost_members > self.members().len() && unsuspected {
            let reason = format!("{lost_members} of {} members are missing at once", self.members().len());
            // Those whose streams ended have had a part of their time already.
            let ended = missing.iter().all(|(id, _)| self.workers[id].connection.is_none());
            let patience = match ended {
                true => self.policy.comeback.saturating_sub(self.policy.reattach),
                false => self.policy.adoption,
            };
            for (id, reason) in missing {
                self.workers.remove(&id);
                out.push(Effect::new(Action::Hangup(id), reason));
            }
            self.mode = Mode::Adopting { until: now + patience };
            out.push(Effect::new(Action::Note, reason));
            return;
        }
        self.put_out(missing, now, out);
    }

    fn missing(&self, id: WorkerId, worker: &Worker, now: Duration) -> Option<String> {
        let quiet = now.saturating_sub(worker.heard);
        let seconds = quiet.as_secs_f64();
        if worker.connection.is_none() {
            // Done is done: it may go without a word.
            let patience = match worker.standing {
                Standing::Completed => self.policy.adoption,
                _ => self.policy.reattach,
            };
            return (quiet >= patience)
                .then(|| format!("the stream of worker {} ended {seconds:.1} s ago", short(id)));
        }
        (quiet >= self.policy.silence).then(|| format!("worker {} is silent for {seconds:.1} s", short(id)))
    }

    /// A member that computes far longer than a step takes hangs, although its heart beats.
    fn lose_the_hanging(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let step = self.usual_step();
        let work = step.map_or(self.policy.long, |step| self.policy.work.max(10 * step));
        let long = self.policy.long.max(work);
        let hangs = |worker: &Worker| {
            let limit = match worker.phase {
                Phase::Idle | Phase::Reduce => return None,
                Phase::Work => work,
                Phase::Long => long,
            };
            let since = now.saturating_sub(worker.phase_since);
            (worker.rank.is_some() && worker.standing == Standing::Stepping && since >= limit)
                .then_some((since, limit))
        };
        let hanging: Vec<(WorkerId, String)> = self
            .workers
            .iter()
            .filter_map(|(id, worker)| {
                let (since, limit) = hangs(worker)?;
                let (since, limit) = (since.as_secs_f64(), limit.as_secs_f64());
                let id = *id;
                Some((
                    id,
                    format!("worker {} hangs: {since:.1} s in one phase, {limit:.1} s at most", short(id)),
                ))
            })
            .collect();
        self.put_out(hanging, now, out);
    }

    fn welcome_newcomers(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(since) = self.newcomers_since else { return };
        if !matches!(self.mode, Mode::Running) || now < since + self.policy.join_debounce {
            return;
        }
        let new = |worker: &&Worker| worker.rank.is_none() && worker.standing == Standing::Idle;
        let waiting = self.workers.values().filter(new).count();
        let ready = self.candidates(now).len();
        if ready > 0 {
            self.reform(false, &format!("{ready} new workers are ready"), Vec::new(), now, out);
        } else if waiting == 0 {
            self.newcomers_since = None;
        }
    }

    /// Not everybody came back in time.
    fn end_adoption(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let just_cut_off = |worker: &Worker| {
            worker.rank.is_some()
                && worker.connection.is_none()
                && now.saturating_sub(worker.heard) < self.policy.reattach
        };
        if self.workers.values().any(just_cut_off) {
            return;
        }
        let attached = |id: &WorkerId| self.workers.get(id).is_some_and(|worker| worker.connection.is_some());
        let absent: Vec<WorkerId> =
            self.members().iter().map(|member| member.worker).filter(|id| !attached(id)).collect();
        if absent.len() < self.members().len() {
            let lost = |id: WorkerId| (id, format!("worker {} did not come back in time", short(id)));
            self.put_out(absent.into_iter().map(lost).collect(), now, out);
            return;
        }
        if self.candidates(now).is_empty() {
            return; // they may still step somewhere; nobody is there to take their place
        }
        absent.iter().for_each(|id| drop(self.workers.remove(id)));
        self.fenced.extend(absent);
        self.formation = None;
        self.mode = Mode::Gathering { since: now };
        out.push(Effect::new(
            Action::Note,
            "no member of the last generation came back; newcomers take over",
        ));
        self.gather(now, out);
    }

    /// A stop takes too long.
    fn overdue(&mut self, urgent: bool, now: Duration, out: &mut Vec<Effect>) {
        let Mode::Reforming { awaiting, .. } = &self.mode else { return };
        if urgent {
            // Those that stand still and are only cut off have as long as always to come back.
            let steps = |id: &&WorkerId| {
                self.workers.get(id).is_some_and(|worker| worker.standing == Standing::Stepping)
            };
            let late = |id: &WorkerId| (*id, format!("worker {} did not stop when told to", short(*id)));
            let late = awaiting.iter().filter(steps).map(late).collect();
            self.put_out(late, now, out);
        } else {
            let reason = format!("{} members have not reached the end of their step in time", awaiting.len());
            self.make_urgent(&reason, Vec::new(), now, out);
        }
    }

    fn judge_stragglers(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if now < self.stragglers_judged + STRAGGLERS_EVERY {
            return;
        }
        self.stragglers_judged = now;
        // Shares differ by one micro-batch, so work is compared by the micro-batch.
        let work: BTreeMap<WorkerId, Duration> = self
            .members()
            .iter()
            .filter_map(|member| {
                let share = u32::try_from(member.micro_batches.len()).ok().filter(|&count| count > 0)?;
                let compute = self.workers.get(&member.worker)?.compute;
                (!compute.is_zero()).then(|| (member.worker, compute / share))
            })
            .collect();
        let Some(median) = median(work.values().copied()) else { return };
        let limit = median.mul_f64(self.policy.straggler);
        let slow: BTreeSet<WorkerId> =
            work.iter().filter(|(_, own)| **own > limit).map(|(id, _)| *id).collect();
        for id in slow.difference(&self.stragglers) {
            let (own, usual) = (work[id].as_secs_f64(), median.as_secs_f64());
            let reason = format!(
                "worker {} is a straggler: {own:.2} s of work a micro-batch, others {usual:.2} s",
                short(*id)
            );
            out.push(Effect::new(Action::Note, reason));
        }
        self.stragglers = slow;
    }
}

fn median(values: impl Iterator<Item = Duration>) -> Option<Duration> {
    let mut sorted: Vec<Duration> = values.collect();
    sorted.sort_unstable();
    // The lower one of two, so that of two workers the slower can be a straggler.
    sorted.get((sorted.len().max(1) - 1) / 2).copied()
}
