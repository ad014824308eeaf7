//! Into Winograd's domain and back: the kernels around the products.

use super::{POINTS, Task, VECTORS};
use crate::conv3d::Epilogue;
use crate::simd::{Kernel, Simd};

/// Copies what a task needs of one input plane to `phases`: `[channel][y phase][x phase][row][column]`.
pub(super) struct PackPhases<'a> {
    pub task: Task<'a>,
    pub x: &'a [f32],
    /// Plane, counted from the first tap's.
    pub z: usize,
    pub phases: &'a mut [f32],
}

impl Kernel for PackPhases<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { task, x, z, phases } = self;
        let Task { conv, cut, batch, first, .. } = task;
        let [d, h, w] = conv.input;
        let z = conv.start[0] + z as isize;
        if z < 0 || z >= d as isize {
            phases.fill(0.0);
            return;
        }
        let top = conv.start[1] + 2 * (first / cut.row) as isize;
        // The rows of blocks that this task reads.
        let rows = ((first % cut.row + cut.chunk + cut.row) / cut.row + 1).min(cut.rows);
        let area = cut.rows * cut.row;
        for (ci, channel) in phases.chunks_exact_mut(4 * area).enumerate() {
            let plane = &x[((batch * conv.c_in + ci) * d + z as usize) * h * w..][..h * w];
            // Rows in the order they lie in memory.
            for i in 0..2 * rows {
                let (even, odd) = channel[i % 2 * 2 * area..][..2 * area].split_at_mut(area);
                let row = i / 2 * cut.row..(i / 2 + 1) * cut.row;
                let (even, odd) = (&mut even[row.clone()], &mut odd[row]);
                let y = top + i as isize;
                if y < 0 || y >= h as isize {
                    even.fill(0.0);
                    odd.fill(0.0);
                } else {
                    split(&plane[y as usize * w..][..w], conv.start[2], even, odd);
                }
            }
        }
    }
}

/// `even[i] = source[from + 2*i]` and `odd[i] = source[from + 2*i + 1]`, 0 outside.
#[inline(always)]
fn split(source: &[f32], from: isize, even: &mut [f32], odd: &mut [f32]) {
    // Up to one odd value of padding, then whole pairs, then what is left.
    let before = if from < 0 { from.unsigned_abs() } else { 0 };
    let first = before.div_ceil(2).min(even.len());
    let inside = &source[(from + 2 * first as isize).max(0) as usize..];
    even[..first].fill(0.0);
    odd[..first].fill(0.0);
    if before % 2 == 1 && first > 0 {
        odd[first - 1] = source[0];
    }
    let (even, odd) = (&mut even[first..], &mut odd[first..]);
    let (pairs, rest) = inside.as_chunks::<2>();
    let count = pairs.len().min(even.len());
    for ((even, odd), pair) in even.iter_mut().zip(odd.iter_mut()).zip(pairs) {
        (*even, *odd) = (pair[0], pair[1]);
    }
    even[count..].fill(0.0);
    odd[count..].fill(0.0);
    if let (Some(value), [last]) = (even.get_mut(pairs.len()), rest) {
        *value = *last;
    }
}

/// B' d B of one input plane: phases to 16 transformed planes.
pub(super) struct InputTransform<'a> {
    pub task: Task<'a>,
    pub phases: &'a [f32],
    /// `[point][register tile][plane of the ring][channel][position of the tile]`, from this plane on.
    pub plane: &'a mut [f32],
}

