//! Which device trains. A matter of the process, not of the run: the same run may go on elsewhere.

use crate::collective::{Cause, Failure};
use burn::tensor::{Device, Tensor};
use libjrs::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// A device by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// `cpu`: this machine's processor, by `jrs-kernels`.
    #[default]
    Cpu,
    /// `cuda` or `cuda:1`: an NVIDIA GPU, counted as the driver does.
    Cuda(usize),
    /// `cube-cpu`: the processor, by the kernels that GPUs run. Slow; for tests.
    CubeCpu,
}

impl Place {
    /// Number of the GPU, for what has to know of it besides tensors.
    pub fn gpu(self) -> Option<usize> {
        match self {
            Self::Cuda(index) => Some(index),
            Self::Cpu | Self::CubeCpu => None,
        }
    }

    /// The device, ready for tensors.
    ///
    /// # Errors
    /// If this build cannot use such a device, or the machine has none.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => self.probed(jrs_cube::Device::Cuda(index), || Device::cuda(index)),
            #[cfg(feature = "cube-cpu")]
            Self::CubeCpu => self.probed(jrs_cube::Device::Cpu, Device::cpu),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => Err(self.not_built("cuda")),
            #[cfg(not(feature = "cube-cpu"))]
            Self::CubeCpu => Err(self.not_built("cube-cpu")),
        }
    }

    /// `device`, where there is one: Burn would panic otherwise.
    #[cfg(feature = "cube")]
    fn probed(self, place: jrs_cube::Device, device: impl FnOnce() -> Device) -> Result<Device> {
        jrs_cube::device::open(place).map_err(|error| {
            Error::input(
                format!("the device {self} cannot be used: {error}"),
                "Choose another --device; nvidia-smi lists the GPUs that the driver sees",
            )
        })?;
        Ok(device())
    }

    #[cfg(not(all(feature = "cuda", feature = "cube-cpu")))]
    fn not_built(self, feature: &str) -> Error {
        Error::input(
            format!("this build of jrs cannot use the device {self}"),
            format!("Build it with --features {feature}, or choose --device cpu"),
        )
    }
}

/// What a name cannot be read for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no device; there are cpu, cuda, cuda:1 (and so on) and cube-cpu")]
pub struct UnknownDevice(String);

impl FromStr for Place {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice(name.to_owned());
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "cube-cpu" => Ok(Self::CubeCpu),
            _ => {
                let index = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::CubeCpu => write!(f, "cube-cpu"),
        }
    }
}

/// The values of `t`, once everything that computes them has run.
///
/// # Errors
/// If the device failed.
pub(crate) fn read(t: Tensor<1>) -> std::result::Result<Vec<f32>, Failure> {
    let data = t.try_into_data().map_err(|error| Failure {
        cause: Cause::Unusable,
        suspect: None,
        reason: format!("this process's device: {error}"),
    })?;
    Ok(data.try_into_vec().expect("training computes in f32"))
}

/// The CubeCL device behind `device`, if it is one.
#[cfg(feature = "cube")]
pub(crate) fn cube(device: &Device) -> Option<burn_cubecl::CubeDevice> {
    match device.clone().inner().as_dispatch() {
        burn::backend::DispatchDevice::Cube(device) => Some(device.clone()),
        _ => None,
    }
}

/// Whether tensors of `device` are CubeCL's.
#[cfg(feature = "cube")]
pub(crate) fn is_cube(device: &Device) -> bool {
    cube(device).is_some()
}

/// Without CubeCL none are.
#[cfg(not(feature = "cube"))]
pub(crate) fn is_cube(_: &Device) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for (name, place) in [
            ("cpu", Place::Cpu),
            ("cuda", Place::Cuda(0)),
            ("cuda:3", Place::Cuda(3)),
            ("cube-cpu", Place::CubeCpu),
        ] {
            assert_eq!(name.parse(), Ok(place));
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for name in ["", "gpu", "cuda:", "cuda:-1", "CPU"] {
            let error = name.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")) && error.contains("cuda:1"), "{error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_it_says_which_feature_is_missing() {
        let error = Place::Cuda(1).open().unwrap_err().to_string();
        assert!(error.contains("cuda:1") && error.contains("--features cuda"), "{error}");
    }
}
