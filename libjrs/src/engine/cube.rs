//! The generator on a GPU: the layer table run with the kernels of `jrs_cube`, tensors as wholes, BatchNorm folded.
//!
//! A GPU has the memory and the bandwidth for whole tensors, where the CPU streams planes. At most four live at a time: two
//! skip connections, a layer's input and its output. What is upsampled beside a skip connection is read in place.
//!
//! In bf16 and TF32 the numbers that are multiplied are rounded on their way to the tensor cores; in memory all tensors stay
//! f32, so that one estimate counts for every precision.

use std::panic::{AssertUnwindSafe, catch_unwind};

use jrs_cube::buffer::{download, upload};
use jrs_cube::conv3d::{self, Arithmetic};
use jrs_cube::{Client, Handle, device};
use jrs_kernels::Conv3d;
use jrs_kernels::upsample_concat::UpsampleConcat;

use super::device::{Device, Precision};
use super::folded::FoldedLayer;
use super::{Engine, check_input};
use crate::model::GeneratorWeights;
use crate::network::{GENERATOR, JOINS, Join, LEAKY_SLOPE, Layer};
use crate::{Error, Result};

/// Runs on one device; the same bits in every run on the same kind of device.
pub struct CubeEngine {
    client: Client,
    name: String,
    arithmetic: Arithmetic,
    layers: Vec<Weights>,
}

/// A layer's values on the device.
struct Weights {
    kernel: Handle,
    bias: Handle,
    /// Scale and shift behind LeakyReLU, in blocks.
    norm: Option<[Handle; 2]>,
}

/// A layer for an input of some size.
struct Step {
    layer: &'static Layer,
    /// The skip connection that is joined to its input before.
    join: Option<(&'static Join, UpsampleConcat)>,
    conv: Conv3d,
}

impl CubeEngine {
    /// Prepares the weights on `device`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is not there, [`Error::Unsupported`] if it cannot compute so, [`Error::Memory`] if it has
    /// no room for the weights.
    pub fn new(device: Device, precision: Precision, weights: &GeneratorWeights) -> Result<Self> {
        let on = of(device)?;
        let found = device::probe(on).map_err(failure)?.name;
        let name = match precision {
            Precision::F32 => format!("{device}: {found}"),
            _ => format!("{device}: {found}, {}", precision.name()),
        };
        let (client, arithmetic) = open(device, precision)?;
        let layers = guarded(|| {
            let up = |values: &[f32]| upload(&client, values);
            let layers = weights.layers.iter().map(FoldedLayer::new).map(|layer| Weights {
                kernel: up(&layer.weight),
                bias: up(&layer.bias),
                norm: layer.norm.map(|(scale, shift)| [up(&scale), up(&shift)]),
            });
            Ok(layers.collect())
        })?;
        Ok(Self { client, name, arithmetic, layers })
    }

    fn run(&self, fixed: &[f32], moving: &[f32], size: [usize; 3]) -> Result<Vec<f32>> {
        let mut x = upload(&self.client, &[fixed, moving].concat());
        let mut skips = Vec::new();
        for (step, weights) in steps(size).iter().zip(&self.layers) {
            let epilogue = match &weights.norm {
                None => conv3d::Epilogue::None,
                Some([scale, shift]) => conv3d::Epilogue::LeakyNorm { slope: LEAKY_SLOPE, scale, shift },
            };
            let Weights { kernel, bias, .. } = weights;
            x = match &step.join {
                None => {
                    conv3d::forward(&self.client, self.arithmetic, &step.conv, &x, kernel, bias, epilogue)
                }
                Some((join, geometry)) => {
                    let skip = skips.iter().position(|(name, _)| *name == join.skip);
                    let (_, skip) = skips.swap_remove(skip.expect("a skip comes before its join"));
                    conv3d::forward_upsampled(
                        &self.client,
                        self.arithmetic,
                        &step.conv,
                        geometry,
                        &x,
                        &skip,
                        kernel,
                        bias,
                        epilogue,
                    )
                }
            };
            if JOINS.iter().any(|join| join.skip == step.layer.name) {
                skips.push((step.layer.name, x.clone()));
            }
        }
        download(&self.client, x).map_err(failure)
    }
}

impl Engine for CubeEngine {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn displacement(
        &self,
        fixed: &[f32],
        moving: &[f32],
        size: [usize; 3],
        out: &mut [Vec<f32>; 3],
    ) -> Result<()> {
        check_input(fixed, moving, size)?;
        let u = guarded(|| self.run(fixed, moving, size))?;
        for (out, u) in out.iter_mut().zip(u.chunks_exact(u.len() / 3)) {
            out.clear();
            out.extend_from_slice(u);
        }
        Ok(())
    }

