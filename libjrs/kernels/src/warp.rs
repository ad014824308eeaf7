//! Trilinear warp with replicated border, and its gradient in the displacement (science.md section 4).

use rayon::prelude::*;

use crate::shared::SharedMut;

/// `y(m) = source(m + offset + u(m))` for the voxels `m` of a grid inside the source's; `u` in voxels,
/// `[batch, 3, z, y, x]` with the components in the order x, y, z.
///
/// Positions outside the source take the value of the nearest border voxel, with derivative 0 along the clamped axes
/// (also for a position exactly on the border, as PyTorch's `grid_sample` has it).
///
/// ```
/// use jrs_kernels::warp::Warp;
/// let warp = Warp { batch: 1, channels: 1, source: [1, 1, 4], output: [1, 1, 2], offset: 1 };
/// // Voxel 0 reads source 0 + 1 + 0.5; voxel 1 reads past the end.
/// let u = [0.5, 9.0, 0.0, 0.0, 0.0, 0.0];
/// let mut y = [0.0; 2];
/// warp.forward(&[0.0, 10.0, 20.0, 30.0], &u, &mut y);
/// assert_eq!(y, [15.0, 30.0]);
/// let mut du = [0.0; 6];
/// warp.backward(&[0.0, 10.0, 20.0, 30.0], &u, &[1.0, 1.0], &mut du);
/// assert_eq!(du, [10.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warp {
    /// Volumes in the batch.
    pub batch: usize,
    /// Channels of the source and the output: intensities, label maps.
    pub channels: usize,
    /// Size z, y, x of the source.
    pub source: [usize; 3],
    /// Size z, y, x of the output and the displacement.
    pub output: [usize; 3],
    /// Output voxel `m` sits on source voxel `m + offset`, on every axis.
    pub offset: usize,
}

/// Where a voxel samples: the cell of eight source voxels around the position.
#[derive(Clone, Copy)]
struct Cell {
    /// The cell's first corner, as an index into a source volume.
    first: usize,
    /// Position in the cell, z, y, x.
    fraction: [f32; 3],
    /// The position is strictly inside the source, z, y, x.
    inside: [bool; 3],
}

impl Warp {
    /// Values of the source tensor `[batch, channels, z, y, x]`.
    pub fn source_len(&self) -> usize {
        self.batch * self.channels * self.source.iter().product::<usize>()
    }

    /// Values of the output tensor `[batch, channels, z, y, x]`.
    pub fn output_len(&self) -> usize {
        self.batch * self.channels * self.output.iter().product::<usize>()
    }

    /// Values of the displacement tensor `[batch, 3, z, y, x]`.
    pub fn displacement_len(&self) -> usize {
        self.batch * 3 * self.output.iter().product::<usize>()
    }

    /// Overwrites `y`.
    ///
    /// # Panics
    /// If a length is wrong or the source is empty.
    pub fn forward(&self, source: &[f32], u: &[f32], y: &mut [f32]) {
        self.check(source.len(), u.len(), y.len());
        let (from, to) = (self.source_voxels(), self.output_voxels());
        let y = SharedMut::new(y);
        self.for_each_row(u, |n, first, cells| {
            for c in 0..self.channels {
                let source = &source[(n * self.channels + c) * from..][..from];
                // SAFETY: rows of different (n, first, c) are disjoint.
                let row = unsafe { y.slice((n * self.channels + c) * to + first, self.output[2]) };
                for (value, cell) in row.iter_mut().zip(cells) {
                    let [fz, fy, fx] = cell.fraction;
                    let [v00, v01, v10, v11] = self.edges(source, cell).map(|(low, high)| mix(low, high, fx));
                    *value = mix(mix(v00, v01, fy), mix(v10, v11, fy), fz);
                }
            }
        });
    }

