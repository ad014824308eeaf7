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

/// How many units cubes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// Those of a GPU.
    Gpu,
    /// A few: slow, but what a GPU does in small.
    Few,
    /// One.
    One,
}

/// [`Width::Few`] instead of [`Width::One`].
static FEW: AtomicBool = AtomicBool::new(false);

/// Gives cubes a few units also on CubeCL's CPU runtime, in this process: for a test of how units share the work.
pub fn several_units() {
    FEW.store(true, Ordering::Relaxed);
}

pub(crate) fn width(client: &Client) -> Width {
    if client.properties().hardware.plane_size_max > 1 {
        Width::Gpu
    } else if FEW.load(Ordering::Relaxed) {
        Width::Few
    } else {
        Width::One
    }
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
    pub(crate) fn free(width: Width) -> Self {
        match width {
            Width::Gpu => Self { units: WIDE, each: 4 },
            Width::Few => Self { units: 4, each: 4 },
            Width::One => Self { units: 1, each: 4096 },
        }
    }

    /// For sums: every unit adds its values, then the cube adds its units.
    pub(crate) fn sums(width: Width) -> Self {
        match width {
            Width::Gpu => Self { units: WIDE, each: 64 },
            Width::Few => Self { units: 4, each: 64 },
            Width::One => Self { units: 1, each: 16384 },
        }
    }

    /// Cubes for `values`.
    pub(crate) fn cubes(&self, values: usize) -> usize {
        values.div_ceil(self.units * self.each)
    }

    pub(crate) fn dim(&self) -> CubeDim {
        CubeDim::new_1d(self.units as u32)
    }
}

/// Where the `k`-th value of this unit lies.
#[cube]
pub(crate) fn nth(k: usize, #[comptime] span: Span) -> usize {
    let first = CUBE_POS_X as usize * comptime!(span.units * span.each) + UNIT_POS as usize;
    first + k * comptime!(span.units)
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