impl Kernel for InputTransform<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { task: Task { cut, first, .. }, phases, plane } = self;
        let first = first % cut.row; // position in the first packed row
        let area = cut.rows * cut.row;
        let channels = phases.len() / (4 * area);
        let (tile, block) = (VECTORS * S::LANES, 3 * channels * VECTORS * S::LANES);
        let step = 3 * channels * cut.chunk;
        assert!(cut.chunk.is_multiple_of(tile) && first + cut.chunk + cut.row < area);
        assert!(plane.len() >= POINTS * step - 2 * channels * tile);
        for ci in 0..channels {
            for p in (0..cut.chunk).step_by(S::LANES) {
                // SAFETY: reads `LANES` values from first + p + row + 1 at most, within a phase, and writes
                // within the 16 planes (both asserted above); the caller has S.
                unsafe {
                    let from = phases.as_ptr().add(ci * 4 * area + first + p);
                    let to = plane.as_mut_ptr().add(p / tile * block + ci * tile + p % tile);
                    // Rows of the 4x4 tile: even, odd, and the same one block below.
                    let rows = [from, from.add(2 * area), from.add(cut.row), from.add(2 * area + cut.row)];
                    for px in 0..4 {
                        let mut d = [S::splat(0.0); 4];
                        for y in 0..4 {
                            let (even, odd) = (rows[y], rows[y].add(area));
                            d[y] = match px {
                                0 => S::sub(S::load(even), S::load(even.add(1))),
                                1 => S::add(S::load(odd), S::load(even.add(1))),
                                2 => S::sub(S::load(even.add(1)), S::load(odd)),
                                _ => S::sub(S::load(odd), S::load(odd.add(1))),
                            };
                        }
                        S::store(to.add(px * step), S::sub(d[0], d[2]));
                        S::store(to.add((4 + px) * step), S::add(d[1], d[2]));
                        S::store(to.add((8 + px) * step), S::sub(d[2], d[1]));
                        S::store(to.add((12 + px) * step), S::sub(d[1], d[3]));
                    }
                }
            }
        }
    }
}

/// A' M A of one output channel: 16 products to the 2x2 outputs of each position.
pub(super) struct OutputTransform<'a> {
    /// `[register tile][output channel][point][position of the tile]`.
    pub products: &'a [f32],
    pub co: usize,
    /// Output channels in `products`.
    pub c_out: usize,
    pub bias: f32,
    /// `[y phase][x phase][position]`.
    pub outputs: &'a mut [f32],
}

impl Kernel for OutputTransform<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { products, co, c_out, bias, outputs } = self;
        let (chunk, tile) = (outputs.len() / 4, VECTORS * S::LANES);
        assert!(chunk.is_multiple_of(tile) && co < c_out && products.len() >= POINTS * c_out * chunk);
        for p in (0..chunk).step_by(S::LANES) {
            // SAFETY: within the tile's 16 rows of products and four rows of outputs (asserted above); the caller has S.
            unsafe {
                let from = products.as_ptr().add((p / tile * c_out + co) * POINTS * tile + p % tile);
                let mut columns = [[S::splat(0.0); 4]; 2];
                for px in 0..4 {
                    let m0 = S::load(from.add(px * tile));
                    let m1 = S::load(from.add((4 + px) * tile));
                    let m2 = S::load(from.add((8 + px) * tile));
                    let m3 = S::load(from.add((12 + px) * tile));
                    columns[0][px] = S::add(S::add(m0, m1), m2);
                    columns[1][px] = S::sub(S::sub(m1, m2), m3);
                }
                let to = outputs.as_mut_ptr().add(p);
                for y in 0..2 {
                    let [c0, c1, c2, c3] = columns[y];
                    let even = S::add(S::add(c0, c1), S::add(c2, S::splat(bias)));
                    let odd = S::sub(S::sub(c1, c2), S::sub(c3, S::splat(bias)));
                    S::store(to.add(2 * y * chunk), even);
                    S::store(to.add((2 * y + 1) * chunk), odd);
                }
            }
        }
    }
}

/// One row of outputs to memory: even and odd columns in turn.
pub(super) struct Interleave<'a> {
    pub even: &'a [f32],
    pub odd: &'a [f32],
    pub to: &'a mut [f32],
    pub epilogue: Epilogue<'a>,
    pub co: usize,
}

impl Kernel for Interleave<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { even, odd, to, epilogue, co } = self;
        match epilogue {
            Epilogue::None => interleave(even, odd, to, |v| v),
            Epilogue::LeakyNorm { slope, scale, shift } => {
                let (scale, shift) = (scale[co], shift[co]);
                interleave(even, odd, to, |v| scale * (if v < 0.0 { slope * v } else { v }) + shift);
            }
        }
    }
}

#[inline(always)]
fn interleave(even: &[f32], odd: &[f32], to: &mut [f32], epilogue: impl Fn(f32) -> f32) {
    let (pairs, last) = to.as_chunks_mut::<2>();
    for ((pair, &even), &odd) in pairs.iter_mut().zip(even).zip(odd) {
        *pair = [epilogue(even), epilogue(odd)];
    }
    if let [last] = last {
        *last = epilogue(even[pairs.len()]);
    }
}
