//! Where the backward direction is asked for. It only judges the forward one, and only inside the patient: around many patients
//! there is as much air again.

use std::ops::Range;

use rayon::prelude::*;

use crate::network::INPUT_MULTIPLE;
use crate::preprocess::patient_box;
use crate::{Affine, DisplacementField, Grid, Volume};

/// The voxels of the moving scan that the patient of the fixed scan reaches with the total `field` T(x) - x, as one box.
pub(crate) fn reached(fixed: &Volume<f32>, field: &DisplacementField, moving: &Grid) -> [Range<usize>; 3] {
    let [xs, ys, zs] = patient_box(fixed);
    let grid = &field.grid;
    let of_slice = |z: usize| {
        let voxels = ys.clone().flat_map(|y| xs.clone().map(move |x| [x, y, z]));
        voxels.fold(Bounds::NOTHING, |bounds, [x, y, z]| {
            let place = grid.to_physical([x, y, z].map(|n| n as f64));
            let u = field.at(grid.index(x, y, z));
            bounds.with(moving.to_index(std::array::from_fn(|a| place[a] + f64::from(u[a]))))
        })
    };
    zs.into_par_iter().map(of_slice).reduce(|| Bounds::NOTHING, Bounds::join).voxels(moving.size)
}

/// The voxels of the working grid between which `affine` brings the places of `grid`, from multiples of [`INPUT_MULTIPLE`] on.
pub(crate) fn needed(grid: &Grid, affine: &Affine, working: &Grid) -> [Range<usize>; 3] {
    let places = grid.corners().map(|corner| working.to_index(affine.apply(corner)));
    let bounds = places.into_iter().fold(Bounds::NOTHING, Bounds::with);
    bounds.voxels(working.size).map(|range| range.start / INPUT_MULTIPLE * INPUT_MULTIPLE..range.end)
}

/// A box of index coordinates.
#[derive(Clone, Copy)]
struct Bounds {
    low: [f64; 3],
    high: [f64; 3],
}

impl Bounds {
    const NOTHING: Self = Self { low: [f64::INFINITY; 3], high: [f64::NEG_INFINITY; 3] };

    fn with(self, at: [f64; 3]) -> Self {
        self.join(Self { low: at, high: at })
    }

    fn join(self, other: Self) -> Self {
        Self {
            low: std::array::from_fn(|a| self.low[a].min(other.low[a])),
            high: std::array::from_fn(|a| self.high[a].max(other.high[a])),
        }
    }

    /// The voxels between which the box lies, as far as there are any; all if the box is empty.
    fn voxels(self, size: [usize; 3]) -> [Range<usize>; 3] {
        std::array::from_fn(|a| {
            if self.low[a] > self.high[a] {
                return 0..size[a];
            }
            let inside = |at: f64| at.clamp(0.0, size[a] as f64 - 1.0) as usize;
            inside(self.low[a].floor())..inside(self.high[a].ceil()) + 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A box of soft tissue in air.
    fn scan(size: [usize; 3], tissue: &[Range<usize>; 3]) -> Volume<f32> {
        let grid = Grid::axis_aligned(size, [2.0; 3], [-10.0, 5.0, 0.0]);
        let at = |i: usize| [i % size[0], i / size[0] % size[1], i / size[0] / size[1]];
        let inside = |i: usize| (0..3).all(|a| tissue[a].contains(&at(i)[a]));
        let data = (0..grid.len()).map(|i| if inside(i) { 40.0 } else { -1000.0 }).collect();
        Volume::new(grid, data)
    }

    #[test]
    fn a_box_follows_the_patient() {
        let fixed = scan([20, 16, 12], &[5..9, 3..8, 2..10]);
        let mut field = DisplacementField::zero(fixed.grid.clone());
        assert_eq!(reached(&fixed, &field, &fixed.grid), [5..9, 3..8, 2..10]);
        // Three millimetres are a voxel and a half; beyond the scan there is nothing.
        field.u[0].fill(3.0);
        field.u[2].fill(100.0);
        assert_eq!(reached(&fixed, &field, &fixed.grid), [6..11, 3..8, 11..12]);
    }

    #[test]
    fn without_a_patient_it_is_everything() {
        let air = scan([20, 16, 12], &[0..0, 0..0, 0..0]);
        let field = DisplacementField::zero(air.grid.clone());
        assert_eq!(reached(&air, &field, &air.grid), [0..20, 0..16, 0..12]);
    }

    #[test]
    fn the_working_grid_gets_whole_multiples_around_what_is_needed() {
        let working = Grid::axis_aligned([40, 40, 40], [1.0; 3], [0.0; 3]);
        let part = Grid::axis_aligned([3, 4, 5], [2.0; 3], [10.0, 17.0, -4.0]);
        let affine = Affine { translation: [0.5, 0.0, 0.0], ..Affine::IDENTITY };
        // Corners at 10.5 and 14.5, 17 and 23, -4 and 4.
        assert_eq!(needed(&part, &affine, &working), [8..16, 16..24, 0..5]);
    }
}
