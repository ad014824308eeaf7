//! Convolutions on a matrix unit for bf16, nearly with the accuracy of f32: 16 bits of every value count.
//!
//! For gradients, which are linear, and for forward passes that nobody differentiates. An error of 1e-5 in another forward pass would turn
//! the sign of one in 1e5 activations; LeakyReLU's gradient sees the sign, and whole gradients would then differ from PyTorch's by
//! some 1e-4.
//!
//! Every f32 value becomes a pair of bf16, high and low ([`crate::bf16::Format::Two`]). A tile of the unit multiplies 16 pairs, which are
//! 16 channels here, so one product with weights `(high, high)` and one with `(low, 0)` add up
//! `(x_high + x_low) * w_high + x_high * w_low`: all but the product of both low terms.
//!
//! ```text
//!  x, [channel][z][y][x] in f32        window: three planes of a band of rows,        tile of sums          y, [channel][z][y][x]
//!                                      16 channels of a voxel are a cache line
//!  +----------------+   pack,          +----+----+----+----+----+                  16 output channels      +----------------+
//!  |    ........    |   transpose      |    |####|####|####|    | 16 voxels  * w   +----------------+      |    ........    |
//!  |    .      .    |  ----------->    +----+----+----+----+----+ (64 bytes  --->  |                | ---> |    .      .    |
//!  |    ........    |                  |    |    |    |    |    |  each)           | 16 voxels      |      |    ........    |
//!  +----------------+                  +----+----+----+----+----+                  +----------------+      +----------------+
//! ```
//!
//! A task takes a band of rows through the planes of a part of the volume. It packs every plane once; the planes that the
//! kernel spans stay in the L2 cache, in turn overwritten. The weight gradient walks the same windows
//! ([`weight_gradient`]).

pub(super) mod correlate;
mod vectors;
pub(super) mod weight_gradient;
mod window;

use crate::simd::Isa;
use crate::unit::Unit;

/// The unit, if there is one and it pays: with few channels most of a tile would be zeros.
pub(super) fn unit(isa: Isa, c_in: usize, c_out: usize) -> Option<Unit> {
    match isa {
        Isa::Matrix(unit) if c_in >= 8 && c_out >= 8 => Some(unit),
        _ => None,
    }
}
