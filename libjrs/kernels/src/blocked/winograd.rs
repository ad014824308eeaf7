//! Convolution at stride 1 through Winograd's filtering ([`crate::winograd`]) in the planes.
//!
//! A position is one 4x4 block of outputs. A task owns a [`Tile`] of positions and a range of output planes. Going along z it keeps the
//! transforms of the planes that the next output plane meets (three, or two coarse ones), so that each is made once:
//!
//! ```text
//!  plane, 6x6 voxels    ring: [point][plane, block][position][16]     products                outputs
//!  of 16 channels       +----+- ... -+----+                           [block][point]          4x4 voxels
//!  per position    ---> |    |       |    |  ---- times weights --->  [position][16]   --->   per position
//!                 B'dB  +----+- ... -+----+       summed over                          A'mA
//!                          36 points              planes and channels
//! ```
//!
//! **A source that is to be upsampled is read as it is**: the 6x6 inputs of a position are 3x3 coarse voxels, and the three fine
//! planes of an output are two coarse ones, one of which meets the sum of two taps ([`crate::bf16::coarse_taps`]).

use std::ops::Range;

use rayon::prelude::*;

use crate::activation::Activation;
use crate::pool::SCRATCH;
use crate::simd::{Isa, Kernel, Simd};
use crate::winograd::{BLOCK as OUTPUTS, POINTS, SPAN, forward, inverse, prefetch};
use crate::{LINE, to_line};

use super::finish::{Finish, Target};
use super::multiply::multiply;
use super::plane::{BLOCK, Plane};
use super::tile::{TILE, TILE_LEN, Tile};
use super::{Convolution, Source, View};

/// Tasks that are enough for any number of threads.
const TASKS: usize = 32;
/// Fewest output planes of a task, which transforms two more input planes than that.
const FEWEST_PLANES: usize = 4;

/// Values that a task works in.
pub(super) fn scratch_len(conv: &Convolution) -> usize {
    ring_len(conv) + conv.c_out() / BLOCK * POINTS * TILE_LEN + LINE
}

fn ring_len(conv: &Convolution) -> usize {
    POINTS * slots(conv) * TILE_LEN
}

/// Planes and blocks of channels that an output meets.
fn slots(conv: &Convolution) -> usize {
    conv.sources.iter().map(Source::slots).sum()
}

/// All outputs.
pub(super) fn run(
    conv: &Convolution,
    isa: Isa,
    views: &[View<'_>],
    (planes, edges): (usize, [usize; 2]),
    target: &Target<'_>,
    scratch_len: usize,
) {
    let tiles = Tile::all(edges);
    let depth = planes.div_ceil(TASKS.div_ceil(tiles)).max(FEWEST_PLANES.min(planes));
    let parts = planes.div_ceil(depth);
    // Tasks one by one: in the runs that rayon makes of them, some threads end early.
    (0..tiles * parts).into_par_iter().with_max_len(1).for_each(|task| {
        let start = task / tiles * depth;
        let planes = start..planes.min(start + depth);
        let tile = Tile::new(task % tiles, edges);
        let mut buffer = SCRATCH.take(scratch_len);
        let skip = to_line(buffer.as_ptr());
        let (ring, products) = buffer[skip..].split_at_mut(ring_len(conv));
        Column { conv, isa, views, tile, planes, target }.run(ring, products);
    });
}

/// A task: the outputs of a tile in some planes.
struct Column<'a> {
    conv: &'a Convolution,
    isa: Isa,
    views: &'a [View<'a>],
    tile: Tile,
    planes: Range<usize>,
    target: &'a Target<'a>,
}

