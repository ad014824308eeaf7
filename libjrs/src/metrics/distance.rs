//! Exact Euclidean distance transform on an anisotropic grid.
//!
//! Separable squared distances by lower envelopes of parabolas (Felzenszwalb and Huttenlocher, "Distance
//! transforms of sampled functions", Theory of Computing 8, 2012), one pass per axis, in f64: exact up to
//! rounding, linear in the number of voxels. Of the parabolas `(h - h_q)² + f_q` those on the lower envelope are
//! the corners of the lower convex hull of the points `(h_q, f_q + h_q²)`, which is found without a division.
//!
//! ```text
//! sites [z][y][x] --- x and z, one sheet per y ---> [y][z][x] --- y, one slice per z ---> [z][y][x]
//! ```
//!
//! Each task writes memory of its own in one piece, and takes eight neighbouring columns (a cache line) at a time.

use rayon::prelude::*;

use crate::geometry::Grid;
use crate::volume::Volume;

/// Columns that are read and written together.
const COLUMNS: usize = 8;

/// Distance in mm from every voxel centre to the nearest voxel centre that is not 0 in `sites`; infinity
/// everywhere if there is none.
pub fn distance_transform(sites: &Volume<u8>) -> Volume<f64> {
    let Grid { size, spacing, .. } = sites.grid;
    Volume { grid: sites.grid.clone(), data: transform(&sites.data, size, spacing, f64::sqrt) }
}

/// Squared distances in mm² to the nearest non-zero voxel of a box of `size` voxels, x fastest.
pub(super) fn squared_distances(sites: &[u8], size: [usize; 3], spacing: [f64; 3]) -> Vec<f64> {
    transform(sites, size, spacing, |squared| squared)
}

/// `finish` of every squared distance.
fn transform(
    sites: &[u8],
    size: [usize; 3],
    spacing: [f64; 3],
    finish: impl Fn(f64) -> f64 + Sync,
) -> Vec<f64> {
    let [nx, ny, nz] = size;
    if sites.is_empty() {
        return Vec::new();
    }
    let mut sheets = vec![0.0; sites.len()];
    sheets.par_chunks_mut(nx * nz).enumerate().for_each_init(
        || Columns::new(nz, spacing[2]),
        |columns, (y, sheet)| {
            for (z, row) in sheet.chunks_mut(nx).enumerate() {
                distances_in_row(row, &sites[nx * (y + ny * z)..][..nx], spacing[0]);
            }
            for x in (0..nx).step_by(COLUMNS) {
                let width = COLUMNS.min(nx - x);
                columns.transform(width, |z| &sheet[x + nx * z..][..width]);
                columns.put(width, |z, column, squared| sheet[x + nx * z + column] = squared);
            }
        },
    );
    let mut distances = vec![0.0; sites.len()];
    distances.par_chunks_mut(nx * ny).enumerate().for_each_init(
        || Columns::new(ny, spacing[1]),
        |columns, (z, slice)| {
            for x in (0..nx).step_by(COLUMNS) {
                let width = COLUMNS.min(nx - x);
                columns.transform(width, |y| &sheets[x + nx * (z + nz * y)..][..width]);
                columns.put(width, |y, column, squared| slice[x + nx * y + column] = finish(squared));
            }
        },
    );
    distances
}

/// Squared distances along one row, by a sweep from either end.
fn distances_in_row(row: &mut [f64], sites: &[u8], spacing: f64) {
    let steps_on = |steps: f64, site: u8| if site != 0 { 0.0 } else { steps + 1.0 };
    let mut steps = f64::INFINITY;
    for (value, &site) in row.iter_mut().zip(sites) {
        steps = steps_on(steps, site);
        *value = steps;
    }
    steps = f64::INFINITY;
    for (value, &site) in row.iter_mut().zip(sites).rev() {
        steps = steps_on(steps, site);
        *value = (value.min(steps) * spacing).powi(2);
    }
}

/// A few columns of voxels, copied out of a sheet, and what their envelopes need.
struct Columns {
    length: usize,
    spacing: f64,
    /// One column after the other.
    values: Vec<f64>,
    hull: Vec<Corner>,
}

/// A parabola `(h - place)² + height` of the lower envelope.
#[derive(Clone, Copy, Default)]
struct Corner {
    place: f64,
    height: f64,
    /// `height + place²`.
    lifted: f64,
    /// From the corner before: in `place` and in `lifted`.
    step: [f64; 2],
}

impl Columns {
    fn new(length: usize, spacing: f64) -> Self {
        let (values, hull) = (vec![0.0; length * COLUMNS], vec![Corner::default(); length]);
        Self { length, spacing, values, hull }
    }

