//! The convolution of planes.

use std::ops::Range;

use rayon::prelude::*;

use super::filter::Filter;
use super::plane::Plane;
use super::tile::{ROWS, Segment, Strip, Sums, TILES, Unit, with_tiles};

/// Lattice rows of a task: enough to fill strips, few enough to share out a plane.
const BAND: usize = 8;

/// The planes that a filter's taps meet along z, and where.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// One plane per tap, of equal shape.
    pub planes: Vec<&'a Plane<'a>>,
    /// Row and column that the first tap of output (0, 0) meets; 0 is the border, 1 the first voxel.
    pub origin: [usize; 2],
    /// Voxels of the input from one output of the lattice to the next.
    pub step: usize,
}

/// A filter and what it reads.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// Weights.
    pub filter: &'a Filter,
    /// One per input of the filter.
    pub inputs: Vec<View<'a>>,
}

/// What follows the sums: `y = scale * leaky(sum + bias) + shift`, per output channel.
#[derive(Clone, Debug)]
pub struct Activation {
    /// Of the convolution.
    pub bias: Vec<f32>,
    /// Slope of LeakyReLU for negative values, from 0 to 1.
    pub slope: f32,
    /// Folded BatchNorm.
    pub scale: Vec<f32>,
    /// Folded BatchNorm.
    pub shift: Vec<f32>,
}

/// The network's head, a 1x1x1 convolution to three components, which is applied to the f32 values of the last block
/// before they are rounded.
#[derive(Clone, Debug)]
pub struct Head {
    /// Per component and channel.
    pub weight: [[f32; 16]; 3],
    /// Per component.
    pub bias: [f32; 3],
}

/// Where the results of a plane go.
#[derive(Debug)]
pub enum Output<'a, 'p> {
    /// Rounded, as the input of a next layer.
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
    /// One part, or four whose outputs are the lattices of even and odd rows and columns: (even, even), (even, odd), (odd, even),
    /// (odd, odd).
    pub parts: Vec<Part<'a>>,
    /// The plane.
    pub output: Output<'a, 'p>,
}

/// Computes planes; the same bits for any number of threads.
///
/// # Panics
/// If shapes do not fit, or the unit is not there.
pub fn convolve(unit: Unit, activation: &Activation, jobs: &mut [Job<'_, '_>]) {
    let tasks: Vec<Task<'_>> = jobs.iter_mut().flat_map(|job| job.tasks(unit, activation)).collect();
    tasks.into_par_iter().for_each(Task::run);
}

impl<'a> Job<'a, '_> {
    fn tasks<'b>(&'b mut self, unit: Unit, activation: &'b Activation) -> Vec<Task<'b>> {
        let step = match self.parts.len() {
            1 => 1,
            4 => 2,
            n => panic!("{n} parts"),
        };
        let c_out = self.parts[0].filter.c_out();
        assert!([&activation.bias, &activation.scale, &activation.shift].iter().all(|v| v.len() == c_out));
        let edges = match &self.output {
            Output::Plane(plane) => {
                assert_eq!(plane.channels(), c_out, "output channels");
                plane.edges()
            }
            Output::Displacement { edges, u, .. } => {
                assert!(c_out == 16 && u.iter().all(|u| u.len() == edges[0] * edges[1]), "displacement");
                *edges
            }
        };
        assert!(edges.iter().all(|n| n.is_multiple_of(step)), "{edges:?} outputs in steps of {step}");
        let lattice = edges.map(|n| n / step);
        self.parts.iter().for_each(|part| part.check(c_out, lattice));
        let bands: Vec<Band<'b>> = match &mut self.output {
            Output::Plane(plane) => {
                let (pitch, channels) = (plane.pitch(), plane.channels());
                let rows = plane.rows_mut().chunks_mut(BAND * step * pitch);
                rows.map(|rows| Band::Voxels { rows, pitch, channels }).collect()
            }
            Output::Displacement { head, edges, u } => {
                let width = edges[1];
                let [x, y, z] = u.each_mut().map(|u| u.chunks_mut(BAND * step * width));
                x.zip(y).zip(z).map(|((x, y), z)| Band::Displacement { head, width, u: [x, y, z] }).collect()
            }
        };
        let parts = &self.parts[..];
        bands
            .into_iter()
            .enumerate()
            .map(|(i, band)| {
                let rows = BAND * i..lattice[0].min(BAND * (i + 1));
                Task { unit, activation, parts, step, rows, columns: lattice[1], band }
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
            assert!(matches!(view.step, 1 | 2), "step {}", view.step);
            for plane in &view.planes {
                assert_eq!((plane.channels(), plane.edges()), (taps.channels, first.edges()), "input plane");
            }
            for axis in 0..2 {
                let last = view.origin[axis] + view.step * (lattice[axis] - 1) + taps.kernel[axis + 1] - 1;
                let n = first.edges()[axis];
                assert!(last <= n, "axis {axis}: output {} meets voxel {last} of {n}", lattice[axis] - 1);
            }
        }
    }
}

