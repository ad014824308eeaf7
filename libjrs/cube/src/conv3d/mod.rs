//! 3-D convolution (cross-correlation, as PyTorch) and its gradients; see `jrs_kernels::conv3d` for the shapes.
//!
//! | function | kernel |
//! |---|---|
//! | [`forward`], [`forward_upsampled`] | `correlate`; in TF32 and bf16 `tensor`, on tensor cores |
//! | [`input_gradient`] | `correlate`, on `dy` with mirrored, transposed weights; at stride 2 once for each parity |
//! | [`weight_gradient`] | `weight_gradient`: partial sums of parts of the volume, then their sum |
//! | [`bias_gradient`] | sums over channels |

mod correlate;
mod tensor;
mod weight_gradient;

use cubecl::prelude::*;
use jrs_kernels::Conv3d;
use jrs_kernels::upsample_concat::UpsampleConcat;

use crate::channel_sums::{Terms, channel_sums};
use crate::launch::{Width, grid, values, width};
use crate::{Client, Handle, buffer};
use correlate::{ExtentLaunch, Finish, GeometryLaunch, Plan, Source, StartLaunch, Weights};

/// Shared memory that a cube may take: what every GPU gives without being asked.
const SHARED: usize = 40 << 10;

/// The numbers that a forward pass multiplies; it adds in f32, whatever they are. Gradients are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Arithmetic {
    /// As they are, by fused multiplications and additions: the reference.
    #[default]
    F32,
    /// Rounded to 11 bits (TF32) to the nearest, ties to even; the range is that of f32.
    Tf32,
    /// Rounded to 8 bits (bf16) to the nearest, ties to even; the range is that of f32.
    Bf16,
}

impl Arithmetic {
    /// Whether `client`'s device can: TF32 and bf16 take an NVIDIA GPU of compute capability 8.0 or above. The processor can,
    /// by loops in the place of a tensor core.
    pub fn on(self, client: &Client) -> bool {
        tensor::available(client, self)
    }
}

/// What happens to a convolution's result on its way to memory, as `jrs_kernels::Epilogue`.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// `y = conv`.
    None,
    /// `y = scale[c] * leaky(conv) + shift[c]`: inference, with the BatchNorm folded into scale and shift.
    LeakyNorm {
        /// Slope of LeakyReLU for negative values, from 0 to 1.
        slope: f32,
        /// Per output channel: `gamma / sqrt(var + eps)`.
        scale: &'a Handle,
        /// Per output channel: `beta - mean * scale`.
        shift: &'a Handle,
    },
}

/// `y = epilogue(conv(x, weight) + bias)`, where `arithmetic` multiplies.
///
/// # Panics
/// If a buffer is too short. What `arithmetic` is not [`Arithmetic::on`] fails on the device.
pub fn forward(
    client: &Client,
    arithmetic: Arithmetic,
    conv: &Conv3d,
    x: &Handle,
    weight: &Handle,
    bias: &Handle,
    epilogue: Epilogue<'_>,
) -> Handle {
    let input = Input { one: x, len: conv.input_len(), skip: None };
    run_forward(client, arithmetic, conv, input, weight, bias, epilogue)
}

/// [`forward`] of `upsample.forward(low, skip)`, which is never stored.
///
/// # Panics
/// If a buffer is too short, or `conv` does not take what `upsample` gives.
pub fn forward_upsampled(
    client: &Client,
    arithmetic: Arithmetic,
    conv: &Conv3d,
    upsample: &UpsampleConcat,
    low: &Handle,
    skip: &Handle,
    weight: &Handle,
    bias: &Handle,
    epilogue: Epilogue<'_>,
) -> Handle {
    let taken = (conv.batch, conv.c_in, conv.input);
    let given = (upsample.batch, upsample.c_up + upsample.c_skip, upsample.output());
    assert_eq!(taken, given, "the convolution takes what the upsampling gives");
    let input = Input { one: low, len: upsample.low_len(), skip: Some((upsample, skip)) };
    run_forward(client, arithmetic, conv, input, weight, bias, epilogue)
}

