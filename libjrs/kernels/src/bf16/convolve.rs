//! The convolution of planes.

use std::ops::Range;

use rayon::prelude::*;

use super::filter::{Filter, Step, Taps};
use super::plane::{BORDER, Plane};
use super::results::{Lattice, Leaving, Target};
use crate::activation::{Activation, Head};
use crate::unit::{Block, Segment, Sums, TILES, Unit, even_rows, with_tiles};

/// Bytes of a task's part of a plane. The tasks of a part of all planes at hand follow each other, so that what several of them
/// read comes from the L2 cache.
const BAND: usize = 80 << 10;

/// The planes that a filter's taps meet along z, and where.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// One plane per tap, of equal shape.
    pub planes: Vec<&'a Plane<'a>>,
    /// Voxels along x that are read as one, of as many times the channels: 1 or 2.
    pub group: usize,
    /// Row and column (of groups) that the first tap of output (0, 0) meets. -1 is the border.
    pub origin: [isize; 2],
    /// Rows and columns (of groups) of the input from one output of the lattice to the next.
    pub step: [usize; 2],
}

/// A filter and what it reads.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// Weights.
    pub filter: &'a Filter,
    /// One per input of the filter.
    pub inputs: Vec<View<'a>>,
}

/// Where the results of a plane go.
#[derive(Debug)]
pub enum Output<'a, 'p> {
    /// In its format, as the input of a next layer.
    Plane(&'a mut Plane<'p>),
    /// Through the head, one `[y][x]` plane of `edges` per component.
    Displacement {
        /// The head.
        head: &'a Head,
        /// y, x.
        edges: [usize; 2],
        /// The components.
        u: [&'a mut [f32]; 3],
    },
}

/// One plane to compute.
#[derive(Debug)]
pub struct Job<'a, 'p> {
    /// One per lattice of outputs, in the order of its first row and column: with `lattices` = \[2, 2\] those of (even, even), (even, odd),
    /// (odd, even) and (odd, odd) rows and columns.
    pub parts: Vec<Part<'a>>,
    /// Lattices along y and x.
    pub lattices: [usize; 2],
    /// Voxels along x that the filters compute as one, with as many times the channels: 1 or 2.
    pub group: usize,
    /// The plane.
    pub output: Output<'a, 'p>,
}

/// Computes planes of equal shape; the same bits for any number of threads.
///
/// # Panics
/// If shapes do not fit, or the unit is not there.
pub fn convolve(unit: Unit, activation: &Activation, jobs: &mut [Job<'_, '_>]) {
    let mut tasks: Vec<Task<'_>> = jobs.iter_mut().flat_map(|job| job.tasks(unit, activation)).collect();
    // Neighbours are one thread's for as long as there is other work for the rest: those of a band, from plane to plane. One by one: in
    // the runs that rayon makes of them, some threads end early.
    tasks.sort_by_key(|task| task.rows.start);
    tasks
        .par_iter_mut()
        .with_max_len(1)
        .for_each(|task| with_tiles(unit, even_rows(task.columns), || task.run()));
}

impl<'a> Job<'a, '_> {
    fn tasks<'b>(&'b mut self, unit: Unit, activation: &'b Activation) -> Vec<Task<'b>> {
        let (lattices, group) = (self.lattices, self.group);
        assert_eq!(self.parts.len(), lattices[0] * lattices[1], "parts");
        let c_out = self.parts[0].filter.c_out();
        assert!([&activation.bias, &activation.scale, &activation.shift].iter().all(|v| v.len() == c_out));
        let [height, width] = match &self.output {
            Output::Plane(plane) => {
                assert_eq!(group * plane.channels(), c_out, "output channels");
                plane.edges()
            }
            Output::Displacement { edges, u, .. } => {
                assert!(c_out == 16 * group && u.iter().all(|u| u.len() == edges[0] * edges[1]), "head");
                *edges
            }
        };
        let whole = height.is_multiple_of(lattices[0]) && width.is_multiple_of(lattices[1] * group);
        assert!(whole, "{height} x {width} outputs in lattices of {lattices:?}, groups of {group}");
        let lattice = [height / lattices[0], width / lattices[1] / group];
        self.parts.iter().for_each(|part| part.check(c_out, lattice));
        let read = self.parts[0].inputs[0].planes[0];
        let row_bytes = 2 * lattices[0] * width * read.channels() * read.format().terms();
        let band = (BAND / row_bytes / TILES).clamp(2, 6) * TILES;
        let band_rows = band * lattices[0];
        let targets: Vec<Target<'b>> = match &mut self.output {
            Output::Plane(plane) => {
                let (pitch, channels) = (plane.pitch(), plane.channels());
                let mut terms = plane.rows_mut().map(|rows| rows.chunks_mut(band_rows * pitch));
                let high = terms.next().expect("a plane has high terms");
                let mut low = terms.next();
                high.map(|high| {
                    let low = low.as_mut().map(|low| low.next().expect("as many rows as of high terms"));
                    Target::Voxels { high, low, pitch, channels }
                })
                .collect()
            }
            Output::Displacement { head, u, .. } => {
                let [x, y, z] = u.each_mut().map(|u| u.chunks_mut(band_rows * width));
                x.zip(y)
                    .zip(z)
                    .map(|((x, y), z)| Target::Displacement { head, width, u: [x, y, z] })
                    .collect()
            }
        };
        let parts = &self.parts[..];
        targets
            .into_iter()
            .enumerate()
            .map(|(i, target)| {
                let rows = band * i..lattice[0].min(band * (i + 1));
                Task { unit, activation, parts, lattices, group, rows, columns: lattice[1], target }
            })
            .collect()
    }
}

