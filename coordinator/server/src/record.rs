//! What workers reported, kept for people: losses, speeds, checkpoints, and what was decided and why.

use crate::convert::phase_name;
use crate::metrics::Metrics;
use jrs_coordinator::decision::WorkerId;
use jrs_protocol::message::{FromWorker, Heartbeat, Hello, from_worker::Body};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

/// Points of a loss curve. When there are more, every second one goes.
const POINTS: usize = 2000;

/// Events kept.
const EVENTS: usize = 300;

/// Checkpoints and validations kept.
const MARKS: usize = 500;

#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) losses: Losses,
    pub(crate) checkpoints: VecDeque<SavedRow>,
    pub(crate) validations: VecDeque<ValidatedRow>,
    pub(crate) events: VecDeque<EventRow>,
    pub(crate) workers: HashMap<WorkerId, Reported>,
    /// Generator iterations done.
    pub(crate) iteration: u64,
    pub(crate) progress: Progress,
    /// The key of the newest generation.
    key: Option<(u64, [u8; 32])>,
}

/// What a worker says about itself.
#[derive(Debug, Default, Clone)]
pub(crate) struct Reported {
    pub(crate) host: String,
    pub(crate) process: u32,
    pub(crate) phase: &'static str,
    pub(crate) samples_per_second: f64,
    pub(crate) data_wait_share: f64,
    pub(crate) collective: String,
    /// Bytes its collectives sent and received by its own count; none before its first heartbeat.
    collective_bytes: Option<[u64; 2]>,
}

/// Loss curves, thinned out when they grow long.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    pub(crate) names: Vec<String>,
    pub(crate) rows: Vec<(u64, Vec<Option<f64>>)>,
    /// Only every so many rows is kept.
    every: u64,
    seen: u64,
}

