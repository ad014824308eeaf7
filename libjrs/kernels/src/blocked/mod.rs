//! Convolution for inference on vectors, from plane to plane.
//!
//! Activations lie in planes `[channel / 16][y][x][channel % 16]` ([`Plane`]), so that a vector is 16 channels of a voxel and nothing has
//! to be packed or dealt: the filtering at stride 1 (`winograd`) transforms whole vectors, and in the products (`multiply`) a vector of
//! output channels meets one input channel of 24 voxels after the other. What follows the sums happens in registers on
//! the way to memory.
//!
//! | convolution | how |
//! |---|---|
//! | 3x3x3, stride 1 | `winograd`, a quarter of the products |
//! | the same behind nearest upsampling and a skip | the same, from the coarse planes: a sixth |
//! | 3x3x3, stride 2 padded by 1; two images | `direct` |
//!
//! The training counterpart, on tensors `[channel, z, y, x]`, is [`crate::conv3d`].

mod direct;
mod finish;
mod multiply;
mod plane;
mod tile;
mod winograd;

pub use finish::Output;
pub use plane::Plane;

use crate::Isa;
use crate::activation::Activation;
use crate::bf16::coarse_taps;
use crate::winograd::{POINTS, filter_plane};
use plane::BLOCK;

/// What a convolution reads, with its number of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Planes of the outputs' resolution (times the stride).
    Fine(usize),
    /// Planes of half the resolution, which stand for their nearest upsampling by 2.
    Coarse(usize),
}

impl Source {
    fn channels(&self) -> usize {
        let (Self::Fine(channels) | Self::Coarse(channels)) = *self;
        channels
    }

    /// Planes that an output meets.
    fn depth(&self) -> usize {
        match self {
            Self::Fine(_) => 3,
            Self::Coarse(_) => 2,
        }
    }

    /// The first of them for output plane `z`.
    fn first_plane(&self, z: usize) -> usize {
        match self {
            Self::Fine(_) => z,
            Self::Coarse(_) => z / 2,
        }
    }

    /// Voxels of the outputs' resolution to one of the planes'.
    fn up(&self) -> usize {
        match self {
            Self::Fine(_) => 1,
            Self::Coarse(_) => 2,
        }
    }

    /// Blocks of channels in all those planes.
    fn slots(&self) -> usize {
        self.depth() * self.channels() / BLOCK
    }
}

/// The planes of a source.
#[derive(Debug)]
pub struct View<'a> {
    /// From the first that output plane 0 meets.
    pub planes: Vec<&'a Plane<'a>>,
    /// Rows and columns left out per side.
    pub crop: usize,
}

/// A 3x3x3 convolution with weights prepared, and what follows it.
#[derive(Debug)]
pub struct Convolution {
    sources: Vec<Source>,
    stride: usize,
    activation: Activation,
    weights: Vec<Line>,
}

/// Weights for 16 output channels, on a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line([f32; BLOCK]);

impl Convolution {
    /// Prepares the weights; `weight(co, ci, [kz, ky, kx])` reads one. At stride 2 there is padding by 1. Input channels are those of the
    /// sources one after another.
    ///
    /// # Panics
    /// If output channels, or those of a source, are no multiple of 16, but for one source at stride 1 with fewer (the images); if
    /// stride 2 has not one fine source.
    pub fn new(
        sources: &[Source],
        stride: usize,
        activation: Activation,
        weight: impl Fn(usize, usize, [usize; 3]) -> f32,
    ) -> Self {
        let c_out = activation.bias.len();
        let Activation { scale, shift, slope, .. } = &activation;
        assert!(c_out.is_multiple_of(BLOCK) && scale.len() == c_out && shift.len() == c_out, "channels");
        assert!((0.0..=1.0).contains(slope), "slope {slope}");
        let mut conv = Self { sources: sources.to_vec(), stride, activation, weights: Vec::new() };
        conv.weights = if conv.is_direct() { conv.plain(weight) } else { conv.transformed(weight) };
        conv
    }

