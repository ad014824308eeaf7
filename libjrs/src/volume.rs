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
        range(&self.data)
    }
}

/// The smallest and the largest of all values that are numbers; infinities the wrong way round if there are none.
pub(crate) fn range(values: &[f32]) -> [f32; 2] {
    /// Running extremes, so many that the compiler uses vectors.
    const LANES: usize = 16;
    let none = [f32::INFINITY, f32::NEG_INFINITY];
    let join = |[l, h]: [f32; 2], [m, i]: [f32; 2]| [l.min(m), h.max(i)];
    let of = |part: &[f32]| {
        let [mut low, mut high] = none.map(|v| [v; LANES]);
        let (whole, rest) = part.as_chunks::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                let v = values[lane];
                low[lane] = if v < low[lane] { v } else { low[lane] };
                high[lane] = if v > high[lane] { v } else { high[lane] };
            }
        }
        let lanes = low.into_iter().zip(high).map(|(l, h)| [l, h]);
        lanes.chain(rest.iter().map(|&v| [v, v])).fold(none, join)
    };
    values.par_chunks(1 << 16).map(of).reduce(|| none, join)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_are_those_of_all_values_that_are_numbers() {
        for len in [0, 1, 15, 16, 37, 70_001] {
            let mut values: Vec<f32> = (0..len).map(|i| ((i * 7919) % 10_007) as f32 - 5000.0).collect();
            let low = values.iter().copied().fold(f32::INFINITY, f32::min);
            let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            values.push(f32::NAN);
            assert_eq!(range(&values), [low, high], "{len} values");
        }
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found_wherever_it_is() {
        let mut values = vec![1.0; 50_000];
        assert_eq!(first_not_finite(&values), None);
        for (at, bad) in
            [(49_999, f32::NAN), (16_384, f32::INFINITY), (16_383, f32::NAN), (0, f32::NEG_INFINITY)]
        {
            values[at] = bad;
            assert_eq!(first_not_finite(&values), Some(at));
        }
    }
}