/// How fast the run goes, as this coordinator saw it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// First step seen and when it began, in seconds since 1970.
    first: Option<(u64, f64)>,
    last: Option<(u64, f64)>,
    /// Seconds spent in steps that were committed.
    productive: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct SavedRow {
    pub(crate) step: u64,
    pub(crate) generation: u64,
    pub(crate) seconds: f64,
    pub(crate) stall_seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) at: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct ValidatedRow {
    pub(crate) iteration: u64,
    pub(crate) msd_mm: Option<f64>,
    pub(crate) best: bool,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct EventRow {
    pub(crate) at: f64,
    pub(crate) generation: u64,
    pub(crate) step: u64,
    pub(crate) what: &'static str,
    pub(crate) reason: String,
}

impl Record {
    pub(crate) fn hello(&mut self, worker: WorkerId, hello: &Hello) {
        let known = self.workers.entry(worker).or_default();
        known.host.clone_from(&hello.host);
        known.process = hello.process;
    }

    /// Keeps what a message of the current generation says; those of earlier ones are late and count no more.
    pub(crate) fn said(
        &mut self,
        worker: WorkerId,
        message: &FromWorker,
        generation: u64,
        metrics: &Metrics,
    ) {
        let Some(body) = &message.body else { return };
        if let Body::Heartbeat(heartbeat) = body {
            self.heartbeat(worker, heartbeat, metrics);
        }
        if message.generation != generation {
            return;
        }
        match body {
            Body::Committed(committed) => {
                let values = committed.values.iter().map(|v| (v.name.as_str(), v.value));
                if self.progress.committed(message.step, committed.seconds) {
                    self.losses.push(message.step, values);
                    metrics.committed(committed.seconds, committed.data_wait_seconds);
                }
                self.iteration = self.iteration.max(committed.iteration);
            }
            Body::Saved(saved) => {
                metrics.saved(saved.seconds, saved.stall_seconds);
                let row = SavedRow {
                    step: message.step,
                    generation,
                    seconds: saved.seconds,
                    stall_seconds: saved.stall_seconds,
                    bytes: saved.bytes,
                    at: now(),
                };
                push(&mut self.checkpoints, row, MARKS);
            }
            Body::Validated(validated) => {
                let msd_mm = Some(validated.msd_mm).filter(|msd| msd.is_finite());
                let row = ValidatedRow { iteration: validated.iteration, msd_mm, best: validated.best };
                push(&mut self.validations, row, MARKS);
            }
            _ => {}
        }
    }

    pub(crate) fn event(&mut self, generation: u64, step: u64, what: &'static str, reason: &str) {
        let row = EventRow { at: now(), generation, step, what, reason: reason.to_owned() };
        push(&mut self.events, row, EVENTS);
    }

    pub(crate) fn forget(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
    }

    /// The secret of a generation: the same for all its members, new for the next.
    pub(crate) fn key(&mut self, generation: u64) -> [u8; 32] {
        match self.key {
            Some((of, key)) if of == generation => key,
            _ => {
                let mut key = [0; 32];
                // Two random UUIDs have 244 random bits from the system's generator.
                key[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
                key[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
                self.key = Some((generation, key));
                key
            }
        }
    }

    fn heartbeat(&mut self, worker: WorkerId, heartbeat: &Heartbeat, metrics: &Metrics) {
        let known = self.workers.entry(worker).or_default();
        known.phase = phase_name(heartbeat.phase());
        known.samples_per_second = heartbeat.samples_per_second;
        known.data_wait_share = heartbeat.data_wait_share;
        known.collective.clone_from(&heartbeat.collective);
        let bytes = [heartbeat.collective_sent, heartbeat.collective_received];
        // What a worker sent under an earlier coordinator, or before it was put out, was counted then.
        let before = known.collective_bytes.replace(bytes).unwrap_or(bytes);
        metrics.collective(bytes[0].saturating_sub(before[0]), bytes[1].saturating_sub(before[1]));
    }
}

impl Losses {
    fn push<'a>(&mut self, step: u64, values: impl Iterator<Item = (&'a str, f64)>) {
        self.seen += 1;
        if !self.seen.is_multiple_of(self.every.max(1)) {
            return;
        }
        let mut row = vec![None; self.names.len()];
        for (name, value) in values {
            let column = self.names.iter().position(|known| known == name).unwrap_or_else(|| {
                self.names.push(name.to_owned());
                row.push(None);
                self.names.len() - 1
            });
            // JSON has no NaN.
            row[column] = Some(value).filter(|value| value.is_finite());
        }
        self.rows.push((step, row));
        if self.rows.len() > POINTS {
            let mut index = 0;
            self.rows.retain(|_| {
                index += 1;
                index % 2 == 0
            });
            self.every = 2 * self.every.max(1);
        }
    }
}

impl Progress {
    /// Takes note of a step; false if it was known already.
    fn committed(&mut self, step: u64, seconds: f64) -> bool {
        let now = now();
        if self.last.is_some_and(|(last, _)| step <= last) {
            return false;
        }
        self.first.get_or_insert((step.saturating_sub(1), now - seconds));
        self.last = Some((step, now));
        self.productive += seconds;
        true
    }

    /// Steps a second since the first step, with everything that got in their way.
    pub(crate) fn steps_per_second(&self) -> Option<f64> {
        let ((first, began), (last, ended)) = self.first.zip(self.last)?;
        (ended > began).then(|| (last - first) as f64 / (ended - began))
    }

    /// Share of the time since the first step that was spent in steps that counted.
    pub(crate) fn goodput(&self) -> Option<f64> {
        let ((_, began), (_, ended)) = self.first.zip(self.last)?;
        (ended > began).then(|| (self.productive / (ended - began)).min(1.0))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn push<T>(rows: &mut VecDeque<T>, row: T, limit: usize) {
    if rows.len() == limit {
        rows.pop_front();
    }
    rows.push_back(row);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_thinned_and_keep_their_ends() {
        let mut losses = Losses::default();
        (1..=10_000).for_each(|step| losses.push(step, [("total", step as f64)].into_iter()));
        assert!(losses.rows.len() <= POINTS, "{}", losses.rows.len());
        assert!(losses.rows.len() >= POINTS / 2, "{}", losses.rows.len());
        assert!(losses.rows[0].0 <= 16 && losses.rows.last().unwrap().0 > 9_900);
        assert!(losses.rows.iter().all(|(step, row)| row[0] == Some(*step as f64)));
    }

    #[test]
    fn a_name_that_comes_late_has_a_column_of_its_own() {
        let mut losses = Losses::default();
        losses.push(1, [("total", 1.0)].into_iter());
        losses.push(2, [("critic", f64::NAN), ("total", 2.0)].into_iter());
        assert_eq!(losses.names, ["total", "critic"]);
        assert_eq!(losses.rows[1].1, [Some(2.0), None]);
    }

    #[test]
    fn replayed_steps_do_not_count_twice() {
        let mut progress = Progress::default();
        assert!(progress.committed(1, 0.0) && !progress.committed(1, 0.0) && progress.committed(2, 0.0));
    }

    #[test]
    fn a_generation_has_one_key() {
        let mut record = Record::default();
        let first = record.key(1);
        assert_eq!(record.key(1), first);
        assert_ne!(record.key(2), first);
    }
}
