//! How long a registration will take: its work, at the pace at which this machine has done such work before.
//!
//! This is an estimate. Work is counted by stage (arithmetic of the network, voxels and steps of refinement, voxels
//! elsewhere), and a pace is measured where and as busy as the machine is; what changes afterwards, other processes above
//! all, is not foreseen.

use std::time::Instant;

use super::estimate;
use crate::Result;
use crate::align::{self, AlignOptions, align};
use crate::engine::Engine;
use crate::geometry::Grid;
use crate::model::Preprocessing;
use crate::network::MARGIN;
use crate::progress::Progress;
use crate::qa::{QaLimits, assess_registration};
use crate::refine::RefineOptions;
use crate::register::{Prealign, RegisterOptions, register_with};
use crate::volume::Volume;

/// What the time of a registration goes with, stage by stage.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Samples of the scans that are aligned, times steps; 0 where the prealignment is given.
    pub alignment: f64,
    /// Floating-point operations of the network in all its tiles; see [`crate::network::flops`].
    pub network: f64,
    /// Voxels times steps of refinement.
    pub refinement: f64,
    /// Voxels that are resampled, warped and judged.
    pub rest: f64,
}

impl Work {
    fn stages(&self) -> [f64; 4] {
        [self.alignment, self.network, self.refinement, self.rest]
    }
}

/// How fast this machine does each kind of work: work and seconds of earlier registrations, the latest counting most.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pace {
    work: [f64; 4],
    seconds: [f64; 4],
}

/// Voxels per edge of the scans that [`Pace::measure`] registers with a network, whose margin comes on top: the first that is one
/// tile, because many small ones would take long.
const SMALL: [usize; 3] = [40, 24, 12];
/// The same without a network: refinement's coarsest resolution must have work to do.
const SMALL_ALONE: usize = 64;
/// The same of those that it aligns, and their voxels in mm: alignment needs a body.
const ALIGNED: (usize, f64) = (48, 4.0);
/// Most steps of refinement there.
const FEW_STEPS: usize = 10;

impl Pace {
    /// Measures what `options` ask for by small registrations of scans made for it: some tenths of a second on two cores.
    /// The network gets `options.max_bytes`, or what little the smallest of these scans takes.
    ///
    /// # Errors
    /// What the engine reports.
    pub fn measure(
        &mut self,
        engine: Option<&dyn Engine>,
        preprocessing: &Preprocessing,
        options: &RegisterOptions,
    ) -> Result<()> {
        if let Prealign::Find(how) = &options.prealign {
            self.measure_alignment(how)?;
        }
        let bytes = |engine: &dyn Engine, size: usize| engine.bytes([size + 2 * MARGIN; 3]);
        let (size, spacing, least) = match engine {
            Some(engine) => {
                let fits = SMALL.into_iter().find(|&size| bytes(engine, size) <= options.max_bytes);
                let size = fits.unwrap_or(SMALL[2]);
                (size, preprocessing.spacing_mm, bytes(engine, size))
            }
            None => (SMALL_ALONE, options.spacing_mm, 0),
        };
        let [fixed, moving] = [0.0, 1.0].map(|shift| body(size, spacing, shift));
        let options = RegisterOptions {
            prealign: RegisterOptions::default().prealign,
            max_bytes: options.max_bytes.max(least),
            refine: RefineOptions { steps: options.refine.steps.min(FEW_STEPS), ..Default::default() },
            ..options.clone()
        };
        let work = estimate(engine, preprocessing, [&fixed.grid, &moving.grid], &options)?.work;
        let register = || -> Result<_> {
            let clock = Instant::now();
            let (done, ()) =
                register_with(engine, preprocessing, &fixed, &moving, &options, Progress::SILENT, |_| ())?;
            assess_registration([&fixed, &moving], &done, [None; 2], spacing, &QaLimits::DEFAULT)?;
            Ok((done.timings, clock.elapsed().as_secs_f64()))
        };
        // What is done once, such as making buffers, is half of the time that the smallest scans take; many tiles share it.
        if size < SMALL[0] {
            register()?;
        }
        let (timings, whole) = register()?;
        self.update(&work, &timings, whole);
        Ok(())
    }

