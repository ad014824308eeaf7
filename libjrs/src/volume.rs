//! Voxels with a place: scalar volumes, label maps and displacement fields.

use rayon::prelude::*;

use crate::geometry::Grid;

/// One value per voxel of a [`Grid`], x fastest. `T` is `f32` for images (HU), `u8` for labels and masks.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume<T> {
    /// Where the voxels are.
    pub grid: Grid,
    /// `grid.len()` values.
    pub data: Vec<T>,
}

impl<T: Copy> Volume<T> {
    /// A volume of one value.
    pub fn filled(grid: Grid, value: T) -> Self {
        let data = vec![value; grid.len()];
        Self { grid, data }
    }

    /// Wraps existing values.
    ///
    /// # Panics
    /// If `data` does not hold exactly one value per voxel: a bug in the caller, not bad input.
    pub fn new(grid: Grid, data: Vec<T>) -> Self {
        assert_eq!(grid.len(), data.len(), "one value per voxel of {:?}", grid.size);
        Self { grid, data }
    }

    /// The value at voxel `(x, y, z)`.
    #[inline]
    pub fn at(&self, x: usize, y: usize, z: usize) -> T {
        self.data[self.grid.index(x, y, z)]
    }

    /// Applies `f` to every voxel.
    pub fn map<U: Send>(&self, f: impl Fn(T) -> U + Sync) -> Volume<U>
    where
        T: Sync,
    {
        Volume { grid: self.grid.clone(), data: self.data.par_iter().map(|&v| f(v)).collect() }
    }
}

impl Volume<f32> {
    /// The smallest and the largest value.
    pub fn range(&self) -> [f32; 2] {
        let join = |[l, h]: [f32; 2], [m, i]: [f32; 2]| [l.min(m), h.max(i)];
        let none = [f32::INFINITY, f32::NEG_INFINITY];
        let of = |part: &[f32]| part.iter().fold(none, |range, &v| join(range, [v, v]));
        self.data.par_chunks(1 << 16).map(of).reduce(|| none, join)
    }
}

/// Where the first value is that is infinite or not a number. In chunks, which the compiler turns into vectors, unlike
/// an iterator that may stop at any value.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1 << 14;
    let is_bad = |chunk: &[f32]| !chunk.iter().fold(true, |finite, v| finite & v.is_finite());
    let chunk = values.par_chunks(CHUNK).position_first(is_bad)?;
    (chunk * CHUNK..values.len()).find(|&i| !values[i].is_finite())
}

/// A dense displacement field (DVF) on the fixed grid.
///
/// `u(x)` is in **LPS millimetres**, pull-back: the moving image is read at `x + u(x)`. Three separate planes
/// (`u[0]` = x component of every voxel, then y, z), because the network and the kernels want them so.
#[derive(Debug, Clone, PartialEq)]
pub struct DisplacementField {
    /// The fixed grid.
    pub grid: Grid,
    /// Components x, y, z; each with `grid.len()` values, x fastest.
    pub u: [Vec<f32>; 3],
}

impl DisplacementField {
    /// The zero field.
    pub fn zero(grid: Grid) -> Self {
        let n = grid.len();
        Self { grid, u: std::array::from_fn(|_| vec![0.0; n]) }
    }

    /// The displacement of voxel number `i`.
    #[inline]
    pub fn at(&self, i: usize) -> [f32; 3] {
        [self.u[0][i], self.u[1][i], self.u[2][i]]
    }
}