impl Part<'_> {
    /// All that the unsafe code relies on.
    fn check(&self, c_out: usize, lattice: [usize; 2]) {
        assert_eq!(self.filter.c_out(), c_out, "output channels");
        assert_eq!(self.filter.inputs().len(), self.inputs.len(), "inputs");
        for ((taps, _), view) in self.filter.inputs().iter().zip(&self.inputs) {
            let first = view.planes[0];
            assert_eq!(view.planes.len(), taps.kernel[0], "planes");
            assert!(matches!(view.group, 1 | 2) && view.group * view.step[1] <= 4, "groups");
            for plane in &view.planes {
                let shape = (view.group * plane.channels(), plane.edges(), plane.format());
                assert_eq!(shape, (taps.channels, first.edges(), taps.format), "input plane");
            }
            let [height, width] = first.edges();
            assert!(width.is_multiple_of(view.group), "{width} columns in groups of {}", view.group);
            for (axis, n) in [height, width / view.group].into_iter().enumerate() {
                assert!(view.origin[axis] >= -1, "axis {axis} from {}", view.origin[axis]);
                let reach = view.step[axis] * (lattice[axis] - 1) + taps.kernel[axis + 1];
                let end = view.origin[axis] + reach as isize;
                assert!(end <= n as isize, "axis {axis}: the last output meets voxel {} of {n}", end - 1);
            }
        }
    }
}

/// Some rows of one output plane.
struct Task<'a> {
    unit: Unit,
    activation: &'a Activation,
    parts: &'a [Part<'a>],
    lattices: [usize; 2],
    group: usize,
    /// Of the lattice.
    rows: Range<usize>,
    columns: usize,
    target: Target<'a>,
}

