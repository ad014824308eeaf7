//! Telling a caller how far a long computation is, letting it stop it, and how long each stage took.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::{Error, Result};

/// A callback for progress: the stage's name, the units done and the units in all.
pub type Report<'a> = &'a (dyn Fn(&str, usize, usize) + Sync);

/// Receives progress and may cancel. Cancelling takes effect between tiles, iterations and stages.
#[derive(Clone, Copy, Default)]
pub struct Progress<'a> {
    /// Called after every unit of work.
    pub report: Option<Report<'a>>,
    /// The computation ends with [`Error::Cancelled`] soon after this becomes true.
    pub cancel: Option<&'a AtomicBool>,
}

impl Progress<'_> {
    /// Neither reports nor cancels.
    pub const SILENT: Progress<'static> = Progress { report: None, cancel: None };

    /// Reports that `done` of `total` units of `stage` are done.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the caller wants to stop.
    pub fn step(&self, stage: &str, done: usize, total: usize) -> Result<()> {
        if let Some(report) = self.report {
            report(stage, done, total);
        }
        match self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

/// Seconds per stage, in the order in which the stages first came.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    last: Instant,
    laps: Vec<(&'static str, f64)>,
}

impl Stopwatch {
    /// The first stage begins.
    pub fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    /// A stage ends and the next one begins; stages of one name are added up.
    pub fn lap(&mut self, stage: &'static str) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        match self.laps.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.laps.push((stage, seconds)),
        }
    }

    /// What was measured so far.
    pub fn laps(&self) -> &[(&'static str, f64)] {
        &self.laps
    }
}
