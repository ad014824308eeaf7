//! The generator as a stream of planes: no tensor exists as a whole.
//!
//! ```text
//!  input planes -> x0 -> x1 -> x2 -> x3 -> x4 -> x5 -> x6 -> x7 --+
//!                         \                  \                    v
//!                          \                  +--- skip B ---> concat -> x10 -> x11 --+
//!                           \                                                         v
//!                            +------------------ skip A --------------------------> concat -> x14 -> x15 -> u
//! ```
//!
//! Every layer has a window: the input planes that its next outputs need. When enough have come in, it computes all outputs
//! it can, right into the next layer's window, and keeps the two planes that the next ones share with these. The skips are
//! queues. So memory grows with the area of a plane and not with the number of planes, and what a layer reads is
//! still in the cache.
//!
//! [`Stream::bytes`] runs the same schedule without data, with the pools' own rule for lengths.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use jrs_kernels::pool::{Buffer, Ledger, Pool};
use jrs_kernels::{Conv3d, Epilogue};
use rayon::prelude::*;

use super::folded::FoldedLayer;
use crate::network::{GENERATOR, JOINS, Join, LEAKY_SLOPE, Layer, MARGIN};

/// Outputs that a layer at full resolution computes at a time, at least (a half and a quarter of it deeper down): fewer
/// cost more transforms per plane, more cost memory.
const PLANES: usize = 8;
/// Bytes of x0's output that are in work together: small inputs go through in one piece.
const SLAB: usize = 64 << 20;

/// Fills a buffer with planes of an image: channel 0 is the fixed, 1 the moving one.
type Read<'a> = dyn FnMut(usize, Range<usize>, &mut [f32]) + 'a;
/// Takes planes of the displacement: component, first plane, values.
type Write<'a> = dyn FnMut(usize, usize, &[f32]) + 'a;

/// Some planes of a tensor, `[channel][plane][y][x]`.
struct Planes<'p> {
    channels: usize,
    /// y, x.
    edges: [usize; 2],
    count: usize,
    /// `None` while only sizes are counted.
    data: Option<Buffer<'p>>,
    /// Values of the buffer that was handed out, while only sizes are counted.
    held: usize,
}

impl Planes<'_> {
    fn area(&self) -> usize {
        self.edges[0] * self.edges[1]
    }

    fn len(&self) -> usize {
        self.channels * self.count * self.area()
    }
}

/// A skip connection: planes on their way from a layer to a later one.
struct Queue<'p> {
    /// Oldest first, cropped in the plane.
    slabs: VecDeque<Planes<'p>>,
    /// Planes of the oldest that have left.
    gone: usize,
    /// Planes still to be left out: the crop along z.
    leave_out: usize,
    /// Planes still to come after that.
    expected: usize,
    crop: usize,
}

/// What pools would hold.
#[derive(Default)]
struct Ledgers {
    /// Of the engine's own pool.
    planes: Ledger,
    /// Of the kernels' pool.
    scratch: Ledger,
    /// Layers and numbers of input planes whose scratch is in the ledger.
    counted: HashSet<(usize, usize)>,
}

/// A run of the generator.
pub(super) struct Stream<'p> {
    /// `None` counts bytes and computes nothing.
    work: Option<(&'p [FoldedLayer], &'p Pool)>,
    /// Input of each layer.
    windows: Vec<Planes<'p>>,
    /// Those of [`JOINS`].
    skips: Vec<Queue<'p>>,
    /// Fewest outputs at a time per layer.
    fewest: Vec<usize>,
    /// While only sizes are counted.
    ledgers: Ledgers,
    /// Output planes done.
    done: usize,
}

impl<'p> Stream<'p> {
    /// The bytes of all buffers, at work and idle, on the current threads, without the result, for inputs of `size` =
    /// \[x, y, z\] voxels.
    pub fn bytes(size: [usize; 3]) -> usize {
        let ledgers = Self::count(size);
        size_of::<f32>() * (ledgers.planes.peak() + ledgers.scratch.peak())
    }

    fn count(size: [usize; 3]) -> Ledgers {
        let mut ledgers = Ledgers::default();
        // The second run finds the first one's buffers idle, which do not always fit.
        for _ in 0..2 {
            let mut stream = Self::new(None, ledgers, size);
            stream.drive(size, &mut |_, _, _| {}, &mut |_, _, _| {});
            ledgers = stream.end();
        }
        ledgers
    }

