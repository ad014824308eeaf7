//! Choosing a device, and what can be said about it before anything is queued there.

use std::sync::Once;

use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

use crate::Client;

/// Where kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The NVIDIA GPU with this number, in the driver's order (which `CUDA_VISIBLE_DEVICES` changes). Feature `cuda`.
    Cuda(usize),
    /// The processor, by the kernels of the GPU. Feature `cpu`.
    Cpu,
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This build has no code for the device.
    #[error("this build has no {runtime} support; build it with the feature `{feature}`")]
    NotBuilt {
        /// What is missing.
        runtime: &'static str,
        /// The feature that adds it.
        feature: &'static str,
    },
    /// No NVIDIA driver, or one that does not start.
    #[error("no usable NVIDIA driver: {0}")]
    NoDriver(String),
    /// The driver does not have this GPU.
    #[error("no GPU with the number {number}; the driver shows {count}")]
    NoDevice {
        /// The number asked for.
        number: usize,
        /// How many there are, numbered from 0.
        count: usize,
    },
    /// Work on the device failed: no memory, a lost device, a kernel that could not run.
    #[error("the device failed: {0}")]
    Failed(String),
}

impl Error {
    pub(crate) fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name, as the driver says it.
    pub name: String,
    /// Its memory in bytes; for the processor, the machine's or the container's.
    pub memory: u64,
    /// Bytes of it that are free now, where that can be asked.
    pub free: Option<u64>,
}

/// Looks for a device without using it. Never panics, also where there is no driver.
///
/// # Errors
/// Every kind of [`Error`] but `Failed`.
pub fn probe(device: Device) -> Result<Found, Error> {
    match device {
        Device::Cuda(number) => cuda::probe(number),
        Device::Cpu => cpu::probe(),
    }
}

/// The queue of a device, after a [`probe`]. Settings of CubeCL come from here, never from files of the current folder.
///
/// # Errors
/// As [`probe`]; and `Failed` if the device does not start.
pub fn open(device: Device) -> Result<Client, Error> {
    probe(device)?;
    configure();
    let device = match device {
        Device::Cuda(number) => cubecl::Device::cuda(number),
        Device::Cpu => cubecl::Device::cpu(),
    };
    let device = device.map_err(Error::failed)?;
    // CubeCL panics where the driver refuses (for example a GPU that another process has for itself).
    std::panic::catch_unwind(|| device.client()).map_err(|panic| Error::Failed(message(&*panic)))
}

/// Bytes that buffers of `client` take now, and bytes it has reserved of the device.
pub fn memory_in_use(client: &Client) -> (u64, u64) {
    let usage = client.memory_report(cubecl::MemoryScope::Device).usage();
    (usage.bytes_in_use, usage.bytes_reserved)
}

/// Fixes CubeCL's settings for this process, unless something set them before: nothing is read from the current folder,
/// nothing is kept on disk. [`open`] does it; who reaches CubeCL in another way (Burn) calls it first.
pub fn configure() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::default();
        config.environment.path = CacheConfig::Directory(std::env::temp_dir());
        CubeClRuntimeConfig::try_set(config);
    });
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
        .unwrap_or_else(|| "no reason given".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Machines without a GPU are told so; on others there are not a thousand.
    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        let error = probe(Device::Cuda(1000)).unwrap_err();
        let expected = matches!(
            error,
            Error::NotBuilt { .. } | Error::NoDriver(_) | Error::NoDevice { number: 1000, .. }
        );
        assert!(expected, "{error}");
        assert_eq!(open(Device::Cuda(1000)).err(), Some(error));
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{Error, Found};
    use cudarc::driver::result;

    pub fn probe(number: usize) -> Result<Found, Error> {
        // SAFETY: tries to load the driver's library under its usual names, no more.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(Error::NoDriver("libcuda.so is not installed".into()));
        }
        let driver = |e: result::DriverError| Error::NoDriver(e.to_string());
        result::init().map_err(driver)?;
        let count = result::device::get_count().map_err(driver)? as usize;
        if number >= count {
            return Err(Error::NoDevice { number, count });
        }
        let device = result::device::get(number as i32).map_err(Error::failed)?;
        let name = result::device::get_name(device).map_err(Error::failed)?;
        // SAFETY: `device` is one the driver just gave.
        let memory = unsafe { result::device::total_mem(device) }.map_err(Error::failed)? as u64;
        Ok(Found { name, memory, free: free(device) })
    }

    /// Asks in the device's primary context, which CubeCL uses too.
    fn free(device: cudarc::driver::sys::CUdevice) -> Option<u64> {
        // SAFETY: `device` is one the driver gave; the context is released as often as it is retained, and the thread's
        // current context is what it was before.
        unsafe {
            let before = result::ctx::get_current().ok()?;
            let context = result::primary_ctx::retain(device).ok()?;
            let free = result::ctx::set_current(context).and_then(|()| result::mem_get_info());
            let _ = result::ctx::set_current(before.unwrap_or(std::ptr::null_mut()));
            let _ = result::primary_ctx::release(device);
            free.ok().map(|(free, _)| free as u64)
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    pub fn probe(_: usize) -> Result<super::Found, super::Error> {
        Err(super::Error::NotBuilt { runtime: "CUDA", feature: "cuda" })
    }
}

#[cfg(feature = "cpu")]
mod cpu {
    pub fn probe() -> Result<super::Found, super::Error> {
        super::configure();
        let client = cubecl::Device::cpu().map_err(super::Error::failed)?.client();
        let properties = client.properties();
        Ok(super::Found {
            name: properties.identity.name.clone(),
            memory: properties.memory.max_memory().unwrap_or(properties.memory.max_page_size),
            free: None,
        })
    }
}

#[cfg(not(feature = "cpu"))]
mod cpu {
    pub fn probe() -> Result<super::Found, super::Error> {
        Err(super::Error::NotBuilt { runtime: "CubeCL CPU", feature: "cpu" })
    }
}
