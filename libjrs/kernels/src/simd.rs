//! One vocabulary of vector operations, three instruction sets.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Instruction set of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, four lanes: any processor (NEON and SSE2 by the compiler).
    Portable,
    /// AVX2 with FMA: eight lanes.
    Avx2,
    /// AVX-512F: sixteen lanes.
    Avx512,
}

impl Isa {
    /// The instruction sets that this processor can run, slowest first.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if avx2 {
                all.push(Isa::Avx2);
            }
            if avx2 && is_x86_feature_detected!("avx512f") {
                all.push(Isa::Avx512);
            }
        }
        all
    }

    /// The fastest of [`Isa::available`].
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available().pop().unwrap_or(Isa::Portable))
    }

    /// Lanes of one vector.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Isa::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::LANES,
            #[cfg(not(target_arch = "x86_64"))]
            _ => Portable::LANES,
        }
    }

    /// Output channels of one register tile.
    pub(crate) fn channels(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::CHANNELS,
            _ => Portable::CHANNELS,
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    ///
    /// # Panics
    /// If the processor lacks the instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self {
            // SAFETY: plain Rust needs no processor feature.
            Isa::Portable => unsafe { kernel.run::<Portable>() },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"));
                // SAFETY: the features were just detected.
                unsafe { run_avx2(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                assert!(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx2"));
                // SAFETY: the features were just detected.
                unsafe { run_avx512(kernel) }
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => panic!("{self:?} is not an instruction set of this processor"),
        }
    }
}

/// A loop nest written once over [`Simd`].
pub(crate) trait Kernel {
    /// The loop nest. Implementations are `#[inline(always)]`, so that they take on the instruction set of
    /// the function they are inlined into.
    ///
    /// # Safety
    /// The processor must have `S`'s instructions.
    unsafe fn run<S: Simd>(self);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: this function is only entered where AVX2 and FMA exist.
    unsafe { kernel.run::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: this function is only entered where AVX-512F exists.
    unsafe { kernel.run::<Avx512>() }
}

/// Vector operations.
///
/// # Safety
/// All functions need the instruction set; `load` and `store` touch `LANES` values from the pointer, which
/// need not be aligned.
pub(crate) trait Simd: Copy {
    /// Lanes of [`Simd::V`].
    const LANES: usize;
    /// Output channels of a register tile: `CHANNELS` x 3 accumulators and 4 more fit the registers.
    const CHANNELS: usize;
    /// One vector register.
    type V: Copy;
    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, value: Self::V);
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of both per lane; `b` if one is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Sum over the lanes, in a fixed order.
    unsafe fn sum(value: Self::V) -> f32;
    /// Deals `4 * LANES` values in turn to four vectors: lane `i` of vector `k` is `from[4*i + k]`.
    unsafe fn deal(from: *const f32) -> [Self::V; 4];
    /// The inverse of [`Simd::deal`].
    unsafe fn interleave(to: *mut f32, values: [Self::V; 4]);

    /// The inner loop of the convolution: for each tap `t`, channel `c` and vector `v` of the tile,
    /// `acc[c][v] += weights[t*C + c] * input[offsets[t] + v*LANES ..]`.
    ///
    /// # Safety
    /// `weights` has `C` values per offset, and `input` three vectors at every offset.
    #[inline(always)]
    unsafe fn correlate<const C: usize>(
        acc: &mut [[Self::V; 3]; C],
        input: *const f32,
        offsets: &[usize],
        mut weights: *const f32,
    ) {
        for &offset in offsets {
            // SAFETY: what the caller promises.
            unsafe {
                let from = input.add(offset);
                let x = [
                    Self::load(from),
                    Self::load(from.add(Self::LANES)),
                    Self::load(from.add(2 * Self::LANES)),
                ];
                for c in 0..C {
                    let w = Self::splat(*weights.add(c));
                    for v in 0..3 {
                        acc[c][v] = Self::fma(w, x[v], acc[c][v]);
                    }
                }
                weights = weights.add(C);
            }
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    const LANES: usize = 4;
    const CHANNELS: usize = 4;
    type V = [f32; 4];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller gives four readable values; [f32; 4] has the alignment of f32.
        unsafe { *from.cast::<[f32; 4]>() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: [f32; 4]) {
        // SAFETY: the caller gives four writable values; [f32; 4] has the alignment of f32.
        unsafe { *to.cast::<[f32; 4]>() = value }
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        let mut sum = c;
        for lane in 0..4 {
            // `mul_add` without a hardware instruction is a slow library call.
            sum[lane] = if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                a[lane].mul_add(b[lane], c[lane])
            } else {
                a[lane] * b[lane] + c[lane]
            };
        }
        sum
    }

    #[inline(always)]
    unsafe fn max(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    unsafe fn sum(v: [f32; 4]) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }

    #[inline(always)]
    unsafe fn deal(from: *const f32) -> [[f32; 4]; 4] {
        // SAFETY: the caller gives sixteen readable values.
        let blocks = unsafe { *from.cast::<[[f32; 4]; 4]>() };
        std::array::from_fn(|k| std::array::from_fn(|i| blocks[i][k]))
    }

    #[inline(always)]
    unsafe fn interleave(to: *mut f32, v: [[f32; 4]; 4]) {
        let blocks: [[f32; 4]; 4] = std::array::from_fn(|i| std::array::from_fn(|k| v[k][i]));
        // SAFETY: the caller gives sixteen writable values.
        unsafe { *to.cast::<[[f32; 4]; 4]>() = blocks }
    }
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY of all blocks below: the caller has AVX2 and FMA, and gives eight valid values behind a pointer.
#[cfg(target_arch = "x86_64")]
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
#[cfg(target_arch = "x86_64")]
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
#[cfg(target_arch = "x86_64")]
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
#[cfg(target_arch = "x86_64")]
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
#[cfg(target_arch = "x86_64")]
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

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY of all blocks below: the caller has AVX-512F, and gives sixteen valid values behind a pointer.
#[cfg(target_arch = "x86_64")]
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
