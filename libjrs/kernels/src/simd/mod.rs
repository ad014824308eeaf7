//! One vocabulary of vector operations, three instruction sets.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use crate::unit::Unit;

#[cfg(target_arch = "x86_64")]
use x86::{Avx2, Avx512};

/// Instruction set of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, four lanes: any processor (NEON and SSE2 by the compiler).
    Portable,
    /// AVX2 with FMA: eight lanes.
    Avx2,
    /// AVX-512F: sixteen lanes.
    Avx512,
    /// A matrix unit for gradients and untracked passes of convolutions with enough channels ([`crate::conv3d`]), vectors for everything else.
    Matrix(Unit),
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
        all.extend(Unit::hardware().map(Isa::Matrix));
        all
    }

    /// The fastest of [`Isa::available`].
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available().pop().unwrap_or(Isa::Portable))
    }

    /// What computes where a matrix unit does not.
    pub(crate) fn vectors(self) -> Isa {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Matrix(Unit::Amx) => Isa::Avx512, // which that unit comes with
            Isa::Matrix(_) => Isa::Portable,
            vectors => vectors,
        }
    }

    /// Lanes of one vector.
    pub(crate) fn lanes(self) -> usize {
        match self.vectors() {
            Isa::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Avx512::LANES,
            _ => Portable::LANES,
        }
    }

    /// Output channels of one register tile.
    pub(crate) fn channels(self) -> usize {
        match self.vectors() {
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
        match self.vectors() {
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

/// Lanes of the widest vectors.
pub(crate) const MOST_LANES: usize = 16;

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

    /// Hints that the line at that address will be read soon. The address need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}

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
