//! One field out of several steps, and the same field on another grid.

use rayon::prelude::*;

use super::warp::sample_clamped;
use crate::geometry::{Affine, Grid, Point};
use crate::volume::DisplacementField;

/// The total field of `T(x) = affine(x + u(x))`: `u_total(x) = affine(x + u(x)) - x`, same grid, mm.
pub fn compose_with_affine(field: &DisplacementField, affine: &Affine) -> DisplacementField {
    field_on(&field.grid, |i, x| {
        let u = field.at(i);
        let y = affine.apply(std::array::from_fn(|a| x[a] + f64::from(u[a])));
        std::array::from_fn(|a| y[a] - x[a])
    })
}

/// `field` on another grid, trilinear; beyond the old grid its edge value goes on. Vectors stay as they are,
/// because they are physical (LPS mm) and not tied to a grid.
pub fn resample_field(field: &DisplacementField, grid: &Grid) -> DisplacementField {
    field_on(grid, |_, x| sample_clamped(field, x))
}

/// Evaluates a displacement at every voxel (number and place), slices in parallel.
fn field_on(grid: &Grid, u: impl Fn(usize, Point) -> [f64; 3] + Sync) -> DisplacementField {
    let [nx, ny, _] = grid.size;
    let mut field = DisplacementField::zero(grid.clone());
    let slice = (nx * ny).max(1);
    let [ux, uy, uz] = &mut field.u;
    (ux.par_chunks_mut(slice), uy.par_chunks_mut(slice), uz.par_chunks_mut(slice))
        .into_par_iter()
        .enumerate()
        .for_each(|(z, (ux, uy, uz))| {
            for i in 0..ux.len() {
                let place = grid.to_physical([(i % nx) as f64, (i / nx) as f64, z as f64]);
                let value = u(z * slice + i, place);
                (ux[i], uy[i], uz[i]) = (value[0] as f32, value[1] as f32, value[2] as f32);
            }
        });
    field
}

#[cfg(test)]
mod tests {
    use super::super::map_point;
    use super::*;
    use crate::geometry::distance;

    /// A field that is linear in space, which trilinear interpolation reproduces exactly.
    fn linear_field(grid: Grid) -> DisplacementField {
        field_on(&grid, |_, p| [0.1 * p[0] - 0.05 * p[1], 0.02 * p[2] + 1.0, -0.03 * p[0]])
    }

    #[test]
    fn total_field_is_field_then_affine() {
        let field = linear_field(Grid::axis_aligned([6, 5, 4], [1.0, 2.0, 3.0], [-3.0, 1.0, 10.0]));
        let affine = Affine {
            matrix: [[0.9, 0.1, 0.0], [0.0, 1.1, 0.0], [0.05, 0.0, 1.0]],
            translation: [4.0, 5.0, -6.0],
        };
        let total = compose_with_affine(&field, &affine);
        let p = [0.3, 4.2, 14.0];
        let (a, b) = (map_point(&total, None, p).unwrap(), map_point(&field, Some(&affine), p).unwrap());
        assert!(distance(a, b) < 1e-5, "{a:?} {b:?}");
    }

    #[test]
    fn resampling_keeps_physical_vectors() {
        let field = linear_field(Grid::axis_aligned([20, 20, 20], [1.0; 3], [0.0; 3]));
        let (s, c) = 0.4f64.sin_cos();
        let other = Grid {
            size: [5, 5, 5],
            spacing: [1.3, 0.7, 2.0],
            origin: [6.0, 5.0, 4.0],
            direction: [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]],
        };
        let (resampled, expected) = (resample_field(&field, &other), linear_field(other));
        for c in 0..3 {
            assert!(resampled.u[c].iter().zip(&expected.u[c]).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}
