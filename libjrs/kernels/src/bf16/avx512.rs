//! The way from sums to voxels with vectors.

use std::arch::x86_64::*;

use super::epilogue::beside;
use super::results::Place;
use crate::activation::{Activation, Head};
use crate::unit::{Block, Sums, Unit};

/// [`super::epilogue::voxels_beside`]. The 32 channels of a voxel are a cache line, which is written whole: a line that is written by
/// halves may leave the cache in between.
///
/// # Safety
/// As [`Block::run`]; the processor must have AVX-512 with bf16.
pub(super) unsafe fn voxels_beside(
    block: Option<Block<'_>>,
    sums: &Sums,
    activation: &Activation,
    place: &Place,
    high: &mut [u16],
    low: Option<&mut [u16]>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match low {
            None => voxels::<false>(block, sums, activation, place, high, &mut []),
            Some(low) => voxels::<true>(block, sums, activation, place, high, low),
        }
    }
}

/// # Safety
/// As [`voxels_beside`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn voxels<const TWO_TERMS: bool>(
    block: Option<Block<'_>>,
    sums: &Sums,
    activation: &Activation,
    place: &Place,
    high: &mut [u16],
    low: &mut [u16],
) {
    let first = Activate::new(activation, place.channel);
    let second = Activate::new(activation, place.channel + 16);
    // Looked up once: the loop below has no instruction to spare.
    let room = place.columns.saturating_sub(1) * place.stride + 32;
    let rows = |term: &mut [u16]| place.starts.map(|start| term[start..][..room].as_mut_ptr());
    let high = rows(high);
    let low = if TWO_TERMS { rows(low) } else { high };
    let store = |i: usize| {
        for tile in 0..place.rows {
            let at = i * place.stride;
            let a = first.apply(sums.channels(tile, 0, i));
            let b = second.apply(sums.channels(tile, 1, i));
            let bits = round_both(a, b);
            // SAFETY: there is room for 32 values at every column of a row.
            unsafe { _mm512_storeu_si512(high[tile].add(at).cast(), bits) };
            if TWO_TERMS {
                let left_of_a = _mm512_sub_ps(a, widen(_mm512_castsi512_si256(bits)));
                let left_of_b = _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64::<1>(bits)));
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(low[tile].add(at).cast(), round_both(left_of_a, left_of_b)) };
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { beside(Unit::Amx, block, place.columns, store) };
}

/// [`super::epilogue::displacements_beside`].
///
/// # Safety
/// As [`Block::run`]; the processor must have AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn displacements_beside(
    block: Option<Block<'_>>,
    sums: &Sums,
    activation: &Activation,
    place: &Place,
    head: &Head,
    u: &mut [&mut [f32]; 3],
) {
    let (first, second) = (Activate::new(activation, 0), Activate::new(activation, 16));
    let [x, y, z] = &head.weight;
    let weights = [load(x), load(y), load(z)];
    let room = place.columns.saturating_sub(1) * place.stride + 2;
    let [x, y, z] = u;
    let rows = |u: &mut [f32]| place.starts.map(|start| u[start..][..room].as_mut_ptr());
    let rows = [rows(x), rows(y), rows(z)];
    let store = |i: usize| {
        // Two voxels of a row, and of the one below.
        let a = first.apply(sums.channels(0, 0, i));
        let b = second.apply(sums.channels(0, 1, i));
        let c = first.apply(sums.channels(1, 0, i));
        let d = second.apply(sums.channels(1, 1, i));
        for k in 0..3 {
            let w = weights[k];
            let products =
                [_mm512_mul_ps(a, w), _mm512_mul_ps(b, w), _mm512_mul_ps(c, w), _mm512_mul_ps(d, w)];
            let dots = _mm_add_ps(_mm_set1_ps(head.bias[k]), sum_each(products));
            let at = i * place.stride;
            // SAFETY: there is room for two values at every column of a row. Where there is one row, the second's place is the same, and
            // it is stored first.
            unsafe {
                _mm_storeh_pd(rows[k][1].add(at).cast(), _mm_castps_pd(dots));
                _mm_storel_pd(rows[k][0].add(at).cast(), _mm_castps_pd(dots));
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { beside(Unit::Amx, block, place.columns, store) };
}

/// The sum of each vector.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_each([a, b, c, d]: [__m512; 4]) -> __m128 {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    // Pairs a b a b and c d c d, in four lanes.
    let [ab, cd] = [_mm512_castps_pd(ab), _mm512_castps_pd(cd)];
    let [low, high] = [_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd)];
    let lanes = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    let halves = _mm256_add_ps(
        _mm512_castps512_ps256(lanes),
        _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes))),
    );
    _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
}

/// [`Activation`] for 16 channels.
struct Activate {
    bias: __m512,
    slope: __m512,
    scale: __m512,
    shift: __m512,
}

impl Activate {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(activation: &Activation, channel: usize) -> Self {
        let Activation { bias, slope, scale, shift } = activation;
        let slope = _mm512_set1_ps(*slope);
        Self { bias: from(bias, channel), slope, scale: from(scale, channel), shift: from(shift, channel) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn apply(&self, sums: &[f32; 16]) -> __m512 {
        let value = _mm512_add_ps(load(sums), self.bias);
        let active = _mm512_max_ps(value, _mm512_mul_ps(self.slope, value));
        _mm512_fmadd_ps(self.scale, active, self.shift)
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32; 16]) -> __m512 {
    // SAFETY: 16 values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn from(values: &[f32], first: usize) -> __m512 {
    load(values[first..].first_chunk().expect("a value per channel"))
}

/// f32 as bf16, those of `a` first.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round_both(a: __m512, b: __m512) -> __m512i {
    // SAFETY: vectors of bf16 are vectors of bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a)) }
}

/// bf16 as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn widen(bits: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}
