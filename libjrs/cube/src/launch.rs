//! How kernels are spread over a device, and their arguments.
//!
//! A *cube* (CUDA: block) is a group of units that share fast memory and can wait for each other; a *unit* (CUDA: thread) runs
//! the kernel. A GPU wants cubes of hundreds of units. CubeCL's CPU runtime makes each unit a task that walks all cubes, and
//! waiting costs it a barrier between threads: there, a cube has one unit, which does more. Kernels take the number of units as
//! a compile-time constant and fit both.

use std::sync::atomic::{AtomicBool, Ordering};

use cubecl::prelude::*;

use crate::{Client, Handle};

/// Units of a cube on a GPU, for kernels with one value after another.
const WIDE: usize = 256;

/// Cut kernels as for a GPU, whatever the device is.
static WIDE_ANYWHERE: AtomicBool = AtomicBool::new(false);

/// Makes this process cut kernels as for a GPU also on CubeCL's CPU runtime, which then needs a thread for each unit: far too
/// slow for work, but it checks that the units of a GPU's cubes do their parts.
pub fn cut_as_for_a_gpu() {
    WIDE_ANYWHERE.store(true, Ordering::Relaxed);
}

/// The device is a GPU.
pub(crate) fn is_gpu(client: &Client) -> bool {
    client.properties().hardware.plane_size_max > 1 || WIDE_ANYWHERE.load(Ordering::Relaxed)
}

/// How many values a cube handles, and with how many units: unit u takes the values u, u + units, u + 2 units ...
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Span {
    /// Units of a cube.
    pub units: usize,
    /// Values of a unit.
    pub each: usize,
}

impl Span {
    /// For kernels whose units do not wait for each other.
    pub(crate) fn free(client: &Client) -> Self {
        if is_gpu(client) { Self { units: WIDE, each: 4 } } else { Self { units: 1, each: 4096 } }
    }

    /// For sums: every unit adds its values, then the cube adds its units.
    pub(crate) fn sums(client: &Client) -> Self {
        if is_gpu(client) { Self { units: WIDE, each: 64 } } else { Self { units: 1, each: 16384 } }
    }

    /// Cubes for `values`.
    pub(crate) fn cubes(&self, values: usize) -> usize {
        values.div_ceil(self.units * self.each)
    }

    pub(crate) fn dim(&self) -> CubeDim {
        CubeDim::new_1d(self.units as u32)
    }
}

/// A grid of so many cubes.
pub(crate) fn grid(cubes: usize) -> CubeCount {
    CubeCount::Static(u32::try_from(cubes).expect("fewer than 2^32 cubes"), 1, 1)
}

/// A buffer of `len` values of `T` as a kernel's argument.
///
/// # Panics
/// If the buffer is shorter.
pub(crate) fn values<T>(handle: &Handle, len: usize, what: &str) -> BufferArg {
    let room = handle.size_in_used() / size_of::<T>() as u64;
    assert!(room >= len as u64, "{what}: {len} values, in a buffer of {room}");
    // Kernels compute positions in 32 bits.
    assert!(len < 1 << 31, "{what}: {len} values, at most 2^31 - 1");
    // SAFETY: the buffer has `len` values.
    unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
}
