//! The register tile: voxels by output channels.
//!
//! ```text
//!                       weights of one input channel
//!                       (16 or 32 output channels)
//!                       +------+------+
//!                       |  w0  |  w1  |
//!                       +------+------+
//!  input channel  +---+ +------+------+
//!  of M voxels,   | x | | sum  | sum  |
//!  each broadcast +---+ +------+------+
//!                 | x | | sum  | sum  |   M * V vectors of sums stay in registers
//!                 +---+ +------+------+
//!                  ...     ...
//! ```

use crate::simd::Simd;

use super::plane::BLOCK;

/// `sums[m][v] += input * weight` over all taps and their `RUN` channels, where voxel `m` lies `m * STEP` values behind `place` behind the
/// tap's pointer. `weights` is `[tap][channel][16]`, and a second block of 16 output channels lies `block` values behind the first.
///
/// # Safety
/// The processor must have `S`'s instructions; all those values can be read.
#[inline(always)]
pub(super) unsafe fn multiply<
    S: Simd,
    const M: usize,
    const V: usize,
    const STEP: usize,
    const RUN: usize,
>(
    taps: &[*const f32],
    place: usize,
    mut weights: *const f32,
    block: usize,
) -> [[S::V; V]; M] {
    // SAFETY: what the caller promises.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; M];
        for &tap in taps {
            let from = tap.add(place);
            for c in 0..RUN {
                let mut w = [S::splat(0.0); V];
                for v in 0..V {
                    w[v] = S::load(weights.add(v * S::LANES / BLOCK * block + v * S::LANES % BLOCK));
                }
                for m in 0..M {
                    let x = S::splat(*from.add(m * STEP + c));
                    for v in 0..V {
                        sums[m][v] = S::fma(x, w[v], sums[m][v]);
                    }
                }
                weights = weights.add(BLOCK);
            }
        }
        sums
    }
}
