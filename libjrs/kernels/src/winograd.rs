//! Winograd's minimal filtering F(4x4, 3x3): the three maps along an axis, each applied along x and y in turn.
//!
//! ```text
//!  6x6 inputs d   --- B'dB --->   36 points                          3x3 filter g   --- G g G' --->   36 points
//!                                     |  products, summed over channels (and planes)                     |
//!  4x4 outputs    <-- A'mA ----   36 sums m   <----------------------------------------------------------+
//! ```
//!
//! 36 products instead of the 144 of the definition (Lavin and Gray, arXiv 1509.09308). `filter` is G, `forward` B' and `inverse` A' for
//! the interpolation points 0, ±a, ±b and infinity with a = 1/√2 and b = √2 = 2a: with them all constants are near 1, which keeps
//! rounding at a few times that of the plain sum (the textbook's 0, ±1, ±2 lose one more digit).

use crate::simd::Simd;

/// Outputs of a position along y and x.
pub(crate) const BLOCK: usize = 4;
/// Input values of a position along y and x, and transformed ones.
pub(crate) const SPAN: usize = BLOCK + 2;
/// Transformed values of a position.
pub(crate) const POINTS: usize = SPAN * SPAN;

/// 1/√2.
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// G g: a filter's values at the six points, each over the product of the point's distances to the others.
fn filter(g: [f32; 3]) -> [f32; SPAN] {
    let (near, far) = (-1.0 / 1.5, 1.0 / 6.0);
    [
        g[0],
        near * (g[0] + A * g[1] + 0.5 * g[2]),
        near * (g[0] - A * g[1] + 0.5 * g[2]),
        far * (g[0] + 2.0 * A * g[1] + 2.0 * g[2]),
        far * (g[0] - 2.0 * A * g[1] + 2.0 * g[2]),
        g[2],
    ]
}

/// G g G' of a plane of taps: `[y][x]`, the points in their order.
pub(crate) fn filter_plane(g: impl Fn(usize, usize) -> f32) -> [f32; POINTS] {
    let along_x = [0, 1, 2].map(|ky| filter([0, 1, 2].map(|kx| g(ky, kx))));
    let columns: [_; SPAN] = std::array::from_fn(|px| filter([0, 1, 2].map(|ky| along_x[ky][px])));
    std::array::from_fn(|point| columns[point % SPAN][point / SPAN])
}

/// Asks for the part of `lines` that is due while the products of a point are made: all of them, spread over the points.
///
/// # Safety
/// The processor must have `S`'s instructions.
#[inline(always)]
pub(crate) unsafe fn prefetch<S: Simd>(lines: &[*const f32], point: usize) {
    let part = lines.len().div_ceil(POINTS);
    for &line in lines.iter().skip(point * part).take(part) {
        // SAFETY: the caller has S.
        unsafe { S::prefetch(line) };
    }
}

/// B' d: the polynomials that vanish at all points but one.
///
/// # Safety
/// The processor must have `S`'s instructions.
#[inline(always)]
pub(crate) unsafe fn forward<S: Simd>(d: [S::V; SPAN]) -> [S::V; SPAN] {
    // SAFETY: the caller has S.
    unsafe {
        let c = |value: f32| S::splat(value);
        let near = (S::fma(c(-2.0), d[2], d[4]), S::fma(c(-2.0), d[1], d[3]));
        let far = (S::fma(c(-0.5), d[2], d[4]), S::fma(c(-0.5), d[1], d[3]));
        [
            S::add(S::fma(c(-2.5), d[2], d[0]), d[4]),
            S::fma(c(A), near.1, near.0),
            S::fma(c(-A), near.1, near.0),
            S::fma(c(2.0 * A), far.1, far.0),
            S::fma(c(-2.0 * A), far.1, far.0),
            S::add(S::fma(c(-2.5), d[3], d[1]), d[5]),
        ]
    }
}

/// A' m: the products' polynomial at the four outputs.
///
/// # Safety
/// The processor must have `S`'s instructions.
#[inline(always)]
pub(crate) unsafe fn inverse<S: Simd>(m: [S::V; SPAN]) -> [S::V; BLOCK] {
    // SAFETY: the caller has S.
    unsafe {
        let c = |value: f32| S::splat(value);
        let (near, far) = (S::add(m[1], m[2]), S::add(m[3], m[4]));
        let (near_odd, far_odd) = (S::sub(m[1], m[2]), S::sub(m[3], m[4]));
        let odd = S::fma(c(2.0), far_odd, near_odd);
        [
            S::add(S::add(m[0], near), far),
            S::mul(c(A), odd),
            S::fma(c(0.5), near, S::mul(c(2.0), far)),
            S::fma(c(0.5 * A), near_odd, S::fma(c(4.0 * A), far_odd, m[5])),
        ]
    }
}
