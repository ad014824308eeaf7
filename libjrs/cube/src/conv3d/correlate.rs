//! The convolution kernel: forward passes and input gradients, which are correlations with other weights.
//!
//! ```text
//!   input, a few channels at a time             a unit's registers
//!   +----------------------------+           x:  u    u+8  u+16 u+24
//!   |  tile of the cube + border |          +----+----+----+----+
//!   |  +----------------------+  |     co 0 | .  | .  | .  | .  |   every input value of shared
//!   |  | unit unit unit ... . |  | ->     1 | .  | .  | .  | .  |   memory is used for 16 output
//!   |  | unit unit unit ... . |  |        2 | .  | .  | .  | .  |   channels, every weight for
//!   |  +----------------------+  |      ... |    |    |    |    |   4 voxels
//!   +----------------------------+       15 | .  | .  | .  | .  |
//!        shared memory                      +----+----+----+----+
//! ```
//!
//! A cube computes a tile of voxels (on a GPU 512, such as 32 x 4 x 4) for 16 output channels. For some input channels at a
//! time it copies the input under the tile, with its border, and the weights to shared memory; then each unit adds the products
//! of its 4 voxels and 16 channels in registers: for one row of three taps 12 inputs and 48 weights (which lie in fours) are
//! read for 192 multiplications. The 4 voxels are `units` apart in x, so that neighbouring units read and write neighbouring
//! addresses; rows in shared memory are an odd multiple of the units in x apart, so that the rows that run together fall on
//! different banks.
//!
//! A voxel's sum runs over input channels, then taps, in this order and in one unit: the same bits on every run.

use cubecl::prelude::*;

use super::plan::{Finish, Plan, Source, Weights};

/// Three sizes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Extent {
    pub z: usize,
    pub y: usize,
    pub x: usize,
}

/// Three positions, perhaps before the first voxel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Start {
    pub z: i32,
    pub y: i32,
    pub x: i32,
}

/// Sizes that no code depends on.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Geometry {
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Input size.
    pub input: Extent,
    /// Output j reads the input from `start + stride * j` on.
    pub start: Start,
    /// Output size of this correlation.
    pub output: Extent,
    /// Size of the tensor that is written: output j is its voxel `first + step * j`.
    pub placed: Extent,
    /// See `placed`.
    pub first: Extent,
    /// See `placed`.
    pub step: usize,
    /// Mirrored weights: the tap of the weight tensor that belongs to tap 0.
    pub last: Extent,
    /// Upsampled channels.
    pub c_up: usize,
    /// Voxels that the skip connection has more on every side.
    pub crop: usize,
    /// Of LeakyReLU.
    pub slope: f32,
}

