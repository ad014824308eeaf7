//! Convolution as it is defined: of the images, and at stride 2.

use std::ops::Range;

use rayon::prelude::*;

use crate::simd::{Isa, Kernel, Simd};

use super::finish::{Finish, Target};
use super::multiply::multiply;
use super::plane::{BLOCK, Plane};
use super::{Convolution, View};

/// Rows of outputs in a task.
const ROWS: usize = 8;

/// All outputs, from a view without crop.
pub(super) fn run(
    conv: &Convolution,
    isa: Isa,
    view: &View<'_>,
    (planes, edges): (usize, [usize; 2]),
    target: &Target<'_>,
) {
    let parts = edges[0].div_ceil(ROWS);
    // Tasks one by one: in the runs that rayon makes of them, some threads end early.
    (0..planes * parts).into_par_iter().with_max_len(1).for_each(|task| {
        let (z, first) = (task / parts, task % parts * ROWS);
        let inputs = &view.planes[conv.stride * z..][..3];
        let rows = first..edges[0].min(first + ROWS);
        isa.run(Rows { conv, inputs, z, rows, width: edges[1], target });
    });
}

/// Some rows of outputs.
struct Rows<'a> {
    conv: &'a Convolution,
    /// Those that the taps meet along z.
    inputs: &'a [&'a Plane<'a>],
    z: usize,
    rows: Range<usize>,
    width: usize,
    target: &'a Target<'a>,
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let wide = self.conv.c_out().is_multiple_of(2 * BLOCK);
        // SAFETY: the caller has S.
        unsafe {
            match (self.inputs[0].width(), S::LANES) {
                (1, 16) => self.all::<S, 24, 1, 1, 1, 1>(),
                (1, 8) => self.all::<S, 6, 2, 2, 1, 1>(),
                (1, _) => self.all::<S, 2, 4, 4, 1, 1>(),
                (_, 16) if wide => self.all::<S, 12, 2, 1, 32, 16>(),
                (_, 16) => self.all::<S, 24, 1, 1, 32, 16>(),
                (_, 8) => self.all::<S, 6, 2, 2, 32, 16>(),
                _ => self.all::<S, 2, 4, 4, 32, 16>(),
            }
        }
    }
}

impl Rows<'_> {
    /// In tiles of `M` voxels by `V` vectors, of which `B` are a block of channels; `STEP` values from voxel to voxel, `RUN` channels
    /// side by side.
    #[inline(always)]
    unsafe fn all<
        S: Simd,
        const M: usize,
        const V: usize,
        const B: usize,
        const STEP: usize,
        const RUN: usize,
    >(
        self,
    ) {
        let Self { conv, inputs, z, rows, width, target } = self;
        let (stride, padding) = (conv.stride, conv.padding() as isize);
        // Of the first row's first output; others read as far behind.
        let mut taps = Vec::with_capacity(27 * inputs[0].blocks());
        let pitch = stride * inputs[0].pitch();
        for plane in inputs {
            for ky in 0..3 {
                for kx in 0..3 {
                    for block in 0..plane.blocks() {
                        let y = (stride * rows.start + ky) as isize - padding;
                        let at = plane.at(block, y, kx - padding);
                        taps.push(plane.values()[at..].as_ptr());
                    }
                }
            }
        }
        let per_block = taps.len() * RUN * BLOCK;
        let mut tile = [[0.0; BLOCK]; M];
        for block in (0..conv.c_out() / BLOCK).step_by(V / B) {
            let weights = conv.weights(block * per_block, V / B * per_block);
            // SAFETY: the caller has S, and B vectors are a block.
            let finish: [Finish<S, B>; 2] =
                unsafe { [0, V / B - 1].map(|i| Finish::of(&conv.activation, block + i)) };
            for i in 0..V / B {
                // SAFETY: the rows are one task's.
                unsafe { target.border(block + i, z, rows.clone()) };
            }
            for (y, x) in rows.clone().flat_map(|y| (0..width).step_by(M).map(move |x| (y, x))) {
                // SAFETY: `Convolution::check` holds the taps of all outputs inside the planes; voxels of a tile behind the last
                // output lie in the planes or their slack. The weights were cut to what is read. Rows are one task's.
                unsafe {
                    let place = (y - rows.start) * pitch + x * STEP;
                    let sums = multiply::<S, M, V, STEP, RUN>(&taps, place, weights.as_ptr(), per_block);
                    for i in 0..V / B {
                        for m in 0..M {
                            for v in 0..B {
                                S::store(tile[m].as_mut_ptr().add(v * S::LANES), sums[m][i * B + v]);
                            }
                        }
                        target.write::<S, B>(block + i, [z, y, x], &tile[..M.min(width - x)], &finish[i]);
                    }
                }
            }
        }
    }
}
