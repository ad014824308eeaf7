//! From sums to voxels: activation, rounding, and the head.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::avx512;
use super::results::Place;
use super::split;
use crate::activation::{Activation, Head};
use crate::unit::{Block, Sums, Unit};

/// Runs `store` for every column, a few after each step of `block` if there is one.
///
/// # Safety
/// As [`Block::run`].
#[inline(always)]
pub(super) unsafe fn beside(
    unit: Unit,
    block: Option<Block<'_>>,
    columns: usize,
    mut store: impl FnMut(usize),
) {
    let Some(block) = block else { return (0..columns).for_each(store) };
    let (mut done, at_once) = (0, columns.div_ceil(block.steps()));
    let some = || {
        let end = columns.min(done + at_once);
        while done < end {
            store(done);
            done += 1;
        }
    };
    // SAFETY: the caller's promise.
    unsafe { block.run(unit, some) };
}

/// Activates the voxels of a register block and rounds them; what is left goes to the low terms.
///
/// # Safety
/// As [`Block::run`].
pub(super) unsafe fn voxels_beside(
    unit: Unit,
    block: Option<Block<'_>>,
    sums: &Sums,
    activation: &Activation,
    place: &Place,
    high: &mut [u16],
    mut low: Option<&mut [u16]>,
) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        // SAFETY: the caller's promise; that unit comes with AVX-512 and bf16 (checked before it is chosen).
        return unsafe { avx512::voxels_beside(block, sums, activation, place, high, low) };
    }
    let store = |i: usize| {
        for (tile, half) in (0..2 * place.rows).map(|k| (k / 2, k % 2)) {
            let values = activate(activation, place.channel + 16 * half, sums.channels(tile, half, i));
            for (k, value) in values.into_iter().enumerate() {
                let at = place.starts[tile] + i * place.stride + 16 * half + k;
                let terms = split(value);
                high[at] = terms[0];
                if let Some(low) = &mut low {
                    low[at] = terms[1];
                }
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { beside(unit, block, place.columns, store) }
}

/// The head on the voxels of a register block, whose 32 channels are those of two voxels.
///
/// # Safety
/// As [`Block::run`].
pub(super) unsafe fn displacements_beside(
    unit: Unit,
    block: Option<Block<'_>>,
    sums: &Sums,
    activation: &Activation,
    place: &Place,
    head: &Head,
    u: &mut [&mut [f32]; 3],
) {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        // SAFETY: the caller's promise; that unit comes with AVX-512 (checked before it is chosen).
        return unsafe { avx512::displacements_beside(block, sums, activation, place, head, u) };
    }
    let store = |i: usize| {
        for (tile, half) in (0..2 * place.rows).map(|k| (k / 2, k % 2)) {
            let voxel = activate(activation, 16 * half, sums.channels(tile, half, i));
            for (c, u) in u.iter_mut().enumerate() {
                let dot: f32 = (0..16).map(|k| head.weight[c][k] * voxel[k]).sum();
                u[place.starts[tile] + i * place.stride + half] = head.bias[c] + dot;
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { beside(unit, block, place.columns, store) }
}

/// 16 channels from `channel` on.
fn activate(activation: &Activation, channel: usize, sums: &[f32; 16]) -> [f32; 16] {
    let Activation { bias, slope, scale, shift } = activation;
    std::array::from_fn(|k| {
        let c = channel + k;
        let value = sums[k] + bias[c];
        // max is LeakyReLU for slopes from 0 to 1.
        scale[c] * value.max(slope * value) + shift[c]
    })
}
