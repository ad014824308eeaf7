//! The packed window: the input of one task, in the order the register tile reads it.

use rayon::prelude::*;

/// Input channels packed at a time: 16 x 27 taps of weights for four output channels and the 16 x 9 rows under a
/// tile fit the L1 cache together.
pub(super) const CHANNEL_BLOCK: usize = 16;
/// Target size of a packed window in values: a quarter of a megabyte, half of a common L2 cache.
const TARGET: usize = 1 << 16;
/// Room after the last row for a tile that runs over the end: the widest tile of all instruction sets.
const SLACK: usize = 48;
/// A convolution is cut into at least this many tasks where its rows allow, whatever the number of threads.
const TASKS: usize = 64;

/// A convolution's reading side: which input values its outputs need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    pub c_in: usize,
    /// Input size z, y, x.
    pub input: [usize; 3],
    /// Input coordinate under the first tap of output 0 (negative: zero padding).
    pub start: [isize; 3],
    pub stride: usize,
    /// Taps per axis.
    pub kernel: [usize; 3],
    /// Output size z, y, x.
    pub output: [usize; 3],
}

/// How the outputs are cut into tasks, and the layout of one task's packed window:
/// `[channel][z][y phase][x phase][y][x]`, where a stride of 1 has one phase.
#[derive(Clone, Debug)]
pub(super) struct Window {
    reading: Reading,
    /// Output planes and rows per task.
    pub planes: usize,
    pub rows: usize,
    /// Distance between rows of a phase plane; also the distance between rows of outputs.
    pub row: usize,
    area: usize,
    plane: usize,
    channel: usize,
    /// Offset of each tap from an output position, in the order channel, kz, ky, kx.
    pub offsets: Vec<usize>,
}

/// The outputs of one task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub batch: usize,
    /// First output plane and their number.
    pub z: usize,
    pub planes: usize,
    /// First output row and their number.
    pub y: usize,
    pub rows: usize,
}

impl Window {
    /// `most_positions` bounds the output positions of a part (rows x row).
    pub fn new(reading: Reading, batch: usize, most_positions: usize) -> Self {
        let Reading { stride: s, kernel: [kd, kh, kw], output: [depth, height, width], .. } = reading;
        let channels = reading.c_in.min(CHANNEL_BLOCK);
        let planes = if kd > 1 { 2.min(depth) } else { 1 };
        let row = width + (kw - 1) / s;
        let planes_in = (planes - 1) * s + kd;
        let fit = (TARGET / (channels * planes_in * s * s * row)).saturating_sub((kh - 1) / s);
        let fit = fit.min(most_positions / row).clamp(1, height);
        let layers = batch * depth.div_ceil(planes);
        let cuts = height.div_ceil(fit).max(TASKS.div_ceil(layers).min(height.div_ceil(4)));
        let rows = height.div_ceil(cuts);

        let area = (rows + (kh - 1) / s) * row;
        let plane = s * s * area;
        let channel = planes_in * plane;
        let mut offsets = Vec::with_capacity(channels * kd * kh * kw);
        for ci in 0..channels {
            for kz in 0..kd {
                for ky in 0..kh {
                    for kx in 0..kw {
                        let phase = ky % s * s + kx % s;
                        offsets.push(ci * channel + kz * plane + phase * area + ky / s * row + kx / s);
                    }
                }
            }
        }
        Self { reading, planes, rows, row, area, plane, channel, offsets }
    }

    /// Taps per input channel.
    pub fn taps(&self) -> usize {
        self.reading.kernel.iter().product()
    }

    /// Values of a packed window.
    pub fn len(&self) -> usize {
        self.reading.c_in.min(CHANNEL_BLOCK) * self.channel + SLACK
    }

    /// Distance between consecutive output planes in the window.
    pub fn plane_step(&self) -> usize {
        self.reading.stride * self.plane
    }

    /// Positions from the first output of `part` to its last, gaps between rows included.
    pub fn positions(&self, part: &Part) -> usize {
        (part.rows - 1) * self.row + self.reading.output[2]
    }

