//! Products of tiles on a processor's matrix unit for bf16: the inner loops of [`crate::bf16`] and of
//! [`crate::conv3d`]'s matrix path.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;

use crate::bf16::{Format, widen};

/// What multiplies tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Plain Rust, for tests: the same numbers up to the rounding of sums.
    Emulated,
    /// Intel's Advanced Matrix Extensions, with bf16.
    Amx,
}

impl Unit {
    /// The matrix unit of this processor, if it has one and the system lets this process use it. The first call asks the
    /// system, for the whole process.
    pub fn hardware() -> Option<Unit> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if amx::permitted() {
            return Some(Unit::Amx);
        }
        None
    }
}

/// A tile of weights: 16 pairs of inputs by 16 outputs, `[pair][output][input of the pair]`. On cache lines, because the unit reads
/// it line by line: a tile that begins elsewhere crosses one with every row.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile(pub [u16; 16 * 32]);

impl Tile {
    pub const ZERO: Self = Self([0; 16 * 32]);
}

/// Most voxels of a tile.
pub(crate) const ROWS: usize = 16;
/// Most tiles of voxels in a register block.
pub(crate) const TILES: usize = 4;

/// Voxels of a tile where as few tiles as possible share a row evenly: the unit is faster with fewer.
pub(crate) fn even_rows(columns: usize) -> usize {
    columns.div_ceil(columns.div_ceil(ROWS))
}

/// The steps of one input, as the loop reads them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// Byte offsets of the K steps from a tile's base, `first..last`.
    pub first: *const isize,
    pub last: *const isize,
    /// Bytes from one voxel of a tile to the next.
    pub stride: usize,
    /// Bytes from a high term to its low one, where values have two.
    pub low: usize,
    /// First voxel of each tile.
    pub bases: [*const u8; TILES],
}

/// Sums of a register block: `[tile][16 output channels][voxel][channel]`.
#[repr(C, align(64))]
pub(crate) struct Sums(pub [f32; TILES * ROWS * 16]);

impl Sums {
    pub const ZERO: Self = Self([0.0; TILES * ROWS * 16]);

    /// 16 channels of a voxel in [`Shape::TwoByTwo`].
    #[inline(always)]
    pub fn channels(&self, tile: usize, block: usize, voxel: usize) -> &[f32; 16] {
        &self.0.as_chunks().0[(2 * tile + block) * ROWS + voxel]
    }
}

/// A register block: tiles of voxels, and how often 16 output channels. Each has four tiles of sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Four tiles of voxels by 16 channels, one term.
    FourByOne,
    /// Two tiles of voxels by 32 channels: results in whole cache lines, and both terms in registers meet more than once.
    TwoByTwo(Format),
}

impl Shape {
    /// Tiles of voxels.
    pub fn tiles(self) -> usize {
        TILES / self.blocks()
    }

    /// Times 16 output channels.
    pub fn blocks(self) -> usize {
        match self {
            Shape::FourByOne => 1,
            Shape::TwoByTwo(_) => 2,
        }
    }

    fn terms(self) -> usize {
        match self {
            Shape::FourByOne => 1,
            Shape::TwoByTwo(format) => format.terms(),
        }
    }
}

/// The products of a register block.
pub(crate) struct Block<'a> {
    pub shape: Shape,
    /// Where it reads; there is at least one step.
    pub segments: &'a [Segment],
    /// The tiles of every step, in the order of the segments: `[term][16 output channels]`.
    pub weights: &'a [Tile],
    /// Where the sums of the products go.
    pub sums: &'a mut Sums,
}

impl Block<'_> {
    /// K steps.
    pub fn steps(&self) -> usize {
        self.segments.iter().map(Segment::steps).sum()
    }

    /// Adds up the products of all steps; with two terms all but that of both low terms. `beside` runs once for every step, while the unit
    /// multiplies.
    ///
    /// # Safety
    /// At every offset from the base of every tile of voxels, and where there are two terms `low` behind it, there are 16 readable voxels,
    /// `stride` apart, of 64 bytes. For [`Unit::Amx`] the tiles must be configured, and `beside` leaves them alone.
    ///
    /// # Panics
    /// If the weights are not those of the steps.
    #[inline(always)]
    pub unsafe fn run(self, unit: Unit, beside: impl FnMut()) {
        let Self { shape, segments, weights, .. } = &self;
        let tiles = shape.terms() * shape.blocks() * self.steps();
        assert!(weights.len() == tiles && !segments.is_empty(), "tiles of weights");
        match unit {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: what the caller promises.
            Unit::Amx => unsafe { amx::run(self, beside) },
            // SAFETY: what the caller promises.
            _ => unsafe { self.emulate(beside) },
        }
    }

    /// # Safety
    /// As [`Block::run`].
    unsafe fn emulate(self, mut beside: impl FnMut()) {
        self.sums.0.fill(0.0);
        let (blocks, terms) = (self.shape.blocks(), self.shape.terms());
        let mut weights = self.weights.chunks_exact(terms * blocks);
        for segment in self.segments {
            // SAFETY: the caller's promise.
            for (&offset, weights) in unsafe { segment.offsets() }.iter().zip(&mut weights) {
                for (term, weight_term) in [(1, 0), (0, 0), (0, 1)] {
                    if term.max(weight_term) == terms {
                        continue;
                    }
                    for (i, sums) in self.sums.0.as_chunks_mut().0.iter_mut().enumerate() {
                        let base = segment.bases[i / blocks];
                        let at = base.wrapping_offset(offset).wrapping_add(term * segment.low);
                        let weights = &weights[blocks * weight_term + i % blocks];
                        // SAFETY: the caller's promise.
                        unsafe { add_products(at, segment.stride, weights, sums) };
                    }
                }
                beside();
            }
        }
    }
}

