//! The arithmetic of the registration network on plain `f32` slices, for CPUs.
//!
//! Tensors are contiguous and in the order `[batch, channel, z, y, x]`; those of inference are planes with channels innermost. Every
//! function uses the current rayon pool and gives **the same bits for any number of threads**: the work is cut into tasks whose size
//! depends on the shapes only, and sums that cross tasks are added in a fixed order.
//!
//! | module | forward | gradients |
//! |---|---|---|
//! | [`bf16`] | the same for inference, in bf16 on a matrix unit | |
//! | [`conv3d`] | convolution, optionally with LeakyReLU and a folded BatchNorm | input, weight, bias |
//! | [`exact_sum`] | the mean of gradients, in whatever order they are added | |
//! | [`leaky_norm`] | LeakyReLU then BatchNorm of a training batch | input, scale, shift |
//! | [`upsample_concat`] | nearest x2 upsampling beside the centre crop of a skip connection | both inputs |
//! | [`warp`] | trilinear warp with replicated border | displacement |
//!
//! All slices are checked against the shapes on entry; a wrong length is a bug of the caller and panics.
//! This crate, its sister for GPUs (`jrs-cube`), NCCL (`jrs-nccl`) and the C ABI are the only places of the project with `unsafe`.

pub mod activation;
pub mod bf16;
pub mod blocked;
pub mod conv3d;
pub mod exact_sum;
pub mod leaky_norm;
pub mod memory;
pub mod pool;
mod shared;
mod simd;
mod unit;
pub mod upsample_concat;
pub mod warp;
mod winograd;

pub use conv3d::Conv3d;
pub use simd::Isa;

/// Values of f32 in a cache line.
const LINE: usize = 16;

/// f32 values up to the next cache line.
fn to_line(start: *const f32) -> usize {
    (start.addr().wrapping_neg() / size_of::<f32>()) % LINE
}
