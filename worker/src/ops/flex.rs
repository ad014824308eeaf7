//! The CPU: [`KernelOps`] for Burn's Flex backend on top of `jrs-kernels`.

use super::geometry::{convolution, dims, of_bias, upsampling, warping};
use super::{ConvSpec, Flex, FloatTensor, KernelOps, NetOps};
use burn::backend::TensorMetadata;
use burn::tensor::TensorData;
use burn_flex::FlexTensor;
use jrs_kernels::memory::for_overwriting;
use jrs_kernels::{Conv3d, leaky_norm};
use libjrs::network::{BN_EPSILON, LEAKY_SLOPE};

impl KernelOps for Flex {
    fn conv3d_forward(x: FlexTensor, weight: FlexTensor, bias: FlexTensor, spec: ConvSpec) -> FlexTensor {
        convolve(x, weight, bias, spec, |conv, x, weight, bias, y| {
            conv.forward(x, weight, bias, y);
        })
    }

    fn conv3d_input_gradient(
        x: FlexTensor,
        weight: FlexTensor,
        dy: FlexTensor,
        spec: ConvSpec,
    ) -> FlexTensor {
        let conv = convolution(&x, &weight, spec);
        let mut dx = for_overwriting(conv.input_len());
        let (weight, dy) = (weight.to_contiguous(), dy.to_contiguous());
        conv.input_gradient(values(&dy), values(&weight), &mut dx);
        tensor(dx, x.shape().to_vec())
    }

    fn conv3d_weight_gradient(
        x: FlexTensor,
        weight: FlexTensor,
        dy: FlexTensor,
        spec: ConvSpec,
    ) -> FlexTensor {
        let conv = convolution(&x, &weight, spec);
        let mut dweight = vec![0.0; conv.weight_len()];
        let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
        conv.weight_gradient(values(&x), values(&dy), &mut dweight);
        tensor(dweight, weight.shape().to_vec())
    }

    fn conv3d_bias_gradient(dy: FlexTensor) -> FlexTensor {
        let conv = of_bias(&dy);
        let dy = dy.to_contiguous();
        let mut dbias = vec![0.0; conv.c_out];
        conv.bias_gradient(values(&dy), &mut dbias);
        tensor(dbias, vec![conv.c_out])
    }

    fn leaky_statistics(x: FlexTensor) -> FlexTensor {
        let [n, c, d, h, w] = dims(&x);
        let x = x.to_contiguous();
        let (mean, var) = leaky_norm::batch_stats(values(&x), n, c, d * h * w, LEAKY_SLOPE);
        tensor([mean, var].concat(), vec![2, c])
    }

    fn leaky_norm_forward(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        statistics: FlexTensor,
    ) -> FlexTensor {
        let (x, gamma, beta) = (x.to_contiguous(), gamma.to_contiguous(), beta.to_contiguous());
        let statistics = statistics.to_contiguous();
        let (mean, var) = halves(values(&statistics));
        let [_, _, d, h, w] = dims(&x);
        let mut y = for_overwriting(values(&x).len());
        leaky_norm::forward(
            values(&x),
            mean,
            var,
            values(&gamma),
            values(&beta),
            BN_EPSILON,
            LEAKY_SLOPE,
            d * h * w,
            &mut y,
        );
        tensor(y, x.shape().to_vec())
    }

    fn leaky_norm_backward(
        x: FlexTensor,
        gamma: FlexTensor,
        statistics: FlexTensor,
        dy: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (x, gamma, dy) = (x.to_contiguous(), gamma.to_contiguous(), dy.to_contiguous());
        let statistics = statistics.to_contiguous();
        let (mean, var) = halves(values(&statistics));
        let [_, channels, d, h, w] = dims(&x);
        let mut dx = for_overwriting(values(&x).len());
        let mut dparams = vec![0.0; 2 * channels];
        let (dgamma, dbeta) = dparams.split_at_mut(channels);
        leaky_norm::backward(
            values(&x),
            values(&dy),
            mean,
            var,
            values(&gamma),
            BN_EPSILON,
            LEAKY_SLOPE,
            d * h * w,
            &mut dx,
            dgamma,
            dbeta,
        );
        (tensor(dx, x.shape().to_vec()), tensor(dparams, vec![2, channels]))
    }

