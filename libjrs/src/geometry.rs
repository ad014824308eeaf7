//! Where voxels are: grids in LPS millimetres and affine maps between physical points.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A point or a vector in LPS millimetres (x towards the patient's left, y posterior, z superior).
pub type Point = [f64; 3];

/// A regular voxel grid in physical space.
///
/// Voxel `(i, j, k)` has its centre at `origin + direction * (spacing ∘ (i, j, k))`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// Number of voxels along x (fastest), y, z.
    pub size: [usize; 3],
    /// Millimetres between voxel centres along each index axis.
    pub spacing: [f64; 3],
    /// Centre of voxel (0, 0, 0), LPS millimetres.
    pub origin: Point,
    /// Row-major rotation matrix; **column** `a` is the unit vector of index axis `a` in LPS.
    pub direction: [[f64; 3]; 3],
}

/// The 3x3 identity.
pub const IDENTITY: [[f64; 3]; 3] = [[1., 0., 0.], [0., 1., 0.], [0., 0., 1.]];

impl Grid {
    /// An axis-aligned grid (identity direction).
    pub fn axis_aligned(size: [usize; 3], spacing: [f64; 3], origin: Point) -> Self {
        Self { size, spacing, origin, direction: IDENTITY }
    }

    /// Number of voxels.
    pub fn len(&self) -> usize {
        self.size.iter().product()
    }

    /// True if some axis has no voxel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Linear index of voxel `(x, y, z)`.
    #[inline]
    pub fn index(&self, x: usize, y: usize, z: usize) -> usize {
        x + self.size[0] * (y + self.size[1] * z)
    }

    /// Physical position of a continuous voxel index.
    #[inline]
    pub fn to_physical(&self, index: [f64; 3]) -> Point {
        let scaled = [index[0] * self.spacing[0], index[1] * self.spacing[1], index[2] * self.spacing[2]];
        let rotated = mat_vec(&self.direction, scaled);
        [rotated[0] + self.origin[0], rotated[1] + self.origin[1], rotated[2] + self.origin[2]]
    }

    /// Continuous voxel index of a physical position (directions are orthonormal, so the inverse is the transpose).
    #[inline]
    pub fn to_index(&self, point: Point) -> [f64; 3] {
        let d = [point[0] - self.origin[0], point[1] - self.origin[1], point[2] - self.origin[2]];
        let r = &self.direction;
        std::array::from_fn(|a| (r[0][a] * d[0] + r[1][a] * d[1] + r[2][a] * d[2]) / self.spacing[a])
    }

    /// The grid of some of the voxels: per axis those in a range.
    pub fn part(&self, voxels: &[std::ops::Range<usize>; 3]) -> Self {
        let origin = self.to_physical(std::array::from_fn(|a| voxels[a].start as f64));
        Self { size: voxels.clone().map(|range| range.len()), origin, ..self.clone() }
    }

    /// True if both grids have the same size and every corner within `tolerance_mm`.
    pub fn same_space(&self, other: &Grid, tolerance_mm: f64) -> bool {
        self.size == other.size
            && self.corners().iter().zip(other.corners()).all(|(a, b)| distance(*a, b) <= tolerance_mm)
    }

    /// Physical centres of the eight corner voxels.
    pub fn corners(&self) -> [Point; 8] {
        std::array::from_fn(|c| {
            let end = |a: usize| if c >> a & 1 == 1 { self.size[a].saturating_sub(1) as f64 } else { 0.0 };
            self.to_physical([end(0), end(1), end(2)])
        })
    }

    /// Volume of one voxel, mm³.
    pub fn voxel_volume(&self) -> f64 {
        self.spacing.iter().product()
    }
}

/// Euclidean distance, mm.
pub fn distance(a: Point, b: Point) -> f64 {
    ((a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2) + (a[2] - b[2]).powi(2)).sqrt()
}

/// Matrix times vector.
#[inline]
pub fn mat_vec(m: &[[f64; 3]; 3], v: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|r| m[r][0] * v[0] + m[r][1] * v[1] + m[r][2] * v[2])
}

/// Matrix product `a b`.
pub fn mat_mul(a: &[[f64; 3]; 3], b: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    std::array::from_fn(|r| std::array::from_fn(|c| (0..3).map(|k| a[r][k] * b[k][c]).sum()))
}

/// Determinant.
pub fn determinant(m: &[[f64; 3]; 3]) -> f64 {
    m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
}

/// Inverse, or `None` if the matrix is (nearly) singular.
pub fn invert(m: &[[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    let det = determinant(m);
    if !det.is_finite() || det.abs() < 1e-12 {
        return None;
    }
    // Adjugate over determinant; cyclic indices give the cofactor signs.
    Some(std::array::from_fn(|r| {
        std::array::from_fn(|c| {
            let (a, b) = ((c + 1) % 3, (c + 2) % 3);
            let (d, e) = ((r + 1) % 3, (r + 2) % 3);
            (m[a][d] * m[b][e] - m[a][e] * m[b][d]) / det
        })
    }))
}

/// An affine map of physical points: `y = matrix x + translation`, LPS millimetres.
///
/// Where it relates two scans it always maps **fixed points to moving points** (as in ITK and elastix).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Affine {
    /// Linear part, row-major.
    pub matrix: [[f64; 3]; 3],
    /// Translation, mm.
    pub translation: [f64; 3],
}

impl Affine {
    /// The identity map.
    pub const IDENTITY: Affine = Affine { matrix: IDENTITY, translation: [0.0; 3] };

    /// Maps a point.
    #[inline]
    pub fn apply(&self, p: Point) -> Point {
        let q = mat_vec(&self.matrix, p);
        [q[0] + self.translation[0], q[1] + self.translation[1], q[2] + self.translation[2]]
    }

    /// `self ∘ first`: applies `first`, then `self`.
    pub fn after(&self, first: &Affine) -> Affine {
        Affine { matrix: mat_mul(&self.matrix, &first.matrix), translation: self.apply(first.translation) }
    }

    /// The inverse map, or `None` if singular.
    pub fn inverse(&self) -> Option<Affine> {
        let matrix = invert(&self.matrix)?;
        let t = mat_vec(&matrix, self.translation);
        Some(Affine { matrix, translation: [-t[0], -t[1], -t[2]] })
    }
}

/// Why a geometry cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// What is wrong, with the value.
    pub problem: String,
    /// What can be done.
    pub fix: &'static str,
}

