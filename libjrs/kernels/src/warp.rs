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

/// One axis of a sampling position.
#[derive(Clone, Copy)]
struct Axis {
    low: usize,
    high: usize,
    fraction: f32,
    /// The position is strictly inside the source.
    inside: bool,
}

impl Axis {
    #[inline(always)]
    fn new(position: f32, size: usize) -> Self {
        let last = (size - 1) as f32;
        let clamped = position.max(0.0).min(last);
        // A NaN becomes 0 here; `fraction` keeps it, so that the result is NaN too.
        let low = (clamped as usize).min(size.saturating_sub(2));
        let fraction = if position.is_nan() { position } else { clamped - low as f32 };
        Self { low, high: (low + 1).min(size - 1), fraction, inside: position > 0.0 && position < last }
    }
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
        self.for_each_row(|n, first, at| {
            for c in 0..self.channels {
                let source = &source[(n * self.channels + c) * from..][..from];
                // SAFETY: rows of different (n, first, c) are disjoint.
                let row = unsafe { y.slice((n * self.channels + c) * to + first, self.output[2]) };
                for (x, value) in row.iter_mut().enumerate() {
                    let [z, y, x] = self.axes(u, n, first, at, x);
                    let [v00, v01, v10, v11] = self.edges(source, [z, y, x]);
                    let mix = |(low, high): (f32, f32), f: f32| low + f * (high - low);
                    let near = mix((mix(v00, x.fraction), mix(v01, x.fraction)), y.fraction);
                    let far = mix((mix(v10, x.fraction), mix(v11, x.fraction)), y.fraction);
                    *value = mix((near, far), z.fraction);
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
        self.for_each_row(|n, first, at| {
            // SAFETY: rows of different (n, first, component) are disjoint.
            let rows = [0, 1, 2].map(|i| unsafe { du.slice((n * 3 + i) * to + first, width) });
            for x in 0..width {
                let axes = self.axes(u, n, first, at, x);
                let [az, ay, ax] = axes;
                let mut gradient = [0.0; 3];
                for c in 0..self.channels {
                    let dy = dy[(n * self.channels + c) * to + first + x];
                    if dy == 0.0 {
                        continue; // most voxels of a label channel
                    }
                    let source = &source[(n * self.channels + c) * from..][..from];
                    let corners = self.edges(source, axes);
                    let mix = |low: f32, high: f32, f: f32| low + f * (high - low);
                    let [v00, v01, v10, v11] = corners.map(|(low, high)| mix(low, high, ax.fraction));
                    let [d00, d01, d10, d11] = corners.map(|(low, high)| high - low);
                    let along_x = mix(mix(d00, d01, ay.fraction), mix(d10, d11, ay.fraction), az.fraction);
                    let along_y = mix(v01 - v00, v11 - v10, az.fraction);
                    let along_z = mix(v10, v11, ay.fraction) - mix(v00, v01, ay.fraction);
                    gradient[0] += dy * along_x;
                    gradient[1] += dy * along_y;
                    gradient[2] += dy * along_z;
                }
                for (i, axis) in [ax, ay, az].into_iter().enumerate() {
                    rows[i][x] = if axis.inside { gradient[i] } else { 0.0 };
                }
            }
        });
    }

    /// Calls `row(n, first voxel, [z, y])` for every row of the output grid, in parallel.
    fn for_each_row(&self, row: impl Fn(usize, usize, [usize; 2]) + Sync) {
        let [depth, height, width] = self.output;
        (0..self.batch * depth * height).into_par_iter().for_each(|i| {
            let (n, z, y) = (i / (depth * height), i / height % depth, i % height);
            row(n, (z * height + y) * width, [z, y]);
        });
    }

    /// The sampling position of voxel `x` of the row that starts at voxel `first`, as axes z, y, x.
    #[inline(always)]
    fn axes(&self, u: &[f32], n: usize, first: usize, [z, y]: [usize; 2], x: usize) -> [Axis; 3] {
        let voxels = self.output_voxels();
        let component = |i: usize| u[(n * 3 + i) * voxels + first + x];
        let position = |m: usize, i: usize| (m + self.offset) as f32 + component(i);
        [
            Axis::new(position(z, 2), self.source[0]),
            Axis::new(position(y, 1), self.source[1]),
            Axis::new(position(x, 0), self.source[2]),
        ]
    }

    /// The four edges along x of the cell around a position, in the order (z, y) = 00, 01, 10, 11.
    #[inline(always)]
    fn edges(&self, source: &[f32], [z, y, x]: [Axis; 3]) -> [(f32, f32); 4] {
        let [_, height, width] = self.source;
        [(z.low, y.low), (z.low, y.high), (z.high, y.low), (z.high, y.high)].map(|(z, y)| {
            let row = (z * height + y) * width;
            (source[row + x.low], source[row + x.high])
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