    /// Runs the network on two images of `size` = \[x, y, z\] voxels; `out` receives the components.
    pub fn run(
        layers: &'p [FoldedLayer],
        pool: &'p Pool,
        images: [&[f32]; 2],
        size: [usize; 3],
        out: &mut [Vec<f32>; 3],
    ) {
        let area = size[0] * size[1];
        let out_area = (size[0] - 2 * MARGIN) * (size[1] - 2 * MARGIN);
        for component in out.iter_mut() {
            component.resize(out_area * (size[2] - 2 * MARGIN), 0.0);
        }
        let mut read = |channel: usize, planes: Range<usize>, to: &mut [f32]| {
            to.copy_from_slice(&images[channel][planes.start * area..planes.end * area]);
        };
        let mut write = |channel: usize, first: usize, from: &[f32]| {
            out[channel][first * out_area..][..from.len()].copy_from_slice(from);
        };
        Self::new(Some((layers, pool)), Ledgers::default(), size).drive(size, &mut read, &mut write);
    }

    fn new(work: Option<(&'p [FoldedLayer], &'p Pool)>, ledgers: Ledgers, size: [usize; 3]) -> Self {
        let mut stream =
            Self { work, windows: Vec::new(), skips: Vec::new(), fewest: Vec::new(), ledgers, done: 0 };
        let (mut edges, mut depth, mut fewest) = ([size[1], size[0]], size[2], PLANES);
        for layer in &GENERATOR {
            if JOINS.iter().any(|join| join.before == layer.name) {
                (edges, depth, fewest) = (edges.map(|n| 2 * n), 2 * depth, 2 * fewest);
            }
            fewest /= layer.stride;
            stream.fewest.push(fewest);
            // Zero padding along z is a plane in front; inputs are such that none is needed behind.
            let mut window = stream.planes(layer.c_in, edges, layer.padding);
            if let Some(data) = &mut window.data {
                data.fill(0.0);
            }
            stream.windows.push(window);
            (edges, depth) = (edges.map(|n| layer.output(n)), layer.output(depth));
            if let Some(&Join { crop, .. }) = JOINS.iter().find(|join| join.skip == layer.name) {
                let (slabs, expected) = (VecDeque::new(), depth - 2 * crop);
                // Deeper skips are joined first.
                stream.skips.insert(0, Queue { slabs, gone: 0, leave_out: crop, expected, crop });
            }
        }
        stream
    }

    /// Gives all back that is still held.
    fn end(mut self) -> Ledgers {
        let queued = self.skips.drain(..).flat_map(|queue| queue.slabs);
        for planes in self.windows.drain(..).chain(queued).collect::<Vec<_>>() {
            self.forget(planes);
        }
        self.ledgers
    }

    /// All planes through all layers.
    fn drive(&mut self, size: [usize; 3], read: &mut Read<'_>, write: &mut Write<'_>) {
        let [nx, ny, nz] = size;
        let slab = (SLAB / (GENERATOR[0].c_out * size_of::<f32>() * nx * ny)).max(PLANES);
        for start in (0..nz).step_by(slab) {
            let planes = start..nz.min(start + slab);
            let first = self.extend(0, planes.len());
            let window = &mut self.windows[0];
            let (count, area) = (window.count, window.area());
            if let Some(data) = &mut window.data {
                for (channel, to) in data.chunks_exact_mut(count * area).enumerate() {
                    read(channel, planes.clone(), &mut to[first * area..]);
                }
            }
            for layer in 0..GENERATOR.len() {
                self.advance(layer, planes.end == nz, write);
            }
        }
    }