    fn bytes(&self, size: [usize; 3]) -> usize {
        let weights: usize = GENERATOR.iter().map(Layer::parameters).sum();
        size_of::<f32>() * (weights + most_values(size))
    }

    fn has_own_memory(&self) -> bool {
        true
    }
}

impl Drop for CubeEngine {
    /// Gives the device's memory back: the client's pools would keep it for the next call.
    fn drop(&mut self) {
        self.layers.clear();
        let _ = guarded(|| device::release(&self.client).map_err(failure));
    }
}

/// The generator's layers for an input of `size` = \[x, y, z\].
fn steps(size: [usize; 3]) -> Vec<Step> {
    let [x, y, z] = size;
    let mut input = [z, y, x];
    let mut channels = 2;
    let mut widths = Vec::new();
    let step = |layer: &'static Layer| {
        let join = JOINS.iter().find(|join| join.before == layer.name).map(|join| {
            let c_skip = widths.iter().find(|(name, _)| *name == join.skip).map_or(0, |(_, width)| *width);
            let geometry = UpsampleConcat { batch: 1, c_up: channels, c_skip, low: input, crop: join.crop };
            input = geometry.output();
            (join, geometry)
        });
        let Layer { c_in, c_out, kernel, stride, padding, .. } = *layer;
        let conv = Conv3d { batch: 1, c_in, c_out, input, kernel, stride, padding };
        (input, channels) = (conv.output(), c_out);
        widths.push((layer.name, c_out));
        Step { layer, join, conv }
    };
    GENERATOR.iter().map(step).collect()
}

/// Most values in tensors that live at the same time, for an input of `size`.
fn most_values(size: [usize; 3]) -> usize {
    let mut most = 0;
    let mut kept: Vec<(&str, usize)> = Vec::new();
    let mut before = "";
    for step in steps(size) {
        let kept_values = kept.iter().map(|(_, values)| values).sum::<usize>();
        let input = match &step.join {
            // The skip is among the kept.
            Some((_, geometry)) => geometry.low_len(),
            // A skip connection is also its successor's input.
            None if kept.last().is_some_and(|(name, _)| *name == before) => 0,
            None => step.conv.input_len(),
        };
        most = most.max(kept_values + input + step.conv.output_len());
        if let Some((join, _)) = step.join {
            kept.retain(|(name, _)| *name != join.skip);
        }
        before = step.layer.name;
        if JOINS.iter().any(|join| join.skip == step.layer.name) {
            kept.push((step.layer.name, step.conv.output_len()));
        }
    }
    most
}

/// Whether `device` is there and computes so.
pub(super) fn check(device: Device, precision: Precision) -> Result<()> {
    match precision {
        // Every device does, and need not be started to say so.
        Precision::F32 => device::probe(of(device)?).map(|_| ()).map_err(failure),
        _ => open(device, precision).map(|_| ()),
    }
}

/// The queue of `device`, and how kernels compute there.
fn open(device: Device, precision: Precision) -> Result<(Client, Arithmetic)> {
    let client = device::open(of(device)?).map_err(failure)?;
    let arithmetic = match precision {
        Precision::F32 => Arithmetic::F32,
        Precision::Tf32 => Arithmetic::Tf32,
        Precision::Bf16 => Arithmetic::Bf16,
    };
    if !arithmetic.on(&client) {
        return Err(Error::unsupported(
            format!("{device} has no tensor cores for {}", precision.name()),
            "Use f32 precision, or a GPU of compute capability 8.0 or above",
        ));
    }
    Ok((client, arithmetic))
}

/// A device as the kernels' crate names it.
fn of(device: Device) -> Result<device::Device> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => Ok(device::Device::Cuda(number)),
        #[cfg(feature = "cube-cpu")]
        Device::CubeCpu => Ok(device::Device::Cpu),
        other => Err(super::device::not_built(other)),
    }
}

/// Runs `work`; where CubeCL panics (a driver that is gone, an allocation that fails), an error of the device.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What the closure borrows is not looked at after a panic but by `Drop`, which only frees.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(lost(said.unwrap_or("no reason given")))
    })
}

