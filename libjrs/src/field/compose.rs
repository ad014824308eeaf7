//! One field out of several steps, and the same field on another grid.

use std::borrow::Cow;

use rayon::prelude::*;

use super::warp::sample_clamped;
use crate::geometry::{Affine, Grid, Point, mat_vec};
use crate::resample::SAME_MM;
use crate::volume::DisplacementField;

/// The total field of `T(x) = affine(x + u(x))`: `u_total(x) = affine(x + u(x)) - x`, same grid, mm.
pub fn compose_with_affine(field: &DisplacementField, affine: &Affine) -> DisplacementField {
    // A (x + u) + t - x, with (A - I) x + t carried along the row.
    let grid = &field.grid;
    let matrix = affine.matrix;
    let step = along(grid);
    let rest: [[f64; 3]; 3] =
        std::array::from_fn(|r| std::array::from_fn(|c| matrix[r][c] - f64::from(u8::from(r == c))));
    let rest_step = mat_vec(&rest, step);
    rows(grid, |first, place, [ux, uy, uz]| {
        let start = mat_vec(&rest, place);
        let u = field.u.each_ref().map(|u| &u[first..][..ux.len()]);
        for (c, out) in [ux, uy, uz].into_iter().enumerate() {
            let ([a, b, d], offset) = (matrix[c], start[c] + affine.translation[c]);
            for (x, out) in out.iter_mut().enumerate() {
                let turned = a * f64::from(u[0][x]) + b * f64::from(u[1][x]) + d * f64::from(u[2][x]);
                *out = (offset + x as f64 * rest_step[c] + turned) as f32;
            }
        }
    })
}

/// `field` on another grid, trilinear; beyond the old grid its edge value goes on. Vectors stay as they are,
/// because they are physical (LPS mm) and not tied to a grid. Borrowed where it is on that grid already.
pub fn resample_field<'a>(field: &'a DisplacementField, grid: &Grid) -> Cow<'a, DisplacementField> {
    if field.grid.same_space(grid, SAME_MM) {
        return Cow::Borrowed(field);
    }
    Cow::Owned(field_on(grid, |x| sample_clamped(field, x)))
}

/// Evaluates a displacement at the place of every voxel, slices in parallel.
pub(crate) fn field_on(grid: &Grid, u: impl Fn(Point) -> [f64; 3] + Sync) -> DisplacementField {
    let step = along(grid);
    rows(grid, |_, place, [ux, uy, uz]| {
        for x in 0..ux.len() {
            let value = u(std::array::from_fn(|a| place[a] + x as f64 * step[a]));
            (ux[x], uy[x], uz[x]) = (value[0] as f32, value[1] as f32, value[2] as f32);
        }
    })
}

/// From one voxel of a row to the next, mm.
fn along(grid: &Grid) -> [f64; 3] {
    std::array::from_fn(|r| grid.direction[r][0] * grid.spacing[0])
}

/// Fills a field row by row: number and place of the row's first voxel, and where its components go.
fn rows(grid: &Grid, fill: impl Fn(usize, Point, [&mut [f32]; 3]) + Sync) -> DisplacementField {
    let [nx, ny, _] = grid.size;
    let mut field = DisplacementField::zero(grid.clone());
    let slice = (nx * ny).max(1);
    let [ux, uy, uz] = &mut field.u;
    (ux.par_chunks_mut(slice), uy.par_chunks_mut(slice), uz.par_chunks_mut(slice))
        .into_par_iter()
        .enumerate()
        .for_each(|(z, (ux, uy, uz))| {
            let components = ux.chunks_mut(nx).zip(uy.chunks_mut(nx)).zip(uz.chunks_mut(nx));
            for (y, ((ux, uy), uz)) in components.enumerate() {
                let place = grid.to_physical([0.0, y as f64, z as f64]);
                fill(grid.index(0, y, z), place, [ux, uy, uz]);
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
        field_on(&grid, |p| [0.1 * p[0] - 0.05 * p[1], 0.02 * p[2] + 1.0, -0.03 * p[0]])
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
        assert!(matches!(resample_field(&field, &field.grid.clone()), Cow::Borrowed(same) if *same == field));
    }
}
