//! What the kernels must compute, by definition and in f64, and the shapes on which they are asked: for the kernels of the CPU
//! and, in another crate, of the GPU.
#![allow(dead_code)] // every test takes what it needs

use jrs_kernels::Conv3d;
use jrs_kernels::upsample_concat::UpsampleConcat;
use jrs_kernels::warp::Warp;

/// Reproducible values in [-1, 1).
pub fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Largest difference, relative to the largest reference value.
pub fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-30, |most, v| v.abs().max(most));
    // A NaN is an error without end.
    let off = |(&g, w): (&f32, &f64)| if g.is_nan() { f64::INFINITY } else { (g as f64 - w).abs() / scale };
    got.iter().zip(want).map(off).fold(0.0, f64::max)
}

/// Asserts that the [`error`] is small.
pub fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    let error = error(got, want);
    assert!(error <= tolerance, "{what}: relative error {error:e}");
}

pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

/// Calls `visit(input index, weight index, output index)` for every product of the convolution: the definition.
fn products(conv: &Conv3d, mut visit: impl FnMut(usize, usize, usize)) {
    let ([d, h, w], [od, oh, ow], k) = (conv.input, conv.output(), conv.kernel);
    let source = |out: usize, tap: usize, size: usize| {
        (out * conv.stride + tap).checked_sub(conv.padding).filter(|&i| i < size)
    };
    for n in 0..conv.batch {
        for co in 0..conv.c_out {
            for out in 0..od * oh * ow {
                let (z, y, x) = (out / (oh * ow), out / ow % oh, out % ow);
                for ci in 0..conv.c_in {
                    for tap in 0..k * k * k {
                        let (kz, ky, kx) = (tap / (k * k), tap / k % k, tap % k);
                        if let (Some(z), Some(y), Some(x)) =
                            (source(z, kz, d), source(y, ky, h), source(x, kx, w))
                        {
                            visit(
                                (((n * conv.c_in + ci) * d + z) * h + y) * w + x,
                                (co * conv.c_in + ci) * k * k * k + tap,
                                (n * conv.c_out + co) * od * oh * ow + out,
                            );
                        }
                    }
                }
            }
        }
    }
}

/// A convolution with inputs and what must come out.
pub struct Convolution {
    pub conv: Conv3d,
    pub x: Vec<f32>,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub dy: Vec<f32>,
    /// Of the folded BatchNorm.
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    /// Forward.
    pub y: Vec<f64>,
    /// Forward with LeakyReLU of slope 0.2 and BatchNorm.
    pub normed: Vec<f64>,
    pub dx: Vec<f64>,
    pub dweight: Vec<f64>,
    pub dbias: Vec<f64>,
}

impl Convolution {
    pub fn new(conv: Conv3d, seed: u64) -> Self {
        let x = random(conv.input_len(), seed);
        let weight = random(conv.weight_len(), seed + 1);
        Self::of(conv, x, weight, seed)
    }

    /// The same with input and weights as `rounded` gives them.
    pub fn rounded(conv: Conv3d, seed: u64, rounded: impl Fn(f32) -> f32) -> Self {
        let exact = Self::new(conv, seed);
        let of = |values: Vec<f32>| values.into_iter().map(&rounded).collect();
        Self::of(conv, of(exact.x), of(exact.weight), seed)
    }

    /// The same with chosen input and weights.
    pub fn of(conv: Conv3d, x: Vec<f32>, weight: Vec<f32>, seed: u64) -> Self {
        let bias = random(conv.c_out, seed + 2);
        let dy = random(conv.output_len(), seed + 3);
        let (scale, shift) = (random(conv.c_out, seed + 4), random(conv.c_out, seed + 5));
        let voxels: usize = conv.output().iter().product();
        let channel = |i: usize| i / voxels % conv.c_out;

        let mut y: Vec<f64> = (0..dy.len()).map(|i| bias[channel(i)] as f64).collect();
        let (mut dx, mut dweight) = (vec![0.0f64; x.len()], vec![0.0f64; weight.len()]);
        products(&conv, |i, w, o| {
            y[o] += x[i] as f64 * weight[w] as f64;
            dx[i] += dy[o] as f64 * weight[w] as f64;
            dweight[w] += dy[o] as f64 * x[i] as f64;
        });
        let mut dbias = vec![0.0f64; conv.c_out];
        dy.iter().enumerate().for_each(|(i, &v)| dbias[channel(i)] += v as f64);
        let normed = y.iter().enumerate();
        let normed = normed
            .map(|(i, &v)| scale[channel(i)] as f64 * v.max(0.2 * v) + shift[channel(i)] as f64)
            .collect();
        Self { conv, x, weight, bias, dy, scale, shift, y, normed, dx, dweight, dbias }
    }
}