/// What the kernels' crate reports, in the words of this one.
fn failure(error: device::Error) -> Error {
    let said = error.to_string();
    match error {
        device::Error::NotBuilt { .. } => Error::device(said, "Choose cpu, or another build"),
        device::Error::NoDriver(_) => Error::device(said, "Install NVIDIA's driver, or choose cpu"),
        device::Error::NoDevice { .. } => Error::device(said, "Choose one that is there, or cpu"),
        device::Error::NoMemory(_) => {
            Error::memory(said, "Allow smaller tiles (a lower memory limit), or free the device")
        }
        device::Error::Failed(_) => lost(said),
    }
}

/// Work that was begun and did not come back.
fn lost(said: impl Into<String>) -> Error {
    Error::device(said, "Nothing was written. Try again; if it stays, look at the driver's log")
}

#[cfg(all(test, feature = "cube-cpu"))]
mod tests {
    use super::*;
    use crate::engine::cpu::{reference_weights, relative_error};
    use crate::engine::tests::images;
    use crate::engine::{CpuEngine, Plan, infer};
    use crate::progress::Progress;

    fn engine() -> CubeEngine {
        engine_in(Precision::F32)
    }

    fn engine_in(precision: Precision) -> CubeEngine {
        CubeEngine::new(Device::CubeCpu, precision, &reference_weights()).unwrap()
    }

    #[test]
    fn agrees_with_pytorch() {
        let relative = relative_error(&engine());
        assert!(relative < 1e-4, "relative error {relative}");
    }

    #[test]
    fn any_size_gives_what_the_other_engine_gives() {
        for size in [[44, 44, 48], [48, 60, 44]] {
            let [fixed, moving] = images(size);
            let (mut expected, mut got) = (Default::default(), Default::default());
            CpuEngine::new(&reference_weights()).displacement(&fixed, &moving, size, &mut expected).unwrap();
            engine().displacement(&fixed, &moving, size, &mut got).unwrap();
            let pairs = || expected.iter().flatten().zip(got.iter().flatten());
            assert_eq!(pairs().count(), 3 * size.iter().map(|n| n - 40).product::<usize>());
            let most = pairs().map(|(e, g)| (e - g).abs()).fold(0.0, f32::max);
            // The limit for a GPU is 0.1 mm; f32 in another order of summation stays far below.
            assert!(most < 1e-4, "{size:?}: {most} mm");
        }
    }

    #[test]
    fn tiles_give_what_the_whole_volume_gives() {
        let size = [18, 9, 8];
        let [fixed, moving] = images(size);
        let engine = engine();
        let whole = infer(&engine, &fixed, &moving, size, usize::MAX, Progress::SILENT).unwrap();
        let limit = engine.bytes([56, 52, 48]);
        assert!(Plan::new(size, limit, |s| engine.bytes(s)).unwrap().tiles.len() > 1);
        let tiled = infer(&engine, &fixed, &moving, size, limit, Progress::SILENT).unwrap();
        for (w, t) in whole.iter().flatten().zip(tiled.iter().flatten()) {
            assert!((w - t).abs() < 1e-4, "{w} and {t} mm");
        }
    }

    #[test]
    fn the_same_bits_every_time() {
        let size = [8, 8, 8];
        let [fixed, moving] = images(size);
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            let run =
                || infer(&engine_in(precision), &fixed, &moving, size, usize::MAX, Progress::SILENT).unwrap();
            assert_eq!(run(), run(), "{precision:?}");
        }
    }

    /// The norm of the displacement's error, by its norm, as measured: 1.4e-3 in TF32, 1.3e-2 in bf16. None would mean that
    /// nothing was rounded.
    #[test]
    fn rounded_numbers_give_nearly_the_same() {
        for (precision, least, most) in [(Precision::Tf32, 3e-4, 3e-3), (Precision::Bf16, 3e-3, 3e-2)] {
            let relative = relative_error(&engine_in(precision));
            assert!((least..most).contains(&relative), "{precision:?}: relative error {relative}");
        }
    }

    /// The widest moment of the method's table: x0 beside x1. What x14 reads is never joined in memory.
    #[test]
    fn the_largest_tensors_are_counted() {
        for n in [96usize, 296] {
            assert_eq!(most_values([n; 3]), 16 * (n - 2).pow(3) + 16 * (n - 4).pow(3));
        }
    }

    #[test]
    fn every_precision_is_there_and_rounding_is_in_the_name() {
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            check(Device::CubeCpu, precision).unwrap();
            let rounds = precision != Precision::F32;
            let name = engine_in(precision).name();
            assert_eq!(name.ends_with(&format!(", {}", precision.name())), rounds, "{name}");
        }
    }
}