impl Column<'_> {
    fn run(&self, ring: &mut [f32], products: &mut [f32]) {
        let Self { conv, isa, tile, target, .. } = *self;
        let first = |source: &Source| source.first_plane(self.planes.start);
        let mut next: Vec<usize> = conv.sources.iter().map(first).collect();
        let (mut taps, mut ahead) = (Vec::new(), Vec::new());
        for z in self.planes.clone() {
            self.transform(z, &mut next, ring, &mut taps);
            self.ahead(z, &next, &mut ahead);
            let (parity, count) = (z % 2, tile.count);
            isa.run(Products { conv, ring, taps: &taps, parity, count, ahead: &ahead, products });
            for block in 0..conv.c_out() / BLOCK {
                let products = &products[block * POINTS * TILE_LEN..][..POINTS * TILE_LEN];
                isa.run(Outputs { products, activation: &conv.activation, block, tile, z, target });
                for rows in tile.first_columns() {
                    // SAFETY: the rows' first outputs are this task's.
                    unsafe { target.border(block, z, rows) };
                }
            }
        }
    }

    /// Transforms what output plane `z` meets and is not in the ring yet, `next` of each source on; `taps` says where all that it meets lies
    /// behind a point's first slot, in the order of the weights.
    fn transform(&self, z: usize, next: &mut [usize], ring: &mut [f32], taps: &mut Vec<usize>) {
        let slots = slots(self.conv);
        let mut slot = 0;
        taps.clear();
        for ((source, view), next) in self.conv.sources.iter().zip(self.views).zip(next) {
            let (first, depth, blocks) = (source.first_plane(z), source.depth(), source.channels() / BLOCK);
            let place = |plane: usize| (slot + plane % depth * blocks) * TILE_LEN;
            while *next < first + depth {
                let (plane, to) = (view.planes[*next], &mut ring[place(*next)..]);
                self.isa.run(Transform {
                    plane,
                    crop: view.crop,
                    up: source.up(),
                    tile: self.tile,
                    slots,
                    to,
                });
                *next += 1;
            }
            for plane in first..first + depth {
                taps.extend((0..blocks).map(|block| place(plane) + block * TILE_LEN));
            }
            slot += source.slots();
        }
    }

    /// What will be transformed after output plane `z`: the next planes of this tile, or in the end the first ones of the next tile.
    fn ahead(&self, z: usize, next: &[usize], lines: &mut Vec<*const f32>) {
        lines.clear();
        let last = z + 1 == self.planes.end;
        let Some(tile) = (if last { self.tile.next() } else { Some(self.tile) }) else { return };
        for ((source, view), next) in self.conv.sources.iter().zip(self.views).zip(next) {
            let first = source.first_plane(if last { self.planes.start } else { z + 1 });
            for plane in if last { first } else { *next }..first + source.depth() {
                tile.lines(view.planes[plane], *source, view.crop, lines);
            }
        }
    }
}

/// B' d B of a tile's positions in one plane.
struct Transform<'a> {
    plane: &'a Plane<'a>,
    crop: usize,
    /// By how much it is to be upsampled.
    up: usize,
    tile: Tile,
    slots: usize,
    /// The ring from the plane's first slot on.
    to: &'a mut [f32],
}

impl Kernel for Transform<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { plane, crop, up, tile, slots, to } = self;
        let (step, last) = (slots * TILE_LEN, plane.edges()[0] - 1);
        assert!(to.len() >= (POINTS - 1) * step + plane.blocks() * TILE_LEN && tile.count <= TILE);
        let taken = SPAN / up;
        for block in 0..plane.blocks() {
            for p in 0..tile.count {
                let [y, x] = tile.place(p).map(|at| at / up + crop);
                let mut rows = [std::ptr::null(); SPAN];
                for i in 0..taken {
                    // Rows behind the last one only meet outputs that are not there.
                    let at = plane.at(block, last.min(y + i) as isize, x as isize);
                    rows[i] = plane.values()[at..][..taken * BLOCK].as_ptr();
                }
                for v in 0..BLOCK / S::LANES {
                    // SAFETY: `taken` voxels of each row were cut out just now; writes within the slots of 36 points
                    // (asserted above); the caller has S.
                    unsafe {
                        let to = to.as_mut_ptr().add(block * TILE_LEN + p * BLOCK + v * S::LANES);
                        if up == 2 {
                            transform::<S, 2>(&rows, v * S::LANES, to, step);
                        } else {
                            transform::<S, 1>(&rows, v * S::LANES, to, step);
                        }
                    }
                }
            }
        }
    }
}

/// B' d B of one vector of channels, where voxel (y, x) is `rows[y / UP]`'s `x / UP`-th.
///
/// # Safety
/// The processor must have `S`'s instructions; the rows have `6 / UP` voxels, `to` has 36 vectors `step` apart.
#[inline(always)]
unsafe fn transform<S: Simd, const UP: usize>(
    rows: &[*const f32; SPAN],
    lane: usize,
    to: *mut f32,
    step: usize,
) {
    // SAFETY: what the caller promises.
    unsafe {
        let mut along_x = [[S::splat(0.0); SPAN]; SPAN];
        for y in 0..SPAN / UP {
            let mut d = [S::splat(0.0); SPAN];
            for x in 0..SPAN {
                d[x] = S::load(rows[y].add(x / UP * BLOCK + lane));
            }
            along_x[y] = forward::<S>(d);
        }
        for px in 0..SPAN {
            let mut d = [S::splat(0.0); SPAN];
            for y in 0..SPAN {
                d[y] = along_x[y / UP][px];
            }
            let column = forward::<S>(d);
            for py in 0..SPAN {
                S::store(to.add((py * SPAN + px) * step), column[py]);
            }
        }
    }
}

/// For each point, the sums over planes and channels of weights times transforms.
struct Products<'a> {
    conv: &'a Convolution,
    ring: &'a [f32],
    /// Where the blocks of the planes lie behind a point's first slot, in the order of the weights.
    taps: &'a [usize],
    /// Whether the output plane is even or odd, which upsampling makes a difference for.
    parity: usize,
    /// Positions.
    count: usize,
    /// Lines that will be read next.
    ahead: &'a [*const f32],
    /// `[output block][point][position][16]`.
    products: &'a mut [f32],
}

