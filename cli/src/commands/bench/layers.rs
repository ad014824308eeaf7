//! Every convolution of the generator by itself: forward, gradient for the input, gradient for the weight; ours and the tensor
//! framework's own.

use burn::tensor::{Device, Distribution, Tensor};
use jrs_worker::ops::{ConvSpec, conv3d};
use libjrs::network::{GENERATOR, Layer};
use std::time::Instant;

/// One pass of one layer.
#[derive(serde::Serialize)]
pub struct Timed {
    layer: &'static str,
    pass: &'static str,
    /// Edge of the layer's input, voxels.
    edge: usize,
    /// Median of ours.
    seconds: f64,
    /// Median of the framework's own `conv3d`.
    burn_seconds: f64,
}

impl std::fmt::Display for Timed {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { layer, pass, edge, seconds, burn_seconds } = self;
        let times = burn_seconds / seconds;
        write!(
            f,
            "{layer:4} {pass:15} {edge:3}^3  {:9.3} ms, {times:.2} times as fast as Burn's",
            1e3 * seconds
        )
    }
}

/// All layers on a patch of `size` voxels per edge, in both directions at once, as a training step runs them.
pub fn layers(size: usize, repeats: usize, device: &Device) -> anyhow::Result<Vec<Timed>> {
    let mut timed = Vec::new();
    let mut edge = size;
    for layer in &GENERATOR {
        if layer.join().is_some() {
            edge *= 2;
        }
        if layer.kernel == 3 {
            let spec = ConvSpec { stride: layer.stride, padding: layer.padding };
            let ours = |x, weight| {
                let bias = Tensor::zeros([layer.c_out], device);
                conv3d(x, weight, bias, spec)
            };
            let options =
                burn::tensor::ops::ConvOptions::new([layer.stride; 3], [layer.padding; 3], [1; 3], 1);
            let burns = |x, weight| {
                let bias = Tensor::zeros([layer.c_out], device);
                burn::tensor::module::conv3d(x, weight, Some(bias), options.clone())
            };
            let ours = passes(layer, edge, repeats, device, &ours)?;
            let burns = passes(layer, edge, repeats, device, &burns)?;
            let names = ["forward", "input_gradient", "weight_gradient"];
            for ((pass, seconds), burn_seconds) in names.into_iter().zip(ours).zip(burns) {
                timed.push(Timed { layer: layer.name, pass, edge, seconds, burn_seconds });
            }
        }
        edge = layer.output(edge);
    }
    Ok(timed)
}

type Convolution<'a> = dyn Fn(Tensor<5>, Tensor<5>) -> Tensor<5> + 'a;

/// Medians of forward, input gradient and weight gradient.
fn passes(
    layer: &Layer,
    edge: usize,
    repeats: usize,
    device: &Device,
    conv: &Convolution,
) -> anyhow::Result<[f64; 3]> {
    let random = |shape: [usize; 5]| Tensor::<5>::random(shape, Distribution::Uniform(-1.0, 1.0), device);
    let [x, weight] = [
        random([2, layer.c_in, edge, edge, edge]),
        random([layer.c_out, layer.c_in, layer.kernel, layer.kernel, layer.kernel]),
    ];
    let out = layer.output(edge);
    let dy = random([2, layer.c_out, out, out, out]);
    let forward = median(repeats, device, || (), |()| drop(conv(x.clone(), weight.clone())))?;
    // A gradient can only be asked for through a scalar: what that takes by itself is subtracted.
    let scalar = |y: Tensor<5>| (y * dy.clone().autodiff()).sum();
    let leaf = random([2, layer.c_out, out, out, out]);
    let around = median(
        repeats,
        device,
        || scalar(leaf.clone().autodiff().require_grad()),
        |scalar| drop(scalar.backward()),
    )?;
    let gradient = |for_input: bool| {
        let graph = || {
            let (x, weight) = (x.clone().autodiff(), weight.clone().autodiff());
            let y = if for_input { conv(x.require_grad(), weight) } else { conv(x, weight.require_grad()) };
            scalar(y)
        };
        let whole = median(repeats, device, graph, |scalar| drop(scalar.backward()))?;
        anyhow::Ok((whole - around).max(0.0))
    };
    Ok([forward, gradient(true)?, gradient(false)?])
}

/// Median seconds of `work` on what `prepare` makes, after two runs that are not counted: the first compiles kernels.
fn median<T>(
    repeats: usize,
    device: &Device,
    prepare: impl Fn() -> T,
    work: impl Fn(T),
) -> anyhow::Result<f64> {
    let mut seconds = Vec::new();
    for run in 0..repeats + 2 {
        let prepared = prepare();
        device.sync()?;
        let clock = Instant::now();
        work(prepared);
        device.sync()?;
        if run >= 2 {
            seconds.push(clock.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}
