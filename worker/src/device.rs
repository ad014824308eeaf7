//! Which device trains. A matter of the process, not of the run: the same run may go on elsewhere.

use crate::collective::{Cause, Failure};
use burn::tensor::{Device, Tensor};
#[cfg(any(test, not(all(feature = "cuda", feature = "cube-cpu"))))]
use libjrs::Error;
use libjrs::Result;
use libjrs::engine::{Compute, Precision};

/// A device by name, as inference has it; Burn's `Device` is one that is ready for tensors.
pub use libjrs::engine::Device as Place;

/// The device `place`, ready for tensors. Whether it is there is asked first: Burn would panic otherwise.
///
/// # Errors
/// If this build cannot use such a device, or the machine has none.
pub fn open(place: Place) -> Result<Device> {
    Compute { device: place, precision: Precision::F32 }.check()?;
    Ok(match place {
        Place::Cpu => Device::flex(),
        #[cfg(feature = "cuda")]
        Place::Cuda(index) => Device::cuda(index),
        #[cfg(feature = "cube-cpu")]
        Place::CubeCpu => Device::cpu(),
        #[cfg(not(all(feature = "cuda", feature = "cube-cpu")))]
        other => {
            return Err(Error::device(format!("this build cannot train on {other}"), "Choose --device cpu"));
        }
    })
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

    /// In every build: where there is a GPU, number 1000 is not it.
    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = open(Place::Cuda(1000)).unwrap_err();
        assert!(matches!(error, Error::Device { .. }), "{error}");
    }
}