impl Kernel for Products<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let wide = self.conv.c_out().is_multiple_of(2 * BLOCK);
        // SAFETY: the caller has S.
        unsafe {
            match S::LANES {
                16 if wide => self.all::<S, 12, 2>(),
                16 => self.all::<S, 24, 1>(),
                8 => self.all::<S, 6, 2>(),
                _ => self.all::<S, 2, 4>(),
            }
        }
    }
}

impl Products<'_> {
    /// In tiles of `M` positions by `V` vectors of output channels.
    #[inline(always)]
    unsafe fn all<S: Simd, const M: usize, const V: usize>(self) {
        let Self { conv, ring, taps, parity, count, ahead, products } = self;
        let (blocks, slots) = (conv.c_out() / BLOCK, taps.len());
        let per_block = slots * BLOCK * BLOCK;
        let weights =
            conv.weights(conv.parity(parity) * POINTS * blocks * per_block, POINTS * blocks * per_block);
        assert!(TILE.is_multiple_of(M) && count <= TILE && taps.iter().all(|tap| *tap < slots * TILE_LEN));
        assert!(ring.len() >= POINTS * slots * TILE_LEN && products.len() >= blocks * POINTS * TILE_LEN);
        let mut rows = vec![std::ptr::null(); slots];
        for point in 0..POINTS {
            // SAFETY: the caller has S.
            unsafe { prefetch::<S>(ahead, point) };
            for (row, tap) in rows.iter_mut().zip(taps) {
                *row = ring[point * slots * TILE_LEN + tap..].as_ptr();
            }
            for block in (0..blocks).step_by((V * S::LANES).div_ceil(BLOCK)) {
                for p in (0..count).step_by(M) {
                    // SAFETY: M positions from p on are of the tile, whose slots lie in the ring; weights for all blocks and
                    // points, and room for the products (asserted above); the caller has S.
                    unsafe {
                        let weights = weights.as_ptr().add((point * blocks + block) * per_block);
                        let sums = multiply::<S, M, V, BLOCK, BLOCK>(&rows, p * BLOCK, weights, per_block);
                        for v in 0..V {
                            let block = block + v * S::LANES / BLOCK;
                            let at = (block * POINTS + point) * TILE_LEN + p * BLOCK + v * S::LANES % BLOCK;
                            for m in 0..M {
                                S::store(products.as_mut_ptr().add(at + m * BLOCK), sums[m][v]);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A' m A of a tile's positions, the activation, and the way to memory.
struct Outputs<'a> {
    /// `[point][position][16]`.
    products: &'a [f32],
    activation: &'a Activation,
    block: usize,
    tile: Tile,
    z: usize,
    target: &'a Target<'a>,
}

impl Kernel for Outputs<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller has S.
        unsafe {
            match S::LANES {
                16 => self.all::<S, 1>(),
                8 => self.all::<S, 2>(),
                _ => self.all::<S, 4>(),
            }
        }
    }
}

impl Outputs<'_> {
    /// With `V` vectors to a block of channels.
    #[inline(always)]
    unsafe fn all<S: Simd, const V: usize>(self) {
        let Self { products, activation, block, tile, z, target } = self;
        assert!(products.len() == POINTS * TILE_LEN && tile.count <= TILE);
        // SAFETY: the caller has S, and V vectors are a block.
        let finish = unsafe { Finish::<S, V>::of(activation, block) };
        let mut outputs = [[[0.0; BLOCK]; OUTPUTS]; OUTPUTS];
        for p in 0..tile.count {
            // SAFETY: vectors of the position's 36 products; outputs inside the plane, which are this task's alone; the caller
            // has S.
            unsafe {
                for v in 0..V {
                    let from = products.as_ptr().add(p * BLOCK + v * S::LANES);
                    let mut columns = [[S::splat(0.0); OUTPUTS]; SPAN];
                    for px in 0..SPAN {
                        let mut m = [S::splat(0.0); SPAN];
                        for py in 0..SPAN {
                            m[py] = S::load(from.add((py * SPAN + px) * TILE_LEN));
                        }
                        columns[px] = inverse::<S>(m);
                    }
                    for y in 0..OUTPUTS {
                        let [c0, c1, c2, c3, c4, c5] = columns;
                        let row = inverse::<S>([c0[y], c1[y], c2[y], c3[y], c4[y], c5[y]]);
                        for x in 0..OUTPUTS {
                            S::store(outputs[y][x].as_mut_ptr().add(v * S::LANES), row[x]);
                        }
                    }
                }
                let [top, left] = tile.place(p);
                let columns = OUTPUTS.min(tile.edges[1] - left);
                for (y, row) in outputs.iter().enumerate().take(tile.edges[0] - top) {
                    target.write::<S, V>(block, [z, top + y, left], &row[..columns], &finish);
                }
            }
        }
    }
}
