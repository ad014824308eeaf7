//! Exact Euclidean distance transform on an anisotropic grid.
//!
//! Separable squared distances by lower envelopes of parabolas (Felzenszwalb and Huttenlocher, "Distance
//! transforms of sampled functions", Theory of Computing 8, 2012), one pass per axis, in f64: exact up to
//! rounding, linear in the number of voxels.

use rayon::prelude::*;

use crate::geometry::Grid;
use crate::volume::Volume;

/// Distance in mm from every voxel centre to the nearest voxel centre that is not 0 in `sites`; infinity
/// everywhere if there is none.
pub fn distance_transform(sites: &Volume<u8>) -> Volume<f64> {
    let Grid { size, spacing, .. } = sites.grid;
    let mut data = squared_distances(&sites.data, size, spacing);
    data.par_iter_mut().for_each(|d| *d = d.sqrt());
    Volume { grid: sites.grid.clone(), data }
}

/// Squared distances in mm² to the nearest non-zero voxel of a box of `size` voxels, x fastest.
pub(super) fn squared_distances(sites: &[u8], size: [usize; 3], spacing: [f64; 3]) -> Vec<f64> {
    let [nx, ny, nz] = size;
    if sites.is_empty() {
        return Vec::new();
    }
    // x and y stay within a slice.
    let mut in_slices = vec![0.0; sites.len()];
    in_slices.par_chunks_mut(nx * ny).zip(sites.par_chunks(nx * ny)).for_each(|(slice, sites)| {
        for (row, sites) in slice.chunks_mut(nx).zip(sites.chunks(nx)) {
            distances_in_row(row, sites, spacing[0]);
        }
        let mut envelope = Envelope::new(ny, spacing[1]);
        for x in 0..nx {
            envelope.transform(|y| slice[x + nx * y]);
            for y in 0..ny {
                slice[x + nx * y] = envelope.values[y];
            }
        }
    });
    // z crosses slices: each thread makes whole [z][x] sheets, which are then put back slice by slice.
    let mut sheets = vec![0.0; sites.len()];
    sheets.par_chunks_mut(nz * nx).enumerate().for_each(|(y, sheet)| {
        let mut envelope = Envelope::new(nz, spacing[2]);
        for x in 0..nx {
            envelope.transform(|z| in_slices[x + nx * (y + ny * z)]);
            for z in 0..nz {
                sheet[x + nx * z] = envelope.values[z];
            }
        }
    });
    in_slices.par_chunks_mut(nx * ny).enumerate().for_each(|(z, slice)| {
        for (y, row) in slice.chunks_mut(nx).enumerate() {
            row.copy_from_slice(&sheets[nx * (z + nz * y)..][..nx]);
        }
    });
    in_slices
}

/// Squared distances along one row, by a sweep from either end.
fn distances_in_row(row: &mut [f64], sites: &[u8], spacing: f64) {
    let mut last = None;
    for x in 0..row.len() {
        last = if sites[x] != 0 { Some(x) } else { last };
        row[x] = last.map_or(f64::INFINITY, |l| (x - l) as f64);
    }
    let mut next = None;
    for x in (0..row.len()).rev() {
        next = if sites[x] != 0 { Some(x) } else { next };
        let steps = next.map_or(row[x], |n| row[x].min((n - x) as f64));
        row[x] = (steps * spacing).powi(2);
    }
}

/// min over q of `(s (p - q))² + f(q)` for every p of one line, with its buffers.
struct Envelope {
    spacing: f64,
    /// Result of the last [`Envelope::transform`].
    values: Vec<f64>,
    /// Parabolas of the lower envelope, left to right: place q and height f(q).
    parabolas: Vec<(usize, f64)>,
    /// Where (in voxels) each parabola takes over from the one before.
    starts: Vec<f64>,
}

impl Envelope {
    fn new(length: usize, spacing: f64) -> Self {
        let (parabolas, starts) = (Vec::with_capacity(length), Vec::with_capacity(length));
        Self { spacing, values: vec![0.0; length], parabolas, starts }
    }

    fn transform(&mut self, f: impl Fn(usize) -> f64) {
        self.parabolas.clear();
        self.starts.clear();
        let squared = self.spacing * self.spacing;
        for q in 0..self.values.len() {
            let height = f(q);
            if height == f64::INFINITY {
                continue;
            }
            let mut start = f64::NEG_INFINITY;
            while let Some(&(p, other)) = self.parabolas.last() {
                // Where the parabolas at p and q cross.
                start = ((height - other) / squared / (q - p) as f64 + (q + p) as f64) / 2.0;
                if start > self.starts[self.starts.len() - 1] {
                    break;
                }
                self.parabolas.pop();
                self.starts.pop();
                start = f64::NEG_INFINITY;
            }
            self.parabolas.push((q, height));
            self.starts.push(start);
        }
        if self.parabolas.is_empty() {
            self.values.fill(f64::INFINITY);
            return;
        }
        let mut k = 0;
        for p in 0..self.values.len() {
            while k + 1 < self.starts.len() && self.starts[k + 1] < p as f64 {
                k += 1;
            }
            let (q, height) = self.parabolas[k];
            self.values[p] = (p.abs_diff(q) as f64 * self.spacing).powi(2) + height;
        }
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

    #[test]
    fn without_sites_everything_is_infinitely_far() {
        let sites = Volume::filled(Grid::axis_aligned([3, 2, 4], [1.0; 3], [0.0; 3]), 0);
        assert!(distance_transform(&sites).data.iter().all(|d| *d == f64::INFINITY));
    }
}
