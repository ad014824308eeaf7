//! 3-D convolution (cross-correlation, as PyTorch) and its gradients; see `jrs_kernels::conv3d` for the shapes.
//!
//! | function | kernel |
//! |---|---|
//! | [`forward`], [`forward_upsampled`] | `correlate`; in TF32 and bf16 `tensor`, on tensor cores |
//! | [`input_gradient`] | `correlate`, on `dy` with mirrored, transposed weights; at stride 2 once for each parity |
//! | [`weight_gradient`] | `weight_gradient`: partial sums of parts of the volume, then their sum |
//! | [`bias_gradient`] | sums over channels |

mod correlate;
mod correlation;
mod plan;
mod tensor;
mod weight_gradient;

use cubecl::prelude::*;
use jrs_kernels::Conv3d;
use jrs_kernels::upsample_concat::UpsampleConcat;

use crate::channel_sums::{Terms, channel_sums};
use crate::{Client, Handle, buffer};
use correlate::ExtentLaunch;
use correlation::{Correlation, Input};

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

/// What happens to a convolution's result on its way to memory.
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

fn extent([z, y, x]: [usize; 3]) -> ExtentLaunch {
    ExtentLaunch::new(z, y, x)
}

fn dim([z, y, x]: [usize; 3]) -> CubeDim {
    CubeDim::new_1d((z * y * x) as u32)
}

/// The kernels of some layers, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(crate) fn offline(kernels: &mut crate::ptx::Offline) {
    use crate::launch::Width;
    use crate::ptx::{arg, buffer};
    use plan::{Finish, Source};
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
