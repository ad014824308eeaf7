//! GPUs: [`KernelOps`] for Burn's CubeCL backend on top of `jrs-cube`.

use super::geometry::{convolution, dims, of_bias, upsampling, warping};
use super::{ConvSpec, Cube, KernelOps, NetOps};
use burn::tensor::Shape;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use jrs_cube::{Handle, conv3d, leaky_norm, upsample_concat, warp};
use libjrs::network::{BN_EPSILON, LEAKY_SLOPE};

impl KernelOps for Cube {
    fn conv3d_forward(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, spec: ConvSpec) -> CubeTensor {
        let conv = convolution(&x, &weight, spec);
        let [x, weight, bias] = [x, weight, bias].map(into_contiguous);
        let [d, h, w] = conv.output();
        let (f32, none) = (conv3d::Arithmetic::F32, conv3d::Epilogue::None);
        let y = conv3d::forward(&x.client, f32, &conv, &x.handle, &weight.handle, &bias.handle, none);
        beside(&x, y, &[conv.batch, conv.c_out, d, h, w])
    }

    fn conv3d_input_gradient(
        x: CubeTensor,
        weight: CubeTensor,
        dy: CubeTensor,
        spec: ConvSpec,
    ) -> CubeTensor {
        let conv = convolution(&x, &weight, spec);
        let [weight, dy] = [weight, dy].map(into_contiguous);
        let dx = conv3d::input_gradient(&dy.client, &conv, &dy.handle, &weight.handle);
        beside(&dy, dx, &dims(&x))
    }

    fn conv3d_weight_gradient(
        x: CubeTensor,
        weight: CubeTensor,
        dy: CubeTensor,
        spec: ConvSpec,
    ) -> CubeTensor {
        let conv = convolution(&x, &weight, spec);
        let [x, dy] = [x, dy].map(into_contiguous);
        let dweight = conv3d::weight_gradient(&dy.client, &conv, &x.handle, &dy.handle);
        beside(&dy, dweight, &dims(&weight))
    }

    fn conv3d_bias_gradient(dy: CubeTensor) -> CubeTensor {
        let conv = of_bias(&dy);
        let dy = into_contiguous(dy);
        let dbias = conv3d::bias_gradient(&dy.client, &conv, &dy.handle);
        beside(&dy, dbias, &[conv.c_out])
    }

    fn leaky_statistics(x: CubeTensor) -> CubeTensor {
        let [n, c, d, h, w] = dims(&x);
        let x = into_contiguous(x);
        let statistics = leaky_norm::statistics(&x.client, &x.handle, n, c, d * h * w, LEAKY_SLOPE);
        beside(&x, statistics, &[2, c])
    }

    fn leaky_norm_forward(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        statistics: CubeTensor,
    ) -> CubeTensor {
        let shape = dims(&x);
        let [n, c, d, h, w] = shape;
        let [x, gamma, beta, statistics] = [x, gamma, beta, statistics].map(into_contiguous);
        let y = leaky_norm::forward(
            &x.client,
            &x.handle,
            &statistics.handle,
            &gamma.handle,
            &beta.handle,
            BN_EPSILON,
            LEAKY_SLOPE,
            n,
            c,
            d * h * w,
        );
        beside(&x, y, &shape)
    }

    fn leaky_norm_backward(
        x: CubeTensor,
        gamma: CubeTensor,
        statistics: CubeTensor,
        dy: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let shape = dims(&x);
        let [n, c, d, h, w] = shape;
        let [x, gamma, statistics, dy] = [x, gamma, statistics, dy].map(into_contiguous);
        let (dx, dparams) = leaky_norm::backward(
            &x.client,
            &x.handle,
            &dy.handle,
            &statistics.handle,
            &gamma.handle,
            BN_EPSILON,
            LEAKY_SLOPE,
            n,
            c,
            d * h * w,
        );
        (beside(&x, dx, &shape), beside(&x, dparams, &[2, c]))
    }

    fn upsample_concat_forward(deep: CubeTensor, skip: CubeTensor, crop: usize) -> CubeTensor {
        let geometry = upsampling(&deep, &skip, crop);
        let [deep, skip] = [deep, skip].map(into_contiguous);
        let [d, h, w] = geometry.output();
        let y = upsample_concat::forward(&deep.client, &geometry, &deep.handle, &skip.handle);
        beside(&deep, y, &[geometry.batch, geometry.c_up + geometry.c_skip, d, h, w])
    }

    fn upsample_concat_backward(
        deep: CubeTensor,
        skip: CubeTensor,
        dy: CubeTensor,
        crop: usize,
    ) -> (CubeTensor, CubeTensor) {
        let geometry = upsampling(&deep, &skip, crop);
        let dy = into_contiguous(dy);
        let (ddeep, dskip) = upsample_concat::backward(&dy.client, &geometry, &dy.handle);
        (beside(&dy, ddeep, &dims(&deep)), beside(&dy, dskip, &dims(&skip)))
    }

    fn warp_forward(source: CubeTensor, u: CubeTensor, offset: usize) -> CubeTensor {
        let geometry = warping(&source, &u, offset);
        let [source, u] = [source, u].map(into_contiguous);
        let [d, h, w] = geometry.output;
        let y = warp::forward(&u.client, &geometry, &source.handle, &u.handle);
        beside(&u, y, &[geometry.batch, geometry.channels, d, h, w])
    }

    fn warp_backward(source: CubeTensor, u: CubeTensor, dy: CubeTensor, offset: usize) -> CubeTensor {
        let geometry = warping(&source, &u, offset);
        let shape = dims(&u);
        let [source, u, dy] = [source, u, dy].map(into_contiguous);
        let du = warp::backward(&u.client, &geometry, &source.handle, &u.handle, &dy.handle);
        beside(&u, du, &shape)
    }
}

impl NetOps for Cube {
    fn conv3d(x: CubeTensor, weight: CubeTensor, bias: CubeTensor, spec: ConvSpec) -> CubeTensor {
        Self::conv3d_forward(x, weight, bias, spec)
    }

    fn leaky_norm(x: CubeTensor, gamma: CubeTensor, beta: CubeTensor, statistics: CubeTensor) -> CubeTensor {
        Self::leaky_norm_forward(x, gamma, beta, statistics)
    }

    fn upsample_concat(deep: CubeTensor, skip: CubeTensor, crop: usize) -> CubeTensor {
        Self::upsample_concat_forward(deep, skip, crop)
    }

    fn warp(source: CubeTensor, u: CubeTensor, offset: usize) -> CubeTensor {
        Self::warp_forward(source, u, offset)
    }
}

/// `values` as a tensor on the device of `other`.
fn beside(other: &CubeTensor, values: Handle, shape: &[usize]) -> CubeTensor {
    let (client, device) = (other.client.clone(), other.device.clone());
    CubeTensor::new_contiguous(client, device, Shape::from(shape.to_vec()), values, other.dtype)
}
