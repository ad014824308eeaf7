//! What must hold for every sequence of effects, whatever the events were.

use std::collections::BTreeSet;

use crate::decision::{Action, Effect, WorkerId};
use crate::plan::MicroBatches;

/// Watches the effects of one or several coordinators that lead one after the other.
#[derive(Debug)]
pub struct Checker {
    cut: MicroBatches,
    asked: u64,
    claimed: BTreeSet<u64>,
    formed: u64,
    fenced: BTreeSet<WorkerId>,
    evictions: usize,
    drained: BTreeSet<WorkerId>,
    /// What was wrong, in words; empty if nothing was.
    pub violations: Vec<String>,
}

impl Checker {
    /// For a run that cuts its steps by `cut`.
    pub fn new(cut: MicroBatches) -> Self {
        Self {
            cut,
            asked: 0,
            claimed: BTreeSet::new(),
            formed: 0,
            fenced: BTreeSet::new(),
            evictions: 0,
            drained: BTreeSet::new(),
            violations: Vec::new(),
        }
    }

    /// The store gave generation `number` to the coordinator.
    pub fn claimed(&mut self, number: u64) {
        self.claimed.insert(number);
    }

    /// Another coordinator leads from now on. Whom the one before put out without forming a generation afterwards is
    /// not known to it, and does no harm: it takes part in no collective.
    pub fn succeeded(&mut self) {
        // What the one before asked for in vain is free.
        self.asked = self.claimed.last().copied().unwrap_or(0);
        self.fenced.clear();
        self.drained.clear();
    }

    /// Looks at one effect.
    pub fn observe(&mut self, effect: &Effect) {
        if effect.reason.is_empty() {
            self.violations.push(format!("{:?} has no reason", effect.action));
        }
        match &effect.action {
            Action::Claim { number, members } => {
                if *number <= self.asked {
                    self.violations.push(format!("generation {number} is claimed after {}", self.asked));
                }
                self.asked = *number;
                if members.is_empty() {
                    self.violations.push(format!("generation {number} has no members"));
                }
            }
            // One who was away may be told again.
            Action::Form { number, .. } if *number == self.formed => {}
            Action::Form { to, number, members } => {
                if !self.claimed.contains(number) {
                    self.violations.push(format!("generation {number} is formed without a claim"));
                }
                if *number <= self.formed {
                    self.violations.push(format!("generation {number} is formed after {}", self.formed));
                }
                self.formed = *number;
                if to.len() != members.len() {
                    self.violations.push(format!("generation {number} is not told to all its members"));
                }
                let ids: BTreeSet<WorkerId> = members.iter().map(|member| member.worker).collect();
                if ids.len() != members.len() {
                    self.violations.push(format!("generation {number} has a member twice"));
                }
                if let Some(fenced) =
                    ids.iter().find(|id| self.fenced.contains(id) || self.drained.contains(id))
                {
                    self.violations
                        .push(format!("generation {number} has {fenced}, which was put out or dismissed"));
                }
                let handed: Vec<usize> =
                    members.iter().flat_map(|member| member.micro_batches.clone()).collect();
                if handed != (0..self.cut.count()).collect::<Vec<_>>() {
                    self.violations.push(format!("generation {number} hands out {handed:?}"));
                }
            }
            Action::Evict(worker) => {
                self.evictions += usize::from(self.fenced.insert(*worker));
            }
            Action::Drained(worker) => {
                self.drained.insert(*worker);
            }
            _ => {}
        }
    }

    /// Workers put out so far.
    pub fn evictions(&self) -> usize {
        self.evictions
    }
}