    /// All tasks.
    pub fn parts(&self, batch: usize) -> Vec<Part> {
        let [depth, height, _] = self.reading.output;
        let mut parts = Vec::new();
        for n in 0..batch {
            for z in (0..depth).step_by(self.planes) {
                for y in (0..height).step_by(self.rows) {
                    let (planes, rows) = (self.planes.min(depth - z), self.rows.min(height - y));
                    parts.push(Part { batch: n, z, planes, y, rows });
                }
            }
        }
        parts
    }

    /// Copies channels `[first, first + channels)` of `x`, as far as `part` needs them, into `packed`.
    /// Places outside the input, and the slack at the end, become 0.
    pub fn pack(&self, x: &[f32], part: &Part, first: usize, channels: usize, packed: &mut [f32]) {
        let Reading { c_in, input: [d, h, w], start, stride: s, .. } = self.reading;
        // The whole window, also for the last, smaller parts: what a tile reads past their end must be finite
        // (0 x NaN would count in the weight gradient).
        let (rows_in, planes_in) = (self.area / self.row, self.channel / self.plane);
        for ci in 0..channels {
            let volume = &x[(part.batch * c_in + first + ci) * d * h * w..][..d * h * w];
            for iz in 0..planes_in {
                let z = start[0] + (part.z * s + iz) as isize;
                let plane = &mut packed[ci * self.channel + iz * self.plane..][..self.plane];
                if z < 0 || z >= d as isize {
                    plane.fill(0.0);
                    continue;
                }
                let slice = &volume[z as usize * h * w..][..h * w];
                for py in 0..s {
                    for iy in 0..rows_in {
                        let y = start[1] + ((part.y + iy) * s + py) as isize;
                        let source = (y >= 0 && y < h as isize).then(|| &slice[y as usize * w..][..w]);
                        for px in 0..s {
                            let to = &mut plane[(py * s + px) * self.area + iy * self.row..][..self.row];
                            match source {
                                Some(source) => pack_row(source, start[2] + px as isize, s, to),
                                None => to.fill(0.0),
                            }
                        }
                    }
                }
            }
        }
        packed[channels * self.channel..][..SLACK].fill(0.0);
    }
}

/// `to[i] = source[from + s*i]`, 0 outside.
#[inline]
fn pack_row(source: &[f32], from: isize, s: usize, to: &mut [f32]) {
    let before = if from < 0 { ((-from) as usize).div_ceil(s).min(to.len()) } else { 0 };
    let first = (from + (before * s) as isize) as usize;
    let count = source.len().saturating_sub(first).div_ceil(s).min(to.len() - before);
    to[..before].fill(0.0);
    let (inside, after) = to[before..].split_at_mut(count);
    after.fill(0.0);
    if count == 0 {
        return;
    }
    if s == 1 {
        inside.copy_from_slice(&source[first..first + count]);
    } else {
        for (value, pair) in inside.iter_mut().zip(source[first..].chunks(2)) {
            *value = pair[0];
        }
    }
}

/// Weights in the order of the inner loop: `[input block][output block][tap of the block][output channel]`,
/// with zeros for the missing channels of the last output block. `at(co, ci, tap)` reads a weight.
pub(super) fn pack_weights(
    c_in: usize,
    c_out: usize,
    kernel: [usize; 3],
    lanes: usize,
    at: impl Fn(usize, usize, [usize; 3]) -> f32 + Sync,
) -> Vec<f32> {
    let [kd, kh, kw] = kernel;
    let taps = kd * kh * kw;
    let blocks = c_out.div_ceil(lanes);
    let mut packed = vec![0.0; c_in * taps * blocks * lanes];
    packed.par_chunks_mut(CHANNEL_BLOCK * taps * blocks * lanes).enumerate().for_each(|(block, chunk)| {
        let channels = chunk.len() / (taps * blocks * lanes);
        for (i, value) in chunk.iter_mut().enumerate() {
            let (lane, tap, row) = (i % lanes, i / lanes % taps, i / lanes / taps);
            let (ci, co) = (block * CHANNEL_BLOCK + row % channels, row / channels * lanes + lane);
            if co < c_out {
                *value = at(co, ci, [tap / (kh * kw), tap / kw % kh, tap % kw]);
            }
        }
    });
    packed
}
