//! The way from sums to voxels with vectors.

use std::arch::x86_64::*;

use super::epilogue::{Lanes, TileLanes, TileSums};
use crate::activation::Head;
use crate::unit::ROWS;

/// The way from sums to the next layer's voxels. Where there are 32 channels they are a cache line, which is written
/// whole: a line that is written by halves may leave the cache in between.
///
/// # Safety
/// The processor must have AVX-512 with bf16. `high`, and `low` if there is one, have room for 16 values for each of `sums` (one or two)
/// at each of `count` places, `stride` apart; `count` is at most 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn store_voxels(
    sums: &[TileSums],
    act: &Lanes<'_>,
    count: usize,
    high: &mut [u16],
    mut low: Option<&mut [u16]>,
    stride: usize,
) {
    let first = Activate::new(&act.block(0));
    let voxels = sums[0].as_chunks::<16>().0;
    let Some(second) = sums.get(1) else {
        for (i, voxel) in voxels.iter().enumerate().take(count) {
            let value = first.apply(voxel);
            let bits = round(value);
            // SAFETY: the stores have room by the caller's promise.
            unsafe {
                _mm256_storeu_si256(high.as_mut_ptr().add(i * stride).cast(), bits);
                if let Some(low) = &mut low {
                    let left = round(_mm512_sub_ps(value, widen(bits)));
                    _mm256_storeu_si256(low.as_mut_ptr().add(i * stride).cast(), left);
                }
            }
        }
        return;
    };
    let then = Activate::new(&act.block(1));
    for (i, (a, b)) in voxels.iter().zip(second.as_chunks::<16>().0).enumerate().take(count) {
        let (a, b) = (first.apply(a), then.apply(b));
        let bits = round_both(a, b);
        // SAFETY: as above.
        unsafe {
            _mm512_storeu_si512(high.as_mut_ptr().add(i * stride).cast(), bits);
            if let Some(low) = &mut low {
                let left_of_a = _mm512_sub_ps(a, widen(_mm512_castsi512_si256(bits)));
                let left_of_b = _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64::<1>(bits)));
                let left = round_both(left_of_a, left_of_b);
                _mm512_storeu_si512(low.as_mut_ptr().add(i * stride).cast(), left);
            }
        }
    }
}

/// The head on a tile's voxels.
///
/// # Safety
/// The processor must have AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn components(sums: &TileSums, act: &TileLanes<'_>, head: &Head) -> [[f32; ROWS]; 3] {
    let mut to = [[0.0; ROWS]; 3];
    let activate = Activate::new(act);
    let weights = head.weight.each_ref().map(|w| load(w));
    for (i, voxel) in sums.as_chunks::<16>().0.iter().enumerate() {
        let value = activate.apply(voxel);
        for c in 0..3 {
            to[c][i] = head.bias[c] + _mm512_reduce_add_ps(_mm512_mul_ps(weights[c], value));
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
    fn new(act: &TileLanes<'_>) -> Self {
        let [bias, scale, shift] = [act.bias, act.scale, act.shift].map(|lanes| load(lanes));
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

/// f32 as bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(values: __m512) -> __m256i {
    // SAFETY: vectors of bf16 are vectors of bits.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) }
}

/// f32 as bf16, those of `a` first.
#[target_feature(enable = "avx512f,avx512bf16")]
fn round_both(a: __m512, b: __m512) -> __m512i {
    // SAFETY: vectors of bf16 are vectors of bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a)) }
}

/// bf16 as f32.
#[target_feature(enable = "avx512f,avx512bw")]
fn widen(bits: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}
