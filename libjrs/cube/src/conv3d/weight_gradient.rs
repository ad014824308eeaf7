//! The weight gradient: `dweight[co][ci][t] = sum over voxels j of dy[co][j] * x[ci][stride * j + t - padding]`.
//!
//! ```text
//!   shared memory, one tile of the output            a unit's registers: one input channel, one row of taps
//!   +-----------------+   +---------------+               tap  0   1   2
//!   | x under the tile|   | dy, the 16    |             co 0 | . | . | . |    per voxel: 3 values of x and 16 of dy
//!   | and its border, |   | channels of a | voxel by      1 | . | . | . |    (which lie in fours, and are the same
//!   | some channels   |   | voxel side by | voxel ->    ... |   |   |   |    for all units) for 48 multiplications
//!   +-----------------+   | side          |              15 | . | . | . |
//!                         +---------------+
//! ```
//!
//! The output is cut into tiles and the tiles into *parts*. A cube goes through the tiles of one part for 16 output channels
//! and some input channels and writes partial sums; few input channels leave units over, which then share the rows of a tile
//! (*splits*, each with partial sums of its own). A second kernel adds the partial sums of each weight in a fixed order. How
//! many parts there are depends on the shape only, so that the bits do not depend on the device.

use cubecl::prelude::*;
use jrs_kernels::Conv3d;

use super::correlate::Extent;
use super::{SHARED, extent};
use crate::launch::{Width, grid, values, width};
use crate::{Client, Handle, buffer};

/// Cubes that a gradient is cut into: several for each processor of a large GPU.
const CUBES: usize = 1024;
/// Voxels along x between two tests of a loop.
const UNROLLED: usize = 4;

/// How the kernel is cut up: compile-time constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    /// Voxels of a tile, z, y, x.
    pub tile: [usize; 3],
    /// Output channels of a cube.
    pub outputs: usize,
    /// Input channels of a cube.
    pub inputs: usize,
    /// Rows of taps of a cube: all of the kernel, or one.
    pub rows: usize,
    /// Units that share a tile's rows.
    pub splits: usize,
    /// Edge of the kernel.
    pub edge: usize,
    pub stride: usize,
}

impl Plan {
    fn new(conv: &Conv3d, width: Width) -> Self {
        let edge = conv.kernel;
        let all = edge * edge;
        let one = width == Width::One;
        let plan = Plan {
            tile: if one { [1, 1, 16] } else { [2, 4, 16] },
            outputs: conv.c_out.next_power_of_two().min(if one { 4 } else { 16 }),
            inputs: 1,
            rows: if one { 1 } else { all },
            splits: 1,
            edge,
            stride: conv.stride,
        };
        let units = match width {
            Width::Gpu => 144,
            Width::Few => 4 * all.min(4),
            Width::One => return plan,
        };
        let fits = |&inputs: &usize| {
            let plan = Plan { inputs, ..plan };
            inputs < 2 * conv.c_in && inputs * all <= units && 4 * plan.shared_values() <= SHARED
        };
        let inputs = [16, 8, 4, 2, 1].into_iter().find(fits).unwrap_or(1);
        let splits = [8, 4, 2, 1].into_iter().find(|splits| splits * inputs * all <= units).unwrap_or(1);
        Plan { inputs, splits, ..plan }
    }

    pub fn units(&self) -> usize {
        self.inputs * self.rows * self.splits
    }

    /// Taps along z and y that a cube's window has room for.
    fn reach(&self) -> usize {
        if self.rows == 1 { 1 } else { self.edge }
    }

    /// Input voxels under a tile, z, y, x.
    fn window(&self) -> [usize; 3] {
        let [z, y, x] = self.tile.map(|n| (n - 1) * self.stride);
        [z + self.reach(), y + self.reach(), x + self.edge]
    }

    /// Values of an input channel in shared memory: odd, so that neighbouring channels fall on different banks.
    fn channel(&self) -> usize {
        self.window().iter().product::<usize>() | 1
    }

