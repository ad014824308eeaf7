//! LeakyReLU, then BatchNorm with the statistics of the training batch; see `jrs_kernels::leaky_norm` for the formulas.
//!
//! Activations are streamed once forward and twice backward; LeakyReLU is recomputed, never stored.

use cubecl::prelude::*;

use crate::channel_sums::{PartialSums, Terms, channel_sums, total};
use crate::launch::{Span, grid, values, width};
use crate::{Client, Handle, buffer};

/// Mean (the first `channels` values) and biased variance (the others) of `leaky(x)` per channel, over batch and space. `x` is
/// `[batch, channels, spatial]`.
///
/// # Panics
/// If a buffer is too short.
pub fn statistics(
    client: &Client,
    x: &Handle,
    batch: usize,
    channels: usize,
    spatial: usize,
    slope: f32,
) -> Handle {
    let sums = channel_sums(client, Terms::Moments, x, x, x, batch, channels, spatial, slope);
    let statistics = buffer::for_overwriting::<f32>(client, 2 * channels);
    // SAFETY: a cube for each channel.
    unsafe {
        moments::launch_unchecked(
            client,
            grid(channels),
            sums.span.dim(),
            values::<f64>(&sums.parts, sums.len, "partial sums"),
            values::<f32>(&statistics, 2 * channels, "statistics"),
            channels,
            sums.pieces,
            sums.count as f64,
            sums.span,
        );
    }
    statistics
}

/// `y = gamma * (leaky(x) - mean) / sqrt(var + eps) + beta`, with `statistics` as [`statistics()`] gives them.
///
/// # Panics
/// If a buffer is too short.
pub fn forward(
    client: &Client,
    x: &Handle,
    statistics: &Handle,
    gamma: &Handle,
    beta: &Handle,
    eps: f32,
    slope: f32,
    batch: usize,
    channels: usize,
    spatial: usize,
) -> Handle {
    let len = batch * channels * spatial;
    let y = buffer::for_overwriting::<f32>(client, len);
    let span = Span::free(width(client));
    // SAFETY: a cube handles a piece of one volume, clipped to it.
    unsafe {
        apply::launch_unchecked(
            client,
            grid(batch * channels * span.cubes(spatial)),
            span.dim(),
            values::<f32>(x, len, "x"),
            values::<f32>(statistics, 2 * channels, "statistics"),
            values::<f32>(gamma, channels, "gamma"),
            values::<f32>(beta, channels, "beta"),
            values::<f32>(&y, len, "y"),
            channels,
            spatial,
            eps,
            slope,
            span,
        );
    }
    y
}

/// Gradients of [`forward`] through the statistics: of `x`, and `[2, channels]` of gamma (row 0) and beta (row 1).
///
/// # Panics
/// If a buffer is too short.
pub fn backward(
    client: &Client,
    x: &Handle,
    dy: &Handle,
    statistics: &Handle,
    gamma: &Handle,
    eps: f32,
    slope: f32,
    batch: usize,
    channels: usize,
    spatial: usize,
) -> (Handle, Handle) {
    let len = batch * channels * spatial;
    let sums = channel_sums(client, Terms::Gradient, x, dy, statistics, batch, channels, spatial, slope);
    let (line, dparams) = line(client, &sums, statistics, gamma, eps);
    let dx = buffer::for_overwriting::<f32>(client, len);
    let span = Span::free(width(client));
    // SAFETY: a cube handles a piece of one volume, clipped to it.
    unsafe {
        gradient::launch_unchecked(
            client,
            grid(batch * channels * span.cubes(spatial)),
            span.dim(),
            values::<f32>(x, len, "x"),
            values::<f32>(dy, len, "dy"),
            values::<f32>(&line, 3 * channels, "line"),
            values::<f32>(&dx, len, "dx"),
            channels,
            spatial,
            slope,
            span,
        );
    }
    (dx, dparams)
}

/// `[channels, 3]`: what `dy`, `a` and 1 are multiplied by in `da`; and the gradients of gamma and beta.
fn line(
    client: &Client,
    sums: &PartialSums,
    statistics: &Handle,
    gamma: &Handle,
    eps: f32,
) -> (Handle, Handle) {
    let channels = sums.channels;
    let line = buffer::for_overwriting::<f32>(client, 3 * channels);
    let dparams = buffer::for_overwriting::<f32>(client, 2 * channels);
    // SAFETY: a cube for each channel.
    unsafe {
        gradient_line::launch_unchecked(
            client,
            grid(channels),
            sums.span.dim(),
            values::<f64>(&sums.parts, sums.len, "partial sums"),
            values::<f32>(statistics, 2 * channels, "statistics"),
            values::<f32>(gamma, channels, "gamma"),
            values::<f32>(&line, 3 * channels, "line"),
            values::<f32>(&dparams, 2 * channels, "gradients of gamma and beta"),
            channels,
            sums.pieces,
            sums.count as f64,
            eps,
            sums.span,
        );
    }
    (line, dparams)
}

