//! Both scans of a pair as the network sees them: on one isotropic grid, the moving scan prealigned.
//!
//! Training's preparation and registration both go through [`working_pair`], so that a network meets in use what it
//! met in training.

use rayon::prelude::*;

use crate::geometry::{Affine, Grid};
use crate::resample::{gaussian_smooth, resample_image};
use crate::volume::Volume;

/// A grid coarser than the scan by this factor needs smoothing, or noise aliases into structure.
const COARSER: f64 = 1.5;
/// Standard deviation of that smoothing, working voxels.
const SMOOTHING: f64 = 0.4;

/// A pair on the working grid, HU, not yet clipped.
#[derive(Debug, Clone)]
pub struct WorkingPair {
    /// I_f.
    pub fixed: Vec<f32>,
    /// I_m at the prealigned places.
    pub moving: Vec<f32>,
    /// False where the moving scan has no data. Both images are `air` there: the border of a field of view is no
    /// anatomy, and seen in one image only it is the strongest edge of all.
    pub covered: Vec<bool>,
}

/// Brings both scans onto `grid` (trilinear; smoothed first where the grid is coarser than the scan).
///
/// `affine` maps fixed to moving points; `air` (HU) fills what lies outside a scan.
pub fn working_pair(
    fixed: &Volume<f32>,
    moving: &Volume<f32>,
    affine: &Affine,
    grid: &Grid,
    air: f32,
) -> WorkingPair {
    let mut on_fixed = on_grid(fixed, grid, None).data;
    let mut on_moving = on_grid(moving, grid, Some(affine)).data;
    let covered: Vec<bool> = (on_fixed.par_iter_mut().zip(&mut on_moving))
        .map(|(f, m)| {
            let covered = !f.is_nan() && !m.is_nan();
            if !covered {
                (*f, *m) = (air, air);
            }
            covered
        })
        .collect();
    WorkingPair { fixed: on_fixed, moving: on_moving, covered }
}

/// `image(affine(x))` at every voxel of `grid`, NaN outside the image.
fn on_grid(image: &Volume<f32>, grid: &Grid, affine: Option<&Affine>) -> Volume<f32> {
    let finest = |g: &Grid| g.spacing.iter().copied().fold(f64::INFINITY, f64::min);
    if finest(grid) > COARSER * finest(&image.grid) {
        let smooth = gaussian_smooth(image, SMOOTHING * finest(grid));
        resample_image(&smooth, grid, affine, f32::NAN)
    } else {
        resample_image(image, grid, affine, f32::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_scan_lacks_neither_shows() {
        let grid = Grid::axis_aligned([6, 5, 4], [2.0; 3], [0.0; 3]);
        let mut fixed = Volume::filled(grid.clone(), 40.0f32);
        fixed.data[grid.index(5, 2, 2)] = 300.0;
        let moving = Volume::filled(grid.clone(), 30.0f32);
        // Fixed points 4 mm further left in the moving scan: its last two columns are beyond the border.
        let shift = Affine { matrix: Affine::IDENTITY.matrix, translation: [4.0, 0.0, 0.0] };
        let pair = working_pair(&fixed, &moving, &shift, &grid, -1000.0);
        for i in 0..grid.len() {
            let covered = i % 6 < 4;
            assert_eq!(pair.covered[i], covered, "voxel {i}");
            let expected = if covered { [40.0, 30.0] } else { [-1000.0; 2] };
            assert_eq!([pair.fixed[i], pair.moving[i]], expected, "voxel {i}");
        }
    }

    #[test]
    fn a_coarse_grid_averages_noise() {
        let fine = Grid::axis_aligned([48, 48, 48], [1.0; 3], [0.0; 3]);
        let noise = |i: usize| if (i * 2_654_435_761) % 7 < 3 { 50.0 } else { -50.0 };
        let scan = Volume::new(fine.clone(), (0..fine.len()).map(noise).collect());
        let coarse = Grid::axis_aligned([8, 8, 8], [4.0; 3], [8.0; 3]);
        let pair = working_pair(&scan, &scan, &Affine::IDENTITY, &coarse, -1000.0);
        let spread = |v: &[f32]| {
            let mean = v.iter().sum::<f32>() / v.len() as f32;
            (v.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / v.len() as f32).sqrt()
        };
        assert!(spread(&pair.fixed) < 0.3 * spread(&scan.data), "{}", spread(&pair.fixed));
    }
}
