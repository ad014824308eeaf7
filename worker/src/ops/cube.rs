//! GPUs: [`KernelOps`] for Burn's CubeCL backend on top of `jrs-cube`.

use super::{ConvSpec, Cube, FloatTensor, KernelOps, NetOps};
use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use jrs_cube::{conv3d, leaky_norm, upsample_concat, warp};
use jrs_kernels::Conv3d;
use jrs_kernels::upsample_concat::UpsampleConcat;
use jrs_kernels::warp::Warp;
use libjrs::network::{BN_EPSILON, LEAKY_SLOPE};

impl KernelOps for Cube {
    fn conv3d_forward(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, spec: ConvSpec) -> CubeTensor {
        let conv = convolution(&x, &weight, spec);
        let [x, weight, bias] = [x, weight, bias].map(into_contiguous);
        let y = conv3d::forward(&x.client, &conv, &x.handle, &weight.handle, &bias.handle, conv3d::Epilogue::None);
        let [d, h, w] = conv.output();
        like(&x, y, [conv.batch, conv.c_out, d, h, w])
    }

    fn conv3d_input_gradient(x: CubeTensor, weight: CubeTensor, dy: CubeTensor, spec: ConvSpec) -> CubeTensor {
        let conv = convolution(&x, &weight, spec);
        let [weight, dy] = [weight, dy].map(into_contiguous);
        let dx = conv3d::input_gradient(&dy.client, &conv, &dy.handle, &weight.handle);
        like(&dy, dx, dims(&x))
    }

    fn conv3d_weight_gradient(x: CubeTensor, weight: CubeTensor, dy: CubeTensor, spec: ConvSpec) -> CubeTensor {
        let conv = convolution(&x, &weight, spec);
        let [x, dy] = [x, dy].map(into_contiguous);
        let dweight = conv3d::weight_gradient(&dy.client, &conv, &x.handle, &dy.handle);
        like(&dy, dweight, dims(&weight))
    }

    fn conv3d_bias_gradient(dy: CubeTensor) -> CubeTensor {
        let [n, c, d, h, w] = dims(&dy);
        // The bias gradient depends on the output's shape only.
        let conv = Conv3d { batch: n, c_in: 1, c_out: c, input: [d, h, w], kernel: 1, stride: 1, padding: 0 };
        let dy = into_contiguous(dy);
        let dbias = conv3d::bias_gradient(&dy.client, &conv, &dy.handle);
        like(&dy, dbias, [c])
    }

    fn leaky_statistics(x: CubeTensor) -> CubeTensor {
        let [n, c, d, h, w] = dims(&x);
        let x = into_contiguous(x);
        let statistics = leaky_norm::statistics(&x.client, &x.handle, n, c, d * h * w, LEAKY_SLOPE);
        like(&x, statistics, [2, c])
    }

    fn leaky_norm_forward(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
    ) -> CubeTensor {
        let shape = dims(&x);
        let [x, gamma, beta, statistics] = [x, gamma, beta, statistics].map(into_contiguous);
        todo!()
    }
}
