//! Jacobian determinant of `x + u(x)`: local volume change and folding.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::statistics::percentiles;
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

/// Determinants by central differences in mm, in LPS, so any oblique and anisotropic grid is right.
pub fn jacobian(field: &DisplacementField) -> Jacobian {
    let full = &field.grid;
    let size = full.size.map(|n| n.saturating_sub(2 * BORDER));
    let origin = full.to_physical([BORDER as f64; 3]);
    let grid = Grid { size, origin, ..full.clone() };
    // Derivatives g along the grid's axes turn to LPS by the transposed direction d, which is orthonormal:
    // det(1 + g dᵀ) = det(d + g) det(d).
    let direction = full.direction.map(|row| row.map(|v| v as f32));
    let handedness = determinant(&full.direction) as f32;
    let per_mm = full.spacing.map(|s| (0.5 / s) as f32);
    let stride = [1, full.size[0], full.size[0] * full.size[1]];
    let mut values = vec![0.0f32; grid.len()];
    let rows_of = |z: usize, slice: &mut [f32]| {
        for (y, row) in slice.chunks_mut(size[0].max(1)).enumerate() {
            let start = full.index(BORDER, y + BORDER, z + BORDER);
            let sides: [[[&[f32]; 2]; 3]; 3] = std::array::from_fn(|r| {
                std::array::from_fn(|a| {
                    [start - stride[a], start + stride[a]].map(|first| &field.u[r][first..][..row.len()])
                })
            });
            for (x, value) in row.iter_mut().enumerate() {
                let m: [[f32; 3]; 3] = std::array::from_fn(|r| {
                    std::array::from_fn(|a| {
                        direction[r][a] + (sides[r][a][1][x] - sides[r][a][0][x]) * per_mm[a]
                    })
                });
                let minor = |a: usize, b: usize| m[1][a] * m[2][b] - m[1][b] * m[2][a];
                let det = m[0][0] * minor(1, 2) - m[0][1] * minor(0, 2) + m[0][2] * minor(0, 1);
                *value = handedness * det;
            }
        }
    };
    values.par_chunks_mut((size[0] * size[1]).max(1)).enumerate().for_each(|(z, slice)| rows_of(z, slice));
    Jacobian { grid, determinant: values, full_size: full.size }
}

impl Jacobian {
    /// Statistics over the interior voxels whose number in the field's **full** grid `selected` accepts
    /// (so a mask or a label map on the fixed grid is used as it is); `None` if there are none.
    pub fn statistics(&self, selected: impl Fn(usize) -> bool + Sync) -> Option<JacobianStatistics> {
        let [nx, ny, _] = self.grid.size;
        let slices: Vec<Vec<f32>> = self
            .determinant
            .par_chunks((nx * ny).max(1))
            .enumerate()
            .map(|(z, slice)| {
                let full = |i: usize| {
                    let (x, y, z) = (i % nx + BORDER, i / nx + BORDER, z + BORDER);
                    x + self.full_size[0] * (y + self.full_size[1] * z)
                };
                slice.iter().enumerate().filter(|(i, _)| selected(full(*i))).map(|(_, &j)| j).collect()
            })
            .collect();
        let [min, p1, p99, max] = percentiles(&slices, [0.0, 1.0, 99.0, 100.0])?;
        let voxels: usize = slices.iter().map(Vec::len).sum();
        // Per slice, joined in order. J - 1 and ln J are small where little is deformed, so their squares lose nothing.
        let sums = slices.par_iter().map(|slice| Sums::of(slice)).collect::<Vec<_>>();
        let [change, change_squared, log, log_squared] = sums
            .iter()
            .fold([0.0; 4], |all, s| std::array::from_fn(|i| all[i] + s.terms[i]))
            .map(|sum| sum / voxels as f64);
        let deviation = |mean: f64, square: f64| (square - mean * mean).max(0.0).sqrt();
        Some(JacobianStatistics {
            voxels,
            mean: 1.0 + change,
            std: deviation(change, change_squared),
            min,
            max,
            p1,
            p99,
            folded: sums.iter().map(|s| s.folded).sum::<usize>() as f64 / voxels as f64,
            sd_log_j: deviation(log, log_squared),
        })
    }
}

/// Sums over some voxels.
struct Sums {
    /// Of J - 1, its square, ln J and its square.
    terms: [f64; 4],
    /// Voxels with a determinant <= 0.
    folded: usize,
}

impl Sums {
    fn of(determinants: &[f32]) -> Self {
        let mut sums = Self { terms: [0.0; 4], folded: 0 };
        for &j in determinants {
            let change = f64::from(j) - 1.0;
            let log = f64::from(j).max(1e-9).ln();
            for (sum, term) in sums.terms.iter_mut().zip([change, change * change, log, log * log]) {
                *sum += term;
            }
            sums.folded += usize::from(j <= 0.0);
        }
        sums
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