    /// Computes what layer `i` can compute, if that is enough to be worth it or `finished`.
    fn advance(&mut self, i: usize, finished: bool, write: &mut Write<'_>) {
        let layer = &GENERATOR[i];
        let window = &self.windows[i];
        if window.count < layer.kernel {
            return;
        }
        let outputs = (window.count - layer.kernel) / layer.stride + 1;
        if outputs < self.fewest[i] && !finished {
            return;
        }
        let joined =
            GENERATOR.get(i + 1).and_then(|next| JOINS.iter().position(|join| join.before == next.name));
        if i + 1 < GENERATOR.len() && joined.is_none() {
            let first = self.extend(i + 1, outputs);
            let (before, after) = self.windows.split_at_mut(i + 1);
            compute(self.work, &mut self.ledgers, i, &before[i], &mut after[0], first);
            if let Some(skip) = JOINS.iter().position(|join| join.skip == layer.name) {
                self.remember(skip, i + 1, first);
            }
        } else {
            let edges = window.edges.map(|n| layer.output(n));
            let mut result = self.planes(layer.c_out, edges, outputs);
            compute(self.work, &mut self.ledgers, i, &self.windows[i], &mut result, 0);
            match joined {
                Some(skip) => self.join(skip, i + 1, &result),
                None => {
                    let plane = outputs * result.area();
                    if let Some(data) = &result.data {
                        data.chunks_exact(plane).enumerate().for_each(|(c, u)| write(c, self.done, u));
                    }
                    self.done += outputs;
                }
            }
            self.forget(result);
        }
        self.replace(i, layer.stride * outputs, 0);
    }

    /// Room for `more` planes behind those of window `i`; returns where it begins.
    fn extend(&mut self, i: usize, more: usize) -> usize {
        let first = self.windows[i].count;
        self.replace(i, 0, more);
        first
    }

    /// Window `i` without its first `used` planes and with room for `more`.
    fn replace(&mut self, i: usize, used: usize, more: usize) {
        let Planes { channels, edges, count, .. } = self.windows[i];
        let mut new = self.planes(channels, edges, count - used + more);
        copy_planes(&self.windows[i], used..count, &mut new, 0);
        let old = std::mem::replace(&mut self.windows[i], new);
        self.forget(old);
    }

    /// Puts the new planes of window `from`, cropped, into a skip's queue.
    fn remember(&mut self, skip: usize, from: usize, first: usize) {
        let Planes { channels, edges, count, .. } = self.windows[from];
        let queue = &mut self.skips[skip];
        let left_out = queue.leave_out.min(count - first);
        let taken = queue.expected.min(count - first - left_out);
        (queue.leave_out, queue.expected) = (queue.leave_out - left_out, queue.expected - taken);
        let crop = queue.crop;
        if taken > 0 {
            let mut slab = self.planes(channels, edges.map(|n| n - 2 * crop), taken);
            let start = first + left_out;
            copy_planes(&self.windows[from], start..start + taken, &mut slab, 0);
            self.skips[skip].slabs.push_back(slab);
        }
    }

    /// Nearest upsampling of `low` beside the skip's planes, into window `to`.
    fn join(&mut self, skip: usize, to: usize, low: &Planes<'_>) {
        let more = 2 * low.count;
        let first = self.extend(to, more);
        upsample(low, &mut self.windows[to], first);
        let mut joined = 0;
        while joined < more {
            let queue = &mut self.skips[skip];
            let oldest = queue.slabs.front().expect("a skip is ahead of what it joins");
            let taken = (oldest.count - queue.gone).min(more - joined);
            let which = queue.gone..queue.gone + taken;
            copy_channels(oldest, which, &mut self.windows[to], low.channels, first + joined);
            joined += taken;
            queue.gone += taken;
            if queue.gone == oldest.count {
                queue.gone = 0;
                let empty = queue.slabs.pop_front().expect("just looked at");
                self.forget(empty);
            }
        }
    }

    fn planes(&mut self, channels: usize, edges: [usize; 2], count: usize) -> Planes<'p> {
        let mut planes = Planes { channels, edges, count, data: None, held: 0 };
        match self.work {
            Some((_, pool)) => planes.data = Some(pool.take(planes.len())),
            None => planes.held = self.ledgers.planes.take(planes.len()),
        }
        planes
    }

    fn forget(&mut self, planes: Planes<'p>) {
        if self.work.is_none() {
            self.ledgers.planes.give(planes.held);
        }
    }
}