/// `dx`: gradient of the input, from the gradient `dy` of the output.
///
/// # Panics
/// If a buffer is too short.
pub fn input_gradient(client: &Client, conv: &Conv3d, dy: &Handle, weight: &Handle) -> Handle {
    let dx = if conv.kernel < conv.stride {
        // Some inputs meet no tap at all.
        buffer::upload(client, &vec![0.0f32; conv.input_len()])
    } else {
        buffer::for_overwriting::<f32>(client, conv.input_len())
    };
    let input = Input { one: dy, len: conv.output_len(), skip: None };
    for correlation in Correlation::input_gradient(conv) {
        correlation.run(client, input, weight, None, Epilogue::None, &dx);
    }
    dx
}

/// `dweight`: gradient of the weights, from the input and the gradient `dy` of the output.
///
/// # Panics
/// If a buffer is too short.
pub fn weight_gradient(client: &Client, conv: &Conv3d, x: &Handle, dy: &Handle) -> Handle {
    weight_gradient::run(client, conv, x, dy)
}

/// `dbias`: gradient of the bias, the sum of `dy` per channel.
///
/// # Panics
/// If a buffer is too short.
pub fn bias_gradient(client: &Client, conv: &Conv3d, dy: &Handle) -> Handle {
    let spatial = conv.output().iter().product();
    let sums = channel_sums(client, Terms::Values, dy, dy, dy, conv.batch, conv.c_out, spatial, 1.0);
    sums.first(client)
}

fn run_forward(
    client: &Client,
    arithmetic: Arithmetic,
    conv: &Conv3d,
    input: Input<'_>,
    weight: &Handle,
    bias: &Handle,
    epilogue: Epilogue<'_>,
) -> Handle {
    let y = buffer::for_overwriting::<f32>(client, conv.output_len());
    let correlation = Correlation::forward(conv);
    match tensor::Operands::of(arithmetic) {
        None => correlation.run(client, input, weight, Some(bias), epilogue, &y),
        Some(operands) => tensor::run(client, operands, &correlation, input, weight, bias, epilogue, &y),
    }
    y
}

/// What is read: one tensor, or the two of an upsampling.
#[derive(Clone, Copy)]
struct Input<'a> {
    one: &'a Handle,
    len: usize,
    skip: Option<(&'a UpsampleConcat, &'a Handle)>,
}

/// Buffers and sizes of a kernel, and how it is made for them.
struct Arguments {
    input: BufferArg,
    skip: BufferArg,
    weight: BufferArg,
    bias: BufferArg,
    scale: BufferArg,
    shift: BufferArg,
    y: BufferArg,
    geometry: GeometryLaunch,
    finish: Finish,
    source: Source,
}

/// A correlation: see `correlate::Geometry`.
#[derive(Clone, Copy, Debug)]
struct Correlation {
    batch: usize,
    c_in: usize,
    c_out: usize,
    input: [usize; 3],
    start: [i32; 3],
    stride: usize,
    taps: [usize; 3],
    edge: usize,
    output: [usize; 3],
    placed: [usize; 3],
    first: [usize; 3],
    step: usize,
    last: [usize; 3],
    weights: Weights,
}