impl Task<'_> {
    fn run(&mut self) {
        let parts = self.parts;
        for (index, part) in parts.iter().enumerate() {
            self.lattice(part, [index / self.lattices[1], index % self.lattices[1]]);
        }
    }

    /// The outputs of the band in one lattice, whose first row and column are `parity`.
    fn lattice(&mut self, part: &Part<'_>, parity: [usize; 2]) {
        let offsets: Vec<Vec<isize>> =
            part.inputs.iter().zip(part.filter.inputs()).map(byte_offsets).collect();
        let segment = |(view, offsets): (&View<'_>, &Vec<isize>)| {
            let offsets = offsets.as_ptr_range();
            let (stride, bases) = (2 * view.step[1] * view.channels(), [view.base(); TILES]);
            Segment { first: offsets.start, last: offsets.end, stride, low: 2 * view.planes[0].low(), bases }
        };
        let mut segments: Vec<Segment> = part.inputs.iter().zip(&offsets).map(segment).collect();
        let walks: Vec<Walk> = part.inputs.iter().map(View::walk).collect();
        let (unit, shape) = (self.unit, part.filter.shape());
        let mut both = [Sums::ZERO; 2];
        let [mut sums, mut before] = both.each_mut();
        let Self { activation, lattices, group, .. } = *self;
        let mut leaving =
            Leaving::new(Lattice { unit, activation, group, lattices, parity }, &mut self.target);
        let (rows, last) = (self.rows.len(), self.rows.len() - 1);
        for channel in (0..part.filter.c_out()).step_by(16 * shape.blocks()) {
            let weights = part.filter.weights(channel);
            for row in (0..rows).step_by(shape.tiles()) {
                for column in (0..self.columns).step_by(even_rows(self.columns)) {
                    // Plain stores of single addresses: what the loop below waits for must not wait for the sums' stores.
                    for k in 0..segments.len() {
                        for t in 0..shape.tiles() {
                            // Where there are not enough rows left the last is computed again.
                            segments[k].bases[t] = walks[k].at(self.rows.start + last.min(row + t), column);
                        }
                    }
                    let block = Block { shape, segments: &segments, weights, sums };
                    // SAFETY: `Part::check` holds every tap of every output inside the planes; the other voxels of a tile,
                    // fewer than 16 steps of four voxels and a kernel further, lie in the planes or in their slack.
                    // `convolve` runs us with the tiles configured.
                    unsafe { leaving.store_beside(Some(block), before) };
                    let columns = column..self.columns.min(column + even_rows(self.columns));
                    leaving.begin(channel, row..rows.min(row + shape.tiles()), columns);
                    std::mem::swap(&mut sums, &mut before);
                }
            }
        }
        // SAFETY: no products.
        unsafe { leaving.store_beside(None, before) };
    }
}

impl View<'_> {
    /// Values of a group of voxels.
    fn channels(&self) -> usize {
        self.group * self.planes[0].channels()
    }

    /// What the first tap of the lattice's first place meets: behind the border, and never before it.
    fn base(&self) -> *const u8 {
        let plane = self.planes[0];
        let (row, column) = (self.origin[0] + 1, self.origin[1] + (BORDER / self.group) as isize);
        plane.values()[row as usize * plane.pitch() + column as usize * self.channels()..].as_ptr().cast()
    }

    fn walk(&self) -> Walk {
        let row = 2 * self.step[0] * self.planes[0].pitch();
        Walk { first: self.base(), row, column: 2 * self.step[1] * self.channels() }
    }
}

/// From place to place of a lattice, in bytes.
struct Walk {
    first: *const u8,
    row: usize,
    column: usize,
}

impl Walk {
    #[inline(always)]
    fn at(&self, row: usize, column: usize) -> *const u8 {
        self.first.wrapping_add(row * self.row + column * self.column)
    }
}

/// Where the K steps of an input read, in bytes from [`View::base`]. The planes are buffers of their own.
fn byte_offsets((view, (_, steps)): (&View<'_>, &(Taps, Vec<Step>))) -> Vec<isize> {
    let start = |plane: &Plane<'_>| plane.values().as_ptr().addr() as isize;
    let pitch = view.planes[0].pitch();
    let offset = |step: &Step| {
        let within = step.dy * pitch + step.dx * view.channels() + step.channel;
        start(view.planes[step.plane]) - start(view.planes[0]) + 2 * within as isize
    };
    steps.iter().map(offset).collect()
}
