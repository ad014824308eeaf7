//! LeakyReLU, then BatchNorm with the statistics of the training batch (the order of science.md section 2).
//!
//! Activations are the largest tensors of a training step and these functions only stream them, so each is
//! one pass: LeakyReLU is recomputed from the convolution's result wherever it is needed, never stored.
//!
//! With `a = leaky(x)`, `h = (a - mean) / sqrt(var + eps)` and `M` values per channel:
//! `y = gamma*h + beta`, `dgamma = sum dy*h`, `dbeta = sum dy` and
//! `da = gamma / sqrt(var + eps) * (dy - dbeta/M - h*dgamma/M)` (Ioffe and Szegedy 2015, section 3).

use rayon::prelude::*;

use crate::simd::{Isa, Kernel, Simd};

/// Values per task: 64 KiB, so that a task is worth its start and sums have a fixed order.
const CHUNK: usize = 1 << 14;

/// Mean and biased variance of `leaky(x)` per channel, over batch and space. `x` is `[batch, channels, spatial]`.
///
/// # Panics
/// If `x` is not `batch * channels * spatial` long.
pub fn batch_stats(
    x: &[f32],
    batch: usize,
    channels: usize,
    spatial: usize,
    slope: f32,
) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(x.len(), batch * channels * spatial, "x is [batch, channels, spatial]");
    let sums = channel_sums(x.len(), channels, spatial, |_, range, sums| {
        Isa::best().run(Moments { x: &x[range], slope, sums });
    });
    let count = (batch * spatial) as f64;
    sums.iter()
        .map(|[sum, squares]| {
            let mean = sum / count;
            (mean as f32, (squares / count - mean * mean).max(0.0) as f32)
        })
        .unzip()
}

/// `y = gamma * (leaky(x) - mean) / sqrt(var + eps) + beta`. `x` and `y` are `[batch, channels, spatial]` for any
/// batch; the other slices have a value per channel. Returns nothing; overwrites `y`.
///
/// # Panics
/// If a length is wrong.
pub fn forward(
    x: &[f32],
    mean: &[f32],
    var: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    slope: f32,
    spatial: usize,
    y: &mut [f32],
) {
    let channels = mean.len();
    check_channels(channels, [var.len(), gamma.len(), beta.len()]);
    assert!(x.len() == y.len() && x.len().is_multiple_of(channels * spatial), "x and y");
    y.par_chunks_mut(spatial).zip(x.par_chunks(spatial)).enumerate().for_each(|(volume, (y, x))| {
        let c = volume % channels;
        let scale = gamma[c] / (var[c] + eps).sqrt();
        let shift = beta[c] - mean[c] * scale;
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            Isa::best().run(Apply { x, y, slope, scale, shift });
        });
    });
}

/// Gradients of [`forward`] through the statistics: overwrites `dx`, `dgamma` and `dbeta`.
///
/// # Panics
/// If a length is wrong.
pub fn backward(
    x: &[f32],
    dy: &[f32],
    mean: &[f32],
    var: &[f32],
    gamma: &[f32],
    eps: f32,
    slope: f32,
    spatial: usize,
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let channels = mean.len();
    check_channels(channels, [var.len(), gamma.len(), dgamma.len()]);
    check_channels(channels, [dbeta.len(); 3]);
    assert!(x.len() == dx.len() && x.len() == dy.len(), "x, dy and dx");
    assert!(x.len().is_multiple_of(channels * spatial), "x is [batch, channels, spatial]");

    // [sum dy, sum dy * (a - mean)]
    let sums = channel_sums(x.len(), channels, spatial, |c, range, sums| {
        Isa::best().run(GradientSums { x: &x[range.clone()], dy: &dy[range], slope, mean: mean[c], sums });
    });
    let count = (x.len() / channels) as f64;
    let mut line = Vec::with_capacity(channels);
    for (c, [sum, product]) in sums.into_iter().enumerate() {
        let inverse = 1.0 / (var[c] as f64 + eps as f64).sqrt();
        dbeta[c] = sum as f32;
        dgamma[c] = (product * inverse) as f32;
        // da = on_dy * dy + on_a * a + constant
        let on_dy = gamma[c] as f64 * inverse;
        let on_a = -on_dy * inverse * inverse * product / count;
        let constant = -on_dy * sum / count - on_a * mean[c] as f64;
        line.push([on_dy as f32, on_a as f32, constant as f32]);
    }
    dx.par_chunks_mut(spatial).zip(x.par_chunks(spatial)).zip(dy.par_chunks(spatial)).enumerate().for_each(
        |(volume, ((dx, x), dy))| {
            let line = line[volume % channels];
            dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)).for_each(
                |((dx, x), dy)| {
                    Isa::best().run(Gradient { x, dy, dx, slope, line });
                },
            );
        },
    );
}

