//! A correlation on its way to a kernel: which it is, how it is cut up, and what the kernel is given.

use cubecl::prelude::*;
use jrs_kernels::Conv3d;
use jrs_kernels::upsample_concat::UpsampleConcat;

use super::correlate::{self, GeometryLaunch, StartLaunch};
use super::plan::{Finish, Plan, Source, Weights};
use super::{Epilogue, SHARED, dim, extent};
use crate::launch::{Width, grid, values, width};
use crate::{Client, Handle};

/// What is read: one tensor, or the two of an upsampling.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub one: &'a Handle,
    pub len: usize,
    pub skip: Option<(&'a UpsampleConcat, &'a Handle)>,
}

/// Buffers and sizes of a kernel, and how it is made for them.
pub(super) struct Arguments {
    pub input: BufferArg,
    pub skip: BufferArg,
    pub weight: BufferArg,
    pub bias: BufferArg,
    pub scale: BufferArg,
    pub shift: BufferArg,
    pub y: BufferArg,
    pub geometry: GeometryLaunch,
    pub finish: Finish,
    pub source: Source,
}

/// A correlation: see `correlate::Geometry`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Correlation {
    pub batch: usize,
    pub c_in: usize,
    pub c_out: usize,
    pub input: [usize; 3],
    pub start: [i32; 3],
    pub stride: usize,
    pub taps: [usize; 3],
    pub edge: usize,
    pub output: [usize; 3],
    pub placed: [usize; 3],
    pub first: [usize; 3],
    pub step: usize,
    pub last: [usize; 3],
    pub weights: Weights,
}

impl Correlation {
    pub fn forward(conv: &Conv3d) -> Self {
        let output = conv.output();
        Self {
            batch: conv.batch,
            c_in: conv.c_in,
            c_out: conv.c_out,
            input: conv.input,
            start: [-(conv.padding as i32); 3],
            stride: conv.stride,
            taps: [conv.kernel; 3],
            edge: conv.kernel,
            output,
            placed: output,
            first: [0; 3],
            step: 1,
            last: [0; 3],
            weights: Weights::Plain,
        }
    }

    /// The input gradient: a correlation for each parity that meets a tap.
    pub fn input_gradient(conv: &Conv3d) -> Vec<Self> {
        let (s, k, pad) = (conv.stride, conv.kernel, conv.padding);
        // Input i meets output (i + pad - k) / s for the taps k of the right parity. With i = s*j + r that is a
        // convolution over j: taps last, last - s, ..., reading outputs from (r + pad - last)/s + j on.
        let axis = |r: usize| -> Option<(usize, usize, i32)> {
            let last = (0..k).rev().find(|tap| (r + pad + s - tap % s).is_multiple_of(s))?;
            Some((last / s + 1, last, ((r + pad) as i32 - last as i32).div_euclid(s as i32)))
        };
        let of_parity = |parity: usize| {
            let first = [parity / (s * s), parity / s % s, parity % s];
            let [z, y, x] = [axis(first[0])?, axis(first[1])?, axis(first[2])?];
            let output = [0, 1, 2].map(|a| (conv.input[a] + s - 1 - first[a]) / s);
            (!output.contains(&0)).then(|| Self {
                batch: conv.batch,
                c_in: conv.c_out,
                c_out: conv.c_in,
                input: conv.output(),
                start: [z.2, y.2, x.2],
                stride: 1,
                taps: [z.0, y.0, x.0],
                edge: k,
                output,
                placed: conv.input,
                first,
                step: s,
                last: [z.1, y.1, x.1],
                weights: Weights::Mirrored { step: s },
            })
        };
        (0..s.pow(3)).filter_map(of_parity).collect()
    }

    pub fn run(
        &self,
        client: &Client,
        input: Input<'_>,
        weight: &Handle,
        bias: Option<&Handle>,
        epilogue: Epilogue<'_>,
        y: &Handle,
    ) {
        let args = self.arguments(input, weight, bias, epilogue, y);
        let plan = self.plan(width(client), args.finish, args.source);
        // SAFETY: reads and writes stay within the sizes of the geometry, which `arguments` compared with the buffers.
        unsafe {
            correlate::correlate::launch_unchecked(
                client,
                grid(self.cubes(&plan)),
                dim(plan.units),
                args.input,
                args.skip,
                args.weight,
                args.bias,
                args.scale,
                args.shift,
                args.y,
                args.geometry,
                plan,
            );
        }
    }

