//! The geometry of operations, as kernels want it, from the shapes of any backend's tensors.

use super::ConvSpec;
use burn::backend::TensorMetadata;
use jrs_kernels::Conv3d;
use jrs_kernels::upsample_concat::UpsampleConcat;
use jrs_kernels::warp::Warp;

pub fn convolution(x: &impl TensorMetadata, weight: &impl TensorMetadata, spec: ConvSpec) -> Conv3d {
    let [batch, c_in, d, h, w] = dims(x);
    let [c_out, _, kernel, ..] = dims(weight);
    Conv3d { batch, c_in, c_out, input: [d, h, w], kernel, stride: spec.stride, padding: spec.padding }
}

/// One with the output `y`: all that the gradient for the bias depends on.
pub fn of_bias(y: &impl TensorMetadata) -> Conv3d {
    let [batch, c_out, d, h, w] = dims(y);
    Conv3d { batch, c_in: 1, c_out, input: [d, h, w], kernel: 1, stride: 1, padding: 0 }
}

pub fn upsampling(deep: &impl TensorMetadata, skip: &impl TensorMetadata, crop: usize) -> UpsampleConcat {
    let [batch, c_up, d, h, w] = dims(deep);
    UpsampleConcat { batch, c_up, c_skip: dims(skip)[1], low: [d, h, w], crop }
}

pub fn warping(source: &impl TensorMetadata, u: &impl TensorMetadata, offset: usize) -> Warp {
    let [batch, channels, d, h, w] = dims(source);
    let [_, _, od, oh, ow] = dims(u);
    Warp { batch, channels, source: [d, h, w], output: [od, oh, ow], offset }
}

pub fn dims(t: &impl TensorMetadata) -> [usize; 5] {
    t.shape().to_vec().try_into().expect("a batch x channel x z x y x x tensor")
}