    /// From one voxel of `dy` to the next in shared memory: keeps fours together, spreads neighbours over banks.
    fn pitch(&self) -> usize {
        self.outputs + 4
    }

    fn voxels(&self) -> usize {
        self.tile.iter().product()
    }

    fn shared_values(&self) -> usize {
        self.inputs * self.channel() + self.voxels() * self.pitch()
    }
}

/// Overwrites nothing; see [`super::weight_gradient`].
pub(crate) fn run(client: &Client, conv: &Conv3d, x: &Handle, dy: &Handle) -> Handle {
    let plan = Plan::new(conv, width(client));
    let output = conv.output();
    let tiles = conv.batch * (0..3).map(|a| output[a].div_ceil(plan.tile[a])).product::<usize>();
    let blocks = conv.c_out.div_ceil(plan.outputs) * conv.c_in.div_ceil(plan.inputs);
    let groups = plan.edge * plan.edge / plan.rows;
    // A test's few tiles are to be several for a cube, too.
    let cubes = if width(client) == Width::Few { 2 } else { CUBES };
    let per_part = tiles.div_ceil((cubes / blocks).max(1));
    let parts = tiles.div_ceil(per_part);
    let len = conv.weight_len();
    let partial = parts * plan.splits;
    let sums = buffer::for_overwriting::<f32>(client, partial * len);
    let dweight = buffer::for_overwriting::<f32>(client, len);
    let geometry = GeometryLaunch::new(
        conv.c_in,
        conv.c_out,
        extent(conv.input),
        extent(output),
        conv.padding,
        tiles,
        per_part,
    );
    let (lanes, slices) = match width(client) {
        Width::Gpu => (32, 8),
        Width::Few => (2, 2),
        Width::One => (1, 1),
    };
    // SAFETY: reads stay within the sizes of `geometry`, which `values` compared with the buffers; every partial sum has its
    // place in `sums`.
    unsafe {
        partial_sums::launch_unchecked(
            client,
            grid(blocks * groups * parts),
            CubeDim::new_1d(plan.units() as u32),
            values::<f32>(x, conv.input_len(), "input"),
            values::<f32>(dy, conv.output_len(), "gradient of the output"),
            values::<f32>(&sums, partial * len, "partial sums"),
            geometry,
            plan,
        );
        add_parts::launch_unchecked(
            client,
            grid(len.div_ceil(lanes)),
            CubeDim::new_1d((lanes * slices) as u32),
            values::<f32>(&sums, partial * len, "partial sums"),
            values::<f32>(&dweight, len, "gradient of the weight"),
            partial,
            lanes,
            slices,
        );
    }
    dweight
}

/// Sizes that no code depends on.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Geometry {
    c_in: usize,
    c_out: usize,
    input: Extent,
    output: Extent,
    padding: usize,
    /// Tiles of the batch.
    tiles: usize,
    /// Tiles of a part.
    per_part: usize,
}