impl Segment {
    fn steps(&self) -> usize {
        (self.last.addr() - self.first.addr()) / size_of::<isize>()
    }

    /// The table of offsets.
    ///
    /// # Safety
    /// `first..last` is one.
    unsafe fn offsets(&self) -> &[isize] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.first, self.steps()) }
    }
}

/// Adds a tile of voxels times one of weights.
///
/// # Safety
/// There are 16 readable voxels, `stride` apart, of 64 bytes.
unsafe fn add_products(voxels: *const u8, stride: usize, weights: &Tile, sums: &mut [f32; ROWS * 16]) {
    for (row, sums) in sums.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // SAFETY: 64 bytes of 2-byte values by the caller's promise.
        let x = unsafe { &*voxels.wrapping_add(row * stride).cast::<[u16; 32]>() };
        for (k, &x) in x.iter().enumerate() {
            for (co, sum) in sums.iter_mut().enumerate() {
                *sum += widen(x) * widen(weights.0[k / 2 * 32 + 2 * co + k % 2]);
            }
        }
    }
}

/// Left and right sides of [`outer`], both of 32-bit pairs of bf16.
pub(crate) struct Pairs {
    /// Per offset two tiles of 16 rows by 16 pairs, one after the other.
    pub left: *const u8,
    /// Rows of 16 pairs (64 bytes).
    pub right: *const u8,
    /// Bytes from one row of a right tile to the next.
    pub stride: usize,
}

/// `sums[t] = sum over offsets i of (left[2i] + left[2i + 1]) * right_t[i]`, where the three right tiles of an offset begin there, 64 bytes
/// further, and 128.
///
/// # Safety
/// `left` holds two tiles per offset; at every offset from `right` there are 16 readable rows, `stride` apart, of 192 bytes. For
/// [`Unit::Amx`] the tiles must be configured.
pub(crate) unsafe fn outer(unit: Unit, pairs: &Pairs, offsets: &[isize], sums: &mut [[f32; 256]; 3]) {
    match unit {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: what the caller promises.
        Unit::Amx => unsafe { amx::outer(pairs, offsets, sums) },
        // SAFETY: what the caller promises.
        _ => unsafe { emulated_outer(pairs, offsets, sums) },
    }
}

/// # Safety
/// As [`outer`].
unsafe fn emulated_outer(pairs: &Pairs, offsets: &[isize], sums: &mut [[f32; 256]; 3]) {
    *sums = [[0.0; 256]; 3];
    for (i, &offset) in offsets.iter().enumerate() {
        for (t, sums) in sums.iter_mut().enumerate() {
            for (half, k) in [0, 1].into_iter().flat_map(|half| (0..16).map(move |k| (half, k))) {
                let at = pairs.right.wrapping_offset(offset).wrapping_add(64 * t + k * pairs.stride);
                // SAFETY: 64 bytes by the caller's promise.
                let right = unsafe { &*at.cast::<[[u16; 2]; 16]>() };
                for m in 0..16 {
                    // SAFETY: two tiles of 1 KB per offset by the caller's promise.
                    let left =
                        unsafe { *pairs.left.cast::<[u16; 2]>().add((2 * i + half) * 256 + 16 * m + k) };
                    for n in 0..16 {
                        let products = [0, 1].map(|j| widen(left[j]) * widen(right[n][j]));
                        sums[16 * m + n] += products[0] + products[1];
                    }
                }
            }
        }
    }
}

/// Runs `work` with the tiles ready, those of voxels and sums with `rows` voxels.
pub(crate) fn with_tiles<R>(unit: Unit, rows: usize, work: impl FnOnce() -> R) -> R {
    assert!((1..=ROWS).contains(&rows), "{rows} voxels in a tile");
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        return amx::with_tiles(rows, work);
    }
    assert_eq!(unit, Unit::Emulated, "no matrix unit here");
    work()
}
