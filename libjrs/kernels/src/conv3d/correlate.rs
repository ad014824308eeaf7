//! The convolution itself: tasks, the register tile, and the way of results to memory.

use rayon::prelude::*;

use super::window::{CHANNEL_BLOCK, Part, Reading, Window, pack_weights};
use crate::pool::SCRATCH;
use crate::shared::SharedMut;
use crate::simd::{Isa, Kernel, Simd};

/// Vectors of positions in a register tile.
const VECTORS: usize = 3;
/// Output channels whose weights stay in the L1 cache together.
pub(super) const CHANNEL_GROUP: usize = 16;
/// Parts of a convolution, whatever the number of threads (fewer on small grids).
const TASKS: usize = 32;

/// A correlation of any kernel size per axis whose outputs may be spread over a larger grid; the forward pass and
/// the input gradient are instances of it.
pub(super) struct Correlation {
    pub isa: Isa,
    pub batch: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub input: [usize; 3],
    pub start: [isize; 3],
    pub stride: usize,
    pub kernel: [usize; 3],
    pub output: [usize; 3],
    pub placement: Placement,
}

/// Output (z, y, x) goes to voxel `first + step * (z, y, x)` of volumes of `size`.
#[derive(Clone, Copy)]
pub(super) struct Placement {
    pub size: [usize; 3],
    pub first: [usize; 3],
    pub step: usize,
}

impl Correlation {
    /// `y = correlation(x) + bias` at the placed voxels; `weight(co, ci, tap)` reads a weight.
    pub fn run(
        &self,
        x: &[f32],
        weight: impl Fn(usize, usize, [usize; 3]) -> f32 + Sync,
        bias: &[f32],
        y: &mut [f32],
    ) {
        let lanes = self.isa.channels();
        let blocks = self.c_out.div_ceil(lanes);
        let weights = pack_weights(self.c_in, self.c_out, self.kernel, lanes, weight);
        let mut padded_bias = bias.to_vec();
        padded_bias.resize(blocks * lanes, 0.0);

        let window = Window::new(self.reading(), self.batch, TASKS, usize::MAX);
        let tile = VECTORS * self.isa.lanes();
        let y = SharedMut::new(y);
        window.parts(self.batch).into_par_iter().for_each(|part| {
            let tiles = window.positions(&part).div_ceil(tile);
            let length = tiles * tile;
            let mut packed = SCRATCH.take(window.len());
            let mut sums = SCRATCH.take(part.planes * blocks * lanes * length);
            for first in (0..self.c_in).step_by(CHANNEL_BLOCK) {
                let channels = CHANNEL_BLOCK.min(self.c_in - first);
                let view = window.view(self.isa, x, &part, first, channels, length, &mut packed);
                let taps = view.offsets.len();
                for z in 0..part.planes {
                    self.isa.run(Tiles {
                        input: &view.values[z * view.plane_step..],
                        offsets: view.offsets,
                        weights: &weights[first * window.taps() * blocks * lanes..][..taps * blocks * lanes],
                        bias: (first == 0).then_some(&padded_bias),
                        sums: &mut sums[z * blocks * lanes * length..][..blocks * lanes * length],
                        tiles,
                    });
                }
            }
            self.store(&window, &part, &sums, length, &y);
        });
    }

    /// Which input values the outputs need.
    pub fn reading(&self) -> Reading {
        Reading {
            c_in: self.c_in,
            input: self.input,
            start: self.start,
            stride: self.stride,
            kernel: self.kernel,
            output: self.output,
        }
    }

    /// Copies the rows of `sums` (`[z][channel][position]`) to `y`.
    fn store(&self, window: &Window, part: &Part, sums: &[f32], length: usize, y: &SharedMut<'_>) {
        let channels = sums.len() / (part.planes * length);
        let Placement { size: [depth, height, width], first, step } = self.placement;
        for z in 0..part.planes {
            for co in 0..self.c_out {
                let plane =
                    ((part.batch * self.c_out + co) * depth + first[0] + step * (part.z + z)) * height;
                for row in 0..part.rows {
                    let from = &sums[(z * channels + co) * length + row * window.row..][..self.output[2]];
                    let at = (plane + first[1] + step * (part.y + row)) * width + first[2];
                    // SAFETY: no two (z, channel, row) of all parts share a row, and parities of the input
                    // gradient run one after another.
                    let to = unsafe { y.slice(at, (from.len() - 1) * step + 1) };
                    if step == 1 {
                        to.copy_from_slice(from);
                    } else {
                        to.iter_mut().step_by(step).zip(from).for_each(|(to, value)| *to = *value);
                    }
                }
            }
        }
    }
}

/// All tiles of one output plane for one block of input channels.
struct Tiles<'a> {
    input: &'a [f32],
    /// Per tap: where its value lies, from the output's position.
    offsets: &'a [usize],
    /// `[output block][tap][channel of the block]`.
    weights: &'a [f32],
    /// Start value per output channel; without it the sums go on from what is there.
    bias: Option<&'a Vec<f32>>,
    /// `[channel][position]`.
    sums: &'a mut [f32],
    tiles: usize,
}

impl Kernel for Tiles<'_> {
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

impl Tiles<'_> {
    #[inline(always)]
    unsafe fn all<S: Simd, const C: usize>(self) {
        let width = VECTORS * S::LANES;
        let length = self.tiles * width;
        let blocks = self.sums.len() / (C * length);
        let reach = self.offsets.iter().max().map_or(0, |most| most + length);
        assert!(self.input.len() >= reach && self.weights.len() == blocks * self.offsets.len() * C);
        assert!(self.sums.len() == blocks * C * length);
        assert!(self.bias.is_none_or(|bias| bias.len() == blocks * C));
        // A group of output channels whose weights fit the L1 cache; in it tiles outside and output channels inside,
        // so that the rows under a tile are read from the L1 cache too.
        for group in (0..blocks).step_by(CHANNEL_GROUP / C) {
            let group = group..blocks.min(group + CHANNEL_GROUP / C);
            for tile in 0..self.tiles {
                for block in group.clone() {
                    // SAFETY: `input` reaches `length` past the largest offset, `sums` holds C rows of `length` per
                    // block, `weights` C values per tap and block (all asserted above); the caller has S.
                    unsafe {
                        let input = self.input.as_ptr().add(tile * width);
                        let weights = self.weights.as_ptr().add(block * self.offsets.len() * C);
                        let sums = self.sums.as_mut_ptr().add(block * C * length + tile * width);
                        let mut acc = [[S::splat(0.0); VECTORS]; C];
                        for c in 0..C {
                            for v in 0..VECTORS {
                                acc[c][v] = match self.bias {
                                    Some(bias) => S::splat(*bias.get_unchecked(block * C + c)),
                                    None => S::load(sums.add(c * length + v * S::LANES)),
                                };
                            }
                        }
                        S::correlate(&mut acc, input, self.offsets, weights);
                        for c in 0..C {
                            for v in 0..VECTORS {
                                S::store(sums.add(c * length + v * S::LANES), acc[c][v]);
                            }
                        }
                    }
                }
            }
        }
    }
}
