//! Intel's Advanced Matrix Extensions. The intrinsics are unstable, so the loops are assembly.

use std::arch::asm;
use std::sync::OnceLock;

use super::convolve::{Head, Lanes};
use super::tile::{ROWS, Segment, Sums};

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

/// Runs `work` with all eight tiles at 16 rows of 64 bytes, and gives them back, panic or not.
pub(super) fn with_tiles<R>(work: impl FnOnce() -> R) -> R {
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
    shapes.rows[..8].fill(16);
    // SAFETY: the tiles are permitted; the 64 bytes are a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, readonly, preserves_flags)) };
    let _release = Release;
    work()
}

/// [`super::convolve`]'s way from sums to the next layer's voxels.
///
/// # Safety
/// The processor must have AVX-512 with bf16. `high`, and `low` if there is one, have room for 16 values at each of `count` places,
/// `stride` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn store_voxels(
    sums: &[f32; ROWS * 16],
    act: &Lanes<'_>,
    count: usize,
    high: &mut [u16],
    mut low: Option<&mut [u16]>,
    stride: usize,
) {
    use std::arch::x86_64::*;
    // SAFETY: loads of 16 values from arrays of 16; the stores are inside `to` by the caller's promise.
    unsafe {
        let (bias, slope) = (_mm512_loadu_ps(act.bias.as_ptr()), _mm512_set1_ps(act.slope));
        let (scale, shift) = (_mm512_loadu_ps(act.scale.as_ptr()), _mm512_loadu_ps(act.shift.as_ptr()));
        for (row, voxel) in sums.as_chunks::<16>().0.iter().enumerate().take(count) {
            let value = _mm512_add_ps(_mm512_loadu_ps(voxel.as_ptr()), bias);
            let active = _mm512_max_ps(value, _mm512_mul_ps(slope, value));
            let value = _mm512_fmadd_ps(scale, active, shift);
            let rounded = _mm512_cvtneps_pbh(value);
            high.as_mut_ptr().add(row * stride).cast::<__m256bh>().write_unaligned(rounded);
            if let Some(low) = &mut low {
                let bits = _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(rounded));
                let left = _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)));
                low.as_mut_ptr()
                    .add(row * stride)
                    .cast::<__m256bh>()
                    .write_unaligned(_mm512_cvtneps_pbh(left));
            }
        }
    }
}

/// The head of [`super::convolve`] on a tile's voxels.
///
/// # Safety
/// The processor must have AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn components(sums: &[f32; ROWS * 16], act: &Lanes<'_>, head: &Head) -> [[f32; ROWS]; 3] {
    use std::arch::x86_64::*;
    let mut to = [[0.0; ROWS]; 3];
    // SAFETY: loads of 16 values from arrays of 16.
    unsafe {
        let (bias, slope) = (_mm512_loadu_ps(act.bias.as_ptr()), _mm512_set1_ps(act.slope));
        let (scale, shift) = (_mm512_loadu_ps(act.scale.as_ptr()), _mm512_loadu_ps(act.shift.as_ptr()));
        let weights = head.weight.each_ref().map(|w| _mm512_loadu_ps(w.as_ptr()));
        for (i, voxel) in sums.as_chunks::<16>().0.iter().enumerate() {
            let value = _mm512_add_ps(_mm512_loadu_ps(voxel.as_ptr()), bias);
            let active = _mm512_max_ps(value, _mm512_mul_ps(slope, value));
            let value = _mm512_fmadd_ps(scale, active, shift);
            for c in 0..3 {
                to[c][i] = head.bias[c] + _mm512_reduce_add_ps(_mm512_mul_ps(weights[c], value));
            }
        }
    }
    to
}

/// The inner loop.
///
/// # Safety
/// As [`super::tile::product`].
pub(super) unsafe fn product(segments: &[Segment], weights: &[u16], sums: &mut Sums) {
    assert!(!segments.is_empty());
    let segments = segments.as_ptr_range();
    // SAFETY: reads 16 rows of 64 bytes at every offset from four bases, and a tile of weights per step, valid by the caller's
    // promise; writes four tiles of 1 KB, which is the size of `sums`.
    unsafe {
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
            "tileloadd tmm4, [{weights} + {line}*1]",
            "mov {base}, [{segment} + 24]",
            "add {base}, {offset}",
            "tileloadd tmm6, [{base} + {stride}*1]",
            "tdpbf16ps tmm0, tmm6, tmm4",
            "mov {base}, [{segment} + 32]",
            "add {base}, {offset}",
            "tileloadd tmm7, [{base} + {stride}*1]",
            "tdpbf16ps tmm1, tmm7, tmm4",
            "mov {base}, [{segment} + 40]",
            "add {base}, {offset}",
            "tileloadd tmm6, [{base} + {stride}*1]",
            "tdpbf16ps tmm2, tmm6, tmm4",
            "mov {base}, [{segment} + 48]",
            "add {base}, {offset}",
            "tileloadd tmm7, [{base} + {stride}*1]",
            "tdpbf16ps tmm3, tmm7, tmm4",
            "add {weights}, 1024",
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
            weights = inout(reg) weights.as_ptr() => _,
            sums = in(reg) sums.0.as_mut_ptr(),
            line = in(reg) 64usize,
            next = out(reg) _,
            last = out(reg) _,
            stride = out(reg) _,
            offset = out(reg) _,
            base = out(reg) _,
            size = const size_of::<Segment>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }
}
