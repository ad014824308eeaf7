//! The product of tiles: the inner loop.

use super::filter::TILE;
use super::widen;

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
        if super::amx::permitted() {
            return Some(Unit::Amx);
        }
        None
    }
}

/// Voxels of a tile.
pub(super) const ROWS: usize = 16;
/// Most tiles of voxels in a register block.
pub(super) const TILES: usize = 4;

/// The steps of one input, as the loop reads them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Segment {
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
pub(super) struct Sums(pub [f32; TILES * ROWS * 16]);

/// Sums of products of four tiles of voxels by 16 output channels, over all steps of `segments` (there is at least one step).
///
/// # Safety
/// At every offset from every base there are 16 readable voxels, `stride` apart, of 64 bytes; `weights` holds a tile per step, in
/// the order of the segments. For [`Unit::Amx`] the tiles must be configured.
pub(super) unsafe fn product(unit: Unit, segments: &[Segment], weights: &[u16], sums: &mut Sums) {
    match unit {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: what the caller promises.
        Unit::Amx => unsafe { super::amx::product(segments, weights, sums) },
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

/// Runs `work` with the tiles ready.
pub(super) fn with_tiles<R>(unit: Unit, work: impl FnOnce() -> R) -> R {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        return super::amx::with_tiles(work);
    }
    assert_eq!(unit, Unit::Emulated, "no matrix unit here");
    work()
}