/// One correlation, see the module. `x` is the input (or what is upsampled, with `skip` beside it).
#[cube(launch_unchecked)]
pub(crate) fn correlate(
    x: &[f32],
    skip: &[f32],
    weight: &[f32],
    bias: &[f32],
    scale: &[f32],
    shift: &[f32],
    y: &mut [f32],
    g: &Geometry,
    #[comptime] plan: Plan,
) {
    let units_y = comptime!(plan.units[1]);
    let units_x = comptime!(plan.units[2]);
    let units = comptime!(plan.unit_count());
    let run = comptime!(plan.run);
    let outputs = comptime!(plan.outputs);
    let inputs = comptime!(plan.inputs);
    let stride = comptime!(plan.stride);
    let tile_z = comptime!(plan.tile()[0]);
    let tile_y = comptime!(plan.tile()[1]);
    let tile_x = comptime!(plan.tile()[2]);
    let taps_z = comptime!(plan.taps[0]);
    let taps_y = comptime!(plan.taps[1]);
    let taps_x = comptime!(plan.taps[2]);
    let pitch = comptime!(plan.pitch());
    let plane = comptime!(plan.pitch() * plan.window()[1]);
    let channel = comptime!(plan.channel());
    let taps = comptime!(plan.tap_count());

    // The tile, its output channels and its place in the batch.
    let mut cube = CUBE_POS_X as usize;
    let blocks = g.c_out.div_ceil(outputs);
    let o_first = cube % blocks * outputs;
    cube /= blocks;
    let tiles_x = g.output.x.div_ceil(tile_x);
    let x_first = cube % tiles_x * tile_x;
    cube /= tiles_x;
    let tiles_y = g.output.y.div_ceil(tile_y);
    let y_first = cube % tiles_y * tile_y;
    cube /= tiles_y;
    let tiles_z = g.output.z.div_ceil(tile_z);
    let z_first = cube % tiles_z * tile_z;
    let n = cube / tiles_z;

    let unit = UNIT_POS as usize;
    let ux = unit % units_x;
    let uy = unit / units_x % units_y;
    let uz = unit / (units_x * units_y);

    let mut window = Shared::<[f32]>::new_aligned_slice(comptime!(inputs * channel), 16usize);
    let mut filter = Shared::<[f32]>::new_aligned_slice(comptime!(inputs * taps * outputs), 16usize);
    let mut sums = Array::<f32>::new(comptime!(outputs * run));
    #[unroll]
    for i in 0..comptime!(outputs * run) {
        sums[i] = 0.0;
    }

    for c_first in range_stepped(0, g.c_in, inputs) {
        if comptime!(units > 1) {
            sync_cube(); // no unit still reads what is overwritten
        }
        fill_window(x, skip, &mut window, g, n, c_first, z_first, y_first, x_first, plan);
        fill_filter(weight, &mut filter, g, c_first, o_first, plan);
        if comptime!(units > 1) {
            sync_cube();
        }
        for c in 0..inputs {
            for tz in 0..taps_z {
                for ty in 0..taps_y {
                    let row =
                        c * channel + (uz * stride + tz) * plane + (uy * stride + ty) * pitch + ux * stride;
                    let tap = ((c * taps_z + tz) * taps_y + ty) * taps_x;
                    #[unroll]
                    for tx in 0..taps_x {
                        let mut values = Array::<f32>::new(run);
                        #[unroll]
                        for r in 0..run {
                            values[r] = window[row + comptime!(r * units_x * stride + tx)];
                        }
                        let weights = (tap + tx) * outputs;
                        #[unroll]
                        for o in 0..outputs {
                            let w = filter[weights + o];
                            #[unroll]
                            for r in 0..run {
                                sums[comptime!(o * run + r)] =
                                    fma(w, values[r], sums[comptime!(o * run + r)]);
                            }
                        }
                    }
                }
            }
        }
    }

    let z = z_first + uz;
    let row = y_first + uy;
    if z < g.output.z && row < g.output.y {
        let area = g.placed.y * g.placed.x;
        let line = (g.first.z + g.step * z) * area + (g.first.y + g.step * row) * g.placed.x;
        #[unroll]
        for o in 0..outputs {
            let co = o_first + o;
            if co < g.c_out {
                let to = (n * g.c_out + co) * g.placed.z * area + line;
                #[unroll]
                for r in 0..run {
                    let column = x_first + ux + comptime!(r * units_x);
                    if column < g.output.x {
                        let sum = sums[comptime!(o * run + r)];
                        y[to + g.first.x + g.step * column] =
                            finished(sum, co, bias, scale, shift, g.slope, plan.finish);
                    }
                }
            }
        }
    }
}

/// Copies the input under the tile, zeros where there is none.
#[cube]
fn fill_window(
    x: &[f32],
    skip: &[f32],
    window: &mut Shared<[f32]>,
    g: &Geometry,
    n: usize,
    c_first: usize,
    z_first: usize,
    y_first: usize,
    x_first: usize,
    #[comptime] plan: Plan,
) {
    let units = comptime!(plan.unit_count());
    let stride = comptime!(plan.stride);
    let size_z = comptime!(plan.window()[0]);
    let size_y = comptime!(plan.window()[1]);
    let size_x = comptime!(plan.window()[2]);
    let pitch = comptime!(plan.pitch());
    let channel = comptime!(plan.channel());
    let from_z = (z_first * stride) as i32 + g.start.z;
    let from_y = (y_first * stride) as i32 + g.start.y;
    let from_x = (x_first * stride) as i32 + g.start.x;
    for i in range_stepped(UNIT_POS as usize, comptime!(plan.inputs * size_z * size_y * size_x), units) {
        let ix = i % size_x;
        let iy = i / size_x % size_y;
        let iz = i / comptime!(size_x * size_y) % size_z;
        let c = i / comptime!(size_x * size_y * size_z);
        let pz = from_z + iz as i32;
        let py = from_y + iy as i32;
        let px = from_x + ix as i32;
        let ci = c_first + c;
        let mut value = 0.0f32;
        if ci < g.c_in
            && pz >= 0
            && pz < g.input.z as i32
            && py >= 0
            && py < g.input.y as i32
            && px >= 0
            && px < g.input.x as i32
        {
            value = read(x, skip, g, n, ci, pz as usize, py as usize, px as usize, plan.source);
        }
        window[c * channel + (iz * size_y + iy) * pitch + ix] = value;
    }
}

