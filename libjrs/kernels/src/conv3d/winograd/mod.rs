//! Winograd's minimal filtering ([`crate::winograd`]) in the planes, for 3x3x3 kernels at stride 1. Along z it stays the plain sum of
//! three taps.
//!
//! ```text
//!  16 phases of an input plane       36 transformed planes V     36 products M        4x4 outputs
//!  (y and x modulo 4)                of the last three z         sum over kz, ci      per position
//!  +----+----+----+----+             +----+- ... -+----+         +----+- ... -+       +----+- ... -+
//!  | 00 | 01 | 02 | 03 |   B'dB      |    |       |    |    U.V  |    |       |  A'MA | 00 |       |
//!  +----+----+----+----+  ------->   +----+- ... -+----+   ----> +----+- ... -+ ----> +----+- ... -+
//!  | 10 |    ...       |             |       ...       |         |    ...     |       |    ...     |
//!  +----+----+----+----+             +----+- ... -+----+         +----+- ... -+       +----+- ... -+
//! ```
//!
//! A position is one 4x4 block of outputs. Its 6x6 input values are those of the phases at `p`, `p + 1`, `p + row` and
//! `p + row + 1`, so positions are vector lanes all the way through, and the products are the same register tile as in
//! `correlate`, with the transformed rows as its taps. A task owns `chunk` positions and a range of z; going along z it keeps
//! the transforms of three input planes, so that each is made once. Its buffers fit the L2 cache.

mod transforms;

use rayon::prelude::*;

use super::correlate::Correlation;
use crate::LINE;
use crate::pool::{Buffer, SCRATCH};
use crate::shared::SharedMut;
use crate::simd::{Kernel, MOST_LANES, Simd};
use crate::winograd::{BLOCK, POINTS, filter_plane, prefetch};
use transforms::{InputTransform, Interleave, OutputTransform, PackPhases};

/// Vectors of positions in a register tile.
const VECTORS: usize = 3;
/// Target size of a task's transformed planes and products in values: half a megabyte.
const TARGET: usize = 1 << 17;
/// Parts of a convolution, whatever the number of threads (fewer on small grids).
const TASKS: usize = 32;
/// Fewest output planes of a part: each part transforms two more input planes than it has.
const FEWEST_PLANES: usize = 6;

/// True if `conv` is of the kind computed here.
pub(super) fn applies(conv: &Correlation) -> bool {
    conv.kernel == [3; 3] && conv.stride == 1 && conv.placement.step == 1 && conv.c_out > 3
}

/// How the outputs are cut into tasks.
struct Cut {
    /// Blocks of outputs along y and x.
    blocks: [usize; 2],
    /// Distance between rows of blocks: one more than there are, for `p + 1`.
    row: usize,
    /// Positions per task, whole register tiles.
    chunk: usize,
    /// Rows of blocks that a chunk reads, at most.
    rows: usize,
    /// Output planes per task.
    planes: usize,
}

impl Cut {
    fn new(conv: &Correlation) -> Self {
        let [depth, height, width] = conv.output;
        let blocks = [height.div_ceil(BLOCK), width.div_ceil(BLOCK)];
        let row = blocks[1] + 1;
        let tile = VECTORS * conv.isa.lanes();
        let positions = (blocks[0] - 1) * row + blocks[1];
        let fit = TARGET / (POINTS * (3 * conv.c_in + conv.c_out)) / tile;
        let chunk = fit.clamp(1, positions.div_ceil(tile)) * tile;
        let layers = conv.batch * positions.div_ceil(chunk);
        let planes = depth.div_ceil(TASKS.div_ceil(layers)).max(FEWEST_PLANES.min(depth));
        // A chunk may start at the end of a row.
        let rows = (row - 1 + chunk - 1) / row + 2;
        Self { blocks, row, chunk, rows, planes }
    }

    /// Values that a task works in: phases, ring of transformed planes, products, outputs.
    fn scratch(&self, conv: &Correlation) -> [usize; 4] {
        let c_out = conv.c_out.next_multiple_of(conv.isa.channels());
        [
            conv.c_in * BLOCK * BLOCK * self.area(),
            POINTS * 3 * conv.c_in * self.chunk,
            POINTS * c_out * self.chunk,
            BLOCK * BLOCK * self.chunk,
        ]
    }

    /// Values of a phase. The last position between rows reads one too far, and the last row is written in whole vectors.
    fn area(&self) -> usize {
        self.rows * self.row + MOST_LANES
    }