impl Correlation {
    fn forward(conv: &Conv3d) -> Self {
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
    fn input_gradient(conv: &Conv3d) -> Vec<Self> {
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

    fn run(
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
    fn arguments(
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

    fn geometry(&self, c_up: usize, crop: usize, slope: f32) -> GeometryLaunch {
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
    fn plan(&self, width: Width, finish: Finish, source: Source) -> Plan {
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

    fn cubes(&self, plan: &Plan) -> usize {
        let tile = plan.tile();
        let tiles: usize = (0..3).map(|a| self.output[a].div_ceil(tile[a])).product();
        self.batch * tiles * self.c_out.div_ceil(plan.outputs)
    }
}

fn extent([z, y, x]: [usize; 3]) -> ExtentLaunch {
    ExtentLaunch::new(z, y, x)
}

fn dim([z, y, x]: [usize; 3]) -> CubeDim {
    CubeDim::new_1d((z * y * x) as u32)
}

/// The kernels of some layers, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(crate) fn offline(kernels: &mut crate::ptx::Offline) {
    use crate::ptx::{arg, buffer};
    let layer = |c_in, c_out, kernel, stride, padding| Conv3d {
        batch: 2,
        c_in,
        c_out,
        input: [64, 64, 64],
        kernel,
        stride,
        padding,
    };
    let mut correlation = |name: &str, c: Correlation, finish, source| {
        let plan = c.plan(Width::Gpu, finish, source);
        let geometry = arg::<correlate::Geometry>(c.geometry(0, 0, 0.2));
        kernels.add(format!("conv3d {name}"), plan.unit_count(), |s, d, t| {
            let b = buffer;
            correlate::correlate::Correlate::new(s, d, t, b(), b(), b(), b(), b(), b(), b(), geometry, plan)
        });
    };
    for (name, conv) in [
        ("forward 3x3x3, 16 -> 16", layer(16, 16, 3, 1, 0)),
        ("forward 3x3x3, 2 -> 16", layer(2, 16, 3, 1, 0)),
        ("forward 3x3x3 stride 2", layer(16, 32, 3, 2, 1)),
        ("forward 1x1x1, 16 -> 3", layer(16, 3, 1, 1, 0)),
    ] {
        correlation(name, Correlation::forward(&conv), Finish::LeakyNorm, Source::One);
    }
    for input in [[24; 3], [12; 3]] {
        let conv = Conv3d { input, ..layer(64, 64, 3, 1, 0) };
        let name = format!("forward 3x3x3 of {} voxels a side", input[0]);
        correlation(&name, Correlation::forward(&conv), Finish::Bias, Source::One);
    }
    let conv = layer(48, 16, 3, 1, 0);
    correlation("forward upsampled", Correlation::forward(&conv), Finish::LeakyNorm, Source::UpsampleConcat);
    for (name, conv) in [
        ("input gradient 3x3x3", layer(16, 16, 3, 1, 0)),
        ("input gradient 3x3x3 stride 2", layer(16, 32, 3, 2, 1)),
    ] {
        for c in Correlation::input_gradient(&conv) {
            let name = format!("{name}, taps {:?}", c.taps);
            correlation(&name, c, Finish::Sum, Source::One);
        }
    }
    for (name, conv, source) in [
        ("3x3x3, 2 -> 16", layer(2, 16, 3, 1, 0), Source::One),
        ("3x3x3, 16 -> 16", layer(16, 16, 3, 1, 0), Source::One),
        ("3x3x3, 32 -> 32", layer(32, 32, 3, 1, 0), Source::One),
        ("3x3x3, 64 -> 64", layer(64, 64, 3, 1, 0), Source::One),
        ("3x3x3 stride 2, 16 -> 16", layer(16, 16, 3, 2, 1), Source::One),
        ("3x3x3 stride 2, 32 -> 32", layer(32, 32, 3, 2, 1), Source::One),
        ("3x3x3 upsampled, 96 -> 32", layer(96, 32, 3, 1, 0), Source::UpsampleConcat),
        ("1x1x1, 16 -> 3", layer(16, 3, 1, 1, 0), Source::One),
    ] {
        tensor::offline(name, &Correlation::forward(&conv), source, kernels);
    }
    for (name, conv) in [
        ("3x3x3, 16 -> 16", layer(16, 16, 3, 1, 0)),
        ("3x3x3, 2 -> 16", layer(2, 16, 3, 1, 0)),
        ("3x3x3 stride 2", layer(16, 32, 3, 2, 1)),
        ("1x1x1, 16 -> 3", layer(16, 3, 1, 1, 0)),
    ] {
        weight_gradient::offline(name, &conv, kernels);
    }
}
