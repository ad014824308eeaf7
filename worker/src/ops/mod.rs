//! The operations Burn lacks in 3-D, each with its own backward pass.
//!
//! Two traits, because the backward passes are operations too:
//!
//! - [`KernelOps`]: forward and gradient kernels on plain tensors, one implementation per backend
//!   (CPU: `flex`, on top of `jrs-kernels`; GPU: `cube`, on top of `jrs-cube`);
//! - [`NetOps`]: what networks call. On a plain backend it is the forward kernel; on `Autodiff` it also records
//!   the matching gradient kernel (`autodiff`).
//!
//! The functions below are the tensor-level API. All tensors are f32, batch x channel x z x y x x.

mod autodiff;
#[cfg(feature = "cube")]
mod cube;
mod flex;
mod geometry;
pub mod sums;

#[cfg(feature = "cube")]
use burn::backend::Cube;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

/// Stride and zero padding of a convolution; the kernel edge is the weight's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvSpec {
    /// 1, or 2 where the path contracts.
    pub stride: usize,
    /// Zeros added on every side.
    pub padding: usize,
}

/// Forward and gradient kernels of one backend, without autodiff.
#[backend_extension(Flex, Cube: cfg(feature = "cube"))]
pub trait KernelOps: Backend {
    /// Convolution plus bias.
    fn conv3d_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spec: ConvSpec,
    ) -> FloatTensor<Self>;
    /// Gradient for the input of a convolution; `x` gives only its shape.
    fn conv3d_input_gradient(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        spec: ConvSpec,
    ) -> FloatTensor<Self>;
    /// Gradient for the weight of a convolution; `weight` gives only its shape.
    fn conv3d_weight_gradient(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        spec: ConvSpec,
    ) -> FloatTensor<Self>;
    /// Gradient for the bias: the sum of `dy` over all but the channel axis.
    fn conv3d_bias_gradient(dy: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Mean and biased variance of LeakyReLU(x) per channel, as `[2, channels]`.
    fn leaky_statistics(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// BatchNorm(LeakyReLU(x)) with given statistics.
    fn leaky_norm_forward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// Gradient for `x` with the statistics being functions of `x`; row 0 and 1 of the second result are the
    /// gradients for gamma and beta.
    fn leaky_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Nearest upsampling by two of `deep`, followed by the centre of `skip` (without `crop` voxels per side).
    fn upsample_concat_forward(
        deep: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        crop: usize,
    ) -> FloatTensor<Self>;
    /// Gradients for `deep` and `skip`, which give only their shapes.
    fn upsample_concat_backward(
        deep: FloatTensor<Self>,
        skip: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        crop: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// `source` read at voxel `m + offset + u(m)`, trilinear, border-replicated; `u` in voxels.
    fn warp_forward(source: FloatTensor<Self>, u: FloatTensor<Self>, offset: usize) -> FloatTensor<Self>;
    /// Gradient for `u`.
    fn warp_backward(
        source: FloatTensor<Self>,
        u: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        offset: usize,
    ) -> FloatTensor<Self>;
}

/// What networks and losses call; differentiable on an autodiff device.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait NetOps: Backend {
    /// See [`conv3d`].
    fn conv3d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spec: ConvSpec,
    ) -> FloatTensor<Self>;
    /// See [`leaky_norm`].
    fn leaky_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// See [`upsample_concat`].
    fn upsample_concat(deep: FloatTensor<Self>, skip: FloatTensor<Self>, crop: usize) -> FloatTensor<Self>;
    /// See [`warp`].
    fn warp(source: FloatTensor<Self>, u: FloatTensor<Self>, offset: usize) -> FloatTensor<Self>;
}

/// 3-D cross-correlation (as PyTorch's `conv3d`): `x` \[n, c_in, z, y, x\], `weight` \[c_out, c_in, k, k, k\], k 1 or 3.
pub fn conv3d(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>, spec: ConvSpec) -> Tensor<5> {
    Tensor::from_dispatch(<Dispatch as NetOps>::conv3d(
        x.into_dispatch(),
        weight.into_dispatch(),
        bias.into_dispatch(),
        spec,
    ))
}

/// Mean (row 0) and biased variance (row 1) of LeakyReLU(`x`) per channel, over batch and space. No gradient is
/// recorded: [`leaky_norm`] accounts for the dependence itself.
pub fn leaky_statistics(x: Tensor<5>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as KernelOps>::leaky_statistics(x.without_autodiff().into_dispatch()))
}

/// BatchNorm(LeakyReLU(`x`)) in training mode, with the [`leaky_statistics`] of the same `x`.
pub fn leaky_norm(x: Tensor<5>, gamma: Tensor<1>, beta: Tensor<1>, statistics: Tensor<2>) -> Tensor<5> {
    Tensor::from_dispatch(<Dispatch as NetOps>::leaky_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        statistics.into_dispatch(),
    ))
}

/// concat(nearest x2 upsampling of `deep`, centre of `skip` without `crop` voxels per side) along channels.
pub fn upsample_concat(deep: Tensor<5>, skip: Tensor<5>, crop: usize) -> Tensor<5> {
    Tensor::from_dispatch(<Dispatch as NetOps>::upsample_concat(
        deep.into_dispatch(),
        skip.into_dispatch(),
        crop,
    ))
}

/// The warp I_m ∘ Φ: `source` \[n, c, D, H, W\] read at voxel `m + offset + u(m)`, trilinear, border-replicated.
/// `u` \[n, 3, d, h, w\] is in **voxels**, components x, y, z. Gradients flow to `u` only.
pub fn warp(source: Tensor<5>, u: Tensor<5>, offset: usize) -> Tensor<5> {
    Tensor::from_dispatch(<Dispatch as NetOps>::warp(source.into_dispatch(), u.into_dispatch(), offset))
}