/// The kinds of layers of science.md sections 2 and 3, on small grids, each with a seed.
pub fn layers_of_the_networks() -> Vec<(Conv3d, u64)> {
    // (c_in, c_out, kernel, stride, padding)
    let layers = [
        (2, 16, 3, 1, 0),
        (16, 16, 3, 2, 1),
        (32, 64, 3, 1, 0),
        (48, 16, 3, 1, 0),
        (16, 3, 1, 1, 0),
        (3, 16, 3, 1, 0),
        (64, 1, 1, 1, 0),
    ];
    let conv = |(c_in, c_out, kernel, stride, padding)| Conv3d {
        batch: 1,
        c_in,
        c_out,
        input: [6, 9, 8],
        kernel,
        stride,
        padding,
    };
    layers.into_iter().map(conv).zip((1..).step_by(10)).collect()
}

pub fn strides_paddings_and_kernels() -> Vec<(Conv3d, u64)> {
    let kinds = [
        [1, 1, 0],
        [1, 2, 0],
        [1, 1, 1],
        [1, 2, 1],
        [3, 1, 0],
        [3, 1, 1],
        [3, 2, 0],
        [3, 2, 1],
        [2, 1, 0],
        [2, 2, 1],
    ];
    let mut cases = Vec::new();
    for (i, [kernel, stride, padding]) in kinds.into_iter().enumerate() {
        for (j, input) in [[3, 4, 5], [8, 7, 6], [5, 3, 19], [4, 12, 3]].into_iter().enumerate() {
            let conv = Conv3d { batch: 2, c_in: 3, c_out: 5, input, kernel, stride, padding };
            cases.push((conv, 1000 + i as u64 * 100 + j as u64 * 10));
        }
    }
    cases
}

pub fn random_shapes() -> Vec<(Conv3d, u64)> {
    let case = |seed: u64| {
        let pick = |i: u64, n: u64| ((random(1, seed * 31 + i + 7)[0] + 1.0) / 2.0 * n as f32) as usize;
        let conv = Conv3d {
            batch: 1 + pick(1, 2),
            c_in: 1 + pick(2, 20),
            c_out: 1 + pick(3, 18),
            input: [3 + pick(4, 6), 3 + pick(5, 12), 3 + pick(6, 30)],
            kernel: [1, 3, 3][pick(0, 3)],
            stride: 1 + pick(7, 2),
            padding: pick(8, 2),
        };
        (conv, 5000 + seed * 10)
    };
    (0..24).map(case).collect()
}

/// BatchNorm(LeakyReLU(x)) with the statistics of the batch; values lie `[batch, channels, spatial]`.
pub fn leaky_norm(x: &[f64], gamma: &[f32], beta: &[f32], spatial: usize, slope: f32, eps: f32) -> Vec<f64> {
    let channels = gamma.len();
    let a: Vec<f64> = x.iter().map(|&v| if v > 0.0 { v } else { slope as f64 * v }).collect();
    let mut y = vec![0.0; x.len()];
    for c in 0..channels {
        let mine = |i: &usize| i / spatial % channels == c;
        let count = (x.len() / channels) as f64;
        let mean = (0..a.len()).filter(mine).map(|i| a[i]).sum::<f64>() / count;
        let var = (0..a.len()).filter(mine).map(|i| (a[i] - mean).powi(2)).sum::<f64>() / count;
        for i in (0..a.len()).filter(mine) {
            y[i] = gamma[c] as f64 * (a[i] - mean) / (var + eps as f64).sqrt() + beta[c] as f64;
        }
    }
    y
}

/// A training batch with what LeakyReLU + BatchNorm and its gradient must give; slope 0.2, epsilon 1e-3.
pub struct LeakyNorm {
    pub batch: usize,
    pub channels: usize,
    pub spatial: usize,
    pub x: Vec<f32>,
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub dy: Vec<f32>,
    pub y: Vec<f64>,
    pub dx: Vec<f64>,
    pub dgamma: Vec<f64>,
    pub dbeta: Vec<f64>,
}

impl LeakyNorm {
    pub const SLOPE: f32 = 0.2;
    pub const EPS: f32 = 1e-3;

