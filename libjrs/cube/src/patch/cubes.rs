//! Cubic images on their way into a batch, and the operations between them.

use cubecl::prelude::*;

use super::CONTROL_POINTS;
use super::kernels::{centre, displace, filter};
use crate::launch::{Span, grid, values, width};
use crate::{Client, Handle, buffer};

/// A part of a buffer of f32 that something is written to.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub handle: Handle,
    pub len: usize,
    pub at: usize,
}

impl Target {
    pub fn new(client: &Client, len: usize) -> Self {
        Self { handle: buffer::for_overwriting::<f32>(client, len), len, at: 0 }
    }

    /// From value `at` on.
    pub fn at(&self, at: usize) -> Self {
        Self { at, ..self.clone() }
    }

    pub fn arg(&self) -> BufferArg {
        values::<f32>(&self.handle, self.len, "part of a batch")
    }
}

/// Sums of neighbours along x, then y, then z, with `weights`, each divided by `divisor`.
pub(super) fn filtered(
    client: &Client,
    mut from: Target,
    weights: &[f32],
    divisor: f32,
    edge: usize,
    to: &Target,
) {
    let span = Span::free(width(client));
    let on_device = buffer::upload(client, weights);
    for (axis, stride) in [1, edge, edge * edge].into_iter().enumerate() {
        let next = if axis == 2 { to.clone() } else { Target::new(client, edge.pow(3)) };
        // SAFETY: neighbours are clamped to the cube; the target has room for it from `at` on.
        unsafe {
            filter::launch_unchecked(
                client,
                grid(span.cubes(edge.pow(3))),
                span.dim(),
                from.arg(),
                values::<f32>(&on_device, weights.len(), "weights"),
                next.arg(),
                next.at,
                edge,
                stride,
                divisor,
                span,
            );
        }
        from = next;
    }
}

/// The cube `from` read at displaced positions.
pub(super) fn displaced(client: &Client, from: &Target, field: &[[f32; 3]], edge: usize, to: &Target) {
    assert_eq!(field.len(), CONTROL_POINTS.pow(3), "control points");
    let span = Span::free(width(client));
    let control = buffer::upload(client, field.as_flattened());
    // SAFETY: positions are clamped to the cube and the control points; the target has room for the cube from `at` on.
    unsafe {
        displace::launch_unchecked(
            client,
            grid(span.cubes(edge.pow(3))),
            span.dim(),
            from.arg(),
            values::<f32>(&control, 3 * CONTROL_POINTS.pow(3), "control points"),
            to.arg(),
            to.at,
            edge,
            (CONTROL_POINTS - 1) as f32 / (edge - 1) as f32,
            span,
        );
    }
}

/// The part of a cube without its margin.
pub(super) fn move_centre(client: &Client, from: &Target, edge: usize, margin: usize, to: &Target) {
    let inner = edge - 2 * margin;
    let span = Span::free(width(client));
    // SAFETY: the part is in the cube; the target has room for it from `at` on.
    unsafe {
        centre::launch_unchecked(
            client,
            grid(span.cubes(inner.pow(3))),
            span.dim(),
            from.arg(),
            to.arg(),
            to.at,
            edge,
            margin,
            span,
        );
    }
}