    /// What the kernels are given.
    pub fn arguments(
        &self,
        input: Input<'_>,
        weight: &Handle,
        bias: Option<&Handle>,
        epilogue: Epilogue<'_>,
        y: &Handle,
    ) -> Arguments {
        let (finish, slope, scale, shift) = match epilogue {
            Epilogue::LeakyNorm { slope, scale, shift } => {
                assert!((0.0..=1.0).contains(&slope), "slope {slope}");
                (
                    Finish::LeakyNorm,
                    slope,
                    values::<f32>(scale, self.c_out, "scale"),
                    values::<f32>(shift, self.c_out, "shift"),
                )
            }
            // The kernel does not read them.
            Epilogue::None => {
                let finish = if bias.is_some() { Finish::Bias } else { Finish::Sum };
                (finish, 0.0, values::<f32>(weight, 0, "scale"), values::<f32>(weight, 0, "shift"))
            }
        };
        let (c_up, crop) = input.skip.map_or((0, 0), |(up, _)| (up.c_up, up.crop));
        let (skip, skip_len) = input.skip.map_or((input.one, 0), |(up, skip)| (skip, up.skip_len()));
        let bias = bias
            .map_or_else(|| values::<f32>(weight, 0, "bias"), |bias| values::<f32>(bias, self.c_out, "bias"));
        let weight_len = self.c_in * self.c_out * self.edge.pow(3);
        let y_len = self.batch * self.c_out * self.placed.iter().product::<usize>();
        Arguments {
            input: values::<f32>(input.one, input.len, "input"),
            skip: values::<f32>(skip, skip_len, "skip connection"),
            weight: values::<f32>(weight, weight_len, "weight"),
            bias,
            scale,
            shift,
            y: values::<f32>(y, y_len, "output"),
            geometry: self.geometry(c_up, crop, slope),
            finish,
            source: if input.skip.is_some() { Source::UpsampleConcat } else { Source::One },
        }
    }

    pub fn geometry(&self, c_up: usize, crop: usize, slope: f32) -> GeometryLaunch {
        GeometryLaunch::new(
            self.c_in,
            self.c_out,
            extent(self.input),
            StartLaunch::new(self.start[0], self.start[1], self.start[2]),
            extent(self.output),
            extent(self.placed),
            extent(self.first),
            self.step,
            extent(self.last),
            c_up,
            crop,
            slope,
        )
    }

    /// How the kernel is cut up.
    pub fn plan(&self, width: Width, finish: Finish, source: Source) -> Plan {
        let plan = Plan {
            units: [1, 1, 1],
            run: 4,
            outputs: self.c_out.next_power_of_two().min(if width == Width::One { 4 } else { 16 }),
            inputs: 1,
            taps: self.taps,
            stride: self.stride,
            edge: self.edge,
            weights: self.weights,
            finish,
            source,
        };
        // The shape of tile that covers the output with the least beside it.
        let shapes: &[[usize; 3]] = match width {
            Width::Gpu => &[[4, 4, 8], [4, 8, 4], [8, 8, 2]],
            Width::Few => &[[1, 1, 4], [1, 2, 2], [2, 2, 1]],
            Width::One => &[[1, 1, 1]],
        };
        let shapes = shapes.iter().map(|&units| Plan { units, ..plan });
        let plan = shapes.min_by_key(|plan| self.cubes(plan)).expect("one at least");
        // Powers of two, so that layers share kernels.
        let fits = |inputs: &usize| *inputs < 2 * self.c_in && plan.shared(*inputs) <= SHARED;
        Plan { inputs: [8, 4, 2, 1].into_iter().find(fits).expect("one channel fits"), ..plan }
    }

    pub fn cubes(&self, plan: &Plan) -> usize {
        let tile = plan.tile();
        let tiles: usize = (0..3).map(|a| self.output[a].div_ceil(tile[a])).product();
        self.batch * tiles * self.c_out.div_ceil(plan.outputs)
    }
}