    fn measure_alignment(&mut self, how: &AlignOptions) -> Result<()> {
        let (size, spacing) = ALIGNED;
        let [fixed, moving] = [0.0, 5.0].map(|shift| body(size, spacing, shift));
        let work = align::work([&fixed.grid, &moving.grid], how);
        let clock = Instant::now();
        align(&fixed, &moving, how)?;
        let seconds = clock.elapsed().as_secs_f64();
        self.update(&Work { alignment: work, ..Default::default() }, &[("align", seconds)], seconds);
        Ok(())
    }

    /// Learns from a registration of this `work`, with the seconds of its stages
    /// ([`crate::register::Registration::timings`]) and those of the whole call.
    pub fn update(&mut self, work: &Work, timings: &[(&'static str, f64)], whole: f64) {
        let of = |stage: &str| timings.iter().filter(|(name, _)| *name == stage).map(|(_, s)| s).sum::<f64>();
        let [align, network, refine] = ["align", "network", "refine"].map(of);
        let seconds = [align, network, refine, whole - align - network - refine];
        for (stage, work) in work.stages().into_iter().enumerate().filter(|(_, work)| *work > 0.0) {
            // What was measured earlier counts half, so that the pace follows a machine that becomes busy; and by its size,
            // so that a small registration, most of whose time is not work, hardly changes the pace of large ones.
            self.work[stage] = 0.5 * self.work[stage] + work;
            self.seconds[stage] = 0.5 * self.seconds[stage] + seconds[stage];
        }
    }

    /// How long this work takes at this pace; `None` if it has a stage that was never measured.
    pub fn seconds(&self, work: &Work) -> Option<f64> {
        let stages = work.stages().into_iter().enumerate().filter(|(_, work)| *work > 0.0);
        stages.map(|(n, work)| (self.work[n] > 0.0).then(|| work * self.seconds[n] / self.work[n])).sum()
    }
}

/// A lumpy ball in air, HU, moved along x by `shift` mm: something to register that costs what scans do.
fn body(size: usize, spacing: f64, shift: f64) -> Volume<f32> {
    let half = 0.5 * spacing * (size - 1) as f64;
    let grid = Grid::axis_aligned([size; 3], [spacing; 3], [-half; 3]);
    let at = |i: usize| {
        let p = grid.to_physical([i % size, i / size % size, i / size / size].map(|n| n as f64));
        let [x, y, z] = [p[0] + shift, p[1], p[2]].map(|mm| mm / half);
        let lumps = 200.0 * (9.0 * x).sin() * (8.0 * y).cos() * (7.0 * z).cos();
        if x * x + y * y + z * z < 0.6 { (40.0 + lumps) as f32 } else { -1000.0 }
    };
    let data = (0..grid.len()).map(at).collect();
    Volume::new(grid, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { alignment: 0.0, network: 100.0, refinement: 0.0, rest: 10.0 };

    #[test]
    fn time_is_work_at_the_pace_that_was_measured() {
        let mut pace = Pace::default();
        assert_eq!(pace.seconds(&WORK), None);
        pace.update(&WORK, &[("network", 2.0), ("resample", 0.25)], 2.5);
        assert_eq!(pace.seconds(&WORK), Some(2.5));
        assert_eq!(pace.seconds(&Work { network: 300.0, ..WORK }), Some(6.5));
        assert_eq!(pace.seconds(&Work { refinement: 1.0, ..WORK }), None, "never measured");
    }

    #[test]
    fn the_latest_counts_most_and_small_ones_little() {
        let mut pace = Pace::default();
        pace.update(&WORK, &[("network", 1.0)], 1.0);
        (0..6).for_each(|_| pace.update(&WORK, &[("network", 4.0)], 4.0));
        let busy = pace.seconds(&WORK).unwrap();
        assert!((3.9..=4.0).contains(&busy), "{busy}");
        pace.update(&Work { network: 0.1, ..WORK }, &[("network", 1.0)], 1.0);
        assert!(pace.seconds(&WORK).unwrap() < 1.5 * busy);
    }
}
