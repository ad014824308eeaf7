//! The forward convolution on tensor cores: an implicit matrix product of rounded numbers, added in f32.
//!
//! ```text
//!                16 input channels (TF32: 8) at a time             plane's sums, f32
//!   window of the tile    filter, one z of taps               output channels
//!   +------------------+     +-----------+                   0..16  16..32  ...
//!   | voxel: 32 bytes  |     | tap,      |                 +------+-------+
//!   | voxel: 32 bytes  |     |  output:  |    16 voxels    | 16 x |       |   += A (16 voxels x channels)
//!   |  ...             |     |  32 bytes |    next row     |   16 |       |    * B (channels x 16 outputs)
//!   +------------------+     +-----------+    ...          +------+-------+       for each tap
//!        A: rows             B: columns
//! ```
//!
//! A cube computes a tile of rows of 16 voxels along x for up to 64 output channels. For a block of input channels it copies
//! the input under the tile to shared memory, rounded, *channels innermost*: a voxel's block is 32 bytes, so that a row of 16
//! voxels is a fragment of a tensor core wherever a tap shifts it (fragments must begin at multiples of 32 bytes), and at
//! stride 2 every second voxel. The weights of one z of taps follow, output by output. Then each plane (CUDA: warp) multiplies
//! its rows with all columns, tap by tap. Channels that are not there are zeros: 2 input channels cost as much as 16.
//!
//! The product of two fragments is behind one switch, [`Unit`]: a tensor core, or loops over the same fragments where there is
//! none, which is how all but the instruction is tested without a GPU. Rounding is arithmetic on bits in both.
//!
//! A voxel's sum runs over blocks of channels, then taps; within a block in the order of the hardware: the same bits on every
//! run of the same kind of device.

mod kernel;

use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use half::bf16;

use super::correlation::{Correlation, Input};
use super::plan::{Finish, Source};
use super::{Arithmetic, Epilogue};
use crate::launch::{Width, grid, width};
use crate::{Client, Handle};

/// Edge of a fragment: voxels along x, and output channels.
const EDGE: usize = 16;
/// Units of a plane.
const LANES: usize = 32;
/// Shared memory that a cube may take: what a kernel gets without asking the driver for more.
const SHARED: usize = 48 << 10;

/// Numbers that are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operands {
    Tf32,
    Bf16,
}

impl Operands {
    /// None where nothing is rounded.
    pub fn of(arithmetic: Arithmetic) -> Option<Self> {
        match arithmetic {
            Arithmetic::F32 => None,
            Arithmetic::Tf32 => Some(Self::Tf32),
            Arithmetic::Bf16 => Some(Self::Bf16),
        }
    }

    /// Input channels of a fragment.
    fn channels(self) -> usize {
        match self {
            Self::Tf32 => 8,
            Self::Bf16 => 16,
        }
    }

    /// Bits of f32 that rounding drops.
    fn dropped_bits(self) -> u32 {
        match self {
            Self::Tf32 => 13,
            Self::Bf16 => 16,
        }
    }

    /// The product of two fragments, as devices list what they have.
    fn form(self) -> MmaConfig {
        let operand = ElemType::Float(match self {
            Self::Tf32 => FloatKind::TF32,
            Self::Bf16 => FloatKind::BF16,
        });
        MmaConfig {
            a_type: operand,
            b_type: operand,
            cd_type: ElemType::Float(FloatKind::F32),
            m: EDGE as u32,
            n: EDGE as u32,
            k: self.channels() as u32,
        }
    }
}

/// What multiplies two fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Unit {
    /// A GPU's tensor core, by the units of a plane together.
    TensorCore,
    /// Loops of one unit.
    Emulated,
}

/// How a convolution is cut up: compile-time constants of its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    unit: Unit,
    operands: Operands,
    /// Planes of a cube, which share its rows.
    planes: usize,
    /// Rows of a cube, z, y, each of 16 voxels.
    rows: [usize; 2],
    /// Output channels of a cube, a multiple of 16.
    outputs: usize,
    /// Taps along an axis.
    taps: usize,
    /// Input voxels from one output to the next.
    stride: usize,
    finish: Finish,
    source: Source,
}

impl Plan {
    fn new(
        unit: Unit,
        operands: Operands,
        correlation: &Correlation,
        finish: Finish,
        source: Source,
    ) -> Self {
        let plan = Self {
            unit,
            operands,
            planes: if unit == Unit::TensorCore { 4 } else { 1 },
            rows: [4, 4],
            outputs: correlation.c_out.min(4 * EDGE).next_multiple_of(EDGE),
            taps: correlation.edge,
            stride: correlation.stride,
            finish,
            source,
        };
        let sizes = [[4, 4], [2, 4], [2, 2]].map(|rows| Self { rows, ..plan });
        sizes.into_iter().find(|plan| plan.shared() <= SHARED).expect("four rows fit")
    }

    /// Units that copy and write together: a cube's.
    fn units(&self) -> usize {
        self.planes * self.lanes()
    }

