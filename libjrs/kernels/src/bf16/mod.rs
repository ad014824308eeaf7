//! Convolution in bf16 with f32 sums, for inference on processors with a matrix unit (AMX).
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
//! No window is packed: the 27 taps are 27 K steps at other places of three planes, a table of byte offsets. Where a voxel has 16
//! channels a step takes two neighbours along x (the fourth tap has zero weights). A register block is six tiles of voxels by one
//! of channels, or two by two ([`Strip`](tile::Strip)).
//!
//! **A convolution that follows nearest upsampling reads the coarse planes themselves.** An output of given parities meets
//! every coarse voxel through one or two taps per axis, whose weights add up beforehand: 8 taps instead of 27. So its outputs
//! are computed as four lattices per plane ([`Part`]), each with weights of its own.
//!
//! [`Unit::Emulated`] does the same in plain Rust, slowly, so that everything but the instructions is tested everywhere.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod convolve;
mod filter;
mod plane;
mod tile;

pub use convolve::{Activation, Head, Job, Output, Part, View, convolve};
pub use filter::{Filter, Taps};
pub use plane::{Plane, stack_images};
pub use tile::Unit;

/// The nearest bf16, ties to even; not for NaN.
pub(crate) fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The value of a bf16.
pub(crate) fn widen(value: u16) -> f32 {
    f32::from_bits((value as u32) << 16)
}
