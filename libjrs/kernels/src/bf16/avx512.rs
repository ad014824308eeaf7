//! The way from sums to voxels with vectors.

use std::arch::x86_64::*;

use super::convolve::{Head, Lanes, RowSums};
use crate::unit::ROWS;

/// [`super::convolve`]'s way from sums to the next layer's voxels. 32 channels are a cache line, which is written whole: a line
/// that is written by halves may leave the cache in between.
///
/// # Safety
/// The processor must have AVX-512 with bf16. `high`, and `low` if there is one, have room for 32 values at each of `count` places,
/// `stride` apart; `count` is at most 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn store_voxels(
    sums: &RowSums,
    act: &Lanes<'_>,
    count: usize,
    high: &mut [u16],
    mut low: Option<&mut [u16]>,
    stride: usize,
) {
    let activate = [0, 1].map(|block| Activate::new(act, block));
    let [first, second] = [0, 1].map(|block| &sums.as_chunks::<16>().0[ROWS * block..]);
    for (voxel, values) in first.iter().zip(second).enumerate().take(count) {
        let [a, b] = [activate[0].apply(values.0), activate[1].apply(values.1)];
        let rounded = _mm512_cvtne2ps_pbh(b, a);
        // SAFETY: vectors of bf16 are vectors of bits; the stores have room by the caller's promise.
        unsafe {
            let bits = std::mem::transmute::<__m512bh, __m512i>(rounded);
            _mm512_storeu_si512(high.as_mut_ptr().add(voxel * stride).cast(), bits);
            if let Some(low) = &mut low {
                let left_of_a = _mm512_sub_ps(a, widen(_mm512_castsi512_si256(bits)));
                let left_of_b = _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64::<1>(bits)));
                let left =
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(left_of_b, left_of_a));
                _mm512_storeu_si512(low.as_mut_ptr().add(voxel * stride).cast(), left);
            }
        }
    }
}

/// The head of [`super::convolve`] on a row of groups of two voxels.
///
/// # Safety
/// The processor must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn components(sums: &RowSums, act: &Lanes<'_>, head: &Head) -> [[[f32; ROWS]; 2]; 3] {
    let mut to = [[[0.0; ROWS]; 2]; 3];
    let weights = head.weight.each_ref().map(|w| load(w));
    for (voxel, sums) in sums.as_chunks::<{ ROWS * 16 }>().0.iter().enumerate() {
        let activate = Activate::new(act, voxel);
        for (i, values) in sums.as_chunks::<16>().0.iter().enumerate() {
            let value = activate.apply(values);
            for c in 0..3 {
                to[c][voxel][i] = head.bias[c] + _mm512_reduce_add_ps(_mm512_mul_ps(weights[c], value));
            }
        }
    }
    to
}

/// [`super::Activation`] for 16 channels.
struct Activate {
    bias: __m512,
    slope: __m512,
    scale: __m512,
    shift: __m512,
}

impl Activate {
    #[target_feature(enable = "avx512f")]
    fn new(act: &Lanes<'_>, block: usize) -> Self {
        let [bias, scale, shift] =
            [act.bias, act.scale, act.shift].map(|lanes| load(&lanes.as_chunks::<16>().0[block]));
        Self { bias, slope: _mm512_set1_ps(act.slope), scale, shift }
    }

    #[target_feature(enable = "avx512f")]
    fn apply(&self, sums: &[f32; 16]) -> __m512 {
        let value = _mm512_add_ps(load(sums), self.bias);
        let active = _mm512_max_ps(value, _mm512_mul_ps(self.slope, value));
        _mm512_fmadd_ps(self.scale, active, self.shift)
    }
}

#[target_feature(enable = "avx512f")]
fn load(values: &[f32; 16]) -> __m512 {
    // SAFETY: 16 values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// bf16 as f32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn widen(bits: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}