/// The value of input channel `c` at a voxel.
#[cube]
pub(super) fn read(
    x: &[f32],
    skip: &[f32],
    g: &Geometry,
    n: usize,
    c: usize,
    pz: usize,
    py: usize,
    px: usize,
    #[comptime] source: Source,
) -> f32 {
    if comptime!(source == Source::One) {
        x[(((n * g.c_in + c) * g.input.z + pz) * g.input.y + py) * g.input.x + px]
    } else if c < g.c_up {
        let plane = (n * g.c_up + c) * (g.input.z / 2) + pz / 2;
        x[(plane * (g.input.y / 2) + py / 2) * (g.input.x / 2) + px / 2]
    } else {
        let plane = (n * (g.c_in - g.c_up) + c - g.c_up) * (g.input.z + 2 * g.crop) + pz + g.crop;
        skip[(plane * (g.input.y + 2 * g.crop) + py + g.crop) * (g.input.x + 2 * g.crop) + px + g.crop]
    }
}

/// Copies weights, the output channels of a tap side by side; zeros for channels that are not there.
#[cube]
fn fill_filter(
    weight: &[f32],
    filter: &mut Shared<[f32]>,
    g: &Geometry,
    c_first: usize,
    o_first: usize,
    #[comptime] plan: Plan,
) {
    let units = comptime!(plan.unit_count());
    let outputs = comptime!(plan.outputs);
    let inputs = comptime!(plan.inputs);
    let taps_y = comptime!(plan.taps[1]);
    let taps_x = comptime!(plan.taps[2]);
    let taps = comptime!(plan.tap_count());
    let edge = comptime!(plan.edge);
    for i in range_stepped(UNIT_POS as usize, comptime!(inputs * taps * outputs), units) {
        // In the order of the weight tensor: one output channel after another.
        let tap = i % taps;
        let c = i / taps % inputs;
        let o = i / comptime!(taps * inputs);
        let tz = tap / comptime!(taps_x * taps_y);
        let ty = tap / taps_x % taps_y;
        let tx = tap % taps_x;
        let ci = c_first + c;
        let co = o_first + o;
        let mut value = 0.0f32;
        if ci < g.c_in && co < g.c_out {
            value = weight[place_of_weight(g, co, ci, tz, ty, tx, edge, plan.weights)];
        }
        filter[(c * taps + tap) * outputs + o] = value;
    }
}

/// Where the weight of an output, an input and a tap is.
#[cube]
fn place_of_weight(
    g: &Geometry,
    co: usize,
    ci: usize,
    tz: usize,
    ty: usize,
    tx: usize,
    #[comptime] edge: usize,
    #[comptime] weights: Weights,
) -> usize {
    match comptime!(weights) {
        Weights::Plain => (((co * g.c_in + ci) * edge + tz) * edge + ty) * edge + tx,
        Weights::Mirrored { step } => {
            let z = g.last.z - tz * step;
            let y = g.last.y - ty * step;
            let x = g.last.x - tx * step;
            (((ci * g.c_out + co) * edge + z) * edge + y) * edge + x
        }
    }
}

/// What is stored for `sum`.
#[cube]
pub(super) fn finished(
    sum: f32,
    co: usize,
    bias: &[f32],
    scale: &[f32],
    shift: &[f32],
    slope: f32,
    #[comptime] finish: Finish,
) -> f32 {
    let mut value = sum;
    if comptime!(finish != Finish::Sum) {
        value += bias[co];
    }
    if comptime!(finish == Finish::LeakyNorm) {
        // The slope is at most 1, so the larger is the right one.
        value = scale[co] * max(value, slope * value) + shift[co];
    }
    value
}