#[cube(launch_unchecked)]
fn moments(
    parts: &[f64],
    statistics: &mut [f32],
    channels: usize,
    pieces: usize,
    count: f64,
    #[comptime] span: Span,
) {
    let (sum, squares) = total(parts, channels, pieces, span);
    if UNIT_POS == 0 {
        let c = CUBE_POS_X as usize;
        let mean = sum / count;
        let var = max(squares / count - mean * mean, 0.0f64);
        statistics[c] = f32::cast_from(mean);
        statistics[channels + c] = f32::cast_from(var);
    }
}

#[cube(launch_unchecked)]
fn apply(
    x: &[f32],
    statistics: &[f32],
    gamma: &[f32],
    beta: &[f32],
    y: &mut [f32],
    channels: usize,
    spatial: usize,
    eps: f32,
    slope: f32,
    #[comptime] span: Span,
) {
    let pieces = spatial.div_ceil(comptime!(span.units * span.each));
    let volume = CUBE_POS_X as usize / pieces;
    let first = CUBE_POS_X as usize % pieces * comptime!(span.units * span.each) + UNIT_POS as usize;
    let c = volume % channels;
    let scale = gamma[c] / (statistics[channels + c] + eps).sqrt();
    let shift = beta[c] - statistics[c] * scale;
    for i in 0..comptime!(span.each) {
        let at = first + i * comptime!(span.units);
        if at < spatial {
            let value = x[volume * spatial + at];
            y[volume * spatial + at] = scale * select(value > 0.0f32, value, slope * value) + shift;
        }
    }
}

#[cube(launch_unchecked)]
fn gradient_line(
    parts: &[f64],
    statistics: &[f32],
    gamma: &[f32],
    line: &mut [f32],
    dparams: &mut [f32],
    channels: usize,
    pieces: usize,
    count: f64,
    eps: f32,
    #[comptime] span: Span,
) {
    let (sum, product) = total(parts, channels, pieces, span);
    if UNIT_POS == 0 {
        let c = CUBE_POS_X as usize;
        let mean = f64::cast_from(statistics[c]);
        let inverse = 1.0f64 / (f64::cast_from(statistics[channels + c]) + f64::cast_from(eps)).sqrt();
        dparams[c] = f32::cast_from(product * inverse);
        dparams[channels + c] = f32::cast_from(sum);
        let on_dy = f64::cast_from(gamma[c]) * inverse;
        let on_a = -on_dy * inverse * inverse * product / count;
        line[3 * c] = f32::cast_from(on_dy);
        line[3 * c + 1] = f32::cast_from(on_a);
        line[3 * c + 2] = f32::cast_from(-on_dy * sum / count - on_a * mean);
    }
}

#[cube(launch_unchecked)]
fn gradient(
    x: &[f32],
    dy: &[f32],
    line: &[f32],
    dx: &mut [f32],
    channels: usize,
    spatial: usize,
    slope: f32,
    #[comptime] span: Span,
) {
    let pieces = spatial.div_ceil(comptime!(span.units * span.each));
    let volume = CUBE_POS_X as usize / pieces;
    let first = CUBE_POS_X as usize % pieces * comptime!(span.units * span.each) + UNIT_POS as usize;
    let c = volume % channels;
    for i in 0..comptime!(span.each) {
        let at = first + i * comptime!(span.units);
        if at < spatial {
            let value = x[volume * spatial + at];
            let factor = select(value > 0.0f32, 1.0f32, slope);
            let da = line[3 * c] * dy[volume * spatial + at]
                + line[3 * c + 1] * (factor * value)
                + line[3 * c + 2];
            dx[volume * spatial + at] = factor * da;
        }
    }
}

/// The kernels, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(crate) fn offline(kernels: &mut crate::ptx::Offline) {
    use crate::launch::Width;
    use crate::ptx::buffer;
    let (span, sums) = (Span::free(Width::Gpu), Span::sums(Width::Gpu));
    kernels.add("leaky_norm statistics, total", sums.units, |s, d, t| {
        moments::Moments::new(s, d, t, buffer(), buffer(), (), (), (), sums)
    });
    kernels.add("leaky_norm", span.units, |s, d, t| {
        let b = buffer;
        apply::Apply::new(s, d, t, b(), b(), b(), b(), b(), (), (), (), (), span)
    });
    kernels.add("leaky_norm gradient, total", sums.units, |s, d, t| {
        let b = buffer;
        gradient_line::GradientLine::new(s, d, t, b(), b(), b(), b(), b(), (), (), (), (), sums)
    });
    kernels.add("leaky_norm gradient", span.units, |s, d, t| {
        gradient::Gradient::new(s, d, t, buffer(), buffer(), buffer(), buffer(), (), (), (), span)
    });
}
