//! Linear interpolation between the eight voxels around a continuous index.

use crate::geometry::{Affine, Grid, mat_mul, mat_vec};

/// The eight voxels around a continuous index and their weights (which sum to 1).
pub(crate) struct Cell {
    base: usize,
    /// Linear-index step to the upper neighbour along each axis; 0 where there is none.
    step: [usize; 3],
    fraction: [f64; 3],
}

impl Cell {
    /// The cell around `index`, or `None` if it lies more than half a voxel outside (or is not finite).
    #[inline]
    pub fn inside(size: [usize; 3], index: [f64; 3]) -> Option<Self> {
        let is_inside = (0..3).all(|a| index[a] >= -0.5 && index[a] <= size[a] as f64 - 0.5);
        is_inside.then(|| Self::clamped(size, index))
    }

    /// The cell around the nearest point of the grid. A NaN index falls on voxel 0.
    #[inline]
    pub fn clamped(size: [usize; 3], index: [f64; 3]) -> Self {
        let stride = [1, size[0], size[0] * size[1]];
        let mut cell = Cell { base: 0, step: [0; 3], fraction: [0.0; 3] };
        for a in 0..3 {
            let position = index[a].clamp(0.0, (size[a] - 1) as f64);
            // Through i32, which is one instruction; usize is several.
            let lower = position as i32 as usize;
            cell.base += lower * stride[a];
            if lower + 1 < size[a] {
                cell.step[a] = stride[a];
                cell.fraction[a] = position - lower as f64;
            }
        }
        cell
    }

    /// Linear indices of the eight corners; bit `a` of the corner number is the upper side of axis `a`.
    #[inline]
    pub fn corners(&self) -> [usize; 8] {
        let [x, y, z] = self.step;
        let b = self.base;
        [b, b + x, b + y, b + x + y, b + z, b + x + z, b + y + z, b + x + y + z]
    }

    /// Weights in the order of [`Cell::corners`].
    #[inline]
    pub fn weights(&self) -> [f64; 8] {
        let [x, y, z] = self.fraction;
        let (p, q, r) = (1.0 - x, 1.0 - y, 1.0 - z);
        [p * q * r, x * q * r, p * y * r, x * y * r, p * q * z, x * q * z, p * y * z, x * y * z]
    }

    /// The interpolated value of `data`.
    #[inline]
    pub fn interpolate(&self, data: &[f32]) -> f64 {
        let ([x, y, z], [fx, fy, fz]) = (self.step, self.fraction);
        let between = |low: f64, high: f64, fraction: f64| low + fraction * (high - low);
        let edge = |i: usize| between(f64::from(data[i]), f64::from(data[i + x]), fx);
        let face = |i: usize| between(edge(i), edge(i + y), fy);
        between(face(self.base), face(self.base + z), fz)
    }
}

/// Maps a voxel of one grid and its displacement straight to a continuous index of another grid:
/// `index = voxel_part * voxel + u_part * u + constant`.
pub(crate) struct IndexMap {
    voxel_part: [[f64; 3]; 3],
    u_part: [[f64; 3]; 3],
    constant: [f64; 3],
}

impl IndexMap {
    /// `to.to_index(affine(from.to_physical(voxel) + u))`, as one linear map.
    pub fn new(from: &Grid, affine: Option<&Affine>, to: &Grid) -> Self {
        let affine = affine.copied().unwrap_or(Affine::IDENTITY);
        let to_index: [[f64; 3]; 3] =
            std::array::from_fn(|a| std::array::from_fn(|r| to.direction[r][a] / to.spacing[a]));
        let to_physical: [[f64; 3]; 3] =
            std::array::from_fn(|r| std::array::from_fn(|a| from.direction[r][a] * from.spacing[a]));
        let u_part = mat_mul(&to_index, &affine.matrix);
        let start = affine.apply(from.origin);
        let offset = std::array::from_fn(|a| start[a] - to.origin[a]);
        Self { voxel_part: mat_mul(&u_part, &to_physical), u_part, constant: mat_vec(&to_index, offset) }
    }

    /// The row of voxels `(.., y, z)`.
    #[inline]
    pub fn row(&self, y: usize, z: usize) -> IndexRow<'_> {
        let start = mat_vec(&self.voxel_part, [0.0, y as f64, z as f64]);
        IndexRow {
            start: std::array::from_fn(|i| start[i] + self.constant[i]),
            step: std::array::from_fn(|i| self.voxel_part[i][0]),
            u_part: &self.u_part,
        }
    }
}

/// [`IndexMap`] along one row.
pub(crate) struct IndexRow<'a> {
    start: [f64; 3],
    step: [f64; 3],
    u_part: &'a [[f64; 3]; 3],
}

impl IndexRow<'_> {
    /// Without a displacement.
    #[inline]
    pub fn at(&self, x: usize) -> [f64; 3] {
        std::array::from_fn(|i| self.start[i] + x as f64 * self.step[i])
    }

    /// Moved by `u`.
    #[inline]
    pub fn moved(&self, x: usize, u: [f32; 3]) -> [f64; 3] {
        let (at, by) = (self.at(x), mat_vec(self.u_part, u.map(f64::from)));
        std::array::from_fn(|i| at[i] + by[i])
    }
}
