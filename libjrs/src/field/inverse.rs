//! Going back: the fixed point that maps to a given moving point, and how well two fields undo each other.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::warp::{sample, sample_clamped};
use crate::geometry::{Affine, Point, determinant, distance};
use crate::metrics::percentiles;
use crate::volume::{DisplacementField, Volume};
use crate::{Error, Result};

/// The answer for one moving point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct InversePoint {
    /// The fixed point `x` with `T(x)` nearest to the moving point that was found, LPS mm.
    pub point: Point,
    /// `|x + u(x) - y|`, mm, before the affine (if there is one).
    pub residual_mm: f64,
    /// True if the residual came below [`TOLERANCE_MM`].
    pub converged: bool,
    /// True if the field folds at `x` (Jacobian determinant <= 0): the inverse is then not unique.
    pub folded: bool,
    /// True if `x` lies outside the field's grid, where the edge displacement was used.
    pub outside: bool,
}

/// Residual at which a point counts as found, mm.
pub const TOLERANCE_MM: f64 = 1e-3;
const ITERATIONS: usize = 100;

/// Moving points to fixed points: solves `affine(x + u(x)) = y` by the fixed-point iteration
/// `x <- x - t (x + u(x) - y)` (science.md section 6; `t = 1` is the plain `x <- y - u(x)`). Where a step does
/// not lower the residual, `t` is halved.
///
/// # Errors
/// If `affine` has no inverse.
pub fn invert_points(
    field: &DisplacementField,
    affine: Option<&Affine>,
    points: &[Point],
) -> Result<Vec<InversePoint>> {
    let back = match affine {
        None => Affine::IDENTITY,
        Some(affine) => affine.inverse().ok_or_else(|| {
            Error::input(
                format!("the affine {:?} has no inverse", affine.matrix),
                "Give a pre-alignment that does not flatten space",
            )
        })?,
    };
    Ok(points.par_iter().map(|&y| invert(field, back.apply(y))).collect())
}

fn invert(field: &DisplacementField, y: Point) -> InversePoint {
    let error_at = |x: Point| -> [f64; 3] {
        let u = sample_clamped(field, x);
        std::array::from_fn(|a| x[a] + u[a] - y[a])
    };
    let norm = |e: [f64; 3]| distance(e, [0.0; 3]);
    let mut x = y;
    let mut error = error_at(x);
    let mut damping = 1.0;
    for _ in 0..ITERATIONS {
        if norm(error) < 0.01 * TOLERANCE_MM || damping < 1e-3 {
            break;
        }
        let candidate = std::array::from_fn(|a| x[a] - damping * error[a]);
        let candidate_error = error_at(candidate);
        if norm(candidate_error) < norm(error) {
            (x, error) = (candidate, candidate_error);
            damping = f64::min(1.0, 1.5 * damping);
        } else {
            damping *= 0.5;
        }
    }
    let residual_mm = norm(error);
    InversePoint {
        point: x,
        residual_mm,
        converged: residual_mm < TOLERANCE_MM,
        folded: jacobian_at(field, x) <= 0.0,
        outside: sample(field, x).is_none(),
    }
}

/// det(I + du/dx) at any point, by differences over one voxel along the grid's axes.
fn jacobian_at(field: &DisplacementField, x: Point) -> f64 {
    let grid = &field.grid;
    let mut gradient = [[0.0; 3]; 3];
    for a in 0..3 {
        let half = 0.5 * grid.spacing[a];
        let shifted = |sign: f64| {
            sample_clamped(field, std::array::from_fn(|r| x[r] + sign * half * grid.direction[r][a]))
        };
        let (upper, lower) = (shifted(1.0), shifted(-1.0));
        for r in 0..3 {
            for c in 0..3 {
                gradient[r][c] += (upper[r] - lower[r]) / grid.spacing[a] * grid.direction[c][a];
            }
        }
    }
    for a in 0..3 {
        gradient[a][a] += 1.0;
    }
    determinant(&gradient)
}

/// How far a fixed point comes back from where it went, over the fixed grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct InverseConsistency {
    /// Mean of `|T_b(T_f(x)) - x|`, mm.
    pub mean_mm: f64,
    /// 95th percentile, mm.
    pub p95_mm: f64,
    /// Maximum, mm.
    pub max_mm: f64,
    /// Voxels counted.
    pub voxels: usize,
    /// Voxels left out because `T_f(x)` lies outside the backward field.
    pub left_out: usize,
}

