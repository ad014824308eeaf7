//! The mean of gradients, the same to the last bit in whatever order they are added; see `jrs_kernels::exact_sum`, whose bits
//! these are. A value is scaled by shifting its mantissa, rounded half to even: what the CPU's exact product in f64 gives.

use cubecl::prelude::*;
use jrs_kernels::exact_sum::{BITS, BLOCK, NOT_FINITE, blocks, headroom};

use crate::launch::{Span, Width, grid, nth, values, width};
use crate::{Client, Handle, buffer};

/// Raises `exponents` (i32, one for each block, from 0) to what the `n` values need.
///
/// # Panics
/// If a buffer is too short.
pub fn raise_exponents(client: &Client, exponents: &Handle, of: &Handle, n: usize) {
    let units = units_of_a_block(width(client));
    // SAFETY: a cube for each block, which ends with the values.
    unsafe {
        raise::launch_unchecked(
            client,
            grid(blocks(n)),
            CubeDim::new_1d(units as u32),
            values::<i32>(exponents, blocks(n), "exponents"),
            values::<f32>(of, n, "values"),
            units,
        );
    }
}

/// Adds `n` values, in units of their blocks, to `sums` (i64). `exponents` are the maxima over all `terms` that will be added
/// anywhere.
///
/// # Panics
/// If a buffer is too short.
pub fn add(
    client: &Client,
    sums: &Handle,
    terms_values: &Handle,
    n: usize,
    exponents: &Handle,
    terms: usize,
) {
    let span = Span::free(width(client));
    // SAFETY: a unit without a value ends.
    unsafe {
        add_scaled::launch_unchecked(
            client,
            grid(span.cubes(n)),
            span.dim(),
            values::<i64>(sums, n, "sums"),
            values::<f32>(terms_values, n, "values"),
            values::<i32>(exponents, blocks(n), "exponents"),
            headroom(terms),
            span,
        );
    }
}

/// The mean (f32) of `terms` terms whose sums are the `n` of `sums`. A block in which any term was infinite or NaN is NaN.
///
/// # Panics
/// If a buffer is too short.
pub fn mean(client: &Client, sums: &Handle, n: usize, exponents: &Handle, terms: usize) -> Handle {
    let mean = buffer::for_overwriting::<f32>(client, n);
    let span = Span::free(width(client));
    // SAFETY: a unit without a value ends.
    unsafe {
        divide::launch_unchecked(
            client,
            grid(span.cubes(n)),
            span.dim(),
            values::<i64>(sums, n, "sums"),
            values::<i32>(exponents, blocks(n), "exponents"),
            values::<f32>(&mean, n, "mean"),
            headroom(terms),
            terms as f64,
            span,
        );
    }
    mean
}

fn units_of_a_block(width: Width) -> usize {
    match width {
        Width::Gpu => 256,
        Width::Few => 4,
        Width::One => 1,
    }
}

#[cube(launch_unchecked)]
fn raise(exponents: &mut [i32], values: &[f32], #[comptime] units: usize) {
    let block = CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    let first = block * BLOCK;
    let end = min(first + BLOCK, values.len());
    // Without its sign bit, an f32 is ordered as the integer of its bits.
    let mut largest = 0u32;
    for i in range_stepped(first + unit, end, units) {
        largest = max(largest, u32::reinterpret(values[i]) & 0x7fff_ffffu32);
    }
    if comptime!(units > 1) {
        let mut all = Shared::<[u32]>::new_slice(units);
        all[unit] = largest;
        sync_cube();
        let mut half = comptime!(units / 2).runtime();
        while half > 0 {
            if unit < half {
                largest = max(largest, all[unit + half]);
                all[unit] = largest;
            }
            sync_cube();
            half /= 2;
        }
    }
    if unit == 0 {
        exponents[block] = max(exponents[block], i32::cast_from(largest >> 23u32));
    }
}

#[cube(launch_unchecked)]
fn add_scaled(sums: &mut [i64], values: &[f32], exponents: &[i32], headroom: i32, #[comptime] span: Span) {
    for i in 0..comptime!(span.each) {
        let at = nth(i, span);
        if at < values.len() {
            let exponent = exponents[at / BLOCK];
            // Otherwise the mean will be NaN, whatever is added.
            if exponent != NOT_FINITE {
                sums[at] += scaled(values[at], exponent, headroom);
            }
        }
    }
}

/// `value` in units of its block: mantissa * 2^(its exponent - 150) / 2^(exponent - 126 - BITS + headroom).
#[cube]
fn scaled(value: f32, exponent: i32, headroom: i32) -> i64 {
    let bits = u32::reinterpret(value);
    let biased = i32::cast_from((bits >> 23u32) & 0xffu32);
    let fraction = bits & 0x007f_ffffu32;
    // Subnormal values have no hidden bit, and the exponent of the smallest normal ones.
    let mantissa = i64::cast_from(select(biased > 0, fraction | 0x0080_0000u32, fraction));
    let shift = max(biased, 1) - exponent + comptime!(BITS - 24) - headroom;
    // Beyond 26 places nothing is left of 24 bits.
    let right = i64::cast_from(clamp(-shift, 0, 26));
    let left = i64::cast_from(max(shift, 0));
    let kept = mantissa >> right;
    let lost = mantissa - (kept << right);
    let half = (1i64 << right) >> 1i64;
    let up = lost > half || (lost == half && right > 0 && (kept & 1i64) == 1i64);
    let rounded = (kept << left) + select(up, 1i64, 0i64);
    select(bits >> 31u32 == 1u32, -rounded, rounded)
}

#[cube(launch_unchecked)]
fn divide(
    sums: &[i64],
    exponents: &[i32],
    mean: &mut [f32],
    headroom: i32,
    terms: f64,
    #[comptime] span: Span,
) {
    for i in 0..comptime!(span.each) {
        let at = nth(i, span);
        if at < sums.len() {
            let exponent = exponents[at / BLOCK];
            // 2^unit, by its bits.
            let unit = exponent - comptime!(126 + BITS) + headroom;
            let scale = f64::reinterpret(u64::cast_from(unit + 1023) << 52u64);
            let value = f32::cast_from(f64::cast_from(sums[at]) * scale / terms);
            let nan = f32::reinterpret(0x7fc0_0000u32);
            mean[at] = select(exponent == NOT_FINITE, nan, value);
        }
    }
}

/// The kernels, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(crate) fn offline(kernels: &mut crate::ptx::Offline) {
    use crate::ptx::buffer;
    let span = Span::free(Width::Gpu);
    kernels.add("exact_sum exponents", 256, |s, d, t| raise::Raise::new(s, d, t, buffer(), buffer(), 256));
    kernels.add("exact_sum add", span.units, |s, d, t| {
        add_scaled::AddScaled::new(s, d, t, buffer(), buffer(), buffer(), (), span)
    });
    kernels.add("exact_sum mean", span.units, |s, d, t| {
        divide::Divide::new(s, d, t, buffer(), buffer(), buffer(), (), (), span)
    });
}