    /// Replaces f in each of the `width` columns by the minimum over q of `(s (p - q))² + f(q)`; `row(i)` has f of all
    /// columns at place i.
    #[inline(always)]
    fn transform<'a>(&mut self, width: usize, row: impl Fn(usize) -> &'a [f64]) {
        for i in 0..self.length {
            for (column, &value) in row(i).iter().enumerate() {
                self.values[column * self.length + i] = value;
            }
        }
        for column in self.values.chunks_mut(self.length).take(width) {
            lower_envelope(column, &mut self.hull, self.spacing);
        }
    }

    /// Hands out the result: place, column, value.
    #[inline(always)]
    fn put(&self, width: usize, mut value: impl FnMut(usize, usize, f64)) {
        for i in 0..self.length {
            for column in 0..width {
                value(i, column, self.values[column * self.length + i]);
            }
        }
    }
}

fn lower_envelope(line: &mut [f64], hull: &mut [Corner], spacing: f64) {
    let mut corners = 0;
    let mut last = Corner::default();
    for (q, &height) in line.iter().enumerate() {
        if height == f64::INFINITY {
            continue;
        }
        let place = q as f64 * spacing;
        let lifted = height + place * place;
        let mut step = [place - last.place, lifted - last.lifted];
        // A corner that the line from the one before it to the new one passes below is none.
        while corners >= 2 && last.step[1] * step[0] >= step[1] * last.step[0] {
            corners -= 1;
            last = hull[corners - 1];
            step = [place - last.place, lifted - last.lifted];
        }
        last = Corner { place, height, lifted, step };
        hull[corners] = last;
        corners += 1;
    }
    let Some((first, mut rest)) = hull[..corners].split_first() else { return };
    let value = |corner: &Corner, h: f64| (h - corner.place).powi(2) + corner.height;
    let mut corner = first;
    for (p, result) in line.iter_mut().enumerate() {
        let h = p as f64 * spacing;
        let mut best = value(corner, h);
        while let Some((next, after)) = rest.split_first() {
            let other = value(next, h);
            if other > best {
                break;
            }
            (best, corner, rest) = (other, next, after);
        }
        *result = best;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn brute_force(sites: &Volume<u8>) -> Vec<f64> {
        let [nx, ny, nz] = sites.grid.size;
        let place = |i: usize| [i % nx, i / nx % ny, i / (nx * ny)];
        let all: Vec<[usize; 3]> = (0..nx * ny * nz).filter(|&i| sites.data[i] != 0).map(place).collect();
        let squared = |p: [usize; 3], q: [usize; 3]| -> f64 {
            (0..3).map(|a| (p[a].abs_diff(q[a]) as f64 * sites.grid.spacing[a]).powi(2)).sum()
        };
        (0..nx * ny * nz)
            .map(|i| all.iter().map(|&q| squared(place(i), q)).fold(f64::INFINITY, f64::min).sqrt())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn equals_brute_force(
            size in proptest::array::uniform3(1usize..=12),
            spacing in proptest::array::uniform3(0.2f64..5.0),
            density in 0u32..=100,
            seed in any::<u64>(),
        ) {
            let grid = Grid::axis_aligned(size, spacing, [0.0; 3]);
            let mut state = seed;
            let sites: Vec<u8> = (0..grid.len())
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    u8::from((state >> 33) % 1000 < u64::from(density * density / 10))
                })
                .collect();
            let sites = Volume::new(grid, sites);
            let fast = distance_transform(&sites);
            for (a, b) in fast.data.iter().zip(brute_force(&sites)) {
                prop_assert!(*a == b || (a - b).abs() < 1e-9, "{a} {b}");
            }
        }
    }

    /// Longer than a block of columns on every axis, with far more room than sites: the hull loses corners often.
    #[test]
    fn few_sites_in_much_room() {
        let grid = Grid::axis_aligned([37, 29, 41], [0.9, 1.3, 2.5], [0.0; 3]);
        for sites in [&[40_000usize][..], &[0, 36, 1072, 43_992], &[5, 9000, 9001, 20_111, 33_333, 43_990]] {
            let mut volume = Volume::filled(grid.clone(), 0u8);
            sites.iter().for_each(|&i| volume.data[i] = 1);
            let expected = brute_force(&volume);
            let found = distance_transform(&volume);
            assert!(found.data.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9));
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let grid = Grid::axis_aligned([20, 33, 18], [0.7, 1.1, 3.0], [0.0; 3]);
        let data = (0..grid.len()).map(|i| u8::from(i * 7919 % 1013 == 0)).collect();
        let sites = Volume::new(grid, data);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| distance_transform(&sites))
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn without_sites_everything_is_infinitely_far() {
        let sites = Volume::filled(Grid::axis_aligned([3, 2, 4], [1.0; 3], [0.0; 3]), 0);
        assert!(distance_transform(&sites).data.iter().all(|d| *d == f64::INFINITY));
    }
}