    /// Gradients are differences of the definition.
    pub fn new(batch: usize, channels: usize, spatial: usize) -> Self {
        // Far from zero mean, as convolutions' results are.
        let x: Vec<f32> = random(batch * channels * spatial, 1).iter().map(|v| 2.0 * v + 0.7).collect();
        let (gamma, beta, dy) = (random(channels, 2), random(channels, 3), random(x.len(), 4));
        let define = |x: &[f64], gamma: &[f32], beta: &[f32]| {
            leaky_norm(x, gamma, beta, spatial, Self::SLOPE, Self::EPS)
        };
        let loss = |x: &[f64], gamma: &[f32], beta: &[f32]| -> f64 {
            define(x, gamma, beta).iter().zip(&dy).map(|(y, &d)| y * d as f64).sum()
        };
        let exact: Vec<f64> = x.iter().map(|&v| v as f64).collect();
        let step = 1e-5;
        let difference = |i: usize| {
            let (mut up, mut down) = (exact.clone(), exact.clone());
            up[i] += step;
            down[i] -= step;
            (loss(&up, &gamma, &beta) - loss(&down, &gamma, &beta)) / (2.0 * step)
        };
        // The loss is linear in gamma and beta: the slope is exact for any step.
        let linear = |change: &dyn Fn(&mut [f32], &mut [f32])| {
            let (mut g, mut b) = (vec![0.0; channels], vec![0.0; channels]);
            change(&mut g, &mut b);
            loss(&exact, &g, &b)
        };
        Self {
            batch,
            channels,
            spatial,
            y: define(&exact, &gamma, &beta),
            dx: (0..x.len()).map(difference).collect(),
            dgamma: (0..channels).map(|c| linear(&|g, _| g[c] = 1.0)).collect(),
            dbeta: (0..channels).map(|c| linear(&|_, b| b[c] = 1.0)).collect(),
            x,
            gamma,
            beta,
            dy,
        }
    }
}

/// Nearest upsampling beside the centre of a skip connection.
pub fn upsample_concat(op: &UpsampleConcat, a: &[f32], skip: &[f32]) -> Vec<f32> {
    let ([d, h, w], [sd, sh, sw], [ld, lh, lw]) = (op.output(), op.skip(), op.low);
    let (c_up, c_skip, crop) = (op.c_up, op.c_skip, op.crop);
    let value = |i: usize| {
        let (x, y, z, volume) = (i % w, i / w % h, i / (w * h) % d, i / (w * h * d));
        let (c, n) = (volume % (c_up + c_skip), volume / (c_up + c_skip));
        if c < c_up {
            a[(((n * c_up + c) * ld + z / 2) * lh + y / 2) * lw + x / 2]
        } else {
            skip[(((n * c_skip + c - c_up) * sd + z + crop) * sh + y + crop) * sw + x + crop]
        }
    };
    (0..op.output_len()).map(value).collect()
}

/// The warp, for a displacement in f64.
pub fn warp(warp: &Warp, source: &[f32], u: &[f64]) -> Vec<f64> {
    let ([sd, sh, sw], [d, h, w]) = (warp.source, warp.output);
    let voxels = d * h * w;
    let mut y = vec![0.0; warp.output_len()];
    for (i, value) in y.iter_mut().enumerate() {
        let (m, volume) = (i % voxels, i / voxels);
        let n = volume / warp.channels;
        let position =
            [(m / (h * w), 2, sd), (m / w % h, 1, sh), (m % w, 0, sw)].map(|(m, component, size)| {
                let u = u[(n * 3 + component) * voxels + i % voxels];
                ((m + warp.offset) as f64 + u).clamp(0.0, (size - 1) as f64)
            });
        for corner in 0..8 {
            let mut weight = 1.0;
            let mut index = volume;
            for (axis, size) in [sd, sh, sw].into_iter().enumerate() {
                let low = position[axis].floor();
                let f = position[axis] - low;
                let up = corner >> axis & 1;
                weight *= if up == 1 { f } else { 1.0 - f };
                index = index * size + (low as usize + up).min(size - 1);
            }
            *value += weight * source[index] as f64;
        }
    }
    y
}

/// Gradient of [`warp`] in the displacement, as differences.
pub fn warp_gradient(geometry: &Warp, source: &[f32], u: &[f32], dy: &[f32]) -> Vec<f64> {
    let exact: Vec<f64> = u.iter().map(|&v| v as f64).collect();
    let step = 1e-6;
    let difference = |i: usize| {
        let mut moved = exact.clone();
        let mut loss = |value: f64| {
            moved[i] = value;
            let y = warp(geometry, source, &moved);
            y.iter().zip(dy).map(|(y, &d)| y * d as f64).sum::<f64>()
        };
        (loss(exact[i] + step) - loss(exact[i] - step)) / (2.0 * step)
    };
    (0..u.len()).map(difference).collect()
}