#[cube(launch_unchecked)]
pub(crate) fn partial_sums(x: &[f32], dy: &[f32], sums: &mut [f32], g: &Geometry, #[comptime] plan: Plan) {
    let edge = comptime!(plan.edge);
    let rows = comptime!(plan.rows);
    let inputs = comptime!(plan.inputs);
    let outputs = comptime!(plan.outputs);
    let stride = comptime!(plan.stride);
    let channel = comptime!(plan.channel());
    let size_y = comptime!(plan.window()[1]);
    let size_x = comptime!(plan.window()[2]);
    let pitch = comptime!(plan.pitch());
    let tile_y = comptime!(plan.tile[1]);
    let tile_x = comptime!(plan.tile[2]);

    let mut cube = CUBE_POS_X as usize;
    let o_blocks = g.c_out.div_ceil(outputs);
    let o_first = cube % o_blocks * outputs;
    cube /= o_blocks;
    let c_blocks = g.c_in.div_ceil(inputs);
    let c_first = cube % c_blocks * inputs;
    cube /= c_blocks;
    let groups = comptime!(edge * edge / rows);
    let group = cube % groups;
    let part = cube / groups;

    let unit = UNIT_POS as usize;
    let c = unit % inputs;
    let row = group * rows + unit / inputs % rows;
    let split = unit / comptime!(inputs * rows);
    let tap_z = row / edge;
    let tap_y = row % edge;
    // A window for one row of taps begins there.
    let one_row = comptime!(plan.reach() < edge);
    let base_z = if comptime!(one_row) { tap_z } else { 0usize.runtime() };
    let base_y = if comptime!(one_row) { tap_y } else { 0usize.runtime() };

    let mut window = Shared::<[f32]>::new_aligned_slice(comptime!(inputs * channel), 16usize);
    let mut gradient = Shared::<[f32]>::new_aligned_slice(comptime!(plan.voxels() * pitch), 16usize);
    let mut totals = Array::<f32>::new(comptime!(outputs * edge));
    #[unroll]
    for i in 0..comptime!(outputs * edge) {
        totals[i] = 0.0;
    }

    let first = part * g.per_part;
    let end = min(first + g.per_part, g.tiles);
    for tile in first..end {
        if comptime!(plan.units() > 1) {
            sync_cube(); // no unit still reads what is overwritten
        }
        fill(x, dy, &mut window, &mut gradient, g, tile, c_first, o_first, base_z, base_y, plan);
        if comptime!(plan.units() > 1) {
            sync_cube();
        }
        for r in range_stepped(split, comptime!(plan.tile[0] * plan.tile[1]), comptime!(plan.splits)) {
            let z = r / tile_y * stride + tap_z - base_z;
            let y = r % tile_y * stride + tap_y - base_y;
            let from_x = c * channel + (z * size_y + y) * size_x;
            let from_dy = r * comptime!(tile_x * pitch);
            for few in 0..comptime!(tile_x / UNROLLED) {
                #[unroll]
                for i in 0..comptime!(UNROLLED) {
                    let at = few * comptime!(UNROLLED) + i;
                    let mut taps = Array::<f32>::new(edge);
                    #[unroll]
                    for t in 0..edge {
                        taps[t] = window[from_x + at * stride + t];
                    }
                    #[unroll]
                    for o in 0..outputs {
                        let d = gradient[from_dy + at * pitch + o];
                        #[unroll]
                        for t in 0..edge {
                            totals[comptime!(o * edge + t)] =
                                fma(d, taps[t], totals[comptime!(o * edge + t)]);
                        }
                    }
                }
            }
        }
    }

    let ci = c_first + c;
    if ci < g.c_in {
        let mine = part * comptime!(plan.splits) + split;
        #[unroll]
        for o in 0..outputs {
            let co = o_first + o;
            if co < g.c_out {
                let to = (((mine * g.c_out + co) * g.c_in + ci) * comptime!(edge * edge) + row) * edge;
                #[unroll]
                for t in 0..edge {
                    sums[to + t] = totals[comptime!(o * edge + t)];
                }
            }
        }
    }
}

