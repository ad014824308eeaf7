//! Intel's Advanced Matrix Extensions. The intrinsics are unstable, so the loops are assembly.

use std::arch::asm;
use std::sync::OnceLock;

use super::{Pairs, Segment, Sums, Tile};
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

/// The inner loop of a convolution: `$step`, the instructions of a K step, over all segments. The first voxels of the tiles, without the
/// step's offset, are at `{segment} + 32`, `+ 40` and so on, and the way to a low term at `{segment} + 24`.
macro_rules! over_steps {
    ($segments:ident, $weights:ident, $sums:ident, $($step:literal),* $(,)?) => {{
        let segments = $segments.as_ptr_range();
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:", // segment
            "mov {next}, [{segment}]",
            "mov {last}, [{segment} + 8]",
            "mov {stride}, [{segment} + 16]",
            "3:", // K step
            "mov {offset}, [{next}]",
            $($step,)*
            "add {next}, 8",
            "cmp {next}, {last}",
            "jne 3b",
            "add {segment}, {size}",
            "cmp {segment}, {end}",
            "jne 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2",
            "tilestored [{sums} + {line}*1 + 3072], tmm3",
            segment = inout(reg) segments.start => _,
            end = in(reg) segments.end,
            weights = inout(reg) $weights.as_ptr() => _,
            sums = in(reg) $sums.0.as_mut_ptr(),
            line = in(reg) 64usize,
            next = out(reg) _,
            last = out(reg) _,
            stride = out(reg) _,
            offset = out(reg) _,
            x = out(reg) _,
            y = out(reg) _,
            size = const size_of::<Segment>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }};
}

/// The inner loop of a convolution in [`Format::One`].
///
/// # Safety
/// As [`super::block`].
unsafe fn block_of_one(segments: &[Segment], weights: &[Tile], sums: &mut Sums) {
    // SAFETY: reads up to 16 rows of 64 bytes at every offset from four bases, and a tile of weights per step, valid by the caller's
    // promise; writes four tiles of at most 1 KB, which is the size of `sums`.
    unsafe {
        over_steps!(
            segments,
            weights,
            sums,
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
            "add {weights}, 1024",
        )
    }
}

/// The inner loop of a convolution in [`Format::Two`]: low voxels by high weights, high by high, high by low. Between two of them only
/// one side is loaded anew.
///
/// # Safety
/// As [`super::block`].
unsafe fn block_of_two(segments: &[Segment], weights: &[Tile], sums: &mut Sums) {
    // SAFETY: reads up to 16 rows of 64 bytes at every offset from two bases and `low` behind them, and the step's four tiles of
    // weights, valid by the caller's promise; writes four tiles of at most 1 KB, which is the size of `sums`.
    unsafe {
        over_steps!(
            segments,
            weights,
            sums,
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
            "add {weights}, 4096",
        )
    }
}

/// # Safety
/// As [`super::block`].
pub(super) unsafe fn block(format: Format, segments: &[Segment], weights: &[Tile], sums: &mut Sums) {
    assert!(segments.iter().all(|segment| segment.steps() > 0) && !segments.is_empty());
    match format {
        // SAFETY: what the caller promises.
        Format::One => unsafe { block_of_one(segments, weights, sums) },
        // SAFETY: what the caller promises.
        Format::Two => unsafe { block_of_two(segments, weights, sums) },
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
