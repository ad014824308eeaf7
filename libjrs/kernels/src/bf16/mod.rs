//! Convolution in bf16 or nearly with the accuracy of f32, for inference on processors with a matrix unit for bf16 (AMX).
//!
//! The unit multiplies tiles: 16 rows of 32 values by 32 rows of 16 columns, and adds to 16 x 16 sums in f32. With the channels of
//! a voxel next to each other, a tile of inputs is 16 voxels of a row with 32 channels each, read right where they lie:
//!
//! ```text
//!  plane [y][x][channel]                      weights of one K step             sums
//!        x   x+1  ...  x+15                   (one tap, 32 input channels)
//!  +----+----+----+----+----+                 16 output channels                16 output channels
//!  | .. |####|####|####|####|   16 voxels     +-------------------+             +----------------+
//!  +----+----+----+----+----+   x 32 channels | w(ci 0,1)  ...    |   16 voxels |                |
//!  | .. |    |    |    |    |        *        | w(ci 2,3)  ...    |   +=        |   f32          |
//!  +----+----+----+----+----+                 +-------------------+             +----------------+
//! ```
//!
//! No window is packed: the 27 taps are 27 K steps at other places of three planes, a table of byte offsets. A register block is
//! two tiles of voxels, one below the other, by 32 output channels: a tile that is loaded meets two others, and results are whole cache
//! lines. They are activated and rounded beside the products of the next block (`results`). A row of 42 voxels is three tiles of 14 and
//! not two of 16 and one of 10, because the unit is faster with fewer.
//!
//! **Two voxels of 16 channels are one of 32** ([`View::group`], [`Job::group`]): a row of pairs is read in whole cache lines, and the
//! convolution of 16 by 16 channels becomes one of 32 by 32 over half as many places with two taps along x ([`paired_tap`]), at no more
//! products than the unit needs for the first form.
//!
//! **A convolution that follows nearest upsampling reads the coarse planes themselves.** An output of given parities meets
//! every coarse voxel through one or two taps per axis, whose weights add up beforehand ([`coarse_taps`]): 8 taps instead of 27. So
//! its outputs are computed as lattices ([`Job::lattices`]), each with weights of its own.
//!
//! **Nearly the accuracy of f32 from products of bf16** ([`Format::Two`]): a value is the sum of two bf16, high and low, which have 16 bits together.
//! Of the four products of two such values `high * high + high * low + low * high` are added up, which are three products instead of
//! one; the fourth is below the last bit. (Henry, Tang, Heinecke, *Leveraging the bfloat16 artificial intelligence datatype for
//! higher-precision computations*, ARITH 2019.)
//!
//! [`Unit::Emulated`] does the same in plain Rust, slowly, so that everything but the instructions is tested everywhere.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod avx512;
mod convolve;
mod epilogue;
mod filter;
mod plane;
mod results;

pub use convolve::{Job, Output, Part, View, convolve};
pub use filter::{Filter, Taps, coarse_taps, paired_tap};
pub use plane::{Plane, stack_images};

pub use crate::unit::Unit;

/// How many bf16 a value is the sum of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One: 8 bits.
    One,
    /// Two, high and low: 16 bits.
    Two,
}

impl Format {
    /// How many.
    pub fn terms(self) -> usize {
        match self {
            Format::One => 1,
            Format::Two => 2,
        }
    }
}

/// The nearest bf16, ties to even; not for NaN.
pub(crate) fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// High and low: the nearest bf16, and the nearest to what is left.
pub(crate) fn split(value: f32) -> [u16; 2] {
    let high = round(value);
    [high, round(value - widen(high))]
}

/// The value of a bf16.
pub(crate) fn widen(value: u16) -> f32 {
    f32::from_bits((value as u32) << 16)
}