fn check_channels(channels: usize, lengths: [usize; 3]) {
    assert_eq!(lengths, [channels; 3], "one value per channel");
}

/// Two f64 sums per channel; `add(channel, range, sums)` adds those of one range. Ranges are fixed and added in order.
fn channel_sums(
    len: usize,
    channels: usize,
    spatial: usize,
    add: impl Fn(usize, std::ops::Range<usize>, &mut [f64; 2]) + Sync,
) -> Vec<[f64; 2]> {
    let pieces = spatial.div_ceil(CHUNK);
    let parts: Vec<[f64; 2]> = (0..len / spatial * pieces)
        .into_par_iter()
        .map(|task| {
            let (volume, first) = (task / pieces, task % pieces * CHUNK);
            let mut sums = [0.0; 2];
            let start = volume * spatial;
            add(volume % channels, start + first..start + (first + CHUNK).min(spatial), &mut sums);
            sums
        })
        .collect();
    let mut total = vec![[0.0; 2]; channels];
    for (task, part) in parts.iter().enumerate() {
        let sums = &mut total[task / pieces % channels];
        sums[0] += part[0];
        sums[1] += part[1];
    }
    total
}

#[inline(always)]
fn leaky(x: f32, slope: f32) -> f32 {
    if x > 0.0 { x } else { slope * x }
}

/// Running totals, enough that additions do not wait for each other.
const TOTALS: usize = 16;

/// Adds `[sum a, sum a*a]` with `a = leaky(x)`.
struct Moments<'a> {
    x: &'a [f32],
    slope: f32,
    sums: &'a mut [f64; 2],
}

impl Kernel for Moments<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (mut sum, mut squares) = ([0.0f64; TOTALS], [0.0f64; TOTALS]);
        let (groups, rest) = self.x.as_chunks::<TOTALS>();
        for group in groups {
            for i in 0..TOTALS {
                let a = leaky(group[i], self.slope);
                sum[i] += a as f64;
                squares[i] += (a * a) as f64;
            }
        }
        for (i, &x) in rest.iter().enumerate() {
            let a = leaky(x, self.slope);
            sum[i] += a as f64;
            squares[i] += (a * a) as f64;
        }
        self.sums[0] += sum.iter().sum::<f64>();
        self.sums[1] += squares.iter().sum::<f64>();
    }
}

/// Adds `[sum dy, sum dy * (a - mean)]` with `a = leaky(x)`.
struct GradientSums<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    slope: f32,
    mean: f32,
    sums: &'a mut [f64; 2],
}

impl Kernel for GradientSums<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (mut sum, mut product) = ([0.0f64; TOTALS], [0.0f64; TOTALS]);
        let (xs, rest_x) = self.x.as_chunks::<TOTALS>();
        let (dys, rest_dy) = self.dy.as_chunks::<TOTALS>();
        for (x, dy) in xs.iter().zip(dys) {
            for i in 0..TOTALS {
                sum[i] += dy[i] as f64;
                product[i] += (dy[i] * (leaky(x[i], self.slope) - self.mean)) as f64;
            }
        }
        for (i, (&x, &dy)) in rest_x.iter().zip(rest_dy).enumerate() {
            sum[i] += dy as f64;
            product[i] += (dy * (leaky(x, self.slope) - self.mean)) as f64;
        }
        self.sums[0] += sum.iter().sum::<f64>();
        self.sums[1] += product.iter().sum::<f64>();
    }
}

/// `y = scale * leaky(x) + shift`.
struct Apply<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    slope: f32,
    scale: f32,
    shift: f32,
}

impl Kernel for Apply<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (y, &x) in self.y.iter_mut().zip(self.x) {
            *y = self.scale * leaky(x, self.slope) + self.shift;
        }
    }
}

/// `dx = leaky'(x) * (line[0] * dy + line[1] * leaky(x) + line[2])`.
struct Gradient<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    slope: f32,
    line: [f32; 3],
}

impl Kernel for Gradient<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let [on_dy, on_a, constant] = self.line;
        for ((dx, &x), &dy) in self.dx.iter_mut().zip(self.x).zip(self.dy) {
            let factor = if x > 0.0 { 1.0 } else { self.slope };
            *dx = factor * (on_dy * dy + on_a * (factor * x) + constant);
        }
    }
}