impl Grid {
    /// A grid from geometry that somebody else wrote, refused unless there are voxels, spacing is positive and the axes
    /// are orthonormal within 1e-3.
    ///
    /// Single-precision files carry directions with errors near 1e-7, so the axes are made orthonormal again
    /// (Gram-Schmidt): [`Grid::to_index`] relies on it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn checked(
        size: [usize; 3],
        spacing: [f64; 3],
        origin: Point,
        direction: [[f64; 3]; 3],
    ) -> Result<Self, Unusable> {
        const FIX: &str = "Write the file again with a rigid, finite image geometry";
        let finite = origin.iter().chain(direction.as_flattened()).all(|v| v.is_finite());
        if !finite || spacing.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
            let problem = format!(
                "the geometry is unusable: spacing {spacing:?}, origin {origin:?}, direction {direction:?}"
            );
            return Err(Unusable { problem, fix: FIX });
        }
        if size.contains(&0) {
            let problem = format!("the size {size:?} has an axis without voxels");
            return Err(Unusable { problem, fix: FIX });
        }
        let column = |a: usize| [direction[0][a], direction[1][a], direction[2][a]];
        let dot = |a: [f64; 3], b: [f64; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
        let mut axes: [[f64; 3]; 3] = [[0.0; 3]; 3];
        for a in 0..3 {
            let mut v = column(a);
            let mut skew: f64 = (dot(v, v) - 1.0).abs();
            for axis in axes.iter().take(a) {
                let along = dot(v, *axis);
                skew = skew.max(along.abs());
                v = std::array::from_fn(|i| v[i] - along * axis[i]);
            }
            if skew > 1e-3 {
                let problem =
                    format!("the axes {direction:?} are not orthonormal: axis {a} is off by {skew:.2e}");
                return Err(Unusable { problem, fix: "Resample it to a grid without shear" });
            }
            let norm = dot(v, v).sqrt();
            axes[a] = v.map(|c| c / norm);
        }
        let direction: [[f64; 3]; 3] = std::array::from_fn(|r| std::array::from_fn(|c| axes[c][r]));
        debug_assert!((determinant(&direction).abs() - 1.0).abs() < 1e-6);
        Ok(Grid { size, spacing, origin, direction })
    }
}

/// [`Grid::checked`] for a file.
pub(crate) fn checked_grid(
    path: &Path,
    size: [usize; 3],
    spacing: [f64; 3],
    origin: Point,
    direction: [[f64; 3]; 3],
) -> Result<Grid> {
    Grid::checked(size, spacing, origin, direction).map_err(|e| Error::file(path, e.problem, e.fix))
}

/// Bytes of one component, or an error for sizes that cannot be held.
pub(crate) fn voxel_count(path: &Path, size: [usize; 3]) -> Result<usize> {
    size.iter()
        .try_fold(1usize, |n, &s| n.checked_mul(s))
        .filter(|n| n.checked_mul(3 * 8).is_some())
        .ok_or_else(|| {
            Error::file(path, format!("the size {size:?} overflows"), "Check that the file is whole")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oblique() -> Grid {
        let (s, c) = 0.3f64.sin_cos();
        Grid {
            size: [7, 5, 4],
            spacing: [0.9, 1.1, 2.5],
            origin: [-10.0, 4.0, 30.0],
            direction: [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]],
        }
    }

    #[test]
    fn index_and_physical_are_inverse() {
        let grid = oblique();
        let index = [2.25, 3.5, 1.75];
        let back = grid.to_index(grid.to_physical(index));
        assert!((0..3).all(|a| (back[a] - index[a]).abs() < 1e-12));
    }

    #[test]
    fn affine_inverse_undoes() {
        let a = Affine {
            matrix: [[1.1, 0.2, 0.0], [-0.1, 0.9, 0.05], [0.0, 0.1, 1.0]],
            translation: [3., -2., 5.],
        };
        let p = [12.0, -7.0, 3.0];
        assert!(distance(a.inverse().unwrap().apply(a.apply(p)), p) < 1e-9);
        assert!(distance(a.inverse().unwrap().after(&a).apply(p), p) < 1e-9);
    }

    #[test]
    fn same_space_is_about_corners() {
        let grid = oblique();
        let mut moved = grid.clone();
        moved.origin[0] += 0.5;
        assert!(grid.same_space(&grid, 1e-6));
        assert!(!grid.same_space(&moved, 1e-3));
    }
}
