//! The device that tests of tensors run on.

use burn::tensor::Device;
use jrs_worker::device::Place;

/// `JRS_TEST_DEVICE`, as `jrs train --device` takes it; the CPU without it.
pub fn device() -> Device {
    let name = std::env::var("JRS_TEST_DEVICE").unwrap_or_else(|_| Place::Cpu.to_string());
    let place: Place = name.parse().expect("JRS_TEST_DEVICE names a device");
    jrs_worker::device::open(place).expect("the device of JRS_TEST_DEVICE")
}
