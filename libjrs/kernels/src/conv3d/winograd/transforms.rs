//! Into Winograd's domain and back: the kernels around the products.

use super::{Task, VECTORS};
use crate::simd::MOST_LANES;
use crate::simd::{Kernel, Simd};
use crate::winograd::{BLOCK, POINTS, SPAN, forward, inverse};

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
        let Task { conv, cut, batch, .. } = task;
        let [d, h, w] = conv.input;
        let Some((z, [top, end])) = task.rows(z) else {
            phases.fill(0.0);
            return;
        };
        let area = cut.area();
        for (ci, channel) in phases.chunks_exact_mut(BLOCK * BLOCK * area).enumerate() {
            let plane = &x[((batch * conv.c_in + ci) * d + z) * h * w..][..h * w];
            for i in 0..(end - top) as usize {
                let rows = &mut channel[i % BLOCK * BLOCK * area + i / BLOCK * cut.row..];
                let y = top + i as isize;
                if y < 0 || y >= h as isize {
                    (0..BLOCK).for_each(|phase| rows[phase * area..][..cut.row].fill(0.0));
                } else {
                    // SAFETY: the caller has S.
                    unsafe { deal::<S>(&plane[y as usize * w..][..w], conv.start[2], rows, area, cut.row) }
                }
            }
        }
    }
}

/// `to[phase * area + i] = source[from + 4*i + phase]` for `i < row`, 0 outside; up to a vector behind that is overwritten.
///
/// # Safety
/// The processor must have `S`'s instructions.
#[inline(always)]
unsafe fn deal<S: Simd>(source: &[f32], from: isize, to: &mut [f32], area: usize, row: usize) {
    assert!(to.len() >= (BLOCK - 1) * area + row.next_multiple_of(S::LANES));
    for i in (0..row).step_by(S::LANES) {
        let at = from + (BLOCK * i) as isize;
        // At the ends of the source the values that are there, among zeros.
        let mut padded = [0.0; BLOCK * MOST_LANES];
        let values = match usize::try_from(at) {
            Ok(at) if at + BLOCK * S::LANES <= source.len() => &source[at..][..BLOCK * S::LANES],
            _ => {
                let [start, end] =
                    [at, at + (BLOCK * S::LANES) as isize].map(|i| i.clamp(0, source.len() as isize));
                let inside = &source[start as usize..end as usize];
                padded[at.min(0).unsigned_abs()..][..inside.len()].copy_from_slice(inside);
                &padded[..BLOCK * S::LANES]
            }
        };
        // SAFETY: as many values as the instructions read, and room in each phase; the caller has S.
        unsafe {
            let vectors = S::deal(values.as_ptr());
            for phase in 0..BLOCK {
                S::store(to.as_mut_ptr().add(phase * area + i), vectors[phase]);
            }
        }
    }
}

/// B' d B of one input plane: phases to 36 transformed planes.
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
        let area = cut.area();
        let channels = phases.len() / (BLOCK * BLOCK * area);
        let (tile, block) = (VECTORS * S::LANES, 3 * channels * VECTORS * S::LANES);
        let step = 3 * channels * cut.chunk;
        assert!(cut.chunk.is_multiple_of(tile) && first + cut.chunk + cut.row < area);
        assert!(plane.len() >= POINTS * step - 2 * channels * tile);
        for ci in 0..channels {
            for p in (0..cut.chunk).step_by(S::LANES) {
                // SAFETY: reads `LANES` values from first + p + row + 1 at most, within a phase, and writes
                // within the 36 planes (both asserted above); the caller has S.
                unsafe {
                    let from = phases.as_ptr().add(ci * BLOCK * BLOCK * area + first + p);
                    let to = plane.as_mut_ptr().add(p / tile * block + ci * tile + p % tile);
                    let mut rows = [[S::splat(0.0); SPAN]; SPAN];
                    for y in 0..SPAN {
                        let row = from.add(y % BLOCK * BLOCK * area + y / BLOCK * cut.row);
                        rows[y] = forward::<S>([
                            S::load(row),
                            S::load(row.add(area)),
                            S::load(row.add(2 * area)),
                            S::load(row.add(3 * area)),
                            S::load(row.add(1)),
                            S::load(row.add(area + 1)),
                        ]);
                    }
                    for px in 0..SPAN {
                        let column =
                            [rows[0][px], rows[1][px], rows[2][px], rows[3][px], rows[4][px], rows[5][px]];
                        let column = forward::<S>(column);
                        for py in 0..SPAN {
                            S::store(to.add((py * SPAN + px) * step), column[py]);
                        }
                    }
                }
            }
        }
    }
}

/// A' M A of one output channel: 36 products to the 4x4 outputs of each position.
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
        let (chunk, tile) = (outputs.len() / (BLOCK * BLOCK), VECTORS * S::LANES);
        assert!(chunk.is_multiple_of(tile) && co < c_out && products.len() >= POINTS * c_out * chunk);
        for p in (0..chunk).step_by(S::LANES) {
            // SAFETY: within the tile's 36 rows of products and 16 rows of outputs (asserted above); the caller has S.
            unsafe {
                let from = products.as_ptr().add((p / tile * c_out + co) * POINTS * tile + p % tile);
                let to = outputs.as_mut_ptr().add(p);
                let mut columns = [[S::splat(0.0); BLOCK]; SPAN];
                for px in 0..SPAN {
                    columns[px] = inverse::<S>([
                        S::load(from.add(px * tile)),
                        S::load(from.add((SPAN + px) * tile)),
                        S::load(from.add((2 * SPAN + px) * tile)),
                        S::load(from.add((3 * SPAN + px) * tile)),
                        S::load(from.add((4 * SPAN + px) * tile)),
                        S::load(from.add((5 * SPAN + px) * tile)),
                    ]);
                }
                for y in 0..BLOCK {
                    let [c0, c1, c2, c3, c4, c5] = columns;
                    let row = inverse::<S>([c0[y], c1[y], c2[y], c3[y], c4[y], c5[y]]);
                    for x in 0..BLOCK {
                        let value = S::add(row[x], S::splat(bias));
                        S::store(to.add((y * BLOCK + x) * chunk), value);
                    }
                }
            }
        }
    }
}

/// One row of outputs to memory: the four phases of the columns in turn.
pub(super) struct Interleave<'a> {
    pub columns: [&'a [f32]; BLOCK],
    pub to: &'a mut [f32],
}

impl Kernel for Interleave<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { columns: [c0, c1, c2, c3], to } = self;
        let whole = to.len() / (BLOCK * S::LANES) * S::LANES;
        assert!([c0, c1, c2, c3].iter().all(|column| column.len() >= to.len().div_ceil(BLOCK)));
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: i + LANES <= whole values of each column and 4 * whole of `to` (asserted above); the caller has S.
            unsafe {
                let values = [c0, c1, c2, c3];
                let mut vectors = [S::splat(0.0); BLOCK];
                for k in 0..BLOCK {
                    vectors[k] = S::load(values[k].as_ptr().add(i));
                }
                S::interleave(to.as_mut_ptr().add(BLOCK * i), vectors);
            }
        }
        for (i, value) in to.iter_mut().enumerate().skip(BLOCK * whole) {
            *value = [c0, c1, c2, c3][i % BLOCK][i / BLOCK];
        }
    }
}
