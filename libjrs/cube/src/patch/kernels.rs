//! The kernels of training batches, one unit a voxel.

use cubecl::prelude::*;

use super::CONTROL_POINTS;
use crate::launch::{Span, nth};

/// A cube in a scan, and where it goes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Place {
    pub size_x: usize,
    pub size_y: usize,
    pub size_z: usize,
    pub x: i32,
    pub y: i32,
    pub z: i32,
    pub edge: usize,
    pub at: usize,
}

/// Where voxel `i` of the cube is in the scan, and whether it is there.
#[cube]
fn in_scan(i: usize, p: &Place) -> (usize, bool) {
    let x = p.x + (i % p.edge) as i32;
    let y = p.y + (i / p.edge % p.edge) as i32;
    let z = p.z + (i / (p.edge * p.edge)) as i32;
    let there =
        x >= 0 && y >= 0 && z >= 0 && x < p.size_x as i32 && y < p.size_y as i32 && z < p.size_z as i32;
    // Any voxel, where it is not.
    let at = (z as usize * p.size_y + y as usize) * p.size_x + x as usize;
    (select(there, at, 0usize), there)
}

#[cube(launch_unchecked)]
pub(super) fn cut_image(
    scan: &[i16],
    to: &mut [f32],
    p: &Place,
    full_scale: f32,
    outside: f32,
    #[comptime] span: Span,
) {
    for k in 0..comptime!(span.each) {
        let i = nth(k, span);
        if i < p.edge * p.edge * p.edge {
            let (from, there) = in_scan(i, p);
            to[p.at + i] = select(there, f32::cast_from(scan[from]) / full_scale, outside);
        }
    }
}

#[cube(launch_unchecked)]
pub(super) fn cut_mask(
    labels: &[u8],
    organs: &[u8],
    to: &mut [f32],
    p: &Place,
    first_organ: usize,
    organ_count: usize,
    #[comptime] span: Span,
) {
    for k in 0..comptime!(span.each) {
        let i = nth(k, span);
        if i < p.edge * p.edge * p.edge {
            let (from, there) = in_scan(i, p);
            // The label outside is 0.
            let label = select(there, u32::cast_from(labels[from]), 0u32);
            let mut value = 0.0f32;
            for organ in first_organ..first_organ + organ_count {
                if label == u32::cast_from(organs[organ]) {
                    value = 1.0f32;
                }
            }
            to[p.at + i] = value;
        }
    }
}

#[cube(launch_unchecked)]
pub(super) fn filter(
    from: &[f32],
    weights: &[f32],
    to: &mut [f32],
    at: usize,
    edge: usize,
    stride: usize,
    divisor: f32,
    #[comptime] span: Span,
) {
    let radius = weights.len() / 2;
    for k in 0..comptime!(span.each) {
        let i = nth(k, span);
        if i < edge * edge * edge {
            let position = i / stride % edge;
            let mut sum = 0.0f32;
            for w in 0..weights.len() {
                // The border is repeated outwards.
                let neighbour = min(max(position + w, radius) - radius, edge - 1);
                sum += weights[w] * from[i - position * stride + neighbour * stride];
            }
            to[at + i] = sum / divisor;
        }
    }
}

/// Low corner, step to the high one and fraction of a position on an axis, clamped to it.
#[cube]
fn cell(position: f32, edge: usize) -> (usize, usize, f32) {
    let v = clamp(position, 0.0f32, f32::cast_from(edge - 1));
    let low = min(usize::cast_from(v), max(edge, 2usize) - 2);
    (low, min(low + 1, edge - 1) - low, v - f32::cast_from(low))
}

#[cube]
fn mix(low: f32, high: f32, fraction: f32) -> f32 {
    low + (high - low) * fraction
}

/// Trilinear interpolation in a cubic array of `step` values a point, value `first`.
#[cube]
fn trilinear(data: &[f32], edge: usize, step: usize, first: usize, x: f32, y: f32, z: f32) -> f32 {
    let (x0, dx, fx) = cell(x, edge);
    let (y0, dy, fy) = cell(y, edge);
    let (z0, dz, fz) = cell(z, edge);
    let k = ((z0 * edge + y0) * edge + x0) * step + first;
    let to_x = dx * step;
    let to_y = dy * edge * step;
    let to_z = dz * edge * edge * step;
    let v00 = mix(data[k], data[k + to_x], fx);
    let v01 = mix(data[k + to_y], data[k + to_y + to_x], fx);
    let v10 = mix(data[k + to_z], data[k + to_z + to_x], fx);
    let v11 = mix(data[k + to_z + to_y], data[k + to_z + to_y + to_x], fx);
    mix(mix(v00, v01, fy), mix(v10, v11, fy), fz)
}

