//! The weight gradient: `dW[co][ci][tap] = sum over outputs p of dy[co][p] * x[ci][p + tap]`.
//!
//! Sixteen outputs of a row are the inner dimension of a tile product. The right tile is 16 voxels of the window, the left one 16
//! channels of `dy` as they lie, once as `(high, high)` and once as `(low, 0)`. Three sums, for the taps along x, are at work together:
//! they share the left tiles and nearly all of the lines of the right ones.

use rayon::prelude::*;

use super::vectors;
use super::window::{Bands, Part, Window};
use crate::conv3d::Conv3d;
use crate::pool::SCRATCH;
use crate::simd::Isa;
use crate::unit::{Pairs, ROWS, Unit, outer, with_tiles};

/// Parts, each with a partial gradient, which are added in order at the end.
const TASKS: usize = 16;
/// Bytes of left tiles that meet all taps before the next ones do: half of a 48 KB L1 cache.
const LEFT: usize = 24 << 10;
/// Rows of two left tiles.
const PAIR: usize = 2 * 16;

/// A row of a left tile. The unit reads it as a cache line, so it is one.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Row([u32; 16]);

/// For kernels of 3x3x3.
pub(in crate::conv3d) fn run(unit: Unit, conv: &Conv3d, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let bands = Bands::new(conv.correlation(Isa::Matrix(unit)).reading(), conv.batch, TASKS);
    let parts = bands.parts(conv.batch);
    let [outs, ins] = [conv.c_out, conv.c_in].map(|n| n.div_ceil(16));
    // [part][block of c_out][block of c_in][tap][c_out][c_in]
    let size = outs * ins * 27 * 256;
    let mut partial = SCRATCH.take(parts.len() * size);
    partial.par_chunks_exact_mut(size).zip(parts).for_each(|(sums, part)| {
        sums.fill(0.0);
        with_tiles(unit, ROWS, || Task { unit, conv, bands: &bands, part, sums }.run(x, dy));
    });
    dweight.par_chunks_mut(27).enumerate().for_each(|(i, taps)| {
        let (co, ci) = (i / conv.c_in, i % conv.c_in);
        for (tap, value) in taps.iter_mut().enumerate() {
            let tile = ((co / 16 * ins + ci / 16) * 27 + tap) * 256;
            let sums = partial.iter().skip(tile + co % 16 * 16 + ci % 16).step_by(size);
            *value = sums.map(|&sum| f64::from(sum)).sum::<f64>() as f32;
        }
    });
}

struct Task<'a> {
    unit: Unit,
    conv: &'a Conv3d,
    bands: &'a Bands,
    part: Part,
    sums: &'a mut [f32],
}

impl Task<'_> {
    fn run(&mut self, x: &[f32], dy: &[f32]) {
        let rows = self.part.rows.len();
        let tiles = self.conv.output()[2].div_ceil(ROWS);
        let mut window = Window::new(self.unit, self.bands, self.part.clone());
        let mut left = vec![Row([0; 16]); self.conv.c_out.div_ceil(16) * rows * tiles * PAIR];
        // From the window's first row, per output row and tile.
        let stride = self.conv.stride;
        let offset = |i: usize| stride * (i / tiles * self.bands.row_bytes() + i % tiles * ROWS * 64);
        let offsets: Vec<isize> = (0..rows * tiles).map(|i| offset(i) as isize).collect();
        let chunk = (LEFT / (64 * PAIR) / tiles).max(1) * tiles;
        for z in self.part.planes.clone() {
            window.advance(x, z);
            self.pack_left(dy, z, &mut left);
            for (block, left) in left.chunks_exact(rows * tiles * PAIR).enumerate() {
                for (offsets, left) in offsets.chunks(chunk).zip(left.chunks(chunk * PAIR)) {
                    self.add(&window, z, block, left, offsets);
                }
            }
        }
    }

    /// Left tiles of the part's rows of plane `z`: `[block of c_out][row][tile][high, low][c_out][x]`.
    fn pack_left(&self, dy: &[f32], z: usize, left: &mut [Row]) {
        let [depth, height, width] = self.conv.output();
        let tiles = width.div_ceil(ROWS);
        let rows = self.part.rows.clone();
        for (i, pair) in left.chunks_exact_mut(PAIR).enumerate() {
            let (block, row, x) =
                (i / (rows.len() * tiles), rows.start + i / tiles % rows.len(), i % tiles * ROWS);
            let (high, low) = pair.split_at_mut(16);
            for (co, (high, low)) in (16 * block..16 * block + 16).zip(high.iter_mut().zip(low)) {
                let values = if co < self.conv.c_out {
                    let plane = (self.part.batch * self.conv.c_out + co) * depth + z;
                    &dy[(plane * height + row) * width + x..][..ROWS.min(width - x)]
                } else {
                    &[]
                };
                vectors::pack_left(self.unit, values, [&mut high.0, &mut low.0]);
            }
        }
    }

    /// Adds the products of some left tiles of a block of output channels with all taps of all input channels.
    fn add(&mut self, window: &Window<'_>, z: usize, block: usize, left: &[Row], offsets: &[isize]) {
        let ins = self.bands.blocks();
        assert_eq!(left.len(), offsets.len() * PAIR);
        let mut tiles = [[0.0; 256]; 3];
        for (ci, plane) in (0..ins).flat_map(|ci| (0..3).map(move |plane| (ci, plane))) {
            for row in 0..3 {
                let right = window.row(0, 0).wrapping_offset(window.offset(z, plane, ci, row, 0));
                let pairs = Pairs { left: left.as_ptr().cast(), right, stride: 64 * self.conv.stride };
                // SAFETY: a pair of left tiles per offset; a window holds what the tiles of its part's rows meet
                // with any tap. `run` has configured the tiles.
                unsafe { outer(self.unit, &pairs, offsets, &mut tiles) };
                let first = ((block * ins + ci) * 27 + plane * 9 + row * 3) * 256;
                vectors::add(self.unit, &mut self.sums[first..][..3 * 256], tiles.as_flattened());
            }
        }
    }
}
