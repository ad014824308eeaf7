//! Products of tiles on a processor's matrix unit for bf16: the inner loops of [`crate::bf16`] and of
//! [`crate::conv3d`]'s matrix path.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;

use crate::bf16::widen;

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

/// Values of a tile of weights.
pub(crate) const TILE: usize = 16 * 32;
/// Voxels of a tile.
pub(crate) const ROWS: usize = 16;
/// Most tiles of voxels in a register block.
pub(crate) const TILES: usize = 4;

/// The steps of one input, as the loop reads them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// Byte offsets of the K steps from a tile's base, `first..last`.
    pub first: *const isize,
    pub last: *const isize,
    /// Bytes from one voxel of a tile to the next.
    pub stride: usize,
    /// First voxel of each tile.
    pub bases: [*const u8; TILES],
}

/// Sums of a register block: `[tile][voxel][channel]`.
#[repr(C, align(64))]
pub(crate) struct Sums(pub [f32; TILES * ROWS * 16]);

/// Sums of products of four tiles of voxels by 16 output channels, over all steps of `segments` (there is at least one step).
///
/// # Safety
/// At every offset from every base there are 16 readable voxels, `stride` apart, of 64 bytes; `weights` holds a tile per step, in
/// the order of the segments. For [`Unit::Amx`] the tiles must be configured.
pub(crate) unsafe fn product(unit: Unit, segments: &[Segment], weights: &[u16], sums: &mut Sums) {
    match unit {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: what the caller promises.
        Unit::Amx => unsafe { amx::product(segments, weights, sums) },
        // SAFETY: what the caller promises.
        _ => unsafe { emulated(segments, weights, sums) },
    }
}

/// # Safety
/// As [`product`].
unsafe fn emulated(segments: &[Segment], weights: &[u16], sums: &mut Sums) {
    sums.0.fill(0.0);
    let mut weights = weights.chunks_exact(TILE);
    for segment in segments {
        // SAFETY: both ends of one table.
        let steps = unsafe { segment.last.offset_from(segment.first) } as usize;
        for step in 0..steps {
            // SAFETY: within the table.
            let offset = unsafe { *segment.first.add(step) };
            let w = weights.next().expect("a tile per step");
            for (base, sums) in segment.bases.iter().zip(sums.0.chunks_exact_mut(ROWS * 16)) {
                for (row, sums) in sums.chunks_exact_mut(16).enumerate() {
                    let at = base.wrapping_offset(offset).wrapping_add(row * segment.stride);
                    // SAFETY: 64 bytes of 2-byte values by the caller's promise.
                    let x = unsafe { &*at.cast::<[u16; 32]>() };
                    for (k, &x) in x.iter().enumerate() {
                        for (co, sum) in sums.iter_mut().enumerate() {
                            *sum += widen(x) * widen(w[k / 2 * 32 + 2 * co + k % 2]);
                        }
                    }
                }
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

/// Runs `work` with the tiles ready.
pub(crate) fn with_tiles<R>(unit: Unit, work: impl FnOnce() -> R) -> R {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        return amx::with_tiles(work);
    }
    assert_eq!(unit, Unit::Emulated, "no matrix unit here");
    work()
}
