//! Intel's Advanced Matrix Extensions. The intrinsics are unstable, so the loops are assembly.

use std::arch::asm;
use std::sync::OnceLock;

use super::{Block, Pairs, Segment, Shape, Tile};
use crate::bf16::Format;

/// Whether this process may use the tiles. Linux wants to be asked, because a thread's state grows by 8 KB.
pub(super) fn permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| detected() && ask())
}

/// The processor has AMX with bf16, and the vector instructions that go with it here.
fn detected() -> bool {
    // Leaf 7: bit 22 is AMX-BF16, bit 24 AMX-TILE.
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    let tiles = leaf.edx >> 22 & 1 == 1 && leaf.edx >> 24 & 1 == 1;
    tiles
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

fn ask() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: asks for a permission; changes nothing if it is refused.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// The tiles' shapes, as the instruction reads them.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// Tiles of weights, which always have 16 rows.
const WEIGHTS: std::ops::RangeInclusive<usize> = 4..=5;

/// Runs `work` with all eight tiles at rows of 64 bytes, and gives them back, panic or not.
pub(super) fn with_tiles<R>(rows: usize, work: impl FnOnce() -> R) -> R {
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            // SAFETY: only made where the tiles are permitted.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
        }
    }
    assert!(permitted(), "no AMX here");
    let mut shapes =
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
    shapes.bytes_per_row[..8].fill(64);
    shapes.rows[..8].fill(rows as u8);
    shapes.rows[WEIGHTS].fill(16);
    // SAFETY: the tiles are permitted; the 64 bytes are a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly, preserves_flags)) };
    let _release = Release;
    work()
}

/// The inner loop of a convolution. The tiles keep what they hold between these statements: nothing else uses them.
///
/// # Safety
/// As [`Block::run`].
#[inline(always)]
pub(super) unsafe fn run(block: Block<'_>, beside: impl FnMut()) {
    // SAFETY: the tiles are configured.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nostack, nomem, preserves_flags),
        )
    };
    // SAFETY: what the caller promises.
    unsafe {
        match block.shape {
            Shape::FourByOne => steps::<1>(&block, beside, |s, offset, w| four_by_one(s, offset, w)),
            Shape::TwoByTwo(Format::One) => {
                steps::<2>(&block, beside, |s, offset, w| two_by_two(s, offset, w))
            }
            Shape::TwoByTwo(Format::Two) => {
                steps::<4>(&block, beside, |s, offset, w| two_by_two_of_two(s, offset, w))
            }
        }
    }
    // SAFETY: writes four tiles of at most 1 KB, which is the size of `sums`.
    unsafe {
        asm!(
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2",
            "tilestored [{sums} + {line}*1 + 3072], tmm3",
            sums = in(reg) block.sums.0.as_mut_ptr(),
            line = in(reg) 64usize,
            options(nostack, preserves_flags),
        )
    }
}

/// Runs `step` with so many tiles of weights, and then `beside`, for all steps.
///
/// # Safety
/// As [`Block::run`].
#[inline(always)]
unsafe fn steps<const TILES: usize>(
    block: &Block<'_>,
    mut beside: impl FnMut(),
    step: impl Fn(&Segment, isize, *const Tile),
) {
    let mut weights = block.weights.as_ptr();
    for segment in block.segments {
        // SAFETY: a table of offsets by the caller's promise.
        for &offset in unsafe { segment.offsets() } {
            step(segment, offset, weights);
            weights = weights.wrapping_add(TILES);
            beside();
        }
    }
}

/// Instructions of a K step, which read a [`Segment`]: the first voxels of the tiles, without the step's offset, are at `{segment} + 32`,
/// `+ 40` and so on, the way to a low term at `{segment} + 24`.
macro_rules! step {
    ($segment:ident, $offset:ident, $weights:ident, $($instruction:literal),* $(,)?) => {
        asm!(
            "mov {stride}, [{segment} + 16]",
            $($instruction,)*
            segment = in(reg) $segment,
            offset = in(reg) $offset,
            weights = in(reg) $weights,
            line = in(reg) 64usize,
            stride = out(reg) _,
            x = out(reg) _,
            y = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        )
    };
}

/// # Safety
/// There are 16 rows of 64 bytes, the segment's stride apart, at the offset from each of its bases, and one tile of weights.
#[inline(always)]
unsafe fn four_by_one(segment: &Segment, offset: isize, weights: *const Tile) {
    // SAFETY: reads what the caller has.
    unsafe {
        step!(
            segment,
            offset,
            weights,
            "tileloadd tmm4, [{weights} + {line}*1]",
            "mov {x}, [{segment} + 32]",
            "add {x}, {offset}",
            "tileloadd tmm6, [{x} + {stride}*1]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "mov {y}, [{segment} + 40]",
            "add {y}, {offset}",
            "tileloadd tmm7, [{y} + {stride}*1]",
            "tdpbf16ps tmm1, tmm7, tmm4",
            "mov {x}, [{segment} + 48]",
            "add {x}, {offset}",
            "tileloadd tmm6, [{x} + {stride}*1]",
            "tdpbf16ps tmm2, tmm6, tmm4",
            "mov {y}, [{segment} + 56]",
            "add {y}, {offset}",
            "tileloadd tmm7, [{y} + {stride}*1]",
            "tdpbf16ps tmm3, tmm7, tmm4",
        )
    }
}