    /// Output channels.
    pub fn c_out(&self) -> usize {
        self.activation.bias.len()
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.weights[..])
    }

    /// Values that a task takes from [`crate::pool::SCRATCH`].
    pub fn scratch_len(&self) -> usize {
        if self.is_direct() { 0 } else { winograd::scratch_len(self) }
    }

    /// Computes all planes of the output from one view per source; the same bits for any number of threads. Each task takes
    /// `scratch_len` values, at least [`Convolution::scratch_len`]: with the same number for all layers, they find each other's buffers.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn run(&self, isa: Isa, views: &[View<'_>], output: Output<'_, '_>, scratch_len: usize) {
        let shape = output.shape();
        output.check(self.c_out());
        assert_eq!(views.len(), self.sources.len(), "views");
        assert!(scratch_len >= self.scratch_len(), "scratch");
        for (source, view) in self.sources.iter().zip(views) {
            self.check(*source, view, shape);
        }
        let target = output.target();
        if self.is_direct() {
            direct::run(self, isa, &views[0], shape, &target);
        } else {
            winograd::run(self, isa, views, shape, &target, scratch_len);
        }
    }

    /// All that the unsafe code relies on.
    fn check(&self, source: Source, view: &View<'_>, (planes, edges): (usize, [usize; 2])) {
        let reach = |n: usize| match source {
            Source::Fine(_) => self.stride * (n - 1) + 3 - 2 * self.padding(),
            Source::Coarse(_) => (n - 1) / 2 + 2,
        };
        let deep = reach(planes) + 2 * self.padding(); // padding along z is a plane
        assert!(view.planes.len() >= deep, "{} planes for {planes}", view.planes.len());
        assert!(view.crop == 0 || (self.stride == 1 && matches!(source, Source::Fine(_))), "crop");
        let first = view.planes[0].edges();
        assert!(
            view.planes.iter().all(|plane| (plane.channels(), plane.edges()) == (source.channels(), first))
        );
        for axis in 0..2 {
            // At stride 2 the last output meets the last voxel or padding, which only the front has.
            let needed = reach(edges[axis]) + 2 * view.crop + self.padding();
            assert!(first[axis] >= needed, "{} voxels where {needed} are met", first[axis]);
        }
    }

    fn is_direct(&self) -> bool {
        match self.sources[..] {
            [Source::Fine(channels)] if self.stride == 2 || !channels.is_multiple_of(BLOCK) => {
                assert!(
                    self.stride == 1 || channels.is_multiple_of(BLOCK),
                    "{channels} channels at stride 2"
                );
                true
            }
            _ => {
                let whole = self.sources.iter().all(|source| source.channels().is_multiple_of(BLOCK));
                assert!(self.stride == 1 && whole, "{:?} at stride {}", self.sources, self.stride);
                false
            }
        }
    }

    fn padding(&self) -> usize {
        self.stride - 1
    }

    /// Which of the weights a plane meets: even and odd ones differ behind upsampling.
    fn parity(&self, z: usize) -> usize {
        let coarse = self.sources.iter().any(|source| matches!(source, Source::Coarse(_)));
        if coarse { z % 2 } else { 0 }
    }

    /// `[output block][kz][ky][kx][input channel]`.
    fn plain(&self, weight: impl Fn(usize, usize, [usize; 3]) -> f32) -> Vec<Line> {
        let c_in = self.sources[0].channels();
        let line = |i: usize| {
            let (block, tap, ci) = (i / (27 * c_in), i / c_in % 27, i % c_in);
            Line(std::array::from_fn(|lane| {
                weight(block * BLOCK + lane, ci, [tap / 9, tap / 3 % 3, tap % 3])
            }))
        };
        (0..self.c_out() / BLOCK * 27 * c_in).map(line).collect()
    }

    /// G g G': `[parity][point][output block][source][plane][input channel]`.
    fn transformed(&self, weight: impl Fn(usize, usize, [usize; 3]) -> f32) -> Vec<Line> {
        let blocks = self.c_out() / BLOCK;
        let rows: usize = self.sources.iter().map(|source| source.depth() * source.channels()).sum();
        let parities = 1 + self.parity(1);
        let mut lines = vec![Line([0.0; BLOCK]); parities * POINTS * blocks * rows];
        for (parity, co) in (0..parities).flat_map(|parity| (0..self.c_out()).map(move |co| (parity, co))) {
            let (mut row, mut first) = (0, 0);
            for source in &self.sources {
                for plane in 0..source.depth() {
                    // The taps of that plane.
                    let taps: Vec<usize> = match source {
                        Source::Fine(_) => vec![plane],
                        Source::Coarse(_) => coarse_taps(parity, plane).collect(),
                    };
                    for ci in 0..source.channels() {
                        let g = |ky: usize, kx: usize| {
                            let sum = taps.iter().map(|&kz| f64::from(weight(co, first + ci, [kz, ky, kx])));
                            sum.sum::<f64>() as f32
                        };
                        for (point, value) in filter_plane(g).into_iter().enumerate() {
                            let at = ((parity * POINTS + point) * blocks + co / BLOCK) * rows + row + ci;
                            lines[at].0[co % BLOCK] = value;
                        }
                    }
                    row += source.channels();
                }
                first += source.channels();
            }
        }
        lines
    }

    /// Some of the weights.
    fn weights(&self, first: usize, len: usize) -> &[f32] {
        // SAFETY: lines are 16 f32 each, without padding.
        let all = unsafe {
            std::slice::from_raw_parts(self.weights.as_ptr().cast::<f32>(), BLOCK * self.weights.len())
        };
        &all[first..][..len]
    }
}
