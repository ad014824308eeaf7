//! Trilinear warp with replicated border, and its gradient in the displacement; see `jrs_kernels::warp::Warp`.
//!
//! One unit a voxel of the grid, neighbours along x: displacements and results are read and written side by side, the eight
//! corners nearly so, as displacements are smooth. The position's cell is computed once for all channels.

use cubecl::prelude::*;
use jrs_kernels::warp::Warp;

use crate::launch::{Span, grid, nth, values, width};
use crate::{Client, Handle, buffer};

/// `y(m) = source(m + offset + u(m))`, `[batch, channels, z, y, x]` of the output size.
///
/// # Panics
/// If a buffer is too short or the source is empty.
pub fn forward(client: &Client, warp: &Warp, source: &Handle, u: &Handle) -> Handle {
    let y = buffer::for_overwriting::<f32>(client, warp.output_len());
    let span = Span::free(width(client));
    // SAFETY: a unit without a voxel ends; positions are clamped to the source.
    unsafe {
        forward_kernel::launch_unchecked(
            client,
            grid(span.cubes(voxels(warp))),
            span.dim(),
            values::<f32>(source, warp.source_len(), "source"),
            values::<f32>(u, warp.displacement_len(), "displacement"),
            values::<f32>(&y, warp.output_len(), "output"),
            geometry(warp),
            span,
        );
    }
    y
}

/// Gradient of the displacement from the gradient `dy` of the output, summed over the channels.
///
/// # Panics
/// If a buffer is too short or the source is empty.
pub fn backward(client: &Client, warp: &Warp, source: &Handle, u: &Handle, dy: &Handle) -> Handle {
    let du = buffer::for_overwriting::<f32>(client, warp.displacement_len());
    let span = Span::free(width(client));
    // SAFETY: as in `forward`.
    unsafe {
        backward_kernel::launch_unchecked(
            client,
            grid(span.cubes(voxels(warp))),
            span.dim(),
            values::<f32>(source, warp.source_len(), "source"),
            values::<f32>(u, warp.displacement_len(), "displacement"),
            values::<f32>(dy, warp.output_len(), "gradient of the output"),
            values::<f32>(&du, warp.displacement_len(), "gradient of the displacement"),
            geometry(warp),
            span,
        );
    }
    du
}

/// Voxels of the grid, in all volumes of the batch.
fn voxels(warp: &Warp) -> usize {
    assert!(!warp.source.contains(&0), "empty source");
    warp.batch * warp.output.iter().product::<usize>()
}

fn geometry(warp: &Warp) -> GeometryLaunch {
    let [source_z, source_y, source_x] = warp.source;
    let [z, y, x] = warp.output;
    GeometryLaunch::new(warp.batch, warp.channels, source_z, source_y, source_x, z, y, x, warp.offset)
}

/// Sizes of a warp.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Geometry {
    batch: usize,
    channels: usize,
    source_z: usize,
    source_y: usize,
    source_x: usize,
    z: usize,
    y: usize,
    x: usize,
    offset: usize,
}

/// Where a voxel samples: see `jrs_kernels::warp`.
#[derive(CubeType, Clone, Copy)]
struct Axis {
    /// The cell's first corner.
    low: usize,
    /// From the first corner to the second: 0 for an axis of one voxel.
    next: usize,
    /// Position in the cell.
    fraction: f32,
    /// 1 strictly inside the source, otherwise 0.
    inside: f32,
}

#[cube]
#[allow(clippy::eq_op)] // the test for NaN that every runtime has
fn axis(m: usize, offset: usize, u: f32, size: usize) -> Axis {
    let position = f32::cast_from(m + offset) + u;
    let last = f32::cast_from(size - 1);
    let nan = position != position;
    // The fraction keeps a NaN, so that the result is NaN too.
    let clamped = select(nan, 0.0f32, clamp(position, 0.0f32, last));
    let end = select(size > 1, size, 2usize) - 2;
    let low = min(usize::cast_from(clamped), end);
    let fraction = select(nan, position, clamped - f32::cast_from(low));
    let inside = select(position > 0.0f32 && position < last, 1.0f32, 0.0f32);
    Axis { low, next: select(size > 1, 1usize, 0usize), fraction, inside }
}

/// The cell of a voxel, per axis z, y, x.
#[cube]
fn cell(u: &[f32], g: &Geometry, n: usize, m: usize, voxels: usize) -> (Axis, Axis, Axis) {
    let z = m / (g.x * g.y);
    let y = m / g.x % g.y;
    let x = m % g.x;
    let first = n * 3 * voxels + m;
    (
        axis(z, g.offset, u[first + 2 * voxels], g.source_z),
        axis(y, g.offset, u[first + voxels], g.source_y),
        axis(x, g.offset, u[first], g.source_x),
    )
}