/// # Safety
/// There are 16 rows of 64 bytes, the segment's stride apart, at the offset from its first two bases, and two tiles of weights.
#[inline(always)]
unsafe fn two_by_two(segment: &Segment, offset: isize, weights: *const Tile) {
    // SAFETY: reads what the caller has.
    unsafe {
        step!(
            segment,
            offset,
            weights,
            "tileloadd tmm4, [{weights} + {line}*1]",
            "mov {x}, [{segment} + 32]",
            "add {x}, {offset}",
            "tileloadd tmm6, [{x} + {stride}*1]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "tileloadd tmm5, [{weights} + {line}*1 + 1024]",
            "tdpbf16ps tmm1, tmm6, tmm5",
            "mov {y}, [{segment} + 40]",
            "add {y}, {offset}",
            "tileloadd tmm7, [{y} + {stride}*1]",
            "tdpbf16ps tmm2, tmm7, tmm4",
            "tdpbf16ps tmm3, tmm7, tmm5",
        )
    }
}

/// Low voxels by high weights, high by high, high by low. Between two products only one side is loaded anew.
///
/// # Safety
/// As [`two_by_two`], also the segment's `low` behind there, and four tiles of weights.
#[inline(always)]
unsafe fn two_by_two_of_two(segment: &Segment, offset: isize, weights: *const Tile) {
    // SAFETY: reads what the caller has.
    unsafe {
        step!(
            segment,
            offset,
            weights,
            "mov {x}, {offset}",
            "mov {y}, {offset}",
            "add {x}, [{segment} + 32]",
            "add {y}, [{segment} + 40]",
            "add {x}, [{segment} + 24]",
            "add {y}, [{segment} + 24]",
            "tileloadd tmm4, [{weights} + {line}*1]",
            "tileloadd tmm6, [{x} + {stride}*1]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "tileloadd tmm5, [{weights} + {line}*1 + 1024]",
            "tdpbf16ps tmm1, tmm6, tmm5",
            "tileloadd tmm7, [{y} + {stride}*1]",
            "tdpbf16ps tmm2, tmm7, tmm4",
            "tdpbf16ps tmm3, tmm7, tmm5",
            "sub {x}, [{segment} + 24]",
            "sub {y}, [{segment} + 24]",
            "tileloadd tmm6, [{x} + {stride}*1]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "tdpbf16ps tmm1, tmm6, tmm5",
            "tileloadd tmm7, [{y} + {stride}*1]",
            "tdpbf16ps tmm2, tmm7, tmm4",
            "tdpbf16ps tmm3, tmm7, tmm5",
            "tileloadd tmm4, [{weights} + {line}*1 + 2048]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "tileloadd tmm5, [{weights} + {line}*1 + 3072]",
            "tdpbf16ps tmm1, tmm6, tmm5",
            "tdpbf16ps tmm2, tmm7, tmm4",
            "tdpbf16ps tmm3, tmm7, tmm5",
        )
    }
}

/// The inner loop of a weight gradient.
///
/// # Safety
/// As [`super::outer`].
pub(super) unsafe fn outer(pairs: &Pairs, offsets: &[isize], sums: &mut [[f32; 256]; 3]) {
    assert!(!offsets.is_empty());
    let offsets = offsets.as_ptr_range();
    // SAFETY: reads 2 KB of `left` and three times 16 rows of 64 bytes of `right` per offset, valid by the caller's promise; writes
    // three tiles of 1 KB, which is the size of `sums`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "2:",
            "mov {right}, [{next}]",
            "add {right}, {base}",
            "tileloadd tmm3, [{left} + {line}*1]",
            "tileloadd tmm5, [{right} + {stride}*1]",
            "tdpbf16ps tmm0, tmm3, tmm5",
            "tileloadd tmm6, [{right} + {stride}*1 + 64]",
            "tdpbf16ps tmm1, tmm3, tmm6",
            "tileloadd tmm7, [{right} + {stride}*1 + 128]",
            "tdpbf16ps tmm2, tmm3, tmm7",
            "tileloadd tmm4, [{left} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm4, tmm7",
            "add {left}, 2048",
            "add {next}, 8",
            "cmp {next}, {last}",
            "jne 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2",
            next = inout(reg) offsets.start => _,
            last = in(reg) offsets.end,
            left = inout(reg) pairs.left => _,
            base = in(reg) pairs.right,
            stride = in(reg) pairs.stride,
            sums = in(reg) sums.as_mut_ptr(),
            line = in(reg) 64usize,
            right = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }
}
