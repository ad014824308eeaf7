//! AVX2 with FMA, and AVX-512F.

use std::arch::x86_64::*;

use super::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY of all blocks below: the caller has AVX2 and FMA, and gives eight valid values behind a pointer.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const CHANNELS: usize = 4;
    type V = __m256;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m256) {
        unsafe { _mm256_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn deal(from: *const f32) -> [__m256; 4] {
        unsafe { deal_avx2(from) }
    }

    #[inline(always)]
    unsafe fn interleave(to: *mut f32, values: [__m256; 4]) {
        unsafe { interleave_avx2(to, values) }
    }

    #[inline(always)]
    unsafe fn correlate<const C: usize>(
        acc: &mut [[__m256; 3]; C],
        input: *const f32,
        offsets: &[usize],
        weights: *const f32,
    ) {
        assert!(C == Self::CHANNELS && !offsets.is_empty());
        unsafe { correlate_avx2(&mut *acc.as_mut_ptr().cast(), input, offsets, weights) }
    }
}

/// Transposes the 4x4 values in the low halves, and those in the high halves.
///
/// # Safety
/// The processor must have AVX2.
#[target_feature(enable = "avx2,fma")]
fn transpose_avx2([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
    [
        _mm256_shuffle_ps::<0x44>(ab, cd),
        _mm256_shuffle_ps::<0xee>(ab, cd),
        _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
        _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
    ]
}

/// # Safety
/// As [`Simd::deal`], with 32 values.
#[target_feature(enable = "avx2,fma")]
unsafe fn deal_avx2(from: *const f32) -> [__m256; 4] {
    // SAFETY: blocks 0 to 7 of four values, readable by the caller's promise.
    unsafe {
        let pair = |i: usize| {
            let low = _mm256_castps128_ps256(_mm_loadu_ps(from.add(4 * i)));
            _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(from.add(4 * i + 16)))
        };
        transpose_avx2([pair(0), pair(1), pair(2), pair(3)])
    }
}

/// # Safety
/// As [`Simd::interleave`], with 32 values.
#[target_feature(enable = "avx2,fma")]
unsafe fn interleave_avx2(to: *mut f32, values: [__m256; 4]) {
    let blocks = transpose_avx2(values);
    for i in 0..4 {
        // SAFETY: blocks i and i + 4 of four values, writable by the caller's promise.
        unsafe {
            _mm_storeu_ps(to.add(4 * i), _mm256_castps256_ps128(blocks[i]));
            _mm_storeu_ps(to.add(4 * i + 16), _mm256_extractf128_ps::<1>(blocks[i]));
        }
    }
}

/// [`Simd::correlate`] in assembly: the tile needs exactly the sixteen registers there are (12 sums, 3 inputs,
/// 1 weight), and the compiler's allocation shuffles them in the loop, at half the speed.
///
/// # Safety
/// As [`Simd::correlate`] with four channels; `offsets` is not empty.
#[target_feature(enable = "avx2,fma")]
unsafe fn correlate_avx2(
    acc: &mut [[__m256; 3]; 4],
    input: *const f32,
    offsets: &[usize],
    weights: *const f32,
) {
    let range = offsets.as_ptr_range();
    // SAFETY: reads the three vectors at each of the offsets and four weights for each, valid by the caller's
    // promise; writes registers only.
    unsafe {
        core::arch::asm!(
            "2:",
            "mov {offset}, [{next}]",
            "vmovups {x0}, [{input} + 4*{offset}]",
            "vmovups {x1}, [{input} + 4*{offset} + 32]",
            "vmovups {x2}, [{input} + 4*{offset} + 64]",
            "vbroadcastss {w}, [{weights}]",
            "vfmadd231ps {a0}, {w}, {x0}",
            "vfmadd231ps {a1}, {w}, {x1}",
            "vfmadd231ps {a2}, {w}, {x2}",
            "vbroadcastss {w}, [{weights} + 4]",
            "vfmadd231ps {b0}, {w}, {x0}",
            "vfmadd231ps {b1}, {w}, {x1}",
            "vfmadd231ps {b2}, {w}, {x2}",
            "vbroadcastss {w}, [{weights} + 8]",
            "vfmadd231ps {c0}, {w}, {x0}",
            "vfmadd231ps {c1}, {w}, {x1}",
            "vfmadd231ps {c2}, {w}, {x2}",
            "vbroadcastss {w}, [{weights} + 12]",
            "vfmadd231ps {d0}, {w}, {x0}",
            "vfmadd231ps {d1}, {w}, {x1}",
            "vfmadd231ps {d2}, {w}, {x2}",
            "add {weights}, 16",
            "add {next}, 8",
            "cmp {next}, {end}",
            "jne 2b",
            input = in(reg) input,
            weights = inout(reg) weights => _,
            next = inout(reg) range.start => _,
            end = in(reg) range.end,
            offset = out(reg) _,
            x0 = out(ymm_reg) _, x1 = out(ymm_reg) _, x2 = out(ymm_reg) _, w = out(ymm_reg) _,
            a0 = inout(ymm_reg) acc[0][0], a1 = inout(ymm_reg) acc[0][1], a2 = inout(ymm_reg) acc[0][2],
            b0 = inout(ymm_reg) acc[1][0], b1 = inout(ymm_reg) acc[1][1], b2 = inout(ymm_reg) acc[1][2],
            c0 = inout(ymm_reg) acc[2][0], c1 = inout(ymm_reg) acc[2][1], c2 = inout(ymm_reg) acc[2][2],
            d0 = inout(ymm_reg) acc[3][0], d1 = inout(ymm_reg) acc[3][1], d2 = inout(ymm_reg) acc[3][2],
            options(nostack, readonly),
        );
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY of all blocks below: the caller has AVX-512F, and gives sixteen valid values behind a pointer.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    const LANES: usize = 16;
    const CHANNELS: usize = 8;
    type V = __m512;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn deal(from: *const f32) -> [__m512; 4] {
        unsafe {
            let (low, high) = (deal_avx2(from), deal_avx2(from.add(32)));
            let mut values = [_mm512_setzero_ps(); 4];
            for k in 0..4 {
                let wide = _mm512_castps_pd(_mm512_castps256_ps512(low[k]));
                values[k] = _mm512_castpd_ps(_mm512_insertf64x4::<1>(wide, _mm256_castps_pd(high[k])));
            }
            values
        }
    }

    #[inline(always)]
    unsafe fn interleave(to: *mut f32, values: [__m512; 4]) {
        unsafe {
            let (mut low, mut high) = ([_mm256_setzero_ps(); 4], [_mm256_setzero_ps(); 4]);
            for k in 0..4 {
                low[k] = _mm512_castps512_ps256(values[k]);
                high[k] = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(values[k])));
            }
            interleave_avx2(to, low);
            interleave_avx2(to.add(32), high);
        }
    }

    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }
}
