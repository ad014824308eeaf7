//! The packed window: the input of one task, in the order the register tile reads it.

use rayon::prelude::*;

use crate::simd::{Isa, Kernel, Simd};

/// Input channels at a time: 8 x 27 taps of weights for [`super::correlate::CHANNEL_GROUP`] output channels (14 KB) and
/// the 8 x 9 rows under a tile (9 KB) fit the L1 cache together.
pub(super) const CHANNEL_BLOCK: usize = 8;
/// Target size of a packed window in values: a quarter of a megabyte, half of a common L2 cache.
const TARGET: usize = 1 << 16;
/// Room after the last row for a tile that runs over the end: the widest tile of all instruction sets.
const SLACK: usize = 48;
/// A part has at least this many rows, or the halo around it and its last, incomplete tile cost too much.
const FEWEST_ROWS: usize = 8;

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
    /// Offset of each tap from an output position in the packed window, in the order channel, kz, ky, kx.
    packed: Vec<usize>,
    /// The same in the tensor itself, where its rows already lie as a window's do.
    direct: Option<Vec<usize>>,
}

/// Where the outputs of a part find their inputs: output position `p` of plane `z` reads
/// `values[z * plane_step + p + offset]` for each tap's offset.
pub(super) struct View<'a> {
    pub values: &'a [f32],
    pub offsets: &'a [usize],
    pub plane_step: usize,
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
    /// Cuts into parts: about `tasks` or more of them where there are rows enough (whatever the number of threads),
    /// each with at most `positions` output positions (planes x rows x row) if that is at all possible.
    pub fn new(reading: Reading, batch: usize, tasks: usize, positions: usize) -> Self {
        let Reading { stride: s, kernel: [kd, kh, kw], output: [depth, height, width], .. } = reading;
        let channels = reading.c_in.min(CHANNEL_BLOCK);
        let row = width + (kw - 1) / s;
        let enough = |planes: usize| {
            batch * depth.div_ceil(planes) >= tasks && planes * height.min(FEWEST_ROWS) * row <= positions
        };
        let planes = if kd > 1 && depth > 1 && enough(2) { 2 } else { 1 };
        let planes_in = (planes - 1) * s + kd;
        let fit = (TARGET / (channels * planes_in * s * s * row)).saturating_sub((kh - 1) / s);
        let fit = fit.min(positions / (planes * row)).clamp(1, height);
        let layers = batch * depth.div_ceil(planes);
        let cuts = height.div_ceil(fit).max(tasks.div_ceil(layers).min(height / FEWEST_ROWS));
        let rows = height.div_ceil(cuts.max(1));

        let area = (rows + (kh - 1) / s) * row;
        let plane = s * s * area;
        let channel = planes_in * plane;
        let offsets = |channel: usize, plane: usize, area: usize| {
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
            offsets
        };
        let [d, h, w] = reading.input;
        let inside = depth + kd - 1 <= d && height + kh - 1 <= h;
        let same_rows = s == 1 && reading.start == [0; 3] && inside && row == w;
        // Planes that are a multiple of 1 KiB apart compete for a few sets of the L1 cache.
        let spread = !(h * w).is_multiple_of(256) && !(d * h * w).is_multiple_of(256);
        let direct = (same_rows && spread).then(|| offsets(d * h * w, h * w, 0));
        Self {
            reading,
            planes,
            rows,
            row,
            area,
            plane,
            channel,
            packed: offsets(channel, plane, area),
            direct,
        }
    }

    /// Taps per input channel.
    pub fn taps(&self) -> usize {
        self.reading.kernel.iter().product()
    }

    /// Values of a packed window.
    pub fn len(&self) -> usize {
        self.reading.c_in.min(CHANNEL_BLOCK) * self.channel + SLACK
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

    /// The input of `part` in channels `[first, first + channels)` of `x`: in place where that is possible,
    /// otherwise copied to `buffer`. Each plane can be read `length` positions past any tap's offset.
    pub fn view<'a>(
        &'a self,
        isa: Isa,
        x: &'a [f32],
        part: &Part,
        first: usize,
        channels: usize,
        length: usize,
        buffer: &'a mut [f32],
    ) -> View<'a> {
        let Reading { c_in, input: [d, h, w], .. } = self.reading;
        let taps = channels * self.taps();
        if let Some(offsets) = &self.direct {
            let start = (((part.batch * c_in + first) * d + part.z) * h + part.y) * w;
            let offsets = &offsets[..taps];
            // A tile may run over the end of the tensor in the last part.
            if start + (part.planes - 1) * h * w + offsets[taps - 1] + length <= x.len() {
                return View { values: &x[start..], offsets, plane_step: h * w };
            }
        }
        isa.run(Pack { window: self, x, part, first, channels, packed: &mut *buffer });
        View { values: buffer, offsets: &self.packed[..taps], plane_step: self.reading.stride * self.plane }
    }
}

/// Copies channels `[first, first + channels)` of `x`, as far as `part` needs them, into `packed`.
/// Places outside the input, and the slack at the end, become 0.
struct Pack<'a> {
    window: &'a Window,
    x: &'a [f32],
    part: &'a Part,
    first: usize,
    channels: usize,
    packed: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.window.reading.stride {
            1 => self.rows::<1>(),
            _ => self.rows::<2>(),
        }
    }
}

impl Pack<'_> {
    /// `STEP` is the stride, a constant so that the loops over rows have no divisions in them.
    #[inline(always)]
    fn rows<const STEP: usize>(self) {
        let Self { window, x, part, first, channels, packed } = self;
        let Reading { c_in, input: [d, h, w], start, .. } = window.reading;
        let s = STEP;
        // The whole window, also for the last, smaller parts: what a tile reads past their end must be finite
        // (0 x NaN would count in the weight gradient).
        let (rows_in, planes_in) = (window.area / window.row, window.channel / window.plane);
        for ci in 0..channels {
            let volume = &x[(part.batch * c_in + first + ci) * d * h * w..][..d * h * w];
            for iz in 0..planes_in {
                let z = start[0] + (part.z * s + iz) as isize;
                let plane = &mut packed[ci * window.channel + iz * window.plane..][..window.plane];
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
                            let to =
                                &mut plane[(py * s + px) * window.area + iy * window.row..][..window.row];
                            match source {
                                Some(source) => pack_row::<STEP>(source, start[2] + px as isize, to),
                                None => to.fill(0.0),
                            }
                        }
                    }
                }
            }
        }
        packed[channels * window.channel..][..SLACK].fill(0.0);
    }
}

/// `to[i] = source[from + STEP*i]`, 0 outside.
#[inline(always)]
fn pack_row<const STEP: usize>(source: &[f32], from: isize, to: &mut [f32]) {
    let s = STEP;
    let before = if from < 0 { ((-from) as usize).div_ceil(s).min(to.len()) } else { 0 };
    let first = (from + (before * s) as isize) as usize;
    let count = source.len().saturating_sub(first).div_ceil(s).min(to.len() - before);
    to[..before].fill(0.0);
    let (inside, after) = to[before..].split_at_mut(count);
    after.fill(0.0);
    if count == 0 {
        return;
    }
    let source = &source[first..];
    if s == 1 {
        for (value, &x) in inside.iter_mut().zip(source) {
            *value = x;
        }
    } else {
        let (last, body) = (inside.len() - 1, source.len() / 2);
        for (value, pair) in inside.iter_mut().zip(source.as_chunks::<2>().0) {
            *value = pair[0];
        }
        if body <= last {
            inside[last] = source[2 * last];
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