/// Copies a tile of `dy` and the input under it, zeros where there is none.
#[cube]
fn fill(
    x: &[f32],
    dy: &[f32],
    window: &mut Shared<[f32]>,
    gradient: &mut Shared<[f32]>,
    g: &Geometry,
    tile: usize,
    c_first: usize,
    o_first: usize,
    base_z: usize,
    base_y: usize,
    #[comptime] plan: Plan,
) {
    let units = comptime!(plan.units());
    let (tile_z, tile_y, tile_x) = comptime!((plan.tile[0], plan.tile[1], plan.tile[2]));
    let tiles_x = g.output.x.div_ceil(tile_x);
    let tiles_y = g.output.y.div_ceil(tile_y);
    let tiles_z = g.output.z.div_ceil(tile_z);
    let x_first = tile % tiles_x * tile_x;
    let y_first = tile / tiles_x % tiles_y * tile_y;
    let z_first = tile / (tiles_x * tiles_y) % tiles_z * tile_z;
    let n = tile / (tiles_x * tiles_y * tiles_z);

    let voxels = comptime!(plan.voxels());
    for i in range_stepped(UNIT_POS as usize, comptime!(plan.outputs * plan.voxels()), units) {
        let at = i % voxels;
        let o = i / voxels;
        let px = x_first + at % tile_x;
        let py = y_first + at / tile_x % tile_y;
        let pz = z_first + at / comptime!(tile_x * tile_y);
        let co = o_first + o;
        let mut value = 0.0f32;
        if co < g.c_out && px < g.output.x && py < g.output.y && pz < g.output.z {
            value = dy[(((n * g.c_out + co) * g.output.z + pz) * g.output.y + py) * g.output.x + px];
        }
        gradient[at * comptime!(plan.pitch()) + o] = value;
    }

    let (size_z, size_y, size_x) = comptime!((plan.window()[0], plan.window()[1], plan.window()[2]));
    let size = comptime!(size_z * size_y * size_x);
    let stride = comptime!(plan.stride);
    for i in range_stepped(UNIT_POS as usize, comptime!(plan.inputs * size), units) {
        let at = i % size;
        let c = i / size;
        // Positions in the padded input, so that none is negative.
        let px = x_first * stride + at % size_x;
        let py = y_first * stride + base_y + at / size_x % size_y;
        let pz = z_first * stride + base_z + at / comptime!(size_x * size_y);
        let ci = c_first + c;
        let mut value = 0.0f32;
        if ci < g.c_in
            && px >= g.padding
            && px < g.input.x + g.padding
            && py >= g.padding
            && py < g.input.y + g.padding
            && pz >= g.padding
            && pz < g.input.z + g.padding
        {
            let plane = (n * g.c_in + ci) * g.input.z + pz - g.padding;
            value = x[(plane * g.input.y + py - g.padding) * g.input.x + px - g.padding];
        }
        window[c * comptime!(plan.channel()) + at] = value;
    }
}

/// Adds the partial sums of each weight: slice s adds parts s, s + slices ..., then the slices are added in order.
#[cube(launch_unchecked)]
pub(crate) fn add_parts(
    sums: &[f32],
    dweight: &mut [f32],
    parts: usize,
    #[comptime] lanes: usize,
    #[comptime] slices: usize,
) {
    let len = dweight.len();
    let lane = UNIT_POS as usize % lanes;
    let slice = UNIT_POS as usize / lanes;
    let at = CUBE_POS_X as usize * lanes + lane;
    let mut total = 0.0f32;
    if at < len {
        for part in range_stepped(slice, parts, slices) {
            total += sums[part * len + at];
        }
    }
    if comptime!(slices > 1) {
        let mut totals = Shared::<[f32]>::new_slice(comptime!(lanes * slices));
        totals[UNIT_POS as usize] = total;
        sync_cube();
        if slice == 0 {
            for other in 1..slices {
                total += totals[other * lanes + lane];
            }
        }
    }
    if slice == 0 && at < len {
        dweight[at] = total;
    }
}

/// The two kernels of a layer, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(crate) fn offline(name: &str, conv: &Conv3d, kernels: &mut crate::ptx::Offline) {
    use crate::ptx::{arg, buffer};
    let plan = Plan::new(conv, Width::Gpu);
    let sizes = GeometryLaunch::new(16, 16, extent(conv.input), extent(conv.output()), 0, 1, 1);
    let geometry = arg::<Geometry>(sizes);
    kernels.add(format!("conv3d weight gradient {name}"), plan.units(), |s, d, t| {
        partial_sums::PartialSums::new(s, d, t, buffer(), buffer(), buffer(), geometry, plan)
    });
    kernels.add(format!("conv3d weight gradient {name}, sum"), 256, |s, d, t| {
        add_parts::AddParts::new(s, d, t, buffer(), buffer(), (), 32, 8)
    });
}
