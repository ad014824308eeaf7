//! One resolution of the registration: the sampled fixed voxels and the smoothed moving image.

use rayon::prelude::*;

use super::mask_on;
use crate::geometry::{Affine, Grid, Point};
use crate::resample::{gaussian_smooth, sample_linear, shrink};
use crate::volume::Volume;

/// Most fixed voxels looked at in each step; more only costs time.
pub(super) const MOST_SAMPLES: usize = 150_000;
/// Samples per parallel task: fixed, so that sums are added in the same order for any number of threads.
pub(super) const CHUNK: usize = 4096;

/// A fixed voxel inside the torso.
pub(super) struct Sample {
    /// Where, mm.
    pub point: Point,
    /// Clipped HU.
    pub value: f32,
}

/// Fixed samples and the moving image at one resolution.
pub(super) struct Level {
    pub samples: Vec<Sample>,
    pub moving: Volume<f32>,
}

/// How two scans agree under a map.
pub(super) struct Agreement {
    pub ncc: f64,
    pub median_difference: f64,
    pub overlap: f64,
}

impl Level {
    pub fn new(
        fixed: &Volume<f32>,
        moving: &Volume<f32>,
        mask: &Volume<u8>,
        mm: f64,
        window: [f32; 2],
    ) -> Self {
        let fixed = reduced(fixed, mm, window);
        let moving = reduced(moving, mm, window);
        let mask = mask_on(mask, &fixed.grid);
        let inside: Vec<usize> = (0..mask.data.len()).filter(|&i| mask.data[i] != 0).collect();
        let step = inside.len().div_ceil(MOST_SAMPLES).max(1);
        let [nx, ny, _] = fixed.grid.size;
        let samples = inside
            .into_iter()
            .step_by(step)
            .map(|i| Sample {
                point: fixed.grid.to_physical([i % nx, i / nx % ny, i / (nx * ny)].map(|v| v as f64)),
                value: fixed.data[i],
            })
            .collect();
        Self { samples, moving }
    }

    /// Similarity under a map, over the samples that fall inside the moving image.
    pub fn agreement(&self, affine: &Affine) -> Agreement {
        let pairs: Vec<(f64, f64)> = self
            .samples
            .par_iter()
            .filter_map(|s| {
                let value = sample_linear(&self.moving, affine.apply(s.point))?;
                Some((f64::from(s.value), f64::from(value)))
            })
            .collect();
        let overlap = pairs.len() as f64 / self.samples.len().max(1) as f64;
        if pairs.len() < 2 {
            return Agreement { ncc: 0.0, median_difference: 0.0, overlap };
        }
        let n = pairs.len() as f64;
        let mean = |f: fn(&(f64, f64)) -> f64| pairs.iter().map(f).sum::<f64>() / n;
        let (mean_f, mean_m) = (mean(|p| p.0), mean(|p| p.1));
        let (mut ff, mut mm, mut fm) = (0.0, 0.0, 0.0);
        for (f, m) in &pairs {
            ff += (f - mean_f).powi(2);
            mm += (m - mean_m).powi(2);
            fm += (f - mean_f) * (m - mean_m);
        }
        let ncc = if ff > 0.0 && mm > 0.0 { fm / (ff * mm).sqrt() } else { 0.0 };
        let mut differences: Vec<f64> = pairs.iter().map(|(f, m)| (f - m).abs()).collect();
        let middle = differences.len() / 2;
        let median_difference = *differences.select_nth_unstable_by(middle, f64::total_cmp).1;
        Agreement { ncc, median_difference, overlap }
    }
}

/// Whole factors that bring the spacing near `mm`.
pub(super) fn factor(grid: &Grid, mm: f64) -> [usize; 3] {
    grid.spacing.map(|s| ((mm / s).round() as usize).max(1))
}

/// Clipped, shrunk to voxels of about `mm` and smoothed by half of that, so that gradients reach a voxel far.
fn reduced(image: &Volume<f32>, mm: f64, [low, high]: [f32; 2]) -> Volume<f32> {
    gaussian_smooth(&shrink(image, factor(&image.grid, mm), |v| v.clamp(low, high)), 0.5 * mm)
}
