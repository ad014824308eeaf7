//! Jacobian determinant of `x + u(x)`: local volume change and folding.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::statistics::{mean, percentile_of_sorted, standard_deviation};
use crate::geometry::{Grid, determinant};
use crate::volume::DisplacementField;

/// Voxels dropped at each face of the grid (science.md section 7).
const BORDER: usize = 2;

/// det(I + du/dx) of every voxel that is not within two voxels of the grid's faces.
#[derive(Debug, Clone)]
pub struct Jacobian {
    /// The interior, as a grid of its own in the same physical place (an axis may have no voxels).
    pub grid: Grid,
    /// One determinant per interior voxel, x fastest.
    pub determinant: Vec<f32>,
    /// For every interior voxel its number in the field's grid is derived from this size.
    full_size: [usize; 3],
}

/// Statistics of the determinant over a region.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct JacobianStatistics {
    /// Voxels counted.
    pub voxels: usize,
    /// Mean.
    pub mean: f64,
    /// Population standard deviation.
    pub std: f64,
    /// Minimum.
    pub min: f64,
    /// Maximum.
    pub max: f64,
    /// 1st percentile.
    pub p1: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Share of voxels with a determinant <= 0, from 0 to 1.
    pub folded: f64,
    /// Standard deviation of ln J, with J raised to at least 1e-9 where it folds (SDlogJ).
    pub sd_log_j: f64,
}

/// Determinants by central differences in mm; derivatives along the grid's axes are turned to LPS, so any
/// oblique and anisotropic grid is right.
pub fn jacobian(field: &DisplacementField) -> Jacobian {
    let full = &field.grid;
    let size = full.size.map(|n| n.saturating_sub(2 * BORDER));
    let origin = full.to_physical([BORDER as f64; 3]);
    let grid = Grid { size, origin, ..full.clone() };
    let stride = [1, full.size[0], full.size[0] * full.size[1]];
    let mut values = vec![0.0f32; grid.len()];
    values.par_chunks_mut((size[0] * size[1]).max(1)).enumerate().for_each(|(z, slice)| {
        for (i, value) in slice.iter_mut().enumerate() {
            let at = full.index(i % size[0] + BORDER, i / size[0] + BORDER, z + BORDER);
            let along_axis: [[f64; 3]; 3] = std::array::from_fn(|r| {
                std::array::from_fn(|a| {
                    let (upper, lower) = (field.u[r][at + stride[a]], field.u[r][at - stride[a]]);
                    (f64::from(upper) - f64::from(lower)) / (2.0 * full.spacing[a])
                })
            });
            // The columns of the direction matrix are orthonormal: d/dx_c = sum_a direction[c][a] d/ds_a.
            let gradient: [[f64; 3]; 3] = std::array::from_fn(|r| {
                std::array::from_fn(|c| {
                    let own = if r == c { 1.0 } else { 0.0 };
                    own + (0..3).map(|a| along_axis[r][a] * full.direction[c][a]).sum::<f64>()
                })
            });
            *value = determinant(&gradient) as f32;
        }
    });
    Jacobian { grid, determinant: values, full_size: full.size }
}

impl Jacobian {
    /// Statistics over the interior voxels whose number in the field's **full** grid `selected` accepts
    /// (so a mask or a label map on the fixed grid is used as it is); `None` if there are none.
    pub fn statistics(&self, selected: impl Fn(usize) -> bool) -> Option<JacobianStatistics> {
        let [nx, ny, _] = self.grid.size;
        let full_index = |i: usize| {
            let (x, y, z) = (i % nx + BORDER, i / nx % ny + BORDER, i / (nx * ny) + BORDER);
            x + self.full_size[0] * (y + self.full_size[1] * z)
        };
        let mut values: Vec<f64> = (self.determinant.iter().enumerate())
            .filter(|(i, _)| selected(full_index(*i)))
            .map(|(_, &j)| f64::from(j))
            .collect();
        values.par_sort_unstable_by(f64::total_cmp);
        let logarithms: Vec<f64> = values.par_iter().map(|j| j.max(1e-9).ln()).collect();
        Some(JacobianStatistics {
            voxels: values.len(),
            mean: mean(&values)?,
            std: standard_deviation(&values)?,
            min: *values.first()?,
            max: *values.last()?,
            p1: percentile_of_sorted(&values, 1.0),
            p99: percentile_of_sorted(&values, 99.0),
            folded: values.iter().filter(|j| **j <= 0.0).count() as f64 / values.len() as f64,
            sd_log_j: standard_deviation(&logarithms)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{Affine, mat_vec};

    fn linear_field(grid: Grid, a: &Affine) -> DisplacementField {
        let mut field = DisplacementField::zero(grid.clone());
        let [nx, ny, _] = grid.size;
        for i in 0..grid.len() {
            let p = grid.to_physical([(i % nx) as f64, (i / nx % ny) as f64, (i / (nx * ny)) as f64]);
            let u = mat_vec(&a.matrix, p);
            for c in 0..3 {
                field.u[c][i] = u[c] as f32;
            }
        }
        field
    }

    #[test]
    fn a_linear_field_has_its_own_determinant_on_any_grid() {
        let gradient = [[0.1, -0.2, 0.05], [0.15, -0.1, 0.0], [0.02, 0.3, 0.2]];
        let phi: [[f64; 3]; 3] =
            std::array::from_fn(|r| std::array::from_fn(|c| gradient[r][c] + if r == c { 1.0 } else { 0.0 }));
        let expected = determinant(&phi);
        let (s, c) = 0.5f64.sin_cos();
        let grid = Grid {
            size: [7, 6, 8],
            spacing: [0.8, 1.3, 2.5],
            origin: [3.0, -2.0, 1.0],
            direction: [[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]],
        };
        let j = jacobian(&linear_field(grid, &Affine { matrix: gradient, translation: [0.0; 3] }));
        assert_eq!(j.grid.size, [3, 2, 4]);
        let s = j.statistics(|_| true).unwrap();
        assert_eq!(s.voxels, 24);
        assert!((s.mean - expected).abs() < 1e-4 && s.std < 1e-4 && s.sd_log_j < 1e-4, "{s:?} {expected}");
        assert_eq!(s.folded, 0.0);
        assert_eq!(j.statistics(|i| i == 0), None, "the border does not count");
    }

    #[test]
    fn mirroring_is_folding_and_small_grids_have_no_interior() {
        let mirror = Affine { matrix: [[-2., 0., 0.], [0., 0., 0.], [0., 0., 0.]], translation: [0.; 3] };
        let grid = Grid::axis_aligned([6, 6, 6], [1.0; 3], [0.0; 3]);
        let s = jacobian(&linear_field(grid, &mirror)).statistics(|_| true).unwrap();
        assert!((s.mean + 1.0).abs() < 1e-5 && s.folded == 1.0);
        let tiny = DisplacementField::zero(Grid::axis_aligned([4, 9, 9], [1.0; 3], [0.0; 3]));
        assert_eq!(jacobian(&tiny).statistics(|_| true), None);
    }
}