    /// Gradient of the displacement from the gradient `dy` of the output, summed over the channels: overwrites `du`.
    ///
    /// # Panics
    /// If a length is wrong or the source is empty.
    pub fn backward(&self, source: &[f32], u: &[f32], dy: &[f32], du: &mut [f32]) {
        self.check(source.len(), u.len(), dy.len());
        assert_eq!(du.len(), u.len(), "du");
        let (from, to, width) = (self.source_voxels(), self.output_voxels(), self.output[2]);
        let du = SharedMut::new(du);
        self.for_each_row(u, |n, first, cells| {
            // SAFETY: rows of different (n, first, component) are disjoint.
            let rows = [0, 1, 2].map(|i| unsafe { du.slice((n * 3 + i) * to + first, width) });
            for (x, cell) in cells.iter().enumerate() {
                let [fz, fy, fx] = cell.fraction;
                let mut gradient = [0.0; 3]; // z, y, x
                for c in 0..self.channels {
                    let dy = dy[(n * self.channels + c) * to + first + x];
                    if dy == 0.0 {
                        continue; // most voxels of a label channel
                    }
                    let edges = self.edges(&source[(n * self.channels + c) * from..][..from], cell);
                    let [v00, v01, v10, v11] = edges.map(|(low, high)| mix(low, high, fx));
                    let [d00, d01, d10, d11] = edges.map(|(low, high)| high - low);
                    gradient[0] += dy * (mix(v10, v11, fy) - mix(v00, v01, fy));
                    gradient[1] += dy * mix(v01 - v00, v11 - v10, fz);
                    gradient[2] += dy * mix(mix(d00, d01, fy), mix(d10, d11, fy), fz);
                }
                for axis in 0..3 {
                    rows[2 - axis][x] = if cell.inside[axis] { gradient[axis] } else { 0.0 };
                }
            }
        });
    }

    /// Calls `row(n, first voxel, cells)` for every row of the output grid, in parallel.
    fn for_each_row(&self, u: &[f32], row: impl Fn(usize, usize, &[Cell]) + Sync) {
        let [depth, height, width] = self.output;
        let voxels = self.output_voxels();
        (0..self.batch * depth * height).into_par_iter().for_each_init(Vec::new, |cells, i| {
            let (n, z, y) = (i / (depth * height), i / height % depth, i % height);
            let first = (z * height + y) * width;
            let [ux, uy, uz] = [0, 1, 2].map(|component| &u[(n * 3 + component) * voxels + first..][..width]);
            let position = |m: usize, u: f32| (m + self.offset) as f32 + u;
            cells.clear();
            cells.extend(
                (0..width).map(|x| self.cell([position(z, uz[x]), position(y, uy[x]), position(x, ux[x])])),
            );
            row(n, first, cells);
        });
    }

    /// The cell around a position (z, y, x) in the source.
    #[inline(always)]
    fn cell(&self, position: [f32; 3]) -> Cell {
        let mut cell = Cell { first: 0, fraction: [0.0; 3], inside: [false; 3] };
        for (axis, size) in self.source.into_iter().enumerate() {
            let (position, last) = (position[axis], (size - 1) as f32);
            let clamped = position.max(0.0).min(last); // a NaN becomes 0 here
            let low = (clamped as usize).min(size.saturating_sub(2));
            cell.first = cell.first * size + low;
            // The fraction keeps a NaN, so that the result is NaN too.
            cell.fraction[axis] = if position.is_nan() { position } else { clamped - low as f32 };
            cell.inside[axis] = position > 0.0 && position < last;
        }
        cell
    }

    /// The four edges along x of a cell, in the order (z, y) = 00, 01, 10, 11.
    #[inline(always)]
    fn edges(&self, source: &[f32], cell: &Cell) -> [(f32, f32); 4] {
        let [depth, height, width] = self.source;
        // An axis of one voxel has no second corner.
        let step = |size: usize, stride: usize| if size > 1 { stride } else { 0 };
        let (dz, dy, dx) = (step(depth, height * width), step(height, width), step(width, 1));
        debug_assert!(cell.first + dz + dy + dx < source.len());
        [0, dy, dz, dz + dy].map(|row| {
            let at = cell.first + row;
            // SAFETY: `cell` keeps `low + 1 < size` on every axis of more than one voxel and `low = 0` on the
            // others, so that all eight corners are in the source, whose length `check` compared with its size.
            unsafe { (*source.get_unchecked(at), *source.get_unchecked(at + dx)) }
        })
    }

    fn source_voxels(&self) -> usize {
        self.source.iter().product()
    }

    fn output_voxels(&self) -> usize {
        self.output.iter().product()
    }

    fn check(&self, source: usize, u: usize, y: usize) {
        assert!(!self.source.contains(&0), "empty source");
        assert_eq!(
            [source, u, y],
            [self.source_len(), self.displacement_len(), self.output_len()],
            "lengths of {self:?}"
        );
    }
}

/// Linear interpolation.
#[inline(always)]
fn mix(low: f32, high: f32, fraction: f32) -> f32 {
    low + fraction * (high - low)
}