/// Some rows of one output plane.
struct Task<'a> {
    unit: Unit,
    activation: &'a Activation,
    parts: &'a [Part<'a>],
    step: usize,
    /// Of the lattice.
    rows: Range<usize>,
    columns: usize,
    band: Band<'a>,
}

/// Where a task writes: output rows from `step * rows.start` on.
enum Band<'a> {
    Voxels { rows: &'a mut [u16], pitch: usize, channels: usize },
    Displacement { head: &'a Head, width: usize, u: [&'a mut [f32]; 3] },
}

impl Task<'_> {
    fn run(mut self) {
        with_tiles(self.unit, || {
            for (index, part) in self.parts.iter().enumerate() {
                self.lattice(part, [index / self.step, index % self.step]);
            }
        });
    }

    /// The outputs (step*i + parity, step*j + parity) of the band.
    fn lattice(&mut self, part: &Part<'_>, parity: [usize; 2]) {
        let offsets: Vec<Vec<isize>> =
            part.inputs.iter().zip(part.filter.inputs()).map(byte_offsets).collect();
        let strip = Strip::of_blocks(part.filter.blocks());
        let [tiles, blocks] = strip.size();
        let across = self.columns.div_ceil(ROWS);
        let places: Vec<[usize; 2]> =
            self.rows.clone().flat_map(|i| (0..across).map(move |t| [i, ROWS * t])).collect();
        let mut sums = Sums([0.0; TILES * ROWS * 16]);
        for group in 0..part.filter.groups() {
            for places in places.chunks(tiles) {
                let segments = part.inputs.iter().zip(&offsets).map(|(view, offsets)| {
                    // Where the strip is not full its last tile is computed again.
                    let base = |t: usize| view.base(places[t.min(places.len() - 1)]);
                    let offsets = offsets.as_ptr_range();
                    Segment {
                        first: offsets.start,
                        last: offsets.end,
                        stride: 2 * view.step * view.planes[0].channels(),
                        bases: std::array::from_fn(base),
                    }
                });
                let segments: Vec<Segment> = segments.collect();
                // SAFETY: `Part::check` holds every tap of every output inside the planes; the other voxels of a tile, fewer
                // than 16 steps and 4 voxels further, lie in the planes or in their slack. A filter has a tile of
                // weights per step and block. `with_tiles` runs us.
                unsafe { strip.product(self.unit, &segments, part.filter.weights(group), &mut sums) };
                for (t, place) in places.iter().enumerate() {
                    for block in 0..blocks {
                        let sums = sums.0[(t * blocks + block) * ROWS * 16..].first_chunk_mut();
                        let sums = sums.expect("a tile per block");
                        self.store(sums, 16 * (group * blocks + block), *place, parity);
                    }
                }
            }
        }
    }

    /// A tile of sums, of channels from `channel` on, for the lattice row and columns from `place` on.
    fn store(&mut self, sums: &mut [f32; ROWS * 16], channel: usize, place: [usize; 2], parity: [usize; 2]) {
        let act = Lanes::of(self.activation, channel);
        let count = ROWS.min(self.columns - place[1]);
        let row = self.step * (place[0] - self.rows.start) + parity[0];
        let column = self.step * place[1] + parity[1];
        match &mut self.band {
            Band::Voxels { rows, pitch, channels } => {
                // Behind the border column.
                let from = row * *pitch + (column + 1) * *channels + channel;
                store_voxels(self.unit, sums, &act, count, &mut rows[from..], self.step * *channels);
            }
            Band::Displacement { head, width, u } => {
                act.apply(sums);
                for (component, u) in u.iter_mut().enumerate() {
                    let to = u[row * *width + column..].iter_mut().step_by(self.step).take(count);
                    for (to, values) in to.zip(sums.as_chunks::<16>().0) {
                        let products: [f32; 16] =
                            std::array::from_fn(|k| values[k] * head.weight[component][k]);
                        *to = head.bias[component] + sum(products);
                    }
                }
            }
        }
    }
}