/// Layer `i` on all planes of `x`, into the planes of `y` from `first` on.
fn compute(
    work: Option<(&[FoldedLayer], &Pool)>,
    ledgers: &mut Ledgers,
    i: usize,
    x: &Planes<'_>,
    y: &mut Planes<'_>,
    first: usize,
) {
    let (layer, count): (&Layer, _) = (&GENERATOR[i], y.count);
    let conv = Conv3d {
        batch: 1,
        c_in: layer.c_in,
        c_out: layer.c_out,
        input: [x.count, x.edges[0], x.edges[1]],
        kernel: layer.kernel,
        stride: layer.stride,
        padding: layer.padding,
    };
    let (Some((layers, _)), Some(from), Some(to)) = (work, &x.data, &mut y.data) else {
        // Most slabs are equal.
        if ledgers.counted.insert((i, x.count)) {
            conv.scratch(rayon::current_num_threads(), &mut ledgers.scratch);
        }
        return;
    };
    let FoldedLayer { weight, bias, norm } = &layers[i];
    let epilogue = match norm {
        Some((scale, shift)) => Epilogue::LeakyNorm { slope: LEAKY_SLOPE, scale, shift },
        None => Epilogue::None,
    };
    conv.forward_planes(from, weight, bias, epilogue, to, first, count);
}

/// Planes `which` of `from`, the middle of them if `to` is smaller, to the planes of `to` from `first` on.
fn copy_planes(from: &Planes<'_>, which: Range<usize>, to: &mut Planes<'_>, first: usize) {
    copy_channels(from, which, to, 0, first);
}

/// The same, to the channels of `to` from `channel` on.
fn copy_channels(from: &Planes<'_>, which: Range<usize>, to: &mut Planes<'_>, channel: usize, first: usize) {
    let (count, area, [ny, nx]) = (to.count, to.area(), to.edges);
    let crop = (from.edges[0] - ny) / 2;
    let (Some(source), Some(data)) = (&from.data, &mut to.data) else { return };
    if which.is_empty() {
        return;
    }
    let channels = data[channel * count * area..].par_chunks_exact_mut(count * area);
    channels.zip(source.par_chunks_exact(from.count * from.area())).for_each(|(to, from_channel)| {
        let planes = to[first * area..].chunks_exact_mut(area);
        for (to, z) in planes.zip(which.clone()) {
            let plane = &from_channel[z * from.area()..][..from.area()];
            for (y, row) in to.chunks_exact_mut(nx).enumerate() {
                row.copy_from_slice(&plane[(y + crop) * from.edges[1] + crop..][..nx]);
            }
        }
    });
}

/// Nearest upsampling by 2 of all of `low`, into the first channels of `to` from plane `first` on.
fn upsample(low: &Planes<'_>, to: &mut Planes<'_>, first: usize) {
    let (count, area, nx) = (to.count, to.area(), to.edges[1]);
    let (Some(source), Some(data)) = (&low.data, &mut to.data) else { return };
    let channels =
        data.par_chunks_exact_mut(count * area).zip(source.par_chunks_exact(low.count * low.area()));
    channels.for_each(|(to, channel)| {
        let planes = to[first * area..].chunks_exact_mut(2 * area);
        for (to, plane) in planes.zip(channel.chunks_exact(low.area())) {
            let (even, odd) = to.split_at_mut(area);
            for (rows, source) in even.chunks_exact_mut(2 * nx).zip(plane.chunks_exact(nx / 2)) {
                let (row, copy) = rows.split_at_mut(nx);
                for (pair, &value) in row.as_chunks_mut::<2>().0.iter_mut().zip(source) {
                    *pair = [value; 2];
                }
                copy.copy_from_slice(row);
            }
            odd.copy_from_slice(even);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::GeneratorWeights;

    /// One slab and several, thick and thin; later tiles take what the first left.
    #[test]
    fn counts_what_the_pool_holds() {
        let weights = GeneratorWeights::random(1);
        let layers: Vec<FoldedLayer> = weights.layers.iter().map(FoldedLayer::new).collect();
        for size in [[44, 44, 44], [44, 48, 180], [180, 140, 48]] {
            let pool = Pool::new();
            let image = vec![0.5; size.iter().product()];
            for _ in 0..3 {
                Stream::run(&layers, &pool, [&image, &image], size, &mut Default::default());
            }
            assert_eq!(Stream::count(size).planes.peak(), pool.peak(), "{size:?}");
        }
    }
}
