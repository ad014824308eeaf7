//! The arithmetic of the registration network for GPUs, as CubeCL kernels: what `jrs-kernels` is for CPUs.
//!
//! Tensors are contiguous f32 buffers of a device in the order `[batch, channel, z, y, x]`. A function takes a [`Client`] (the
//! queue of a device), the geometry of `jrs-kernels` and [`Handle`]s (buffers), queues its kernels and returns new handles at
//! once; only [`buffer::download`] waits. Every function gives **the same bits on every run**: no sum is made with atomics.
//!
//! | module | forward | gradients |
//! |---|---|---|
//! | [`conv3d`] | convolution, optionally with LeakyReLU and a folded BatchNorm | input, weight, bias |
//! | [`exact_sum`] | the mean of gradients, in whatever order they are added | |
//! | [`leaky_norm`] | LeakyReLU then BatchNorm of a training batch | input, scale, shift |
//! | [`upsample_concat`] | nearest x2 upsampling beside the centre crop of a skip connection | both inputs |
//! | [`patch`] | a training batch from volumes kept on the device; the critic's real pairs | |
//! | [`warp`] | trilinear warp with replicated border | displacement |
//!
//! The same kernels run on NVIDIA GPUs (feature `cuda`) and, compiled for the processor, on any machine (feature `cpu`), where
//! they are tested. A handle shorter than its shape says is a bug of the caller and panics; what goes wrong on the device is an
//! [`Error`] of [`buffer::download`] or [`device::open`].
#![cfg_attr(
    not(any(feature = "cuda", feature = "cpu", feature = "ptx")),
    allow(rustdoc::broken_intra_doc_links)
)]
#![cfg(any(feature = "cuda", feature = "cpu", feature = "ptx"))]

pub mod buffer;
mod channel_sums;
pub mod conv3d;
pub mod device;
pub mod exact_sum;
#[doc(hidden)]
pub mod launch;
pub mod leaky_norm;
pub mod patch;
#[cfg(feature = "ptx")]
pub mod ptx;
pub mod upsample_concat;
pub mod warp;

pub use cubecl::client::Client;
pub use cubecl::server::Handle;
pub use device::{Device, Error};