impl View<'_> {
    /// The voxel that the first tap of a lattice place meets.
    fn base(&self, [i, j]: [usize; 2]) -> *const u8 {
        let plane = self.planes[0];
        let [y, x] = [self.origin[0] + self.step * i, self.origin[1] + self.step * j];
        plane.values()[y * plane.pitch() + x * plane.channels()..].as_ptr().cast()
    }
}

/// Where the K steps of an input read, in bytes from [`View::base`]. The planes are buffers of their own.
fn byte_offsets((view, (_, steps)): (&View<'_>, &(super::Taps, Vec<super::filter::Step>))) -> Vec<isize> {
    let start = |plane: &Plane<'_>| plane.values().as_ptr().addr() as isize;
    let pitch = view.planes[0].pitch();
    let channels = view.planes[0].channels();
    let offset = |step: &super::filter::Step| {
        let within = step.dy * pitch + step.dx * channels + step.channel;
        start(view.planes[step.plane]) - start(view.planes[0]) + 2 * within as isize
    };
    steps.iter().map(offset).collect()
}

/// [`Activation`] for the 16 channels of a tile.
pub(super) struct Lanes<'a> {
    pub bias: &'a [f32; 16],
    pub slope: f32,
    pub scale: &'a [f32; 16],
    pub shift: &'a [f32; 16],
}

impl<'a> Lanes<'a> {
    fn of(activation: &'a Activation, channel: usize) -> Self {
        let lanes = |v: &'a [f32]| v[channel..].first_chunk().expect("a value per channel");
        let Activation { bias, slope, scale, shift } = activation;
        Self { bias: lanes(bias), slope: *slope, scale: lanes(scale), shift: lanes(shift) }
    }

    fn apply(&self, sums: &mut [f32; ROWS * 16]) {
        for voxel in sums.as_chunks_mut::<16>().0 {
            for k in 0..16 {
                let value = voxel[k] + self.bias[k];
                // max is LeakyReLU for slopes from 0 to 1.
                voxel[k] = self.scale[k] * value.max(self.slope * value) + self.shift[k];
            }
        }
    }
}

/// Activates and rounds the first `count` voxels of a tile to places `stride` values apart.
fn store_voxels(
    unit: Unit,
    sums: &mut [f32; ROWS * 16],
    act: &Lanes<'_>,
    count: usize,
    to: &mut [u16],
    stride: usize,
) {
    assert!(to.len() >= (count - 1) * stride + 16);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if unit == Unit::Amx {
        // SAFETY: that unit comes with AVX-512 (checked before it is chosen).
        return unsafe { super::amx::store_voxels(sums, act, count, to, stride) };
    }
    let _ = unit;
    act.apply(sums);
    for (voxel, to) in sums.as_chunks::<16>().0.iter().zip(to.chunks_mut(stride)).take(count) {
        for (to, &value) in to.iter_mut().zip(voxel) {
            *to = super::round(value);
        }
    }
}

/// Sum in a fixed order that vectors can follow.
fn sum(v: [f32; 16]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