#[cube]
fn mix(low: f32, high: f32, fraction: f32) -> f32 {
    low + fraction * (high - low)
}

#[cube(launch_unchecked)]
fn forward_kernel(source: &[f32], u: &[f32], y: &mut [f32], g: &Geometry, #[comptime] span: Span) {
    let voxels = g.z * g.y * g.x;
    let from = g.source_z * g.source_y * g.source_x;
    for i in 0..comptime!(span.each) {
        let at = nth(i, span);
        if at < g.batch * voxels {
            let n = at / voxels;
            let m = at % voxels;
            let (az, ay, ax) = cell(u, g, n, m, voxels);
            let dz = az.next * g.source_y * g.source_x;
            let dy = ay.next * g.source_x;
            let dx = ax.next;
            let corner = (az.low * g.source_y + ay.low) * g.source_x + ax.low;
            for c in 0..g.channels {
                let k = (n * g.channels + c) * from + corner;
                let v00 = mix(source[k], source[k + dx], ax.fraction);
                let v01 = mix(source[k + dy], source[k + dy + dx], ax.fraction);
                let v10 = mix(source[k + dz], source[k + dz + dx], ax.fraction);
                let v11 = mix(source[k + dz + dy], source[k + dz + dy + dx], ax.fraction);
                y[(n * g.channels + c) * voxels + m] =
                    mix(mix(v00, v01, ay.fraction), mix(v10, v11, ay.fraction), az.fraction);
            }
        }
    }
}

#[cube(launch_unchecked)]
fn backward_kernel(
    source: &[f32],
    u: &[f32],
    dy: &[f32],
    du: &mut [f32],
    g: &Geometry,
    #[comptime] span: Span,
) {
    let voxels = g.z * g.y * g.x;
    let from = g.source_z * g.source_y * g.source_x;
    for i in 0..comptime!(span.each) {
        let at = nth(i, span);
        if at < g.batch * voxels {
            let n = at / voxels;
            let m = at % voxels;
            let (az, ay, ax) = cell(u, g, n, m, voxels);
            let to_z = az.next * g.source_y * g.source_x;
            let to_y = ay.next * g.source_x;
            let to_x = ax.next;
            let corner = (az.low * g.source_y + ay.low) * g.source_x + ax.low;
            let mut in_z = 0.0f32;
            let mut in_y = 0.0f32;
            let mut in_x = 0.0f32;
            for c in 0..g.channels {
                let gradient = dy[(n * g.channels + c) * voxels + m];
                // Most voxels of a label channel have none.
                if gradient != 0.0f32 {
                    let k = (n * g.channels + c) * from + corner;
                    let c000 = source[k];
                    let c001 = source[k + to_x];
                    let c010 = source[k + to_y];
                    let c011 = source[k + to_y + to_x];
                    let c100 = source[k + to_z];
                    let c101 = source[k + to_z + to_x];
                    let c110 = source[k + to_z + to_y];
                    let c111 = source[k + to_z + to_y + to_x];
                    let v00 = mix(c000, c001, ax.fraction);
                    let v01 = mix(c010, c011, ax.fraction);
                    let v10 = mix(c100, c101, ax.fraction);
                    let v11 = mix(c110, c111, ax.fraction);
                    in_z += gradient * (mix(v10, v11, ay.fraction) - mix(v00, v01, ay.fraction));
                    in_y += gradient * mix(v01 - v00, v11 - v10, az.fraction);
                    let d0 = mix(c001 - c000, c011 - c010, ay.fraction);
                    let d1 = mix(c101 - c100, c111 - c110, ay.fraction);
                    in_x += gradient * mix(d0, d1, az.fraction);
                }
            }
            let to = n * 3 * voxels + m;
            du[to] = select(ax.inside > 0.0f32, in_x, 0.0f32);
            du[to + voxels] = select(ay.inside > 0.0f32, in_y, 0.0f32);
            du[to + 2 * voxels] = select(az.inside > 0.0f32, in_z, 0.0f32);
        }
    }
}

/// The kernels, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(crate) fn offline(kernels: &mut crate::ptx::Offline) {
    use crate::launch::Width;
    use crate::ptx::{arg, buffer};
    let sizes = || arg::<Geometry>(GeometryLaunch::new(2, 1, 64, 64, 64, 24, 24, 24, 20));
    let span = Span::free(Width::Gpu);
    kernels.add("warp", span.units, |s, d, t| {
        forward_kernel::ForwardKernel::new(s, d, t, buffer(), buffer(), buffer(), sizes(), span)
    });
    kernels.add("warp gradient", span.units, |s, d, t| {
        backward_kernel::BackwardKernel::new(s, d, t, buffer(), buffer(), buffer(), buffer(), sizes(), span)
    });
}
