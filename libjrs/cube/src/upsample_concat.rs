//! Nearest-neighbour upsampling by 2 beside the centre crop of a skip connection; see
//! `jrs_kernels::upsample_concat::UpsampleConcat`. One unit a value that is written: nothing is added up by two units.

use cubecl::prelude::*;
use jrs_kernels::upsample_concat::UpsampleConcat;

use crate::launch::{Span, grid, nth, values, width};
use crate::{Client, Handle, buffer};

/// `y[:, ..c_up] = upsample(a)`, `y[:, c_up..] = crop(skip)`.
///
/// Before a convolution, [`crate::conv3d::forward_upsampled`] needs no such tensor.
///
/// # Panics
/// If a buffer is too short.
pub fn forward(client: &Client, op: &UpsampleConcat, a: &Handle, skip: &Handle) -> Handle {
    let y = buffer::for_overwriting::<f32>(client, op.output_len());
    let span = Span::free(width(client));
    // SAFETY: a unit without a value ends; the positions are those of the geometry.
    unsafe {
        forward_kernel::launch_unchecked(
            client,
            grid(span.cubes(op.output_len())),
            span.dim(),
            values::<f32>(a, op.low_len(), "a"),
            values::<f32>(skip, op.skip_len(), "skip connection"),
            values::<f32>(&y, op.output_len(), "output"),
            geometry(op),
            span,
        );
    }
    y
}

/// Gradients of `a` and `skip` (0 outside the crop) from the gradient `dy` of the output.
///
/// # Panics
/// If a buffer is too short.
pub fn backward(client: &Client, op: &UpsampleConcat, dy: &Handle) -> (Handle, Handle) {
    let span = Span::free(width(client));
    let da = buffer::for_overwriting::<f32>(client, op.low_len());
    let dskip = buffer::for_overwriting::<f32>(client, op.skip_len());
    let dy = || values::<f32>(dy, op.output_len(), "gradient of the output");
    // SAFETY: as in `forward`.
    unsafe {
        low_gradient::launch_unchecked(
            client,
            grid(span.cubes(op.low_len())),
            span.dim(),
            dy(),
            values::<f32>(&da, op.low_len(), "gradient of a"),
            geometry(op),
            span,
        );
        skip_gradient::launch_unchecked(
            client,
            grid(span.cubes(op.skip_len())),
            span.dim(),
            dy(),
            values::<f32>(&dskip, op.skip_len(), "gradient of the skip connection"),
            geometry(op),
            span,
        );
    }
    (da, dskip)
}

fn geometry(op: &UpsampleConcat) -> GeometryLaunch {
    let [z, y, x] = op.low;
    GeometryLaunch::new(op.batch, op.c_up, op.c_skip, z, y, x, op.crop)
}

/// Sizes of an upsampling.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Geometry {
    batch: usize,
    c_up: usize,
    c_skip: usize,
    z: usize,
    y: usize,
    x: usize,
    crop: usize,
}

#[cube(launch_unchecked)]
fn forward_kernel(a: &[f32], skip: &[f32], y: &mut [f32], g: &Geometry, #[comptime] span: Span) {
    let channels = g.c_up + g.c_skip;
    for i in 0..comptime!(span.each) {
        let at = nth(i, span);
        if at < g.batch * channels * g.z * g.y * g.x * 8 {
            let px = at % (2 * g.x);
            let row = at / (2 * g.x);
            let py = row % (2 * g.y);
            let plane = row / (2 * g.y);
            let pz = plane % (2 * g.z);
            let volume = plane / (2 * g.z);
            let c = volume % channels;
            let n = volume / channels;
            if c < g.c_up {
                y[at] = a[(((n * g.c_up + c) * g.z + pz / 2) * g.y + py / 2) * g.x + px / 2];
            } else {
                let (height, width) = (2 * (g.y + g.crop), 2 * (g.x + g.crop));
                let plane = (n * g.c_skip + c - g.c_up) * 2 * (g.z + g.crop) + pz + g.crop;
                y[at] = skip[(plane * height + py + g.crop) * width + px + g.crop];
            }
        }
    }
}

/// The sum of the eight voxels that an input voxel became.
#[cube(launch_unchecked)]
fn low_gradient(dy: &[f32], da: &mut [f32], g: &Geometry, #[comptime] span: Span) {
    for i in 0..comptime!(span.each) {
        let at = nth(i, span);
        if at < g.batch * g.c_up * g.z * g.y * g.x {
            let px = at % g.x;
            let py = at / g.x % g.y;
            let pz = at / (g.x * g.y) % g.z;
            let volume = at / (g.x * g.y * g.z);
            let to = volume / g.c_up * (g.c_up + g.c_skip) + volume % g.c_up;
            let width = 2 * g.x;
            let area = 2 * g.y * width;
            let k = (to * 2 * g.z + 2 * pz) * area + 2 * py * width + 2 * px;
            let top = (dy[k] + dy[k + 1]) + (dy[k + width] + dy[k + width + 1]);
            let below = k + area;
            let bottom = (dy[below] + dy[below + 1]) + (dy[below + width] + dy[below + width + 1]);
            da[at] = top + bottom;
        }
    }
}

#[cube(launch_unchecked)]
fn skip_gradient(dy: &[f32], dskip: &mut [f32], g: &Geometry, #[comptime] span: Span) {
    let depth = 2 * (g.z + g.crop);
    let height = 2 * (g.y + g.crop);
    let width = 2 * (g.x + g.crop);
    for i in 0..comptime!(span.each) {
        let at = nth(i, span);
        if at < g.batch * g.c_skip * depth * height * width {
            let px = at % width;
            let py = at / width % height;
            let pz = at / (width * height) % depth;
            let volume = at / (width * height * depth);
            let mut value = 0.0f32;
            if px >= g.crop
                && px < g.crop + 2 * g.x
                && py >= g.crop
                && py < g.crop + 2 * g.y
                && pz >= g.crop
                && pz < g.crop + 2 * g.z
            {
                let from = volume / g.c_skip * (g.c_up + g.c_skip) + g.c_up + volume % g.c_skip;
                let plane = from * 2 * g.z + pz - g.crop;
                value = dy[(plane * 2 * g.y + py - g.crop) * 2 * g.x + px - g.crop];
            }
            dskip[at] = value;
        }
    }
}

/// The kernels, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(crate) fn offline(kernels: &mut crate::ptx::Offline) {
    use crate::launch::Width;
    use crate::ptx::{arg, buffer};
    let sizes = || arg::<Geometry>(GeometryLaunch::new(2, 32, 16, 12, 12, 12, 4));
    let span = Span::free(Width::Gpu);
    kernels.add("upsample_concat", span.units, |s, d, t| {
        forward_kernel::ForwardKernel::new(s, d, t, buffer(), buffer(), buffer(), sizes(), span)
    });
    kernels.add("upsample_concat gradient, low", span.units, |s, d, t| {
        low_gradient::LowGradient::new(s, d, t, buffer(), buffer(), sizes(), span)
    });
    kernels.add("upsample_concat gradient, skip", span.units, |s, d, t| {
        skip_gradient::SkipGradient::new(s, d, t, buffer(), buffer(), sizes(), span)
    });
}