/// Inverse-consistency error of two **total** fields (affines composed in, see
/// [`super::compose_with_affine`]): `forward` on the fixed grid, `backward` on the moving grid; over the
/// voxels of `mask` (on the forward grid) that are not 0. `None` if no voxel can be compared.
///
/// # Errors
/// If the mask is not on the forward field's grid.
pub fn inverse_consistency(
    forward: &DisplacementField,
    backward: &DisplacementField,
    mask: Option<&Volume<u8>>,
) -> Result<Option<InverseConsistency>> {
    let grid = &forward.grid;
    if let Some(mask) = mask.filter(|m| m.grid.size != grid.size) {
        return Err(Error::input(
            format!("the mask has {:?} voxels and the field {:?}", mask.grid.size, grid.size),
            "Give a mask on the fixed grid",
        ));
    }
    let [nx, ny, nz] = grid.size;
    let per_slice: Vec<(Vec<f32>, usize)> = (0..nz)
        .into_par_iter()
        .map(|z| {
            let (mut errors, mut left_out) = (Vec::new(), 0);
            for y in 0..ny {
                for x in 0..nx {
                    let i = grid.index(x, y, z);
                    if mask.is_some_and(|m| m.data[i] == 0) {
                        continue;
                    }
                    let start = grid.to_physical([x as f64, y as f64, z as f64]);
                    let u = forward.at(i);
                    let there: Point = std::array::from_fn(|a| start[a] + f64::from(u[a]));
                    match sample(backward, there) {
                        Some(v) => {
                            errors.push(distance(std::array::from_fn(|a| there[a] + v[a]), start) as f32)
                        }
                        None => left_out += 1,
                    }
                }
            }
            (errors, left_out)
        })
        .collect();
    let left_out = per_slice.iter().map(|s| s.1).sum();
    let errors: Vec<Vec<f32>> = per_slice.into_iter().map(|s| s.0).collect();
    let Some([p95_mm, max_mm]) = percentiles(&errors, [95.0, 100.0]) else { return Ok(None) };
    let voxels: usize = errors.iter().map(Vec::len).sum();
    let sum: f64 = errors.iter().map(|slice| slice.iter().map(|&e| f64::from(e)).sum::<f64>()).sum();
    Ok(Some(InverseConsistency { mean_mm: sum / voxels as f64, p95_mm, max_mm, voxels, left_out }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::map_point;
    use crate::geometry::Grid;

    /// A smooth field with a steepest slope of `0.35 * amplitude` per mm along x.
    fn wave(amplitude: f32) -> DisplacementField {
        let grid = Grid::axis_aligned([30, 30, 30], [1.0, 1.5, 2.0], [-5.0, 2.0, 100.0]);
        let mut field = DisplacementField::zero(grid.clone());
        for i in 0..grid.len() {
            let (x, z) = ((i % 30) as f32, (i / 900) as f32);
            field.u[0][i] = amplitude * (0.35 * x).sin();
            field.u[1][i] = 0.5 * amplitude * (0.2 * z).cos();
            field.u[2][i] = 0.3 * amplitude * (0.3 * x).sin();
        }
        field
    }

    #[test]
    fn points_come_back() {
        let field = wave(2.0);
        let affine = Affine {
            matrix: [[1.0, 0.1, 0.0], [-0.1, 1.0, 0.0], [0.0, 0.0, 1.05]],
            translation: [9.0, -4.0, 2.0],
        };
        let fixed = [[3.0, 20.0, 130.0], [12.5, 30.25, 140.0], [-1.0, 8.0, 150.0]];
        let moving = fixed.map(|p| map_point(&field, Some(&affine), p).unwrap());
        for (x, found) in fixed.iter().zip(invert_points(&field, Some(&affine), &moving).unwrap()) {
            assert!(found.converged && !found.folded && !found.outside, "{found:?}");
            assert!(distance(*x, found.point) < 0.01, "{x:?} {found:?}");
        }
    }

    #[test]
    fn folding_and_leaving_the_grid_are_flagged() {
        // Steepest slope 0.35 * 6 = 2.1 > 1: det <= 0 around the zero crossings of descending sign.
        let field = wave(6.0);
        let points: Vec<Point> = (0..60).map(|i| [-5.0 + 0.5 * i as f64, 20.0, 130.0]).collect();
        let found = invert_points(&field, None, &points).unwrap();
        assert!(found.iter().all(|f| f.residual_mm.is_finite()));
        assert!(found.iter().any(|f| f.folded || !f.converged));
        assert!(invert_points(&field, None, &[[900.0, 0.0, 0.0]]).unwrap()[0].outside);
        let flat = Affine { matrix: [[1., 0., 0.], [0., 1., 0.], [0., 0., 0.]], translation: [0.0; 3] };
        assert!(invert_points(&field, Some(&flat), &points).is_err());
    }

    #[test]
    fn opposite_shifts_are_consistent() {
        let grid = Grid::axis_aligned([10, 10, 10], [1.0; 3], [0.0; 3]);
        let mut forward = DisplacementField::zero(grid);
        let mut backward = forward.clone();
        forward.u[0].fill(2.0);
        backward.u[0].fill(-2.0);
        let good = inverse_consistency(&forward, &backward, None).unwrap().unwrap();
        assert!(good.max_mm < 1e-6);
        // x = 8 and 9 land on 10 and 11, beyond 9.5.
        assert_eq!((good.voxels, good.left_out), (800, 200));
        let bad = inverse_consistency(&forward, &forward, None).unwrap().unwrap();
        assert!((bad.mean_mm - 4.0).abs() < 1e-6 && (bad.p95_mm - 4.0).abs() < 1e-6);
        let nothing = Volume::filled(forward.grid.clone(), 0);
        assert_eq!(inverse_consistency(&forward, &backward, Some(&nothing)).unwrap(), None);
    }
}