    fn tasks<'a>(&'a self, conv: &'a Correlation) -> Vec<Task<'a>> {
        let positions = (self.blocks[0] - 1) * self.row + self.blocks[1];
        let depth = conv.output[0];
        let mut tasks = Vec::new();
        for batch in 0..conv.batch {
            for z in (0..depth).step_by(self.planes) {
                for first in (0..positions).step_by(self.chunk) {
                    let planes = [z, depth.min(z + self.planes)];
                    tasks.push(Task { conv, cut: self, batch, first, planes });
                }
            }
        }
        tasks
    }
}

/// A chunk of positions in a range of planes.
#[derive(Clone, Copy)]
struct Task<'a> {
    conv: &'a Correlation,
    cut: &'a Cut,
    batch: usize,
    /// First position.
    first: usize,
    /// First output plane, and the one after the last.
    planes: [usize; 2],
}

impl Task<'_> {
    /// The rows of input plane `z`, counted from the first tap's, that the task reads: of which rows on, and behind which.
    fn rows(&self, z: usize) -> Option<(usize, [isize; 2])> {
        let Self { conv, cut, first, .. } = self;
        let z = conv.start[0] + z as isize;
        let top = conv.start[1] + (BLOCK * (first / cut.row)) as isize;
        // Of the row of blocks below the chunk only the first two rows count.
        let below = (first % cut.row + cut.chunk - 1) / cut.row + 1;
        let inside = z >= 0 && z < conv.input[0] as isize;
        inside.then_some((z as usize, [top, top + (BLOCK * below + 2) as isize]))
    }

    /// The lines that [`PackPhases`] reads of that plane.
    fn lines(&self, x: &[f32], z: usize, lines: &mut Vec<*const f32>) {
        let [d, h, w] = self.conv.input;
        let Some((z, rows)) = self.rows(z) else { return };
        let [from, to] = rows.map(|row| row.clamp(0, h as isize) as usize * w);
        for ci in 0..self.conv.c_in {
            let plane = &x[((self.batch * self.conv.c_in + ci) * d + z) * h * w..][..h * w];
            lines.extend(plane[from..to].iter().step_by(LINE).map(std::ptr::from_ref));
        }
    }

    /// Copies the outputs of plane `z` of channel `co` to `y`.
    fn store(&self, [z, co]: [usize; 2], outputs: &[f32], y: &SharedMut<'_>) {
        let Self { conv, cut, .. } = self;
        let [_, height, width] = conv.output;
        let [depth, rows, columns] = conv.placement.size;
        let origin = conv.placement.first;
        let plane = ((self.batch * conv.c_out + co) * depth + origin[0] + z) * rows;
        let end = self.first + cut.chunk;
        for block in self.first / cut.row..cut.blocks[0].min(end.div_ceil(cut.row)) {
            // The chunk's part of this row of blocks, without the position between rows.
            let from = self.first.max(block * cut.row);
            let to = end.min(block * cut.row + cut.blocks[1]);
            if from >= to {
                continue;
            }
            for phase in 0..BLOCK.min(height - BLOCK * block) {
                let x = BLOCK * (from - block * cut.row);
                let count = (BLOCK * (to - from)).min(width - x);
                let at = (plane + origin[1] + BLOCK * block + phase) * columns + origin[2] + x;
                let column =
                    |px| &outputs[(BLOCK * phase + px) * cut.chunk + from - self.first..][..to - from];
                let values = [column(0), column(1), column(2), column(3)];
                // SAFETY: no two tasks share a (z, channel, position).
                let to = unsafe { y.slice(at, count) };
                conv.isa.run(Interleave { columns: values, to });
            }
        }
    }
}

/// As [`Correlation::run`].
pub(super) fn run(
    conv: &Correlation,
    x: &[f32],
    weight: impl Fn(usize, usize, [usize; 3]) -> f32 + Sync,
    bias: &[f32],
    y: &mut [f32],
) {
    let lanes = conv.isa.channels();
    let c_out = conv.c_out.next_multiple_of(lanes);
    let weights = transform_weights(conv, lanes, weight);
    let cut = Cut::new(conv);
    let (chunk, tile, scratch) = (cut.chunk, VECTORS * conv.isa.lanes(), cut.scratch(conv));
    // Where the three input planes of output plane z lie in the ring, for z % 3.
    let offsets = [0, 1, 2].map(|z| -> Vec<usize> {
        (0..3 * conv.c_in)
            .map(|tap| ((z + tap / conv.c_in) % 3 * conv.c_in + tap % conv.c_in) * tile)
            .collect()
    });
    let y = SharedMut::new(y);
    cut.tasks(conv).into_par_iter().for_each(|task| {
        let [mut phases, mut ring, mut products, mut outputs] = scratch.map(|len| SCRATCH.take(len));
        let [start, end] = task.planes;
        let (mut next, mut ahead) = (start, Vec::new());
        for z in start..end {
            while next < z + 3 {
                conv.isa.run(PackPhases { task, x, z: next, phases: &mut phases });
                let plane = &mut ring[next % 3 * conv.c_in * tile..];
                conv.isa.run(InputTransform { task, phases: &phases, plane });
                next += 1;
            }
            ahead.clear();
            if z + 1 < end {
                task.lines(x, next, &mut ahead);
            }
            conv.isa.run(Products {
                ahead: &ahead,
                planes: &ring,
                offsets: &offsets[z % 3],
                weights: &weights,
                chunk,
                products: &mut products,
            });
            for co in 0..conv.c_out {
                let outputs = &mut outputs;
                conv.isa.run(OutputTransform { products: &products, co, c_out, bias: bias[co], outputs });
                task.store([z, co], outputs, &y);
            }
        }
    });
}

