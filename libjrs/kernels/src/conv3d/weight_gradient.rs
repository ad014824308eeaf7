//! Weight gradient: `dW[co][ci][tap] = sum over positions p of dy[co][p] * x[ci][p + offset(tap)]`.
//!
//! `dy` is spread over the row width of the packed window, with zeros in the gaps between rows, so that the sum runs
//! over all positions without row ends. The register tile is output channels x three taps; positions are cut
//! so that the four channels of `dy` and the taps' rows of `x` stay in the L1 cache.

use rayon::prelude::*;

use super::Conv3d;
use super::window::{CHANNEL_BLOCK, Part, Window};
use crate::pool::SCRATCH;
use crate::simd::{Isa, Kernel, Simd};

/// Taps of a register tile.
const TAPS: usize = 3;
/// Most output positions of a part: four channels of `dy` then take half of a 32 KB L1 cache.
const POSITIONS: usize = 1024;
/// Partial gradients, each over its own share of the planes; added in order at the end.
const SLOTS: usize = 16;

pub(super) fn run(conv: &Conv3d, isa: Isa, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let window = Window::new(conv.correlation(isa).reading(), conv.batch, SLOTS, POSITIONS);
    let parts = window.parts(conv.batch);
    let lanes = isa.channels();
    let blocks = conv.c_out.div_ceil(lanes);
    let taps = conv.c_in * window.taps();
    let per_slot = parts.len().div_ceil(SLOTS);
    let size = blocks * taps * lanes;
    let mut partial = SCRATCH.take(parts.len().div_ceil(per_slot) * size);

    partial.par_chunks_mut(size).zip(parts.par_chunks(per_slot)).for_each(|(sums, parts)| {
        sums.fill(0.0);
        for part in parts {
            let length = window.positions(part).next_multiple_of(isa.lanes());
            let mut packed = SCRATCH.take(window.len());
            let mut spread = SCRATCH.take(part.planes * blocks * lanes * length);
            spread_rows(conv, &window, part, dy, length, &mut spread);
            for first in (0..conv.c_in).step_by(CHANNEL_BLOCK) {
                let channels = CHANNEL_BLOCK.min(conv.c_in - first);
                let view = window.view(isa, x, part, first, channels, length, &mut packed);
                let taps = view.offsets.len();
                isa.run(Outer {
                    input: view.values,
                    plane_step: view.plane_step,
                    offsets: view.offsets,
                    dy: &spread,
                    planes: part.planes,
                    length,
                    sums: &mut sums[first * window.taps() * blocks * lanes..][..taps * blocks * lanes],
                });
            }
        }
    });

    // partial: [slot][input block][output block][tap][lane] -> dweight: [co][tap]
    dweight.par_chunks_mut(taps).enumerate().for_each(|(co, row)| {
        for (tap, value) in row.iter_mut().enumerate() {
            let block = CHANNEL_BLOCK * window.taps();
            let (first, inner) = (tap / block * block, tap % block);
            let width = block.min(taps - first);
            let at = first * blocks * lanes + (co / lanes * width + inner) * lanes + co % lanes;
            *value = partial.iter().skip(at).step_by(size).map(|&v| v as f64).sum::<f64>() as f32;
        }
    });
}

/// Copies the rows of `part` of `dy` to `spread`, `[z][channel][position]`, with zeros between rows.
fn spread_rows(conv: &Conv3d, window: &Window, part: &Part, dy: &[f32], length: usize, spread: &mut [f32]) {
    let [depth, height, width] = conv.output();
    let channels = spread.len() / (part.planes * length);
    for (i, to) in spread.chunks_exact_mut(length).enumerate() {
        let (z, co) = (i / channels, i % channels);
        if co >= conv.c_out {
            to.fill(0.0);
            continue;
        }
        let plane = ((part.batch * conv.c_out + co) * depth + part.z + z) * height;
        for (row, to) in to.chunks_mut(window.row).enumerate() {
            // Rounding up to whole vectors may start one more, empty row.
            let filled = if row < part.rows { width } else { 0 };
            to[..filled].copy_from_slice(&dy[(plane + part.y + row.min(part.rows - 1)) * width..][..filled]);
            to[filled..].fill(0.0);
        }
    }
}

/// `sums[output block][tap][channel] += sum over z, p of dy[z][channel][p] * input[z*plane_step + p + offset(tap)]`.
struct Outer<'a> {
    input: &'a [f32],
    plane_step: usize,
    offsets: &'a [usize],
    dy: &'a [f32],
    planes: usize,
    length: usize,
    sums: &'a mut [f32],
}

impl Kernel for Outer<'_> {
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

impl Outer<'_> {
    #[inline(always)]
    unsafe fn all<S: Simd, const C: usize>(self) {
        let taps = self.offsets.len();
        let blocks = self.dy.len() / (C * self.length * self.planes);
        let reach = self.offsets.iter().max().map_or(0, |most| most + self.length);
        let reach = reach + (self.planes - 1) * self.plane_step;
        assert!(self.length.is_multiple_of(S::LANES) && self.input.len() >= reach);
        assert!(self.dy.len() == self.planes * blocks * C * self.length);
        assert!(self.sums.len() == blocks * taps * C);
        for block in 0..blocks {
            for first in (0..taps).step_by(TAPS) {
                // Repeating the last tap fills an incomplete group; its sums are not used.
                let offset = |i: usize| self.offsets[(first + i).min(taps - 1)];
                let offsets = [offset(0), offset(1), offset(2)];
                let mut acc;
                // SAFETY: `length` is whole vectors, `input` reaches `length` past the largest offset in the last
                // plane and `dy` has C rows of `length` per block and plane (asserted above); the caller has S.
                unsafe {
                    acc = [[S::splat(0.0); TAPS]; C];
                    for z in 0..self.planes {
                        let dy = self.dy.as_ptr().add((z * blocks + block) * C * self.length);
                        let plane = self.input.as_ptr().add(z * self.plane_step);
                        let [x0, x1, x2] =
                            [plane.add(offsets[0]), plane.add(offsets[1]), plane.add(offsets[2])];
                        let mut p = 0;
                        while p < self.length {
                            let (v0, v1, v2) = (S::load(x0.add(p)), S::load(x1.add(p)), S::load(x2.add(p)));
                            for c in 0..C {
                                let d = S::load(dy.add(c * self.length + p));
                                acc[c][0] = S::fma(d, v0, acc[c][0]);
                                acc[c][1] = S::fma(d, v1, acc[c][1]);
                                acc[c][2] = S::fma(d, v2, acc[c][2]);
                            }
                            p += S::LANES;
                        }
                    }
                }
                for tap in first..taps.min(first + TAPS) {
                    let sums = &mut self.sums[(block * taps + tap) * C..][..C];
                    for c in 0..C {
                        // SAFETY: the caller has S's instructions.
                        sums[c] += unsafe { S::sum(acc[c][tap - first]) };
                    }
                }
            }
        }
    }
}