    fn upsample_concat_forward(deep: FlexTensor, skip: FlexTensor, crop: usize) -> FlexTensor {
        let geometry = upsampling(&deep, &skip, crop);
        let (deep, skip) = (deep.to_contiguous(), skip.to_contiguous());
        let mut y = for_overwriting(geometry.output_len());
        geometry.forward(values(&deep), values(&skip), &mut y);
        let [d, h, w] = geometry.output();
        tensor(y, vec![geometry.batch, geometry.c_up + geometry.c_skip, d, h, w])
    }

    fn upsample_concat_backward(
        deep: FlexTensor,
        skip: FlexTensor,
        dy: FlexTensor,
        crop: usize,
    ) -> (FlexTensor, FlexTensor) {
        let geometry = upsampling(&deep, &skip, crop);
        let dy = dy.to_contiguous();
        let mut ddeep = for_overwriting(deep.shape().num_elements());
        let mut dskip = for_overwriting(skip.shape().num_elements());
        geometry.backward(values(&dy), &mut ddeep, &mut dskip);
        (tensor(ddeep, deep.shape().to_vec()), tensor(dskip, skip.shape().to_vec()))
    }

    fn warp_forward(source: FlexTensor, u: FlexTensor, offset: usize) -> FlexTensor {
        let geometry = warping(&source, &u, offset);
        let (source, u) = (source.to_contiguous(), u.to_contiguous());
        let [n, _, d, h, w] = dims(&u);
        let mut y = for_overwriting(n * geometry.channels * d * h * w);
        geometry.forward(values(&source), values(&u), &mut y);
        tensor(y, vec![n, geometry.channels, d, h, w])
    }

    fn warp_backward(source: FlexTensor, u: FlexTensor, dy: FlexTensor, offset: usize) -> FlexTensor {
        let geometry = warping(&source, &u, offset);
        let (source, u, dy) = (source.to_contiguous(), u.to_contiguous(), dy.to_contiguous());
        let mut du = for_overwriting(values(&u).len());
        geometry.backward(values(&source), values(&u), values(&dy), &mut du);
        tensor(du, u.shape().to_vec())
    }
}

impl NetOps for Flex {
    fn conv3d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spec: ConvSpec,
    ) -> FloatTensor<Self> {
        convolve(x, weight, bias, spec, Conv3d::forward_untracked)
    }

    fn leaky_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::leaky_norm_forward(x, gamma, beta, statistics)
    }

    fn upsample_concat(deep: FloatTensor<Self>, skip: FloatTensor<Self>, crop: usize) -> FloatTensor<Self> {
        Self::upsample_concat_forward(deep, skip, crop)
    }

    fn warp(source: FloatTensor<Self>, u: FloatTensor<Self>, offset: usize) -> FloatTensor<Self> {
        Self::warp_forward(source, u, offset)
    }
}

/// A convolution plus bias by `run(conv, x, weight, bias, y)`.
fn convolve(
    x: FlexTensor,
    weight: FlexTensor,
    bias: FlexTensor,
    spec: ConvSpec,
    run: impl Fn(&Conv3d, &[f32], &[f32], &[f32], &mut [f32]),
) -> FlexTensor {
    let conv = convolution(&x, &weight, spec);
    let mut y = for_overwriting(conv.output_len());
    let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
    run(&conv, values(&x), values(&weight), values(&bias), &mut y);
    let [d, h, w] = conv.output();
    tensor(y, vec![conv.batch, conv.c_out, d, h, w])
}

/// The values of a contiguous tensor.
fn values(t: &FlexTensor) -> &[f32] {
    t.as_slice::<f32>().expect("contiguous f32")
}

fn halves(statistics: &[f32]) -> (&[f32], &[f32]) {
    statistics.split_at(statistics.len() / 2)
}

fn tensor(data: Vec<f32>, shape: Vec<usize>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape))
}