    /// Units of a plane.
    fn lanes(&self) -> usize {
        if self.unit == Unit::TensorCore { LANES } else { 1 }
    }

    /// Voxels of a tile, z, y, x.
    fn tile(&self) -> [usize; 3] {
        [self.rows[0], self.rows[1], EDGE]
    }

    /// Rows of a plane.
    fn rows_of_plane(&self) -> usize {
        self.rows[0] * self.rows[1] / self.planes
    }

    /// Fragments of output channels.
    fn columns(&self) -> usize {
        self.outputs / EDGE
    }

    /// Input voxels under a tile, z, y, x.
    fn window(&self) -> [usize; 3] {
        self.tile().map(|n| (n - 1) * self.stride + self.taps)
    }

    /// Numbers in the window.
    fn window_len(&self) -> usize {
        self.operands.channels() * self.window().iter().product::<usize>()
    }

    /// Numbers in the filter.
    fn filter_len(&self) -> usize {
        self.operands.channels() * self.taps * self.taps * self.outputs
    }

    /// Sums in shared memory: on their way out a fragment of each plane; where they are emulated, all.
    fn sums_len(&self) -> usize {
        let fragments = match self.unit {
            Unit::TensorCore => self.planes,
            Unit::Emulated => self.rows_of_plane() * self.columns(),
        };
        fragments * EDGE * EDGE
    }

    /// Bytes of shared memory on a GPU.
    fn shared(&self) -> usize {
        // A block of channels has 32 bytes.
        let of_operand = 32 / self.operands.channels();
        of_operand * (self.window_len() + self.filter_len()) + 4 * self.planes * EDGE * EDGE
    }

    fn cubes(&self, correlation: &Correlation) -> usize {
        let tile = self.tile();
        let tiles: usize = (0..3).map(|a| correlation.output[a].div_ceil(tile[a])).product();
        correlation.batch * tiles * correlation.c_out.div_ceil(self.outputs)
    }
}

/// Whether the device has what `arithmetic` takes.
pub(super) fn available(client: &Client, arithmetic: Arithmetic) -> bool {
    let has = |operands: Operands| client.features().matmul.cmma.contains(&operands.form());
    unit(client) == Unit::Emulated || Operands::of(arithmetic).is_none_or(has)
}

fn unit(client: &Client) -> Unit {
    if width(client) == Width::Gpu { Unit::TensorCore } else { Unit::Emulated }
}

/// `y = epilogue(conv(x, weight) + bias)`.
pub(super) fn run(
    client: &Client,
    operands: Operands,
    correlation: &Correlation,
    input: Input<'_>,
    weight: &Handle,
    bias: &Handle,
    epilogue: Epilogue<'_>,
    y: &Handle,
) {
    let args = correlation.arguments(input, weight, Some(bias), epilogue, y);
    let plan = Plan::new(unit(client), operands, correlation, args.finish, args.source);
    let launch = match (plan.unit, operands) {
        (Unit::TensorCore, Operands::Bf16) => kernel::multiply::launch_unchecked::<bf16, bf16>,
        // TF32 is f32 in memory. The emulated unit takes any number that is exact in f32, and has no fragments.
        (Unit::TensorCore, Operands::Tf32) | (Unit::Emulated, _) => {
            kernel::multiply::launch_unchecked::<f32, tf32>
        }
    };
    // SAFETY: reads and writes stay within the sizes of the geometry, which `arguments` compared with the buffers.
    unsafe {
        launch(
            client,
            grid(plan.cubes(correlation)),
            CubeDim::new_1d(plan.units() as u32),
            args.input,
            args.skip,
            args.weight,
            args.bias,
            args.scale,
            args.shift,
            args.y,
            args.geometry,
            plan,
        );
    }
}

/// The kernels of a layer, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(super) fn offline(
    name: &str,
    correlation: &Correlation,
    source: Source,
    kernels: &mut crate::ptx::Offline,
) {
    use super::correlate::Geometry;
    use crate::ptx::{arg, buffer as b};
    let plan = |operands| Plan::new(Unit::TensorCore, operands, correlation, Finish::LeakyNorm, source);
    let geometry = || arg::<Geometry>(correlation.geometry(0, 0, 0.2));
    let plan_of = plan(Operands::Bf16);
    kernels.add(format!("conv3d forward bf16 {name}"), plan_of.units(), |s, d, t| {
        kernel::multiply::Multiply::<bf16, bf16>::new(
            s,
            d,
            t,
            b(),
            b(),
            b(),
            b(),
            b(),
            b(),
            b(),
            geometry(),
            plan_of,
        )
    });
    let plan_of = plan(Operands::Tf32);
    kernels.add(format!("conv3d forward tf32 {name}"), plan_of.units(), |s, d, t| {
        kernel::multiply::Multiply::<f32, tf32>::new(
            s,
            d,
            t,
            b(),
            b(),
            b(),
            b(),
            b(),
            b(),
            b(),
            geometry(),
            plan_of,
        )
    });
}
