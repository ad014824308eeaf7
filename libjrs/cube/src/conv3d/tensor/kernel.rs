//! The kernel of the convolution on tensor cores, see the module above.

use cubecl::cmma::{self, Matrix, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

use super::{EDGE, Plan, Unit};
use crate::conv3d::correlate::{Geometry, finished, read};

/// Numbers that are written to the window at once: one store of a GPU (eight would be spilled, in TF32).
type Four<E> = Vector<E, Const<4>>;

/// One convolution. `E` is how shared memory keeps a rounded number, `F` what a tensor core takes it for. `x` is the input (or
/// what is upsampled, with `skip` beside it).
#[cube(launch_unchecked)]
pub(super) fn multiply<E: Float, F: Float>(
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
    let rows_z = comptime!(plan.rows[0]);
    let rows_y = comptime!(plan.rows[1]);
    let taps = comptime!(plan.taps);
    let outputs = comptime!(plan.outputs);
    let channels = comptime!(plan.operands.channels());

    // The tile, its output channels and its place in the batch.
    let mut cube = CUBE_POS_X as usize;
    let blocks = g.c_out.div_ceil(outputs);
    let o_first = cube % blocks * outputs;
    cube /= blocks;
    let tiles_x = g.output.x.div_ceil(EDGE);
    let x_first = cube % tiles_x * EDGE;
    cube /= tiles_x;
    let tiles_y = g.output.y.div_ceil(rows_y);
    let y_first = cube % tiles_y * rows_y;
    cube /= tiles_y;
    let tiles_z = g.output.z.div_ceil(rows_z);
    let z_first = cube % tiles_z * rows_z;
    let n = cube / tiles_z;

    let mut window = Shared::<[Four<E>]>::new_aligned_slice(comptime!(plan.window_len() / 4), 32usize);
    let mut filter = Shared::<[E]>::new_aligned_slice(comptime!(plan.filter_len()), 32usize);
    let mut sums = Shared::<[f32]>::new_aligned_slice(comptime!(plan.sums_len()), 32usize);
    let mut fragments = Sequence::<Matrix<f32>>::new();
    if comptime!(plan.unit == Unit::TensorCore) {
        #[unroll]
        for _ in 0..comptime!(plan.rows_of_plane() * plan.columns()) {
            fragments.push(Matrix::from_value(
                MatrixIdent::Accumulator,
                EDGE,
                EDGE,
                channels,
                MatrixLayout::Undefined,
                0.0f32,
            ));
        }
    } else {
        for i in 0..comptime!(plan.sums_len()) {
            sums[i] = 0.0;
        }
    }

    for c_first in range_stepped(0, g.c_in, channels) {
        for tz in 0..taps {
            sync(plan); // no unit still reads what is overwritten
            if tz == 0 {
                fill_window::<E>(x, skip, &mut window, g, n, c_first, z_first, y_first, x_first, plan);
            }
            fill_filter::<E>(weight, &mut filter, g, c_first, o_first, tz, plan);
            sync(plan);
            for ty in 0..taps {
                for tx in 0..taps {
                    add_tap::<E, F>(&window, &filter, &fragments, &mut sums, tz, ty, tx, plan);
                }
            }
        }
    }
    store(&fragments, &mut sums, bias, scale, shift, y, g, n, o_first, z_first, y_first, x_first, plan);
}

/// Waits for the cube.
#[cube]
fn sync(#[comptime] plan: Plan) {
    if comptime!(plan.units() > 1) {
        sync_cube();
    }
}

/// The number that is multiplied in the place of `value`: the nearest, the even one of two. NaN stays NaN.
#[cube]
fn rounded(value: f32, #[comptime] dropped_bits: u32) -> f32 {
    let bits = u32::reinterpret(value);
    let below_half = comptime!((1u32 << (dropped_bits - 1)) - 1);
    let kept = comptime!(u32::MAX << dropped_bits);
    let odd = (bits >> dropped_bits) & 1u32;
    let mut nearest = (bits + below_half + odd) & kept;
    if (bits & 0x7fff_ffffu32) > 0x7f80_0000u32 {
        nearest = 0x7fc0_0000u32;
    }
    f32::reinterpret(nearest)
}

/// Copies the input under the tile, channels innermost, zeros where there is none: a unit a voxel.
#[cube]
fn fill_window<E: Float>(
    x: &[f32],
    skip: &[f32],
    window: &mut Shared<[Four<E>]>,
    g: &Geometry,
    n: usize,
    c_first: usize,
    z_first: usize,
    y_first: usize,
    x_first: usize,
    #[comptime] plan: Plan,
) {
    let channels = comptime!(plan.operands.channels());
    let size_z = comptime!(plan.window()[0]);
    let size_y = comptime!(plan.window()[1]);
    let size_x = comptime!(plan.window()[2]);
    let stride = comptime!(plan.stride);
    let from_z = (z_first * stride) as i32 + g.start.z;
    let from_y = (y_first * stride) as i32 + g.start.y;
    let from_x = (x_first * stride) as i32 + g.start.x;
    for i in range_stepped(UNIT_POS as usize, comptime!(size_z * size_y * size_x), comptime!(plan.units())) {
        let pz = from_z + (i / comptime!(size_x * size_y)) as i32;
        let py = from_y + (i / size_x % size_y) as i32;
        let px = from_x + (i % size_x) as i32;
        let inside = pz >= 0
            && pz < g.input.z as i32
            && py >= 0
            && py < g.input.y as i32
            && px >= 0
            && px < g.input.x as i32;
        // All are read before the first is used, and written side by side: few waits, and wide stores.
        let mut values = Array::<f32>::new(channels);
        #[unroll]
        for c in 0..channels {
            let ci = c_first + c;
            values[c] = 0.0;
            if inside && ci < g.c_in {
                values[c] = read(x, skip, g, n, ci, pz as usize, py as usize, px as usize, plan.source);
            }
        }
        #[unroll]
        for v in 0..comptime!(channels / 4) {
            let mut four = Four::<E>::empty();
            #[unroll]
            for j in 0..4usize {
                let value = rounded(values[comptime!(4 * v + j)], comptime!(plan.operands.dropped_bits()));
                four.insert(j, E::cast_from(value));
            }
            window[i * comptime!(channels / 4) + v] = four;
        }
    }
}

/// Copies the weights of the taps at `tz`, for each tap an output after another, input channels innermost; zeros for channels
/// that are not there.
#[cube]
fn fill_filter<E: Float>(
    weight: &[f32],
    filter: &mut Shared<[E]>,
    g: &Geometry,
    c_first: usize,
    o_first: usize,
    tz: usize,
    #[comptime] plan: Plan,
) {
    let channels = comptime!(plan.operands.channels());
    let outputs = comptime!(plan.outputs);
    let taps = comptime!(plan.taps * plan.taps);
    for i in range_stepped(UNIT_POS as usize, comptime!(plan.filter_len()), comptime!(plan.units())) {
        // In the order of the weight tensor: one output channel after another.
        let tap = i % taps;
        let c = i / taps % channels;
        let o = i / comptime!(taps * channels);
        let ci = c_first + c;
        let co = o_first + o;
        let mut value = 0.0f32;
        if ci < g.c_in && co < g.c_out {
            value = weight[((co * g.c_in + ci) * plan.taps + tz) * taps + tap];
        }
        filter[(tap * outputs + o) * channels + c] =
            E::cast_from(rounded(value, comptime!(plan.operands.dropped_bits())));
    }
}

/// Adds the products of a tap: the rows of the plane with all columns.
#[cube]
fn add_tap<E: Float, F: Float>(
    window: &Shared<[Four<E>]>,
    filter: &Shared<[E]>,
    fragments: &Sequence<Matrix<f32>>,
    sums: &mut Shared<[f32]>,
    tz: usize,
    ty: usize,
    tx: usize,
    #[comptime] plan: Plan,
) {
    let channels = comptime!(plan.operands.channels());
    let rows = comptime!(plan.rows_of_plane());
    let columns = comptime!(plan.columns());
    let first_row = UNIT_POS as usize / comptime!(plan.lanes()) * rows;
    let a_pitch = comptime!(plan.stride * channels);
    let a_len = comptime!(((EDGE - 1) * plan.stride + 1) * channels / 4);
    let b_len = comptime!(EDGE * channels);
    let b_first = (ty * plan.taps + tx) * comptime!(plan.outputs * channels);
    if comptime!(plan.unit == Unit::TensorCore) {
        let mut a = Sequence::<Matrix<F>>::new();
        #[unroll]
        for r in 0..rows {
            let at = place_of_row(first_row + r, tz, ty, tx, plan);
            // SAFETY: loaded at once.
            let mut matrix = unsafe {
                Matrix::<F>::uninitialized(MatrixIdent::A, EDGE, EDGE, channels, MatrixLayout::RowMajor)
            };
            cmma::load(&mut matrix, &window[at..at + a_len], comptime!(a_pitch as u32));
            a.push(matrix);
        }
        #[unroll]
        for column in 0..columns {
            let at = b_first + comptime!(column * b_len);
            // SAFETY: loaded at once.
            let mut b = unsafe {
                Matrix::<F>::uninitialized(MatrixIdent::B, EDGE, EDGE, channels, MatrixLayout::ColMajor)
            };
            cmma::load(&mut b, &filter[at..at + b_len], comptime!(channels as u32));
            #[unroll]
            for r in 0..rows {
                let sum = fragments.index(comptime!(r * columns + column));
                cmma::execute(a.index(r), &b, sum, sum);
            }
        }
    } else {
        for r in 0..rows {
            let a_at = place_of_row(first_row + r, tz, ty, tx, plan);
            for column in 0..columns {
                let to = (r * columns + column) * comptime!(EDGE * EDGE);
                emulate::<E>(window, a_at, a_pitch, filter, b_first + column * b_len, sums, to, channels);
            }
        }
    }
}

/// Where the input of a row's first voxel at a tap is in the window, in fours.
#[cube]
fn place_of_row(row: usize, tz: usize, ty: usize, tx: usize, #[comptime] plan: Plan) -> usize {
    let z = row / plan.rows[1] * plan.stride + tz;
    let y = row % plan.rows[1] * plan.stride + ty;
    ((z * comptime!(plan.window()[1]) + y) * comptime!(plan.window()[2]) + tx)
        * comptime!(plan.operands.channels() / 4)
}

/// What a tensor core does: adds A B at `to`, outputs outermost, with A at `a_at` (in fours) and B at `b_at`.
#[cube]
fn emulate<E: Float>(
    window: &Shared<[Four<E>]>,
    a_at: usize,
    #[comptime] a_pitch: usize,
    filter: &Shared<[E]>,
    b_at: usize,
    sums: &mut Shared<[f32]>,
    to: usize,
    #[comptime] channels: usize,
) {
    for k in 0..channels {
        let mut a = Array::<f32>::new(EDGE);
        #[unroll]
        for m in 0..EDGE {
            let four = window[a_at + comptime!(m * a_pitch / 4) + k / 4];
            a[m] = f32::cast_from(four.extract_dynamic(k % 4));
        }
        for n in 0..EDGE {
            let b = f32::cast_from(filter[b_at + n * channels + k]);
            let at = to + n * EDGE;
            #[unroll]
            for m in 0..EDGE {
                sums[at + m] = fma(a[m], b, sums[at + m]);
            }
        }
    }
}

/// Finishes the sums and writes them.
#[cube]
fn store(
    fragments: &Sequence<Matrix<f32>>,
    sums: &mut Shared<[f32]>,
    bias: &[f32],
    scale: &[f32],
    shift: &[f32],
    y: &mut [f32],
    g: &Geometry,
    n: usize,
    o_first: usize,
    z_first: usize,
    y_first: usize,
    x_first: usize,
    #[comptime] plan: Plan,
) {
    let rows = comptime!(plan.rows_of_plane());
    let rows_y = comptime!(plan.rows[1]);
    let columns = comptime!(plan.columns());
    let len = comptime!(EDGE * EDGE);
    let plane = UNIT_POS as usize / comptime!(plan.lanes());
    if comptime!(plan.unit == Unit::TensorCore) {
        // A fragment's layout is the hardware's own: through the plane's part of shared memory it becomes known.
        let at = plane * len;
        #[unroll]
        for r in 0..rows {
            let z = z_first + (plane * rows + r) / rows_y;
            let row = y_first + (plane * rows + r) % rows_y;
            #[unroll]
            for column in 0..columns {
                let fragment = fragments.index(comptime!(r * columns + column));
                sync_plane(); // no unit still reads the fragment before
                cmma::store(
                    &mut sums[at..at + len],
                    fragment,
                    comptime!(EDGE as u32),
                    MatrixLayout::ColMajor,
                );
                sync_plane();
                let o = o_first + comptime!(column * EDGE);
                store_fragment(&sums[at..at + len], bias, scale, shift, y, g, n, o, z, row, x_first, plan);
            }
        }
    } else {
        for r in 0..rows {
            let z = z_first + r / rows_y;
            let row = y_first + r % rows_y;
            for column in 0..columns {
                let at = (r * columns + column) * len;
                let o = o_first + column * EDGE;
                store_fragment(&sums[at..at + len], bias, scale, shift, y, g, n, o, z, row, x_first, plan);
            }
        }
    }
}

/// Finishes and writes a fragment: 16 output channels from `o_first` on, of 16 voxels from `x_first` on.
#[cube]
fn store_fragment(
    sums: &[f32],
    bias: &[f32],
    scale: &[f32],
    shift: &[f32],
    y: &mut [f32],
    g: &Geometry,
    n: usize,
    o_first: usize,
    z: usize,
    row: usize,
    x_first: usize,
    #[comptime] plan: Plan,
) {
    let lanes = comptime!(plan.lanes());
    if z < g.output.z && row < g.output.y {
        for i in range_stepped(UNIT_POS as usize % lanes, comptime!(EDGE * EDGE), lanes) {
            let co = o_first + i / EDGE;
            let column = x_first + i % EDGE;
            if co < g.c_out && column < g.output.x {
                let to = (((n * g.c_out + co) * g.output.z + z) * g.output.y + row) * g.output.x + column;
                y[to] = finished(sums[i], co, bias, scale, shift, g.slope, plan.finish);
            }
        }
    }
}
