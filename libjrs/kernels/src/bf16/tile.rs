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
pub(super) const TILES: usize = 6;

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

/// Sums of a register block: `[tile][block of channels][voxel][channel]`.
#[repr(C, align(64))]
pub(super) struct Sums(pub [f32; TILES * ROWS * 16]);

/// How many tiles of voxels by how many blocks of channels are in work together.
#[derive(Clone, Copy)]
pub(super) enum Strip {
    /// Six tiles, one block of 16 channels.
    SixByOne,
    /// Two tiles, two blocks.
    TwoByTwo,
}

impl Strip {
    pub fn of_blocks(blocks: usize) -> Self {
        if blocks == 1 { Self::SixByOne } else { Self::TwoByTwo }
    }

    /// Tiles and blocks.
    pub fn size(self) -> [usize; 2] {
        match self {
            Self::SixByOne => [6, 1],
            Self::TwoByTwo => [2, 2],
        }
    }

    /// Sums of products over all steps of `segments` (there is at least one step).
    ///
    /// # Safety
    /// At every offset from every base of the strip there are 16 readable voxels, `stride` apart, of 64 bytes; `weights` holds
    /// a tile per step and block, in the order of the segments. For [`Unit::Amx`] the tiles must be configured.
    pub unsafe fn product(self, unit: Unit, segments: &[Segment], weights: &[u16], sums: &mut Sums) {
        match unit {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: what the caller promises.
            Unit::Amx => unsafe {
                match self {
                    Self::SixByOne => super::amx::six_by_one(segments, weights, sums),
                    Self::TwoByTwo => super::amx::two_by_two(segments, weights, sums),
                }
            },
            // SAFETY: what the caller promises.
            _ => unsafe { self.emulated(segments, weights, sums) },
        }
    }

    /// # Safety
    /// As [`Strip::product`].
    unsafe fn emulated(self, segments: &[Segment], weights: &[u16], sums: &mut Sums) {
        let [tiles, blocks] = self.size();
        sums.0.fill(0.0);
        let mut weights = weights.chunks_exact(TILE);
        for segment in segments {
            // SAFETY: both ends of one table.
            let steps = unsafe { segment.last.offset_from(segment.first) } as usize;
            for step in 0..steps {
                // SAFETY: within the table.
                let offset = unsafe { *segment.first.add(step) };
                for block in 0..blocks {
                    let w = weights.next().expect("a tile per step and block");
                    for (tile, base) in segment.bases[..tiles].iter().enumerate() {
                        for row in 0..ROWS {
                            let at = base.wrapping_offset(offset).wrapping_add(row * segment.stride);
                            // SAFETY: 64 bytes of 2-byte values by the caller's promise.
                            let x = unsafe { &*at.cast::<[u16; 32]>() };
                            let sums = &mut sums.0[((tile * blocks + block) * ROWS + row) * 16..][..16];
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