/// G g G' of every (co, ci, kz): `[output block][point][kz][ci][channel of the block]`.
fn transform_weights(
    conv: &Correlation,
    lanes: usize,
    weight: impl Fn(usize, usize, [usize; 3]) -> f32 + Sync,
) -> Buffer<'static> {
    let taps = 3 * conv.c_in;
    let mut weights = SCRATCH.take(POINTS * taps * conv.c_out.next_multiple_of(lanes));
    weights.par_chunks_exact_mut(POINTS * taps * lanes).enumerate().for_each(|(block, weights)| {
        let channels = lanes.min(conv.c_out - block * lanes);
        if channels < lanes {
            weights.fill(0.0); // channels that are not there
        }
        for tap in 0..taps {
            let (kz, ci) = (tap / conv.c_in, tap % conv.c_in);
            for lane in 0..channels {
                let g = |ky: usize, kx: usize| weight(block * lanes + lane, ci, [kz, ky, kx]);
                for (point, value) in filter_plane(g).into_iter().enumerate() {
                    weights[(point * taps + tap) * lanes + lane] = value;
                }
            }
        }
    });
    weights
}

/// For each of the 36 points, the sum over kz and ci of weights times transformed planes.
struct Products<'a> {
    /// Lines that will be read next.
    ahead: &'a [*const f32],
    /// `[point][register tile][plane of the ring][channel][position of the tile]`.
    planes: &'a [f32],
    /// Per (kz, ci): where its row lies in a register tile's block.
    offsets: &'a [usize],
    /// `[output block][point][kz, ci][channel of the block]`.
    weights: &'a [f32],
    chunk: usize,
    /// `[register tile][output channel][point][position of the tile]`.
    products: &'a mut [f32],
}

impl Kernel for Products<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller has S's instructions.
        unsafe {
            if S::CHANNELS == 8 {
                self.all::<S, 8>();
            } else {
                self.all::<S, 4>();
            }
        }
    }
}

impl Products<'_> {
    #[inline(always)]
    unsafe fn all<S: Simd, const C: usize>(self) {
        let Self { ahead, planes, offsets, weights, chunk, products } = self;
        let (taps, width) = (offsets.len(), VECTORS * S::LANES);
        let blocks = weights.len() / (POINTS * taps * C);
        assert!(chunk.is_multiple_of(width) && offsets.iter().all(|&offset| offset + width <= taps * width));
        assert!(planes.len() >= POINTS * taps * chunk && products.len() >= POINTS * blocks * C * chunk);
        for point in 0..POINTS {
            // SAFETY: the caller has S.
            unsafe { prefetch::<S>(ahead, point) };
            for tile in 0..chunk / width {
                for block in 0..blocks {
                    // SAFETY: `planes` holds `taps` rows of a tile per point and tile, `weights` C values per tap, block
                    // and point, `products` 36 rows of a tile per channel and tile (asserted above); the caller has S.
                    unsafe {
                        let input = planes.as_ptr().add((point * chunk + tile * width) * taps);
                        let weights = weights.as_ptr().add((block * POINTS + point) * taps * C);
                        let to = ((tile * blocks + block) * C * POINTS + point) * width;
                        let products = products.as_mut_ptr().add(to);
                        let mut acc = [[S::splat(0.0); VECTORS]; C];
                        S::correlate(&mut acc, input, offsets, weights);
                        for c in 0..C {
                            for v in 0..VECTORS {
                                S::store(products.add(c * POINTS * width + v * S::LANES), acc[c][v]);
                            }
                        }
                    }
                }
            }
        }
    }
}
