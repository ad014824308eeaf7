//! Where the network runs and in which arithmetic: chosen by the caller, never changed behind their back.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::{CpuEngine, Engine, MatrixEngine};
use crate::model::GeneratorWeights;
use crate::{Error, Result};

/// What runs the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The CPU, with its own kernels.
    #[default]
    Cpu,
    /// The NVIDIA GPU of that number, as the driver counts; needs a build with the feature `cuda`.
    Cuda(usize),
    /// The GPU's kernels on the CPU, to check them where there is no GPU; needs the feature `cube-cpu`.
    CubeCpu,
}

/// Arithmetic of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point, or sums of two bf16 where a matrix unit makes them faster: within 1e-4 of each other's size.
    #[default]
    F32,
    /// bf16 (8 bits) with f32 sums, faster, on processors with a matrix unit (AMX) and on GPUs. Displacements differ by up to
    /// some tenths of a millimetre from those in f32.
    Bf16,
    /// TF32 (11 bits) with f32 sums, faster, on GPUs.
    Tf32,
}

/// Device and arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Compute {
    /// What runs the network.
    pub device: Device,
    /// Its arithmetic.
    pub precision: Precision,
}

impl Precision {
    /// As a record of what ran has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Tf32 => "tf32",
        }
    }
}

impl Device {
    /// The number of the GPU, if it is one.
    pub fn gpu(self) -> Option<usize> {
        match self {
            Self::Cuda(number) => Some(number),
            Self::Cpu | Self::CubeCpu => None,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::CubeCpu => f.write_str("cube-cpu"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "cube-cpu" => Ok(Self::CubeCpu),
            _ => number(text).map(Self::Cuda).ok_or_else(|| {
                Error::input(
                    format!("no device is called {text:?}"),
                    "Say cpu, cuda, or cuda:N for GPU number N",
                )
            }),
        }
    }
}

impl Compute {
    /// Whether the build and the machine have all of it.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is not there, [`Error::Unsupported`] if it cannot compute so.
    pub fn check(self) -> Result<()> {
        match self.device {
            Device::Cpu if self.precision == Precision::F32 => Ok(()),
            Device::Cpu => MatrixEngine::check(self.precision),
            #[cfg(feature = "cube")]
            device => super::cube::check(device, self.precision),
            #[cfg(not(feature = "cube"))]
            device => Err(not_built(device)),
        }
    }

    /// The engine for a trained generator.
    ///
    /// # Errors
    /// As [`Compute::check`]; [`Error::Memory`] if the device has no room for the weights.
    pub fn engine(self, weights: &GeneratorWeights) -> Result<Box<dyn Engine>> {
        self.check()?;
        match self.device {
            Device::Cpu => on_cpu(weights, self.precision),
            #[cfg(feature = "cube")]
            device => Ok(Box::new(super::CubeEngine::new(device, self.precision, weights)?)),
            #[cfg(not(feature = "cube"))]
            device => Err(not_built(device)),
        }
    }
}

/// The engine on the CPU for a trained generator.
///
/// # Errors
/// [`Error::Unsupported`] if this processor cannot compute in that precision.
pub fn on_cpu(weights: &GeneratorWeights, precision: Precision) -> Result<Box<dyn Engine>> {
    Ok(match precision {
        Precision::F32 if !MatrixEngine::available() => Box::new(CpuEngine::new(weights)),
        _ => Box::new(MatrixEngine::new(weights, precision)?),
    })
}

/// That this build has nothing for `device`.
pub(super) fn not_built(device: Device) -> Error {
    let fix = match device {
        Device::CubeCpu => "Choose cpu, or a build with the feature cube-cpu",
        _ => "Choose cpu, or a build with CUDA (scripts/build-cuda)",
    };
    Error::device(format!("this build has no kernels for {device}"), fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(7), Device::CubeCpu] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::Cuda(0));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let said = wrong.parse::<Device>().unwrap_err().to_string();
            assert!(said.contains(&format!("{wrong:?}")) && said.contains("cuda:N"), "{said}");
        }
    }

    #[test]
    fn no_processor_computes_in_tf32() {
        let compute = Compute { precision: Precision::Tf32, ..Default::default() };
        let of_choice = compute.engine(&GeneratorWeights::random(1)).map(|engine| engine.name());
        let of_cpu = on_cpu(&GeneratorWeights::random(1), Precision::Tf32).map(|engine| engine.name());
        for engine in [of_choice, of_cpu] {
            assert!(matches!(&engine, Err(Error::Unsupported { .. })), "{engine:?}");
        }
    }

    /// Runs in every build: where there is a GPU, number 1000 is not it.
    #[test]
    fn a_device_that_is_not_there_is_an_error_and_nothing_else_runs() {
        let compute = Compute { device: Device::Cuda(1000), ..Default::default() };
        let engine = compute.engine(&GeneratorWeights::random(1)).map(|engine| engine.name());
        assert!(matches!(&engine, Err(Error::Device { .. })), "{engine:?}");
    }
}
