//! How patient the decisions are.

use std::time::Duration;

/// Waiting times and thresholds. The defaults lose a dead worker in about a second, a silent one in five.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Workers that the first generation waits for.
    pub min_workers: usize,
    /// A worker that has said nothing for so long is lost.
    pub silence: Duration,
    /// A worker whose stream ended is lost if it is not back by then. At once, if another one misses it too.
    pub reattach: Duration,
    /// How long workers of a generation have to re-attach to a new coordinator, or to one that was cut off.
    pub adoption: Duration,
    /// How long members whose streams have all ended have to come back. Their clients try within the first two seconds, if they
    /// live; a network that fails ends no stream.
    pub comeback: Duration,
    /// How long newcomers wait for more of them before the others are stopped for their sake.
    pub join_debounce: Duration,
    /// How long after everything was lost a generation is formed from fewer than `min_workers`.
    pub regather: Duration,
    /// At least so long may a planned stop take before it becomes urgent; five steps, if that is more. Nobody is lost, so
    /// there is no hurry.
    pub boundary: Duration,
    /// At least so long may an urgent stop take before those that do not answer are lost; a second and two steps, if
    /// that is more.
    pub abort: Duration,
    /// At least so long may one phase of computing take; ten steps, if that is more.
    pub work: Duration,
    /// So long may connecting, receiving state, validating and saving take, and any phase while no step is known.
    pub long: Duration,
    /// Generations in a row that failed with all their members alive, the last one without a step, after which the one that
    /// most others suspect is put out.
    pub strikes: u32,
    /// How long a host whose worker was put out is left alone at first; doubled each time.
    pub hold_off: Duration,
    /// How much slower than the median a worker is when it is called a straggler.
    pub straggler: f64,
}

impl Policy {
    /// The defaults, for a run that begins with `min_workers`.
    pub fn new(min_workers: usize) -> Self {
        Self {
            min_workers,
            silence: Duration::from_secs(5),
            reattach: Duration::from_millis(1500),
            adoption: Duration::from_secs(6),
            comeback: Duration::from_secs(3),
            join_debounce: Duration::from_millis(500),
            regather: Duration::from_secs(2),
            boundary: Duration::from_secs(30),
            abort: Duration::from_secs(5),
            work: Duration::from_secs(10),
            long: Duration::from_secs(60),
            strikes: 2,
            hold_off: Duration::from_secs(10),
            straggler: 1.5,
        }
    }
}