#[cube(launch_unchecked)]
pub(super) fn displace(
    from: &[f32],
    control: &[f32],
    to: &mut [f32],
    at: usize,
    edge: usize,
    scale: f32,
    #[comptime] span: Span,
) {
    for k in 0..comptime!(span.each) {
        let i = nth(k, span);
        if i < edge * edge * edge {
            let x = f32::cast_from(i % edge);
            let y = f32::cast_from(i / edge % edge);
            let z = f32::cast_from(i / (edge * edge));
            let points = comptime!(CONTROL_POINTS).runtime();
            let ux = trilinear(control, points, 3usize, 0usize, x * scale, y * scale, z * scale);
            let uy = trilinear(control, points, 3usize, 1usize, x * scale, y * scale, z * scale);
            let uz = trilinear(control, points, 3usize, 2usize, x * scale, y * scale, z * scale);
            to[at + i] = trilinear(from, edge, 1usize, 0usize, x + ux, y + uy, z + uz);
        }
    }
}

#[cube(launch_unchecked)]
pub(super) fn intensities(
    from: &[f32],
    noise: &[f32],
    to: &mut [f32],
    at: usize,
    voxels: usize,
    gamma: f32,
    #[comptime] power: bool,
    #[comptime] noisy: bool,
    #[comptime] span: Span,
) {
    for k in 0..comptime!(span.each) {
        let i = nth(k, span);
        if i < voxels {
            let mut value = from[i];
            if comptime!(power) {
                value = power_of(clamp((value + 1.0f32) / 2.0f32, 0.0f32, 1.0f32), gamma) * 2.0f32 - 1.0f32;
            }
            if comptime!(noisy) {
                value += noise[i];
            }
            to[at + i] = value;
        }
    }
}

/// x^p for x from 0 to 1 and p from 0.5 to 2, to less than the last bit of f32. Without `powf`: for a GPU, CubeCL takes that from
/// a library of the CUDA toolkit, which need not be installed.
#[cube]
fn power_of(x: f32, p: f32) -> f32 {
    let bits = u32::reinterpret(x);
    // x = 2^e * m with m from 1 to 2.
    let e = f64::cast_from(bits >> 23u32) - 127.0f64;
    let m = f64::cast_from(f32::reinterpret((bits & 0x007f_ffffu32) | 0x3f80_0000u32));
    // ln m = 2 artanh t, with m brought around 1.
    let large = m > std::f64::consts::SQRT_2;
    let m = select(large, m / 2.0f64, m);
    let e = select(large, e + 1.0f64, e);
    let t = (m - 1.0f64) / (m + 1.0f64);
    let s = t * t;
    let series = 1.0f64
        + s * (1.0f64 / 3.0f64 + s * (0.2f64 + s * (1.0f64 / 7.0f64 + s * (1.0f64 / 9.0f64 + s / 11.0f64))));
    let y = f64::cast_from(p) * (e + 2.0f64 * t * series * std::f64::consts::LOG2_E);
    // 2^y = 2^n * exp(r); y is not positive, so n is below it.
    let n = i32::cast_from(y) - 1;
    let r = (y - f64::cast_from(n)) * std::f64::consts::LN_2;
    let mut exp = 1.0f64;
    for k in 0..12u32 {
        exp = 1.0f64 + exp * r / f64::cast_from(12u32 - k);
    }
    let scale = f64::reinterpret(u64::cast_from(n + 1023) << 52u64);
    select(bits < 0x0080_0000u32, 0.0f32, f32::cast_from(scale * exp))
}

#[cube(launch_unchecked)]
pub(super) fn centre(
    from: &[f32],
    to: &mut [f32],
    at: usize,
    edge: usize,
    margin: usize,
    #[comptime] span: Span,
) {
    let inner = edge - 2 * margin;
    for k in 0..comptime!(span.each) {
        let i = nth(k, span);
        if i < inner * inner * inner {
            let x = i % inner + margin;
            let y = i / inner % inner + margin;
            let z = i / (inner * inner) + margin;
            to[at + i] = from[(z * edge + y) * edge + x];
        }
    }
}
