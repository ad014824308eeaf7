//! The way from sums to voxels with vectors.

use super::convolve::{Head, Lanes};
use crate::unit::ROWS;

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
