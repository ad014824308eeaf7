//! Sums per channel, two at a time, in an order that depends on the shape only.
//!
//! ```text
//!  x of channel c, all volumes        partial sums                sums
//!  |piece|piece|piece| |piece|...  -> p p p p ...  (f64 pairs) -> one cube a channel: unit u adds p[u], p[u + units] ...,
//!    one cube each                                                then the units are added in pairs
//! ```
//!
//! In f64, as on the CPU: a GPU for which this matters has f64 units enough not to wait for them, as memory is read far slower.

use cubecl::prelude::*;

use crate::launch::{Span, grid, values, width};
use crate::{Client, Handle, buffer};

/// What is added up, for a value x of channel c and a = leaky(x).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Terms {
    /// x, and nothing.
    Values,
    /// a and a^2.
    Moments,
    /// dy and dy * (a - mean of c).
    Gradient,
}

/// Partial sums of all channels, to be finished by [`total`].
pub(crate) struct PartialSums {
    /// f64 pairs.
    pub parts: Handle,
    /// How many there are.
    pub len: usize,
    pub channels: usize,
    /// Pairs of a volume of a channel.
    pub pieces: usize,
    /// Values added up for a channel.
    pub count: usize,
    pub span: Span,
}

/// Queues the partial sums of `x`, `[batch, channels, spatial]`; `dy` and `mean` count for [`Terms::Gradient`] only.
pub(crate) fn channel_sums(
    client: &Client,
    terms: Terms,
    x: &Handle,
    dy: &Handle,
    mean: &Handle,
    batch: usize,
    channels: usize,
    spatial: usize,
    slope: f32,
) -> PartialSums {
    let span = Span::sums(width(client));
    let pieces = span.cubes(spatial);
    let cubes = batch * channels * pieces;
    let parts = buffer::for_overwriting::<f64>(client, 2 * cubes);
    let len = batch * channels * spatial;
    let gradient = terms == Terms::Gradient;
    // SAFETY: a cube reads the values of one piece, clipped to its volume.
    unsafe {
        partial_sums::launch_unchecked(
            client,
            grid(cubes),
            span.dim(),
            values::<f32>(x, len, "x"),
            values::<f32>(dy, if gradient { len } else { 0 }, "dy"),
            values::<f32>(mean, if gradient { channels } else { 0 }, "mean"),
            values::<f64>(&parts, 2 * cubes, "partial sums"),
            channels,
            spatial,
            slope,
            terms,
            span,
        );
    }
    PartialSums { parts, len: 2 * cubes, channels, pieces, count: batch * spatial, span }
}

impl PartialSums {
    /// The first sum of each channel, in f32.
    pub(crate) fn first(&self, client: &Client) -> Handle {
        let sums = buffer::for_overwriting::<f32>(client, self.channels);
        // SAFETY: a cube for each channel.
        unsafe {
            first_sums::launch_unchecked(
                client,
                grid(self.channels),
                self.span.dim(),
                values::<f64>(&self.parts, self.len, "partial sums"),
                values::<f32>(&sums, self.channels, "sums"),
                self.channels,
                self.pieces,
                self.span,
            );
        }
        sums
    }
}

#[cube(launch_unchecked)]
fn partial_sums(
    x: &[f32],
    dy: &[f32],
    mean: &[f32],
    parts: &mut [f64],
    channels: usize,
    spatial: usize,
    slope: f32,
    #[comptime] terms: Terms,
    #[comptime] span: Span,
) {
    let pieces = spatial.div_ceil(comptime!(span.units * span.each));
    let cube = CUBE_POS_X as usize;
    let volume = cube / pieces;
    let first = cube % pieces * comptime!(span.units * span.each) + UNIT_POS as usize;
    let mut sum = 0.0f64;
    let mut other = 0.0f64;
    for i in 0..comptime!(span.each) {
        let at = first + i * comptime!(span.units);
        if at < spatial {
            let value = x[volume * spatial + at];
            if comptime!(terms == Terms::Values) {
                sum += f64::cast_from(value);
            } else {
                let a = f64::cast_from(select(value > 0.0f32, value, slope * value));
                if comptime!(terms == Terms::Moments) {
                    sum += a;
                    other += a * a;
                } else {
                    let gradient = f64::cast_from(dy[volume * spatial + at]);
                    sum += gradient;
                    other += gradient * (a - f64::cast_from(mean[volume % channels]));
                }
            }
        }
    }
    let (sum, other) = add_units(sum, other, comptime!(span.units));
    if UNIT_POS == 0 {
        parts[2 * cube] = sum;
        parts[2 * cube + 1] = other;
    }
}

#[cube(launch_unchecked)]
fn first_sums(parts: &[f64], sums: &mut [f32], channels: usize, pieces: usize, #[comptime] span: Span) {
    let (sum, _other) = total(parts, channels, pieces, span);
    if UNIT_POS == 0 {
        sums[CUBE_POS_X as usize] = f32::cast_from(sum);
    }
}

/// The two sums of channel `CUBE_POS_X`, for unit 0.
#[cube]
pub(crate) fn total(parts: &[f64], channels: usize, pieces: usize, #[comptime] span: Span) -> (f64, f64) {
    let c = CUBE_POS_X as usize;
    let pairs = parts.len() / (2 * channels); // of a channel
    let mut sum = 0.0f64;
    let mut other = 0.0f64;
    for i in range_stepped(UNIT_POS as usize, pairs, comptime!(span.units)) {
        let n = i / pieces;
        let at = 2 * ((n * channels + c) * pieces + i % pieces);
        sum += parts[at];
        other += parts[at + 1];
    }
    add_units(sum, other, comptime!(span.units))
}

/// Adds a pair of every unit, for unit 0: first unit u + half to u, and so on with half as many.
#[cube]
fn add_units(sum: f64, other: f64, #[comptime] units: usize) -> (f64, f64) {
    let mut first = sum;
    let mut second = other;
    if comptime!(units > 1) {
        let mut firsts = Shared::<[f64]>::new_slice(units);
        let mut seconds = Shared::<[f64]>::new_slice(units);
        let unit = UNIT_POS as usize;
        firsts[unit] = first;
        seconds[unit] = second;
        sync_cube();
        let mut half = comptime!(units / 2).runtime();
        while half > 0 {
            if unit < half {
                first += firsts[unit + half];
                second += seconds[unit + half];
                firsts[unit] = first;
                seconds[unit] = second;
            }
            sync_cube();
            half /= 2;
        }
    }
    (first, second)
}

/// The kernels, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(crate) fn offline(kernels: &mut crate::ptx::Offline) {
    use crate::launch::Width;
    use crate::ptx::buffer;
    let span = Span::sums(Width::Gpu);
    for terms in [Terms::Values, Terms::Moments, Terms::Gradient] {
        kernels.add(format!("sums of {terms:?}"), span.units, |s, d, t| {
            let b = buffer;
            partial_sums::PartialSums::new(s, d, t, b(), b(), b(), b(), (), (), (), terms, span)
        });
    }
    kernels.add("sums of Values, total", span.units, |s, d, t| {
        first_sums::FirstSums::new(s, d, t, buffer(), buffer(), (), (), span)
    });
}
