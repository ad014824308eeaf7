//! The correlation: an input gradient, or a forward pass that nobody differentiates.

use rayon::prelude::*;

use super::vectors;
use super::window::{Bands, Part, Window};
use crate::bf16::split;
use crate::conv3d::correlate::{Correlation, Placement};
use crate::shared::SharedMut;
use crate::unit::{Block, ROWS, Segment, Shape, Sums, TILES, Tile, Unit, even_rows, with_tiles};

/// Parts of a convolution, about, whatever the number of threads.
const TASKS: usize = 32;

/// `y = correlation(x) + bias` at the placed voxels, as [`Correlation::run`].
pub(in crate::conv3d) fn run(
    unit: Unit,
    conv: &Correlation,
    x: &[f32],
    weight: impl Fn(usize, usize, [usize; 3]) -> f32 + Sync,
    bias: &[f32],
    y: &mut [f32],
) {
    let bands = Bands::new(conv.reading(), conv.batch, TASKS);
    let weights = pack_weights(conv, weight);
    let y = SharedMut::new(y);
    bands.parts(conv.batch).into_par_iter().for_each(|part| {
        let task = Task { unit, conv, bands: &bands, weights: &weights, bias, part, y: &y };
        with_tiles(unit, even_rows(conv.output[2]), || task.run(x));
    });
}

/// `[block of 16 c_out][block of 16 c_in][kz][ky][kx]`, a tile of high and one of low weights each.
fn pack_weights(conv: &Correlation, weight: impl Fn(usize, usize, [usize; 3]) -> f32 + Sync) -> Vec<Tile> {
    let [kz, ky, kx] = conv.kernel;
    let (taps, blocks) = (kz * ky * kx, conv.c_in.div_ceil(16));
    let mut weights = vec![[Tile::ZERO; 2]; conv.c_out.div_ceil(16) * blocks * taps];
    weights.par_iter_mut().enumerate().for_each(|(i, [high, low])| {
        let (co, ci, tap) = (i / taps / blocks * 16, i / taps % blocks * 16, i % taps);
        let tap = [tap / (ky * kx), tap / kx % ky, tap % kx];
        for k in 0..16.min(conv.c_in - ci) {
            for n in 0..16.min(conv.c_out - co) {
                let terms = split(weight(co + n, ci + k, tap));
                let at = 2 * (16 * k + n);
                high.0[at..][..2].fill(terms[0]);
                low.0[at] = terms[1];
            }
        }
    });
    weights.into_flattened()
}

/// A part of the outputs.
struct Task<'a> {
    unit: Unit,
    conv: &'a Correlation,
    bands: &'a Bands,
    weights: &'a [Tile],
    bias: &'a [f32],
    part: Part,
    y: &'a SharedMut<'a>,
}

impl Task<'_> {
    fn run(&self, x: &[f32]) {
        let mut window = Window::new(self.unit, self.bands, self.part.clone());
        for z in self.part.planes.clone() {
            window.advance(x, z);
            self.plane(&window, z);
        }
    }

    fn plane(&self, window: &Window<'_>, z: usize) {
        let offsets = self.offsets(window, z);
        let stride = self.conv.stride;
        let line = offsets.as_ptr_range();
        let first = window.row(0, 0);
        let mut segment =
            Segment { first: line.start, last: line.end, stride: 64 * stride, low: 0, bases: [first; TILES] };
        let mut sums = Sums::ZERO;
        let rows = self.part.rows.len();
        let weights = self.weights.chunks_exact(offsets.len());
        for column in (0..self.conv.output[2]).step_by(even_rows(self.conv.output[2])) {
            for (channels, weights) in weights.clone().enumerate() {
                for row in (0..rows).step_by(TILES) {
                    for t in 0..TILES {
                        // Where there are not enough rows left the last is computed again.
                        segment.bases[t] = window.row(stride * (row + t).min(rows - 1), stride * column);
                    }
                    let segments = &[segment];
                    let block = Block { shape: Shape::FourByOne, segments, weights, sums: &mut sums };
                    // SAFETY: a window holds every tap of every output of its part and of the places with which the last
                    // tile of a row is filled up. `run` has configured the tiles.
                    unsafe { block.run(self.unit, || ()) };
                    for (i, sums) in (row..rows.min(row + TILES)).zip(sums.0.as_chunks_mut().0) {
                        self.store(sums, 16 * channels, [z, self.part.rows.start + i, column]);
                    }
                }
            }
        }
    }

    /// Where the K steps read, in bytes from the window's first voxel.
    fn offsets(&self, window: &Window<'_>, z: usize) -> Vec<isize> {
        let [kz, ky, kx] = self.conv.kernel;
        let mut offsets = Vec::new();
        for (block, tap) in (0..self.bands.blocks()).flat_map(|b| (0..kz * ky * kx).map(move |tap| (b, tap)))
        {
            let [plane, dy, dx] = [tap / (ky * kx), tap / kx % ky, tap % kx];
            offsets.extend([window.offset(z, plane, block, dy, dx); 2]);
        }
        offsets
    }

    /// Stores 16 voxels of 16 channels, from output (z, y, x) on.
    fn store(&self, sums: &mut [f32; ROWS * 16], first_channel: usize, [z, y, x]: [usize; 3]) {
        vectors::transpose(self.unit, sums);
        let count = even_rows(self.conv.output[2]).min(self.conv.output[2] - x);
        let Placement { size: [depth, height, width], first, step } = self.conv.placement;
        let row = (first[0] + step * z) * height + first[1] + step * y;
        for (co, values) in (first_channel..self.conv.c_out).zip(sums.as_chunks::<ROWS>().0) {
            let plane = (self.part.batch * self.conv.c_out + co) * depth * height;
            let at = (plane + row) * width + first[2] + step * x;
            // SAFETY: tasks and tiles write different outputs; parities of the input gradient run one after another.
            let to = unsafe { self.y.slice(at, (count - 1) * step + 1) };
            if let Ok(whole) = <&mut [f32; ROWS]>::try_from(&mut *to) {
                *whole = values.map(|value| value + self.bias[co]);
            } else {
                to.iter_mut().step_by(step).zip(values).for_each(|(to, &value)| *to = value + self.bias[co]);
            }
        }
    }
}
